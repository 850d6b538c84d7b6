"""What must hold of every constraint, in one table: a row a constraint, a test a property."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from namm_jax import problems
from namm_jax._arrays import Constraint
from namm_jax.constraints import sets
from namm_jax.constraints.base import function_rule, reference
from namm_jax.constraints.projection import land
from namm_jax.networks.counter import Counter
from namm_jax.problems import PROBLEMS

N = 3
BURGERS = problems.burgers(points=16, states=4, inner_steps=2, stepper='forward_euler')
FLOW = problems.kolmogorov(points=16, states=4, inner_steps=1, burn_in=0.02)
HOLES = problems.black_holes(points=16, total=20.0)
TEXTURES = problems.textures(points=16)
GALAXIES = problems.galaxies(points=16, count=1)
MAPPED = problems.galaxies(points=16, count=1, maps=True)

DECAY = problems.decaying_flow(points=16, inner_steps=1)
HEAT = problems.heat(points=16, states=8)
REACTION = problems.reaction_diffusion(points=16, states=8)


def keys(n=N):
    return jax.random.split(jax.random.key(0), n)


@functools.cache
def flow():
    return FLOW.fields(keys())


def texture_fields():
    return TEXTURES.fields(keys())


def counting():
    """A counting network whose last bias is such that it finds one source in the image below."""
    network, x = Counter(filters=(4,), hidden=32), counted_images()
    params = network.init(jax.random.key(1), x)['params']
    off = 1 - network.apply({'params': params}, x)[0]
    last = params['Dense_1']
    params = params | {'Dense_1': last | {'bias': last['bias'] + off}}
    apply = lambda params, x: network.apply({'params': params}, x)
    return GALAXIES.constraint(counter=jax.tree_util.Partial(apply, params))


def counted_images():
    return jnp.tile(jax.random.uniform(jax.random.key(2), (1, 16, 16, 1)), (N, 1, 1, 1))


def row_means(x):
    return jnp.mean(jnp.abs(x.mean(2)), (1, 2))


def both_flows():
    return FLOW.constraint('divergence+kolmogorov', (0.5, 2.0))


def anywhere(x):
    return jax.random.normal(jax.random.key(4), x.shape, x.dtype)


class Case(NamedTuple):
    """A row of the table.

    Attributes:
        constraint: builds it.
        fields: fields `(N, ...)` on its set, for an inequality on the border.
        symmetries: what leaves its distance as it is.
        floor: its distance on the data in float32, at most.
        restores: the names of its ways back.
        outward: a direction that leaves the set.
    """

    constraint: Callable[[], Constraint]
    fields: Callable[[], jax.Array]
    symmetries: tuple[Callable[[jax.Array], jax.Array], ...]
    floor: float = 1e-6
    restores: tuple[str, ...] = ()
    outward: Callable[[jax.Array], jax.Array] = anywhere


def roll(axis, by):
    return functools.partial(jnp.roll, shift=by, axis=axis)


def noise(scale=1.0, shape=(N, 16, 16, 1)):
    return scale * jax.random.normal(jax.random.key(3), shape)


CASES = {
    'burgers': Case(
        lambda: BURGERS.constraint(),
        lambda: BURGERS.fields(keys()),
        (roll(1, 3),),
        restores=('resolve',),
    ),
    'divergence': Case(
        lambda: FLOW.constraint('divergence'),
        flow,
        (roll(1, 3), roll(2, 5), lambda x: -x),
        2e-5,
        ('projection',),
    ),
    'kolmogorov': Case(
        lambda: FLOW.constraint('kolmogorov'),
        flow,
        (roll(1, 3), roll(2, 4)),
        restores=('resolve',),
    ),
    'divergence+kolmogorov': Case(both_flows, flow, (roll(1, 3), roll(2, 4)), 2e-5),
    'total_brightness': Case(
        lambda: HOLES.constraint(),
        lambda: HOLES.fields(keys()),
        (roll(1, 3), lambda x: jnp.swapaxes(x, 1, 2), lambda x: x[:, ::-1]),
        1e-4,
        ('simplex', 'shift', 'rescale'),
    ),
    'periodic': Case(
        lambda: TEXTURES.constraint(),
        texture_fields,
        (roll(1, 8), roll(2, 8), roll(1, 3), lambda x: 1 - x, lambda x: x[:, ::-1]),
        restores=('mean', 'median', 'copy'),
    ),
    'decaying_flow': Case(
        lambda: DECAY.constraint(),
        lambda: DECAY.fields(keys()),
        (roll(1, 3), roll(2, 5)),
        restores=('resolve',),
    ),
    'heat': Case(
        lambda: HEAT.constraint(),
        lambda: HEAT.fields(keys()),
        (roll(1, 3), lambda x: -x),
        2e-6,
        ('shift',),
    ),
    'reaction_diffusion': Case(
        lambda: REACTION.constraint(),
        lambda: REACTION.fields(keys()),
        (lambda x: x[:, ::-1],),
        restores=('balance',),
    ),
    'count': Case(counting, counted_images, (), 2e-6),
    'count of maps': Case(
        lambda: MAPPED.constraint(),
        lambda: MAPPED.fields(keys()) * jnp.array([1, 1.25]),
        (roll(1, 3), lambda x: x * jnp.array([3, 1])),
        outward=jnp.ones_like,
    ),
    'own': Case(
        lambda: function_rule(row_means),
        lambda: noise() - noise().mean(2, keepdims=True),
        (lambda x: -x, roll(1, 3)),
    ),
    'reference': Case(
        lambda: reference(lambda x, x_ref: jnp.mean(jnp.abs(x - x_ref), (1, 2, 3))).given(noise()),
        noise,
        (),
    ),
    'box': Case(
        lambda: sets.box(-0.5, 0.5),
        lambda: 0.5 * jnp.sign(noise()),
        (lambda x: -x, roll(1, 3)),
        restores=('nearest',),
    ),
    'ball': Case(
        lambda: sets.ball(2.0),
        lambda: 2 * noise() / jnp.linalg.norm(noise(), axis=(1, 2), keepdims=True),
        (lambda x: -x, roll(1, 3)),
        restores=('nearest',),
        outward=lambda x: x,
    ),
    'simplex': Case(
        lambda: sets.simplex(5.0),
        lambda: 5 * jnp.exp(noise()) / jnp.exp(noise()).sum((1, 2), keepdims=True),
        (roll(1, 3),),
        1e-5,
        ('nearest',),
        jnp.ones_like,
    ),
    'half_spaces': Case(
        lambda: sets.half_spaces(noise()[:2], jnp.array([0.0, 1.0])),
        lambda: jnp.zeros((N, 16, 16, 1)),
        (),
        outward=lambda x: noise()[:1] + jnp.zeros_like(x),
    ),
    'mass_below': Case(
        lambda: sets.mass_below(0.0),
        lambda: noise() - noise().mean((1, 2), keepdims=True),
        (roll(1, 3),),
        1e-4,
        ('nearest',),
        jnp.ones_like,
    ),
}
EVERY = pytest.mark.parametrize('name', CASES)
MARKS = dict.fromkeys(('kolmogorov', 'divergence+kolmogorov'), pytest.mark.slow)


@functools.cache
def built(name):
    return CASES[name].constraint(), CASES[name].fields()


@functools.cache
def measure(name):
    """Returns the compiled `x -> (distance, gradient of its sum)`."""
    constraint = built(name)[0]
    total = lambda x: (constraint.distance(x).sum(), constraint.distance(x))
    return jax.jit(lambda x: jax.grad(total, has_aux=True)(x)[::-1])


def test_every_constraint_of_the_dictionary_is_in_the_table():
    generated = [getattr(problems, name) for name in PROBLEMS]
    rules = {problem.rule_name for problem in generated}
    assert rules | {'kolmogorov'} <= set(CASES)


@EVERY
def test_it_is_a_constraint_and_a_pytree(name):
    constraint, x = built(name)
    assert isinstance(constraint, Constraint)
    leaves, structure = jax.tree.flatten(constraint)
    again = jax.tree.unflatten(structure, leaves)
    np.testing.assert_array_equal(again.distance(x), constraint.distance(x))


@EVERY
def test_zero_on_its_own_data_without_a_nan_in_the_gradient(name):
    _, x = built(name)
    distance, gradient = measure(name)(x)
    assert distance.shape == (N,) and distance.dtype == jnp.float32
    assert 0 <= float(distance.min()) and float(distance.max()) <= CASES[name].floor
    assert gradient.shape == x.shape and bool(jnp.isfinite(gradient).all())


@EVERY
def test_positive_and_of_first_order_off_the_set(name):
    """Doubling a small step off the set doubles the distance, which is finite with its gradient."""
    _, x = built(name)
    once, _ = measure(name)(x + 2e-3 * CASES[name].outward(x))
    twice, gradient = measure(name)(x + 4e-3 * CASES[name].outward(x))
    assert float(once.sum()) > 10 * N * CASES[name].floor
    np.testing.assert_allclose(twice.sum() / once.sum(), 2, rtol=0.1)
    assert bool(jnp.isfinite(gradient).all()) and float(jnp.abs(gradient).max()) > 0


@pytest.mark.parametrize('name', [pytest.param(name, marks=MARKS.get(name, ())) for name in CASES])
def test_a_landing_step_leaves_data_and_lowers_their_distance_with_noise(name):
    constraint, x = built(name)
    onto = jax.jit(functools.partial(land, tolerance=10 * CASES[name].floor))
    np.testing.assert_array_equal(onto(constraint, x), x)
    noisy = x + 0.01 * CASES[name].outward(x)
    before, after = (measure(name)(x)[0] for x in (noisy, onto(constraint, noisy)))
    assert bool(jnp.all(after < 0.8 * before))


@pytest.mark.parametrize(
    ('name', 'index'), [(name, i) for name in CASES for i in range(len(CASES[name].symmetries))]
)
def test_invariant_under_its_symmetries(name, index):
    _, x = built(name)
    x = x + 0.1 * anywhere(x)
    before, after = measure(name)(x)[0], measure(name)(CASES[name].symmetries[index](x))[0]
    np.testing.assert_allclose(after, before, rtol=2e-3)


@pytest.mark.parametrize(
    'name', sorted(CASES.keys() - {'reference'})
)  # whose reference comes in the order of the samples
def test_one_sample_does_not_see_another(name):
    constraint, x = built(name)
    x = x + 0.1 * anywhere(x)
    together = measure(name)(x)[0]
    np.testing.assert_allclose(measure(name)(x[::-1])[0][::-1], together, rtol=1e-4)
    np.testing.assert_allclose(
        jax.vmap(lambda x: constraint.distance(x[None])[0])(x), together, rtol=1e-4
    )


@EVERY
def test_distance_is_the_weighted_sum_of_its_terms_and_the_residual_vanishes_with_it(name):
    constraint, x = built(name)
    terms, residual = constraint.terms(x + 0.1 * anywhere(x)), constraint.residual(x)
    assert terms and all(
        value.shape == (N,) and float(value.min()) >= 0 for value in terms.values()
    )
    if len(terms) == 1:
        np.testing.assert_allclose(
            *terms.values(), constraint.distance(x + 0.1 * anywhere(x)), rtol=1e-5
        )
    assert residual.shape[0] == N and float(jnp.abs(residual).mean()) <= 10 * CASES[name].floor


@EVERY
def test_gradient_against_finite_differences_in_double(name):
    with jax.enable_x64(True):
        constraint = CASES[name].constraint()
        constraint = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), constraint)
        x = jnp.asarray(built(name)[1], jnp.float64)
        x, along = x + 0.3 * anywhere(x), jax.random.normal(jax.random.key(5), x.shape, x.dtype)
        total = jax.jit(lambda step: constraint.distance(x + step * along).sum())
        slope = float(jax.grad(total)(0.0))
        differences = (float(total(1e-7)) - float(total(-1e-7))) / 2e-7
        np.testing.assert_allclose(slope, differences, rtol=1e-5, atol=1e-6)


@EVERY
def test_restores_are_exact_and_the_identity_on_the_set(name):
    constraint, x = built(name)
    restores = getattr(constraint, 'restores', {})
    assert set(restores) == set(CASES[name].restores)
    for restore, way in restores.items():
        scale = float(jnp.abs(x).max())
        np.testing.assert_allclose(way(x)[0], x, atol=1e-5 * scale, err_msg=restore)
        back = way(x + 0.1 * anywhere(x))[0]
        assert float(constraint.distance(back).max()) <= 10 * CASES[name].floor, restore
    if restores:
        np.testing.assert_array_equal(constraint.restore(x)[0], next(iter(restores.values()))(x)[0])
