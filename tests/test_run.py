"""The run folder: one owner, no quiet change of what was read, and nothing lost when a run
stops.
"""

import fcntl
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from etils import epath

from namm_jax.experiment.experiment import save_array
from namm_jax.experiment.files import (
    UserError,
    checksums,
    finite,
    read_json,
    write_bytes,
    write_checksums,
    write_json,
)
from namm_jax.experiment.folder import Folder, Run, SharedRun, aggregate

DEPENDS = {
    'data': (),
    'mirror': ('data',),
    'mdm': ('mirror',),
    'dm': ('data',),
    'sample': ('mdm', 'dm'),
    'evaluate': ('sample',),
    'report': ('evaluate',),
}
SECTIONS = {name: (name,) for name in DEPENDS} | {'mirror': ('mirror', 'seed')}
CONFIG = {
    'seed': 0,
    'data': {'seed': 0, 'sizes': {'train': 8, 'test': 2}, 'period': (1, 2)},
    'mirror': {'steps': 10, 'weight': 1e-3},
    'mdm': {'steps': 20},
    'dm': {'steps': 30},
    'sample': {'steps': 40},
    'evaluate': {'n': 4},
    'report': {'dpi': 50},
}


def open_run(directory, config=CONFIG, experiment='burgers:tiny', **kwargs):
    return Run(directory, config, experiment=experiment, depends=lambda config: DEPENDS, **kwargs)


def finish(run, *stages):
    for stage in stages:
        run.begin(stage, SECTIONS[stage])
        (run.directory / stage / 'result').write_text(stage)
        run.log({'stage': stage, 'step': 0, 'loss': 1.0})
        run.finish(stage, training_seconds=1.5)


@pytest.fixture
def finished(tmp_path):
    """A folder in which every stage has finished."""
    with open_run(tmp_path / 'run') as run:
        finish(run, *DEPENDS)
        run.merge_metrics({'rows': {'mdm': 1}, 'tune': {'best': 2}})
    return tmp_path / 'run'


def stages(directory):
    return {path.stem for path in (directory / 'stages').iterdir()} - {'crc32'}


def snapshot(directory):
    """The folder's files, save those that name the process that opened it."""
    paths = (
        path
        for path in directory.rglob('*')
        if path.is_file() and path.name not in ('lock', 'provenance.json')
    )
    return {str(path.relative_to(directory)): path.read_bytes() for path in paths}


def test_a_path_of_etils_is_as_good_as_any(tmp_path):
    with open_run(epath.Path(tmp_path) / 'run') as run:
        finish(run, 'data')
    with open_run(tmp_path / 'run') as run:
        assert run.finished('data') and run.directory == tmp_path / 'run'


@pytest.mark.parametrize('path', ['gs://bucket/run', epath.Path('gs://bucket/run')])
def test_an_address_is_no_folder(path):
    with pytest.raises(
        UserError, match=r'got the folder gs://bucket/run, expected one of this machine; mount'
    ):
        open_run(path)


def test_the_saved_config_is_the_base(tmp_path):
    with open_run(tmp_path, CONFIG | {'seed': 7}) as run:
        assert run.config['seed'] == 7 and run.config['data']['period'] == [1, 2]
    with open_run(tmp_path, overrides={'mirror.steps': 11, 'data.period': (3, 4)}) as run:
        assert run.config['seed'] == 7 and run.config['mirror'] == {'steps': 11, 'weight': 1e-3}
        finish(run, 'data')
    with open_run(
        tmp_path, overrides={'data.period': (3, 4)}
    ) as run:  # the same value is no change
        assert run.config['mirror']['steps'] == 11
    with pytest.raises(UserError, match="got 'mirror.step'; did you mean mirror.steps, "):
        open_run(tmp_path, overrides={'mirror.step': 1})


@pytest.mark.parametrize(
    'field, old, new, stage',
    [
        ('data.sizes.train', 8, 9, 'data'),
        ('mirror.weight', 0.001, 0.5, 'mirror'),
        ('mdm.steps', 20, 21, 'mdm'),
        ('seed', 0, 1, 'mirror'),
    ],
)
def test_a_change_of_what_was_read_is_refused(finished, field, old, new, stage):
    before = snapshot(finished)
    with pytest.raises(
        UserError,
        match=f'{field} = {new}, but stage {stage} has finished .* = {old};.*--redo={stage}',
    ):
        open_run(finished, overrides={field: new})
    with pytest.raises(
        UserError, match='stage data has finished'
    ):  # the redo of another stage does not help
        open_run(finished, overrides={'data.seed': 1}, redo=['mdm'])
    assert snapshot(finished) == before


def test_a_begun_stage_refuses_too_and_others_may_change(tmp_path):
    with open_run(tmp_path) as run:
        finish(run, 'data')
        run.begin('mirror', ['mirror'])
    with pytest.raises(UserError, match='stage mirror has begun'):
        open_run(tmp_path, overrides={'mirror.steps': 1})
    with open_run(tmp_path, overrides={'mdm.steps': 1}) as run:
        assert run.config['mdm']['steps'] == 1 and run.discarded == []


def test_a_record_names_what_the_ancestors_read(finished):
    with open_run(finished) as run:
        record = run.record('mdm')
        assert list(record['sections']) == ['mdm', 'mirror', 'seed', 'data']
        assert record['sections']['mirror'] == CONFIG['mirror']
        assert record['finished'] and record['training_seconds'] == 1.5


def test_free_sections_discard_their_stage_only(finished):
    with open_run(finished, overrides={'sample.steps': 41}) as run:
        assert run.discarded == ['sample', 'evaluate', 'report']
        assert run.finished('mdm') and not run.finished('sample')
    assert stages(finished) == {'data', 'mirror', 'mdm', 'dm'}
    with open_run(finished) as run:
        assert run.config['sample']['steps'] == 41 and run.discarded == []


def test_redo_discards_the_stage_and_what_was_built_on_it(finished):
    with open_run(finished, overrides={'mirror.steps': 11}, redo=['mirror']) as run:
        assert run.discarded == ['mirror', 'mdm', 'sample', 'evaluate', 'report']
        assert run.config['mirror']['steps'] == 11
    assert stages(finished) == {'data', 'dm'}
    assert (finished / 'dm/result').exists() and not (finished / 'mdm').exists()
    assert {json.loads(line)['stage'] for line in (finished / 'metrics.jsonl').open()} == {
        'data',
        'dm',
    }
    assert read_json(finished / 'metrics.json') == {'tune': {'best': 2}}
    with open_run(finished, redo=['dm']) as run:
        assert run.discarded == ['dm'] and stages(finished) == {'data'}
    with pytest.raises(ValueError, match="stage: got 'mirrors', expected one of data, mirror, "):
        open_run(finished, redo=['mirrors'])


def test_begin_wants_what_it_builds_on_and_keeps_what_a_stopped_run_left(tmp_path):
    with open_run(tmp_path) as run:
        with pytest.raises(UserError, match=r"stage mirror builds on \['data'\]"):
            run.begin('mirror', ['mirror'])
        run.begin('data', ['data'])
        assert [path.name for path in (tmp_path / 'data').iterdir()] == ['crc32.json']
        (tmp_path / 'data' / 'part').touch()
    with open_run(tmp_path) as run:
        run.begin('data', ['data'])
        assert (tmp_path / 'data' / 'part').exists() and not run.finished('data')


def test_files_without_a_record_are_not_made_again_in_silence(finished):
    (finished / 'stages/data.json').unlink()
    with open_run(finished) as run:
        with pytest.raises(
            UserError,
            match='holds the files of stage data, but .*data.json.* is missing.*--redo=data',
        ):
            run.begin('data', ['data'])
        assert (finished / 'data/result').exists()
    with open_run(finished, redo=['data']) as run:
        assert run.discarded == list(DEPENDS)
        run.begin('data', ['data'])
        assert not (finished / 'data/result').exists()


def contents(directory):
    """The folder's files, save what a kill may leave: checksums of old content, half a file."""
    whole = snapshot(directory).items()
    return {name: data for name, data in whole if not name.endswith(('crc32.json', '.tmp'))}


@pytest.mark.slow
@pytest.mark.parametrize('fault', [KeyboardInterrupt(), OSError(28, 'No space left on device')])
def test_a_redo_that_is_cut_short_is_completed_with_its_override(finished, monkeypatch, fault):
    """At whichever file operation it ends, the next opening, which names neither, finds all of it
    on record, or none.
    """
    command = dict(overrides={'mirror.steps': 11}, redo=['mirror'])
    end = shutil.copytree(finished, finished.with_name('end'))
    open_run(end, **command).close()
    done, left = [], []

    def failing(function):
        def call(*arguments, **kwargs):
            if not left:
                raise fault
            left.pop()
            return function(*arguments, **kwargs)

        return call

    for steps in range(100):
        folder = shutil.copytree(finished, finished.with_name(f'{steps}'))
        left[:] = [None] * steps
        with monkeypatch.context() as patch:
            for name in ('replace', 'unlink', 'rmdir'):
                patch.setattr(os, name, failing(getattr(os, name)))
            try:
                open_run(folder, **command).close()
                break
            except (KeyboardInterrupt, OSError):
                pass
        before = snapshot(folder)
        reader = Folder(folder, CONFIG)
        done.append(reader.config['mirror']['steps'] == 11)
        assert bool(reader.record('mdm')) != done[-1] and snapshot(folder) == before
        open_run(folder).close()
        assert contents(folder) == contents(end if done[-1] else finished)
    assert done == sorted(done) and 1 < done.count(False) < 7 and done.count(True) > 10


def test_another_experiment_or_folder_is_refused(finished, tmp_path):
    with pytest.raises(
        UserError, match='got the experiment periodic:tiny, but .* holds burgers:tiny'
    ):
        open_run(finished, experiment='periodic:tiny')
    (tmp_path / 'seeds').mkdir()
    write_json(tmp_path / 'seeds/metrics.json', {'rows': {}})  # the table of several seeds
    with pytest.raises(UserError, match="holds .*'metrics.json'.* but no config.json"):
        open_run(tmp_path / 'seeds')
    (tmp_path / 'home/data').mkdir(parents=True)
    with pytest.raises(UserError, match="holds .*'data'.* but no config.json"):
        open_run(tmp_path / 'home')
    (tmp_path / 'file').touch()
    with pytest.raises(UserError, match='is a file'):
        open_run(tmp_path / 'file')
    with pytest.raises(UserError, match=r"of another version .*: got \['mirror.weight'\], which"):
        open_run(finished, config=CONFIG | {'mirror': {'steps': 10}})
    (finished / 'config.json').write_text('{"experiment": "bur')
    with pytest.raises(UserError, match='config.json is damaged'):
        open_run(finished)


def test_a_field_that_is_newer_than_the_folder_takes_its_default(finished):
    newer = CONFIG | {'mirror': {'steps': 11, 'weight': 1e-3, 'depth': 1}}
    with pytest.raises(
        UserError,
        match=r'got mirror.depth = 2, but stage mirror has finished with mirror.depth = 1',
    ):
        open_run(finished, config=newer, overrides={'mirror.depth': 2})
    with open_run(finished, config=newer) as run:
        assert run.config['mirror'] == {'steps': 10, 'weight': 1e-3, 'depth': 1}
        assert all(run.finished(stage) for stage in DEPENDS)


def test_the_folder_has_one_owner(tmp_path):
    with open_run(tmp_path):
        with pytest.raises(
            UserError,
            match=rf'in use by another process \(host .*, process {os.getpid()}, start 20',
        ):
            open_run(tmp_path)
    open_run(tmp_path).close()


def test_a_shared_run_answers_as_the_run_itself(tmp_path):
    with SharedRun(lambda: open_run(tmp_path)) as run:
        finish(run, 'data')
        assert run.finished('data') and run.record('data')['training_seconds'] == 1.5
        assert run.directory == tmp_path and run.discarded == [] and run.config['seed'] == 0
        with pytest.raises(UserError, match='builds on'):
            run.begin('mdm', ['mdm'])
    open_run(tmp_path).close()


def test_a_killed_owner_frees_the_folder(tmp_path):
    code = (
        'import sys, time; from namm_jax.experiment.folder import Run\n'
        "run = Run(sys.argv[1], {}, experiment='burgers:tiny', depends=lambda config: {})\n"
        "print('open', flush=True); time.sleep(60)"
    )
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)}
    command = [sys.executable, '-c', code, str(tmp_path)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as owner:
        assert owner.stdout.readline() == b'open\n'
        with pytest.raises(UserError, match=f'process {owner.pid}'):
            open_run(tmp_path)
        owner.kill()
        owner.wait()
    open_run(tmp_path, {}).close()


def test_a_bad_config_changes_nothing(finished):
    """Not even where its section is free to change, which would discard the samples."""
    before, seen = snapshot(finished), []

    def check(config, records):
        seen.append(config)
        raise ValueError('bad')

    with pytest.raises(ValueError, match='bad'):
        open_run(finished, overrides={'sample.steps': 0}, redo=['mirror'], check=check)
    assert snapshot(finished) == before
    assert seen == [open_run(finished).config | {'sample': {'steps': 0}}]


def test_a_refused_opening_frees_the_folder(finished):
    for _ in range(2):
        with pytest.raises(UserError, match='stage mirror has finished'):
            open_run(finished, overrides={'seed': 1})


def test_a_refused_opening_leaves_nothing(tmp_path, monkeypatch):
    def check(config, records):
        raise UserError('bad')

    (tmp_path / 'empty').mkdir()
    for name in ('runs/deep/run', 'empty', 'empty/run'):
        with pytest.raises(UserError, match='bad'):
            open_run(tmp_path / name, check=check)
    (tmp_path / 'file').touch()
    for name in ('file', 'file/run'):
        with pytest.raises(UserError, match='is a file, or in one, expected a folder'):
            open_run(tmp_path / name)
    with pytest.raises(OSError, match='name too long'):
        open_run(tmp_path / 'runs' / ('a' * 300))
    monkeypatch.setattr(fcntl, 'flock', lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        open_run(tmp_path / 'other')
    (tmp_path / 'file').unlink()
    assert [path.name for path in tmp_path.rglob('*')] == ['empty']


@pytest.mark.parametrize('name', ['lock', 'report.html', 'mirror', 'stages', 'mirror/checkpoints'])
def test_a_link_is_never_written_through(finished, tmp_path, name):
    target = tmp_path / 'theirs'
    (finished / name).rename(target) if (finished / name).exists() else target.write_text('kept')
    (finished / name).symlink_to(target)
    before = snapshot(tmp_path)
    with pytest.raises(UserError, match=f'{finished / name} is a symbolic link, which no run'):
        open_run(finished)
    assert snapshot(tmp_path) == before


def test_a_temporary_name_that_is_a_link_is_no_way_out(tmp_path):
    (tmp_path / 'theirs').write_text('kept')
    (tmp_path / 'report.html.tmp').symlink_to(tmp_path / 'theirs')
    write_bytes(tmp_path / 'report.html', b'new')
    assert (tmp_path / 'theirs').read_text() == 'kept'
    assert (tmp_path / 'report.html').read_text() == 'new'


def test_a_disk_without_locks_is_named(tmp_path, monkeypatch):
    def refused(*arguments):
        raise OSError(37, 'No locks available')

    monkeypatch.setattr(fcntl, 'flock', refused)
    with pytest.raises(UserError, match=f'{tmp_path}/lock: got No locks .* --workdir on a local'):
        open_run(tmp_path)


SHAPES = {
    'config.json': [[], 3, {}, {'experiment': 'burgers:tiny', 'config': []}]
    + [{'experiment': 'burgers:tiny', 'config': CONFIG | {'mirror': {'steps': 'a', 'weight': 1}}}],
    'discard.json': [{'experiment': 'a', 'config': CONFIG, 'stages': 3}, {'stages': [[]]}]
    + [{'experiment': 'burgers:tiny', 'config': CONFIG, 'stages': ['../theirs']}],
    'stages/mirror.json': [[], {}, {'finished': True}, {'finished': 1, 'sections': {}}]
    + [{'finished': True, 'sections': {}, 'files': 3}],
    'metrics.json': [[], 'a', None],
    'provenance.json': [{}, 1],
}


@pytest.mark.parametrize(
    ('name', 'value'), [(name, value) for name, values in SHAPES.items() for value in values]
)
def test_json_of_another_shape_is_named_and_nothing_is_changed(finished, tmp_path, name, value):
    (tmp_path / 'theirs').mkdir()
    write_json(finished / name, value)
    before = snapshot(tmp_path)
    with pytest.raises(ValueError, match=name if name != 'discard.json' else 'discard|theirs'):
        open_run(finished)
    assert snapshot(tmp_path) == before and (tmp_path / 'theirs').exists()


def test_arrays_of_another_run_are_refused_until_their_stage_is_done_again(finished, tmp_path):
    for folder, value in ((finished, 0.0), (tmp_path / 'other', 1.0)):
        with open_run(folder, redo=['data'] if folder == finished else []) as run:
            run.begin('data', ['data'])
            save_array(run.directory / 'data' / 'train.npy', np.full(3, value))
            run.finish('data')
            run.begin('mirror', ['mirror'])
    for name in ('train.npy', 'crc32.json'):
        shutil.copy(tmp_path / 'other' / 'data' / name, finished / 'data' / name)
    for read in (lambda: open_run(finished), lambda: Folder(finished, CONFIG).record('data')):
        with pytest.raises(UserError, match='run/data/crc32.json has other arrays .* --redo=data'):
            read()
    open_run(finished, redo=['data']).close()


def begun(directory, seed=0, names=('a',)):
    """Stops a run in the stage mirror, after an array in its folder and in one below that."""
    with open_run(directory, CONFIG | {'seed': seed}) as run:
        run.begin('data', ['data'])
        run.finish('data')
        run.begin('mirror', ['mirror', 'seed'])
        for name in names:
            run.place('mirror', name)
            save_array(directory / 'mirror' / name / '0.npy', np.full(3, seed))
        save_array(directory / 'mirror' / 'x.npy', np.full(3, seed))
    return directory / 'mirror'


def resume(folder, *names):
    with open_run(folder.parent) as run:
        run.begin('mirror', ['mirror', 'seed'])
        run.place('mirror', *names)


def test_arrays_of_another_run_are_refused_by_a_stage_that_goes_on(tmp_path):
    ours, theirs = begun(tmp_path / 'ours'), begun(tmp_path / 'theirs', seed=1)
    resume(ours, 'a')
    shutil.copy(theirs / 'x.npy', ours / 'y.npy')
    with pytest.raises(UserError, match='mirror/y.npy is no file of this run.*--redo=mirror'):
        resume(ours)
    (ours / 'y.npy').unlink()
    for place in ('.', 'a'):
        shutil.copytree(ours, tmp_path / 'kept')
        for name in ('crc32.json', *(path.name for path in (theirs / place).glob('*.npy'))):
            shutil.copy(theirs / place / name, ours / place / name)
        told = 'crc32.json is in the wrong place: got arrays of config.seed = 1, expected 0; .*redo'
        with pytest.raises(UserError, match=told):
            resume(ours, place)
        shutil.rmtree(ours)
        (tmp_path / 'kept').rename(ours)
    resume(ours, 'a')


def test_two_folders_of_a_stage_do_not_change_places(tmp_path):
    folder = begun(tmp_path / 'run', names=('a', 'b'))
    for old, new in (('a', 'c'), ('b', 'a'), ('c', 'b')):
        (folder / old).rename(folder / new)
    with pytest.raises(UserError, match="folder = 'mirror/b', expected 'mirror/a'"):
        resume(folder, 'a')


def test_arrays_of_a_version_without_an_origin_are_taken(tmp_path):
    folder = begun(tmp_path / 'run')
    found = json.loads((folder / 'crc32.json').read_text())
    write_checksums(folder, {'x.npy': found['x.npy']})
    resume(folder)
    assert checksums(folder) == {'x.npy': found['x.npy']}


def test_a_stage_is_on_the_disk_before_it_is_finished(tmp_path, monkeypatch):
    told, fsync = [], os.fsync
    path_of = lambda descriptor: os.readlink(f'/proc/self/fd/{descriptor}')
    monkeypatch.setattr(os, 'fsync', lambda fd: (told.append(path_of(fd)), fsync(fd)))
    with open_run(tmp_path) as run:
        run.begin('data', ['data'])
        (tmp_path / 'data' / 'a').mkdir()
        (tmp_path / 'data' / 'a' / 'b').write_text('c')
        told.clear()
        run.finish('data')
    files = [f'{tmp_path}/data/{name}' for name in ('a/b', 'crc32.json')]
    assert sorted(told[:2]) == files
    assert told[2:4] == [f'{tmp_path}/data', f'{tmp_path}/data/a']
    assert told[-1] == f'{tmp_path}/stages/data.json.tmp'


def test_a_moved_folder_works_and_holds_no_path(finished, tmp_path):
    shutil.move(finished, tmp_path / 'moved')
    for name, data in snapshot(tmp_path / 'moved').items():
        assert str(tmp_path).encode() not in data, name
    with open_run(tmp_path / 'moved') as run:
        assert all(run.finished(stage) for stage in DEPENDS) and run.discarded == []


def test_provenance_has_one_entry_an_opening(finished):
    open_run(finished).close()
    entries = read_json(finished / 'provenance.json')
    assert len(entries) == 2 and entries[0]['command'] == sys.argv and entries[0]['seed'] == 0
    assert (
        entries[0]['versions']['jax']
        and entries[0]['python'].startswith('3.')
        and 'git' in entries[0]
    )


def test_a_resumed_stage_drops_later_records_of_its_own(tmp_path):
    with open_run(tmp_path) as run:
        for step in range(4):
            run.log({'stage': 'mirror', 'step': step, 'loss': np.float32(step)})
            run.log({'stage': 'dm', 'step': step, 'loss': float('nan'), 'terms': [np.inf, 1]})
    with (tmp_path / 'metrics.jsonl').open('a') as file:
        file.write('{"stage": "mirror", "st')  # a kill in the middle of a line
    with open_run(tmp_path) as run:
        run.drop_records('mirror', after_step=1)
        run.log({'stage': 'mirror', 'step': 2, 'loss': 9.0})
    records = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').open()]
    assert [(r['step'], r['loss']) for r in records if r['stage'] == 'mirror'] == [
        (0, 0.0),
        (1, 1.0),
        (2, 9.0),
    ]
    others = [r for r in records if r['stage'] == 'dm']
    assert len(others) == 4 and others[0] == {
        'stage': 'dm',
        'step': 0,
        'loss': None,
        'terms': [None, 1],
    }


def test_metrics_are_merged_by_key(tmp_path):
    with open_run(tmp_path) as run:
        run.merge_metrics({'rows': {'dm': 1, 'mdm': np.float32('inf')}})
        run.merge_metrics(
            {'assimilation.sum.dps': {'rmse': 1}, 'assimilation.sum.mdps': {'rmse': 2}}
        )
        run.merge_metrics({'rows': {'dm': 3}, 'assimilation.sum.dps': {'rmse': 4}})
        with pytest.raises(ValueError, match="key .*: got 'row', expected one of rows"):
            run.merge_metrics({'row': 1})
    expected = {
        'rows': {'dm': 3},
        'assimilation': {'sum': {'dps': {'rmse': 4}, 'mdps': {'rmse': 2}}},
    }
    assert read_json(tmp_path / 'metrics.json') == expected


def test_a_failed_write_names_the_path_and_keeps_the_old_content(tmp_path, monkeypatch):
    write_json(tmp_path / 'a.json', {'a': 1})

    def full(descriptor):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError, match='No space left.*a.json'):
        write_bytes(tmp_path / 'a.json', b'new')
    assert read_json(tmp_path / 'a.json') == {'a': 1} and not list(tmp_path.glob('*.tmp'))
    with pytest.raises(ValueError):
        write_json(tmp_path / 'a.json', float('nan'))
    with pytest.raises(UserError, match='b.json is missing'):
        read_json(tmp_path / 'b.json')


def test_finite_gives_plain_json():
    value = {
        'a': np.float32(1.5),
        'b': (np.arange(2), np.nan),
        3: np.array([[np.inf]]),
        'c': 'text',
        'd': True,
    }
    assert finite(value) == {'a': 1.5, 'b': [[0, 1], None], '3': [[None]], 'c': 'text', 'd': True}


def test_seeds_are_aggregated_number_by_number():
    seeds = [{'mean': [1.0, None], 'n': 4}, {'mean': [3.0, 5.0], 'n': 4}]
    two, one = (
        {'mean': 2.0, 'std': pytest.approx(2**0.5), 'n': 2},
        {'mean': 5.0, 'std': 0.0, 'n': 1},
    )
    assert aggregate(seeds) == {'mean': [two, one], 'n': {'mean': 4.0, 'std': 0.0, 'n': 2}}
    assert aggregate([{'dm': 1.0}, {'dm': 1.0, 'tune': {'n': 3}}])['tune'] == {
        'n': {'mean': 3.0, 'std': 0.0, 'n': 1}
    }
    with pytest.raises(ValueError):
        aggregate([[1.0], [1.0, 2.0]])  # seeds of different grids have no mean
