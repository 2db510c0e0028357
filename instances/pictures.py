"""Pictures of the routing families for the documentation; needs matplotlib (extra: plot)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wdmoe_opt.archive import write_atomically
from wdmoe_opt.instances.families import Family
from wdmoe_opt.instances.load_file import LoadFile
from wdmoe_opt.instances.routing_file import RoutingFile, expert_counts
from wdmoe_opt.instances.statistics import load_skew, retention_curve
from wdmoe_opt.instances.token_types import TokenTypes

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Okabe and Ito's palette, made for all kinds of colour vision; red and blue around white are safe as well.
BLUE, VERMILION, GREY = "#0072B2", "#D55E00", "#595959"
HEAT = "RdBu_r"
#: Lightest and darkest colour of the heat maps, as multiples of an even load.
LOWEST, HIGHEST = 1 / 8, 8
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "savefig.dpi": 110,
}


def draw_family(family: Family, path: Path) -> None:
    """Draw one family into a PNG file."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.2, 3.7), layout="constrained")
        source = family.load()
        if isinstance(source, RoutingFile):
            _draw_routing(figure, source)
        elif isinstance(source, TokenTypes):
            _draw_types(figure, source)
        elif source.prompts > 1:
            _draw_prompts(figure, source)
        else:
            _draw_domains(figure, source)
        write_atomically(
            path, lambda stream: figure.savefig(stream, format="png", metadata={"Software": None})
        )


def _draw_routing(figure: Any, routing: RoutingFile) -> None:
    heat, skew, curve = figure.subplots(1, 3, width_ratios=(2.3, 0.8, 1.4))
    loads = expert_counts(routing.expert_ids[:, :, : routing.top_k], routing.experts)
    _heat(figure, heat, loads, "Load of each expert", rows="MoE block")
    _skew_bars(skew, load_skew(loads))
    kept = retention_curve(routing.gate_weights, routing.top_k)
    _curve(curve, kept, "Retention")
    curve.set_xlabel("experts kept per token")
    curve.set_ylabel("kept share of top-k gate weight")
    curve.set_xticks(range(1, routing.top_k + 1))


def _draw_prompts(figure: Any, source: LoadFile) -> None:
    heat, skew, single = figure.subplots(1, 3, width_ratios=(1.5, 1.3, 1.3))
    loads = source.loads.sum(axis=1, dtype=np.int64)
    _heat(figure, heat, loads.sum(axis=0), "Load of each expert", rows="MoE block")
    heat.set_xticks(range(source.experts))
    by_subject = np.array([load_skew(part) for part in loads])
    _band(skew, by_subject, f"{len(source.parts)} subjects")
    by_prompt = load_skew(source.loads.reshape(-1, source.experts)).reshape(-1, source.blocks)
    _band(single, by_prompt, f"{by_prompt.shape[0]:,} questions")
    skew.legend(frameon=False, loc="upper right")
    for axes in (skew, single):
        axes.set_ylim(0.95, 3.4)


def _draw_domains(figure: Any, source: LoadFile) -> None:
    loads = source.loads[:, 0]
    panels = figure.subplots(1, source.blocks, sharey=True)
    for block, (axes, layer) in enumerate(zip(panels, source.manifest["layers"], strict=True)):
        image = _image(axes, loads[:, block])
        axes.set_title(f"Layer {layer}")
        axes.set_xlabel("expert")
        axes.set_yticks(range(len(source.parts)), source.parts)
    _scale(figure, image, panels)


def _draw_types(figure: Any, types: TokenTypes) -> None:
    heat, curve = figure.subplots(1, 2, width_ratios=(2.2, 1.5))
    part = types.parts[1]
    shares = types.distribution(part)[0][:40]
    image = _image(heat, shares)
    heat.set_title(f"40 most frequent token types of '{part}', layer 0")
    heat.set_xlabel("expert")
    heat.set_ylabel("token type, most frequent on top")
    _scale(figure, image, [heat])
    ranked = -np.sort(-np.concatenate([types.distribution(name)[0] for name in types.parts]), axis=1)
    kept = ranked.cumsum(axis=1)
    ranks = np.arange(1, types.experts + 1)
    low, middle, high = np.quantile(kept, (0.1, 0.5, 0.9), axis=0)
    curve.fill_between(ranks, low, high, color=BLUE, alpha=0.25, linewidth=0, label="10 to 90 %")
    curve.plot(ranks, middle, color=BLUE, label="median")
    curve.axvline(types.top_k, color=GREY, linewidth=1, linestyle=":")
    curve.annotate(f"top-{types.top_k}", (types.top_k + 1, 0.05), color=GREY)
    curve.set_title(f"Concentration over {types.tokens:,} token types")
    curve.set_xlabel("most chosen experts of a token type")
    curve.set_ylabel("share of its choices")
    curve.set_ylim(0, 1.02)
    curve.legend(frameon=False, loc="lower right")


def _heat(figure: Any, axes: Any, loads: NDArray[Any], title: str, rows: str) -> None:
    image = _image(axes, loads)
    axes.set_title(title)
    axes.set_xlabel("expert")
    axes.set_ylabel(rows)
    _scale(figure, image, [axes])


def _image(axes: Any, loads: NDArray[Any]) -> Any:
    """Heat map of loads (rows, experts) as multiples of the row's mean."""
    from matplotlib.colors import LogNorm

    ratio = np.maximum(loads / loads.mean(axis=1, keepdims=True), LOWEST)
    image = axes.imshow(
        ratio, aspect="auto", cmap=HEAT, norm=LogNorm(LOWEST, HIGHEST), interpolation="nearest"
    )
    for spine in axes.spines.values():
        spine.set_visible(False)
    return image


def _scale(figure: Any, image: Any, axes: Any) -> None:
    bar = figure.colorbar(image, ax=axes, pad=0.02)
    ticks = [1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8]
    bar.set_ticks(ticks, labels=["≤ 1/8", "1/4", "1/2", "1", "2", "4", "≥ 8"])
    bar.ax.minorticks_off()
    bar.ax.set_title("× even load", fontsize=9, loc="center", pad=9)
    bar.outline.set_visible(False)


def _skew_bars(axes: Any, skew: NDArray[Any]) -> None:
    blocks = np.arange(skew.size)
    axes.barh(blocks, skew, color=BLUE, height=0.8)
    axes.axvline(float(np.median(skew)), color=VERMILION, linewidth=1.5)
    axes.set_title(f"Max / mean load\nmedian {np.median(skew):.2f}")
    axes.set_xlabel("max / mean")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_ylim(skew.size - 0.5, -0.5)
    axes.set_yticks([])


def _curve(axes: Any, kept: NDArray[Any], title: str) -> None:
    """Retention by number of experts: mean and range over blocks."""
    counts = np.arange(1, kept.shape[1] + 1)
    axes.fill_between(
        counts,
        kept.min(axis=0),
        kept.max(axis=0),
        color=BLUE,
        alpha=0.25,
        linewidth=0,
        label="range of blocks",
    )
    axes.plot(counts, kept.mean(axis=0), color=BLUE, marker="o", markersize=4, label="mean")
    axes.set_title(title)
    axes.set_ylim(0, 1.02)
    axes.legend(frameon=False, loc="lower right")


def _band(axes: Any, skew: NDArray[Any], title: str) -> None:
    """Spread of max/mean (samples, blocks) along the blocks."""
    blocks = np.arange(skew.shape[1])
    low, middle, high = np.quantile(skew, (0.05, 0.5, 0.95), axis=0)
    axes.fill_between(blocks, low, high, color=BLUE, alpha=0.25, linewidth=0, label="5 to 95 %")
    axes.plot(blocks, middle, color=BLUE, label="median")
    axes.plot(blocks, skew.max(axis=0), color=VERMILION, linewidth=1, linestyle="--", label="largest")
    axes.set_title(f"Max / mean load\n{title}")
    axes.set_xlabel("MoE block")
    axes.set_ylabel("max / mean")
