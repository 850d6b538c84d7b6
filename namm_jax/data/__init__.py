"""Data sets: one file a family, each with `sample_<family>(keys, ...) -> (n, h, w, c)`, field i from key i alone."""
