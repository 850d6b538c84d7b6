"""The data families: from a config to fields, their shapes and layouts, and pictures of them.

Files hold fields as published, mosaics of states included; networks and constraints see what `pack`
makes of them.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from ml_collections import ConfigDict

from namm_jax._arrays import Constraint
from namm_jax._checks import choose
from namm_jax.constraints.own import OwnProblem
from namm_jax.problems import flow_layout, layout
from namm_jax.problems.black_hole_images import BlackHoleProblem, sample_black_holes
from namm_jax.problems.burgers_equation import sample_burgers
from namm_jax.problems.galaxy_images import GalaxyProblem, sample_galaxies
from namm_jax.problems.kolmogorov_data import sample_kolmogorov
from namm_jax.problems.kolmogorov_flow import FlowProblem
from namm_jax.problems.periodic_textures import TextureProblem, sample_textures
from namm_jax.problems.steppers import BurgersProblem
from namm_jax.train.files import UserError
from namm_jax.train.own import read_user_data

Indices = np.ndarray
Shape = tuple[int, int, int]


def _same(x: Array) -> Array:
    return x


def _first_channel(x: Array) -> Array:
    return x[..., 0]


def _distance_from_restored(constraint: Constraint, x: Array) -> Array:
    """Returns `x` less the nearest point of M, `(n, h, w)`."""
    return _first_channel(x - constraint.restore(x)[0])


def _sensitivity(constraint: Constraint, x: Array) -> Array:
    """Returns the gradient of the distance, `(n, h, w)`: where a change of x would change it
    most.
    """
    return jnp.linalg.norm(jax.grad(lambda x: constraint.distance(x).sum())(x), axis=-1)


def _flow_residual(problem: FlowProblem, constraint: Constraint, x: Array) -> Array:
    """Returns the mosaic of the residual's size; that of a sum of constraints is the sum of its
    parts'.
    """
    parts = getattr(constraint, 'parts', (constraint,))
    return sum(jnp.abs(flow_layout.mosaic(problem, part.residual(x))) for part in parts)


class Family(NamedTuple):
    """A family of data.

    Attributes:
        problem: what the fields solve, or their sizes.
        fields: global indices `(n,)` -> fields `(n, ...)` as files hold them, field i a function of
            index i alone.
        shape: `(h, w, c)` of a field for networks and constraint.
        file_shape: `(h, w, c)` of a field in files.
        periodic: which of the two spatial axes wrap.
        cell: pixels along each of the two, as networks see them, by which data rolled are as
            probable as data, where that axis wraps: 1 where all pixels are alike, the axis's length
            where none are.
        spatial_axes: axes of a batch along which the energy spectrum is taken.
        residual_map: `(constraint, x) -> images (n, h', w')` of what breaks the rule, oriented as
            `image` is.
        pack: fields as files hold them -> as networks see them.
        unpack: its inverse.
        image: fields as networks see them -> images `(n, h', w')` to look at.
        states: fields as networks see them -> fields without seams, whose spectrum along
            `spatial_axes` is taken.
        is_users: whether data and rule are a user's, so that they are checked before anything is
            trained.
    """

    problem: Any
    fields: Callable[[Indices], Array]
    shape: Shape
    file_shape: Shape
    periodic: tuple[bool, bool]
    cell: tuple[int, int]
    spatial_axes: tuple[int, ...]
    residual_map: Callable[[Constraint, Array], Array]
    pack: Callable[[Array], Array] = _same
    unpack: Callable[[Array], Array] = _same
    image: Callable[[Array], Array] = _first_channel
    states: Callable[[Array], Array] = _same
    is_users: bool = False


def _generated(
    config: ConfigDict, sample: Callable[..., Array], problem: Any
) -> Callable[[Indices], Array]:
    """Returns the fields of `sample`; field i has the key `fold_in(key(data.seed), i)`."""
    root = jax.random.key(config.data.seed)

    @jax.jit
    def fields(indices: Array) -> Array:
        return sample(
            jax.vmap(functools.partial(jax.random.fold_in, root))(indices), problem=problem
        )

    return lambda indices: fields(jnp.asarray(indices))


def burgers(config: ConfigDict) -> Family:
    """Burgers fields: rows are space, periodic, and columns are time, which is not.

    The random start is not periodic, so that it jumps between the last row and the first.
    """
    names = ('points', 'states', 'inner_steps', 'dt', 'mu', 'nu', 'length')
    problem = BurgersProblem(
        **{name: config.data[name] for name in names}, stepper=config.constraint.stepper
    )
    shape = (problem.points, problem.states, 1)
    residual_map = lambda constraint, x: _first_channel(
        layout.states_to_image(constraint.residual(x))
    )
    fields = _generated(config, sample_burgers, problem)
    return Family(problem, fields, shape, shape, (True, False), shape[:2], (1,), residual_map)


def kolmogorov(config: ConfigDict) -> Family:
    """Kolmogorov flow: states packed as channels, each periodic along both axes; files hold a
    mosaic.

    The force is the same along rows, and a sine of a few periods along columns.
    """
    data = config.data
    if not data.reynolds > 0:
        raise ValueError(f'data.reynolds: got {data.reynolds}, expected a positive number')
    names = ('points', 'states', 'inner_steps', 'dt', 'burn_in', 'layout')
    problem = FlowProblem(**{name: data[name] for name in names}, viscosity=1 / data.reynolds)
    shape, force = (
        problem.shape,
        problem.points // math.gcd(problem.points, problem.forcing_wavenumber),
    )
    # States roll together along an axis, unless they lie side by side along it.
    cell = tuple(
        p if n == problem.points else n for n, p in zip(shape[:2], (1, force), strict=True)
    )
    return Family(
        problem,
        _generated(config, sample_kolmogorov, problem),
        shape,
        problem.tiled,
        (True, True),
        cell,
        (1, 2),
        residual_map=functools.partial(_flow_residual, problem),
        pack=lambda x: flow_layout.pack(problem, x),
        unpack=lambda x: flow_layout.unpack(problem, x),
        image=lambda x: flow_layout.vorticity_mosaic(problem, x),
        states=lambda x: layout.states_to_packed(flow_layout.to_states(problem, x)),
    )


def _images(
    config: ConfigDict, problem: Any, sample: Callable[..., Array], tiles: int = 1, **details: Any
) -> Family:
    """Returns a family of square images of one channel."""
    shape, cell = (problem.points, problem.points, 1), (problem.points // tiles,) * 2
    fields = _generated(config, sample, problem)
    return Family(problem, fields, shape, shape, cell=cell, spatial_axes=(1, 2), **details)


def black_holes(config: ConfigDict) -> Family:
    """Black-hole images; their residual map is what the nearest image of the right total would
    change.
    """
    problem = BlackHoleProblem(points=config.data.points, total=config.data.total)
    details = dict(periodic=(False, False), residual_map=_distance_from_restored)
    return _images(config, problem, sample_black_holes, **details)


def textures(config: ConfigDict) -> Family:
    """Periodic textures; their residual map is the difference from the mean of the tiles."""
    problem = TextureProblem(points=config.data.points, tiles=config.data.tiles)
    details = dict(periodic=(True, True), residual_map=_distance_from_restored)
    return _images(config, problem, sample_textures, tiles=problem.tiles, **details)


def galaxies(config: ConfigDict) -> Family:
    """Galaxy images; their residual map says which pixels the count depends on."""
    problem = GalaxyProblem(points=config.data.points, count=config.data.count)
    return _images(
        config, problem, sample_galaxies, periodic=(False, False), residual_map=_sensitivity
    )


def own(config: ConfigDict) -> Family:
    """A user's own data, read once: later stages find them in the run folder."""
    data = config.data
    shape = (data.height, data.width, data.channels)

    def fields(indices: Indices) -> Array:
        x, n = read_user_data(data.path), data.train + data.validation + data.test
        if len(x) < n:
            raise UserError(
                f'{data.path}: got {len(x)} samples, expected at least {n}, the sum of data.train, '
                'data.validation and data.test; lower those, or bring more'
            )
        return x[np.random.default_rng(data.seed).permutation(len(x))[indices]]

    problem = OwnProblem(shape) if all(shape) else None  # any shape, where the data are not at hand
    return Family(
        problem,
        fields,
        shape,
        shape,
        tuple(data.periodic),
        shape[:2],
        (1, 2),
        _sensitivity,
        is_users=True,
    )


def measured(config: ConfigDict) -> ConfigDict:
    """Returns the config with the shape and number of a user's own samples, read from their files.

    All samples but those of `data.validation` and `data.test` are for training where `data.train`
    is 0.
    """
    if config.data.family != own.__name__:
        return config
    config, shape = config.copy_and_resolve_references(), read_user_data(config.data.path).shape
    with config.unlocked():
        config.data.update(dict(zip(('height', 'width', 'channels'), shape[1:], strict=True)))
        config.data.train = config.data.train or max(
            0, shape[0] - config.data.validation - config.data.test
        )
    return config


FAMILIES: dict[str, Callable[[ConfigDict], Family]] = {
    function.__name__: function
    for function in (burgers, kolmogorov, black_holes, textures, galaxies, own)
}


def make_family(config: ConfigDict) -> Family:
    """Returns the family of data that the config names."""
    return choose('data.family', config.data.family, FAMILIES)(config)
