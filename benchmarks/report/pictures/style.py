"""Colours, line styles and sizes that all pictures share; the same solver always looks the same."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from wdmoe_opt.benchmarks.report.results import present

if TYPE_CHECKING:
    import pandas as pd

#: Okabe and Ito's and Paul Tol's muted colours, made for all kinds of colour vision.
FIXED = {
    "certified": "#0072B2", "exact": "#332288", "greedy": "#009E73", "alternating": "#E69F00",
    "local-search": "#56B4E9", "wdmoe": "#D55E00", "wdmoe-selection": "#CC79A7", "topk": "#8C8C8C",
    "topk-uniform": "#333333",
}  # fmt: skip
FREE = ("#882255", "#44AA99", "#999933", "#AA4499", "#117733", "#661100", "#6699CC", "#DDAA33", "#004488",
        "#BB5566", "#B8860B", "#88CCEE")  # fmt: skip
LINES = {"ours": "-", "baseline": (0, (1, 1.2)), "peer": (0, (3.2, 1.2)), "plugin": (0, (5, 1.2, 1, 1.2))}
MARKERS = "osD^vP*Xp<>h"
GREY = "#595959"
RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.which": "major",
    "grid.color": "#595959",
    "grid.alpha": 0.15,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "savefig.dpi": 160,
    # Equal results give equal files.
    "svg.hashsalt": "wdmoe_opt",
    # Letters as outlines: the same on every machine.
    "svg.fonttype": "path",
}
#: Inches; all pictures are as wide as the page.
WIDTH = 10.4
MOST_TICKS = 12
#: Share below which per cents are powers of ten.
LEAST_PLAIN = 0.9e-5


@dataclass(frozen=True)
class Look:
    """How a solver is drawn."""

    color: str
    line: Any
    marker: str
    #: Another configuration of a family: the same colour, thinner and hollow.
    variant: bool = False

    @property
    def curve(self) -> dict[str, Any]:
        """Arguments of a line."""
        return {"color": self.color, "linestyle": self.line, "linewidth": 1.0 if self.variant else 1.8}

    @property
    def dots(self) -> dict[str, Any]:
        """Arguments of a line with markers."""
        return {**self.curve, "marker": self.marker, "fillstyle": "none" if self.variant else "full"}


def looks(rows: pd.DataFrame) -> dict[str, Look]:
    """Look of every solver and family of the rows, in the order of kinds and names.

    A method with its options has one colour and marker, whatever it is called in a suite.
    """
    families = present(rows.assign(solver=rows["family"]))
    firsts = rows.drop_duplicates("family").set_index("family")
    keys = {name: _identity(firsts.loc[name]) for name in families}
    free = [key for key in dict.fromkeys(keys.values()) if key not in FIXED]
    colors: Mapping[str, str] = {**FIXED, **{key: FREE[i % len(FREE)] for i, key in enumerate(free)}}
    markers = {key: MARKERS[i % len(MARKERS)] for i, key in enumerate([*FIXED, *free])}
    found = {
        name: Look(colors[key], LINES.get(firsts.loc[name, "kind"], "-"), markers[key])
        for name, key in keys.items()
    }
    styles = dict(found)
    for solver, family in rows[["solver", "family"]].drop_duplicates().itertuples(index=False):
        if solver not in found:
            styles[str(solver)] = replace(found[family], variant=True)
    return {name: styles[name] for name in [*present(rows), *families]}


def _identity(row: pd.Series) -> str:
    """Method, with its options where it has any."""
    method = str(row["method"] or row["solver"])
    return method if row["options"] in ("", "{}") else f"{method} {row['options']}"


def ordered(names: Iterable[str], styles: Mapping[str, Look]) -> list[str]:
    """Names in the order of the styles: by kind, then by name."""
    asked = set(names)
    return [name for name in styles if name in asked]


def grid(panels: int, height: float, columns: int = 2, **options: Any) -> tuple[Any, list[Any]]:
    """Figure with so many panels, the last row may be incomplete; ``height`` is that of a row in inches."""
    from matplotlib.figure import Figure

    columns = min(columns, panels)
    rows = -(-panels // columns)
    figure = Figure(figsize=(WIDTH, height * rows + 0.3), layout="constrained")
    layout: Any = figure.get_layout_engine()
    layout.set(w_pad=0.08, h_pad=0.08, wspace=0.04, hspace=0.06)
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    flat = list(axes.flat)
    for spare in flat[panels:]:
        spare.set_visible(False)
    return figure, flat[:panels]


def tried(table: pd.DataFrame) -> dict[str, str]:
    """Names with the number of problems that a solver was tried on, where others were tried on more."""
    most = table["problems"].max()
    counts = table.groupby("solver")["problems"].max()
    return {str(name): f"{name} ({n:g} of {most:g})" for name, n in counts.items() if n < most}


def legend(
    figure: Any, names: Iterable[str], styles: Mapping[str, Look], *, markers: bool = False,
    labels: Mapping[str, str] | None = None,
) -> None:  # fmt: skip
    """One legend right of all panels; labels take the place of names."""
    words = labels or {}
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], label=words.get(name, name), **(styles[name].dots if markers else styles[name].curve))
        for name in names
    ]
    if handles:
        figure.legend(handles=handles, loc="outside right upper", handlelength=2.9, labelspacing=0.6)


def time_axis(axis: Any) -> None:
    """Log axis in seconds whose ticks carry their unit; over less than two decades also 2 and 5 of each."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    def between(value: float, _: int) -> str:
        low, high = axis.get_view_interval()
        digit = round(value / 10 ** math.floor(math.log10(value)))
        return short_time(value) if high < 100 * low and digit in (2, 5) else ""

    axis.set_major_locator(LogLocator(10, numticks=9))
    axis.set_major_formatter(FuncFormatter(lambda value, _: short_time(value)))
    axis.set_minor_formatter(FuncFormatter(between))


def short_time(value: float) -> str:
    """A tick: 10 ms, 1 s."""
    from wdmoe_opt.benchmarks.report.figures import seconds

    number, _, unit = seconds(value).partition(" ")
    return f"{number.rstrip('0').rstrip('.') if '.' in number else number} {unit}".strip()


def percent_axis(axis: Any, ticks: int = 9) -> None:
    """Log axis of gaps whose ticks, so many at most, are per cents."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(10, numticks=ticks))
    axis.set_major_formatter(FuncFormatter(lambda value, _: short_percent(value)))
    axis.set_minor_formatter(NullFormatter())


def short_percent(value: float) -> str:
    """A tick: 10 %, 0.01 %, or a power of ten."""
    if value >= LEAST_PLAIN:
        return f"{100 * value:g} %"
    return f"$10^{{{round(math.log10(100 * value))}}}$ %"


def size_axis(axis: Any, values: Iterable[float]) -> None:
    """Log axis whose ticks are the sizes themselves, where they are few and far enough apart."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

    sizes = sorted(set(values))
    apart = all(b >= 1.5 * a for a, b in pairwise(sizes))
    axis.set_major_locator(
        FixedLocator(sizes) if apart and len(sizes) <= MOST_TICKS else LogLocator(10, numticks=8)
    )
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: short_count(value)))
    axis.set_minor_formatter(NullFormatter())


def short_count(value: float) -> str:
    """A tick: 8, 2k, 1M."""
    for scale, letter in ((1e6, "M"), (1e3, "k")):
        if value >= 10 * scale or (value >= scale and value % (scale / 10) == 0):
            return f"{value / scale:.3g}{letter}"
    return f"{value:g}"


def shorten(text: str, most: int = 46) -> str:
    """A title that fits over its panel."""
    return text if len(text) <= most else f"{text[: most - 1]}…"
