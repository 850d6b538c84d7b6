"""Counting: networks with known weights, the constraint's exact gradient, and peaks that stand out
by known amounts.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial

from configs.count import get_config
from namm_jax._arrays import Constraint
from namm_jax.experiment.counter import held_out_error, sources_at_pixels, turn
from namm_jax.experiment.stages import stages_of
from namm_jax.networks.counter import Counter, DensityCounter, huber, misplacement
from namm_jax.problems.counting import classical_count
from namm_jax.problems.galaxy_images import Galaxies

PROBLEM = Galaxies(points=8, count=2)


def init(network, *shape):
    return jax.jit(network.init)(jax.random.key(0), jnp.zeros(shape))['params']


def size_of(network, *shape):
    shapes = jax.eval_shape(lambda: init(network, *shape))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


@pytest.fixture(scope='module')
def adding():
    """Returns a counter, and parameters with which it adds up positive pixels and divides by 4, as
    one pooling does.
    """
    network = Counter(filters=(1,), hidden=1)
    shapes = jax.eval_shape(lambda: init(network, 1, 8, 8, 1))
    ones = jax.tree.map(
        lambda leaf: jnp.full(leaf.shape, leaf.ndim > 1, jnp.float32), shapes
    )  # biases are vectors
    kernel = jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1)
    return network, ones | {'Conv_0': ones['Conv_0'] | {'kernel': kernel}}


def counting(network, params):
    return PROBLEM.constraint(counter=Partial(network.apply, {'params': params}))


def constant(*values):
    return jnp.ones((1, 8, 8, 1)) * jnp.array(values)[:, None, None, None]


def test_parameters_at_the_published_sizes():
    # 9 32 + 32, 9 32 64 + 64, 64 h/4 w/4 256 + 256, 256 + 1
    assert size_of(Counter(), 1, 128, 128, 1) == 320 + 18_496 + 16_777_472 + 257
    assert size_of(Counter(), 1, 64, 64, 1) == 320 + 18_496 + 4_194_560 + 257


def test_counter_with_known_weights_adds_up_pixels(adding):
    network, params = adding
    x = jnp.zeros((2, 8, 8, 1)).at[0, 0, 0].set(4.0).at[1, 3, 5].set(8.0).at[1, 7, 7].set(-4.0)
    np.testing.assert_allclose(network.apply({'params': params}, x), [1, 2], rtol=1e-6)


@pytest.mark.slow
def test_density_counter_is_the_sum_of_its_density_at_any_size():
    network = DensityCounter(channels=(2, 4))
    params, apply = init(network, 1, 8, 8, 1), jax.jit(network.apply)
    zero = jax.tree.map(jnp.zeros_like, params)
    for height, width in ((8, 8), (4, 12)):
        cells = height * width // 16
        x = jax.random.normal(jax.random.key(1), (3, height, width, 1))
        np.testing.assert_allclose(apply({'params': zero}, x), cells / 2, rtol=1e-6)
        counts = apply({'params': params}, x)
        chex.assert_shape(counts, (3,))
        assert ((counts > 0) & (counts < cells)).all() and float(jnp.ptp(counts)) > 0


def test_density_counter_starts_at_a_few_objects_an_image():
    x = jnp.zeros((1, 16, 16, 1))  # every feature of a black image is 0
    np.testing.assert_allclose(
        jax.jit(DensityCounter().apply)({'params': init(DensityCounter(), *x.shape)}, x),
        8,
        rtol=1e-4,
    )


def test_huber_is_that_of_optax():
    count, sources = jnp.linspace(0, 4, 9), jnp.ones((9, 2, 1, 1))
    np.testing.assert_allclose(
        huber(count, sources), optax.huber_loss(count, 2.0 + 0 * count, delta=0.5), atol=1e-6
    )


@pytest.mark.slow
def test_misplacement_is_least_at_the_mean_of_images_that_look_alike():
    inside = jnp.asarray(np.random.default_rng(0).binomial(1, 0.3, (50, 2, 3, 1)), jnp.float32)
    loss = lambda logits: misplacement(jnp.broadcast_to(logits, inside.shape), inside).mean()
    mean = inside.mean(0)
    logits = jnp.log(mean / (1 - mean))
    np.testing.assert_allclose(jax.grad(loss)(logits), 0, atol=1e-5)
    assert (jnp.diag(jax.hessian(loss)(logits).reshape(6, 6)) > 0).all()
    expected = optax.sigmoid_binary_cross_entropy(logits, inside).sum((1, 2, 3)).mean()
    np.testing.assert_allclose(loss(logits), expected, rtol=1e-5)


@pytest.mark.slow
def test_sources_teach_their_places():
    """Moving an object to another cell changes the loss of the density, and not that of the count
    alone.
    """
    x = jax.random.uniform(jax.random.key(0), (1, 8, 8, 1))
    here, near, there = (jnp.zeros((1, 8, 8, 1)).at[0, i, 1].set(1) for i in (0, 3, 4))
    for network, moves in (
        (Counter(filters=(2,), hidden=3), False),
        (DensityCounter(channels=(2, 2)), True),
    ):
        params = init(network, *x.shape)
        loss = lambda sources, n=network, p=params: float(
            n.apply({'params': p}, x, sources, method='loss')[0]
        )
        assert loss(here) == loss(near)  # one cell
        assert (loss(there) != loss(here)) == moves


@pytest.mark.parametrize(('maps', 'needed'), [(False, {'mirror', 'mdm', 'dm'}), (True, set())])
def test_training_needs_the_counter_only_where_the_rule_holds_it(maps, needed):
    config = get_config('tiny')
    config.data.maps = maps
    needs = {name for name, stage in stages_of(config).items() if 'counter' in stage.needs}
    assert needs == needed | {'evaluate'}


def test_sources_at_pixels_hold_each_source_at_its_pixel():
    centres = jnp.array([[[0, 3], [2, 1], [-1, -1]], [[2, 1], [2, 1], [3, 0]]], jnp.float32)[
        ..., None
    ]
    expected = np.zeros((2, 4, 4, 1))
    expected[0, 0, 3] = expected[0, 2, 1] = expected[1, 3, 0] = 1
    expected[1, 2, 1] = 2
    np.testing.assert_array_equal(sources_at_pixels(centres, 4), expected)


@pytest.mark.parametrize(
    ('network', 'factor'), [(Counter(), 4), (DensityCounter(), 4), (Counter(filters=(1,)), 2)]
)
def test_counters_need_sizes_that_can_be_halved(network, factor):
    with pytest.raises(
        ValueError, match=rf'Got x of shape \(1, 8, 9, 1\), expected .* multiples of {factor}'
    ):
        jax.eval_shape(lambda: init(network, 1, 8, 9, 1))


@pytest.mark.slow
@pytest.mark.parametrize(
    'network', [Counter(filters=(2,), hidden=3), DensityCounter(channels=(2, 2))]
)
def test_counters_keep_double_and_raise_half_precision(network):
    params = init(network, 1, 4, 4, 1)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype('float32')}
    assert (
        network.apply({'params': params}, jnp.zeros((1, 4, 4, 1), jnp.bfloat16)).dtype
        == jnp.float32
    )
    with jax.enable_x64(True):
        assert (
            network.apply({'params': params}, jnp.zeros((1, 4, 4, 1), jnp.float64)).dtype
            == jnp.float64
        )


def test_count_is_a_constraint_whose_leaves_are_the_parameters(adding):
    network, params = adding
    constraint = counting(network, params)
    assert isinstance(constraint, Constraint) and constraint.name == 'count'
    chex.assert_trees_all_equal(jax.tree.leaves(constraint), jax.tree.leaves(params))
    x = constant(0.25)
    chex.assert_shape(constraint.residual(x), (1, 1))
    chex.assert_trees_all_equal(constraint.terms(x), {'count': constraint.distance(x)})


def test_distance_and_gradient_of_the_adding_network(adding):
    network, params = adding
    constraint = counting(network, params)
    x = constant(0.25, 0.125, 0.0625)  # 64 pixels over 4: counts 4, 2 and 1
    np.testing.assert_allclose(constraint.residual(x)[:, 0], [2, 0, -1], atol=1e-5)
    np.testing.assert_allclose(constraint.distance(x), [2, 0, 1], atol=1e-5)
    slope = jax.grad(lambda x: constraint.distance(x).sum())(x)
    np.testing.assert_allclose(slope[0], 0.25, atol=1e-6)
    np.testing.assert_allclose(slope[2], -0.25, atol=1e-6)
    assert np.isfinite(slope[1]).all()  # on the set round-off has its say


def test_the_network_is_static_and_its_parameters_are_not(adding):
    traces = []

    @jax.jit
    def distance(constraint, x):
        traces.append(None)
        return constraint.distance(x)

    network, params = adding
    for factor in (1, 2):
        scaled = params | {
            'Dense_1': jax.tree.map(lambda leaf, factor=factor: factor * leaf, params['Dense_1'])
        }
        counts = distance(counting(network, scaled), constant(0.25))
        np.testing.assert_allclose(counts, [4 * factor - 2], atol=1e-5)
    assert len(traces) == 1


def test_count_errors(adding):
    network, params = adding
    with pytest.raises(ValueError, match='Got 0 to 16 sources, expected one number'):
        Galaxies(points=64, count=(0, 16)).constraint(counter=Partial(network.apply, params))
    with pytest.raises(ValueError, match=r'Got x of shape \(1, 4, 4, 1\), expected \(b, 8, 8, 1\)'):
        counting(network, params).distance(jnp.zeros((1, 4, 4, 1)))
    with pytest.raises(
        ValueError, match=r'counter: got none, .* `counter` .* constraint\(counter='
    ):
        PROBLEM.constraint()


def test_a_plain_function_counts():
    constraint = PROBLEM.constraint(counter=lambda x: x.sum((1, 2, 3)))
    assert constraint.distance(constant(0.25, 0.0)).tolist() == [14, 2]
    x = constant(0.25)
    assert PROBLEM.residual_map(constraint, x).shape == (1, 0, 0)  # it has none


def blobs(*peaks):
    """Returns an image of Gaussians of width 2, `(row, column, peak)` each."""
    rows, columns = np.mgrid[:40, :40]
    image = sum(peak * np.exp(-((rows - i) ** 2 + (columns - j) ** 2) / 8) for i, j, peak in peaks)
    return image[None, :, :, None]


def test_classical_count_of_clear_blobs():
    three = blobs((10, 10, 1.0), (10, 30, 0.5), (30, 20, 0.2))
    noise = np.random.default_rng(0).normal(scale=0.005, size=three.shape)
    # A blob at 4 widths from another has its own maximum; the last one is cut by the border.
    four = blobs((10, 10, 1.0), (10, 18, 0.9), (30, 20, 0.5), (39, 0, 0.5))
    x = np.concatenate([three, three + noise, four, np.full_like(three, 0.7), np.zeros_like(three)])
    assert classical_count(x).tolist() == [3, 3, 4, 0, 0]
    assert classical_count((5 * x - 3).astype(np.float32)).tolist() == [3, 3, 4, 0, 0]


def ridge(saddle, second):
    """Returns peaks of 50 and `second` with a saddle between: the noise is taken as 50/50 = 1,
    levels are 3.5 + k/2.
    """
    x = np.zeros((1, 20, 20, 1))
    x[0, 5, 5:10, 0] = [50, saddle, saddle, saddle, second]
    return x


@pytest.mark.parametrize(
    ('saddle', 'second', 'peaks'),
    [(0, 4.1, 2), (0, 3.9, 1), (28.9, 30, 2), (29.6, 30, 1), (29.4, 30, 2), (0, 30, 2)],
)
def test_a_peak_counts_if_it_is_high_and_separated_by_a_deep_saddle(saddle, second, peaks):
    assert classical_count(ridge(saddle, second), smoothing=0.0).tolist() == [peaks]


def test_classical_count_of_galaxies():
    sample = jax.jit(Galaxies(points=64, count=(0, 16)).fields_with_counts)
    x, counts = map(np.asarray, sample(jax.random.split(jax.random.key(0), 64)))
    error = classical_count(x) - counts
    assert np.abs(error).mean() < 1
    assert np.abs(error[counts <= 8]).mean() < 0.6


@pytest.mark.parametrize(
    ('shape', 'message'),
    [
        ((2, 4, 4), r'Got x of shape \(2, 4, 4\), expected \(n, h, w, 1\)'),
        ((2, 4, 4, 2), 'images of one channel'),
    ],
)
def test_classical_count_errors(shape, message):
    with pytest.raises(ValueError, match=message):
        classical_count(np.zeros(shape))


def test_classical_count_refuses_what_is_not_finite():
    x = np.zeros((3, 4, 4, 1))
    x[1, 2, 2] = np.nan
    with pytest.raises(ValueError, match='Got 1 of 3 images with values that are not finite'):
        classical_count(x)


def test_training_images_are_turned_into_all_their_mirror_images():
    image = np.arange(9.0).reshape(1, 3, 3, 1)
    flips = [image, image[:, ::-1], image[:, :, ::-1], image[:, ::-1, ::-1]]
    expected = {flip.tobytes() for flip in flips} | {
        flip.swapaxes(1, 2).tobytes() for flip in flips
    }
    found = np.asarray(turn(jax.random.key(0), jnp.asarray(image.repeat(200, 0))), float)
    assert {one.tobytes() for one in found} == expected and len(expected) == 8


def test_a_fooled_counter_does_not_speak_for_its_samples():
    counts = {'counter': [8.0, 8.0], 'second': [6.0, 8.0], 'classical': [11.0, 8.0]}
    error = held_out_error({name: np.array(of) for name, of in counts.items()}, 8)
    np.testing.assert_array_equal(error, [2.5, 0])
