"""Checkpoints come back bit for bit, or are found out."""

import logging
import os
import shutil
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import struct

from namm_jax.experiment.checkpoint import Checkpoints
from namm_jax.experiment.files import UserError


@struct.dataclass
class State:
    step: jax.Array
    params: dict
    ema: dict
    opt_state: tuple


def make_state(seed):
    params = {
        'w': jax.random.normal(jax.random.key(seed), (40, 50)),
        'b': jnp.full(3, seed, jnp.bfloat16),
    }
    optimizer = optax.chain(optax.clip(1.0), optax.adam(1e-3))
    return State(
        jnp.int32(seed), params, jax.tree.map(jnp.negative, params), optimizer.init(params)
    )


TARGET = jax.eval_shape(lambda: make_state(0))


def bits(tree):
    return [
        (np.asarray(leaf).tobytes(), str(leaf.dtype), leaf.shape) for leaf in jax.tree.leaves(tree)
    ]


@pytest.fixture
def folder(tmp_path):
    """A folder with checkpoints of steps 1, 2 and 3, of which two are kept."""
    with Checkpoints(tmp_path / 'run/checkpoints') as checkpoints:
        assert checkpoints.restore(TARGET) is None
        assert not (tmp_path / 'run').exists()
        for step in (1, 2, 3):
            checkpoints.save(step, make_state(step), {'seconds': step / 3, 'note': 'a'})
    return tmp_path / 'run/checkpoints'


def restore(folder, target=TARGET, origin=(), **kwargs):
    with Checkpoints(folder, origin=dict(origin)) as checkpoints:
        return checkpoints.restore(target, **kwargs)


def test_round_trip_is_exact(folder):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        state, meta, step = restore(folder)
    assert step == 3 and meta == {'seconds': 1.0, 'note': 'a'}
    assert jax.tree.structure(state) == jax.tree.structure(make_state(3))
    assert bits(state) == bits(make_state(3))


def test_the_newest_are_kept_and_a_moved_folder_works(folder, tmp_path):
    shutil.move(tmp_path / 'run', tmp_path / 'moved')
    with Checkpoints(tmp_path / 'moved/checkpoints') as checkpoints:
        assert checkpoints.steps() == [2, 3]
        assert bits(checkpoints.restore(TARGET).state) == bits(make_state(3))
        checkpoints.save(4, make_state(4), {})
        assert bits(checkpoints.restore(TARGET).state) == bits(make_state(4))  # waits for the save
        assert checkpoints.steps() == [3, 4]


def test_a_donated_state_is_saved_whole(tmp_path):
    bump = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)
    state = make_state(5)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, state, {})
        bump(state)
    assert bits(restore(tmp_path).state) == bits(make_state(5))


def test_a_part_of_the_state_can_be_read(folder):
    restored = restore(folder, {'ema': TARGET.ema}, part=True)
    assert bits(restored.state['ema']) == bits(make_state(3).ema)


def test_a_step_saved_before_stays_and_an_earlier_one_is_refused(folder):
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(3, make_state(9), {})
        with pytest.raises(ValueError, match='got step 1 .* holds step 3'):
            checkpoints.save(1, make_state(1), {})
    assert bits(restore(folder).state) == bits(make_state(3))
    with pytest.raises(ValueError, match='keep = 0'):
        Checkpoints(folder, keep=0)


def biggest(folder, step):
    return max(
        (path for path in folder.glob(f'{step}/**/d/*') if path.is_file()),
        key=lambda p: p.stat().st_size,
    )


def flip(folder, step):
    path = biggest(folder, step)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(folder, step):
    path = biggest(folder, step)
    path.write_bytes(path.read_bytes()[:100])


def delete(folder, step):
    biggest(folder, step).unlink()


def empty(folder, step):
    shutil.rmtree(folder / str(step))
    (folder / str(step)).mkdir()


def edit_meta(folder, step):
    path = folder / f'{step}.json'
    path.write_text(path.read_text().replace('"note": "a"', '"note": "b"'))


def truncate_meta(folder, step):
    path = folder / f'{step}.json'
    path.write_text(path.read_text()[:-9])


@pytest.mark.parametrize('damage', [flip, truncate, delete, empty, edit_meta, truncate_meta])
def test_damage_falls_back_with_a_warning_and_training_goes_on(folder, damage, capfd):
    damage(folder, 3)
    with Checkpoints(folder) as checkpoints:
        with pytest.warns(
            RuntimeWarning, match='checkpoints/3 is damaged, trying the one before it: .'
        ):
            restored = checkpoints.restore(TARGET)
        assert restored.step == 2 and bits(restored.state) == bits(make_state(2))
        checkpoints.save(3, make_state(3), {})  # the redone step takes the damaged one's place
    assert bits(restore(folder).state) == bits(make_state(3))
    assert capfd.readouterr().err == ''


def flip_each(data):
    """Yields the bytes with one bit flipped: at the start, the end, and 30 places between."""
    for place in sorted({*np.linspace(0, len(data) - 1, 32).astype(int)}):
        yield data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_no_damage_to_any_file_gives_a_wrong_state(folder, capfd):
    paths = [path for path in sorted((folder / '3').rglob('*')) if path.is_file()]
    paths.append(folder / '3.json')
    assert len(paths) > 10
    fallen_back = 0
    for path in paths:
        data = path.read_bytes()
        for damaged in (None, b'', data[: len(data) // 2], *flip_each(data)):
            path.unlink() if damaged is None else path.write_bytes(damaged)
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter('always')
                state, _, step = restore(folder)
            assert bits(state) == bits(make_state(step))
            messages = ' '.join(str(one.message) for one in told)
            # Without its description a checkpoint is one that a kill has cut short.
            cut_short = damaged is None and path.suffix == '.json'
            assert step == 3 or cut_short or 'checkpoints/3 is damaged' in messages
            assert step in (2, 3)
            fallen_back += step == 2
            path.write_bytes(data)
    assert fallen_back > 5 * len(paths) and restore(folder).step == 3
    assert capfd.readouterr().err == ''


def test_nothing_intact_is_an_error_not_a_fresh_start(folder):
    flip(folder, 2)
    truncate(folder, 3)
    with (
        pytest.warns(RuntimeWarning),
        pytest.raises(ValueError, match=r'damaged checkpoints \[2, 3\].*--redo'),
    ):
        restore(folder)


@pytest.mark.parametrize(
    'ema, message',
    [
        ({'w': jnp.zeros((40, 50)), 'b': jnp.zeros(3)}, r'ema/b .*bfloat16.*expected .*float32'),
        (
            {'w': jnp.zeros((50, 40)), 'b': jnp.zeros(3, jnp.bfloat16)},
            r'ema/w .*\[40, 50\].*expected .*\[50, 40\]',
        ),
        ({'w': jnp.zeros((40, 50))}, 'ema/b .*expected no such leaf'),
        (TARGET.ema | {'more': jnp.zeros(1)}, 'ema/more no such leaf'),
    ],
)
def test_a_target_that_does_not_fit_is_no_damage(folder, ema, message):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        with pytest.raises(ValueError, match=f'checkpoints/3: got for {message}.*--redo'):
            restore(folder, TARGET.replace(ema=ema))


def test_orbax_is_quiet_and_the_program_is_not(tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger='absl'), Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, make_state(1), {})
        logging.getLogger('absl').info('ours')
    assert [record.message for record in caplog.records] == ['ours']


def test_two_checkpoints_that_have_changed_places_are_found_out(folder):
    for suffix in ('', '.json'):
        for old, new in (('2', 'aside'), ('3', '2'), ('aside', '3')):
            (folder / f'{old}{suffix}').rename(folder / f'{new}{suffix}')
    with pytest.raises(UserError, match='3.json is in the wrong place: .* step = 2, expected 3'):
        restore(folder)


@pytest.mark.parametrize(
    ('other', 'told'),
    [
        ({'stage': 'mdm'}, "stage = 'mdm', expected 'dm'"),
        ({'config': {'seed': 1, 'dm': {'steps': 3}}}, 'config.seed = 1, expected 0'),
        ({'data': {'train.npy': 8}}, 'data.train.npy = 8, expected 7'),
    ],
)
def test_the_checkpoint_of_another_stage_seed_or_data_set_is_refused(tmp_path, other, told):
    own = {'stage': 'dm', 'config': {'seed': 0, 'dm': {'steps': 3}}, 'data': {'train.npy': 7}}
    for name, origin in (('own', own), ('other', own | other)):
        with Checkpoints(tmp_path / name, origin=origin) as checkpoints:
            checkpoints.save(3, make_state(3), {})
    with pytest.raises(UserError, match=f'other/3.json is in the wrong place: .*{told}.*--redo'):
        restore(tmp_path / 'other', origin=own)
    assert restore(tmp_path / 'own', origin=own).step == 3


def test_a_checkpoint_is_on_the_disk_before_it_is_described(tmp_path, monkeypatch):
    told, fsync, replace = [], os.fsync, os.replace
    path_of = lambda descriptor: os.readlink(f'/proc/self/fd/{descriptor}')
    monkeypatch.setattr(os, 'fsync', lambda fd: (told.append(path_of(fd)), fsync(fd)))
    monkeypatch.setattr(os, 'replace', lambda old, new: (told.append(str(new)), replace(old, new)))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, make_state(1), {})
    whole = {str(path) for path in [tmp_path / '1', *(tmp_path / '1').rglob('*')]}
    assert whole < set(told[: told.index(str(tmp_path / '1.json'))])


def test_a_disk_that_renames_no_folder_is_named(tmp_path, monkeypatch):
    def refused(*arguments):
        raise OSError(38, 'Function not implemented')

    monkeypatch.setattr(os, 'rename', refused)
    with (
        Checkpoints(tmp_path / 'run') as checkpoints,
        pytest.raises(OSError, match='run/1: got .* renames folders .*--workdir on a local disk'),
    ):
        checkpoints.save(1, make_state(1), {})


BUCKET = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <sys/stat.h>
int rename(const char *from, const char *to) {
  struct stat facts;
  if (!stat(from, &facts) && S_ISDIR(facts.st_mode)) { errno = ENOSYS; return -1; }
  return ((int (*)(const char *, const char *))dlsym(RTLD_NEXT, "rename"))(from, to);
}
"""
SAVE = """
import sys, jax.numpy
from namm_jax.experiment.checkpoint import Checkpoints
from namm_jax.experiment.cli import guarded
save = lambda: Checkpoints(sys.argv[1]).save(1, {'a': jax.numpy.zeros(3)}, {})
sys.exit(guarded(save))
"""


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which('gcc'), reason='no compiler')
def test_a_bucket_that_renames_no_folder_is_named(tmp_path):
    """As gcsfuse mounts it."""
    (tmp_path / 'bucket.c').write_text(BUCKET)
    library = tmp_path / 'bucket.so'
    build = ['gcc', '-shared', '-fPIC', '-o', library, tmp_path / 'bucket.c', '-ldl']
    subprocess.run(build, check=True)
    environment = os.environ | {'PYTHONPATH': os.pathsep.join(sys.path)}
    command = [sys.executable, '-c', SAVE, str(tmp_path / 'run')]
    for preload, status in (('', 0), (str(library), 1)):
        shutil.rmtree(tmp_path / 'run', ignore_errors=True)
        options = dict(env=environment | {'LD_PRELOAD': preload}, capture_output=True, text=True)
        done = subprocess.run(command, **options)
        assert done.returncode == status, done.stderr
    (error,) = done.stderr.splitlines()
    assert f'error: {tmp_path}/run/1: got a checkpoint that could not be written' in error
    assert '--workdir on a local disk, and copy it afterwards' in error
