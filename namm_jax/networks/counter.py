"""Networks that count: an image in, a number out. Two of different build, so that one can check the
other.

Both compute in the type of their input, half precision raised to float32; parameters stay float32.
Each has a `loss (x, sources) -> (b,)` to be trained by, of the objects at each pixel
`(b, h, w, 1)`.
"""

import math

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array

from namm_jax._arrays import at_least_single
from namm_jax.networks.convolution import Conv, space_to_depth


def _conv(features: int, dtype: DTypeLike) -> Conv:
    return Conv(features, periodic=(False, False), dtype=dtype)


def huber(count: Array, sources: Array) -> Array:
    """Returns Huber's loss, of width 1/2, of counts `(b,)` given the objects at each pixel."""
    error = jnp.abs(count - sources.sum((1, 2, 3)))
    quadratic = jnp.minimum(error, 0.5)
    return quadratic * (error - quadratic / 2)


def misplacement(logits: Array, inside: Array) -> Array:
    """Returns the sum over cells of cross-entropies, `(b,)`: how unlikely the objects' places are.

    Given are the logits `log(p / (1 - p)) (b, h, w, 1)`, with p the probability of an object in a
    cell, and the objects inside each, `(b, h, w, 1)`, where several count as one.
    """
    return (nn.softplus(logits) - jnp.minimum(inside, 1) * logits).sum((1, 2, 3))


def _prepare(x: Array, factor: int) -> Array:
    if x.ndim != 4 or any(size % factor or not size for size in x.shape[1:3]):
        raise ValueError(
            f'Got x of shape {x.shape}, expected (b, h, w, c) with h and w multiples of {factor}, '
            'which the network needs to halve them: use fewer levels or another image size.'
        )
    return at_least_single(x)


class Counter(nn.Module):
    """Maps images `(b, h, w, c)` to counts `(b,)`, which can be negative.

    For each number of filters a 3x3 convolution, ReLU and the average over 2x2 pixels; then a dense
    layer, ReLU and a dense layer of one output. The parameters belong to one image size.

    Reference: the counting network of Feng, Baptista & Bouman, ICLR 2025, arXiv 2406.12816.
    """

    filters: tuple[int, ...] = (32, 64)  # channels of each convolution
    hidden: int = 256  # width of the dense layer between

    @nn.compact
    def __call__(self, x: Array) -> Array:
        h = _prepare(x, 2 ** len(self.filters))
        for features in self.filters:
            h = nn.relu(_conv(features, h.dtype)(h))
            b, height, width, c = h.shape
            h = h.reshape(b, height // 2, 2, width // 2, 2, c).mean((2, 4))
        h = h.reshape(h.shape[0], math.prod(h.shape[1:]))
        h = nn.relu(nn.Dense(self.hidden, dtype=h.dtype)(h))
        return nn.Dense(1, dtype=h.dtype)(h)[:, 0]

    def loss(self, x: Array, sources: Array) -> Array:
        """Returns Huber's loss of the count, `(b,)`."""
        return huber(self(x), sources)


class DensityCounter(nn.Module):
    """Maps images `(b, h, w, c)` of any size to counts `(b,)`, the sum of a density.

    The image is folded into cells of 2x2 pixels, and those again for each further resolution; at
    each of them 3x3 convolutions with skips. The mean over the image, added to every cell, says how
    strong the noise is. The density is the logistic function of a linear map of each cell, the
    probability of an object there: sure cells add 0 or 1, and no noise.

    Reference: Lempitsky & Zisserman, NeurIPS 2010: counting as the integral of a density.
    """

    channels: tuple[int, ...] = (48, 64)  # width at each resolution, each half the one before it
    convolutions: int = 3  # at each resolution

    @nn.compact
    def logits(self, x: Array) -> Array:
        """Returns each cell's log(p / (1 - p)), `(b, h / 2^n, w / 2^n, 1)` for n resolutions."""
        h = _prepare(x, 2 ** len(self.channels))
        dtype = h.dtype
        for features in self.channels:
            h = nn.Dense(features, dtype=dtype)(space_to_depth(h, 2))
            for _ in range(self.convolutions):
                h = h + nn.swish(_conv(features, dtype)(h))
        h = nn.swish(h + nn.Dense(h.shape[-1], dtype=dtype)(h.mean((1, 2)))[:, None, None])
        start = min(0.5, 8 / math.prod(h.shape[1:3]))  # 8 objects in an image
        bias = nn.initializers.constant(math.log(start / (1 - start)))
        return nn.Dense(1, bias_init=bias, dtype=dtype)(h)

    def __call__(self, x: Array) -> Array:
        return nn.sigmoid(self.logits(x)).sum((1, 2, 3))

    def loss(self, x: Array, sources: Array) -> Array:
        """Returns Huber's loss of the count plus the misplacement of the density, `(b,)`."""
        logits = self.logits(x)
        inside = space_to_depth(sources, 2 ** len(self.channels)).sum(-1, keepdims=True)
        return huber(nn.sigmoid(logits).sum((1, 2, 3)), sources) + misplacement(logits, inside)


# name -> class; the first is the better one.
COUNTERS: dict[str, type[nn.Module]] = {'density': DensityCounter, 'dense': Counter}
