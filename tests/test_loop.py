"""The training loop on a quadratic whose minimum is known: convergence, exact resuming, and honest
failures.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from namm_jax._arrays import Task
from namm_jax.experiment import dataset
from namm_jax.experiment.checkpoint import Checkpoints
from namm_jax.experiment.devices import make_mesh
from namm_jax.experiment.loop import Diverged, Plan, Stopped, fit

DATA = np.random.default_rng(0).normal(size=(32, 3)).astype(np.float32) + np.float32([1, 2, 3])
PLAN = Plan('toy', steps=11, log_every=4, validate_every=6, probes=2, ema=0.9)


def quadratic(rate=0.1, blur=0.01):
    """Returns the task of finding the mean of the data: `mean|w - x - noise|^2`."""

    def loss(params, frozen, key, batch, *, train):
        x = batch['x'] + train * blur * jax.random.normal(key, batch['x'].shape)
        value = jnp.mean((params['w'] - x) ** 2)
        # `inverse` is finite where x is, but for one that is exactly 0.
        return value, {'first': batch['x'][0, 0], 'inverse': jnp.max(1 / batch['x'])}

    return Task(lambda key: {'w': jax.random.normal(key, (3,))}, loss, optax.adam(rate))


class Toy:
    """A folder of checkpoints, and what a training in it has said."""

    def __init__(self, folder, data=DATA, plan=PLAN, task=None):
        self.folder, self.data, self.plan, self.task = folder, data, plan, task or quadratic()
        self.records, self.drawn, self.probed = [], 0, []

    def batches(self, start):
        for batch in dataset.batches(
            self.data, seed=0, batch_size=8, start=start, steps=self.plan.steps
        ):
            self.drawn += 1
            yield {'x': batch}

    def forget(self, step):
        self.records[:] = [record for record in self.records if record['step'] <= step]

    def probe(self, params):
        self.probed.append(np.asarray(params['w']))
        return {'distance_mean': float(params['w'].sum())}

    def fit(self, stop_after=None):
        """Trains on; after `stop_after` batches, a signal asks to stop."""
        self.drawn = 0
        asked = lambda: 15 if stop_after is not None and self.drawn >= stop_after else 0
        with Checkpoints(self.folder) as checkpoints:
            return fit(
                self.task,
                self.batches,
                [{'x': DATA[:8]}, {'x': DATA[8:16]}],
                self.plan,
                key=jax.random.key(3),
                mesh=make_mesh(),
                checkpoints=checkpoints,
                log=self.records.append,
                forget=self.forget,
                probe=self.probe if self.plan.probes else None,
                asked_to_stop=asked,
            )

    def timeless(self):
        return [
            {name: value for name, value in record.items() if name != 'seconds'}
            for record in self.records
        ]


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory):
    toy = Toy(tmp_path_factory.mktemp('whole') / 'checkpoints')
    return toy, toy.fit()


def same(one, other):
    return jax.tree.all(
        jax.tree.map(lambda a, b: np.array_equal(np.asarray(a), np.asarray(b)), one, other)
    )


def test_stops_of_a_plan():
    assert PLAN.probed() == {6, 11} and PLAN.stops() == [4, 6, 8, 11]
    assert [step for step in range(1, 12) if PLAN.validated(step)] == [6, 11]
    assert (
        Plan('', 1, 50, 200, 4, 0.9).stops() == [1] == sorted(Plan('', 1, 50, 200, 4, 0.9).probed())
    )
    assert Plan('', 100, 50, 200, 0, 0.9).stops() == [50, 100]
    assert Plan('', 16, 100, 100, 4, 0.9).probed() == {4, 8, 12, 16}


def test_finds_the_minimum(tmp_path):
    plan = Plan('toy', steps=300, log_every=100, validate_every=300, probes=0, ema=0.9)
    toy = Toy(
        tmp_path / 'c', data=np.repeat(DATA[:1], 8, axis=0), plan=plan, task=quadratic(blur=0.0)
    )
    fitted = toy.fit()
    np.testing.assert_allclose(fitted.state.params['w'], DATA[0], atol=1e-3)
    np.testing.assert_allclose(fitted.state.ema['w'], DATA[0], atol=1e-2)
    assert (
        toy.records[-1]['train/loss'] < 1e-3 * toy.records[0]['train/loss'] and fitted.seconds > 0
    )


def test_records_say_what_happened(uninterrupted):
    toy, fitted = uninterrupted
    assert [record['step'] for record in toy.records] == [4, 6, 8, 11]
    assert all(record['stage'] == 'toy' for record in toy.records)
    seconds = [record['seconds'] for record in toy.records]
    assert seconds == sorted(seconds) and seconds[-1] == fitted.seconds
    first = [dataset.batch_indices(0, step, n=32, batch_size=8)[0] for step in range(11)]
    for record, steps in zip(
        toy.records, (range(4), range(4, 6), range(6, 8), range(8, 11)), strict=True
    ):
        expected = np.mean(
            [DATA[first[step], 0] for step in steps]
        )  # the mean of all steps since the last record
        np.testing.assert_allclose(record['train/first'], expected, rtol=1e-6)
        assert (
            ('heldout/loss' in record) == ('distance_mean' in record) == (record['step'] in (6, 11))
        )
    average = np.asarray(fitted.state.ema['w'])
    held_out = np.mean(
        (average - DATA[:16]) ** 2
    )  # of the averaged weights, without the training's noise
    np.testing.assert_allclose(toy.records[-1]['heldout/loss'], held_out, rtol=1e-5)
    assert len(toy.probed) == 2 and (toy.probed[-1] == average).all()


@pytest.mark.parametrize('stop_after', [1, 4, 5, 6, 10])
def test_resumed_run_equals_the_uninterrupted_one_to_the_bit(uninterrupted, tmp_path, stop_after):
    whole, expected = uninterrupted
    toy = Toy(tmp_path / 'checkpoints')
    with pytest.raises(Stopped) as stopped:
        toy.fit(stop_after)
    assert stopped.value.signal == 15
    fitted = toy.fit()
    assert toy.drawn == PLAN.steps - stop_after  # no step is taken twice
    assert same(fitted.state, expected.state)
    assert toy.timeless() == whole.timeless()


def test_killed_run_goes_on_from_its_last_checkpoint(uninterrupted, tmp_path):
    whole, expected = uninterrupted
    toy = Toy(tmp_path / 'checkpoints')
    batches, toy.batches = toy.batches, lambda start: _broken(batches(start), 9)
    with pytest.raises(KeyboardInterrupt):
        toy.fit()
    assert [record['step'] for record in toy.records] == [4, 6, 8]
    toy.batches = batches
    fitted = toy.fit()
    assert toy.drawn == PLAN.steps - 6 and same(fitted.state, expected.state)
    assert toy.timeless() == whole.timeless()  # the record of step 8, written twice, is there once


def _broken(batches, good):
    for _ in range(good):
        yield next(batches)
    raise KeyboardInterrupt


def test_finished_training_is_left_as_it_is(uninterrupted):
    toy, expected = uninterrupted
    records = list(toy.records)
    fitted = toy.fit()
    assert toy.drawn == 0 and toy.records == records
    assert same(fitted.state, expected.state) and fitted.seconds == expected.seconds


@pytest.mark.parametrize(
    ('step', 'good'), [(2, 'none: the stage starts anew'), (7, 'checkpoints/6.npz. ')]
)
@pytest.mark.parametrize(('value', 'term'), [(0.0, 'inverse is inf'), (np.nan, 'first is nan')])
def test_divergence_names_step_term_and_checkpoint(tmp_path, step, good, value, term):
    toy = Toy(tmp_path / 'checkpoints')
    batches = toy.batches
    toy.batches = lambda start: (
        {'x': batch['x'] if k != step else 0 * batch['x'] + np.float32(value)}
        for k, batch in enumerate(batches(start))
    )
    with pytest.raises(Diverged) as error:
        toy.fit()
    for part in (f'toy: {term} at step {step}, expected a finite number', good):
        assert part in str(error.value)
    assert (
        max((record['step'] for record in toy.records), default=0) <= step
    )  # nothing of it was recorded
