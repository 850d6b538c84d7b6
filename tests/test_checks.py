"""The checker of a user's rule, operator and measurement: what each mistake is answered with."""

import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from namm_jax._checks import check_operator, check_rule
from namm_jax.constraints.base import function_rule
from namm_jax.inverse.operators import make_operator

KEY = jax.random.key(0)
# Rows of 1/2, 1/4, 1/8, 1/8, 0 and 0 in any order: they sum to 1 exactly.
ROWS = np.random.default_rng(0).permuted(
    np.tile(np.float32([1 / 2, 1 / 4, 1 / 8, 1 / 8, 0, 0]), (8, 4, 1)), axis=2
)
X = ROWS[..., None]
STD = float(X.std())
IMAGE = (8, 16, 1)


def rows(x):
    return jnp.mean(jnp.abs(x.sum(2) - 1), (1, 2))


def branches(x):
    return rows(x) if x.sum() > 0 else 2 * rows(x)


def writes(x):
    x[:, 0] = 0
    return rows(x)


def raises(x):
    raise RuntimeError('my own trouble')


def nothing():
    return 0


def asserts(x):
    assert x.min() > 0
    return rows(x)


def loops(x):
    return rows(
        jax.lax.while_loop(
            lambda carry: carry[0] < 2, lambda carry: (carry[0] + 1, 2 * carry[1]), (0, x)
        )[1]
    )


def test_check_measures_floor_and_noise():
    measured = check_rule(function_rule(rows), X, KEY, STD)
    # Noise of 0.0172 a pixel, 0.0421 a row, and sqrt(2 / pi) of that in the mean of its size.
    assert measured['floor_mean'] == measured['floor_max'] == 0
    assert measured['perturbed_mean'] == pytest.approx(0.0336, rel=0.4)


def test_check_leaves_a_large_floor_to_its_caller():
    measured = check_rule(function_rule(rows), X + 0.05, KEY, STD)
    assert measured['floor_mean'] == pytest.approx(0.3, abs=1e-5)
    assert measured['perturbed_mean'] < 2 * measured['floor_mean']


def test_check_allows_an_inequality_with_room():
    within = function_rule(lambda x: jnp.mean(jax.nn.relu(jnp.abs(x) - 1.5), (1, 2, 3)))
    measured = check_rule(within, X, KEY, STD)
    assert measured.pop('unit') > 0
    assert measured == {'floor_mean': 0, 'floor_max': 0, 'perturbed_mean': 0}


def test_each_channel_is_perturbed_by_its_own_scale():
    x = np.concatenate([0.06 * fields(), 3000 * fields(seed=2)], -1)
    small = function_rule(lambda x: jnp.mean(jnp.abs(x[..., 0]), (1, 2)))
    measured = check_rule(small, x, KEY, x.std((0, 1, 2)))
    assert measured['perturbed_mean'] < 0.06 and 0.01 < measured['unit'] < 1


@pytest.mark.parametrize('scale', [1e-18, 1e20])
def test_numbers_that_float32_cannot_hold_name_the_scale(scale):
    x = np.float32(scale) * fields()
    square = function_rule(lambda x: jnp.mean(x**2, (1, 2, 3)))
    with pytest.raises(ValueError, match=f'; divide your data by 1e.{abs(int(np.log10(scale)))}'):
        check_rule(square, x, KEY, x.std(dtype=float))
    size = function_rule(lambda x: jnp.mean(jnp.abs(x), (1, 2, 3)))
    assert 0 < check_rule(size, x, KEY, x.std(dtype=float))['unit'] < np.inf


BAD_RULES = {
    'numpy': (
        lambda x: np.abs(x.sum((1, 2, 3)) - 4),
        '`lambda x: np.abs.*got TracerArrayConversionError: .*take jax.numpy',
    ),
    'scipy': (lambda x: ndimage.gaussian_filter(x, 1), 'got TracerArray.*jax.scipy'),
    'if': (branches, '`return rows.*got TracerBoolConversionError: .*boolean.*take jnp.where'),
    'assert': (asserts, '`assert x.min.*got TracerBoolConversionError: .*take jnp.where'),
    'max': (lambda x: max(rows(x), 0), 'got ValueError: The truth value .*take jnp.where'),
    'float': (
        lambda x: jnp.full(len(x), float(x.sum())),
        r'got ConcretizationTypeError: .*no float\(\)',
    ),
    'item': (lambda x: rows(x) - x.mean().item(), r'got Concretization.*no float\(\)'),
    'text': (lambda x: f'{x.mean():.3f}', 'got TypeError: .*no float.*print of numbers'),
    'int': (
        lambda x: rows(x) * (1, 2)[x.sum().astype(int)],
        'got TracerIntegerConversionError.*leave them in arrays',
    ),
    'mask': (
        lambda x: x[x > 0.4].sum(),
        'got NonConcreteBooleanIndexError: .*jnp.where.mask, x, 0.',
    ),
    'torch': (lambda x: x.sum(dim=(1, 2, 3)).abs(), 'got TypeError: .*dim.*axis for dim'),
    'clamp': (lambda x: x.clamp(min=0), 'got AttributeError: .*jnp.clip for clamp'),
    'axis': (lambda x: x.sum(4), r'got ValueError: axis 4 .*axes of fields \(b, h, w, c\), 0 to 3'),
    'file': (
        lambda x: x - np.load('none.npy'),
        r'got FileNotFoundError: .*Path\(__file__\).parent',
    ),
    'exit': (lambda x: sys.exit('no'), 'got SystemExit: no'),
    'scalar': (
        lambda x: jnp.abs(x.sum() - 4),
        r'got shape \(\), expected .*shape \(8,\).*all axes but the first',
    ),
    'pixels': (lambda x: jnp.abs(x), r'got shape \(8, 4, 6, 1\), expected .*shape \(8,\)'),
    'column': (lambda x: rows(x)[:, None], r'got shape \(8, 1\)'),
    'tuple': (lambda x: (rows(x), x), 'got tuple, expected .*return one array'),
    'nothing': (lambda x: None, 'got NoneType'),
    'count': (
        lambda x: jnp.sum(x > 0.4, (1, 2, 3)),
        'got int32, expected one floating-point.*no gradient',
    ),
    'nan': (
        lambda x: jnp.log(x - 2).mean((1, 2, 3)),
        'got NaN or infinity on the data in 8 of 8 samples',
    ),
    'negative': (lambda x: x.sum((1, 2, 3)) - 5, 'got -1 on the data in 8 of 8 samples.* >= 0'),
    'signed': (lambda x: x.sum((1, 2, 3)) - 4, r'got -\S+ near the data .* >= 0.*absolute value'),
    'root': (
        lambda x: jnp.sqrt(jnp.sum((x.sum(2) - 1) ** 2, (1, 2))),
        'got a gradient of NaN or infinity on the data.*root',
    ),
    'stopped': (lambda x: jax.lax.stop_gradient(rows(x)), 'got a gradient of 0 everywhere'),
    'blind': (lambda x: 0 * x.sum((1, 2, 3)), 'got 0 for the data.*positive number off the set'),
    'neighbours': (
        lambda x: jnp.abs(x - x.mean(0)).mean((1, 2, 3)),
        'got another value alone.*over axis 0',
    ),
    'share': (lambda x: rows(x) / len(x), 'got another value alone'),
    'place': (
        lambda x: rows(x) * jnp.arange(1, len(x) + 1),
        'got another value at another place in the batch',
    ),
    'squeezed': (lambda x: jnp.abs(x.squeeze().sum((1, 2)) - 4), 'out of bounds'),
    'loop': (loops, '`jax.lax.while_loop.*Reverse-mode differentiation does not.*take lax.scan'),
    'raises': (raises, 'got RuntimeError: my own trouble'),
    'arguments': (nothing, 'line 4.: got TypeError: .*takes 0 positional arguments'),
    'writes': (writes, r'`x\[:, 0\] = 0`: got TypeError: .*take x = x.at'),
}


@pytest.mark.parametrize('name', BAD_RULES)
def test_check_rule_refuses(name):
    function, message = BAD_RULES[name]
    with pytest.raises(
        ValueError, match=f'the distance {name!r}: .*{message}|the distance {name!r}: {message}'
    ) as refused:
        check_rule(function_rule(function, name=name), X, KEY, STD)
    told = str(refused.value)
    assert ('test_checks.py, line ' in told) == bool(re.search(r'got \w+(Error|Exit): ', told))


@pytest.mark.parametrize('x', [X[:1], np.ones_like(X), X * np.nan])
def test_check_needs_data_that_vary(x):
    with pytest.raises(
        ValueError, match="data for the distance 'own': got .*give it some of the training data"
    ):
        check_rule(function_rule(rows), x, KEY, STD)


def fields(shape=IMAGE, b=3, seed=1):
    return np.random.default_rng(seed).normal(size=(b, *shape)).astype(np.float32)


def branching_operator(x):
    return x if x.sum() > 0 else 2 * x


BAD_OPERATORS = {
    'numpy': (lambda x: np.abs(x), '`.*np.abs.*got TracerArrayConversionError: .*take jax.numpy'),
    'if': (branching_operator, '`return x if.*got TracerBoolConversionError: .*jnp.where'),
    'float': (lambda x: x * float(x.sum()), r'got ConcretizationTypeError: .*no float\(\)'),
    'mask': (lambda x: x[x > 0], 'got NonConcreteBooleanIndexError'),
    'tuple': (lambda x: (x, x), 'got tuple, expected one floating-point array.*concatenate'),
    'scalar': (lambda x: x.sum(), r'got shape \(\), expected .*\(3, ...\), batch first'),
    'flat': (lambda x: x.ravel(), r'got shape \(384,\)'),
    'count': (lambda x: jnp.sum(x > 0, (1, 2, 3)), 'got int32, expected'),
    'complex': (lambda x: jnp.fft.fft2(x, axes=(1, 2)), 'got complex64, .*stack the parts'),
    'nan': (jnp.log, 'got NaN or infinity at the fields in 3 of 3 samples'),
    'root': (
        lambda x: jnp.sqrt(jnp.sum((x - x) ** 2, (1, 2, 3))),
        'got a gradient of NaN or infinity.*norm at 0',
    ),
    'rounded': (jnp.round, 'got a gradient of 0.*rounding'),
    'stopped': (jax.lax.stop_gradient, 'got a gradient of 0'),
    'mean': (lambda x: x - x.mean(0), 'got another value alone.*over axis 0'),
    'place': (
        lambda x: x * jnp.arange(1, len(x) + 1)[:, None, None, None],
        'at another place in the batch',
    ),
    'squeezed': (lambda x: x.squeeze().sum((1, 2)), 'out of bounds|got another value'),
    'callback': (
        lambda x: jax.pure_callback(lambda x: x, jax.ShapeDtypeStruct(x.shape, x.dtype), x),
        'do not support JVP.*no callback',
    ),
    'raises': (lambda: 0, 'got TypeError: .*call it on a few fields'),
}


@pytest.mark.parametrize('name', BAD_OPERATORS)
def test_check_operator_refuses(name):
    function, message = BAD_OPERATORS[name]
    with pytest.raises(ValueError, match=f'operator: .*({message})|operator: ({message})'):
        check_operator(function, IMAGE)


@pytest.mark.parametrize('function', [lambda x: x + 1, lambda x: x**2])
def test_check_operator_refuses_what_is_not_linear(function):
    with pytest.raises(ValueError, match='got linear=True for one that is not.*give linear=False'):
        check_operator(make_operator('own', IMAGE, function=function, linear=True), IMAGE)


def test_check_operator_takes_data():
    assert check_operator(lambda x: jnp.log(x), IMAGE, x=np.exp(fields(IMAGE))) == IMAGE
    with pytest.raises(ValueError, match='x: got shape .*expected two or more fields'):
        check_operator(lambda x: x, IMAGE, x=fields(IMAGE, 1))
