"""Performance profiles, a panel per gap."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from wdmoe_opt.benchmarks.report.figures import percent
from wdmoe_opt.benchmarks.report.pictures.style import Look, grid, legend, ordered
from wdmoe_opt.benchmarks.report.profiles import WITHIN, Profile, profile

if TYPE_CHECKING:
    import pandas as pd


def draw(rows: pd.DataFrame, task: str, styles: Mapping[str, Look]) -> Any:
    """Share of problems within a gap of the best bound over the multiple of the fastest solver's time."""
    profiles = [profile(rows, task, within) for within in WITHIN]
    if not profiles[0].problems:
        return "no problem of this task has a certified bound"
    if len(profiles[0].ratios) < 2:
        return "a profile compares solvers, and there is only one"
    if not any(item.solved for item in profiles):
        return f"no solver comes within {percent(max(WITHIN))} of the bound on any problem"
    figure, panels = grid(len(profiles), 3.5, columns=len(profiles), sharey=True, sharex=True)
    end = max(float(ratios.max()) for item in profiles for ratios in item.ratios.values() if ratios.size)
    end = max(10.0, 1.5 * end)
    for axes, item in zip(panels, profiles, strict=True):
        _panel(axes, item, styles, end)
    panels[0].set_ylabel("share of problems solved")
    panels[len(panels) // 2].set_xlabel("time over that of the fastest solver on the problem")
    names = {name for item in profiles for name, ratios in item.ratios.items() if ratios.size}
    legend(figure, ordered(names, styles), styles)
    return figure


def _panel(axes: Any, item: Profile, styles: Mapping[str, Look], end: float) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for name in ordered(item.ratios, styles):
        ratios = item.ratios[name]
        if not ratios.size:
            continue
        x = np.concatenate(([1.0], ratios, [end]))
        y = np.concatenate(([item.share(name, 1.0)], (np.arange(ratios.size) + 1) / item.problems,
                            [ratios.size / item.problems]))  # fmt: skip
        axes.step(x, y, where="post", **styles[name].curve)
    axes.set_xscale("log")
    axes.set_xlim(0.92, end)
    axes.set_ylim(-0.02, 1.03)
    axes.xaxis.set_major_locator(LogLocator(10, numticks=5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _multiple(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
    axes.set_title(f"within {100 * item.within:g} %: {item.solved} of {item.problems} problems")


def _multiple(value: float) -> str:
    return f"{value:,.0f}×" if value < 1e3 else f"$10^{{{np.log10(value):.0f}}}$×"
