"""What is measured of a run's fields: from a config to a measurement operator."""

from ml_collections import ConfigDict

from namm_jax.inverse.operators import Operator, make_operator
from namm_jax.train.files import UserError
from namm_jax.train.own import load_function

# family -> the operator that it is measured by unless the config names one
OPERATOR_OF = {
    'burgers': 'first_states',
    'kolmogorov': 'first_last',
    'black_holes': 'sparse_fourier',
    'textures': 'occluded_box',
    'galaxies': 'downsampling',
    'own': 'random_sensors',
}
NEEDS = {'states': 'indices', 'inpainting': 'occluded'}  # operators of arrays that no config holds
STATE_OPERATORS = ('states', 'first_states', 'first_last')


def operator_name(config: ConfigDict) -> str:
    """Returns the name of the measurement operator of a config."""
    return config.assimilate.operator or OPERATOR_OF[config.data.family]


def make_config_operator(config: ConfigDict, shape: tuple[int, ...]) -> Operator:
    """Returns the measurement operator that a config names, for fields of a shape; errors as of
    `make_operator`.
    """
    name, options = operator_name(config), {}
    if name in NEEDS:
        raise UserError(
            f'assimilate.operator: got {name!r}, which needs {NEEDS[name]}, expected one that a '
            'config can make; write a function of your own, and take the operator own'
        )
    if name in STATE_OPERATORS and config.data.family == 'kolmogorov':
        options = {'channels_per_state': 2}
    if name == 'own':
        options = {'function': load_function(config.assimilate.function)}
    return make_operator(name, shape, **options)
