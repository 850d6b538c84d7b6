"""A U-Net, used as score network (noise-conditioned) and as inverse map f (not).

Residual blocks of equal width and one skip connection at each resolution, of pixels that may first
be folded into channels.

References: Ronneberger, Fischer & Brox 2015, arXiv 1505.04597; Ho, Jain & Abbeel 2020, arXiv
2006.11239.
"""

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array

from namm_jax._checks import choose
from namm_jax.networks.convolution import (
    Conv,
    GlobalConv,
    Periodic,
    depth_to_space,
    padded,
    space_to_depth,
)


def fourier_features(label: Array, features: int) -> Array:
    """Returns sines and cosines `(b, features)` of `label (b,)`, frequencies even in logarithm."""
    frequencies = jnp.exp(-jnp.log(1e4) * jnp.arange(features // 2) / (features // 2))
    angles = label[:, None] * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)


def _group_norm(h: Array, dtype: DTypeLike) -> Array:
    return nn.GroupNorm(num_groups=max(1, min(32, h.shape[-1] // 8)), dtype=dtype)(h)


# Without it a block costs a third less and can be linear in its input to any accuracy, which f
# needs; with it the score network, whose input is scaled, learns faster.
NORMS = {'group': _group_norm, 'none': lambda h, dtype: h}


def position_features(shape: tuple[int, int], cell: tuple[int, int]) -> Array:
    """Returns `(h, w, features)`: the place of each pixel in its cell, smooth across cells' ends.

    Along an axis with cells of p pixels, features are `cos` and `sin` of `2 pi k (i + 1/2) / p` for
    `k = 1, 2, 4, ...`, at most `p / 4`, of pixel i. Cells of one pixel have none; cells that do not
    fill the shape `(h, w)` raise a ValueError.
    """
    if any(n % p for n, p in zip(shape, cell, strict=True)):
        raise ValueError(f'got cells of {cell} pixels, expected divisors of the shape, {shape}')
    features = [jnp.zeros((*shape, 0))]
    for axis, (n, p) in enumerate(zip(shape, cell, strict=True)):
        waves = 2 ** jnp.arange(max(1, p.bit_length() - 2)) if p > 1 else jnp.zeros(0)
        angles = 2 * jnp.pi * waves * (jnp.arange(n)[:, None] % p + 0.5) / p
        along = jnp.expand_dims(jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1), 1 - axis)
        features.append(jnp.broadcast_to(along, (*shape, along.shape[-1])))
    return jnp.concatenate(features, -1)


class ResidualBlock(nn.Module):
    """`h + conv(dropout(swish(modulate(norm(conv(swish(norm(h))))))))`, at first the identity."""

    periodic: Periodic
    norm: str
    dropout: float
    deterministic: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, h: Array, embedding: Array | None) -> Array:
        c = h.shape[-1]
        norm = NORMS[self.norm]
        y = Conv(c, periodic=self.periodic, dtype=self.dtype)(nn.swish(norm(h, self.dtype)))
        y = norm(y, self.dtype)
        if embedding is not None:
            modulation = nn.Dense(2 * c, dtype=self.dtype)(embedding)[:, None, None]
            scale, shift = jnp.split(modulation, 2, -1)
            y = (1 + scale) * y + shift
        y = nn.Dropout(self.dropout)(nn.swish(y), deterministic=self.deterministic)
        y = Conv(c, periodic=self.periodic, kernel_init=nn.initializers.zeros, dtype=self.dtype)(y)
        return h + y


class Attention(nn.Module):
    """Self-attention over all pixels, with a residual connection."""

    dtype: DTypeLike

    @nn.compact
    def __call__(self, h: Array) -> Array:
        b, height, width, c = h.shape
        tokens = _group_norm(h, self.dtype).reshape(b, height * width, c)
        out = nn.MultiHeadDotProductAttention(num_heads=max(1, c // 64), dtype=self.dtype)(tokens)
        return h + out.reshape(h.shape)


class UNet(nn.Module):
    """Maps `(b, h, w, c)` to `(b, h, w, c)`, given a label `(b,)` or not, and a level `(b,)` of
    order 1, none where it is below 0; parameters and output stay float32. Sizes that cannot be
    halved as often are `padded` first, and cut at the end.
    """

    channels: tuple[int, ...] = (64, 128)  # width at each resolution, each half the one before it
    blocks: int = 1  # residual blocks at each resolution, on the way down and again on the way up
    fold: int = 2  # factor by which pixels are folded into channels first
    periodic: Periodic = (True, True)
    # Pixels along each axis after which the law of the data repeats, 1 where all are alike. The
    # place in a cell is an input: else rolled data would have the probability of the data.
    cell: tuple[int, int] = (1, 1)
    head: int = 16  # channels at full resolution, before the output
    norm: str = 'group'  # a key of `NORMS`
    attention: bool = False  # at the lowest resolution
    global_convolution: bool = False  # at the highest resolution, down and up: for one image size
    dropout: float = 0.0  # probability of dropping a feature in training
    remat: bool = False  # whether blocks are computed again in the backward pass, not kept
    dtype: DTypeLike = jnp.float32  # of the computation

    def __post_init__(self):
        choose('norm', self.norm, NORMS)
        super().__post_init__()

    def _block(self, h: Array, embedding: Array | None, train: bool) -> Array:
        block = ResidualBlock(self.periodic, self.norm, self.dropout, not train, self.dtype)
        return block(h, embedding)

    def _level(self, h: Array, embedding: Array | None, train: bool) -> Array:
        block = nn.remat(UNet._block, static_argnums=3) if self.remat else UNet._block
        for _ in range(self.blocks):  # no scan: XLA:CPU runs its convolutions 20 times slower
            h = block(self, h, embedding, train)
        return h

    def _with_position(self, h: Array) -> Array:
        cells = (math.lcm(p, self.fold) // self.fold for p in self.cell)
        # Cells need not fill an axis that is padded: it is one.
        cell = tuple(n if n % p else p for n, p in zip(h.shape[1:3], cells, strict=True))
        features = position_features(h.shape[1:3], cell)
        features = jnp.broadcast_to(features, (len(h), *features.shape))
        return jnp.concatenate([h, features.astype(h.dtype)], -1)

    def _global_conv(self, h: Array) -> Array:
        return GlobalConv(self.periodic)(h) if self.global_convolution else h

    def _conv(self, features: int, **options: Any) -> Conv:
        return Conv(features, periodic=self.periodic, dtype=self.dtype, **options)

    def _embed(self, label: Array, level: Array | None) -> Array:
        c = 4 * self.channels[0]
        h = nn.swish(nn.Dense(c)(fourier_features(label, self.channels[0])))
        if level is not None:  # at first without effect, below 0 always
            of_level = nn.Dense(c, use_bias=False, kernel_init=nn.initializers.zeros, name='level')
            features = fourier_features(level, self.channels[0])
            h = h + jnp.where(level[:, None] < 0, 0, of_level(features))
        return nn.swish(nn.Dense(c)(h)).astype(self.dtype)

    @nn.compact
    def __call__(
        self,
        x: Array,
        label: Array | None = None,
        level: Array | None = None,
        *,
        train: bool = False,
    ) -> Array:
        x, place = padded(x, self.fold * 2 ** (len(self.channels) - 1), self.periodic)
        embedding = None if label is None else self._embed(label, level)
        h = self._with_position(space_to_depth(x, self.fold))
        h = self._global_conv(self._conv(self.channels[0])(h))
        skips = []
        for i, c in enumerate(self.channels):
            if i:
                h = nn.Dense(c, dtype=self.dtype)(space_to_depth(h, 2))
            h = self._level(h, embedding, train)
            skips.append(h)

        if self.attention:
            h = Attention(self.dtype)(h)

        for i, c in reversed(list(enumerate(self.channels))):
            h = nn.Dense(c, dtype=self.dtype)(jnp.concatenate([h, skips[i]], -1))
            h = self._level(h, embedding, train)
            if i:
                h = depth_to_space(nn.Dense(4 * self.channels[i - 1], dtype=self.dtype)(h), 2)

        h = nn.swish(NORMS[self.norm](self._global_conv(h), self.dtype))
        h = depth_to_space(self._conv(self.fold**2 * self.head)(h), self.fold)
        # The pixels of a block must agree: two convolutions see across its borders.
        h = nn.swish(self._conv(self.head)(jnp.concatenate([h, x], -1)))
        out = self._conv(x.shape[-1], kernel_init=nn.initializers.zeros)(h)
        return out[place].astype(jnp.float32)
