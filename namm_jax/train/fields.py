"""The fields of a config that depend on its data family: what is generated, and the set M. Sizes
are those of `quick`.

Each function returns section -> field -> default, added to the sections that all experiments share
(`config.schema`).
"""

from collections.abc import Callable
from typing import Any

Fields = dict[str, dict[str, Any]]


def optimizer_section(**changes: Any) -> dict[str, Any]:
    """Returns the fields of an optimizer, the same for every trained network."""
    fields = dict(
        name='adam',  # adam, or muon (matrices by Muon, all else by Adam)
        learning_rate=2e-3,  # at the end of the warm-up; > 0
        decay='cosine',  # after the warm-up: cosine (to 0 at the last step) or constant
        warmup=0.03,  # linear warm-up, as a fraction of the steps; 0 to 1
        b1=0.9,  # Adam's decay of the first moment
        b2=0.999,  # Adam's decay of the second moment
        # batches whose mean gradient makes one update: a larger batch in the memory of a small one
        accumulate=1,
        clip=1.0,  # largest norm of each network's gradient; 0 for no clipping
        # decay of the average of the weights, reached after a warm-up; 0 for the last weights
        # themselves
        ema=0.999,
    )
    return fields | changes


def burgers() -> Fields:
    """Trajectories of Burgers' equation, space against time."""
    data = dict(
        points=32,  # grid points in space, the image's height
        states=32,  # stored times, the image's width
        inner_steps=10,  # time steps between stored times
        dt=0.025,  # time step
        length=10.0,  # distance between the first and the last grid point
        mu=1.0,  # advection coefficient
        nu=0.05,  # viscosity
    )
    constraint = dict(
        name='burgers',  # the set M
        # time stepper of data and constraint alike: crank_nicolson or forward_euler
        stepper='crank_nicolson',
    )
    return {'data': data, 'constraint': constraint}


def kolmogorov() -> Fields:
    """Kolmogorov flow: states of the velocity on a staggered periodic grid."""
    data = dict(
        points=32,  # grid points a side, on [0, 2 pi]^2
        states=4,  # stored times
        inner_steps=20,  # time steps between stored times
        dt=0.01,  # time step
        reynolds=1000.0,  # inverse of the viscosity
        burn_in=3.0,  # time of the first stored state
        # for the networks: packed (a channel for each state and component) or tiled (published)
        layout='packed',
    )
    constraint = dict(
        # the set M: divergence, kolmogorov, or the sum of both, divergence+kolmogorov
        name='divergence',
        weights=(),  # of the terms of a sum; all 1 when empty
    )
    return {'data': data, 'constraint': constraint}


def black_holes() -> Fields:
    """Images of light bent around black holes."""
    data = dict(
        points=32,  # pixels a side
        total=30.0,  # brightness of every image: the sum of its pixels
    )
    return {'data': data, 'constraint': dict(name='total_brightness')}


def textures() -> Fields:
    """Binary textures that repeat."""
    data = dict(
        points=32,  # pixels a side
        tiles=2,  # copies of the tile along each axis
    )
    return {'data': data, 'constraint': dict(name='periodic')}


def galaxies() -> Fields:
    """Images of galaxies, a given number of them in each."""
    data = dict(
        points=64,  # pixels a side
        count=8,  # sources in each image
    )
    counter = dict(
        samples=10_000,  # training images, with 0 to 16 sources
        held_out=1000,  # images on which its error is measured
        most=16,  # sources in an image, at most
        # of the constraint: density (convolutions), or dense (published); the other one checks it
        network='density',
        channels=(48, 64),  # of density, a resolution each, from half the image's
        convolutions=3,  # of density, at each resolution
        filters=(32, 64),  # of dense: channels of its convolutions
        hidden=256,  # of dense: width of its hidden layer
        batch_size=16,
        steps=5000,  # at budget 1
        optimizer=optimizer_section(learning_rate=2e-3),
    )
    return {'data': data, 'constraint': dict(name='count'), 'counter': counter}


def own() -> Fields:
    """A user's own data, and a distance of their own."""
    data = dict(
        path='',  # a .npy file (n, h, w, c), or a folder of .npy files or images
        height=0,  # of a sample, in pixels; 0: read from the files
        width=0,  # of a sample, in pixels; 0: read from the files
        channels=0,  # of a sample; 0: read from the files
        periodic=(False, False),  # which of the two spatial axes wrap
    )
    constraint = dict(
        name='own',
        # package.module:function or path/to/file.py:function, fields (b, h, w, c) -> distances (b,)
        distance='',
    )
    return {'data': data, 'constraint': constraint}


FIELDS: dict[str, Callable[[], Fields]] = {
    function.__name__: function
    for function in (burgers, kolmogorov, black_holes, textures, galaxies, own)
}
