"""Data that others published: their solvers against exact solutions and orders of convergence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from namm_jax import problems
from namm_jax.problems import steppers
from namm_jax.problems.base import given_first_state

KEYS = jax.random.split(jax.random.key(0), 4)


def order(solve, steps=(20, 40, 80)):
    """Returns the observed order of convergence of solutions with so many steps."""
    coarse, middle, fine = map(solve, steps)
    return np.log2(np.max(np.abs(coarse - middle)) / np.max(np.abs(middle - fine)))


def test_heat_solves_its_equation_and_starts_where_it_is_told():
    heat = problems.heat(points=32, states=16)
    phi, nu = jnp.array([0.3, 2.0]), jnp.array([1.5, 4.0])
    x = np.asarray(heat.solve(phi, nu))[..., 0]
    modes = np.fft.fft(x, axis=1)
    expected = np.exp(-np.asarray(nu)[:, None] * np.linspace(0, 1, 16))
    np.testing.assert_allclose(abs(modes[:, 1]) / 16, expected, rtol=1e-5)
    assert abs(modes[:, 2:-1]).max() < 1e-4  # one wave, which nu u_xx makes decay at that rate
    x = heat.fields(KEYS)
    u = heat.continuations(KEYS, x[0, :, 0, 0])
    np.testing.assert_allclose(u[:, :, 0, 0], jnp.tile(x[0, :, 0, 0], (4, 1)), atol=1e-6)
    assert float(jnp.std(u[:, :, -1, 0], axis=0).max()) > 0.01


@pytest.mark.slow
@pytest.mark.parametrize('name', ['heat', 'reaction_diffusion'])
def test_first_state_and_conservation_hold_exactly_at_once(name):
    problem = getattr(problems, name)(points=16, states=8)
    x = problem.fields(KEYS)
    u_0 = x[0, :, 0, 0]
    rule = given_first_state(problem, u_0)
    assert float(rule.distance(problem.continuations(KEYS, u_0)).max()) < 1e-5
    y = x + 0.1 * jax.random.normal(jax.random.key(1), x.shape)
    assert float(rule.distance(y).min()) > 0.01
    back, _ = rule.restore(y)
    assert (back[:, :, 0, 0] == u_0).all() and float(rule.distance(back).max()) < 1e-6
    moved = (back - y)[:, :, 1:, 0]  # by a constant a state
    np.testing.assert_allclose(moved, moved[:, :1] + 0 * moved, atol=1e-6)


def rods(n, **of):
    problem = problems.reaction_diffusion(points=n, states=3, **of)
    return problem, (np.arange(n) + 0.5) / n


def test_a_mode_between_closed_ends_decays_as_the_scheme_says_and_to_second_order_in_space():
    errors = []
    for n in (16, 32):
        problem, x = rods(n, rho=0.0, nu=0.05, dt=0.01)
        u_0 = jnp.asarray(0.5 + 0.4 * np.cos(np.pi * x), jnp.float32)[None]
        u = np.asarray(steppers.repeated(problem.interval(jnp.zeros((1, 2))), 40)(u_0))[0]
        z = -0.05 * 0.01 * (2 * n * np.sin(np.pi / (2 * n))) ** 2
        wave = ((1 + z / 2) / (1 - z / 2)) ** 40 * 0.4 * np.cos(np.pi * x)
        np.testing.assert_allclose(u, 0.5 + wave, atol=2e-6)
        rate = (2 * n * np.sin(np.pi / (2 * n))) ** 2
        errors.append(abs(rate - np.pi**2))
    assert np.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.02)


@pytest.mark.slow
def test_reaction_follows_the_logistic_law_to_second_order_and_inflow_fills():
    with jax.enable_x64(True):

        def solve(steps):
            problem, _ = rods(3, rho=3.0, nu=0.1, dt=1 / steps)
            u_0 = jnp.full((1, 3), 0.1)
            return np.asarray(steppers.repeated(problem.interval(jnp.zeros((1, 2))), steps)(u_0))

        exact = 1 / (1 + 9 * np.exp(-3.0))
        assert abs(solve(80) - exact).max() < 1e-4 and order(solve) == pytest.approx(2, abs=0.1)
        problem, _ = rods(3, rho=0.0)
        u = steppers.repeated(problem.interval(jnp.array([[0.02, 0.03]])), 50)(jnp.zeros((1, 3)))
        assert float(u.mean()) == pytest.approx(0.05 * 0.5, rel=1e-9)


def flow(**of):
    return problems.decaying_flow(**{'points': 16, 'length': 2 * np.pi, 'inner_steps': 1} | of)


def test_a_single_wave_of_vorticity_decays_exactly():
    problem = flow(viscosity=0.05, dt=0.1)
    x, y = np.meshgrid(*2 * [2 * np.pi * np.arange(16) / 16], indexing='ij')
    w = jnp.asarray(np.cos(2 * x) * np.cos(2 * y), jnp.float32)
    u = steppers.repeated(problem.step(), 20)(w)
    np.testing.assert_allclose(u, np.exp(-0.05 * 8 * 2) * w, atol=2e-6)


def test_advection_and_velocity_of_two_waves():
    problem = flow()
    x, y = np.meshgrid(*2 * [2 * np.pi * np.arange(16) / 16], indexing='ij')
    w = jnp.asarray(np.cos(x) + np.cos(3 * y), jnp.float32)
    v_x, v_y = problem.velocity(w)
    np.testing.assert_allclose(v_x, -np.sin(3 * y) / 3, atol=1e-6)
    np.testing.assert_allclose(v_y, np.sin(x), atol=1e-6)
    expected = -(1 / 3 - 3) * np.sin(x) * np.sin(3 * y)
    np.testing.assert_allclose(problem.advection(w), expected, atol=1e-5)


@pytest.mark.slow
def test_flow_is_of_second_order_and_conserves_energy_and_enstrophy_without_viscosity():
    with jax.enable_x64(True):
        problem = flow(viscosity=0.0, max_velocity=1.0)
        w = jnp.asarray(problem.starts(KEYS[:1]), jnp.float64)

        def solve(steps):
            return jax.jit(steppers.repeated(flow(viscosity=0.0, dt=1 / steps).step(), steps))(w)

        states = {steps: solve(steps) for steps in (20, 40, 80)}
        assert order(lambda steps: np.asarray(states[steps])) == pytest.approx(2, abs=0.15)
        energy = lambda w: sum(float((v**2).mean()) for v in problem.velocity(w))
        drift = lambda measure: [abs(measure(u) / measure(w) - 1) for u in states.values()]
        for measure in (energy, lambda w: float((w**2).mean())):
            coarse, _, fine = drift(measure)
            assert fine < 1e-3 and fine < coarse / 8
        assert abs(float(states[80].mean() - w.mean())) < 1e-12


def test_flow_starts_at_its_speed_and_bad_numbers_are_refused():
    problem = problems.decaying_flow(points=16, inner_steps=1)
    speed = jnp.hypot(*problem.velocity(problem.starts(KEYS)))
    np.testing.assert_allclose(speed.max((1, 2)), 0.4, rtol=1e-4)
    with pytest.raises(ValueError, match='dt: got 1'):
        problems.decaying_flow(dt=1.0)
    with pytest.raises(ValueError, match='expected 1, 2, 3 or a multiple of 4'):
        problems.decaying_flow(states=5)
    with pytest.raises(ValueError, match='least_nu: got 6'):
        problems.heat(least_nu=6.0)
