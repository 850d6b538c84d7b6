"""The residual generator that the paper uses as inverse map f.

7x7 convolution, two strided convolutions down, residual blocks, two transposed convolutions up, 7x7 convolution;
instance normalisation throughout, kernels drawn from N(0, 0.02^2).

Reference: Zhu, Park, Isola & Efros, ICCV 2017, arXiv 1703.10593; Feng, Baptista & Bouman, ICLR 2025, arXiv 2406.12816.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from namm_jax.networks.convolution import Conv, wrap

NORMAL = nn.initializers.normal(0.02)


def _norm(h: jax.Array, dtype: DTypeLike) -> jax.Array:
    return nn.InstanceNorm(epsilon=1e-6, dtype=dtype)(h)


class _Up(nn.Module):
    """A transposed 3x3 convolution of stride 2, circular along the periodic axes."""

    features: int
    periodic: tuple[bool, bool]
    dtype: DTypeLike

    @nn.compact
    def __call__(self, h: jax.Array) -> jax.Array:
        height, width = 2 * h.shape[1], 2 * h.shape[2]
        up = nn.ConvTranspose(self.features, (3, 3), (2, 2), 'VALID', kernel_init=NORMAL, dtype=self.dtype)
        margins = [2 if wraps else 0 for wraps in self.periodic]
        y = up(wrap(h, 1, self.periodic))
        return y[:, margins[0] : margins[0] + height, margins[1] : margins[1] + width]


class ResNet(nn.Module):
    """Maps `(b, h, w, c)` to `(b, h, w, c)`.

    Attributes:
        filters: channels after the first convolution; four times as many at the lowest resolution.
        blocks: residual blocks at the lowest resolution.
        dropout: probability of dropping a feature in training, in each residual block.
        periodic: which of the two spatial axes wrap.
        dtype: type of the computation; parameters and output stay float32.
    """

    filters: int = 64
    blocks: int = 6
    dropout: float = 0.5
    periodic: tuple[bool, bool] = (False, False)
    dtype: DTypeLike = jnp.float32

    def _conv(self, features: int, size: int = 3, stride: int = 1) -> Conv:
        return Conv(features, size, stride, self.periodic, kernel_init=NORMAL, dtype=self.dtype)

    def _block(self, h: jax.Array, train: bool) -> jax.Array:
        c = h.shape[-1]
        y = nn.relu(_norm(self._conv(c)(h), self.dtype))
        y = nn.Dropout(self.dropout)(y, deterministic=not train)
        return h + _norm(self._conv(c)(y), self.dtype)

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        h = nn.relu(_norm(self._conv(self.filters, size=7)(x), self.dtype))
        for factor in (2, 4):
            h = nn.relu(_norm(self._conv(factor * self.filters, stride=2)(h), self.dtype))
        for _ in range(self.blocks):
            h = self._block(h, train)
        for factor in (2, 1):
            h = nn.relu(_norm(_Up(factor * self.filters, self.periodic, self.dtype)(h), self.dtype))
        return self._conv(x.shape[-1], size=7)(h).astype(jnp.float32)
