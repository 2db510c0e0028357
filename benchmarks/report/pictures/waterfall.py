"""The paper's stages as bars that hang from one another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wdmoe_opt.benchmarks.report.pictures.style import FIXED, GREY, grid, shorten
from wdmoe_opt.benchmarks.report.stages import CERTIFIED, STAGES, paper_stages

if TYPE_CHECKING:
    import pandas as pd

COLORS = {
    **{stage: FIXED[method] for stage, method in STAGES.items()},
    CERTIFIED: FIXED["certified"],
}
#: Two lines under a bar.
LABELS = {
    "plain top-k, equal bandwidth": "plain top-k,\nequal bandwidth", "bandwidth alone": "bandwidth\nalone",
    "selection alone": "selection\nalone", "both: the paper's policy": "both: the\npaper's policy",
    CERTIFIED: "certified,\nsame retention",
}  # fmt: skip


def draw(rows: pd.DataFrame) -> Any:
    """Relative latency of each stage, with quartiles over cases and the change against plain top-k."""
    table = paper_stages(rows)
    if not len(table):
        return "there are no rows of the suite paper with topk-uniform"
    groups = table["group"].unique()
    figure, panels = grid(len(groups), 4.0, columns=1)
    for axes, group in zip(panels, groups, strict=True):
        _panel(axes, table[table["group"] == group].reset_index(drop=True))
        cases = int(table["cases"][table["group"] == group].max())
        axes.set_title(shorten(f"{group}: {cases} case{'s' * (cases > 1)}", 90))
    return figure


def _panel(axes: Any, part: pd.DataFrame) -> None:
    levels = part["mean"].astype(float).tolist()
    top = max(1.0, float(part["q3"].max()))
    for i, (stage, mean) in enumerate(zip(part["stage"], levels, strict=True)):
        color = COLORS[stage]
        axes.bar(i, mean, width=0.62, color=color)
        axes.bar(i, 1.0 - mean, bottom=mean, width=0.62, color=color, alpha=0.16)
        axes.annotate(
            f"{mean:.3f}", (i, mean / 2), ha="center", va="center", color="white", fontweight="bold"
        )
        if i:
            change = f"{100 * (mean - 1):+.1f} %".replace("-", "\N{MINUS SIGN}")
            axes.annotate(change, (i, top), xytext=(0, 7),
                          textcoords="offset points", ha="center", va="bottom")  # fmt: skip
    below = (part["mean"] - part["q1"]).clip(lower=0.0)
    above = (part["q3"] - part["mean"]).clip(lower=0.0)
    axes.errorbar(range(len(part)), levels, yerr=[below, above], color="black", capsize=5, linewidth=0,
                  elinewidth=1.2)  # fmt: skip
    axes.axhline(1.0, color=GREY, linewidth=0.9, linestyle=(0, (3, 2)))
    axes.set_xticks(range(len(part)), [LABELS[stage] for stage in part["stage"]])
    axes.grid(visible=False, axis="x")
    axes.set_ylim(0.0, 1.18 * top)
    axes.set_ylabel("latency over plain top-k")
