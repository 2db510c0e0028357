"""Time of every device under plain top-k and under the fastest answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from wdmoe_opt.benchmarks.report.frontiers import DeviceTimes, device_times
from wdmoe_opt.benchmarks.report.pictures.style import Look, grid, shorten
from wdmoe_opt.benchmarks.report.relative import BASE_METHOD

if TYPE_CHECKING:
    import pandas as pd

#: More devices than this are drawn without names.
NAMED = 16


def draw(rows: pd.DataFrame, styles: Mapping[str, Look]) -> Any:
    """Two bars per device; the longest of each colour is the latency and has a line."""
    found = device_times(rows)
    if not found:
        return "no case has times per device of both topk-uniform and another answer"
    figure, panels = grid(len(found), 3.9)
    for axes, times in zip(panels, found, strict=True):
        _panel(axes, times, styles)
    return figure


def _panel(axes: Any, times: DeviceTimes, styles: Mapping[str, Look]) -> None:
    places = np.arange(times.plain.size)
    label = f"{times.best}, keeps {times.retention:.1%}"
    for values, shift, color, name in (
        (times.plain, -0.2, "#B5B5B5", BASE_METHOD),
        (times.fast, 0.2, styles[times.best].color, label),
    ):
        axes.bar(places + shift, 1e3 * values, width=0.4, color=color, label=name)
        axes.axhline(1e3 * values.max(), color=color, linewidth=1.0, linestyle=(0, (3, 2)))
    axes.set_xlabel("device")
    axes.set_ylabel("time, ms")
    if places.size <= NAMED:
        axes.set_xticks(places, [str(i) for i in places])
    axes.grid(visible=False, axis="x")
    axes.set_ylim(0.0, 1.3e3 * max(times.plain.max(), times.fast.max()))
    axes.legend(loc="upper right", ncols=2, borderaxespad=0.1, handlelength=1.2, columnspacing=1.2)
    axes.set_title(shorten(times.case))
