"""Flax networks by name. Any Flax (linen) module of the right signature takes their place:

    f                   module(z, *, train=False) -> like z            (b, h, w, c)
    the score network   module(x, label, *, train=False) -> like x     label (b,)
    g's potential       module(x) -> (b,)                              convex in x

Dropout takes its key from the collection `dropout`. g is the gradient of its potential; parameters
whose names start with `nonnegative` are kept >= 0 in training (`icnn.nonnegative_mask`).
"""

import dataclasses
import difflib
from typing import Any

import flax.linen as nn
from jaxtyping import Array

from namm_jax._arrays import Key, Params
from namm_jax._checks import choose
from namm_jax.networks.icnn import ICNN
from namm_jax.networks.resnet import ResNet
from namm_jax.networks.unet import UNet

NETWORKS: dict[str, type[nn.Module]] = {'icnn': ICNN, 'unet': UNet, 'resnet': ResNet}


def fields_of(network: Any) -> list[str]:
    """Returns the names of a Flax module's fields; raises a ValueError for any other class."""
    if not (isinstance(network, type) and issubclass(network, nn.Module)):
        raise ValueError(f'network: got {network!r}, expected a class made of flax.linen.Module')
    names = [field.name for field in dataclasses.fields(network)]
    return [name for name in names if name not in ('parent', 'name')]


def make_network(network: str | type, /, **fields: Any) -> nn.Module:
    """Returns a network, a key of `NETWORKS` or a class of Flax modules, with values of its fields.

    Those that are left out keep their defaults. Raises a ValueError if the name is unknown, the
    network has no such fields, or a value is bad.
    """
    kind = choose('network', network, NETWORKS) if isinstance(network, str) else network
    names = fields_of(kind)
    wrong = {name: value for name, value in fields.items() if name not in names}
    if wrong:
        got = ', '.join(f'{name} = {value}' for name, value in wrong.items())
        near = [match for name in wrong for match in difflib.get_close_matches(name, names, n=1)]
        hint = f'; did you mean {" or ".join(near)}?' if near else ''
        expected = f'its fields are {", ".join(names)}{hint}'
        raise ValueError(f'network {network!r}: got {got}, which it does not have; {expected}')
    return kind(**fields)


def output_like(
    label: str, network: nn.Module, params: Params, x: Array, *of: Array, dropout_key: Key | None
) -> Array:
    """Returns the output of f or of a score network; raises a ValueError if it is not like x.
    Dropout acts where a key is given.
    """
    train = dropout_key is not None
    rngs = {'dropout': dropout_key} if train else None
    y = network.apply({'params': params}, x, *of, train=train, rngs=rngs)
    if y.shape != x.shape:
        got = f'an output of shape {y.shape}, expected {x.shape}, that of the input'
        raise ValueError(f'{label}: got {got}; let the network keep it')
    return y
