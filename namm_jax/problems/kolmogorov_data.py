"""Kolmogorov flow data: mosaics of the stored states of forced turbulence, from random
divergence-free starts.

Symbols as in `flows`. The flow runs freely for the time `burn_in` first, until the force has shaped
it.
"""

import jax

from namm_jax._arrays import Fields, Key
from namm_jax.problems import checked_keys, layout
from namm_jax.problems import kolmogorov_flow as flows
from namm_jax.problems.kolmogorov_flow import FlowProblem


def sample_kolmogorov(keys: Key, *, problem: FlowProblem) -> Fields:
    """Returns Kolmogorov flows as mosaics of states, as files hold them; the first is `burn_in`
    after the start.

    Field i depends on `keys[i]` alone, so a set can be drawn in chunks, on any number of hosts, and
    extended.

    Args:
        keys: Typed PRNG keys `(n,)`, one a sample.
        problem: Grid, time steps, force and start. Draw with the problem that the constraint gets;
            its layout is that of networks and plays no part here (`flow_layout.pack` goes from one
            to the other).

    Returns:
        Fields `(n, rows points, columns points, 2)`, float32, state k the tile at row k // 4,
        column k % 4. Speeds are of the order of `max_velocity`.

    Raises:
        ValueError: If `keys` is not a vector of typed keys.
    """
    starts = jax.vmap(lambda key: flows.start(key, problem=problem))(checked_keys(keys))
    return layout.states_to_tiled(problem.solve(problem.steps(problem.burn_in_steps)(starts)))
