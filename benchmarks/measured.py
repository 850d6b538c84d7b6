"""The rows of a benchmark: printed as they come, kept beside the command and the machine."""

import argparse
import json
import platform
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax


def processor() -> str:
    """Returns the machine's processors, such as '2 x AMD EPYC'."""
    info = Path('/proc/cpuinfo')
    names = re.findall(r'model name\s*:\s*(.*)', info.read_text()) if info.exists() else []
    return f'{len(names)} x {names[0]}' if names else platform.processor()


def add_json(parser: argparse.ArgumentParser) -> None:
    """Adds the flag `--json`, the path of `Rows.keep`."""
    parser.add_argument(
        '--json', type=Path, help='where the rows are kept, for the tables of texts'
    )


class Rows:
    """A Markdown table that grows by rows."""

    def __init__(self, *columns: str) -> None:
        self.columns, self.rows = columns, []
        print('\n'.join(head(columns)), flush=True)

    def add(self, *cells: object) -> None:
        """Prints a row."""
        self.rows.append([str(cell) for cell in cells])
        print(line(self.rows[-1]), flush=True)

    def keep(self, path: Path | None, *facts: str) -> None:
        """Prints what else was measured, a line a fact, and writes all to a file, if one is given,
        for the table `measured:NAME` of `results.py`.
        """
        print('', *facts, sep='\n')
        devices = jax.devices()
        kept = {
            'command': ' '.join(['python', *sys.argv]),
            'machine': processor()
            if devices[0].platform == 'cpu'
            else f'{len(devices)} x {devices[0].device_kind}',
            'jax': jax.__version__,
            'time': time.strftime('%Y-%m-%d'),
            'columns': self.columns,
            'rows': self.rows,
            'facts': facts,
        }
        if path:
            path.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + '\n')


def line(cells: Sequence[str]) -> str:
    """Returns a line of a Markdown table."""
    return '| ' + ' | '.join(cells) + ' |'


def head(columns: Sequence[str]) -> list[str]:
    """Returns the first two lines of a Markdown table."""
    return [line(columns), '|---' * len(columns) + '|']
