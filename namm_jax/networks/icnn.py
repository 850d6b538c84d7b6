"""The input-convex convolutional network, whose gradient is the forward map g.

With convolutions `l_k`, `q_k` of the input and non-negative convolutions `w_k`:

    z_0     = lrelu(q_0(x)^2 + l_0(x))
    z_{k+1} = lrelu(w_k(z_k) + q_{k+1}(x)^2 + l_{k+1}(x))
    ICNN(x) = reduction over pixels and channels of v(z_K)
    g(x)    = (1 - a) grad_x ICNN(x) + a x

is convex in x, so that g is the gradient of a strongly convex function and therefore injective. It
jumps where a leaky ReLU has its kink.

References: Feng, Baptista & Bouman, ICLR 2025, arXiv 2406.12816; Amos, Xu & Kolter, ICML 2017,
arXiv 1609.07152.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

from namm_jax._checks import check_output, choose
from namm_jax.networks.convolution import Periodic, convolve_twice_differentiable

# What multiplies the sum over pixels of the channel mean of v(z): 'row_sum' is the published one,
# with 'sum' the gradient does not depend on the image's shape.
REDUCTIONS = {
    'sum': lambda h, w: 1.0,
    'row_sum': lambda h, w: 1.0 / w,
    'mean': lambda h, w: 1.0 / (h * w),
}
SMALL_POSITIVE = lambda key, shape: jax.random.uniform(key, shape, minval=0.0, maxval=1e-3)


class ICNN(nn.Module):
    """A convex function of an image, `(b, h, w, c) -> (b,)`."""

    filters: int = 32  # channels of each hidden layer
    layers: int = 3  # number of `w_k`; there are `layers + 1` pairs `q_k, l_k`
    slope: float = 0.2  # leaky slope
    periodic: Periodic = (True, True)
    reduction: str = 'sum'  # a key of `REDUCTIONS`

    def __post_init__(self):
        choose('reduction', self.reduction, REDUCTIONS)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        n = self.layers + 1
        c = x.shape[-1]

        # All convolutions of x are one.
        shape = (3, 3, c, 2 * n * self.filters)
        kernel = self.param('input', nn.initializers.lecun_normal(), shape)
        bias = self.param('bias', nn.initializers.zeros, (n * self.filters,))
        both = convolve_twice_differentiable(x, kernel, self.periodic)
        q, linear = jnp.split(both, 2, axis=-1)
        pairs = jnp.split(q**2 + linear + bias, n, axis=-1)

        z = nn.leaky_relu(pairs[0], self.slope)
        for k, pair in enumerate(pairs[1:]):
            w = self.param(f'nonnegative_{k}', SMALL_POSITIVE, (3, 3, self.filters, self.filters))
            z = nn.leaky_relu(convolve_twice_differentiable(z, w, self.periodic) + pair, self.slope)

        # A circular convolution summed over pixels is a product with the kernel's spatial sum.
        v = self.param('nonnegative_last', SMALL_POSITIVE, (3, 3, self.filters, c))
        return REDUCTIONS[self.reduction](*x.shape[1:3]) * (z.sum((1, 2)) @ v.sum((0, 1)).mean(-1))


def gradient_map(network: nn.Module, params: dict, x: Array, *, strong_convexity: float) -> Array:
    """Returns `g(x) = (1 - a) grad_x ICNN(x) + a x` of fields `(b, h, w, c)`, a in [0, 1]; the
    network is any module `x -> (b,)`.
    """
    apply = lambda x: network.apply({'params': params}, x)
    phi = lambda x: check_output('forward', apply(x), len(x), 'distance').sum()
    return (1 - strong_convexity) * jax.grad(phi)(x) + strong_convexity * x


def nonnegative_mask(params: dict) -> dict:
    """Returns a tree of booleans, true for parameters with `nonnegative...` in their path."""

    def marked(path: tuple, _: Array) -> bool:
        return any(str(getattr(entry, 'key', '')).startswith('nonnegative') for entry in path)

    return jax.tree_util.tree_map_with_path(marked, params)
