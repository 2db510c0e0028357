"""Figures of the page; need matplotlib (extra: plot)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from wdmoe_opt.benchmarks.report.drawing import Picture, make_picture
from wdmoe_opt.benchmarks.report.pictures.style import MARKERS, WIDTH
from wdmoe_opt.benchmarks.what_dropping_costs.plan import LIGHTEST, MAIN, RANDOM, SECOND
from wdmoe_opt.benchmarks.what_dropping_costs.statistics import TARGETS, Row

#: Okabe and Ito's palette, made for all kinds of colour vision.
COLOURS = ("#0072B2", "#56B4E9", "#332288", "#000000", "#009E73", "#117733", "#E69F00", "#CC79A7", "#D55E00",
           "#8C8C8C")  # fmt: skip
POLICIES = ("certified", "certified-4", "certified-8", "certified-both", "certified-token",
            "certified-token-8", "greedy", "greedy-wlr", "wdmoe", "wdmoe-default")  # fmt: skip
CONTROLS = (MAIN.name, LIGHTEST.name, SECOND.name, RANDOM.name)
#: Loss increases below this share of plain top-2's are drawn on a linear scale.
LINEAR = 0.001

Place = Callable[[Row], float]


def pictures(rows: Sequence[Row], texts: dict[str, str], titles: dict[str, str]) -> list[Picture]:
    """All figures.

    Parameters
    ----------
    rows : sequence of Row
    texts : dict of str
        Title of each text that has a panel.
    titles : dict of str
        Title of each curve.
    """

    def retained(row: Row) -> float:
        return row.retention

    def latency(row: Row) -> float:
        return row.latency.value

    def experts(row: Row) -> float:
        return row.experts

    def draw(names: Sequence[str], place: Place, label: str, rows: Sequence[Row] = rows) -> Callable[[], Any]:
        return lambda: _draw(rows, names, texts, titles, place, label)

    kept, time = "retention", "total latency / plain top-2, optimal bandwidth"
    return [
        make_picture("what-dropping-costs-retention", "Loss and retention", "",
                     draw(POLICIES, retained, kept)),
        make_picture("what-dropping-costs-latency", "Loss and latency", "", draw(POLICIES, latency, time)),
        make_picture("what-dropping-costs-controls", "Which expert goes, at equal retention", "",
                     draw(CONTROLS, retained, kept)),
        make_picture("what-dropping-costs-experts", "Which expert goes, at equal number", "",
                     draw(CONTROLS, experts, "experts per token")),
    ]  # fmt: skip


def _draw(
    rows: Sequence[Row],
    names: Sequence[str],
    texts: dict[str, str],
    titles: dict[str, str],
    place: Place,
    label: str,
) -> Any:
    """One panel per text, one line per curve, with intervals."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    figure = Figure(figsize=(WIDTH, 5.2), layout="constrained")
    panels = figure.subplots(1, len(texts), sharey=True, squeeze=False)[0]
    for axes, (text, title) in zip(panels, texts.items(), strict=True):
        for target in TARGETS:
            axes.axhline(target, color="#595959", linewidth=0.7, linestyle=(0, (1, 2)))
        for number, name in enumerate(name for name in names if name in titles):
            points = [row for row in rows if (row.text, row.curve) == (text, name)]
            _line(axes, points, place, titles[name], number)
        axes.set_yscale("symlog", linthresh=LINEAR)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
        axes.set_yticks([0.0, *TARGETS, 0.02, 0.1, 0.2])
        axes.minorticks_off()
        axes.invert_xaxis()
        axes.set_title(title)
        axes.set_xlabel(label)
    panels[0].set_ylabel("loss increase over plain top-2")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


def _line(axes: Any, points: Sequence[Row], place: Place, title: str, number: int) -> None:
    points = sorted(points, key=place)
    middle = [row.loss.value for row in points]
    reach = [
        [row.loss.value - row.loss.low for row in points],
        [row.loss.high - row.loss.value for row in points],
    ]
    axes.errorbar(
        [place(row) for row in points], middle, yerr=reach, label=title, color=COLOURS[number],
        marker=MARKERS[number], elinewidth=1.0, linestyle="-" if len(points) > 1 else "none",
    )  # fmt: skip
