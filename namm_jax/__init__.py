"""Neural approximate mirror maps in JAX: diffusion models whose samples obey a rule.

The front door: these names are imported when they are first used.

    problem     problems, problem, Problem, read              data and the rule that they obey
    rule        rules, constraint, rule, project_onto, land   a set M, given by a distance
    network     networks                                      Flax modules, and what one must be
    training    namm, finetune, diffusion, fit, optimizer     from data to a mirror map or a prior
    models      Mirror, Prior, prior, save, load, open_run    what training makes, and its files
    sampling    sample, samplers, guided, projected           from a prior to samples
    inverse     operators, operator, given, dps, daps, tds    samples given a measurement
    evaluation  metrics                                       distances between distributions
"""

__version__ = '0.1.0'

# name -> module, or module:attribute
_PLACES = {
    'problems': 'problems',
    'problem': 'problems.own_arrays:problem',
    'read': 'experiment.formats:read',
    'Problem': 'problems.base:Problem',
    'View': 'problems.base:View',
    'parameter': 'problems.base:parameter',
    'constraints': 'constraints',
    'rules': 'constraints',
    'constraint': 'constraints.base:function_rule',
    'rule': 'constraints.base:rule',
    'weighted_sum': 'constraints.base:weighted_sum',
    'project_onto': 'constraints.projection:gauss_newton_projection',
    'land': 'constraints.projection:land',
    'networks': 'networks',
    'namm': 'training.recipes:namm',
    'finetune': 'training.recipes:finetune',
    'diffusion': 'training.recipes:diffusion',
    'fit': 'training.fit:fit',
    'optimizer': 'training.optimizers:make_optimizer',
    'Mirror': 'mirror:Mirror',
    'Prior': 'denoising.prior:Prior',
    'prior': 'denoising.prior:prior',
    'save': 'experiment.model_file:save',
    'load': 'experiment.model_file:load',
    'open_run': 'experiment.open_run:open_run',
    'sample': 'denoising.prior:sample',
    'samplers': 'denoising.samplers',
    'guided': 'denoising.prior:guided',
    'projected': 'denoising.prior:projected',
    'operators': 'inverse.operators',
    'operator': 'inverse.operators:own',
    'given': 'inverse.given:given',
    'dps': 'inverse.dps:dps',
    'daps': 'inverse.daps:daps',
    'tds': 'inverse.tds:tds',
    'metrics': 'metrics',
}

__all__ = sorted(_PLACES)


def __getattr__(name: str) -> object:
    import importlib

    if name not in _PLACES:
        import difflib

        near = difflib.get_close_matches(name, _PLACES, n=2, cutoff=0.5)
        hint = f'; did you mean {" or ".join(near)}?' if near else f'; it has {", ".join(__all__)}'
        raise AttributeError(f'namm_jax has no {name!r}{hint}')
    module, _, attribute = _PLACES[name].partition(':')
    found = importlib.import_module(f'namm_jax.{module}')
    globals()[name] = value = getattr(found, attribute) if attribute else found
    return value


def __dir__() -> list[str]:
    return __all__
