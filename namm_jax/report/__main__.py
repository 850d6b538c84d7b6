"""Draws the report of finished runs again, or of several side by side: no training.

    python -m namm_jax.report RUN [RUN ...] [--out FILE]

RUN is a run folder, or a folder with one a seed. FILE is by default report.html, in RUN where there
is one RUN.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from namm_jax.experiment.files import UserError, write_bytes
from namm_jax.report.reading import find_runs, read_run


def main(arguments: Sequence[str], program: str = 'python -m namm_jax.report') -> int:
    """Runs the command with these arguments; returns the exit status: 2 for a user's mistake, 1 for
    a failed write.
    """
    parser = argparse.ArgumentParser(
        prog=program,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('runs', metavar='RUN', nargs='+', type=Path, help='a run folder')
    parser.add_argument('--out', metavar='FILE', type=Path, help='where the page is written')
    given = parser.parse_args(arguments)
    try:
        out = given.out or (given.runs[0] if len(given.runs) == 1 else Path()) / 'report.html'
        runs = find_runs(given.runs)
        if not out.parent.is_dir():
            raise UserError(f'--out: got {out}, but {out.parent} is no folder; make it first')
        if out.is_dir() or (out.exists() and out.suffix != '.html'):
            raise UserError(f'--out: got {out}, which is no page; choose a new name, or *.html')
        results = {label: read_run(folder) for label, folder in runs.items()}
        from namm_jax.report.page import page
        from namm_jax.report.pictures import draw

        drawn = {label: (result, draw(result)) for label, result in results.items()}
        write_bytes(out, page(drawn).encode())
    except (ValueError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    print(out)
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
