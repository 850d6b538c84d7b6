"""Mirror maps: a forward map g into mirror space and an inverse f, learned or in closed form.

Symbols: `x` data on the constraint set M, `z = g(x)` mirror points, `z_noisy = z + sigma noise`
with `sigma ~ U(0, sigma_max)` for each sample, `l` the distance to M, `a` the strong convexity. The
learned map, `neural_mirror_map`, is trained on

    L        = L_cycle + lambda_constr L_constr + lambda_reg L_reg
    L_cycle  = 1/2 mean|f(g(x)) - x| + 1/2 mean|g(f(z_noisy)) - z_noisy|
    L_constr = mean l(f(z_noisy))
    L_reg    = mean|(g(x) - a x) / (1 - a)|

Box, ball and simplex have maps without parameters: `g = grad phi` of a convex potential phi takes
the inside of the set to all of mirror space, and `f = (grad phi)^-1` takes every finite z back. On
the border, where real data do lie, g is infinite: with a `floor` in [0, 1) it reads
`x' = (1 - floor) x + floor centre` in place of x, and `f(g(x)) = x'`. A large floor is a bias, a
small one a long tail in mirror space: a simplex's pixel of 1e-12 lies 28 below one of 1.

References: Feng, Baptista & Bouman, "Neural Approximate Mirror Maps for Constrained Diffusion
Models", ICLR 2025, arXiv 2406.12816; Liu, Chen, Theodorou & Tao, "Mirror Diffusion Models", NeurIPS
2023, arXiv 2310.01236 (closed forms).
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from namm_jax._arrays import Constraint, Fields, Key, Metrics, MirrorMap, Params, Unit, static
from namm_jax._checks import check_function, check_within, choose
from namm_jax.networks import output_like
from namm_jax.networks.icnn import gradient_map

_PIXELS = (1, 2, 3)
CHUNK = 256  # samples mapped at once by `Mirror`

# From z, the network's output y and a to f(z). `residual` corrects the inverse of g's linear part;
# `centred` does so but for each sample's mean, which is y's alone, so that noise does not change a
# sample's sum. The others are the paper's.
OUTPUTS = {
    'residual': lambda z, y, a: z / a + y,
    'centred': lambda z, y, a: (z - z.mean(_PIXELS, keepdims=True)) / a + y,
    'plain': lambda z, y, a: y,
    'softplus': lambda z, y, a: jax.nn.softplus(y),
    'residual_softplus': lambda z, y, a: jax.nn.softplus(z + y),
}


def network_map(network: Any, params: Params, x: Array, *, strong_convexity: float) -> Array:
    """Returns `g(x) = (1 - a) network(x) + a x`, which need not be injective (for ablations)."""
    return (1 - strong_convexity) * network.apply({'params': params}, x) + strong_convexity * x


def unchanged(network: Any, params: Params, x: Array, *, strong_convexity: float) -> Array:
    """Returns x: with it only f is learned (for ablations)."""
    return x


def neural_mirror_map(
    forward: Any,
    inverse: Any,
    *,
    strong_convexity: float = 0.9,
    output: str = 'residual',
    forward_map: Callable[..., Array] = gradient_map,
) -> MirrorMap:
    """Returns the learned mirror map: `g = (1 - a) grad ICNN + a id` and f a network.

    Args:
        forward: the network of g: an `ICNN`, or what `forward_map` asks for.
        inverse: the network of f, a Flax module `(z, *, train) -> like z`.
        strong_convexity: a in (0, 1].
        output: a key of `OUTPUTS`.
        forward_map: `(network, params, x, *, strong_convexity) -> g(x)`: the gradient of the
            input-convex network, `network_map` or `unchanged`.
    """
    check_within('(0, 1]', strong_convexity=strong_convexity)
    corrected = choose('output', output, OUTPUTS)

    def init(key: Key, x: Array) -> Params:
        key_forward, key_inverse = jax.random.split(key)
        params = {'forward': forward.init(key_forward, x)['params']}
        return params | {'inverse': inverse.init(key_inverse, x)['params']}

    def g(params: Params, x: Array) -> Array:
        return forward_map(forward, params['forward'], x, strong_convexity=strong_convexity)

    def f(params: Params, z: Array, dropout_key: Key | None = None) -> Array:
        y = output_like('inverse', inverse, params['inverse'], z, dropout_key=dropout_key)
        return corrected(z, y, strong_convexity)

    return MirrorMap(init, g, f)


def _without_parameters(g: Callable[[Array], Array], f: Callable[[Array], Array]) -> MirrorMap:
    forward = lambda params, x: g(x)
    return MirrorMap(lambda key, x: {}, forward, lambda params, z, dropout_key=None: f(z))


def identity_map() -> MirrorMap:
    """Returns the mirror map of an unconstrained set: g and f the identity."""
    return _without_parameters(lambda x: x, lambda z: z)


def standardised(mirror_map: MirrorMap, mean: Unit, scale: Unit) -> MirrorMap:
    """Returns a map `g_s, f_s` of standardised fields as one of fields in the user's units,
    `g(x) = g_s((x - mean) / scale)`, `f(z) = mean + scale f_s(z)`: with mean and scale > 0, numbers
    or one a channel; the map itself for 0 and 1. Train the given map: `namm_loss` compares `g(x)`
    with `a x`.
    """
    mean = np.asarray(mean)
    scale = np.asarray(scale)
    if (mean == 0).all() and (scale == 1).all():
        return mirror_map

    def g(params: Params, x: Array) -> Array:
        u = (x - jnp.asarray(mean, x.dtype)) / jnp.asarray(scale, x.dtype)
        return mirror_map.forward(params, u)

    def f(params: Params, z: Array, dropout_key: Key | None = None) -> Array:
        u = mirror_map.inverse(params, z, dropout_key)
        return jnp.asarray(mean, u.dtype) + jnp.asarray(scale, u.dtype) * u

    return MirrorMap(mirror_map.init, g, f)


def box_map(low: float | int, high: float | int, *, floor: float | int = 0.0) -> MirrorMap:
    """Returns the mirror map of `low < x < high`, pixel by pixel.

    `g(x) = (log(x - low) - log(high - x)) / 2`, `f(z) = low + (high - low)(1 + tanh z)/2`, and phi
    the sum of `((x - low) log(x - low) + (high - x) log(high - x)) / 2`. In float32 `f(g(x)) = x`
    to 1e-6 of `max(|low|, |high|)`, and f stays inside to the same, exactly if low is 0. The
    `floor` in [0, 1) is the part of the set's centre that is mixed into the data.
    """
    check_within('(0, inf)', **{'high - low': high - low})
    check_within('[0, 1)', floor=floor)
    middle = (low + high) / 2

    def g(x: Array) -> Array:
        x = (1 - floor) * x + floor * middle
        return (jnp.log(x - low) - jnp.log(high - x)) / 2

    # Both weights from their own sigmoid: each border is then reached without cancellation.
    f = lambda z: low * jax.nn.sigmoid(-2 * z) + high * jax.nn.sigmoid(2 * z)
    return _without_parameters(g, f)


def ball_map(radius: float | int, *, floor: float | int = 0.0) -> MirrorMap:
    """Returns the mirror map of `|x| < radius`, the Euclidean norm over all pixels of a field.

    `phi(x) = -log(R^2 - |x|^2)`, `g(x) = 2 x / (R^2 - |x|^2)` and
    `f(z) = R^2 z / (1 + sqrt(1 + R^2 |z|^2))`, which has no norm to divide by. In float32
    `f(g(x)) = x` to 1e-6 R where `|x| < (1 - 1e-6) R`, and `|f(z)| <= R` to 1e-6 R for `R |z|` up
    to 1e18. Floor, whose centre is 0, as of `box_map`; radius R > 0.
    """
    check_within('(0, inf)', radius=radius)
    check_within('[0, 1)', floor=floor)
    square = lambda x: jnp.sum(x * x, _PIXELS, keepdims=True)

    def g(x: Array) -> Array:
        x = (1 - floor) * x
        return 2 * x / (radius**2 - square(x))

    f = lambda z: radius**2 * z / (1 + jnp.sqrt(1 + square(radius * z)))
    return _without_parameters(g, f)


def simplex_map(total: float | int, *, floor: float | int = 0.0) -> MirrorMap:
    """Returns the mirror map of `x > 0, sum(x) = total`, over all pixels of a field.

    `phi(x) = sum x log x`, whose gradient on the simplex is `g(x) = log x - mean(log x)`: mirror
    points are fields of mean 0. `f(z) = total softmax(z)`, the same for `z + constant`, so
    `g(f(z)) = z - mean(z)`: of the noise in mirror space one number a field has no effect. In
    float32 `f(g(x)) = x` to 1e-5 of each pixel above 1e-20, `f(z) >= 0`, and its sum is right to
    1e-6 of the total. Floor, an even haze in samples, as of `box_map`; total > 0.
    """
    check_within('(0, inf)', total=total)
    check_within('[0, 1)', floor=floor)

    def g(x: Array) -> Array:
        log_x = jnp.log((1 - floor) * x + floor * total / math.prod(x.shape[1:]))
        return log_x - jnp.mean(log_x, _PIXELS, keepdims=True)

    return _without_parameters(g, lambda z: total * jax.nn.softmax(z, _PIXELS))


def add_noise(
    key: Key, z: Fields, *, sigma_max: float, power: float = 1.0
) -> tuple[Fields, Float[Array, ' b']]:
    """Returns `(z + sigma noise, sigma)`, `sigma = sigma_max u^power` with u ~ U(0, 1) a sample.

    The largest level is >= 0 and in the units of z, `(b, h, w, c)`; the power 1 gives the paper's
    uniform law, a larger one favours small noise.
    """
    key_sigma, key_noise = jax.random.split(key)
    sigma = sigma_max * jax.random.uniform(key_sigma, z.shape[:1]) ** power
    return z + sigma[:, None, None, None] * jax.random.normal(key_noise, z.shape, z.dtype), sigma


def namm_loss(
    mirror: MirrorMap,
    params: Params,
    key: Key,
    x: Fields,
    constraint: Constraint,
    z: Fields | None = None,
    *,
    sigma_max: float,
    sigma_power: float = 1.0,
    lambda_cycle: float = 1.0,
    lambda_constr: float = 1.0,
    lambda_reg: float = 1e-3,
    strong_convexity: float = 0.9,
    train: bool = True,
) -> tuple[Array, Metrics]:
    """Returns the loss of the module's docstring, and its terms before their weights: the scalars
    `cycle_data`, `cycle_mirror`, `constraint` (and `constraint/NAME`, if there are several) and
    `regularisation`.

    Args:
        key: of noise and dropout.
        x: data `(b, h, w, c)`.
        z: the mirror points that take noise, `(b, h, w, c)`, samples of the mirror diffusion model
            in finetuning; `g(x)` when absent.
        sigma_max, sigma_power: law of the noise, as of `add_noise`.
        strong_convexity: a of the forward map.
        train: whether dropout acts.
    """
    key_noise, key_dropout = jax.random.split(key)
    g_x = mirror.forward(params, x)
    z = g_x if z is None else z
    z_noisy, _ = add_noise(key_noise, z, sigma_max=sigma_max, power=sigma_power)

    # One call of f on both batches: each layer's matrices are read once.
    both = jnp.concatenate([g_x, z_noisy])
    both = mirror.inverse(params, both, key_dropout if train else None)
    x_cycled, x_inverse = jnp.split(both, [x.shape[0]])

    slope = max(1 - strong_convexity, 1e-6)
    by_term = {f'constraint/{k}': v.mean() for k, v in constraint.terms(x_inverse).items()}
    terms = {
        'cycle_data': jnp.abs(x_cycled - x).mean(),
        'cycle_mirror': jnp.abs(mirror.forward(params, x_inverse) - z_noisy).mean(),
        'constraint': constraint.distance(x_inverse).mean(),
        'regularisation': jnp.abs((g_x - strong_convexity * x) / slope).mean(),
    }
    loss = (
        0.5 * lambda_cycle * (terms['cycle_data'] + terms['cycle_mirror'])
        + lambda_constr * terms['constraint']
        + lambda_reg * terms['regularisation']
    )
    return loss, terms | (by_term if len(by_term) > 1 else {})


def robustness(
    mirror: MirrorMap,
    params: Params,
    key: Key,
    x: Fields,
    constraint: Constraint,
    sigma: Float[Array, ' k'],
) -> dict[str, Float[Array, ' k']]:
    """Returns how far f lands from M and from x, when `z = g(x)` takes noise of levels sigma.

    With `x' = f(z + sigma noise)`: mean and standard deviation of the distance `l(x')` over
    samples, and the mean error `|x' - x|`, `{'distance_mean', 'distance_std', 'error_mean'}`,
    `(k,)` each. The noise is the same at every level `(k,)`, in the units of z.
    """
    z = mirror.forward(params, x)
    noise = jax.random.normal(key, x.shape, x.dtype)

    def measure(sigma: Array) -> Metrics:
        x_inverse = mirror.inverse(params, z + sigma * noise)
        distance = constraint.distance(x_inverse)
        moments = {'distance_mean': distance.mean(), 'distance_std': distance.std()}
        return moments | {'error_mean': jnp.abs(x_inverse - x).mean()}

    return jax.lax.map(measure, sigma)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Mirror:
    """A learned mirror map with its parameters, from and to data in their own units; a pytree."""

    params: Params = dataclasses.field(repr=False)  # `{'forward': ..., 'inverse': ...}`
    forward_network: Any = static()  # the input-convex network of g
    inverse_network: Any = static()  # the network of f
    strong_convexity: float = static(default=0.9)  # a of g
    output: str = static(default='residual')  # a key of `OUTPUTS`
    units: tuple[Any, Any] = static(default=(0.0, 1.0))  # mean and scale, numbers or tuples

    @property
    def map(self) -> MirrorMap:
        """The map of standardised fields."""
        settings = dict(strong_convexity=self.strong_convexity, output=self.output)
        return neural_mirror_map(self.forward_network, self.inverse_network, **settings)

    def forward(self, x: Fields) -> Fields:
        """Returns the mirror points `z = g(x)` of data `(b, h, w, c)`."""
        return _in_chunks(self, 'forward', x)

    def inverse(self, z: Fields) -> Fields:
        """Returns the data `x = f(z)` of mirror points `(b, h, w, c)`."""
        return _in_chunks(self, 'inverse', z)

    def project(self, x: Fields) -> Fields:
        """Returns `f(g(x))`, which takes samples of any model towards the rule."""
        return self.inverse(self.forward(x))


@functools.partial(jax.jit, static_argnums=1)
def _mapped(mirror: Mirror, way: str, x: Fields) -> Fields:
    return getattr(standardised(mirror.map, *mirror.units), way)(mirror.params, x)


def _in_chunks(mirror: Mirror, way: str, x: Any) -> Fields:
    """Returns the points of one way of a map, some at a time: all at once would not fit."""
    expected = 'fields (b, h, w, c) like those that the map was trained on; one field is x[None]'
    if np.ndim(x) != 4:
        raise ValueError(f'x: got shape {np.shape(x)}, expected {expected}')
    x = jnp.asarray(x, jnp.result_type(*jax.tree.leaves(mirror.params)))
    function = functools.partial(_mapped, mirror, way)
    check_function(f'x of {x.shape}', function, expected, x)
    if isinstance(x, jax.core.Tracer) or len(x) <= CHUNK:
        return function(x)
    return jnp.concatenate([function(x[i : i + CHUNK]) for i in range(0, len(x), CHUNK)])
