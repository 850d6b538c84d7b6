"""Convolutions that wrap along the periodic axes and only those: the one place that pads."""

import functools
from collections.abc import Callable
from typing import TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array

Periodic: TypeAlias = tuple[bool, bool]  # which of the two spatial axes wrap
DIMENSIONS = ('NHWC', 'HWIO', 'NHWC')


def wrap(x: Array, width: int, periodic: Periodic) -> Array:
    """Returns `x (b, h, w, c)` continued by `width` pixels on both sides of each periodic axis."""
    for axis, wraps in zip((1, 2), periodic, strict=True):
        if wraps and width:
            n = x.shape[axis]
            head = lax.slice_in_dim(x, n - width, n, axis=axis)
            tail = lax.slice_in_dim(x, 0, width, axis=axis)
            x = jnp.concatenate([head, x, tail], axis)
    return x


def padded(x: Array, factor: int, periodic: Periodic) -> tuple[Array, tuple[slice, ...]]:
    """Returns `x (b, h, w, c)` with height and width made multiples of a factor, continued on both
    sides, by wrapping along periodic axes, else by reflection; and where x is in it.
    """
    place = [slice(None)]
    for axis, wraps in zip((1, 2), periodic, strict=True):
        n = x.shape[axis]
        before, rest = divmod(-n % factor, 2)
        if n % factor:
            widths = [(before, before + rest) if i == axis else (0, 0) for i in range(4)]
            x = jnp.pad(x, widths, 'wrap' if wraps else 'symmetric')
        place.append(slice(before, before + n))
    return x, tuple(place)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def convolve(x: Array, kernel: Array, periodic: Periodic, stride: int = 1) -> Array:
    """Returns the cross-correlation `(b, h / stride, w / stride, d)` of fields `x (b, h, w, c)`
    with a kernel `(k, k, c, d)`, k odd; axes that are not periodic are padded with zeros.
    """
    return _correlate(x, kernel, periodic, stride)


def _correlate(
    x: Array, kernel: Array, periodic: Periodic, stride: int, dimensions: tuple = DIMENSIONS
) -> Array:
    width = kernel.shape[0] // 2
    zeros = [(0, 0) if wraps else (width, width) for wraps in periodic]
    x = wrap(x, width, periodic)
    strides = (stride, stride)
    return lax.conv_general_dilated(x, kernel, strides, zeros, dimension_numbers=dimensions)


@convolve.defjvp
def _convolve_jvp(periodic: Periodic, stride: int, primals: tuple, tangents: tuple) -> tuple:
    """The product rule, its transpose in x a plain convolution: 8 times faster in a `scan`.

    There XLA:CPU has a fast kernel for `DIMENSIONS` alone, and JAX transposes a convolution into
    one of a reversed kernel with its channels exchanged. So both are done beforehand, behind a
    barrier that keeps XLA from undoing it; the transpose does them back.
    """
    x, kernel = primals
    dx, dkernel = tangents
    exchanged = lax.optimization_barrier(lax.rev(kernel, (0, 1)).transpose(0, 1, 3, 2))
    along_x = _correlate(dx, lax.rev(exchanged, (0, 1)), periodic, stride, ('NHWC', 'HWOI', 'NHWC'))
    return convolve(x, kernel, periodic, stride), along_x + _correlate(x, dkernel, periodic, stride)


class GlobalConv(nn.Module):
    """Maps `(b, h, w, c)` to `h + k * h`, each channel's kernel as large as the image, 0 at first.

    By Fourier transforms, in float32; compare Li et al. 2021, arXiv 2010.08895.
    """

    periodic: Periodic

    @nn.compact
    def __call__(self, h: Array) -> Array:
        spatial = zip(h.shape[1:3], self.periodic, strict=True)
        sizes = [n if wraps else 2 * n for n, wraps in spatial]
        kernel = self.param('kernel', nn.initializers.zeros, (*sizes, h.shape[-1]))
        transform = functools.partial(jnp.fft.rfft2, s=sizes)
        product = transform(h.astype(jnp.float32), axes=(1, 2)) * transform(kernel, axes=(0, 1))
        response = jnp.fft.irfft2(product, s=sizes, axes=(1, 2))
        return h + response[:, : h.shape[1], : h.shape[2]].astype(h.dtype)


def convolve_patches(x: Array, kernel: Array, periodic: Periodic) -> Array:
    """Returns `convolve(x, kernel, periodic)`, written as patches times a matrix.

    Slower once, and several times faster on XLA:CPU for gradients of gradients: those of a matrix
    product are matrix products, those of convolutions have no fast kernel.
    """
    k = kernel.shape[0]
    width = k // 2
    h, w = x.shape[1:3]
    zeros = [(0, 0), *((0, 0) if wraps else (width, width) for wraps in periodic), (0, 0)]
    x = jnp.pad(wrap(x, width, periodic), zeros)
    shifts = [x[:, i : i + h, j : j + w] for i in range(k) for j in range(k)]
    return jnp.concatenate(shifts, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])


def convolve_twice_differentiable(x: Array, kernel: Array, periodic: Periodic) -> Array:
    """Returns `convolve(x, kernel, periodic)`, its second derivatives fastest on this platform."""
    patches = lambda x, kernel: convolve_patches(x, kernel, periodic)
    plain = lambda x, kernel: convolve(x, kernel, periodic)
    return lax.platform_dependent(x, kernel, cpu=patches, default=plain)


def space_to_depth(x: Array, factor: int) -> Array:
    """Returns `x (b, h, w, c)` as `(b, h / factor, w / factor, factor^2 c)`: blocks as channels."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // factor, factor, w // factor, factor, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h // factor, w // factor, factor * factor * c)


def depth_to_space(x: Array, factor: int) -> Array:
    """Returns the inverse of `space_to_depth`."""
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, factor, factor, c // factor**2)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h * factor, w * factor, c // factor**2)


class Conv(nn.Module):
    """A biased convolution, circular along the periodic axes; parameters stay float32."""

    features: int  # output channels
    size: int = 3  # the kernel's width in pixels, odd
    stride: int = 1  # step in pixels
    periodic: Periodic = (True, True)
    kernel_init: Callable = nn.initializers.lecun_normal()
    dtype: DTypeLike = jnp.float32  # of the computation

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param('kernel', self.kernel_init, shape)
        y = convolve(x.astype(self.dtype), kernel.astype(self.dtype), self.periodic, self.stride)
        return y + self.param('bias', nn.initializers.zeros, (self.features,)).astype(self.dtype)
