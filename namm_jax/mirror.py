"""Neural approximate mirror maps: a forward map g into mirror space, an inverse f, and their loss.

Symbols: `x` data on the constraint set M, `z = g(x)` mirror points, `z_noisy = z + sigma noise`
with `sigma ~ U(0, sigma_max)` for each sample, `l` the distance to M.

    L        = L_cycle + lambda_constr L_constr + lambda_reg L_reg
    L_cycle  = 1/2 mean|f(g(x)) - x| + 1/2 mean|g(f(z_noisy)) - z_noisy|
    L_constr = mean l(f(z_noisy))
    L_reg    = mean|(g(x) - a x) / (1 - a)|

Reference: Feng, Baptista & Bouman, "Neural Approximate Mirror Maps for Constrained Diffusion
Models", ICLR 2025, arXiv 2406.12816.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from namm_jax._arrays import Constraint, Fields, Key, Metrics, MirrorMap, Params, PerSample
from namm_jax._checks import choose
from namm_jax.networks.icnn import gradient_map

# From z, the network's output y and a to f(z). `residual` corrects the inverse of g's linear part,
# which a network of normalised features can only approximate. `centred` does so but for each
# sample's mean, which is y's alone, as of such a network: what noise does to a sample's sum is gone
# before anything is learned. The others are the paper's.
OUTPUTS = {
    'residual': lambda z, y, a: z / a + y,
    'centred': lambda z, y, a: (z - z.mean((1, 2, 3), keepdims=True)) / a + y,
    'plain': lambda z, y, a: y,
    'softplus': lambda z, y, a: jax.nn.softplus(y),
    'residual_softplus': lambda z, y, a: jax.nn.softplus(z + y),
}


def network_map(
    network: Any, params: Params, x: jax.Array, *, strong_convexity: float
) -> jax.Array:
    """Returns `g(x) = (1 - a) network(x) + a x`, a forward map that need not be injective (for
    ablations).
    """
    return (1 - strong_convexity) * network.apply({'params': params}, x) + strong_convexity * x


def unchanged(network: Any, params: Params, x: jax.Array, *, strong_convexity: float) -> jax.Array:
    """Returns x: with it only f is learned (for ablations)."""
    return x


def neural_mirror_map(
    forward: Any,
    inverse: Any,
    *,
    strong_convexity: float = 0.9,
    output: str = 'residual',
    forward_map: Callable[..., jax.Array] = gradient_map,
) -> MirrorMap:
    """Returns the learned mirror map: `g = (1 - a) grad ICNN + a id` and f a network.

    Args:
        forward: the network of g: an `ICNN`, or what `forward_map` asks for.
        inverse: the network of f, a Flax module `(z, *, train) -> like z` with an optional dropout
            collection.
        strong_convexity: a in (0, 1].
        output: a name in `OUTPUTS`.
        forward_map: `(network, params, x, *, strong_convexity) -> g(x)`; the gradient of the
            input-convex network, unless another is tried.

    Raises:
        ValueError: if `strong_convexity` is outside (0, 1] or `output` is unknown.
    """
    if not 0 < strong_convexity <= 1:
        raise ValueError(
            f'strong_convexity: got {strong_convexity}, expected a number in (0, 1]; the paper '
            'uses 0.9'
        )
    corrected = choose('output', output, OUTPUTS)

    def init(key: Key, x: jax.Array) -> Params:
        key_forward, key_inverse = jax.random.split(key)
        return {
            'forward': forward.init(key_forward, x)['params'],
            'inverse': inverse.init(key_inverse, x)['params'],
        }

    def g(params: Params, x: jax.Array) -> jax.Array:
        return forward_map(forward, params['forward'], x, strong_convexity=strong_convexity)

    def f(params: Params, z: jax.Array, dropout_key: Key | None = None) -> jax.Array:
        rngs = None if dropout_key is None else {'dropout': dropout_key}
        y = inverse.apply(
            {'params': params['inverse']}, z, train=dropout_key is not None, rngs=rngs
        )
        return corrected(z, y, strong_convexity)

    return MirrorMap(init, g, f)


def identity_map() -> MirrorMap:
    """Returns the mirror map of an unconstrained set: g and f the identity, no parameters."""
    return MirrorMap(lambda key, x: {}, lambda params, x: x, lambda params, z, dropout_key=None: z)


def add_noise(
    key: Key, z: Fields, *, sigma_max: float, power: float = 1.0
) -> tuple[Fields, PerSample]:
    """Returns `(z + sigma noise, sigma)` with `sigma = sigma_max u^power`, u uniform on [0, 1], one
    a sample.

    Args:
        key: a PRNG key.
        z: mirror points `(b, h, w, c)`.
        sigma_max: largest noise level, in the units of z; >= 0.
        power: 1 for the paper's uniform law; larger favours small noise.
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
) -> tuple[jax.Array, Metrics]:
    """Returns the loss of the module's docstring and its named terms.

    Args:
        mirror: the mirror map.
        params: its parameters.
        key: a PRNG key, for noise and dropout.
        x: data `(b, h, w, c)`.
        constraint: the set M.
        z: the mirror points that take noise, `(b, h, w, c)`; `g(x)` when absent. Finetuning passes
            samples of the mirror diffusion model.
        sigma_max: largest noise level in mirror space.
        sigma_power: see `add_noise`.
        lambda_cycle: weight of both cycle terms.
        lambda_constr: weight of the constraint term.
        lambda_reg: weight of the regularisation term.
        strong_convexity: a of the forward map.
        train: whether dropout acts.

    Returns:
        The scalar loss, and a dictionary of scalars `cycle_data`, `cycle_mirror`, `constraint` (one
        entry for each term of the constraint where there are several) and `regularisation`, each
        before its weight.
    """
    key_noise, key_dropout = jax.random.split(key)
    g_x = mirror.forward(params, x)
    z_noisy, _ = add_noise(
        key_noise, g_x if z is None else z, sigma_max=sigma_max, power=sigma_power
    )

    # One call of f on both batches: each layer's matrices are read once. Dropout is drawn for each
    # sample anyway.
    stacked = mirror.inverse(
        params, jnp.concatenate([g_x, z_noisy]), key_dropout if train else None
    )
    x_cycled, x_inverse = jnp.split(stacked, [x.shape[0]])

    by_term = {name: value.mean() for name, value in constraint.terms(x_inverse).items()}
    terms = {
        'cycle_data': jnp.abs(x_cycled - x).mean(),
        'cycle_mirror': jnp.abs(mirror.forward(params, x_inverse) - z_noisy).mean(),
        'constraint': constraint.distance(x_inverse).mean(),
        'regularisation': jnp.abs(
            (g_x - strong_convexity * x) / max(1 - strong_convexity, 1e-6)
        ).mean(),
    }
    loss = (
        0.5 * lambda_cycle * (terms['cycle_data'] + terms['cycle_mirror'])
        + lambda_constr * terms['constraint']
        + lambda_reg * terms['regularisation']
    )
    return loss, terms | (
        {f'constraint/{k}': v for k, v in by_term.items()} if len(by_term) > 1 else {}
    )


def robustness(
    mirror: MirrorMap,
    params: Params,
    key: Key,
    x: Fields,
    constraint: Constraint,
    sigma: Float[Array, ' k'],
) -> dict[str, Float[Array, ' k']]:
    """Returns how far f lands from M and from x, when `z = g(x)` takes noise of known levels.

    With `x' = f(z + sigma noise)`: the distance `l(x')` and the error `mean|x' - x|`, over samples
    and pixels. The noise is the same at every level, and for every f that is given the same key:
    differences are not its chance.

    Args:
        mirror: the mirror map.
        params: its parameters.
        key: a PRNG key, for the noise.
        x: data `(b, h, w, c)`.
        constraint: the set M.
        sigma: noise levels `(k,)`, in the units of z; training saw those up to its `sigma_max`.

    Returns:
        `{'distance_mean', 'distance_std', 'error_mean'}`, `(k,)` each: the constraint's unit,
        twice, and data units.
    """
    z, noise = mirror.forward(params, x), jax.random.normal(key, x.shape, x.dtype)

    def measure(sigma: Array) -> Metrics:
        x_inverse = mirror.inverse(params, z + sigma * noise)
        distance = constraint.distance(x_inverse)
        error = jnp.abs(x_inverse - x).mean()
        return {
            'distance_mean': distance.mean(),
            'distance_std': distance.std(),
            'error_mean': error,
        }

    return jax.lax.map(measure, sigma)
