"""From the words of a command line to flags, a config, and the command's exit status.

Help, the list of experiments and most mistakes do not wait for JAX.
"""

import argparse
import ast
import difflib
import importlib
import json
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from namm_jax.experiment.files import UserError
from namm_jax.experiment.progress import complain, lossy, say, send_nowhere

# Those of `experiment.stages`, in their order.
STAGES = 'data counter mirror tune mdm finetune dm condition'.split()
STAGES += 'sample assimilate evaluate report'.split()
PACKAGE = Path(__file__).resolve().parents[1]
# The shipped experiments: inside an installed package, beside that of a clone.
CONFIGS = next(at / 'configs' for at in (PACKAGE, PACKAGE.parent) if (at / 'configs').is_dir())


def nearest(got: str, names: Iterable[str]) -> str:
    """Returns what was got, and the three names that have most of it: `lr` is learning_rate."""

    def likeness(name: str) -> tuple[int, float]:
        match = difflib.SequenceMatcher(None, name, got)
        return sum(block.size for block in match.get_matching_blocks()), match.ratio()

    near = sorted(names, key=likeness, reverse=True)[:3]
    return f'got {got!r}; did you mean {", ".join(near[:-1])} or {near[-1]}?'


def _stages(text: str) -> list[str]:
    names = [name.strip() for name in text.split(',') if name.strip()]
    for name in names:
        if name not in STAGES:
            raise argparse.ArgumentTypeError(nearest(name, STAGES))
    return names


def _seeds(text: str) -> list[int]:
    if not all(part.strip().isdecimal() for part in text.split(',')):
        raise argparse.ArgumentTypeError(f'got {text}, expected integers >= 0, such as 0,1,2')
    seeds = [int(part) for part in text.split(',')]
    if len(set(seeds)) < len(seeds):
        raise argparse.ArgumentTypeError(f'got {text}, expected each seed once')
    return seeds


# flag -> what stands for its value, its type, its default, and what it is
FLAGS = {
    'workdir': ('DIR', str, None, 'run folder; runs/<experiment>-<preset> when absent'),
    'stages': ('A,B', _stages, [], 'to run, in any order; all when absent'),
    'redo': ('A,B', _stages, [], 'stages to discard first, with all that was built on them'),
    'seeds': ('0,1,2', _seeds, [], 'each in a folder of its own, and a table of their means'),
    'coordinator': ('HOST:PORT', str, '', 'one of several processes: where process 0 listens'),
    'num_processes': ('N', int, 0, 'how many processes there are'),
    'process_index': ('I', int, -1, 'which of them this is, from 0'),
    'samples': ('FILE.npy', str, None, 'samples (n, h, w, c)'),
    'measurement': ('FILE', str, None, 'a .npy (n, *m), or one (*m); of closures a .csv'),
    'out': ('FILE.npy', str, None, 'where posterior samples (n * num_samples, h, w, c) go'),
    'operator': ('NAME', str, None, "what the measurement is of; the run's own when absent"),
    'sampler': ('NAME', str, 'mirror_few_steps', 'a row of the table of assimilate'),
    'noise_std': ('STD', float, None, 'noise of the measurement, in its unit'),
    'num_samples': ('N', int, None, 'posterior samples of each measurement'),
    'distributed': ('', None, False, 'one of several processes, as a pod or SLURM starts them'),
    'wide': ('', None, False, 'tables with all of their columns, on a narrow terminal too'),
    'overwrite': ('', None, False, 'write --out where there is a file'),
}
# command -> the function that does it, the flags that it needs, and others
PROCESSES = 'coordinator num_processes process_index distributed'
DRAWING = 'operator sampler noise_std num_samples overwrite'
COMMANDS = {
    'run': ('command:run', '', f'workdir stages redo seeds wide {PROCESSES}'),
    'solve': ('solve:solve', 'workdir measurement out', DRAWING),
    'evaluate': ('solve:evaluate', 'samples', 'workdir'),
    'fields': ('cli:show_fields', '', ''),
}


def experiments() -> dict[str, tuple[str, list[str]]]:
    """Returns what each shipped experiment is, and its presets; no config file is executed."""
    found = {}
    for path in sorted(CONFIGS.glob('[!_]*.py')):
        tree = ast.parse(path.read_text())
        about = ' '.join((ast.get_docstring(tree) or '').split('\n\n')[0].split())
        presets = [node.value for node in tree.body if isinstance(node, ast.Assign)][-1]
        found[path.stem] = about, [ast.literal_eval(name) for name in presets.keys]
    return found


def tell(text: object) -> None:
    """Writes to standard output; a reader that has gone, as in `--help | head -1`, is no error."""
    try:
        print(text, flush=True)
    except BrokenPipeError:  # Python writes once more as it exits
        send_nowhere(sys.stdout)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise UserError(message.removeprefix('argument '))


def _parser(command: str, about: str) -> _Parser:
    _, needs, others = COMMANDS[command]
    shipped = [f'  {name} ({", ".join(presets)})' for name, (_, presets) in experiments().items()]
    lines = ['experiments and their presets:', *shipped]
    if command == 'run':
        lines += ['stages (tune and assimilate only when named):', f'  {" ".join(STAGES)}']
    parser = _Parser(
        usage=argparse.SUPPRESS,
        description=about,
        epilog='\n'.join(lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for flag in f'{needs} {others}'.split():
        metavar, kind, default, meaning = FLAGS[flag]
        options = dict(required=flag in needs.split(), default=default, help=meaning)
        value = {'metavar': metavar, 'type': kind} if kind else {'action': 'store_true'}
        parser.add_argument(f'--{flag}', **options, **value)
    return parser


def parse(command: str, arguments: list[str], about: str = '') -> argparse.Namespace:
    """Returns a command's flags, and of its experiment the `name`, `burgers:quick`; `preset`, its
    config; `overrides`, dotted field -> value; and `config`, the preset with them.

    Raises:
        UserError: for anything that a user may have mistyped.
    """
    texts, words, rest = {}, [], [re.sub('^-(?=[a-z])', '--', word) for word in arguments]
    while rest:
        name, equals, text = rest.pop(0).partition('=')
        if name.startswith('--config.'):
            follows = not equals and rest and not rest[0].startswith('--')
            texts[name] = text if equals else rest.pop(0) if follows else 'true'
        elif name != '--config':
            words.append(name + equals + text)
        elif equals:
            words.append(text)
    parser = _parser(command, about)
    if {'--help', '--h', '--helpfull'} & set(words):
        tell(parser.format_help())
        raise SystemExit(0)
    given, words = parser.parse_known_args(words)
    for word in words:
        if word.startswith('--'):
            raise UserError(nearest(word, [f'--{flag}' for flag in ['config', *vars(given)]]))
    if len(words) != 1:
        raise UserError(
            f'got {words or "no experiment"}, expected one experiment, such as burgers:tiny or '
            '--config=FILE.py:tiny, and flags, --name=value'
        )
    given.name, given.preset = _experiment(words[0])
    given.config = _experiment(words[0])[1]
    from namm_jax.experiment.config import flatten

    fields = {f'--config.{name}': value for name, value in flatten(given.preset).items()}
    given.overrides = {}
    for name, text in texts.items():
        if name not in fields:
            raise UserError(nearest(name, fields))
        given.overrides[name.removeprefix('--config.')] = _value(name, text, fields[name])
    problem = given.preset.data.problem
    if (other := given.overrides.get('data.problem', problem)) != problem:
        raise UserError(
            f'--config.data.problem: got {other!r} for an experiment of {problem!r}, expected no '
            'other one; take its own config, such as --config=configs/burgers.py'
        )
    given.config.update_from_flattened_dict(given.overrides)
    return given


def _experiment(word: str) -> tuple[str, Any]:
    """Returns an experiment's name, `burgers:quick`, and its config, a new one at each call."""
    path, _, preset = word.partition(':')
    places = (CONFIGS / f'{path}.py', path, CONFIGS.parent / path)
    files = [os.path.abspath(place) for place in places if os.path.isfile(place)]
    if not files:
        shipped = [f'configs/{name}.py' if '.' in path else name for name in experiments()]
        raise UserError(f'--config: no such experiment; {nearest(path, shipped)}')
    from namm_jax.experiment.own import load_function

    get_config = load_function(f'{files[0]}:get_config', quiet=True)
    try:
        config = get_config(preset) if preset else get_config()
        if not isinstance(config, ConfigDict):
            raise TypeError(f'it returned {config!r:.80}')
        return f'{Path(path).stem}:{preset or "quick"}', config
    except ValueError:
        raise
    except Exception as error:  # a user's own file
        got = f'{type(error).__name__}: {error}'
        expected = 'get_config to return experiment(PRESETS, preset, problem=...)'
        raise UserError(f'{path}: got {got}, expected {expected}') from error


def _value(name: str, text: str, default: Any) -> Any:
    """Returns the value that a text says, of the type of the field's default."""
    kind = type(default)
    expected = {bool: 'true or false', int: 'an integer', float: 'a number', str: 'a text'}
    try:
        if kind is bool:
            return {'true': True, '1': True, 'false': False, '0': False}[text.lower()]
        if kind is not tuple:
            return kind(text)
        value = ast.literal_eval(text)
        json.dumps(value)  # a literal may be a complex number, bytes or a set
        return tuple(value) if isinstance(value, tuple | list) else (value,)
    except (ValueError, KeyError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
        form = expected.get(kind, "numbers, texts and booleans, such as 8,16 or \"('a', 'b')\"")
        raise UserError(f'{name}: got {text[:200]!r}, expected {form}') from error


def show_fields(given: argparse.Namespace) -> None:
    """Shows a table of an experiment's fields, at most 80 columns wide."""
    from namm_jax.experiment.config import flatten
    from namm_jax.experiment.schema import fields

    values = flatten(given.config)
    lines = [f'{"field":38}{given.name:22}range, unit']
    for name, field in fields(given.config.data.problem).items():
        limits = ', '.join(filter(None, (field.range, field.unit)))
        head = f'{name:38}{values[name]!s:21} {limits}'.rstrip()
        lines += textwrap.wrap(head, 80, subsequent_indent=' ' * 38)
        lines += textwrap.wrap(field.meaning, 76, initial_indent='    ', subsequent_indent='    ')
    tell('\n'.join(lines))


def execute(command: str, arguments: list[str], about: str) -> None:
    """Parses a command's arguments, and does it."""
    given = parse(command, arguments, about)
    module, _, function = COMMANDS[command][0].partition(':')
    getattr(importlib.import_module(f'namm_jax.experiment.{module}'), function)(given)


@lossy()
def guarded(action: Callable[[], None]) -> int:
    """Runs what a command does; returns its exit status. Of several processes, one that fails ends
    at once: JAX would have it wait for the others, which wait for it.
    """
    status = 0
    try:
        action()
    except KeyboardInterrupt:  # before anything listens for signals
        say('stopped by signal 2')
        status = 130
    except SystemExit as stop:
        status = stop.code or 0
    except (ValueError, OSError) as error:  # a ValueError is about what came from the user
        if isinstance(error, ValueError) and os.environ.get('NAMM_JAX_TRACEBACK'):
            raise
        complain(f'error: {error}')
        status = 2 if isinstance(error, ValueError) else 1
    # Looked up, not imported: most mistakes are found before JAX is loaded, and need not wait.
    if status and (jax := sys.modules.get('jax')) and jax.distributed.is_initialized():
        from namm_jax.experiment.processes import leave

        leave(status)
    return status


def main(arguments: list[str], command: str = 'run') -> int:
    """Runs a file of `launch/` with these arguments, its name first; returns the exit status."""
    about = sys.modules['__main__'].__doc__ or ''
    return guarded(lambda: execute(command, arguments[1:], about))
