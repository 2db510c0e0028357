"""Means and quantiles that stay true where some values are infinite: a solver without an answer."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


def quantile(values: ArrayLike, share: float) -> float:
    """Linear between the neighbours; inf as soon as one that counts is inf; NaN without values."""
    ordered = np.sort(np.asarray(values, float))
    ordered = ordered[~np.isnan(ordered)]
    if not ordered.size:
        return math.nan
    at = share * (ordered.size - 1)
    below = math.floor(at)
    part = at - below
    low = float(ordered[below])
    if part == 0.0:
        return low
    high = float(ordered[below + 1])
    return high if math.isinf(high) else low + part * (high - low)


def median(values: ArrayLike) -> float:
    """Middle value."""
    return quantile(values, 0.5)


def geometric_mean(values: ArrayLike) -> float:
    """Of the positive finite values; NaN without any."""
    known = np.asarray(values, float)
    known = known[np.isfinite(known) & (known > 0)]
    return float(np.exp(np.log(known).mean())) if known.size else math.nan


def shifted_geometric_mean(values: ArrayLike, shift: float) -> float:
    """``exp(mean(log(v + shift))) - shift``: less drawn to the tiny values than the plain one."""
    known = np.asarray(values, float)
    known = known[np.isfinite(known)]
    return float(np.exp(np.log(known + shift).mean()) - shift) if known.size else math.nan


def power_of_ten(value: float) -> float:
    """Nearest power of ten, on a log scale; 1 where there is none."""
    return 10.0 ** round(math.log10(value)) if value > 0 and math.isfinite(value) else 1.0
