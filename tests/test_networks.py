"""Networks: exact symmetries, convexity of the input-convex network, and the published sizes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from configs.burgers import get_config
from namm_jax.experiment import build
from namm_jax.experiment.config import override
from namm_jax.experiment.experiment import check
from namm_jax.experiment.problem import make_problem
from namm_jax.networks import NETWORKS, convolution, fields_of, make_network
from namm_jax.networks.convolution import padded
from namm_jax.networks.icnn import ICNN, gradient_map, nonnegative_mask
from namm_jax.networks.resnet import ResNet, Up
from namm_jax.networks.unet import UNet, position_features

AXES = [(False, False), (True, False), (False, True), (True, True)]


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def randomised(params, scale=0.3):
    """Returns parameters with none at 0, where a test could hide; those to be non-negative stay
    so.
    """
    leaves, tree = jax.tree.flatten(params)
    moved = [leaf + scale * normal(i, *leaf.shape) for i, leaf in enumerate(leaves)]
    moved = jax.tree.unflatten(tree, moved)
    return jax.tree.map(
        lambda leaf, keep: jnp.abs(leaf) if keep else leaf, moved, nonnegative_mask(params)
    )


def size_of(network, *shapes):
    inputs = [jnp.zeros(shape) for shape in shapes]
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), *inputs))['params']
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def test_wrap_continues_the_field():
    x = jnp.arange(6.0).reshape(1, 3, 2, 1)
    assert convolution.wrap(x, 1, (True, False))[0, :, 0, 0].tolist() == [4, 0, 2, 4, 0]
    assert convolution.wrap(x, 1, (False, True))[0, 0, :, 0].tolist() == [1, 0, 1, 0]
    assert convolution.wrap(x, 1, (False, False)) is x


@pytest.mark.parametrize('convolve', [convolution.convolve, convolution.convolve_patches])
@pytest.mark.parametrize('periodic', AXES)
def test_convolution_commutes_with_rolls_of_periodic_axes_only(convolve, periodic):
    x, kernel = normal(0, 2, 6, 8, 2), normal(1, 3, 3, 2, 4)
    y = convolve(x, kernel, periodic)
    for axis, wraps in zip((1, 2), periodic, strict=True):
        rolled = convolve(jnp.roll(x, 1, axis), kernel, periodic)
        difference = jnp.abs(rolled - jnp.roll(y, 1, axis)).max()
        assert difference < 1e-5 if wraps else difference > 0.1


def test_strided_convolution_takes_every_second_pixel():
    x, kernel = normal(0, 1, 8, 6, 2), normal(1, 3, 3, 2, 3)
    for periodic in AXES:
        y = convolution.convolve(x, kernel, periodic)
        np.testing.assert_allclose(
            convolution.convolve(x, kernel, periodic, stride=2), y[:, ::2, ::2], atol=1e-5
        )


@pytest.mark.parametrize('stride', [1, 2])
def test_derivatives_of_the_convolution_are_right_in_both_modes(stride):
    x, kernel = (
        jax.random.normal(jax.random.key(0), (1, 4, 6, 2)),
        jax.random.normal(jax.random.key(1), (3, 3, 2, 3)),
    )
    convolve = jax.jit(lambda x, kernel: convolution.convolve(x, kernel, (True, False), stride))
    check_grads(convolve, (x, kernel), order=1, rtol=1e-2)


@pytest.mark.parametrize(
    'other', [convolution.convolve_patches, convolution.convolve_twice_differentiable]
)
def test_forms_of_the_convolution_agree_to_second_derivatives(other):
    x, kernel = normal(0, 1, 4, 5, 2), normal(1, 3, 3, 2, 3)

    def derivatives(convolve):
        energy = lambda x, k: jnp.sum(jnp.tanh(convolve(x, k, (True, False))) ** 2)
        slope = lambda x, k: jnp.sum(jax.grad(energy)(x, k) ** 2)
        values = (convolve(x, kernel, (True, False)), jax.grad(energy, (0, 1))(x, kernel))
        return jax.jit(lambda: (values, jax.grad(slope, (0, 1))(x, kernel)))()

    results = map(jax.tree.leaves, (derivatives(other), derivatives(convolution.convolve)))
    for got, expected in zip(*results, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('taps', [{(3, 0): 1.0}, {(0, 5): 1.0, (6, 0): -2.0}])
def test_global_convolution_adds_shifted_fields_that_wrap_along_periodic_axes_only(taps):
    network, x = convolution.GlobalConv((True, False)), normal(0, 2, 8, 6, 3)
    kernel = network.init(jax.random.key(0), x)['params']['kernel']
    assert kernel.shape == (8, 12, 3)
    np.testing.assert_array_equal(
        network.apply({'params': {'kernel': kernel}}, x), x
    )  # at first the identity
    expected = x
    for (rows, columns), weight in taps.items():
        kernel = kernel.at[rows, columns].set(weight)
        shifted = jnp.pad(x, ((0, 0), (0, 0), (columns, 0), (0, 0)))[:, :, : x.shape[2]]
        expected += weight * jnp.roll(shifted, rows, 1)
    np.testing.assert_allclose(
        network.apply({'params': {'kernel': kernel}}, x), expected, atol=1e-5
    )


def test_folding_loses_nothing():
    x = normal(0, 2, 4, 6, 3)
    folded = convolution.space_to_depth(x, 2)
    assert folded.shape == (2, 2, 3, 12)
    assert set(folded[1, 1, 2].tolist()) == set(
        x[1, 2:4, 4:6].ravel().tolist()
    )  # each block is one pixel
    assert (convolution.depth_to_space(folded, 2) == x).all()


@pytest.fixture(scope='module')
def icnn():
    network = ICNN(filters=4, layers=2, periodic=(True, False))
    return network, randomised(
        jax.jit(network.init)(jax.random.key(0), jnp.zeros((1, 4, 4, 1)))['params']
    )


def largest_excess(network, params):
    """Returns by how much the function exceeds its chords, at most, relative to its size."""
    x, y = normal(1, 64, 4, 4, 1), normal(2, 64, 4, 4, 1)
    t = jax.random.uniform(jax.random.key(3), (64,))
    value = jax.jit(lambda x: network.apply({'params': params}, x))
    between = value(t[:, None, None, None] * x + (1 - t[:, None, None, None]) * y)
    ends = value(x), value(y)
    return float(
        ((between - t * ends[0] - (1 - t) * ends[1]) / jnp.maximum(*map(jnp.abs, ends))).max()
    )


def test_icnn_is_convex_because_its_weights_are_nonnegative(icnn):
    network, params = icnn
    assert largest_excess(network, params) < 1e-5
    flipped = jax.tree.map(
        lambda leaf, marked: -leaf if marked else leaf, params, nonnegative_mask(params)
    )
    assert largest_excess(network, flipped) > 0.01


def test_forward_map_is_injective(icnn):
    network, params = icnn
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), params)
        x = jax.random.normal(jax.random.key(4), (16,), jnp.float64)
        g = lambda x: gradient_map(
            network, params, x.reshape(1, 4, 4, 1), strong_convexity=0.9
        ).ravel()
        jacobian = np.asarray(jax.jit(jax.jacobian(g))(x))
    np.testing.assert_allclose(jacobian, jacobian.T, atol=1e-9)  # a gradient
    eigenvalues = np.linalg.eigvalsh(jacobian)
    assert eigenvalues.min() >= 0.9 - 1e-9  # of a strongly convex function
    assert eigenvalues.max() > 1  # the network does something here


def test_forward_map_with_strong_convexity_1_is_the_identity(icnn):
    x = normal(0, 2, 4, 4, 1)
    assert (jax.jit(lambda x: gradient_map(*icnn, x, strong_convexity=1.0))(x) == x).all()


def test_reductions(icnn):
    _, params = icnn
    x = normal(0, 1, 4, 6, 1)
    gradient = {}
    for name in ('sum', 'row_sum', 'mean'):
        network = ICNN(filters=4, layers=2, periodic=(True, True), reduction=name)
        gradient[name] = jax.jit(
            lambda x, network=network: gradient_map(network, params, x, strong_convexity=0.0)
        )
    np.testing.assert_allclose(gradient['row_sum'](x), gradient['sum'](x) / 6, rtol=1e-4)
    np.testing.assert_allclose(gradient['mean'](x), gradient['sum'](x) / 24, rtol=1e-4)
    tiled = lambda a: jnp.tile(a, (1, 2, 3, 1))
    np.testing.assert_allclose(
        gradient['sum'](tiled(x)), tiled(gradient['sum'](x)), rtol=1e-4, atol=1e-4
    )
    np.testing.assert_allclose(
        gradient['row_sum'](tiled(x)), tiled(gradient['row_sum'](x)) / 3, rtol=1e-4, atol=1e-4
    )


def test_nonnegative_mask(icnn):
    expected = {
        'input': False,
        'bias': False,
        'nonnegative_0': True,
        'nonnegative_1': True,
        'nonnegative_last': True,
    }
    assert nonnegative_mask(icnn[1]) == expected
    fresh = jax.jit(icnn[0].init)(jax.random.key(0), jnp.zeros((1, 4, 4, 1)))['params']
    for name, marked in expected.items():
        assert not marked or (0 <= fresh[name].min() and fresh[name].max() <= 1e-3)


def test_published_sizes():
    field = (1, 64, 64, 1)
    assert size_of(ICNN(filters=32, layers=3), field) == 30_368
    assert abs(size_of(ResNet(), field) - 7.8e6) < 0.05e6
    assert abs(size_of(build.make_score(get_config('paper')), field, (1,)) - 15e6) < 1e6


@pytest.mark.parametrize(
    ('details', 'commutes'),
    [
        pytest.param(
            {'periodic': (True, False), 'attention': True}, (True, False), marks=pytest.mark.slow
        ),
        pytest.param(
            {'periodic': (True, False), 'global_convolution': True},
            (True, False),
            marks=pytest.mark.slow,
        ),
        ({'periodic': (True, True), 'cell': (4, 8)}, (True, False)),
    ],
    ids=['attention', 'global_convolution', 'cell'],
)
def test_unet_commutes_with_rolls_of_periodic_axes_only(details, commutes):
    network = UNet(channels=(8, 8), fold=2, **details)
    x, label = normal(0, 1, 16, 16, 1), jnp.array([0.3])
    params = randomised(jax.jit(network.init)(jax.random.key(0), x, label)['params'], 0.1)
    apply = jax.jit(lambda x: network.apply({'params': params}, x, label))
    y = apply(x)
    assert float(y.std()) > 0.1
    for axis, same in zip((1, 2), commutes, strict=True):
        difference = jnp.abs(
            apply(jnp.roll(x, 4, axis)) - jnp.roll(y, 4, axis)
        ).max()  # 4 = fold * 2^(levels - 1)
        assert difference < 1e-4 if same else difference > 0.01


@pytest.mark.parametrize('n', [3, 4, 12, 16, 31])
def test_position_features_tell_every_pixel_of_a_cell_from_every_other(n):
    twice = np.asarray(position_features((2, 2 * n), (1, n)))
    features = twice[:, :n]
    assert (twice[:, n:] == features).all()
    apart = np.linalg.norm(features[0, :, None] - features[0, None], axis=-1)
    assert (features[0] == features[1]).all() and (apart + 9 * np.eye(n)).min() > 0.1
    np.testing.assert_allclose((features**2).sum(-1), features.shape[-1] / 2, rtol=1e-5)
    steps = np.linalg.norm(features[0] - np.roll(features[0], 1, 0), axis=-1)
    np.testing.assert_allclose(steps, steps[0], rtol=1e-4)  # also across the ends
    assert position_features((4, n), (1, 1)).shape == (4, n, 0)
    assert position_features((4, 8), (4, 8)).shape == (4, 8, 6)
    with pytest.raises(
        ValueError, match=r'got cells of \(2, 4\) pixels, expected divisors of the shape, \(4, 6\)'
    ):
        position_features((4, 6), (2, 4))


def test_resnet_keeps_the_shape_and_drops_features_in_training_only():
    network = ResNet(channels=(4,), blocks=1, periodic=(True, False))
    x = normal(0, 2, 8, 16, 1)
    params = jax.jit(network.init)(jax.random.key(0), x)['params']
    apply = jax.jit(network.apply, static_argnames='train')
    y = apply({'params': params}, x)
    assert y.shape == x.shape
    np.testing.assert_allclose(
        apply({'params': params}, jnp.roll(x, 4, 1)), jnp.roll(y, 4, 1), atol=1e-5
    )
    dropped = [
        apply({'params': params}, x, train=True, rngs={'dropout': jax.random.key(k)})
        for k in (0, 0, 1)
    ]
    assert (
        (dropped[0] == dropped[1]).all()
        and (dropped[0] != dropped[2]).any()
        and (dropped[0] != y).any()
    )


@pytest.mark.parametrize('periodic', AXES)
def test_up_is_the_transposed_convolution(periodic):
    """Flax's, of the field continued by a pixel along its periodic axes; the margin that this makes
    is cut off.
    """
    x, up = normal(0, 2, 3, 4, 2), Up(3, periodic, jnp.float32)
    params = randomised(up.init(jax.random.key(0), x)['params'])
    stock = nn.ConvTranspose(3, (3, 3), (2, 2), 'VALID').apply(
        {'params': params}, convolution.wrap(x, 1, periodic)
    )
    rows, columns = (
        slice(2 * wraps, 2 * wraps + 2 * n) for wraps, n in zip(periodic, (3, 4), strict=True)
    )
    np.testing.assert_allclose(up.apply({'params': params}, x), stock[:, rows, columns], atol=1e-5)


def test_unet_starts_at_zero():
    network = UNet(channels=(8, 8), fold=2)
    x = normal(0, 1, 8, 8, 1)
    assert (
        jax.jit(lambda key: network.apply(network.init(key, x), x))(jax.random.key(0)) == 0
    ).all()


def test_half_precision_is_inside_only():
    half, whole = (UNet(channels=(8,), dtype=dtype) for dtype in (jnp.bfloat16, jnp.float32))
    x = normal(0, 2, 8, 8, 1)
    params = jax.jit(half.init)(jax.random.key(0), x)['params']
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype('float32')}
    params = randomised(params, 0.1)
    got, expected = (jax.jit(network.apply)({'params': params}, x) for network in (half, whole))
    assert got.dtype == expected.dtype == jnp.float32
    assert 0 < jnp.abs(got - expected).max() < 0.1 * jnp.abs(expected).max()
    generator = ResNet((4,), 1, dtype=jnp.bfloat16)
    y, variables = jax.eval_shape(lambda: generator.init_with_output(jax.random.key(0), x))
    assert {leaf.dtype for leaf in jax.tree.leaves((y, variables))} == {jnp.dtype('float32')}


@pytest.mark.parametrize('name', NETWORKS)
def test_a_name_and_fields_make_a_network(name):
    network = make_network(name, periodic=(False, True))
    assert network == NETWORKS[name](periodic=(False, True))
    assert make_network(NETWORKS[name], periodic=(False, True)) == network
    assert 'periodic' in fields_of(NETWORKS[name]) and 'parent' not in fields_of(NETWORKS[name])


@pytest.mark.parametrize(
    ('build', 'message'),
    [
        (lambda: make_network('unett'), "network: got 'unett', expected one of .* mean unet"),
        (
            lambda: make_network('resnet', blocks=1, fold=4, chanels=(3,)),
            r"network 'resnet': got fold = 4, chanels = \(3,\), which it does not have; its fields "
            'are channels, blocks, dropout, .*; did you mean channels',
        ),
        (lambda: make_network(dict), "network: got <class 'dict'>, expected a class made of flax"),
        (lambda: ResNet(channels=(48, 96)), r'channels: got \(48, 96\), expected one number'),
        (lambda: UNet(norm='grup'), "norm: got 'grup', expected one of group, none.*mean group"),
        (lambda: ICNN(reduction='row'), "reduction: got 'row', expected one of sum, row_sum"),
    ],
)
def test_what_a_network_is_not_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def tiny(**changes):
    with (config := get_config('tiny')).unlocked():
        return override(config, {name.replace('__', '.'): value for name, value in changes.items()})


def test_networks_of_a_config_have_its_fields():
    config = tiny(mirror__fold=4, mirror__norm='group', score__attention=True, mirror__filters=3)
    f = build.make_inverse(config)
    assert (f.channels, f.fold, f.norm, f.attention) == ((8,), 4, 'group', False)
    score = build.make_score(config)
    assert (score.fold, score.norm, score.attention) == (2, 'group', True)
    assert build.make_forward(config) == ICNN(3, 1, periodic=(True, False))
    assert build.make_inverse(tiny(mirror__inverse='resnet')).channels == (8,)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (
            {'mirror__inverse': 'resnet', 'mirror__fold': 4},
            'mirror.fold: got 4, but mirror.inverse=resnet has no such field; leave it out, or',
        ),
        (
            {'mirror__inverse': 'resnet', 'mirror__head': 8, 'mirror__attention': True},
            'mirror.head, mirror.attention: got 8, True, but .*; leave it out, or',
        ),
        (
            {'mirror__inverse': 'resnet', 'mirror__channels': (48, 96)},
            r'mirror.inverse=resnet: channels: got \(48, 96\), expected one number',
        ),
        (
            {'mirror__forward': 'resnet', 'mirror__filters': 5},
            'mirror.filters: got 5, but mirror.forward=resnet has no such field',
        ),
        ({'score__norm': 'grup'}, "score.norm: got 'grup'"),
        ({'score__network': 'resnet'}, "score.network: got 'resnet', expected one of unet"),
        ({'mirror__inverse_padding': 'ring'}, "mirror.inverse_padding: got 'ring', expected one"),
        ({'train__compute_dtype': 'half'}, "train.compute_dtype: got 'half', expected one of"),
    ],
)
def test_no_field_of_a_config_is_ignored(changes, message):
    with pytest.raises(ValueError, match=f'^{message}'):
        check(tiny(**changes), get_config('tiny'))


def test_a_field_that_the_preset_says_is_no_mistake_of_the_user():
    check(tiny(mirror__forward='resnet'), get_config('tiny'))


def test_the_published_g_of_an_ablation_has_the_sizes_of_f():
    config = get_config('quick')
    with config.unlocked():
        override(config, {'mirror.forward': 'resnet', 'mirror.dropout': 0.25})
    network = build.make_forward(config)
    assert network == ResNet((48,), 1, dropout=0.25, periodic=(True, False))


OWN = """
import flax.linen as nn


class Small(nn.Module):
    channels: tuple[int, ...] = (2,)
    periodic: tuple[bool, bool] = (False, False)
    kernel: int = 3

    @nn.compact
    def __call__(self, x, label=None, *, train=False):
        size = (self.kernel, self.kernel)
        h = nn.swish(nn.Conv(self.channels[0], size, padding='CIRCULAR')(x))
        h = h if label is None else h + nn.Dense(self.channels[0])(label[:, None])[:, None, None]
        return nn.Conv(x.shape[-1], size)(h)


class Potential(nn.Module):
    @nn.compact
    def __call__(self, x):
        return (nn.Dense(3)(x) ** 2).sum((1, 2, 3))


class Narrow(Small):
    @nn.compact
    def __call__(self, x, label=None, *, train=False):
        return nn.Dense(x.shape[-1])(x)[:, :, :-1]


class Mute(nn.Module):
    def __call__(self, x):
        return x


def small():
    return Small()
"""


@pytest.fixture
def own(tmp_path):
    (tmp_path / 'own.py').write_text(OWN)
    return lambda name: f'{tmp_path}/own.py:{name}'


def test_a_users_own_networks_are_one_file(own):
    config = tiny(
        mirror__inverse=own('Small'),
        mirror__forward=own('Potential'),
        score__network=own('Small'),
    )
    f = build.make_inverse(config)
    assert (type(f).__name__, f.channels, f.periodic, f.kernel) == ('Small', (8,), (True, False), 3)
    check(config)
    mirror = build.make_mirror(config)
    x = normal(0, 2, *make_problem(config).shape)
    params = mirror.init(jax.random.key(0), x)
    kernel = params['forward']['Dense_0']['kernel']
    curvature = 2 * float((kernel**2).sum())  # of the potential (k x)^2
    np.testing.assert_allclose(
        mirror.forward(params, x), (0.1 * curvature + 0.9) * x, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'mirror__inverse': 'Narrow'}, r'inverse: got an output of shape \(., 16, 15, 1\), expec'),
        (
            {'score__network': 'Narrow'},
            r'score.network: got an output of shape \(., 16, 15, 1\), ex',
        ),
        ({'score__network': 'small'}, 'network: got <function small .*>, expected a class'),
        ({'mirror__inverse': 'Smal'}, "got 'Smal', expected one of .*did you mean Small"),
        (
            {'mirror__inverse': 'Small', 'mirror__fold': 4},
            'mirror.fold: got 4, but mirror.inverse=',
        ),
    ],
)
def test_a_users_own_network_that_cannot_be_used_is_named(own, changes, message):
    changes = {k: own(v) if isinstance(v, str) else v for k, v in changes.items()}
    with pytest.raises(ValueError, match=message):
        check(tiny(**changes), get_config('tiny'))


def test_a_users_own_network_says_how_it_is_called(own):
    spec = own('Mute')
    with pytest.raises(ValueError, match=r'got __call__\(self, x\), expected .* \(z, \*, train=F'):
        check(tiny(mirror__inverse=spec, mirror__channels=(48, 96)))


@pytest.mark.parametrize('size', [(33, 33), (1, 64), (64, 1), (30, 50)])
@pytest.mark.parametrize('periodic', [(True, True), (False, False)])
def test_any_size_is_padded_and_cut(size, periodic):
    x = jnp.zeros((2, *size, 2))
    cell = tuple(n if wraps else 1 for n, wraps in zip(size, periodic, strict=True))
    f = UNet((4, 8), periodic=periodic, cell=cell, global_convolution=True)
    for network in (f, ResNet((2,), 1, periodic=periodic)):
        y, _ = jax.eval_shape(network.init_with_output, jax.random.key(0), x)
        assert y.shape == x.shape
    g = lambda x: gradient_map(ICNN(2, 1, periodic=periodic), params, x, strong_convexity=0.9)
    params = ICNN(2, 1, periodic=periodic).init(jax.random.key(0), x)['params']
    assert jax.eval_shape(g, x).shape == x.shape


def test_padding_wraps_or_reflects_on_both_sides():
    x = jnp.arange(5.0).reshape(1, 5, 1, 1)
    wrapped, place = padded(x, 4, (True, False))
    assert wrapped[0, :, 0, 0].tolist() == [4, 0, 1, 2, 3, 4, 0, 1] and wrapped.shape[2] == 4
    np.testing.assert_array_equal(wrapped[place], x)
    reflected, place = padded(x, 4, (False, False))
    assert reflected[0, :, 0, 0].tolist() == [0, 0, 1, 2, 3, 4, 4, 3]
    np.testing.assert_array_equal(reflected[place], x)
    assert padded(x, 5, (True, True))[0].shape[1] == 5


@pytest.mark.parametrize('periodic', [True, False])
def test_g_is_the_gradient_of_a_convex_function_at_any_size(periodic):
    icnn = ICNN(4, 1, periodic=(periodic, periodic))
    x = jax.random.normal(jax.random.key(1), (6, 3, 5, 1))
    params = icnn.init(jax.random.key(0), x)['params']
    g = gradient_map(icnn, params, x, strong_convexity=0.9)
    pairs = (x[:, None] - x[None]) * (g[:, None] - g[None])
    monotone, square = pairs.sum((2, 3, 4)), jnp.square(x[:, None] - x[None]).sum((2, 3, 4))
    assert (monotone >= 0.9 * square - 1e-4).all()
