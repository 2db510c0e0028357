"""Gap to the best certified bound: as reached, within a time budget, and the time until a gap is reached."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from wdmoe_opt.benchmarks.report.results import aggregate, main_rows, task_rows
from wdmoe_opt.benchmarks.report.spread import median, quantile

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

#: Seconds.
BUDGETS = tuple(float(f"{base}e{power}") for power in range(-4, 3) for base in (1, 2, 5))
TARGETS = (0.2, *(float(f"{base}e{power}") for power in range(-1, -7, -1) for base in (1, 0.5, 0.2)))
COLUMNS = (
    "solver", "kind", "problems", "unanswered", "q1", "median", "q3", "worst", "within_1", "within_01",
)  # fmt: skip
#: A gap may miss a target by rounding.
SLACK = 1e-9


def bounded(rows: pd.DataFrame, task: str) -> pd.DataFrame:
    """Rows of a task whose problem has a certified bound."""
    own = task_rows(rows, task)
    return own[own["bound"].notna()]


def gap_words(rows: pd.DataFrame, task: str) -> str:
    """What a gap of the task is: to a certified bound, or where that is missing to the best value known."""
    own = bounded(rows, task)
    return (
        "gap to the best certified bound" if own["certified_bound"].all() else "gap to the best value known"
    )


def common(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of the problems that more than half of the families were tried on."""
    tried = rows.groupby("problem")["family"].transform("nunique")
    return rows[2 * tried > rows["family"].nunique()]


def gap_table(rows: pd.DataFrame, task: str) -> pd.DataFrame:
    """One row per solver over its problems that have a bound; without an answer the gap is infinite.

    Columns ``problems``, ``unanswered``, ``median``, ``q1``, ``q3``, ``worst``, ``within_1``, ``within_01``
    (shares within 1 % and 0.1 %).
    """
    found = []
    for solver, part in main_rows(bounded(rows, task)).groupby("solver", sort=False):
        gaps = part["bound_gap"].to_numpy()
        found.append(
            {
                "solver": solver, "kind": part["kind"].iloc[0], "problems": len(gaps),
                "unanswered": int(np.isinf(gaps).sum()), "q1": quantile(gaps, 0.25), "median": median(gaps),
                "q3": quantile(gaps, 0.75), "worst": float(gaps.max()),
                "within_1": float((gaps <= 0.01 + SLACK).mean()),
                "within_01": float((gaps <= 0.001 + SLACK).mean()),
            }
        )  # fmt: skip
    return aggregate(found, COLUMNS).sort_values(["median", "q3", "solver"], ignore_index=True)


def gap_at_budget(rows: pd.DataFrame, task: str, budgets: Sequence[float] = BUDGETS) -> pd.DataFrame:
    """Best gap of any configuration of a family that ends within a budget: quartiles over the problems.

    Columns ``solver`` (the family), ``budget`` (s), ``q1``, ``median``, ``q3`` (inf where so many have no
    answer yet) and ``answered`` (share of the problems with one); ``problems`` it was tried on.
    """
    own = common(bounded(rows, task))
    found = []
    for solver, part in own.groupby("family", sort=False):
        index = part["problem"].unique()
        for budget in budgets:
            ready = part[part["time_s"] <= budget]
            best = ready.groupby("problem")["bound_gap"].min().reindex(index).fillna(np.inf)
            found.append(
                {
                    "solver": solver, "budget": budget, "q1": quantile(best, 0.25), "median": median(best),
                    "q3": quantile(best, 0.75), "answered": float(np.isfinite(best).mean()),
                    "problems": len(index),
                }
            )  # fmt: skip
    return aggregate(found, ["solver", "budget", "q1", "median", "q3", "answered", "problems"])


def time_to_gap(rows: pd.DataFrame, task: str, targets: Sequence[float] = TARGETS) -> pd.DataFrame:
    """Time of the fastest configuration of a family that reaches a gap: median over the problems.

    Columns ``solver`` (the family), ``target``, ``reached`` (share of the problems) and ``median``
    (s; inf where at most half are reached); ``problems`` it was tried on.
    """
    own = common(bounded(rows, task))
    found = []
    for solver, part in own.groupby("family", sort=False):
        index = part["problem"].unique()
        for target in targets:
            close = part[part["bound_gap"] <= target + SLACK]
            time = close.groupby("problem")["time_s"].min().reindex(index).fillna(np.inf)
            reached = float(np.isfinite(time).mean())
            found.append(
                {"solver": solver, "target": target, "reached": reached, "median": median(time),
                 "problems": len(index)}
            )  # fmt: skip
    return aggregate(found, ["solver", "target", "reached", "median", "problems"])
