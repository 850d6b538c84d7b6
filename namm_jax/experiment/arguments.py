"""The arguments of the two commands: flags, and from them the config, its preset and the
overrides.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from namm_jax._checks import nearest
from namm_jax.experiment.config import no_field
from namm_jax.experiment.files import UserError
from namm_jax.experiment.processes import Place
from namm_jax.experiment.schema import fields as fields_of
from namm_jax.problems import PROBLEMS

ROOT = Path(__file__).resolve().parents[2]


def _flags(arguments: list[str]) -> flags.FlagValues:
    values = flags.FlagValues()
    try:
        config_flags.DEFINE_config_file(
            'config',
            None,
            'Config file and preset: FILE.py[:preset].',
            flag_values=values,
            sys_argv=arguments,
        )
    except flags.Error as error:  # of a file of flags, which is read here already
        raise UserError(str(error)) from error
    flags.DEFINE_string(
        'workdir', None, 'Run folder; runs/<config>-<preset> when absent.', flag_values=values
    )
    return values


def main_flags(arguments: list[str]) -> flags.FlagValues:
    """Returns the flags of `launch/main.py`, not yet parsed."""
    values = _flags(arguments)
    flags.DEFINE_list(
        'stages', None, 'Stages to run, in any order; all when absent.', flag_values=values
    )
    flags.DEFINE_list(
        'redo', [], 'Stages to discard first, with all that was built on them.', flag_values=values
    )
    flags.DEFINE_list(
        'seeds',
        [],
        'Seeds; each has its own folder, and the table aggregates them.',
        flag_values=values,
    )
    flags.DEFINE_boolean(
        'distributed',
        False,
        (
            'One of several processes: on TPU pods, SLURM and Open MPI no more is needed; '
            'elsewhere the three flags below.'
        ),
        flag_values=values,
    )
    flags.DEFINE_string(
        'coordinator', None, 'HOST:PORT at which process 0 listens.', flag_values=values
    )
    flags.DEFINE_integer('num_processes', None, 'Number of processes.', flag_values=values)
    flags.DEFINE_integer(
        'process_index', None, 'Which of them this is, from 0.', flag_values=values
    )
    return values


def evaluate_flags(arguments: list[str]) -> flags.FlagValues:
    """Returns the flags of `launch/evaluate.py`, not yet parsed."""
    values = _flags(arguments)
    flags.DEFINE_string('samples', None, 'A .npy file of samples (n, h, w, c).', flag_values=values)
    return values


def solve_flags(arguments: list[str]) -> flags.FlagValues:
    """Returns the flags of `launch/solve.py`, not yet parsed."""
    values = _flags(arguments)
    flags.DEFINE_string(
        'measurement', None, 'A .npy file of measurements (n, *m), or one (*m).', flag_values=values
    )
    flags.DEFINE_string(
        'out',
        None,
        'Where to write posterior samples (n * num_samples, h, w, c).',
        flag_values=values,
    )
    flags.DEFINE_string(
        'operator', None, "The operator; the run's own when absent.", flag_values=values
    )
    flags.DEFINE_string(
        'sampler', 'mirror_few_steps', 'A row of the table of assimilate.', flag_values=values
    )
    flags.DEFINE_float(
        'noise_std', None, 'Noise of the measurement, in its unit.', flag_values=values
    )
    flags.DEFINE_integer(
        'num_samples', None, 'Posterior samples of each measurement.', flag_values=values
    )
    return values


def _join_config(arguments: list[str]) -> list[str]:
    """Returns the arguments with `--config FILE` written as `--config=FILE`."""
    for i, argument in enumerate(arguments[:-1]):
        if argument in ('--config', '-config'):
            return [*arguments[:i], f'--config={arguments[i + 1]}', *arguments[i + 2 :]]
    return arguments


def _find_config(arguments: list[str]) -> list[str]:
    """Returns the arguments with the config file's path made absolute: it may be relative to the
    clone, too.
    """
    found = []
    for argument in _join_config(arguments):
        name, _, value = argument.partition('=')
        if name.lstrip('-') == 'config' and '=' in argument:
            path, _, preset = value.partition(':')
            places = [place for place in (Path(path), ROOT / path) if os.path.isfile(place)]
            if not places:
                known = sorted(
                    p.relative_to(ROOT).as_posix() for p in (ROOT / 'configs').glob('*.py')
                )
                raise UserError(f'--config: no such file; {nearest(path, known)}')
            argument = f'--config={places[0].resolve()}' + (f':{preset}' if preset else '')
        found.append(argument)
    return found


def tell(text: object) -> None:
    """Writes to standard output; a reader that has gone, as in `--help | head -1`, is no error."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # Python writes once more as it exits


def parse(values: flags.FlagValues, arguments: list[str], usage: str | None) -> ConfigDict:
    """Parses the arguments; returns the config.

    Raises:
        UserError: for anything that a user may have mistyped.
    """
    given = [a for a in arguments[1:] if a.split('=')[0].lstrip('-') in ('help', 'h', 'helpfull')]
    if given:
        tell(f'{usage}\n{values.main_module_help() or values}')
        raise SystemExit(0)
    try:
        rest = values(_find_config(arguments))
    except (
        flags.Error,
        ValueError,
        TypeError,
        AttributeError,
        LookupError,
        RecursionError,
        MemoryError,
    ) as error:
        raise UserError(_explain(error, arguments)) from error
    if rest[1:]:
        raise UserError(f'got the arguments {rest[1:]}, expected flags only, as --name=value')
    if values.config is None:
        raise UserError(
            '--config is missing; expected --config=FILE.py[:preset], such as '
            '--config=configs/burgers.py'
        )
    for name, value in overrides_of(values).items():
        try:
            json.dumps(value)
        except (
            TypeError
        ) as error:  # a tuple is parsed as Python, which has complex numbers, sets and bytes
            raise UserError(
                f'{name}: got {value!r}, expected numbers, texts and booleans'
            ) from error
    return values.config


def _explain(error: Exception, arguments: list[str]) -> str:
    """Returns the error's message; where a config field is unknown, the nearest ones."""
    fields = list(dict.fromkeys(name for problem in PROBLEMS for name in fields_of(problem)))
    for argument in arguments:
        name = argument.lstrip('-').split('=')[0]
        if name.startswith('config.') and name.removeprefix('config.') not in fields:
            return no_field(name.removeprefix('config.'), fields)
    *before, last = str(error).strip().splitlines() or [repr(error)]
    # An error inside the config file, such as an unknown preset, comes as the text of a traceback:
    # its end says it.
    return (
        last.removeprefix('ValueError: ')
        if any('Traceback' in line for line in before)
        else str(error) or repr(error)
    )


def overrides_of(values: flags.FlagValues) -> dict[str, Any]:
    """Returns what the command line changes, dotted field -> value."""
    return (
        dict(config_flags.get_override_values(values['config'])) if values['config'].present else {}
    )


def place_of(values: flags.FlagValues) -> Place | None:
    """Returns where this process meets the others; None where the machine is to say.

    Raises:
        UserError: if some of the flags that say so are missing.
    """
    given = {name: values[name].value for name in ('coordinator', 'num_processes', 'process_index')}
    missing = [f'--{name}' for name, value in given.items() if value is None]
    if 0 < len(missing) < len(given):
        raise UserError(
            f'{", ".join(missing)} missing; expected all of '
            f'{", ".join(f"--{name}" for name in given)}'
        )
    return None if missing else Place(*given.values())


def preset_of(values: flags.FlagValues) -> ConfigDict:
    """Returns the config of the preset, without the overrides."""
    arguments = ['', f'--config={config_flags.get_config_filename(values["config"])}']
    fresh = _flags(arguments)
    fresh(arguments)
    return fresh.config


def experiment_name(values: flags.FlagValues) -> str:
    """Returns config file and preset, `burgers:quick`."""
    path, _, preset = config_flags.get_config_filename(values['config']).partition(':')
    return f'{Path(path).stem}:{preset or "quick"}'
