"""The front door: `import namm_jax as nj`, and what a user does with it."""

import functools
import pathlib
import subprocess
import sys
import zipfile

import flax.linen as nn
import jax
import jax.numpy as jnp
import jaxtyping
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


@pytest.mark.slow
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


LEARNED = pytest.param(lambda: fitted()[1], marks=pytest.mark.slow, id='learned')


@pytest.mark.parametrize('prior', [lambda: gaussian(3.0, 2.0), LEARNED])
def test_a_sample_depends_on_its_index_alone(prior):
    many, few = (nj.sample(prior(), jax.random.key(1), n, steps=3) for n in (5, 2))
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


DEARER = [pytest.param(which, marks=pytest.mark.slow) for which in ('mirror', 'both')]


@pytest.mark.parametrize('which', ['prior', *DEARER])
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
        (lambda x, sigma: x[:, 0], r'denoiser: got .*expected a JAX function \(x, sigma\)'),
        (lambda x, sigma: x * sigma, 'denoiser: got .*sigma a scalar or'),
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
@pytest.mark.slow
def test_the_unit_of_data_and_rule_does_not_matter(factor):
    x = own_data()
    _, mirror = train_own(x, rows_sum_to_zero)
    _, other = train_own(factor * x, rows_sum_to_zero)
    pairs = zip(jax.tree.leaves(mirror.params), jax.tree.leaves(other.params), strict=True)
    assert max(float(jnp.abs(a - b).max()) for a, b in pairs) < 1e-5
    np.testing.assert_allclose(other.project(factor * x) / factor, mirror.project(x), atol=1e-5)


@functools.cache
def own():
    return nj.problem(own_data(), distance=rows_sum_to_zero)


def fit_own(x=None, **options):
    x = own_data() if x is None else x
    return nj.fit(nj.diffusion(own(), network=Mine()), x, **{'steps': 1, **options})


@functools.cache
def own_mirror():
    return nj.fit(namm_own(), own_data(), steps=1, progress=False)


def namm_own(**options):
    return nj.namm(own(), **{'forward': CONVEX, 'inverse': Mine(), **options})


def gaussian_given(operator=lambda x: x, noise_std=0.1, n=1):
    return nj.given(gaussian(0.0, 1.0), operator, jnp.zeros((n, 4, 4, 1)), noise_std)


def test_a_prior_without_examples_warns_where_its_gain_is_not_that_of_the_operator(recwarn):
    for selection in (lambda x: x, lambda x: x[:, ::2]):
        y = selection(jnp.zeros((1, 4, 4, 1)))
        nj.given(gaussian(0.0, 1.0), selection, y, 0.1)
    assert not recwarn.list
    with pytest.warns(UserWarning, match='nj.prior.*examples=x'):
        nj.given(gaussian(0.0, 1.0), lambda x: x.mean((1, 2, 3)), jnp.zeros(1), 0.1)


class Normed(Mine):
    @nn.compact
    def __call__(self, x, label=None, *, train=False):
        return nn.BatchNorm(use_running_average=not train)(x)


class Pair(Mine):
    def __call__(self, x, label=None, *, train=False):
        return x, x


class Plain(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(x)


KEY = jax.random.key(0)
AT_LEAST_1 = r'expected an integer in \[1, inf\)'
BAD = {
    'batch_size': (lambda: fit_own(batch_size=-1), f'batch_size: got -1, {AT_LEAST_1}'),
    'batch_size of 0': (lambda: fit_own(batch_size=0), f'batch_size: got 0, {AT_LEAST_1}'),
    'batch_size of a recipe': (
        lambda: nj.fit(nj.diffusion(own(), network=Mine(), batch_size='4'), own_data(), steps=1),
        f"batch_size: got '4', {AT_LEAST_1}",
    ),
    'steps': (lambda: fit_own(steps=2.0), f'steps: got 2.0, {AT_LEAST_1}'),
    'n': (lambda: nj.sample(gaussian(0.0, 1.0), KEY, None), f'n: got None, {AT_LEAST_1}'),
    'steps of a sampler': (
        lambda: nj.sample(gaussian(0.0, 1.0), KEY, 1, steps=0),
        f'steps: got 0, {AT_LEAST_1}',
    ),
    'n of a problem': (lambda: burgers()[0].sample(KEY, 0), f'n: got 0, {AT_LEAST_1}'),
    'ema': (
        lambda: nj.fit(nj.diffusion(own(), network=Mine(), ema=np.nan), own_data(), steps=1),
        r'ema: got nan, expected a number in \[0, 1\)',
    ),
    'weight': (
        lambda: nj.fit(namm_own(lambda_cycle=-1.0), own_data(), steps=1),
        r'lambda_cycle: got -1.0, expected a number in \[0, inf\)',
    ),
    'mean of samples': (
        lambda: nj.sample(gaussian(0.0, 1.0), KEY, 1, mean=3.0),
        "multiple values for keyword argument 'mean'",
    ),
    'mean': (lambda: gaussian(np.nan, 1.0), 'prior: got mean nan.*expected finite'),
    'shape': (
        lambda: nj.prior(lambda x, s: x, (4, 4, 0)),
        r'shape: got \(4, 4, 0\), expected \(h, w, c\), integers, each at least 1',
    ),
    'operator of NaN': (lambda: gaussian_given(jnp.log), 'operator: got NaN or infinity'),
    'operator without slope': (lambda: gaussian_given(jnp.round), 'operator: got a gradient of 0'),
    'operator of numpy': (lambda: gaussian_given(np.abs), 'operator: .*no NumPy or SciPy'),
    'no operator': (lambda: gaussian_given('A'), "operator: got TypeError: .*'str'"),
    'little noise': (lambda: gaussian_given(noise_std=1e-20), 'noise_std.*: got inf'),
    'several measurements': (
        lambda: nj.sample(gaussian_given(n=64), KEY, 128, steps=1),
        'y: got shape .*pass one for each of the 128 fields, or one for all',
    ),
    'project': (
        lambda: nj.sample(nj.projected(gaussian(0.0, 1.0), nj.constraints.ball(1.0).restore), KEY),
        r'project: got TypeError.*of a function that returns \(x, info\)',
    ),
    'rule as project': (
        lambda: nj.sample(nj.projected(gaussian(0.0, 1.0), nj.constraints.ball(1.0)), KEY),
        'project: got TypeError.*not callable',
    ),
    'class': (
        lambda: nj.diffusion(own(), network=Mine),
        'network: got .*instances of Flax modules',
    ),
    'name': (lambda: namm_own(inverse='unet'), "inverse: got AttributeError: 'str'.*instances"),
    'collections': (lambda: nj.diffusion(own(), network=Normed()), 'network: .*parameters alone'),
    'tuple': (lambda: namm_own(inverse=Pair()), 'inverse: got .*like z'),
    'signature': (lambda: nj.diffusion(own(), network=Plain()), 'network: got TypeError: .*label'),
    'potential': (lambda: namm_own(forward=Mine()), r'forward: got shape \(2, 8, 8, 2\), expected'),
    'rule': (lambda: nj.guided(gaussian(0.0, 1.0), None), 'got a distance of type NoneType'),
    'arrays as problem': (
        lambda: nj.namm(own_data()),
        r'problem: got ArrayImpl, expected what nj.problem returns, a Problem',
    ),
    'class as problem': (lambda: nj.diffusion(nj.problems.burgers), 'problem: got the class Burg'),
    'swapped': (lambda: nj.fit(own_data(), namm_own(), steps=1), 'recipe: got ArrayImpl, expected'),
    'denoiser as prior': (lambda: nj.sample(lambda x, s: x, KEY), 'prior: got function, expected'),
    'denoiser given': (
        lambda: nj.given(lambda x, s: x, lambda x: x, jnp.zeros((1, 4, 4, 1)), 0.1),
        'prior: got function, expected what nj.fit or nj.prior returns, a Prior',
    ),
    'no batch axis': (
        lambda: own_mirror().project(own_data()[0]),
        r'x: got shape \(8, 8, 2\), expected fields .*x\[None\]',
    ),
    'channels': (
        lambda: own_mirror().project(own_data()[..., [0, 1, 1]]),
        r'x of \(48, 8, 8, 3\): got .*expected fields .*trained on',
    ),
    'no fields': (lambda: own_mirror().project(None), r'x: got shape \(\), expected fields'),
    'option': (
        lambda: nj.diffusion(own(), network=Mine(), optimizer={'learning_rat': 1}),
        "optimizer: got 'learning_rat', .*did you mean learning_rate",
    ),
    'accumulate': (lambda: nj.optimizer(10, accumulate=0), f'accumulate: got 0, {AT_LEAST_1}'),
    'problem name': (lambda: nj.problems.burger, 'did you mean burgers'),
    'operator name': (lambda: nj.operators.random_sensor, 'did you mean random_sensors'),
    'sampler name': (lambda: nj.samplers.huen, 'did you mean heun'),
    'constraint name': (lambda: nj.constraints.bal, 'did you mean ball'),
}


@pytest.mark.parametrize('name', BAD)
def test_bad_input_is_answered_with_one_message(name, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, 'jaxtyping_disable', True)
    call, message = BAD[name]
    with pytest.raises((ValueError, TypeError, AttributeError), match=message):
        call()


def test_each_sample_has_a_measurement_of_its_own(monkeypatch):
    y = jax.random.normal(KEY, (5, 4, 4, 1))
    posterior = nj.given(gaussian(0.0, 1.0), lambda x: x, y, 0.01)
    whole = nj.sample(posterior, KEY, 5, steps=9)
    np.testing.assert_allclose(whole, y, atol=0.2)
    monkeypatch.setattr('namm_jax.denoising.prior.CHUNK', 2)
    np.testing.assert_array_equal(nj.sample(posterior, KEY, 5, steps=9), whole)


@pytest.mark.slow
def test_keys_of_either_kind_and_functions_as_rules():
    prior = gaussian(3.0, 2.0)
    total = lambda x: jnp.abs(x.sum((1, 2, 3)) - 40)
    one = nj.sample(nj.guided(prior, total), KEY, 2, steps=3)
    same = nj.sample(nj.guided(prior, nj.constraint(total)), jax.random.PRNGKey(0), 2, steps=3)
    np.testing.assert_array_equal(one, same)
    mirror = nj.fit(namm_own(constraint=rows_sum_to_zero), own_data(), steps=1, progress=False)
    np.testing.assert_array_equal(mirror.project(own_data()), own_mirror().project(own_data()))
    x, info = nj.project_onto(nj.constraints.ball(1.0), own_data())
    assert float(jnp.linalg.norm(x.reshape(len(x), -1), axis=1).max()) < 1.001


@pytest.mark.slow
@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
def test_half_precision_is_raised(dtype):
    half = own_data().astype(dtype)
    mirror = nj.fit(namm_own(), half, steps=1, progress=False)
    assert mirror.project(half).dtype == jnp.float32


@pytest.mark.parametrize('factor', [1e-22, 1e20])
def test_data_of_any_size_are_a_problem(factor):
    own = nj.problem(np.float32(factor) * own_data(), distance=rows_sum_to_zero)
    assert 0 < own.unit < np.inf


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


def test_correlated_noise_of_ones_own_has_the_posterior_of_linear_algebra():
    """Normal data, all pixels measured with noise that is correlated along the rows."""
    i = np.arange(4)
    C = 0.1**2 * 0.8 ** np.abs(i[:, None] - i)
    inverse_root = jnp.asarray(np.linalg.inv(np.linalg.cholesky(C)), jnp.float32)
    whiten = lambda y, Ax: jnp.einsum('ij,bhjc->bhic', inverse_root, y - Ax)
    identity = nj.operator((4, 4, 1), function=lambda x: x, linear=True, whiten=whiten)
    y = jax.random.normal(jax.random.key(3), (1, 4, 4, 1))
    x = nj.sample(nj.given(gaussian(0.0, 1.0), identity, y), jax.random.key(1), 400, steps=60)
    gain = np.linalg.inv(np.eye(4) + C)
    np.testing.assert_allclose(x.mean(0)[..., 0], np.asarray(y)[0, ..., 0] @ gain.T, atol=0.03)
    law = np.einsum('bhi,bhj->ij', x[..., 0] - x.mean(0)[..., 0], x[..., 0] - x.mean(0)[..., 0])
    np.testing.assert_allclose(law / (4 * 400), np.eye(4) - gain, atol=0.002)
