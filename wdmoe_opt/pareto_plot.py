"""The picture of a frontier; needs matplotlib (extra: plot)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wdmoe_opt.archive import write_atomically
from wdmoe_opt.errors import InputError, UnsupportedError
from wdmoe_opt.pareto import mark_words

if TYPE_CHECKING:
    from wdmoe_opt.pareto import Frontier, Mark
    from wdmoe_opt.validation import RealArray

# Okabe and Ito's palette, made for all kinds of colour vision.
BLUE, VERMILION, GREY = "#0072B2", "#D55E00", "#595959"
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "savefig.dpi": 110,
}
SIZE = 8.2, 4.6
#: In points: least distance of two labels, of a label and its marker sideways and upwards, width of a letter.
LINE, AWAY, RAISED, LETTER = 15.0, 22.0, 13.0, 5.8


def check_target(path: str | Path) -> Path:
    """Path of a picture that can be written, to be known before hours of solving.

    Raises
    ------
    UnsupportedError
        If matplotlib is missing.
    InputError
        If its ending is no picture's, or its folder does not exist.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UnsupportedError("plots need matplotlib; install wdmoe_opt[plot]") from None
    path = Path(path)
    # PGF is written to named files only, which would be there half before it is whole.
    known = sorted(set(Figure().canvas.get_supported_filetypes()) - {"pgf"})
    if path.suffix[1:].lower() not in known:
        raise InputError("plot", f"must end in one of {', '.join(known)}", value=str(path))
    if not path.parent.is_dir():
        raise InputError("plot", "its folder does not exist", value=str(path))
    return path


def plot_frontier(front: Frontier, target: str | Path | Any) -> Any:
    """Draw into a file or into axes; see `Frontier.plot`."""
    if not isinstance(target, (str, Path)):
        if not hasattr(target, "transData"):
            raise InputError("target", f"must be a path or axes, got {type(target).__name__}")
        _draw(front, target)
        _label(front, target)
        return target
    path = check_target(target)
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.subplots()
        _draw(front, axes)
        # Labels are placed by the size that the axes will have.
        figure.draw_without_rendering()
        _label(front, axes)
        # Without the version of the drawing program, equal frontiers give equal files.
        kind = path.suffix[1:].lower()
        metadata = {"Software": None} if kind == "png" else None
        write_atomically(path, lambda stream: figure.savefig(stream, format=kind, metadata=metadata))
    return axes


def _draw(front: Frontier, axes: Any) -> None:
    edges, below, above = _staircases(front)
    axes.fill_between(edges, below, above, color=BLUE, alpha=0.18, linewidth=0, label="the optimum lies here")
    axes.plot(edges, above, color=BLUE, linewidth=0.8, alpha=0.6)
    axes.plot(
        100 * front.floors, 1e3 * front.latency, color=BLUE, marker="o", markersize=4, linewidth=0,
        label="achieved: fastest point known",
    )  # fmt: skip
    axes.plot(edges, below, color="black", linewidth=1.2, label="certified: nothing is faster")
    axes.set_xlabel("kept gate weight in every block, %")
    axes.set_ylabel("latency, ms")
    inst = front.problem.instance
    axes.set_title(
        f"{inst.name or 'instance'}: {inst.blocks} block{'s' * (inst.blocks > 1)}, {inst.tokens} tokens"
    )
    _limits(front, axes)
    axes.grid(color=GREY, alpha=0.15, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.legend(loc="lower right", framealpha=0.85, edgecolor="none")


def _staircases(front: Frontier) -> tuple[RealArray, RealArray, RealArray]:
    """Retention in %, certified and achieved curve in ms, with both ends of every step (2 n - 1,)."""
    edges = np.repeat(front.floors, 2)[1:]
    # A bound holds from its floor on, a point up to its floor.
    below = np.repeat(front.lower_bound, 2)[:-1]
    above = np.append(np.repeat(front.latency, 2)[2:], front.latency[-1])
    return 100 * edges, 1e3 * below, 1e3 * above


def _shown(front: Frontier) -> list[Mark]:
    return [mark for mark in front.marks if np.isfinite(mark.latency)]


def _limits(front: Frontier, axes: Any) -> None:
    """Room for everything from zero latency on: a cut axis would exaggerate what a floor costs."""
    shown = _shown(front)
    x = 100 * np.array([*front.floors, *(mark.retention for mark in shown)])
    y = 1e3 * np.array([*front.latency, *(mark.latency for mark in shown)])
    margin = 0.03 * max(float(np.ptp(x)), 1.0)
    axes.set_xlim(x.min() - margin, x.max() + margin)
    axes.set_ylim(0.0, 1.15 * y.max() if y.max() > 0 else 1.0)


def _label(front: Frontier, axes: Any) -> None:
    """Markers of the policies, and labels beside them, clear of the curve and of each other."""
    placed = sorted((_place(front, mark, axes) for mark in _shown(front)), key=lambda place: place[0])
    top = axes.get_window_extent().y1 * 72 / axes.figure.dpi
    for (_, own, side, mark), line in zip(placed, _spread([place[0] for place in placed], top), strict=True):
        spot = 100 * mark.retention, 1e3 * mark.latency
        axes.plot(*spot, marker="D", markersize=6, color=VERMILION, linewidth=0,
                  fillstyle="none" if mark.conflict else "full")  # fmt: skip
        axes.annotate(
            _words(mark), spot, xytext=(side * AWAY, line - own), textcoords="offset points",
            ha="left" if side > 0 else "right", va="center", color=VERMILION,
            arrowprops={
                "arrowstyle": "-", "color": VERMILION, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 4,
                "relpos": ((1 - side) / 2, 0.5),
            },
        )  # fmt: skip


def _place(front: Frontier, mark: Mark, axes: Any) -> tuple[float, float, int, Mark]:
    """Height of label and marker in points, and the label's side: left, where the curve is low, if it can."""

    def at(retention: float, latency: float) -> RealArray:
        where: RealArray = axes.transData.transform((100 * retention, 1e3 * latency)) * 72 / axes.figure.dpi
        return where

    x, own = at(mark.retention, mark.latency)
    length = AWAY + LETTER * len(_words(mark))
    if x - length > axes.get_window_extent().x0 * 72 / axes.figure.dpi:
        return float(own) + RAISED, float(own), -1, mark
    per_point = at(1.0, 0.0)[0] - at(0.0, 0.0)[0]
    # Beyond the highest floor nothing is drawn that a label could meet.
    end = min(mark.retention + length / per_point, float(front.floors[-1]))
    over = min(front.latency_at(end), float(front.latency[-1]))
    return max(float(own), float(at(0.0, over)[1])) + RAISED, float(own), 1, mark


def _words(mark: Mark) -> str:
    return f"{mark.method} {'breaks other limits' if mark.conflict else mark_words(mark)}"


def _spread(height: list[float], top: float) -> list[float]:
    """Rising heights at least `LINE` apart, moved as little as going up from the lowest allows."""
    lines: list[float] = []
    for own in height:
        lines.append(max(own, lines[-1] + LINE) if lines else own)
    over = max(lines[-1] - top, 0.0) if lines else 0.0
    return [line - over for line in lines]
