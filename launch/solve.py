#!/usr/bin/env python
"""Draws posterior samples given measurements of your own, with the models of a finished run.

    python launch/solve.py --config=configs/burgers.py --workdir=RUN --measurement=y.npy
                           --out=posterior.npy [--operator=first_states] [--noise_std=0.2]
                           [--num_samples=32] [--sampler=mirror_few_steps]
                           [--config.assimilate.<field>=VALUE] [--overwrite]

y.npy holds one measurement `m`, or several, `(n, *m)`; posterior.npy gets
`(n * num_samples, h, w, c)` fields in the paper's layout, those of the first measurement first. One
JSON object is written to standard output: how well samples fit the measurement, in noise units, and
how far they are from the constraint set. Exit status: 0 done; 2 a user's mistake.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from namm_jax.experiment.cli import main

if __name__ == '__main__':
    sys.exit(main(sys.argv, 'solve'))
