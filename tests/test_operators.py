"""Measurement operators: adjoints, exact cases, what the tracks of an interferometer are, and
mistakes.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from namm_jax._checks import check_operator
from namm_jax.inverse import interferometry, operators
from namm_jax.inverse.likelihood import likelihood
from namm_jax.inverse.operators import make_operator
from namm_jax.problems import mosaics as layout

IMAGE, FLOW = (8, 16, 1), (8, 12, 6)
RNG = np.random.default_rng(0)
HOLES = RNG.random((8, 12)) < 0.3
LINEAR = {
    'states': (IMAGE, {'indices': (3, 0, -2)}),
    'first_states': (FLOW, {'k': 2, 'channels_per_state': 2}),
    'first_last': (FLOW, {'channels_per_state': 2}),
    'random_sensors': (FLOW, {'seed': 3}),
    'gridded_sensors': (FLOW, {'every': 3}),
    'inpainting': (FLOW, {'occluded': HOLES}),
    'occluded_box': (IMAGE, {}),
    'downsampling': (FLOW, {'factor': 2, 'blur_std': 1.5}),
    'sparse_fourier': (IMAGE, {}),
    'own': (
        IMAGE,
        {'function': lambda x: jnp.cumsum(x, 2)[:, :, 1:] - 2 * x[:, :, :-1], 'linear': True},
    ),
}


def fields(shape, b=3, seed=1):
    return np.random.default_rng(seed).normal(size=(b, *shape)).astype(np.float32)


def close(a, b, rtol=1e-5, atol=1e-5):
    np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


def measure(name, shape, x, **options):
    return np.asarray(make_operator(name, shape, **options)(jnp.asarray(x)))


def test_every_operator_is_tested():
    assert set(LINEAR) == set(operators.OPERATORS)


@pytest.mark.parametrize('name', LINEAR)
def test_adjoint_and_linearity(name):
    """In float64, so that nothing but round-off is forgiven."""
    shape, options = LINEAR[name]
    with jax.enable_x64(True):
        operator = make_operator(name, shape, **options)
        a, b = (jnp.asarray(fields(shape, seed=seed), jnp.float64) for seed in (1, 2))
        y = operator(a)
        assert operator.linear and y.dtype == jnp.float64
        close(operator(2 * a - 3 * b), 2 * y - 3 * operator(b), 1e-12, 1e-12)
        other = jnp.asarray(np.random.default_rng(3).normal(size=y.shape))
        back = operator.adjoint(other)
        assert back.shape == a.shape and back.dtype == jnp.float64
        close((y * other).sum(), (a * back).sum(), 1e-12, 1e-12)


@pytest.mark.parametrize('name', ['first_last', 'downsampling', 'sparse_fourier', 'own'])
def test_rows_are_samples_and_the_check_passes(name):
    shape, options = LINEAR[name]
    operator, x = make_operator(name, shape, **options), jnp.asarray(fields(shape))
    y = operator(x)
    assert check_operator(operator, shape) == y.shape[1:] and y.dtype == jnp.float32
    close(operator(x[1:2]), y[1:2], atol=1e-6)
    assert operator(x.astype(jnp.bfloat16)).dtype == jnp.float32
    assert likelihood(operator, y, 0.2).y.shape == y.shape


def test_states_of_images_are_columns():
    x = fields(IMAGE)
    np.testing.assert_array_equal(measure('first_states', IMAGE, x, k=5), x[:, :, :5])
    np.testing.assert_array_equal(measure('first_states', IMAGE, x), x[:, :, :2])
    np.testing.assert_array_equal(measure('first_last', IMAGE, x), x[:, :, [0, 15]])
    np.testing.assert_array_equal(measure('states', IMAGE, x, indices=[4, -1]), x[:, :, [4, 15]])
    np.testing.assert_array_equal(measure('states', IMAGE, x, indices=range(16)), x)


def test_states_of_packed_flows_are_packed_flows():
    x = fields(FLOW)
    packed = layout.packed_to_states(jnp.asarray(x), 3)
    for indices in ((0,), (0, -1), (2, 1)):
        y = measure('states', FLOW, x, indices=indices, channels_per_state=2)
        np.testing.assert_array_equal(y, layout.states_to_packed(packed[:, np.array(indices)]))
    np.testing.assert_array_equal(
        measure('first_last', FLOW, x, channels_per_state=2), x[..., [0, 1, 4, 5]]
    )
    np.testing.assert_array_equal(
        measure('first_states', FLOW, x, channels_per_state=2), x[..., :2]
    )


def test_places_select_states_of_mosaics():
    shape, x = (4, 8, 2), fields((4, 8, 2))
    tiles = layout.tiled_to_states(jnp.asarray(operators.places(shape), float)[None], 2)[0]
    operator = operators.selection(shape, at=tiles[-1:])
    np.testing.assert_array_equal(
        operator(jnp.asarray(x)), layout.tiled_to_states(jnp.asarray(x), 2)[:, -1:]
    )


def test_sensors():
    x = fields(FLOW)
    np.testing.assert_array_equal(measure('gridded_sensors', FLOW, x, every=3), x[:, 1::3, 1::3])
    y = measure('random_sensors', FLOW, x, n=10, seed=4)
    rows = x.reshape(3, -1, 6)
    found = [np.flatnonzero((rows[0] == pixel).all(-1)).item() for pixel in y[0]]
    assert sorted(set(found)) == found and len(found) == 10, 'ten pixels, each once, in order'
    np.testing.assert_array_equal(y, rows[:, found])
    np.testing.assert_array_equal(y, measure('random_sensors', FLOW, x, n=10, seed=4))
    np.testing.assert_array_equal(measure('random_sensors', FLOW, x, n=96), rows)
    assert measure('random_sensors', FLOW, x).shape == (3, 6, 6)
    assert not np.array_equal(
        measure('random_sensors', FLOW, x, seed=0), measure('random_sensors', FLOW, x, seed=1)
    )


def test_a_mask_and_its_complement_see_each_entry_once():
    x = fields(FLOW)
    both = [make_operator('inpainting', FLOW, occluded=mask) for mask in (HOLES, ~HOLES)]
    y = [operator(jnp.asarray(x)) for operator in both]
    np.testing.assert_array_equal(y[0], x[:, ~HOLES])
    back = [operator.adjoint(part) for operator, part in zip(both, y, strict=True)]
    np.testing.assert_array_equal(back[0] + back[1], x)
    assert not np.asarray(back[0])[:, HOLES].any()
    entries = RNG.random(FLOW) < 0.5
    np.testing.assert_array_equal(measure('inpainting', FLOW, x, occluded=entries), x[:, ~entries])


def test_an_occluded_box():
    x = np.zeros((1, 8, 16, 1), np.float32)
    x[:, 2:6, 4:12] = 1
    assert (
        measure('occluded_box', IMAGE, 1 - x).all() and not measure('occluded_box', IMAGE, x).any()
    )
    assert measure('occluded_box', IMAGE, x).shape == (1, 128 - 32, 1)
    assert measure('occluded_box', IMAGE, x, box=(0, 0, 4, 8)).sum() == 32 - 8


@pytest.mark.parametrize('border', ['periodic', 'reflecting'])
@pytest.mark.parametrize('std', [0.0, 0.7, 9.0])
def test_blur_keeps_constants(border, std):
    y = measure(
        'downsampling',
        FLOW,
        np.full((2, *FLOW), 3.0, np.float32),
        factor=4,
        blur_std=std,
        border=border,
    )
    close(y, np.full((2, 2, 3, 6), 3.0))


def test_blur_of_zero_width_decimates_and_of_great_width_averages():
    x = fields(FLOW)
    y = measure('downsampling', FLOW, x, factor=4, blur_std=0.0)
    np.testing.assert_array_equal(y, measure('gridded_sensors', FLOW, x, every=4))
    for border in ('periodic', 'reflecting'):
        y = measure('downsampling', FLOW, x, factor=2, blur_std=60.0, border=border)
        close(y, np.broadcast_to(x.mean((1, 2), keepdims=True), y.shape), atol=1e-3)


def test_periodic_blur_is_a_factor_per_frequency():
    """A Gaussian damps cos(2 pi k i / n) by exp(-(2 pi k std / n)^2 / 2)."""
    wave = np.cos(2 * np.pi * 2 * np.arange(32) / 32)
    x = np.broadcast_to(wave[None, :, None, None], (1, 32, 32, 1)).astype(np.float32)
    y = measure('downsampling', (32, 32, 1), x, factor=1, blur_std=2.0, border='periodic')
    close(
        y, x * np.exp(-((2 * np.pi * 2 * 2 / 32) ** 2) / 2), atol=3e-4
    )  # the tails beyond four deviations are cut


def test_blur_at_the_border():
    x = np.zeros((1, 16, 16, 1), np.float32)
    x[:, 0] = 1
    periodic, reflecting = (
        measure('downsampling', (16, 16, 1), x, factor=1, blur_std=1.0, border=border)[0, :, 0, 0]
        for border in ('periodic', 'reflecting')
    )
    close(periodic[1:], periodic[:0:-1])
    assert reflecting[-1] == 0 and periodic[-1] > 0.2
    close(reflecting[0] - periodic[0], periodic[1])  # its own mirror image, one pixel away
    close(reflecting.sum(), 1)


def test_a_point_source_has_a_known_phase():
    uv = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [-2.5, 0.75]])
    x = np.zeros((1, 8, 16, 1), np.float32)
    x[0, 1, 12] = 2
    right, up = 12.5 / 16 - 0.5, 0.5 - 1.5 / 8
    expected = 2 * np.exp(-2j * np.pi * (uv @ [right, up]))
    y = measure('sparse_fourier', IMAGE, x, uv=uv)[0]
    close(y[:, 0] + 1j * y[:, 1], expected)


def test_frequency_zero_is_the_total_and_integers_are_the_fft():
    x = fields((8, 8, 1))
    k, row = np.meshgrid(np.arange(-3, 4), np.arange(-3, 4))
    y = measure('sparse_fourier', (8, 8, 1), x, uv=np.stack([k.ravel(), row.ravel()], -1))
    y = y[..., 0] + 1j * y[..., 1]
    close(y[:, 24], x.sum((1, 2, 3)))
    shift = np.exp(-2j * np.pi * (k * (0.5 / 8 - 0.5) + row * (0.5 - 0.5 / 8)))
    close(y, (shift * np.fft.fft2(x[..., 0])[:, -row, k]).reshape(3, -1), atol=2e-5)


def test_tracks_are_ellipses_of_the_whole_array():
    """At declination d: `u^2 + ((v - B_z cos d) / sin d)^2 = B_x^2 + B_y^2`, whatever the hour
    angle.
    """
    pair = {'PV': interferometry.STATIONS['PV'], 'LMT': interferometry.STATIONS['LMT']}
    uv = interferometry.eht_coverage(stations=pair, interval=5.0)
    unit = interferometry.EARTH_RADIUS / 1.3e-3 * 160 * interferometry.MICROARCSECOND
    z = unit * np.diff(np.sin(np.deg2rad([37.07, 18.99]))).item()
    d = np.deg2rad(12.4)
    radius = uv[:, 0] ** 2 + ((uv[:, 1] - z * np.cos(d)) / np.sin(d)) ** 2
    assert len(uv) > 10
    close(radius, radius[0], rtol=1e-9)
    (a, b), turn = np.deg2rad([37.07, 18.99]), np.deg2rad(97.31 - 3.39)
    arc = np.arccos(np.sin(a) * np.sin(b) + np.cos(a) * np.cos(b) * np.cos(turn))
    close(np.sqrt(radius[0] + z**2), unit * 2 * np.sin(arc / 2), rtol=1e-9)


def test_coverage_at_known_geometry():
    """Over the meridian midway between two stations on the equator, their baseline points east and
    is seen in full.
    """
    equator = {'west': (0.0, -30.0), 'east': (0.0, 30.0)}
    options = {'stations': equator, 'declination': 0.0, 'interval': 60.0}
    uv = interferometry.eht_coverage(
        hours=(0.0, 0.0), wavelength=interferometry.EARTH_RADIUS / 1e9, **options
    )
    close(uv, [[1e9 * 160 * interferometry.MICROARCSECOND, 0]], rtol=1e-9)
    # The source rises over the western one at H = -4 h and sets over the eastern one at 4 h.
    hours = interferometry.eht_coverage(hours=(-12.0, 12.0), elevation=1e-6, **options)
    assert len(hours) == 7, 'from -3 to 3'
    with pytest.raises(ValueError, match='stations: got none'):
        interferometry.eht_coverage(stations={'SPT': (-90.0, 0.0), **{'PV': (37.07, -3.39)}})


def test_coverage_of_the_telescope():
    uv = interferometry.eht_coverage()
    longest = np.hypot(*uv.T).max()
    assert 100 < len(uv) < 400 and 5 < longest < 7.6, (
        'the real array reaches 8 G wavelengths: 6.2 a field of view'
    )
    np.testing.assert_array_equal(uv, interferometry.eht_coverage())
    close(interferometry.eht_coverage(field_of_view=80.0), uv / 2, rtol=1e-12)


def test_operators_of_one_kind_share_a_program():
    traced = []

    @jax.jit
    def apply(operator, x):
        traced.append(None)
        return operator(x)

    x = jnp.asarray(fields(FLOW))
    outputs = [apply(make_operator('random_sensors', FLOW, seed=seed), x) for seed in (0, 1)]
    assert len(traced) == 1 and not np.array_equal(*outputs)
    one = jax.vmap(lambda x: make_operator('gridded_sensors', FLOW)(x[None])[0])(x)
    np.testing.assert_array_equal(one, make_operator('gridded_sensors', FLOW)(x))


def test_a_nonlinear_operator_of_ones_own():
    operator = make_operator('own', IMAGE, function=lambda x: jnp.tanh(x).mean((1, 2)))
    assert check_operator(operator, IMAGE) == (1,)
    with pytest.raises(ValueError, match='adjoint: got an operator with linear=False'):
        operator.adjoint(jnp.ones((2, 1)))


@pytest.mark.parametrize(
    ('change', 'noise_std', 'message'),
    [
        (
            lambda y: y[0],
            0.2,
            r'y: got shape \(8, 2, 1\), expected \(b, 8, 2, 1\), b measurements; add the batch',
        ),
        (lambda y: y[:, :-1], 0.2, r'y: got shape \(3, 7, 2, 1\), expected \(b, 8, 2, 1\)'),
        (lambda y: y[:0], 0.2, r'y: got shape \(0, 8, 2, 1\)'),
        (lambda y: y.astype(complex), 0.2, 'y: got complex128, expected real numbers'),
        (lambda y: y.astype(str), 0.2, 'y: got <U32, expected real numbers'),
        (
            lambda y: np.where(np.arange(3)[:, None, None, None] == 1, np.nan, y),
            0.2,
            'in 1 of 3 .*first of index 1',
        ),
        (lambda y: y, 0.0, 'noise_std: got 0.0, expected one finite number > 0'),
        (lambda y: y, -1, 'noise_std: got -1'),
        (lambda y: y, np.nan, 'noise_std: got nan'),
        (lambda y: y, np.inf, 'noise_std: got inf'),
        (lambda y: y, np.ones(3), 'noise_std: got .*expected one finite number'),
    ],
)
def test_measurements_that_cannot_be_are_refused(change, noise_std, message):
    y = fields(IMAGE)[:, :, :2]
    with pytest.raises(ValueError, match=message):
        likelihood(make_operator('first_states', IMAGE), change(y), noise_std)


@pytest.mark.parametrize(
    ('name', 'shape', 'options', 'message'),
    [
        ('first_state', IMAGE, {}, "operator: got 'first_state', .*did you mean first_states"),
        (
            'first_states',
            FLOW,
            {},
            r'shape: got \(8, 12, 6\), expected \(h, w, 1\).*channels_per_state, 2 for flows',
        ),
        (
            'first_states',
            FLOW,
            {'channels_per_state': 4},
            'channels_per_state: got 4, expected a divisor of the 6',
        ),
        ('first_states', IMAGE, {'k': 0}, 'places: got 0 of them'),
        ('first_states', IMAGE, {'k': 17}, r'indices: got .*16\), expected states in \[-16, 16\)'),
        ('states', IMAGE, {'indices': (0, -16)}, 'places: got 8 of 16 twice'),
        ('first_last', (8, 8, 2), {'channels_per_state': 2}, 'twice'),
        (
            'random_sensors',
            IMAGE,
            {'n': 129},
            r'n: got 129 sensors, expected a number in \[1, 128\]',
        ),
        ('gridded_sensors', IMAGE, {'every': 9}, r'every: got 9, .*\[1, 8\]'),
        (
            'inpainting',
            FLOW,
            {'occluded': HOLES[1:]},
            r'occluded: got bool of shape \(7, 12\), expected booleans',
        ),
        ('inpainting', FLOW, {'occluded': 1.0 * HOLES}, 'occluded: got float64'),
        ('inpainting', FLOW, {'occluded': HOLES | True}, 'places: got 0 of them'),
        ('occluded_box', IMAGE, {'box': (0, 10, 4, 7)}, r'box: got \(0, 10, 4, 7\)'),
        (
            'downsampling',
            IMAGE,
            {'factor': 3},
            'factor: got 3, expected a divisor of the height 8 and the width 16',
        ),
        ('downsampling', IMAGE, {'blur_std': -1.0}, 'blur_std: got -1.0'),
        (
            'downsampling',
            IMAGE,
            {'border': 'reflect'},
            "border: got 'reflect', .*did you mean reflecting",
        ),
        ('sparse_fourier', FLOW, {}, r'shape: got \(8, 12, 6\), expected \(h, w, 1\)'),
        ('sparse_fourier', IMAGE, {'uv': np.ones((3, 3))}, r'uv: got shape \(3, 3\)'),
        ('first_last', (8, 8), {}, r'shape: got \(8, 8\), expected \(h, w, c\)'),
        ('gridded_sensors', (8, 8), {}, r'shape: got \(8, 8\), expected \(h, w, c\)'),
    ],
)
def test_builders_refuse(name, shape, options, message):
    with pytest.raises(ValueError, match=message):
        make_operator(name, shape, **options)


def test_shapes_that_do_not_match_are_refused():
    operator = make_operator('first_states', IMAGE)
    with pytest.raises(ValueError, match=r'x: got shape \(3, 8, 12, 1\), expected \(b, 8, 16, 1\)'):
        operator(jnp.ones((3, 8, 12, 1)))
    with pytest.raises(ValueError, match=r'y: got shape \(3, 8, 3, 1\), expected \(b, 8, 2, 1\)'):
        operator.adjoint(jnp.ones((3, 8, 3, 1)))
    with pytest.raises(ValueError, match='interval: got 0'):
        interferometry.eht_coverage(interval=0.0)


WAVES = make_operator('gridded_sensors', IMAGE)
PERIOD = np.float32(2 * np.pi)


def wrapped(y, Ax):
    """Phases in radians, noise of 0.1: neither y nor the prediction is told but up to turns."""
    principal = lambda angle: angle - PERIOD * jnp.round(angle / PERIOD)
    return principal(principal(y) - principal(Ax)) / 0.1


def test_white_noise_is_the_law_of_an_operator_without_one():
    x, y = jnp.asarray(fields(IMAGE)), jnp.asarray(fields((2, 4, 1), seed=5))
    of_y = likelihood(WAVES, y, 0.3)
    np.testing.assert_array_equal(of_y.residual(x), ((y - WAVES(x)) / 0.3).reshape(3, -1))
    close(of_y.log_density(x), -(of_y.misfit(x) ** 2) / 2)
    close(of_y.misfit_per_value(x), of_y.misfit(x) / np.sqrt(8))
    close(of_y.precision(), 1 / 0.3**2)
    for_all = likelihood(WAVES, y[:1], 0.3)
    np.testing.assert_array_equal(for_all.residual(x)[0], of_y.residual(x)[0])


def test_a_law_of_ones_own_is_a_leaf_of_the_operator_and_stays_after_a_map():
    factor = jnp.asarray([[2.0, 0.0], [1.0, 3.0]])
    law = jax.tree_util.Partial(lambda factor, y, Ax: (y - Ax) @ factor, factor)
    operator = make_operator('own', IMAGE, function=lambda x: x.sum((1, 2)) ** 2, whiten=law)
    pair = make_operator('own', IMAGE, function=lambda x: x[:, 0, :2, 0], whiten=law)
    assert len(jax.tree.leaves(operator)) == 1
    x, y = jnp.asarray(fields(IMAGE)), jnp.asarray([[0.3, -0.4]])
    direct = jax.jit(lambda pair, x: likelihood(pair, y).residual(x))(pair, x)
    close(direct, (y - x[:, 0, :2, 0]) @ factor)
    f = jax.tree_util.Partial(jnp.multiply, jnp.float32(0.5))
    composed = jax.jit(lambda measure, z: likelihood(measure, y).residual(z))(pair.after(f), 2 * x)
    close(composed, direct)
    close(likelihood(pair.after(f), y).precision(), (4 + 1 + 9) / 2, rtol=0.3)


def test_a_periodic_law_does_not_see_whole_turns():
    operator = make_operator('own', IMAGE, function=lambda x: x[:, 1, 3:7, 0], whiten=wrapped)
    x = jnp.asarray(3 * fields(IMAGE))
    # Multiples of 2^-21, the spacing of floats at 2 pi: adding a turn rounds nothing.
    y = np.round(np.asarray([[1.5, -1.25, 0.1, -0.7]]) * 2**21) / 2**21
    once, turned = (likelihood(operator, y + turn, None) for turn in (0, float(PERIOD)))
    assert float(jnp.abs(once.y - turned.y).min()) > 6
    np.testing.assert_array_equal(once.residual(x), turned.residual(x))
    gradient = lambda of_y: jax.grad(lambda x: of_y.misfit(x).sum())(x)
    np.testing.assert_array_equal(gradient(once), gradient(turned))
    assert float(jnp.abs(once.residual(x)).max()) <= np.pi / 0.1 + 1e-3


def test_a_multiplicative_law_does_not_see_the_unit():
    operator = make_operator(
        'own', IMAGE, function=jnp.exp, whiten=lambda y, Ax: (y - Ax) / (0.1 * Ax)
    )
    x = jnp.asarray(fields(IMAGE))
    y = operator(x) * (1 + 0.1 * jnp.asarray(fields(IMAGE, seed=2)))
    close(likelihood(operator, y).residual(x), fields(IMAGE, seed=2).reshape(3, -1), atol=1e-4)


@pytest.mark.parametrize(
    ('operator', 'noise_std', 'message'),
    [
        (WAVES, None, 'noise_std: got none, expected one of the two; .*give it where it has none'),
        (
            make_operator('own', IMAGE, function=lambda x: x, whiten=wrapped),
            0.1,
            'noise_std: got 0.1 and an operator with a noise law of its own, .*leave noise_std out',
        ),
        (lambda x: x, None, 'noise_std: got none'),
    ],
)
def test_a_noise_is_told_once(operator, noise_std, message):
    with pytest.raises(ValueError, match=message):
        likelihood(operator, jnp.zeros((1, 2, 4, 1)), noise_std)


def test_a_law_that_mixes_samples_is_refused():
    operator = make_operator('own', IMAGE, function=lambda x: x, whiten=lambda y, Ax: (y - Ax)[0])
    with pytest.raises(ValueError, match=r'whiten: got float32 of shape \(8, 16, 1\), expected'):
        likelihood(operator, jnp.zeros((3, *IMAGE))).residual(jnp.zeros((3, *IMAGE)))
