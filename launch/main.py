#!/usr/bin/env python
"""Runs an experiment, all its stages or some of them, in a run folder.

    python launch/main.py --config=configs/burgers.py[:preset] [--workdir=DIR] [--stages=a,b]
                          [--redo=STAGE] [--seeds=0,1,2] [--config.<section>.<field>=VALUE]

Exit status: 0 done; 1 a failed run; 2 a user's mistake, told in one message; 130, 143 or 129
stopped by SIGINT, SIGTERM or SIGHUP, after saving.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from namm_jax.experiment.cli import main

if __name__ == '__main__':
    sys.exit(main(sys.argv))
