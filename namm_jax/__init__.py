"""Neural approximate mirror maps in JAX: diffusion models whose samples obey a rule.

Read in this order: data (`pdes`, `layout`, `data`), the set M (`constraints`), the mirror map
(`networks`, `mirror`), diffusion (`diffusion`), sampling (`sampling`), evaluation (`evaluation`);
then `train`, which owns disk, devices, clock and config, and `report`, which draws. Importing the
package does no work.
"""

__version__ = '0.1.0'
