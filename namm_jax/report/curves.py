"""Curves of the inverse map: where it lands, against the noise that it is given."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from namm_jax.report.panels import WIDTH, banded_curve, curve_style, open_frame, positive_limits


def robustness_curves(
    sigma: Float[Any, ' k'],
    curves: Mapping[str, Mapping[str, Float[Any, ' k']]],
    *,
    sigma_max: float,
) -> Figure:
    """Returns constraint distance and reconstruction error of `f(g(x) + sigma noise)` against
    sigma, a panel each.

    Args:
        sigma: `(k,)` noise levels, in the units of mirror space.
        curves: label of an inverse map -> what `mirror.robustness` returns of it, `(k,)` each.
        sigma_max: the largest level of the training, marked by a dashed line.

    Raises:
        ValueError: if there are no curves.
    """
    if not curves:
        raise ValueError('curves: got none, expected {"f": mirror.robustness(...)}')
    figure, bands, top = Figure(figsize=(WIDTH, 4.0), layout='constrained'), [], 0.0
    left, right = figure.subplots(1, 2)
    for index, (label, curve) in enumerate(curves.items()):
        parts = 'distance_mean', 'distance_std', 'error_mean'
        mean, std, error = (np.asarray(curve[part], float) for part in parts)
        style = curve_style(index)
        bands.append(banded_curve(left, np.asarray(sigma, float), mean, std, label, style))
        error = np.where(np.isfinite(error), error, np.nan)
        right.plot(sigma, error, label=label, linewidth=2, **style)
        top = max(top, error[np.isfinite(error)].max(initial=0))
    left.set(yscale='log', ylim=positive_limits(np.concatenate(bands)))
    left.set_ylabel('constraint distance, mean and one std')
    right.set(ylim=(0, 1.08 * top or 1), ylabel="reconstruction error, mean |x' − x|")
    for ax in (left, right):
        ax.axvline(sigma_max, color='black', linestyle='--', linewidth=1)
        ax.set_xlabel('noise level σ in mirror space; dashed: σ_max')
        ax.locator_params(axis='x', nbins=6)
        ax.legend(fontsize=9, framealpha=0.8)
        open_frame(ax)
    return figure
