"""The residual generator that the paper uses as inverse map f.

7x7 convolution, two strided convolutions down, residual blocks, two transposed convolutions up, 7x7
convolution; instance normalisation throughout, kernels start as N(0, 0.02^2).

Reference: Zhu, Park, Isola & Efros, ICCV 2017, arXiv 1703.10593.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array

from namm_jax.networks.convolution import DIMENSIONS, Conv, Periodic, depth_to_space, padded, wrap

NORMAL = nn.initializers.normal(0.02)


def _norm(h: Array, dtype: DTypeLike) -> Array:
    return nn.InstanceNorm(epsilon=1e-6, dtype=dtype)(h)


class Up(nn.Module):
    """A transposed 3x3 convolution of stride 2, circular along the periodic axes: twice the size.

    `y[2j] = w_0 x[j - 1] + w_2 x[j]` and `y[2j + 1] = w_1 x[j]` along each axis: a 2x2 convolution
    whose output channels are the four phases of y, on XLA:CPU ten times faster than the stock one.
    """

    features: int
    periodic: Periodic
    dtype: DTypeLike

    @nn.compact
    def __call__(self, h: Array) -> Array:
        c = h.shape[-1]
        kernel = self.param('kernel', NORMAL, (3, 3, c, self.features)).astype(self.dtype)
        bias = self.param('bias', nn.initializers.zeros, (self.features,)).astype(self.dtype)
        taps = jnp.array([0, 3, 2, 1])  # the fourth is 0: an odd pixel has one tap only
        kernel = jnp.pad(kernel, [(0, 1), (0, 1), (0, 0), (0, 0)])[taps][:, taps]
        kernel = kernel.reshape(2, 2, 2, 2, c, self.features)
        kernel = kernel.transpose(0, 2, 4, 1, 3, 5)  # taps, input, phases, output
        zeros = [(0, 0) if wraps else (1, 0) for wraps in self.periodic]
        before = wrap(h.astype(self.dtype), 1, self.periodic)
        before = before[:, : h.shape[1] + self.periodic[0], : h.shape[2] + self.periodic[1]]
        kernel = kernel.reshape(2, 2, c, 4 * self.features)
        y = lax.conv_general_dilated(before, kernel, (1, 1), zeros, dimension_numbers=DIMENSIONS)
        return depth_to_space(y, 2) + bias


class ResNet(nn.Module):
    """Maps `(b, h, w, c)` to `(b, h, w, c)`; parameters and output stay float32."""

    channels: tuple[int, ...] = (64,)  # one: at full resolution; at the lowest four times as many
    blocks: int = 6  # residual blocks at the lowest resolution
    dropout: float = 0.5  # probability of dropping a feature in training, in each block
    periodic: Periodic = (False, False)
    remat: bool = False  # whether blocks are computed again in the backward pass, not kept
    dtype: DTypeLike = jnp.float32  # of the computation

    def __post_init__(self):
        if len(self.channels) != 1:
            expected = 'one number, the width at full resolution, such as (64,)'
            raise ValueError(f'channels: got {self.channels}, expected {expected}')
        super().__post_init__()

    def _conv(self, features: int, size: int = 3, stride: int = 1) -> Conv:
        return Conv(features, size, stride, self.periodic, kernel_init=NORMAL, dtype=self.dtype)

    def _block(self, h: Array, train: bool) -> Array:
        c = h.shape[-1]
        y = nn.relu(_norm(self._conv(c)(h), self.dtype))
        y = nn.Dropout(self.dropout)(y, deterministic=not train)
        return h + _norm(self._conv(c)(y), self.dtype)

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        width = self.channels[0]
        x, place = padded(x, 4, self.periodic)
        h = nn.relu(_norm(self._conv(width, size=7)(x), self.dtype))
        for factor in (2, 4):
            h = nn.relu(_norm(self._conv(factor * width, stride=2)(h), self.dtype))
        block = nn.remat(ResNet._block, static_argnums=2) if self.remat else ResNet._block
        for _ in range(self.blocks):
            h = block(self, h, train)
        for factor in (2, 1):
            h = nn.relu(_norm(Up(factor * width, self.periodic, self.dtype)(h), self.dtype))
        return self._conv(x.shape[-1], size=7)(h)[place].astype(jnp.float32)
