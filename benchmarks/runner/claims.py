"""What was claimed, against everything known of the same problem.

Rows of the same suite, case, seed, task and floor answer the same question. Best value: the best feasible one
of all of them. Best bound: the best bound that `wdmoe_opt.certify` confirmed. A row without a certificate

* is wrong ("no") if it claims optimality for an infeasible point, or for a value that the best value
  undercuts by more than its gap, or a bound beyond the best value;
* holds ("yes") if a certified bound proves it, or if another method claims an optimum that agrees;
* stays "unchecked" otherwise. A row without any claim has "".

Certified rows keep what `certify` said.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

#: Relative difference that is nobody's fault.
TOLERANCE = 1e-6
SAME_PROBLEM = ["suite", "case", "seed", "task", "min_retention"]


def check_claims(table: pd.DataFrame) -> pd.DataFrame:
    """The table with ``claim_holds`` filled in."""
    table = table.copy()
    for _, rows in table.groupby(SAME_PROBLEM, sort=False, dropna=False):
        records = rows.to_dict("records")
        for index, row in zip(rows.index, records, strict=True):
            table.loc[index, "claim_holds"] = _verdict(row, records)
    return table


def _verdict(row: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    claims_bound = row["bound_kind"] != "none" and row["bound_kind"] != ""
    if not (row["claims_optimal"] or claims_bound):
        return ""
    if row["bound_kind"] == "certified":
        return str(row["claim_holds"])
    sign = 1.0 if row["objective"] == "latency" else -1.0
    values = [sign * r["value"] for r in rows if r["feasible"] and not math.isnan(r["value"])]
    best = min(values, default=math.inf)
    proved = max(
        (
            sign * r["lower_bound"]
            for r in rows
            if r["bound_kind"] == "certified" and r["claim_holds"] == "yes"
        ),
        default=-math.inf,
    )
    slack = TOLERANCE * abs(best) if math.isfinite(best) else 0.0
    if claims_bound and sign * row["lower_bound"] > best + slack:
        return "no"
    if not row["claims_optimal"]:
        # A bound alone is right if it does not exceed one that is proved.
        return "yes" if sign * row["lower_bound"] <= proved + slack else "unchecked"
    value = sign * row["value"]
    allowed = row["rel_gap"] * abs(value) + slack
    if not row["feasible"] or not value <= best + allowed:
        return "no"
    agrees = any(
        r["claims_optimal"]
        and r["feasible"]
        and (r["method"], r["options"]) != (row["method"], row["options"])
        and abs(sign * r["value"] - value) <= allowed
        for r in rows
    )
    return "yes" if value - proved <= allowed or agrees else "unchecked"
