"""Time over the size of the problem, with fitted exponents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from wdmoe_opt.benchmarks.report.pictures.style import Look, grid, ordered, size_axis, time_axis
from wdmoe_opt.benchmarks.report.scaling import LEAST, exponents, ratios_along, times_along

if TYPE_CHECKING:
    import pandas as pd

UNITS = {"bandwidth_mhz": "bandwidth, MHz", "distance_m": "distance, m"}


def draw(rows: pd.DataFrame, task: str, styles: Mapping[str, Look]) -> Any:
    """A panel per axis of size; the exponent stands in the legend."""
    table = times_along(rows, task)
    sizes = table.groupby("axis")["axis_value"].nunique()
    axes_names = [name for name in sizes.index if sizes[name] >= LEAST]
    if not axes_names:
        return f"no rows vary a size over {LEAST} values or more"
    fits = exponents(rows, task).set_index(["axis", "solver"])["exponent"]
    figure, panels = grid(len(axes_names), 3.9, columns=1)
    for axes, axis in zip(panels, axes_names, strict=True):
        part = table[table["axis"] == axis]
        for name in ordered(part["solver"].unique(), styles):
            line = part[part["solver"] == name].sort_values("axis_value")
            power = fits.get((axis, name), np.nan)
            label = f"{name}  {power:.2f}" if np.isfinite(power) else f"{name}  –"
            axes.plot(line["axis_value"], line["time_s"], label=label, **styles[name].dots)
        axes.set_xscale("log")
        axes.set_yscale("log")
        time_axis(axes.yaxis)
        size_axis(axes.xaxis, part["axis_value"])
        axes.set_xlabel(axis)
        axes.set_ylabel("warm time, median")
        _beside(axes, "solver  exponent")
    return figure


def draw_radio(rows: pd.DataFrame, task: str, styles: Mapping[str, Look]) -> Any:
    """Relative latency over every other axis."""
    table = ratios_along(rows, task)
    axes_names = [name for name, part in table.groupby("axis") if part["axis_value"].nunique() > 1]
    if not axes_names:
        return "no rows vary a quantity other than the size, with topk-uniform among the solvers"
    figure, panels = grid(len(axes_names), 3.9, columns=1)
    for axes, axis in zip(panels, axes_names, strict=True):
        part = table[table["axis"] == axis]
        for name in ordered(part["solver"].unique(), styles):
            line = part[part["solver"] == name].sort_values("axis_value")
            axes.plot(line["axis_value"], line["ratio"], label=name, **styles[name].dots)
        spread = part["axis_value"].max() / max(part["axis_value"].min(), 1e-300)
        if part["axis_value"].min() > 0 and spread >= 8:
            axes.set_xscale("log")
            size_axis(axes.xaxis, part["axis_value"])
        axes.set_ylim(0.0, 1.05 * max(1.0, float(part["ratio"].max())))
        axes.set_xlabel(UNITS.get(axis, axis))
        axes.set_ylabel("latency over topk-uniform")
        _beside(axes, "solver")
    return figure


def _beside(axes: Any, title: str) -> None:
    axes.legend(title=title, loc="upper left", bbox_to_anchor=(1.0, 1.02), handlelength=2.2,
                alignment="left", title_fontsize=9.5)  # fmt: skip
