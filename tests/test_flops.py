"""The count of operations against what programs do."""

import jax
import jax.numpy as jnp
import pytest

from namm_jax.experiment import flops


def count(function, *arguments):
    return flops.count(jax.make_jaxpr(function)(*arguments))


A, B = jnp.zeros((8, 16)), jnp.zeros((16, 4))
X, K = jnp.zeros((2, 8, 8, 6)), jnp.zeros((3, 3, 3, 10))


def convolution(x, k):
    dimensions = ('NHWC', 'HWIO', 'NHWC')
    groups = x.shape[-1] // k.shape[2]
    return jax.lax.conv_general_dilated(
        x, k, (1, 1), 'SAME', dimension_numbers=dimensions, feature_group_count=groups
    )


PRODUCT, CONVOLUTION = 2 * 8 * 16 * 4, 2 * (2 * 64 * 10) * (9 * 3)


@pytest.mark.parametrize(
    ('expected', 'function', 'arguments'),
    [
        (PRODUCT, jnp.matmul, (A, B)),
        (3 * PRODUCT, lambda a, b: jax.vmap(jnp.matmul)(a, b), (jnp.stack([A] * 3), [B] * 3)),
        (CONVOLUTION, convolution, (X, K)),
        # and one for each of the two gradients
        (3 * PRODUCT, lambda a, b: jax.vjp(jnp.matmul, a, b)[1](jnp.zeros((8, 4))), (A, B)),
        (32, jnp.sin, (jnp.zeros(32),)),
        (5 * 32 * 5, jnp.fft.fft, (jnp.zeros(32, jnp.complex64),)),
        (7 * 16, lambda x: jax.lax.scan(lambda c, _: (-c, None), x, length=7)[0], (jnp.zeros(16),)),
        (2 * 16, lambda x: jax.lax.cond(True, jnp.sin, lambda x: -jnp.sin(x), x), (jnp.zeros(16),)),
        (16, jax.jit(jax.checkpoint(jnp.sin)), (jnp.zeros(16),)),
    ],
)
def test_operations(expected, function, arguments):
    arguments = [jnp.stack(a) if isinstance(a, list) else a for a in arguments]
    found = count(function, *arguments)
    assert expected <= found <= expected + 100 * (expected > 1000)  # and transposes, at most
