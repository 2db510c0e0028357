"""Times: shifted geometric means with quartiles, cold and compilation apart, and in metric evaluations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from wdmoe_opt.benchmarks.report.results import aggregate, first_of_family, main_rows, task_rows
from wdmoe_opt.benchmarks.report.spread import (
    geometric_mean,
    median,
    power_of_ten,
    quantile,
    shifted_geometric_mean,
)

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = (
    "solver", "kind", "problems", "unanswered", "mean", "q1", "median", "q3", "ratio", "shared", "cold",
    "compile", "metric_q1", "metric", "metric_q3",
)  # fmt: skip


@dataclass(frozen=True)
class TimeTable:
    """Times of a task.

    Attributes
    ----------
    table : DataFrame
        One row per solver, s; ``mean`` is the shifted geometric mean over problems, ``ratio`` the geometric
        mean of the time over that of the reference on the ``shared`` problems, ``metric`` the time in
        evaluations of the metric.
    shift : float
        s.
    reference : str
        Family that ``ratio`` is relative to.
    """

    table: pd.DataFrame
    shift: float
    reference: str


def charged(rows: pd.DataFrame) -> pd.Series:
    """Time of every row; without an answer what it was allowed or took, else the slowest on its problem."""
    spent = rows[["time_limit_s", "time_s"]].max(axis=1)
    slowest = rows["time_s"].groupby(rows["problem"]).transform("max")
    return rows["time_s"].where(rows["answered"], spent.fillna(slowest))


def time_table(rows: pd.DataFrame, task: str) -> TimeTable:
    """Times of every solver of a task; those without an answer are charged as in `charged`."""
    own = main_rows(task_rows(rows, task))
    own = own.assign(charged=charged(own))
    own["metrics"] = (own["charged"] / own["metric_s"]).where(own["answered"] & (own["metric_s"] > 0))
    shift = power_of_ten(median(own["charged"][own["answered"]]))
    chosen = reference(own)
    base = first_of_family(own, chosen).set_index("problem")["charged"].dropna()
    found = []
    for _, part in own.groupby("solver", sort=False):
        times = part.set_index("problem")["charged"].dropna()
        found.append(_line(part, times, shift) | _against(times, base))
    table = aggregate(found, COLUMNS).sort_values(["mean", "solver"], ignore_index=True)
    return TimeTable(table, shift, chosen)


def reference(rows: pd.DataFrame) -> str:
    """Family of `certified`, else of this package with the most answers, then the fastest; "" without any."""
    ours = rows[rows["kind"] == "ours"]
    ours = ours if len(ours) else rows
    if not len(ours):
        return ""
    if (ours["method"] == "certified").any():
        ours = ours[ours["method"] == "certified"]
    by = ours.groupby("family").agg(problems=("answered", "sum"), time=("time_s", "median"))
    return str(by.sort_values(["problems", "time"], ascending=[False, True]).index[0])


def _line(part: pd.DataFrame, times: pd.Series, shift: float) -> dict[str, object]:
    return {
        "solver": part["solver"].iloc[0], "kind": part["kind"].iloc[0], "problems": len(part),
        "unanswered": int((~part["answered"]).sum()),
        "mean": shifted_geometric_mean(times, shift), "q1": quantile(times, 0.25), "median": median(times),
        "q3": quantile(times, 0.75), "cold": median(part["cold_s"]), "compile": _largest(part["compile_s"]),
        "metric_q1": quantile(part["metrics"], 0.25), "metric": median(part["metrics"]),
        "metric_q3": quantile(part["metrics"], 0.75),
    }  # fmt: skip


def _largest(values: pd.Series) -> float:
    return float(values.max()) if values.notna().any() else np.nan


def _against(times: pd.Series, base: pd.Series) -> dict[str, object]:
    base = base[base > 0]
    both = times.index.intersection(base.index)
    return {"ratio": geometric_mean(times[both].to_numpy() / base[both].to_numpy()), "shared": len(both)}
