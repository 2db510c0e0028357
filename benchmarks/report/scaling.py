"""Growth along an axis of a suite: time with a fitted exponent, and latency relative to plain top-k."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from wdmoe_opt.benchmarks.report.relative import with_ratio
from wdmoe_opt.benchmarks.report.results import aggregate, main_rows, task_rows
from wdmoe_opt.benchmarks.report.spread import geometric_mean

if TYPE_CHECKING:
    import pandas as pd

#: Axes along which the size of the problem grows; along the others only the radio changes.
SIZE_AXES = ("tokens", "devices", "blocks", "experts", "pairs", "columns")
#: Fewest points of a fit.
LEAST = 3


def _along(rows: pd.DataFrame, task: str) -> pd.DataFrame:
    own = main_rows(task_rows(rows, task))
    return own[(own["axis"] != "") & np.isfinite(own["axis_value"])]


def times_along(rows: pd.DataFrame, task: str) -> pd.DataFrame:
    """Median time of the answered rows: columns ``axis``, ``solver``, ``axis_value``, ``time_s``."""
    own = _along(rows, task)
    own = own[own["axis"].isin(SIZE_AXES) & own["answered"] & (own["time_s"] > 0) & (own["axis_value"] > 0)]
    return own.groupby(["axis", "solver", "axis_value"], as_index=False)["time_s"].median()


def exponents(rows: pd.DataFrame, task: str) -> pd.DataFrame:
    """Least squares of log time over log size, for every axis and solver with three sizes or more.

    Columns ``axis``, ``solver``, ``sizes``, ``smallest``, ``largest``, ``exponent``, ``r2`` and ``time_s``
    (at the largest size).
    """
    found = []
    for (axis, solver), part in times_along(rows, task).groupby(["axis", "solver"]):
        if len(part) < LEAST:
            continue
        x, y = np.log(part["axis_value"].to_numpy()), np.log(part["time_s"].to_numpy())
        slope, level = np.polyfit(x, y, 1)
        spread = float(((y - y.mean()) ** 2).sum())
        off = float(((y - slope * x - level) ** 2).sum())
        found.append(
            {
                "axis": axis, "solver": solver, "sizes": len(part), "smallest": part["axis_value"].min(),
                "largest": part["axis_value"].max(), "exponent": float(slope),
                "r2": 1 - off / spread if spread > 0 else 1.0, "time_s": part["time_s"].iloc[-1],
            }
        )  # fmt: skip
    columns = ["axis", "solver", "sizes", "smallest", "largest", "exponent", "r2", "time_s"]
    return aggregate(found, columns).sort_values(["axis", "exponent"], ignore_index=True)


def ratios_along(rows: pd.DataFrame, task: str) -> pd.DataFrame:
    """Geometric mean of the relative latency along every other axis; rows without a point are left out.

    Columns ``axis``, ``solver``, ``axis_value``, ``ratio``.
    """
    own = _along(rows, task)
    known = with_ratio(own[~own["axis"].isin(SIZE_AXES)])
    known = known[known["priced"]]
    return known.groupby(["axis", "solver", "axis_value"], as_index=False)["ratio"].agg(geometric_mean)
