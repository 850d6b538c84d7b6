"""Trajectories of flows: states, fields as networks see them, mosaics as files hold them, and
pictures.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from namm_jax._arrays import Fields
from namm_jax.problems import layout
from namm_jax.problems.kolmogorov_flow import FlowProblem, vorticity


def to_states(problem: FlowProblem, x: Fields) -> Float[Array, 'b k n n 2']:
    """Returns the states `(b, k, h, w, 2)` of fields in the problem's layout.

    Args:
        problem: Grid, number of states and layout.
        x: Fields `(b, h, w, 2 k)` packed, or mosaics `(b, rows h, columns w, 2)`.

    Raises:
        ValueError: If the shape of `x` is not the problem's.
    """
    expected = problem.shape
    if x.ndim != 4 or x.shape[1:] != expected:
        raise ValueError(
            f'Got x of shape {x.shape}, expected (b, {", ".join(map(str, expected))}), '
            f'{problem.states} states of {problem.points} x {problem.points} points in the layout '
            f'{problem.layout!r}: build the constraint from '
            "the problem that the data were made with; files are 'tiled', and `pack` turns them "
            'into the layout.'
        )
    return layout.FLOW_LAYOUTS[problem.layout](x, problem.states)


def from_states(problem: FlowProblem, states: Float[Array, 'b k n n 2']) -> Fields:
    """Returns fields in the problem's layout, the inverse of `to_states`."""
    return layout.STATES_TO_LAYOUT[problem.layout](states)


def pack(problem: FlowProblem, x: Float[Array, 'b H W 2']) -> Fields:
    """Returns fields in the problem's layout, from mosaics `(b, *problem.tiled)` as files hold
    them.
    """
    return from_states(problem, layout.tiled_to_states(x, problem.states))


def unpack(problem: FlowProblem, x: Fields) -> Float[Array, 'b H W 2']:
    """Returns mosaics as files hold them, from fields in the problem's layout; the inverse of
    `pack`.
    """
    return layout.states_to_tiled(to_states(problem, x))


def mosaic(problem: FlowProblem, images: Float[Array, 'b k h w *c']) -> Float[Array, 'b H W']:
    """Returns the images of states, or of all but the first few, as one mosaic; absent states are
    zero.

    Args:
        problem: Number of states.
        images: Images `(b, k', h, w)` of the last k' states, or vectors `(b, k', h, w, 2)`, shown
            by their length.

    Returns:
        Mosaics `(b, rows h, columns w)`, tiles as in files.
    """
    lengths = jnp.linalg.norm(images, axis=-1) if images.ndim == 5 else images
    absent = problem.states - lengths.shape[1]
    return layout.states_to_tiled(
        jnp.pad(lengths, ((0, 0), (absent, 0), (0, 0), (0, 0)))[..., None]
    )[..., 0]


def vorticity_mosaic(problem: FlowProblem, x: Fields) -> Float[Array, 'b H W']:
    """Returns the vorticity of every state, one mosaic `(b, rows h, columns w)`, of fields in the
    problem's layout.
    """
    return mosaic(problem, vorticity(to_states(problem, x)))
