"""Latency against retention, case by case."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from wdmoe_opt.benchmarks.report.frontiers import Frontier, frontiers
from wdmoe_opt.benchmarks.report.pictures.style import Look, grid, legend, ordered, shorten

if TYPE_CHECKING:
    import pandas as pd


def draw(rows: pd.DataFrame, styles: Mapping[str, Look]) -> Any:
    """Points of every solver, and the certified bounds as steps: nothing is below them."""
    found = frontiers(rows)
    if not found:
        return "no case with topk-uniform has points at two retentions"
    figure, panels = grid(len(found), 3.9)
    for axes, front in zip(panels, found, strict=True):
        _panel(axes, front, styles)
    names = {name for front in found for name in front.points["solver"]}
    legend(figure, ordered(names, styles), styles, markers=True)
    return figure


def _panel(axes: Any, front: Frontier, styles: Mapping[str, Look]) -> None:
    points = front.points
    # This package on top, last.
    for name in reversed(ordered(points["solver"].unique(), styles)):
        part = points[points["solver"] == name].sort_values("retention")
        look = styles[name]
        axes.plot(
            100 * part["retention"], 1e3 * part["latency_s"], **{**look.curve, "linewidth": 0.9}, alpha=0.75
        )
        for met, filled in ((True, "full"), (False, "none")):
            chosen = part[part["answered"] == met]
            axes.plot(100 * chosen["retention"], 1e3 * chosen["latency_s"], linewidth=0, marker=look.marker,
                      color=look.color, fillstyle=filled, markersize=5.5)  # fmt: skip
    _bounds(axes, front)
    left, right = 100 * points["retention"].min(), 100 * points["retention"].max()
    margin = 0.04 * max(right - left, 0.5)
    axes.set_xlim(left - margin, right + margin)
    axes.set_ylim(0.0, 1.08e3 * points["latency_s"].max())
    axes.set_xlabel("kept gate weight, %")
    axes.set_ylabel("latency, ms")
    axes.set_title(shorten(front.case))


def _bounds(axes: Any, front: Frontier) -> None:
    if not len(front.bounds):
        return
    floors, bounds = front.bounds["min_retention"].to_numpy(), front.bounds["bound"].to_numpy()
    edges = np.append(floors, max(1.0, floors[-1]))
    axes.step(100 * edges, 1e3 * np.append(bounds, bounds[-1]), where="post", color="black", linewidth=1.1)
    axes.fill_between(100 * edges, 0, 1e3 * np.append(bounds, bounds[-1]), step="post", color="black",
                      alpha=0.06, linewidth=0)  # fmt: skip
