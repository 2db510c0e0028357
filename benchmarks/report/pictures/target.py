"""Time until a gap is reached."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from wdmoe_opt.benchmarks.report.gaps import gap_words, time_to_gap
from wdmoe_opt.benchmarks.report.pictures.style import (
    Look,
    grid,
    legend,
    ordered,
    percent_axis,
    time_axis,
    tried,
)

if TYPE_CHECKING:
    import pandas as pd


def draw(rows: pd.DataFrame, task: str, styles: Mapping[str, Look]) -> Any:
    """Median time to a gap, beside the share of problems on which the gap is reached at all."""
    table = time_to_gap(rows, task)
    if not len(table):
        return "no problem of this task has a certified bound"
    if not np.isfinite(table["median"]).any():
        return "no solver reaches any of the gaps on half of the problems"
    tightest = table["target"][table["reached"] > 0].min()
    # One target that nobody reaches shows where the curves end.
    table = table[table["target"] >= tightest / 2.6]
    figure, (time, share) = grid(2, 3.9)
    reaching = table.groupby("solver")["reached"].max()
    names = ordered(reaching[reaching > 0].index, styles)
    for name in names:
        part = table[table["solver"] == name].sort_values("target", ascending=False)
        known = part[np.isfinite(part["median"])]
        time.plot(known["target"], known["median"], **styles[name].dots)
        # Nothing after the first zero: tighter gaps are not reached either.
        some = part["reached"].shift(1, fill_value=1.0) > 0
        share.plot(part["target"][some], part["reached"][some], **styles[name].dots)
    time.set_yscale("log")
    time_axis(time.yaxis)
    time.set_title("median time (where half of the problems get there)")
    share.set_title("share of problems that get there")
    share.set_ylim(-0.03, 1.05)
    share.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    for axes in (time, share):
        axes.set_xscale("log")
        axes.set_xlim(table["target"].max() * 1.3, table["target"].min() / 1.3)
        percent_axis(axes.xaxis, ticks=5)
        axes.set_xlabel(f"{gap_words(rows, task)}, tighter to the right")
    legend(figure, names, styles, markers=True, labels=tried(table))
    return figure
