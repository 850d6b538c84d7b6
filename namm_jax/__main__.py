"""Diffusion models whose samples obey a rule.

    namm_jax run EXPERIMENT [--workdir=DIR] [--stages=a,b] [--seeds=0,1,2]
    namm_jax solve EXPERIMENT --workdir=RUN --measurement=y.npy --out=x.npy
    namm_jax evaluate EXPERIMENT --samples=FILE.npy
    namm_jax report RUN [RUN ...] [--out FILE]
    namm_jax fields EXPERIMENT
    namm_jax list

EXPERIMENT is a shipped one, burgers or burgers:tiny, or a config file, FILE.py
or FILE.py:tiny. --config.<section>.<field>=VALUE changes a field of it;
`fields` shows them all. --help after a command shows its flags.
`python -m namm_jax` is the same.
"""

import sys
import textwrap

from namm_jax.experiment import cli
from namm_jax.experiment.files import UserError


def main(arguments: list[str] | None = None) -> int:
    """Runs `namm_jax` with these arguments; returns the exit status."""
    command, *rest = (sys.argv[1:] if arguments is None else arguments) or ['--help']
    if command == 'report':
        from namm_jax.report.__main__ import main as report

        return report(rest, 'namm_jax report')
    return cli.guarded(lambda: _execute(command, rest))


def _execute(command: str, rest: list[str]) -> None:
    if command in ('-h', '--help', 'help'):
        cli.tell(__doc__)
    elif command == 'list':
        for name, (about, presets) in cli.experiments().items():
            cli.tell(f'{name:20}{", ".join(presets)}')
            cli.tell(textwrap.fill(about, 80, initial_indent='    ', subsequent_indent='    '))
    elif command in cli.COMMANDS:
        cli.execute(command, rest, __doc__)
    else:
        raise UserError(cli.nearest(command, [*cli.COMMANDS, 'report', 'list']))


if __name__ == '__main__':
    sys.exit(main())
