"""The fields of a config that depend on its problem, its parameters aside. Sizes
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


def galaxies() -> Fields:
    """Images of galaxies, a given number of them in each."""
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
    return {'counter': counter}


def own() -> Fields:
    """A user's own data, and a rule of their own."""
    data = dict(
        path='',  # a .npy file (n, h, w, c), or a folder of .npy files or images
    )
    constraint = dict(
        # package.module:function or path/to/file.py:function, fields (b, h, w, c) -> distances (b,)
        distance='',
    )
    return {'data': data, 'constraint': constraint}


# problem -> the fields that it adds, its own parameters aside
FIELDS: dict[str, Callable[[], Fields]] = {'galaxies': galaxies, 'own': own}
