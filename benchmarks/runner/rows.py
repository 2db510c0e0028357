"""The schema of benchmark results: one row is one solver configuration on one case and seed.

Missing numbers are NaN, missing texts "". ``task_key`` is a hash of everything that decides a row, the
package's version included: what the runner recognises a finished row by. Rows of the same suite, case, seed
and ``min_retention`` are answers to the same problem.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

#: Column to type, in order.
COLUMNS: dict[str, str] = {
    # identity
    "suite": "str", "case": "str", "group": "str", "axis": "str", "axis_value": "float64", "seed": "int64",
    "solver": "str", "method": "str", "options": "str", "kind": "str", "time_limit_s": "float64",
    "rel_gap": "float64", "task_key": "str",
    # problem; 0 where it could not be built
    "blocks": "int64", "tokens": "int64", "devices": "int64", "experts": "int64", "columns": "int64",
    "pairs": "int64", "objective": "str", "allocation": "str", "dispatch": "str", "candidates": "str",
    "min_retention": "float64", "task": "str",
    # status
    "state": "str", "message": "str", "reason": "str", "limit": "str", "detail": "str",
    # answer, priced by the metric
    "value": "float64", "latency_s": "float64", "retention": "float64", "feasible": "bool",
    "violations": "str", "lower_bound": "float64", "bound_kind": "str", "gap": "float64",
    "claims_optimal": "bool", "claim_holds": "str", "device_time": "str",
    # times
    "cold_s": "float64", "compile_s": "float64", "warm_s": "float64", "warm_q1_s": "float64",
    "warm_q3_s": "float64", "warm_best_s": "float64", "repeats": "int64", "metric_s": "float64",
    # provenance
    "machine": "str", "versions": "str", "started": "str",
}  # fmt: skip

STATES = ("ok", "no-point", "refused", "unavailable", "failed", "timeout")
_BLANKS: dict[str, Any] = {"str": "", "float64": float("nan"), "int64": 0, "bool": False}


def blank_row() -> dict[str, Any]:
    """A row that knows nothing."""
    return {column: _BLANKS[dtype] for column, dtype in COLUMNS.items()}


def frame(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows as a pandas frame with every column of the schema, in its type."""
    import pandas as pd

    blank = blank_row()
    complete = [{**blank, **{k: v for k, v in row.items() if v is not None}} for row in rows]
    table = pd.DataFrame(complete, columns=list(COLUMNS))
    return table.astype({column: "object" if dtype == "str" else dtype for column, dtype in COLUMNS.items()})
