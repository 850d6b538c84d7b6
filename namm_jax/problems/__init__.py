"""Problems: data and the rule that they obey, one file each, imported when they are first used."""

import importlib
from typing import Any

from namm_jax._checks import choose

# name -> file and class
PROBLEMS = {
    'burgers': ('burgers_equation', 'Burgers'),
    'kolmogorov': ('kolmogorov_flow', 'Kolmogorov'),
    'black_holes': ('black_hole_images', 'BlackHoles'),
    'textures': ('periodic_textures', 'Textures'),
    'galaxies': ('galaxy_images', 'Galaxies'),
    'decaying_flow': ('decaying_vorticity', 'DecayingFlow'),
    'heat': ('heat_equation', 'Heat'),
    'reaction_diffusion': ('reaction_diffusion_equation', 'ReactionDiffusion'),
    'own': ('own_arrays', 'Arrays'),
}


def __getattr__(name: str) -> Any:
    file, cls = choose('problems', name, PROBLEMS, AttributeError)
    return getattr(importlib.import_module(f'namm_jax.problems.{file}'), cls)


def __dir__() -> list[str]:
    return sorted(PROBLEMS)
