"""The front door: `import namm_jax as nj`, and what a user does with it."""

import functools
import pathlib
import subprocess
import sys
import zipfile

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import namm_jax as nj

ROOT = pathlib.Path(__file__).resolve().parent.parent
STEPS = 2
CONVEX = nj.networks.ICNN(2, 1, periodic=(True, False))


class Mine(nn.Module):
    @nn.compact
    def __call__(self, x, label=None, *, train=False):
        return 0.1 * nn.Conv(x.shape[-1], (3, 3))(x)


@functools.cache
def burgers():
    problem = nj.problems.burgers(points=16, states=8, inner_steps=2)
    return problem, problem.sample(jax.random.key(0), 64)


@functools.cache
def fitted():
    """A mirror map and a prior of mirror points, hardly trained."""
    problem, x = burgers()
    mirror = nj.fit(
        nj.namm(problem, forward=CONVEX, inverse=Mine()), x, steps=STEPS, progress=False
    )
    score = nj.networks.UNet((4,), head=4, norm='none', periodic=(True, False))
    recipe = nj.diffusion(problem, network=score)
    return mirror, nj.fit(recipe, mirror.forward(x), steps=STEPS, progress=False)


def gaussian(mean, std, shape=(4, 4, 1)):
    """The exact denoiser of independent normal pixels."""
    D = lambda x, s: (
        (std**2 * x + jnp.reshape(s, (-1, 1, 1, 1)) ** 2 * mean)
        / (std**2 + jnp.reshape(s, (-1, 1, 1, 1)) ** 2)
    )
    return nj.prior(D, shape, mean=mean, std=std)


def test_names_are_offered_and_found():
    assert 30 <= len(dir(nj)) <= 40
    assert all(getattr(nj, name) is not None for name in dir(nj))


def test_a_name_that_is_not_there_is_told_the_nearest():
    with pytest.raises(AttributeError, match='did you mean diffusion'):
        nj.difusion  # noqa: B018


def test_the_front_door_opens_without_work():
    program = 'import sys, namm_jax; print(len(dir(namm_jax)), "jax" in sys.modules)'
    out = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, cwd=ROOT)
    assert out.stdout.split() == [str(len(dir(nj))), 'False']


def test_a_fit_map_is_a_pytree_and_projects_by_both_maps():
    problem, x = burgers()
    mirror, _ = fitted()
    np.testing.assert_array_equal(mirror.project(x), mirror.inverse(mirror.forward(x)))
    leaves, structure = jax.tree.flatten(mirror)
    again = jax.tree.unflatten(structure, leaves)
    np.testing.assert_array_equal(again.forward(x[:2]), mirror.forward(x[:2]))


def test_fit_is_a_function_of_its_key():
    problem, x = burgers()
    recipe = nj.diffusion(problem, network=Mine())
    fit = functools.partial(nj.fit, recipe, x, steps=3, progress=False)
    one, same, other = (jax.tree.leaves(fit(key=jax.random.key(k))) for k in (1, 1, 2))
    assert all((a == b).all() for a, b in zip(one, same, strict=True))
    assert any((a != b).any() for a, b in zip(one, other, strict=True))


def test_a_sample_depends_on_its_index_alone():
    _, prior = fitted()
    many, few = (nj.sample(prior, jax.random.key(1), n, steps=3) for n in (5, 2))
    np.testing.assert_allclose(many[:2], few, atol=1e-5)


def test_a_denoiser_of_ones_own_samples_its_law():
    x = nj.sample(gaussian(3.0, 2.0), jax.random.key(0), 200, steps=30)
    assert abs(float(x.mean()) - 3) < 0.15 and abs(float(x.std()) - 2) < 0.15


def test_a_denoiser_of_ones_own_given_a_measurement_samples_the_posterior():
    """Normal data of mean 3 and std 2, each pixel measured with noise 1: mean `m = 3 + 0.8 (y - 3)`
    and variance 0.8.
    """
    y = jnp.linspace(0, 6, 16).reshape(1, 4, 4, 1)
    posterior = nj.given(gaussian(3.0, 2.0), lambda x: x, y, noise_std=1.0)
    x = nj.sample(posterior, jax.random.key(0), 400, steps=60)
    np.testing.assert_allclose(x.mean(0), (3 + 0.8 * (y - 3))[0], atol=0.2)
    np.testing.assert_allclose(x.std(0), 0.8**0.5, atol=0.15)


def test_a_denoiser_of_ones_own_obeys_a_rule():
    rule = nj.constraint(lambda x: jnp.abs(x.sum((1, 2, 3)) - 40), name='total')
    prior = gaussian(3.0, 2.0)
    free = rule.distance(nj.sample(prior, jax.random.key(0), 8)).mean()
    guided = rule.distance(nj.sample(nj.guided(prior, rule), jax.random.key(0), 8)).mean()
    shift = lambda x: x + (40 - x.sum((1, 2, 3), keepdims=True)) / 16
    projected = nj.sample(nj.projected(prior, shift), jax.random.key(0), 8)
    assert float(guided) < 0.01 * float(free) and float(rule.distance(projected).max()) < 1e-3


def test_the_estimate_of_a_prior_is_in_the_users_units():
    prior, x = gaussian(3.0, 2.0), jax.random.normal(jax.random.key(0), (2, 4, 4, 1))
    expected = (4 * x + 0.25 * 3.0) / 4.25
    np.testing.assert_allclose(prior(x, 0.5), expected, rtol=1e-5)
    np.testing.assert_allclose(prior(x, jnp.full(2, 0.5)), expected, rtol=1e-5)


@pytest.mark.parametrize('which', ['mirror', 'prior', 'both'])
def test_a_model_file_gives_the_same_model(tmp_path, which):
    mirror, prior = fitted()
    model = {'mirror': mirror, 'prior': prior, 'both': {'mirror': mirror, 'prior': prior}}[which]
    nj.save(tmp_path / 'model.npz', model)
    again = nj.load(tmp_path / 'model.npz', networks={'Mine': Mine()})
    assert jax.tree.structure(again) == jax.tree.structure(model)
    pairs = zip(jax.tree.leaves(again), jax.tree.leaves(model), strict=True)
    assert all((a == b).all() for a, b in pairs)


def test_a_network_of_ones_own_is_not_in_the_file(tmp_path):
    nj.save(tmp_path / 'mine.npz', fitted()[0])
    with pytest.raises(ValueError, match="networks: got .*, expected 'Mine'"):
        nj.load(tmp_path / 'mine.npz')


def test_a_model_file_that_is_none_is_refused_by_name(tmp_path):
    mirror, prior = fitted()
    path = tmp_path / 'model.npz'
    with pytest.raises(ValueError, match='no such file'):
        nj.load(path)
    nj.save(path, prior)
    whole = path.read_bytes()
    at = whole.index(max((np.asarray(a).tobytes() for a in jax.tree.leaves(prior)), key=len)) + 9
    flipped = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
    for bad in (whole[: len(whole) // 2], b'', flipped):
        path.write_bytes(bad)
        with pytest.raises(ValueError, match='model.npz: got .*, expected a whole model file'):
            nj.load(path)
    path.write_bytes(whole)
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    meta = arrays['meta'].tobytes().replace(b'"format": 1', b'"format": 7')
    np.savez(path, **arrays | {'meta': np.frombuffer(meta, np.uint8)})
    with pytest.raises(ValueError, match='format 7, expected 1'):
        nj.load(path)
    with pytest.raises(ValueError, match='guided'):
        nj.save(path, nj.projected(prior, lambda x: x))
    assert zipfile.is_zipfile(path)


@pytest.mark.parametrize(
    ('spoil', 'message'),
    [
        (lambda x: x[:, :8], r'x: got shape \(64, 8, 8, 1\), expected \(n, 16, 8, 1\)'),
        (lambda x: x[..., 0], r'x: got shape \(64, 16, 8\), expected'),
        (lambda x: x.at[3, 0, 0, 0].set(jnp.nan), 'NaN or infinity in 1 of 64 .* index 3'),
        (lambda x: x[:4], 'got 4 samples'),
        (lambda x: (x * 100).astype(int), 'got int32, expected floating-point'),
    ],
)
def test_data_that_cannot_be_fit_are_refused(spoil, message):
    problem, x = burgers()
    with pytest.raises(ValueError, match=message):
        nj.fit(nj.diffusion(problem), spoil(x), steps=1)


def test_a_loss_that_is_not_finite_stops_the_fit():
    problem, x = burgers()
    recipe = nj.diffusion(problem, network=Mine(), optimizer={'learning_rate': 1e30, 'clip': 0.0})
    with pytest.raises(FloatingPointError, match='at step .* expected a finite number'):
        nj.fit(recipe, x, steps=20, progress=False)


@pytest.mark.parametrize(
    ('denoiser', 'message'),
    [
        (lambda x: x, 'denoiser: got TypeError'),
        (lambda x, sigma: x[:, 0], r'denoiser: got \(2, 4, 1\) for x \(2, 4, 4, 1\)'),
        (lambda x, sigma: x * sigma, r'sigma \(2,\)|denoiser: got'),
    ],
)
def test_a_denoiser_of_another_signature_is_refused(denoiser, message):
    with pytest.raises(ValueError, match=message):
        nj.prior(denoiser, (4, 4, 1))


def test_a_measurement_of_another_shape_is_refused():
    with pytest.raises(ValueError, match='y: got shape'):
        nj.given(gaussian(0.0, 1.0), lambda x: x[:, :2], jnp.zeros((1, 4, 4, 1)), noise_std=0.1)


def rows_sum_to_zero(x):
    return jnp.abs(x.mean(2)).mean((1, 2))


def own_data(n=48):
    x = jax.random.normal(jax.random.key(0), (n, 8, 8, 2)) * jnp.array([1.0, 0.5])
    return x - x.mean(2, keepdims=True)


def train_own(x, distance, steps=50, seed=0):
    problem = nj.problem(x, distance=distance)
    convex = nj.networks.ICNN(2, 1, periodic=(False, False))
    recipe = nj.namm(problem, forward=convex, inverse=Mine())
    mirror = nj.fit(recipe, x, steps=steps, key=jax.random.key(seed), progress=False)
    return problem, mirror


@pytest.mark.parametrize('factor', [2.0**20, 2.0**-20])
def test_the_unit_of_data_and_rule_does_not_matter(factor):
    x = own_data()
    _, mirror = train_own(x, rows_sum_to_zero)
    _, other = train_own(factor * x, rows_sum_to_zero)
    pairs = zip(jax.tree.leaves(mirror.params), jax.tree.leaves(other.params), strict=True)
    assert max(float(jnp.abs(a - b).max()) for a, b in pairs) < 1e-5
    np.testing.assert_allclose(other.project(factor * x) / factor, mirror.project(x), atol=1e-5)


def end_of_run(x, distance, seed):
    """How far f brings noisy mirror points of the data from the rule."""
    _, mirror = train_own(x, distance, steps=150, seed=seed)
    noise = 0.1 * jax.random.normal(jax.random.key(9), x.shape)
    return float(distance(mirror.inverse(mirror.forward(x) + noise)).mean())


@pytest.fixture(scope='module')
def ends():
    return [end_of_run(own_data(256), rows_sum_to_zero, seed) for seed in range(3)]


@pytest.mark.slow
@pytest.mark.parametrize(('factor', 'offset'), [(1e6, 0.0), (1e-6, 0.0), (1.0, 300.0)])
def test_runs_in_other_units_end_within_the_spread_of_seeds(factor, offset, ends):
    """Data times a factor, or moved by 300 standard deviations, are trained on as well."""
    x = factor * own_data(256) + offset
    found = end_of_run(x, lambda x: rows_sum_to_zero((x - offset) / factor), 0)
    assert np.mean(ends) - 4 * np.std(ends) < found < np.mean(ends) + 4 * np.std(ends)
