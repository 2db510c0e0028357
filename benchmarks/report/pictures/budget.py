"""Gap at a fixed time budget."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from wdmoe_opt.benchmarks.report.gaps import gap_at_budget, gap_words
from wdmoe_opt.benchmarks.report.pictures.style import (
    Look,
    grid,
    legend,
    ordered,
    percent_axis,
    time_axis,
    tried,
)
from wdmoe_opt.benchmarks.report.results import task_rows

if TYPE_CHECKING:
    import pandas as pd

#: Gaps below this are drawn here: a log axis has no zero.
LEAST = 1e-7


def draw(rows: pd.DataFrame, task: str, styles: Mapping[str, Look]) -> Any:
    """Median gap over time, with quartiles; a curve starts where half of the problems have an answer."""
    table = gap_at_budget(rows, task)
    known = table[np.isfinite(table["median"])]
    if not len(known):
        return "no solver answers half of the problems that have a certified bound"
    figure, (axes,) = grid(1, 4.3)
    names = ordered(known["solver"].unique(), styles)
    for name in names:
        part = known[known["solver"] == name]
        low, high = (part[key].clip(lower=LEAST) for key in ("q1", "q3"))
        axes.fill_between(part["budget"], low, high, where=np.isfinite(high), step="post",
                          color=styles[name].color, alpha=0.1, linewidth=0)  # fmt: skip
        axes.step(part["budget"], part["median"].clip(lower=LEAST), where="post", **styles[name].curve)
        axes.plot(part["budget"].iloc[0], max(part["median"].iloc[0], LEAST), marker=styles[name].marker,
                  color=styles[name].color, linewidth=0, markersize=6)  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    longest = table["budget"][table["budget"] >= task_rows(rows, task)["time_s"].max()]
    axes.set_xlim(known["budget"].min() / 1.3, 1.6 * longest.min() if len(longest) else table["budget"].max())
    lowest = max(LEAST, float(known["median"].min()))
    axes.set_ylim(0.4 * lowest, min(1.2, 3 * float(known["median"].max()) + LEAST))
    axes.set_xlabel("time budget")
    axes.set_ylabel(gap_words(rows, task))
    time_axis(axes.xaxis)
    percent_axis(axes.yaxis)
    legend(figure, names, styles, markers=True, labels=tried(table))
    return figure
