"""Networks that count: an image in, a number out. Two of them, unlike in build, so that one can check the other.

Both compute in the type of their input, half precision raised to float32; parameters stay float32.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from namm_jax.networks.convolution import Conv, space_to_depth

START_DENSITY = -4.0  # softplus of it is 0.018 objects a pixel, some 5 to 20 in an image: near what is to be counted


def _conv(features: int, dtype: DTypeLike) -> Conv:
    return Conv(features, periodic=(False, False), dtype=dtype)


def _average_pool(h: jax.Array) -> jax.Array:
    """Returns the means of blocks of 2x2 pixels, `(b, h / 2, w / 2, c)`."""
    b, height, width, c = h.shape
    return h.reshape(b, height // 2, 2, width // 2, 2, c).mean((2, 4))


def _prepare(x: jax.Array, factor: int) -> jax.Array:
    """Returns `x` in the type of the computation, if its sides are multiples of `factor`."""
    if x.ndim != 4 or any(size % factor or not size for size in x.shape[1:3]):
        raise ValueError(
            f'Got x of shape {x.shape}, expected (b, h, w, c) with h and w multiples of {factor}, which the network '
            'needs to halve them: use fewer levels or another image size.'
        )
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


class Counter(nn.Module):
    """Maps images `(b, h, w, c)` to counts `(b,)`: convolutions with pooling, then two dense layers.

    For each number of filters a 3x3 convolution, ReLU and the average over 2x2 pixels; then a dense layer, ReLU and a
    dense layer of one output. Since the dense layer reads every pixel, the parameters belong to one image size: 16.8
    million at 128x128, 4.2 million at 64x64. The output is not bounded: it can be negative.

    Attributes:
        filters: channels of each convolution.
        hidden: width of the dense layer between.

    Reference: the counting network of Feng, Baptista & Bouman, ICLR 2025, arXiv 2406.12816.
    """

    filters: tuple[int, ...] = (32, 64)
    hidden: int = 256

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = _prepare(x, 2 ** len(self.filters))
        for features in self.filters:
            h = _average_pool(nn.relu(_conv(features, h.dtype)(h)))
        h = h.reshape(h.shape[0], math.prod(h.shape[1:]))
        h = nn.relu(nn.Dense(self.hidden, dtype=h.dtype)(h))
        return nn.Dense(1, dtype=h.dtype)(h)[:, 0]


class DensityCounter(nn.Module):
    """Maps images `(b, h, w, c)` to counts `(b,)`, the integral of a density: convolutions only, any image size.

    Two 3x3 convolutions at each resolution; the mean over the image, added to every pixel, tells how strong the
    noise is against the sources; the density is softplus of a linear map of each pixel, and the count its sum. It is
    positive.

    Attributes:
        channels: width at each resolution, each half the one before it; the density has the last one.

    Reference: counting as the integral of a density, Lempitsky & Zisserman, NeurIPS 2010.
    """

    channels: tuple[int, ...] = (16, 32, 64)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = _prepare(x, 2 ** (len(self.channels) - 1))
        dtype = h.dtype
        for i, features in enumerate(self.channels):
            if i:
                h = nn.Dense(features, dtype=dtype)(space_to_depth(h, 2))
            for _ in range(2):
                h = nn.swish(_conv(features, dtype)(h))
        h = nn.swish(h + nn.Dense(h.shape[-1], dtype=dtype)(h.mean((1, 2)))[:, None, None])
        density = nn.Dense(1, bias_init=nn.initializers.constant(START_DENSITY), dtype=dtype)(h)
        return nn.softplus(density).sum((1, 2, 3))
