"""Success, claimed and true: how often a solver answers, claims optimality, and is right to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wdmoe_opt.benchmarks.report.results import aggregate, main_rows, task_rows

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("solver", "kind", "rows", "answered", "claimed", "holds", "broken", "unchecked")


def success_table(rows: pd.DataFrame, task: str) -> pd.DataFrame:
    """One row per solver: ``rows``, shares ``answered`` and ``claimed`` of them, and how claims fared.

    ``holds`` is the share of all rows whose claim of optimality was made and rechecked; ``broken`` and
    ``unchecked`` are numbers of claims.
    """
    found = []
    for solver, part in main_rows(task_rows(rows, task)).groupby("solver", sort=False):
        claims = part["claim_holds"][part["claims_optimal"]]
        found.append(
            {
                "solver": solver, "kind": part["kind"].iloc[0], "rows": len(part),
                "answered": float(part["answered"].mean()), "claimed": len(claims) / len(part),
                "holds": float((claims == "yes").sum()) / len(part), "broken": int((claims == "no").sum()),
                "unchecked": int((~claims.isin(("yes", "no"))).sum()),
            }
        )  # fmt: skip
    table = aggregate(found, COLUMNS)
    return table.sort_values(
        ["holds", "answered", "solver"], ascending=[False, False, True], ignore_index=True
    )
