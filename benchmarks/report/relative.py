"""Latency over that of plain top-k with equal bandwidth on the same case, by the retention reached."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from wdmoe_opt.benchmarks.report.results import ROUNDING, aggregate, first_of_family, main_rows, task_rows
from wdmoe_opt.benchmarks.report.spread import geometric_mean, quantile

if TYPE_CHECKING:
    import pandas as pd

BASE_METHOD = "topk-uniform"
#: Rows that share these have the same plain top-k: floors and the bandwidth rule do not matter to it.
CASE = ("suite", "case", "dispatch", "seed")
#: Lower edges of the bands.
EDGES = (0.99, 0.95, 0.9, 0.8, 0.0)
COLUMNS = (
    "band", "solver", "kind", "problems", "pointless", "below", "retention", "mean", "q1", "median", "q3",
    "worst", "paired", "shared",
)  # fmt: skip


def band(retention: float) -> str:
    """Name of the band that a retention falls into; "" for none."""
    if not np.isfinite(retention):
        return ""
    for i, edge in enumerate(EDGES):
        if retention >= edge - ROUNDING:
            return _band_name(i)
    return _band_name(len(EDGES) - 1)


def _band_name(i: int) -> str:
    if i == 0:
        return f"≥ {EDGES[0]:g}"
    return f"< {EDGES[i - 1]:g}" if EDGES[i] == 0 else f"{EDGES[i]:g} to {EDGES[i - 1]:g}"


#: Where only bandwidth is allocated there is nothing to retain or drop, and loads alone have no retention.
GIVEN = "as given"
BANDS = (*(_band_name(i) for i in range(len(EDGES))), GIVEN)


def is_base(rows: pd.DataFrame) -> pd.Series:
    """Rows of plain top-k with equal bandwidth."""
    return (rows["method"] == BASE_METHOD) | (rows["solver"] == BASE_METHOD)


def with_ratio(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows whose case has a base, with ``base_s``, ``ratio`` (1 without a point) and ``band``.

    Without a point a user runs plain top-k: such a row counts as ratio 1, in the band of its floor. A point
    below its floor counts with what it is, in the band that it reaches.
    """
    base = rows[is_base(rows) & (rows["state"] == "ok") & (rows["latency_s"] > 0)]
    first = base.drop_duplicates(list(CASE))[[*CASE, "latency_s"]].rename(columns={"latency_s": "base_s"})
    joined = rows.merge(first, on=list(CASE), how="inner")
    joined["ratio"] = (joined["latency_s"] / joined["base_s"]).where(joined["priced"], 1.0)
    reached = joined["retention"].where(joined["priced"], joined["min_retention"].fillna(1.0))
    joined["band"] = [band(value) for value in reached]
    joined["band"] = joined["band"].where(joined["task"] == "joint", GIVEN)
    return joined


def relative_latency(rows: pd.DataFrame, task: str, reference: str) -> pd.DataFrame:
    """One row per band of retention and solver.

    Columns ``problems``, ``pointless`` (no point), ``below`` (points below their floor), ``retention``
    (mean), ``mean`` (geometric), ``q1``, ``median``, ``q3``, ``worst``, and ``paired``: the geometric mean
    of the latency over that of the reference on the ``shared`` problems of any band.
    """
    import pandas as pd

    own = main_rows(task_rows(rows, task))
    # The base may have run in the other task only.
    others = rows[is_base(rows) & (rows["task"] != task)]
    known = with_ratio(pd.concat([own, others], ignore_index=True) if len(others) else own)
    known = known[(known["task"] == task) & (known["band"] != "")]
    to_beat = first_of_family(known, reference).set_index("problem")["ratio"]
    known["over"] = known["ratio"] / known["problem"].map(to_beat)
    groups = known.groupby(["band", "solver"], sort=False)
    found = [_line(name, solver, part) for (name, solver), part in groups]
    table = aggregate(found, COLUMNS)
    rank = table["band"].map({name: i for i, name in enumerate(BANDS)})
    order = np.lexsort((table["solver"], table["mean"].astype(float), rank.astype(float)))
    return table.iloc[order].reset_index(drop=True)


def _line(name: str, solver: str, part: pd.DataFrame) -> dict[str, object]:
    ratio = part["ratio"]
    return {
        "band": name, "solver": solver, "kind": part["kind"].iloc[0], "problems": len(part),
        "pointless": int((~part["priced"]).sum()), "below": int((part["priced"] & ~part["answered"]).sum()),
        "retention": float(part["retention"].where(part["priced"]).mean()), "mean": geometric_mean(ratio),
        "q1": quantile(ratio, 0.25), "median": quantile(ratio, 0.5), "q3": quantile(ratio, 0.75),
        "worst": float(ratio.max()), "paired": geometric_mean(part["over"]),
        "shared": int(part["over"].notna().sum()),
    }  # fmt: skip
