"""Trained models as files: arrays and what networks they belong to, and no code.

A file is a NumPy archive. Its entry `meta` is JSON: the version of the format, for each model its
kind, networks and settings, and the types of all arrays; these are the other entries.
"""

import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from namm_jax._checks import choose
from namm_jax.denoising.prior import NetworkDenoiser, Prior
from namm_jax.experiment.files import UserError, write_bytes
from namm_jax.mirror import Mirror
from namm_jax.networks import NETWORKS, fields_of

FORMAT = 1
Model = Mirror | Prior


def save(path: str | os.PathLike[str], model: Model | Mapping[str, Model]) -> None:
    """Writes a trained model, or several by name, to one file that `load` reads.

    Args:
        path: of the file, usually `*.npz`.
        model: a `Mirror` or `Prior`, as `fit` and `open_run` return them, or a dict of them.

    Raises:
        ValueError: if it is another object, or a prior that is not a network alone, such as one
            that is guided: save the prior that it was made of.
    """
    models = dict(model) if isinstance(model, Mapping) else {'': model}
    specs = {}
    arrays = {}
    for name, each in models.items():
        kind = next((kind for kind, (cls, *_) in KINDS.items() if isinstance(each, cls)), None)
        if kind is None or not isinstance(name, str):
            got = f'{type(each).__name__} of the name {name!r}'
            raise ValueError(f'model: got {got}, expected a Mirror or a Prior, or a dict of them')
        specs[name], leaves = KINDS[kind][1](each)
        specs[name]['kind'] = kind
        flat = flatten_dict(leaves, sep='/')
        arrays |= {f'{name}/{key}': np.asarray(leaf) for key, leaf in flat.items()}
    types = {key: array.dtype.name for key, array in arrays.items()}
    meta = json.dumps({'format': FORMAT, 'models': specs, 'types': types}).encode()
    file = io.BytesIO()
    np.savez(file, meta=np.frombuffer(meta, np.uint8), **arrays)
    write_bytes(Path(path), file.getvalue())


def load(path: str | os.PathLike[str], *, networks: Mapping[str, Any] | None = None) -> Any:
    """Returns the model in a file that `save` wrote, or the dict of several.

    Args:
        path: of the file.
        networks: Flax modules of one's own by the name of their class, where the model has one: a
            file holds no code.

    Raises:
        ValueError: if there is no such file, it is damaged, of another format, or needs a network
            that is not given; one message, which names the file.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        meta = json.loads(arrays.pop('meta').tobytes())
        version = meta['format']
    except FileNotFoundError:
        raise UserError(f'{path}: got no such file, expected one that save() wrote') from None
    except Exception as error:  # zip, NumPy and JSON raise anything for damage
        raise UserError(
            f'{path}: got no model file ({type(error).__name__}), expected a whole model file, as '
            'save() writes it; take a copy of it'
        ) from error
    if version != FORMAT:
        raise UserError(
            f'{path}: got a model file of format {version}, expected {FORMAT}; save it again with '
            'this version, or install the version that wrote it'
        )
    try:
        trees = {name: {} for name in meta['models']}
        for key, array in arrays.items():
            name, leaf = key.split('/', 1)
            # NumPy's archives keep the bytes of bfloat16, and not its name.
            dtype = jnp.dtype(meta['types'].get(key, array.dtype))
            trees[name][leaf] = jnp.asarray(array.view(dtype))
        models = {}
        for name, spec in meta['models'].items():
            build = choose('kind', spec['kind'], KINDS)[2]
            models[name] = build(spec, unflatten_dict(trees[name], sep='/'), networks or {})
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f'{path}: got {error!r} in its models, expected a whole model file, as save() writes it'
        ) from error
    return models[''] if list(models) == [''] else models


def _of_network(network: Any) -> dict[str, Any]:
    """Returns the name and settings of a network; of one's own, the name of its class alone."""
    name = next((name for name, cls in NETWORKS.items() if type(network) is cls), None)
    if name is None:
        return {'own': type(network).__name__}
    fields = {field: getattr(network, field) for field in fields_of(type(network))}
    if 'dtype' in fields:
        fields['dtype'] = np.dtype(fields['dtype']).name
    return {'network': name, 'fields': fields}


def _network(spec: Mapping[str, Any], networks: Mapping[str, Any]) -> Any:
    if name := spec.get('own'):
        network = networks.get(name)
        if network is None or isinstance(network, type):
            raise UserError(
                f'networks: got {networks}, expected {name!r}, a module of your own, which no file '
                f'holds; load(path, networks={{{name!r}: {name}(...)}})'
            )
        return network
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in spec['fields'].items()}
    if 'dtype' in fields:
        fields['dtype'] = jnp.dtype(fields['dtype']).type
    return choose('network', spec['network'], NETWORKS)(**fields)


def _mirror_settings(mirror: Mirror) -> tuple[dict[str, Any], dict[str, Any]]:
    settings = {name: getattr(mirror, name) for name in ('strong_convexity', 'output', 'units')}
    networks = {'forward': mirror.forward_network, 'inverse': mirror.inverse_network}
    settings |= {name: _of_network(network) for name, network in networks.items()}
    return settings, {'params': mirror.params}


def _mirror(spec: Mapping[str, Any], leaves: dict[str, Any], networks: Mapping[str, Any]) -> Mirror:
    units = tuple(tuple(part) if isinstance(part, list) else part for part in spec['units'])
    pair = (_network(spec[name], networks) for name in ('forward', 'inverse'))
    return Mirror(leaves['params'], *pair, spec['strong_convexity'], spec['output'], units)


def _prior_settings(prior: Prior) -> tuple[dict[str, Any], dict[str, Any]]:
    denoiser = prior.standard
    if not isinstance(denoiser, NetworkDenoiser):
        raise ValueError(
            'model: got a prior that is guided, given a measurement, or made of a denoiser of your '
            'own, expected one as fit() returns it; save that'
        )
    settings = {'network': _of_network(denoiser.network), 'shape': prior.shape}
    settings['parameterisation'] = denoiser.parameterisation
    leaves = {'params': denoiser.params, 'mean': prior.mean, 'width': prior.width}
    return settings, leaves | ({} if prior.examples is None else {'examples': prior.examples})


def _prior(spec: Mapping[str, Any], leaves: dict[str, Any], networks: Mapping[str, Any]) -> Prior:
    network = _network(spec['network'], networks)
    denoiser = NetworkDenoiser(leaves['params'], network, spec['parameterisation'])
    moments = leaves['mean'], leaves['width'], leaves.get('examples')
    return Prior(denoiser, *moments, tuple(spec['shape']))


# kind -> (class, model -> (settings, arrays), (settings, arrays, networks) -> model)
KINDS = {
    'mirror': (Mirror, _mirror_settings, _mirror),
    'prior': (Prior, _prior_settings, _prior),
}
