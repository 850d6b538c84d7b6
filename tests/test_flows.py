"""Kolmogorov flow: its discrete operators, the solver against exact solutions, layouts, data and
both rules.
"""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from namm_jax._arrays import Constraint
from namm_jax.problems import kolmogorov_flow as flows
from namm_jax.problems import mosaics
from namm_jax.problems.kolmogorov_flow import Kolmogorov

SMALL = Kolmogorov(points=16, states=4, inner_steps=3, dt=0.02, reynolds=100.0, burn_in=0.12)
TILED = dataclasses.replace(SMALL, layout='tiled')
DIVERGENCE, TRAJECTORIES = SMALL.constraint('divergence'), SMALL.constraint('kolmogorov')
TILED_DIVERGENCE = TILED.constraint('divergence')
KEYS = jax.random.split(jax.random.key(0), 2)

# Compiled once each, for the shapes of two samples.
SAMPLE = jax.jit(SMALL.fields)
START = jax.jit(jax.vmap(SMALL.start))
INTERVAL = jax.jit(lambda v: SMALL.interval()(v))
PROJECT = jax.jit(flows.project)
DISTANCE = jax.jit(lambda constraint, x: constraint.distance(x))


@pytest.fixture(scope='module')
def packed():
    return SAMPLE(KEYS)


@pytest.fixture(scope='module')
def tiled(packed):
    return SMALL.unpack(packed)


def _normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def _angles(points):
    """Returns where component 0 is, and where component 1 is, as `(x, y)` each,
    `(points, points)`.
    """
    face, centre = (
        (np.arange(points) + 1) * 2 * np.pi / points,
        (np.arange(points) + 0.5) * 2 * np.pi / points,
    )
    return np.meshgrid(face, centre, indexing='ij'), np.meshgrid(centre, face, indexing='ij')


def _taylor_green(points):
    """Returns the velocity `(cos x sin y, -sin x cos y)`, which decays and does not change its
    shape.
    """
    (x_u, y_u), (x_v, y_v) = _angles(points)
    return jnp.asarray(
        np.stack([np.cos(x_u) * np.sin(y_u), -np.sin(x_v) * np.cos(y_v)], -1), jnp.float32
    )


def _from_stream_function(psi, dx):
    """Returns the velocity `(d psi / dy, -d psi / dx)` by backward differences, free of divergence
    by construction.
    """
    return jnp.stack([psi - jnp.roll(psi, 1, -1), jnp.roll(psi, 1, -2) - psi], -1) / dx


def _mean_divergence(v):
    return float(jnp.abs(flows.divergence(v)).mean())


def test_divergence_is_that_of_backward_differences():
    v, dx = _normal(1, 2, 16, 16, 2), SMALL.dx
    along_rows = (v[..., 0] - jnp.roll(v[..., 0], 1, 1)) / dx
    along_columns = (v[..., 1] - jnp.roll(v[..., 1], 1, 2)) / dx
    np.testing.assert_allclose(flows.divergence(v), along_rows + along_columns, atol=1e-5)
    np.testing.assert_allclose(flows.divergence(v[0]), flows.divergence(v)[0], atol=1e-6)


def test_vorticity_of_taylor_green_vortices():
    corner = (np.arange(16) + 1) * SMALL.dx
    # A difference over dx of a sine of wavenumber 1 is its derivative at the middle, times
    # sin(dx/2) / (dx/2).
    expected = -2 * np.outer(np.cos(corner), np.cos(corner)) * np.sin(SMALL.dx / 2) / (SMALL.dx / 2)
    np.testing.assert_allclose(flows.vorticity(_taylor_green(16)), expected, atol=1e-5)
    np.testing.assert_allclose(flows.divergence(_taylor_green(16)), 0, atol=1e-5)


def test_projection_is_orthogonal_onto_the_divergence_free_fields():
    noise, free = (
        _normal(2, 64, 64, 2),
        _from_stream_function(0.1 * _normal(3, 64, 64), 2 * np.pi / 64),
    )
    projected = PROJECT(jnp.stack([noise, free]))
    assert _mean_divergence(noise) == pytest.approx(16.3, rel=0.05)
    assert _mean_divergence(projected[0]) < 1e-6 * 16.3
    np.testing.assert_allclose(projected[1], free, atol=1e-5)
    np.testing.assert_allclose(PROJECT(projected), projected, atol=1e-5)
    removed = noise - projected[0]
    assert float(jnp.linalg.norm(removed)) > 0.5 * float(jnp.linalg.norm(noise))
    assert abs(float(jnp.vdot(removed, free))) < 1e-5 * float(
        jnp.linalg.norm(removed) * jnp.linalg.norm(free)
    )
    np.testing.assert_allclose(projected[0].mean((0, 1)), noise.mean((0, 1)), atol=1e-6)


# Eigenvalues of minus three discrete second derivatives at wavenumber k.
SYMBOLS = {
    'staggered': lambda k, dx: (2 * np.sin(k * dx / 2) / dx) ** 2,
    'spectral': lambda k, dx: k**2,
    'central': lambda k, dx: (np.sin(k * dx) / dx) ** 2,
}


@pytest.mark.parametrize(
    ('name', 'works'), [('staggered', True), ('spectral', False), ('central', False)]
)
def test_only_the_symbol_of_the_same_operator_removes_the_divergence(name, works):
    v, dx = np.asarray(_normal(2, 64, 64, 2), np.float64), 2 * np.pi / 64
    one_dimensional = SYMBOLS[name](np.fft.fftfreq(64, 1 / 64), dx)
    symbol = one_dimensional[:, None] + one_dimensional
    inverse = np.where(symbol > 1e-9, -1 / np.maximum(symbol, 1e-9), 0)
    source = (v[..., 0] - np.roll(v[..., 0], 1, 0) + v[..., 1] - np.roll(v[..., 1], 1, 1)) / dx
    q = np.fft.ifft2(inverse * np.fft.fft2(source)).real
    projected = v - np.stack([np.roll(q, -1, 0) - q, np.roll(q, -1, 1) - q], -1) / dx
    ratio = _mean_divergence(jnp.asarray(projected, jnp.float32)) / _mean_divergence(
        jnp.asarray(v, jnp.float32)
    )
    assert ratio < 1e-5 if works else ratio > 0.1
    if works:
        np.testing.assert_allclose(
            projected, PROJECT(jnp.asarray(np.stack([v, v]), jnp.float32))[0], atol=1e-5
        )


def test_the_start_is_free_of_divergence_and_as_fast_as_stated():
    v = START(KEYS)
    chex.assert_shape(v, (2, 16, 16, 2))
    np.testing.assert_allclose(
        jnp.linalg.norm(v, axis=-1).max((1, 2)), SMALL.max_velocity, rtol=1e-5
    )
    np.testing.assert_allclose(v.mean((1, 2)), 0, atol=1e-5)
    assert _mean_divergence(v) < 1e-5
    assert float(jnp.abs(v[0] - v[1]).max()) > 0.5


def test_the_step_against_laminar_flow_and_the_momentum_law():
    # From rest the force drives the shear flow u(y) = a sin(4 y), on which advection and pressure
    # do not act: a' = forcing + (drag - viscosity L) a, L the eigenvalue of the discrete Laplacian.
    # Only drag acts on the mean.
    mean = np.array([0.5, -0.25])
    rest, moving = INTERVAL(jnp.stack([jnp.zeros((16, 16, 2)), START(KEYS)[0] + mean]))
    rate = SMALL.drag - SMALL.viscosity * (2 - 2 * np.cos(4 * SMALL.dx)) / SMALL.dx**2
    amplitude = 0.0
    for _ in range(SMALL.inner_steps):
        amplitude += SMALL.dt * (SMALL.forcing + rate * amplitude)
    (_, y), _ = _angles(16)
    np.testing.assert_allclose(rest[..., 0], amplitude * np.sin(4 * y), atol=1e-6)
    np.testing.assert_allclose(rest[..., 1], 0, atol=1e-6)
    np.testing.assert_allclose(
        moving.mean((0, 1)), mean * (1 + SMALL.drag * SMALL.dt) ** 3, atol=1e-5
    )
    assert _mean_divergence(moving) < 1e-5


def test_taylor_green_vortices_decay_at_the_viscous_rate():
    problem = Kolmogorov(points=16, states=1, reynolds=2.0, forcing=0.0, drag=0.0)
    # Small, so that what the advection scheme diffuses of its own does not count.
    v = 1e-3 * _taylor_green(16)
    decay = np.exp(-2 * 0.5 * 20 * 0.01)
    np.testing.assert_allclose(jax.jit(problem.interval())(v), decay * v, atol=3e-6)


def test_the_step_keeps_its_dtype():
    with jax.enable_x64(True):
        for dtype in (jnp.float32, jnp.float64):
            assert (
                jax.eval_shape(SMALL.interval(), jax.ShapeDtypeStruct((16, 16, 2), dtype)).dtype
                == dtype
            )


@pytest.mark.parametrize('k', [1, 3, 4, 8])
def test_layouts_round_trip(k):
    states = jnp.arange(2.0 * k * 3 * 5 * 2).reshape(2, k, 3, 5, 2)
    tiled, packed = mosaics.states_to_tiled(states), mosaics.states_to_packed(states)
    chex.assert_shape(tiled, (2, 3 * (2 if k == 8 else 1), 5 * min(k, 4), 2))
    chex.assert_shape(packed, (2, 3, 5, 2 * k))
    chex.assert_trees_all_equal(mosaics.tiled_to_states(tiled, k), states)
    chex.assert_trees_all_equal(mosaics.packed_to_states(packed, k), states)
    last = k - 1
    row, column = last // 4, last % 4
    chex.assert_trees_all_equal(
        tiled[:, 3 * row : 3 * row + 3, 5 * column : 5 * column + 5], states[:, last]
    )
    chex.assert_trees_all_equal(packed[..., 2 * last + 1], states[:, last, ..., 1])


def test_layout_errors():
    with pytest.raises(ValueError, match='Got 6 states, expected 1, 2, 3 or a multiple of 4'):
        mosaics.states_to_tiled(jnp.zeros((1, 6, 3, 5, 2)))
    with pytest.raises(
        ValueError, match=r'Got x of shape \(1, 5, 8, 2\), expected \(b, 2 h, 4 w, c\) for 8 states'
    ):
        mosaics.tiled_to_states(jnp.zeros((1, 5, 8, 2)), 8)


def test_problem_shapes_and_packing(tiled, packed):
    assert (SMALL.file_shape, SMALL.shape, TILED.shape) == ((16, 64, 2), (16, 16, 8), (16, 64, 2))
    assert (Kolmogorov().file_shape, Kolmogorov().shape) == ((128, 256, 2), (64, 64, 16))
    assert SMALL.cell == (1, 4) and TILED.cell == (1, 64)
    chex.assert_shape((packed, tiled), ((2, 16, 16, 8), (2, 16, 64, 2)))
    chex.assert_trees_all_equal(SMALL.pack(tiled), packed)
    chex.assert_trees_all_equal(TILED.pack(tiled), tiled)
    chex.assert_trees_all_equal(TILED.unpack(tiled), tiled)
    for problem, x in ((SMALL, packed), (TILED, tiled)):
        chex.assert_trees_all_equal(problem.from_states(problem.to_states(x)), x)
        chex.assert_trees_all_equal(problem.seamless(x), packed)
        chex.assert_trees_all_equal(problem.first_states(x), packed[..., :2])


def test_mosaics_put_each_image_on_its_state(tiled, packed):
    images = SMALL.image(packed)
    chex.assert_shape(images, (2, 16, 64))
    np.testing.assert_allclose(images[:, :, 48:], flows.vorticity(tiled[:, :, 48:]), atol=1e-4)
    # Pairs of states have one image fewer: the first state follows from none.
    lengths = mosaics.mosaic(jnp.ones((2, 3, 16, 16, 2)), 4)
    np.testing.assert_allclose(lengths[:, :, :16], 0)
    np.testing.assert_allclose(lengths[:, :, 16:], np.sqrt(2), rtol=1e-6)


def test_the_residual_map_of_a_sum_is_the_sum_of_the_maps(packed):
    both, noisy = SMALL.constraint('divergence+kolmogorov'), packed + 0.1 * _normal(5, 2, 16, 16, 8)
    maps = [SMALL.residual_map(rule, noisy) for rule in (both, DIVERGENCE, TRAJECTORIES)]
    chex.assert_shape(maps, (2, 16, 64))
    np.testing.assert_allclose(maps[0], maps[1] + maps[2], atol=1e-5)
    absolute = jnp.abs(DIVERGENCE.residual(noisy))
    np.testing.assert_allclose(maps[1][:, :, 16:32], absolute[:, 1], atol=1e-5)


def test_data_start_after_the_burn_in_and_depend_on_their_keys_alone(packed):
    chex.assert_shape(packed, (2, 16, 16, 8))
    assert packed.dtype == jnp.float32
    np.testing.assert_allclose(packed[..., :2], INTERVAL(INTERVAL(START(KEYS))), atol=5e-5)
    np.testing.assert_allclose(SAMPLE(KEYS[::-1]), packed[::-1], atol=5e-5)


def test_data_satisfy_both_constraints(tiled, packed):
    for constraint, x in (
        (DIVERGENCE, packed),
        (TILED_DIVERGENCE, tiled),
        (TRAJECTORIES, packed),
    ):
        assert isinstance(constraint, Constraint)
        assert jax.tree.leaves(constraint) == []
        chex.assert_shape(DISTANCE(constraint, x), (2,))
        assert float(DISTANCE(constraint, x).max()) < 1e-5
    backwards = SMALL.from_states(SMALL.to_states(packed)[:, ::-1])
    assert float(DISTANCE(DIVERGENCE, backwards).max()) < 1e-5
    assert float(DISTANCE(TRAJECTORIES, backwards).min()) > 0.01


def test_the_solver_is_invariant_along_the_force_and_by_its_period_across(packed):
    distance = functools.partial(DISTANCE, TRAJECTORIES)
    assert float(distance(jnp.roll(packed, 1, 1)).max()) < 1e-5
    assert float(distance(jnp.roll(packed, 4, 2)).max()) < 1e-5
    assert float(distance(jnp.roll(packed, 1, 2)).min()) > 0.01
    assert float(DISTANCE(DIVERGENCE, jnp.roll(packed, (1, 1), (1, 2))).max()) < 1e-5


def test_projection_restores_every_state_of_either_layout(tiled):
    assert list(DIVERGENCE.restores) == ['projection']
    noisy = tiled + 0.1 * _normal(4, *tiled.shape)
    assert float(DISTANCE(TILED_DIVERGENCE, noisy).min()) > 0.1
    restored, info = jax.jit(TILED_DIVERGENCE.restore)(jnp.concatenate([noisy, tiled]))
    assert info == {}
    assert float(DISTANCE(TILED_DIVERGENCE, restored[:2]).max()) < 1e-5
    np.testing.assert_allclose(restored[2:], tiled, atol=1e-5)
    # The divergence-free fields are half of all: half of the noise's energy goes.
    ratio = ((restored[:2] - tiled) ** 2).sum() / ((noisy - tiled) ** 2).sum()
    assert float(ratio) == pytest.approx(0.5, rel=0.1)


def test_resolving_keeps_the_first_state_and_the_data(packed):
    assert list(TRAJECTORIES.restores) == ['resolve']
    noisy = packed.at[..., 2:].add(0.1)
    restored, info = jax.jit(TRAJECTORIES.restore)(noisy)
    assert info == {}
    np.testing.assert_allclose(restored, packed, atol=5e-5)
    chex.assert_trees_all_equal(restored[..., :2], packed[..., :2])


def test_the_first_states_of_a_flow_give_the_flow(packed):
    rolled = jax.jit(SMALL.rollout)(SMALL.first_states(packed))
    np.testing.assert_allclose(rolled, packed, atol=5e-5)
    first = jax.ShapeDtypeStruct((3, 16, 16, 2), jnp.float32)
    assert jax.eval_shape(TILED.rollout, first).shape == (3, *TILED.shape)


def test_any_first_states_give_a_flow_without_divergence():
    v = _normal(6, 2, 16, 16, 2)
    x = jax.jit(SMALL.rollout)(v)
    for constraint in (DIVERGENCE, TRAJECTORIES):
        assert float(DISTANCE(constraint, x).max()) < 1e-5
    np.testing.assert_allclose(SMALL.first_states(x), PROJECT(v), atol=1e-5)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'points': 2}, 'points: got 2, expected at least 4'),
        ({'states': 6}, 'multiple of 4'),
        ({'inner_steps': 0}, 'inner_steps: got 0, expected at least 1'),
        ({'dt': 0.0}, 'dt: got 0.0, expected more than 0'),
        ({'dt': 0.1}, 'take a smaller dt'),
        ({'reynolds': 1.0}, 'take a smaller dt'),
        ({'reynolds': 0.0}, 'reynolds: got 0.0, expected more than 0'),
        ({'reynolds': float('nan')}, 'reynolds: got nan'),
        ({'drag': 0.1}, 'drag: got 0.1, expected at most 0'),
        ({'forcing_wavenumber': 40}, 'does not resolve the force'),
        ({'burn_in': 0.015}, 'whole number of time steps'),
        (
            {'layout': 'tile'},
            "layout: got 'tile', expected one of packed, tiled; did you mean tiled",
        ),
    ],
)
def test_problem_errors(change, message):
    with pytest.raises(ValueError, match=message):
        Kolmogorov(**change)


def test_errors_of_arrays_keys_and_constraints():
    with pytest.raises(
        ValueError, match=r'Got v of shape \(4, 4, 3\), expected \(\.\.\., h, w, 2\)'
    ):
        flows.divergence(jnp.zeros((4, 4, 3)))
    with pytest.raises(
        ValueError, match=r'Got v of shape \(8, 8, 2\), expected \(\.\.\., 16, 16, 2\)'
    ):
        SMALL.interval()(jnp.zeros((8, 8, 2)))
    with pytest.raises(
        ValueError, match=r'Got x of shape \(2, 16, 64, 2\), expected \(b, 16, 16, 8\)'
    ):
        DIVERGENCE.distance(jnp.zeros((2, 16, 64, 2)))
    with pytest.raises(
        ValueError, match=r'u_0: got shape \(16, 16, 2\), expected \(b, 16, 16, 2\)'
    ):
        SMALL.rollout(jnp.zeros((16, 16, 2)))
    with pytest.raises(ValueError, match='states = 1, expected at least 2'):
        dataclasses.replace(SMALL, states=1).constraint('kolmogorov')
    with pytest.raises(ValueError, match='expected one typed key a sample'):
        SMALL.fields(jax.random.key(0))
