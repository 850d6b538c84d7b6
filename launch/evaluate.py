#!/usr/bin/env python
"""Measures the constraint distance of any samples; writes one JSON object to standard output.

    python launch/evaluate.py --config=configs/burgers.py[:preset] --samples=FILE.npy
                              [--workdir=DIR] [--config.<section>.<field>=VALUE]

FILE.npy holds fields `(n, h, w, c)` in the paper's layout. Exit status: 0 done; 2 a user's mistake.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from namm_jax.experiment.cli import main

if __name__ == '__main__':
    sys.exit(main(sys.argv, 'evaluate'))
