"""Steppers, on Burgers' equation, against exact solutions, orders of convergence and dense
linear algebra.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from namm_jax.problems import steppers
from namm_jax.problems.burgers_equation import Burgers, burgers_rhs

PERIOD = 10.0


def _smooth(n: int, mean: float = 0.5) -> np.ndarray:
    x = PERIOD * np.arange(n) / n
    return mean + 0.4 * np.sin(2 * np.pi * x / PERIOD)


def _stepper(name: str, n: int, dt: float) -> steppers.Stepper:
    rhs = functools.partial(burgers_rhs, mu=1.0, nu=0.05, dx=PERIOD / n)
    return steppers.STEPPERS[name](rhs, dt)


def _cole_hopf(n: int, t: float, mean: float = 0.5, nu: float = 0.05) -> np.ndarray:
    """The exact solution from `_smooth`: u = mean + w(x - mean t, t), w = -2 nu phi_x / phi, phi_t
    = nu phi_xx.
    """
    m = 512
    wave = 2 * np.pi / PERIOD
    potential = -0.4 / wave * np.cos(wave * PERIOD * np.arange(m) / m)
    k = np.arange(m // 2 + 1)
    modes = np.fft.rfft(np.exp(-potential / (2 * nu))) / m * np.exp(-nu * (wave * k) ** 2 * t)
    x = PERIOD * np.arange(n) / n - mean * t
    series = modes * np.exp(1j * wave * k * x[:, None]) * np.where(k == 0, 1, 2)
    return mean - 2 * nu * (1j * wave * k * series).sum(1).real / series.sum(1).real


@pytest.mark.parametrize(('name', 'order'), [('crank_nicolson', 2), ('forward_euler', 1)])
def test_order_in_time(name, order):
    with jax.enable_x64(True):
        states = jax.jit(
            lambda dt: steppers.trajectory(_stepper(name, 16, dt), 80)(jnp.asarray(_smooth(16)))
        )
        coarse, middle, fine = (states(1 / steps)[steps - 1] for steps in (20, 40, 80))
        ratio = jnp.max(jnp.abs(coarse - middle)) / jnp.max(jnp.abs(middle - fine))
    assert np.log2(ratio) == pytest.approx(order, abs=0.1)


def test_cole_hopf_order_in_space():
    with jax.enable_x64(True):

        def error(n):
            u = jax.jit(steppers.repeated(_stepper('crank_nicolson', n, 0.025), 80))(
                jnp.asarray(_smooth(n))
            )
            return float(jnp.max(jnp.abs(u - _cole_hopf(n, 2.0))))

        coarse, fine = error(64), error(128)
    np.testing.assert_allclose(_cole_hopf(64, 0.0), _smooth(64), atol=1e-12)
    assert coarse < 5e-3
    assert coarse / fine == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize('name', sorted(steppers.STEPPERS))
def test_mean_is_conserved(name):
    u = jax.random.uniform(jax.random.key(0), (3, 32))
    after = jax.jit(steppers.repeated(_stepper(name, 32, 0.025), 20))(u)
    np.testing.assert_allclose(after.mean(-1), u.mean(-1), atol=1e-6)
    assert float(jnp.abs(after - u).max()) > 0.1


def test_a_constant_is_a_fixed_point():
    u = jnp.full((2, 8), 0.7)
    for name in steppers.STEPPERS:
        np.testing.assert_allclose(jax.jit(_stepper(name, 8, 0.1))(u), u, atol=1e-6)


@pytest.mark.parametrize('n', [3, 32, 63])
def test_cyclic_solve_against_dense(n):
    rng = np.random.default_rng(n)
    lower, upper, rhs = rng.normal(size=(3, 4, n)).astype(np.float32)
    diagonal = (np.abs(lower) + np.abs(upper) + 0.5) * np.where(
        rng.uniform(size=(4, n)) < 0.5, -1, 1
    )
    i = np.arange(n)
    dense = np.zeros((4, n, n))
    for band, j in ((lower, i - 1), (diagonal, i), (upper, (i + 1) % n)):
        dense[:, i, j] += band
    expected = np.linalg.solve(dense, rhs[..., None])[..., 0]
    x = steppers.cyclic_tridiagonal_solve(
        *(jnp.asarray(v, jnp.float32) for v in (lower, diagonal, upper, rhs))
    )
    np.testing.assert_allclose(x, expected, atol=2e-5 * np.abs(expected).max())


def test_cyclic_solve_is_differentiable_in_bands_and_right_side():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        lower, upper, rhs = jnp.asarray(rng.normal(size=(3, 2, 6)))
        diagonal = jnp.abs(lower) + jnp.abs(upper) + 1
        check_grads(
            jax.jit(steppers.cyclic_tridiagonal_solve),
            (lower, diagonal, upper, rhs),
            order=1,
            modes=('fwd', 'rev'),
        )


@pytest.mark.slow
def test_crank_nicolson_derivatives_against_finite_differences():
    # n = 5 is prime: the bands are then read one column at a time.
    with jax.enable_x64(True):
        u, v = jax.random.uniform(jax.random.key(1), (2, 2, 5), float)
        step = _stepper('crank_nicolson', 5, 2.0)
        gradient = jax.grad(lambda u: jnp.sum(step(u) ** 2))

        @jax.jit
        def derivatives(u):
            first, (slope, curvature) = jax.jvp(step, (u,), (v,)), jax.jvp(gradient, (u,), (v,))
            return {'step': first[0], 'slope': slope}, {'step': first[1], 'slope': curvature}

        ahead, behind = derivatives(u + 1e-5 * v)[0], derivatives(u - 1e-5 * v)[0]
        differences = jax.tree.map(lambda a, b: (a - b) / 2e-5, ahead, behind)
        chex.assert_trees_all_close(derivatives(u)[1], differences, atol=1e-8)


@pytest.mark.slow
def test_crank_nicolson_transpose_under_vmap_and_scan():
    with jax.enable_x64(True):
        u, v, w = jax.random.normal(jax.random.key(2), (3, 4, 9), float)
        step = steppers.repeated(_stepper('crank_nicolson', 9, 0.2), 3)

        def products(u, v, w):
            linear = jax.linearize(step, u)[1]
            return jax.jvp(step, (u,), (v,))[1], linear(v), jax.vjp(step, u)[1](w)[0]

        forward, linearised, backward = jax.jit(jax.vmap(products))(u, v, w)
        np.testing.assert_allclose((forward * w).sum(-1), (v * backward).sum(-1), rtol=1e-11)
        np.testing.assert_allclose(linearised, forward, rtol=1e-11)


def test_crank_nicolson_is_reversible():
    # The scheme is symmetric in time: a step back undoes a step forth, if Newton's method has
    # converged.
    with jax.enable_x64(True):
        u = jax.random.uniform(jax.random.key(3), (5, 32), float)
        step = jax.jit(lambda u, dt: _stepper('crank_nicolson', 32, dt)(u))
        there = step(u, 0.025)
        back = step(there, -0.025)
    assert np.abs(np.asarray(there) - np.asarray(u)).max() > 1e-2
    np.testing.assert_allclose(back, u, atol=1e-13)


def test_a_row_does_not_depend_on_its_batch():
    step = jax.jit(_stepper('crank_nicolson', 32, 0.025))
    calm = jnp.asarray(_smooth(32), jnp.float32)
    rough = 3 * jax.random.normal(jax.random.key(4), (32,))
    chex.assert_trees_all_equal(step(jnp.stack([calm, rough]))[0], step(jnp.stack([calm, calm]))[0])


def test_trajectory_rollout_and_repeated_agree():
    step = _stepper('forward_euler', 16, 0.1)
    u = jnp.asarray(_smooth(16), jnp.float32)
    states = steppers.trajectory(step, 3)(u)
    chex.assert_shape(states, (3, 16))
    chex.assert_trees_all_close(states[0], step(u))
    chex.assert_trees_all_close(states[-1], steppers.repeated(step, 3)(u))
    chex.assert_trees_all_equal(steppers.repeated(step, 0)(u), u)
    rolled = steppers.rollout(step, 4)(u[None])
    chex.assert_trees_all_equal(rolled[:, 0], u[None])
    chex.assert_trees_all_close(rolled[0, 1:], states)


@pytest.mark.slow
def test_a_rollout_has_the_derivatives_of_its_steps():
    # Reverse mode takes the steps again; the derivative is that of the chain, to round-off.
    with jax.enable_x64(True):
        u = jnp.asarray(_smooth(9))[None]
        step = _stepper('forward_euler', 9, 0.2)
        chain = lambda u: sum((v**2).sum() for v in (u, step(u), step(step(u))))
        rolled = lambda u: (steppers.rollout(step, 3)(u) ** 2).sum()
        np.testing.assert_allclose(jax.grad(rolled)(u), jax.grad(chain)(u), rtol=1e-12)


def test_problem_grid_and_interval():
    problem = Burgers(points=33, length=8.0, stepper='forward_euler', inner_steps=2)
    assert problem.dx == 0.25
    u = jnp.asarray(_smooth(33), jnp.float32)
    chex.assert_trees_all_close(problem.interval()(u), problem.step()(problem.step()(u)))
    assert hash(problem) == hash(
        Burgers(points=33, length=8.0, stepper='forward_euler', inner_steps=2)
    )


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'stepper': 'crank_nicholson'}, 'expected one of .*did you mean crank_nicolson'),
        ({'points': 2}, 'points: got 2, expected at least 3'),
        ({'states': 1}, 'states: got 1, expected at least 2'),
        ({'inner_steps': 0}, 'inner_steps: got 0'),
        ({'dt': 0.0}, 'dt: got 0.0'),
        ({'nu': -1.0}, 'nu: got -1.0'),
    ],
)
def test_problem_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        Burgers(**arguments)
