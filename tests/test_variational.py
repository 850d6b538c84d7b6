"""4D-Var: rollouts against the data, the loop on known minima, and posteriors that linear algebra
gives.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from namm_jax.inverse.fourdvar import (
    cost,
    ensemble_background,
    minimise,
)
from namm_jax.inverse.likelihood import likelihood
from namm_jax.problems import kolmogorov_flow as flows
from namm_jax.problems.burgers_equation import Burgers
from namm_jax.problems.kolmogorov_flow import Kolmogorov

PROBLEM = Burgers(points=16, states=16, inner_steps=2)
FLOW = Kolmogorov(points=16, states=2, inner_steps=2, dt=0.02, reynolds=100.0, burn_in=0.1)
KEYS = jax.random.split(jax.random.key(0), 3)
BURGERS, KOLMOGOROV = PROBLEM.rollout, FLOW.rollout
ROLLOUT, FLOW_ROLLOUT = jax.jit(BURGERS), jax.jit(KOLMOGOROV)


@pytest.fixture(scope='module')
def fields():
    return jax.jit(PROBLEM.fields)(KEYS)


@pytest.fixture(scope='module')
def flow():
    return jax.jit(FLOW.fields)(KEYS)


@functools.partial(jax.jit, static_argnames=('rollout', 'measure'))
def assimilate(rollout, measure, y, u_0, *, mean, std=1.0, noise_std=0.1, weight=1.0, noise=None):
    of_y = likelihood(measure, y, noise_std)
    J = cost(rollout, of_y, mean=mean, std=std, weight=weight, perturbation=noise)
    return minimise(J, u_0, iterations=60)


def first_states(x):
    return x[:, :, :3]


def test_the_first_state_of_the_data_gives_the_data(fields):
    rolled = ROLLOUT(PROBLEM.first_states(fields))
    np.testing.assert_allclose(rolled, fields, atol=1e-5)
    u_0 = jnp.arange(16.0)[None] / 16
    np.testing.assert_array_equal(ROLLOUT(u_0)[0, :, 0, 0], u_0[0, ::-1])


def test_any_first_state_gives_a_trajectory():
    u_0 = jax.random.uniform(KEYS[0], (3, 16))
    assert float(PROBLEM.distance(ROLLOUT(u_0)).max()) < 1e-6


def test_the_first_state_of_a_flow_gives_the_flow(flow):
    np.testing.assert_allclose(FLOW_ROLLOUT(flow[..., :2]), flow, atol=1e-5)
    tiled = dataclasses.replace(FLOW, layout='tiled')
    assert jax.eval_shape(tiled.rollout, flow[..., :2]).shape == (3, *FLOW.file_shape)


@pytest.mark.slow
def test_any_first_state_gives_a_flow_without_divergence():
    v_0 = jax.random.normal(KEYS[0], (3, 16, 16, 2))
    x = FLOW_ROLLOUT(v_0)
    for constraint in (FLOW.constraint('divergence'), FLOW.constraint('kolmogorov')):
        assert float(constraint.distance(x).max()) < 1e-5
    np.testing.assert_allclose(x[..., :2], flows.project(v_0), atol=1e-5)


def test_the_cost_by_hand():
    x = jnp.array([[[[1.0], [2.0]]], [[[0.0], [4.0]]]])
    y = jnp.array([[3.0, 2.0], [1.0, 0.0]])
    total = lambda x: jnp.stack([x.sum((1, 2, 3)), jnp.zeros(len(x))], -1)
    same = lambda u: u
    J = cost(same, likelihood(total, y, 0.5), mean=1.0, std=2.0, weight=3.0)
    # misfits |(0, 2) / 0.5|^2 and |3 / 0.5|^2, backgrounds 1/4 and (1 + 9)/4
    np.testing.assert_allclose(J(x), [16 / 2 + 3 / 8, 36 / 2 + 3 * 10 / 8])
    noise = jnp.array([[0.0, 1.0], [2.0, 0.0]])
    J = cost(same, likelihood(total, y, 0.5), mean=x, std=2.0, perturbation=noise)
    np.testing.assert_allclose(J(x), [(4 + 1) ** 2 / 2, (-6 + 2) ** 2 / 2])
    mean = jnp.stack([x[0], x[1] + 2])
    J = cost(same, likelihood(same, x, 1.0), mean=mean, std=2.0)
    np.testing.assert_allclose(J(x), [0, 1], atol=1e-7)


def test_quadratics_reach_their_minimum():
    """Each sample has its own centre, and a condition number of its own up to 1e3."""
    centre = jax.random.normal(KEYS[0], (4, 6))
    scales = jnp.logspace(0, jnp.arange(4.0), 6).T
    bowl = jax.tree_util.Partial(lambda c, s, u: 3 + jnp.sum(s * (u - c) ** 2, 1), centre, scales)
    u, info = jax.jit(functools.partial(minimise, iterations=60))(bowl, jnp.zeros((4, 6)))
    np.testing.assert_allclose(u, centre, atol=2e-3)
    np.testing.assert_allclose(info['cost'], 3, rtol=1e-6)
    assert int(info['iterations'].max()) < 60 and (info['evaluations'] > info['iterations']).all()
    assert float(info['gradient_norm'].max()) < 0.02


@pytest.mark.slow
def test_the_search_runs_in_float64():
    with jax.enable_x64(True):
        bowl = Partial(lambda y, u: jnp.sum((u - y) ** 2, 1), jnp.arange(6.0).reshape(2, 3))
        u, _ = minimise(bowl, jnp.zeros((2, 3)), iterations=20)
        assert u.dtype == jnp.float64
        np.testing.assert_allclose(u, np.arange(6).reshape(2, 3), atol=1e-12)


def test_a_curved_valley_and_a_wall_of_nan():
    """The valley's floor leads to (1, 1); two samples meet a wall before, and one starts behind
    it.
    """

    def valley(wall, u):
        return jnp.where(
            u[:, 0] > wall, jnp.nan, (1 - u[:, 0]) ** 2 + 100 * (u[:, 1] - u[:, 0] ** 2) ** 2
        )

    walled = jax.tree_util.Partial(valley, jnp.array([jnp.inf, jnp.inf, 0.5, -2.0]))
    start = jnp.array([[-1.2, 1.0], [0.0, 0.0], [-1.2, 1.0], [-1.2, 1.0]])
    u, info = jax.jit(functools.partial(minimise, iterations=60))(walled, start)
    np.testing.assert_allclose(u[:2], 1, atol=1e-3)
    assert jnp.isfinite(u).all() and float(u[2, 0]) <= 0.5 and float(info['cost'][2]) < 4.4
    np.testing.assert_array_equal(u[3], start[3])
    assert np.isnan(info['cost'][3])


@pytest.mark.slow
def test_a_trajectory_is_recovered_from_its_first_states(fields):
    guess = jnp.full((3, 16), 0.5)
    u, info = assimilate(BURGERS, first_states, first_states(fields), guess, mean=0.5, weight=0.0)
    x = ROLLOUT(u)
    np.testing.assert_allclose(x, fields, atol=1e-4)
    assert float(info['cost'].max()) < 1e-4
    assert float(PROBLEM.distance(x).max()) < 1e-6


@pytest.mark.slow
def test_a_sample_does_not_know_of_the_others(fields):
    rollout, y, guess = BURGERS, first_states(fields), jnp.full((3, 16), 0.5)
    together, _ = assimilate(rollout, first_states, y, guess, mean=0.5, weight=1.0)
    broken, info = assimilate(
        rollout, first_states, y.at[1].set(jnp.nan), guess, mean=0.5, weight=1.0
    )
    np.testing.assert_array_equal(broken[1], guess[1])
    assert np.isnan(info['cost'][1]) and int(info['iterations'][1]) == 0
    np.testing.assert_allclose(broken[::2], together[::2], atol=1e-6)
    swapped, _ = assimilate(rollout, first_states, y[::-1], guess, mean=0.5, weight=1.0)
    np.testing.assert_allclose(swapped, together[::-1], atol=1e-6)


@pytest.mark.slow
def test_the_heat_equation_has_the_posterior_of_linear_algebra():
    """Without advection all is linear: the best fit is the posterior's mean, perturbed ones are its
    samples.
    """
    heat = Burgers(points=6, states=3, inner_steps=2, mu=0.0, nu=10.0, stepper='forward_euler')
    rollout, measure = heat.rollout, lambda x: x[:, ::2, 2, 0]
    matrix = np.asarray(
        jax.jacobian(lambda u: measure(rollout(u[None]))[0])(jnp.zeros(6)), np.float64
    )
    mean, std, noise_std, y = (
        np.linspace(-1, 1, 6),
        np.linspace(0.5, 1, 6),
        0.2,
        np.array([1.0, 0.0, -0.5]),
    )
    covariance = np.linalg.inv(matrix.T @ matrix / noise_std**2 + np.diag(1 / std**2))
    expected = mean + covariance @ matrix.T @ (y - matrix @ mean) / noise_std**2

    b = 500
    perturb = [
        jax.random.normal(key, (b, n)).at[0].set(0) for key, n in ((KEYS[0], 6), (KEYS[1], 3))
    ]
    means = jnp.asarray(mean) + std * perturb[0]
    y = jnp.broadcast_to(jnp.asarray(y), (b, 3))
    u, _ = assimilate(
        rollout, measure, y, means, mean=means, std=std, noise_std=noise_std, noise=perturb[1]
    )
    np.testing.assert_allclose(u[0], expected, atol=1e-4)
    deviation = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose((u[1:].mean(0) - expected) / deviation, 0, atol=4 / b**0.5)
    np.testing.assert_allclose(
        (np.cov(u[1:].T) - covariance) / np.outer(deviation, deviation), 0, atol=6 / b**0.5
    )


def test_a_background_has_the_moments_of_its_ensemble_and_the_best_fit_is_the_kalman_filters():
    ensemble = (
        np.random.default_rng(0).normal(size=(9, 5, 2)) @ np.array([[1.0, 0.5], [0.0, 0.2]]) + 3
    )
    u_0, flat = ensemble_background(jnp.asarray(ensemble)), ensemble.reshape(9, 10)
    mean, covariance = flat.mean(0), np.cov(flat.T)
    deviations = np.asarray(u_0(jnp.eye(9)) - u_0(jnp.zeros((1, 9)))).reshape(9, 10)
    np.testing.assert_allclose(u_0(jnp.zeros((1, 9)))[0].ravel(), mean, rtol=1e-5)
    np.testing.assert_allclose(deviations.T @ deviations, covariance, atol=1e-5)

    seen, y = slice(None, None, 3), np.linspace(2, 5, 4)
    gain = covariance[:, seen] @ np.linalg.inv(covariance[seen, seen] + 0.1**2 * np.eye(4))
    measure = lambda u: u.reshape(-1, 10)[:, seen]
    v, _ = assimilate(u_0, measure, jnp.asarray(y)[None], jnp.zeros((1, 9)), mean=0.0)
    np.testing.assert_allclose(u_0(v)[0].ravel(), mean + gain @ (y - mean[seen]), atol=1e-3)
    with pytest.raises(ValueError, match='ensemble: got 1 states, expected at least 2'):
        ensemble_background(jnp.zeros((1, 3)))


@pytest.mark.slow
def test_the_slope_of_a_flows_cost(flow):
    """Finite where the flow is at rest, 0 at the minimum, without divergence, and that of the
    cost.
    """
    of_y = likelihood(lambda x: x[..., 2:], flow[..., 2:], 0.1)
    J = cost(KOLMOGOROV, of_y, mean=0.0, std=1.0, weight=0.0)
    value_and_slope = jax.jit(
        jax.value_and_grad(lambda v, direction, e: J(v + e * direction).sum(), argnums=(0, 2))
    )
    direction = jax.random.normal(KEYS[1], flow[..., :2].shape).at[0].set(0)
    v_0 = jnp.stack([jnp.zeros((16, 16, 2)), flow[1, ..., :2], 0.5 * flow[2, ..., :2]])
    (_, (slope, along)), (ahead, _), (behind, _) = (
        value_and_slope(v_0, direction, e) for e in (0.0, 1e-3, -1e-3)
    )
    assert jnp.isfinite(slope).all() and float(jnp.abs(slope[0]).max()) > 1
    np.testing.assert_allclose(slope[1], 0, atol=1e-2)
    np.testing.assert_allclose(flows.project(slope), slope, atol=1e-2)
    assert float(along) == pytest.approx(float(ahead - behind) / 2e-3, rel=0.05)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'std': float('nan')}, 'std: got nan, expected finite and > 0'),
        ({'std': -1.0}, 'std: got -1.0'),
        ({'weight': -0.1}, 'weight: got -0.1, expected finite and >= 0'),
        (
            {'mean': jnp.zeros(16)},
            r'mean: got shape \(16,\), expected a number or \(b, ...\) for the b = 3 of y',
        ),
    ],
)
def test_errors_of_numbers(change, message):
    numbers = {'mean': 0.0, 'std': 1.0} | change
    of_y = likelihood(first_states, jnp.zeros((3, 16, 3, 1)), 0.1)
    with pytest.raises(ValueError, match=message):
        cost(PROBLEM.rollout, of_y, **numbers)


def test_errors_of_shapes_and_of_the_loop():
    with pytest.raises(ValueError, match=r'u_0: got shape \(3, 16, 1\), expected \(b, 16\)'):
        PROBLEM.rollout(jnp.zeros((3, 16, 1)))
    with pytest.raises(
        ValueError, match=r'u_0: got shape \(16, 16, 2\), expected \(b, 16, 16, 2\)'
    ):
        FLOW.rollout(jnp.zeros((16, 16, 2)))
    of_y = likelihood(first_states, jnp.zeros((3, 4, 2, 1)), 0.1)
    J = cost(lambda u: u, of_y, mean=0.0, std=1.0)
    with pytest.raises(ValueError, match=r'y: got shape \(3, 4, 2, 1\), expected \(b, 4, 3, 1\)'):
        J(jnp.zeros((3, 4, 5, 1)))
    with pytest.raises(ValueError, match='iterations: got 0, expected at least 1'):
        minimise(J, jnp.zeros((3, 4, 5, 1)), iterations=0)
    with pytest.raises(ValueError, match='cost: got a function, expected a jax.tree_util.Partial'):
        minimise(lambda u: u, jnp.zeros(3), iterations=1)
