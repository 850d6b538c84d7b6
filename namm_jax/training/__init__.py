"""Training: the step that all networks are trained by, optimizers, tasks, and `fit`."""
