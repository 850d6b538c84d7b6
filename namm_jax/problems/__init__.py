"""Problems: data and the rule that they obey, one file each, imported when they are first used."""

import importlib
from typing import Any

# name -> file and class
PROBLEMS = {
    'burgers': ('burgers_equation', 'Burgers'),
    'kolmogorov': ('kolmogorov_flow', 'Kolmogorov'),
    'black_holes': ('black_hole_images', 'BlackHoles'),
    'textures': ('periodic_textures', 'Textures'),
    'galaxies': ('galaxy_images', 'Galaxies'),
    'own': ('own_arrays', 'Arrays'),
}


def __getattr__(name: str) -> Any:
    if name not in PROBLEMS:
        raise AttributeError(f'no problem is called {name!r}; there are {", ".join(PROBLEMS)}')
    file, cls = PROBLEMS[name]
    return getattr(importlib.import_module(f'namm_jax.problems.{file}'), cls)


def __dir__() -> list[str]:
    return sorted(PROBLEMS)
