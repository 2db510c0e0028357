"""Algorithm 1 of the WDMoE papers: drop light experts by a cosine threshold until the WLR has risen.

For every token S = <w, t> / (|w| |t|), the cosine between its gate weights and the latencies of its
experts. Tokens with S <= theta lose their lightest selected expert (never the last one). If the
weight-to-latency ratio (WLR) has risen by more than the factor gamma, stop; else raise theta and start
again from plain top-k.

The full papers were not at hand. Constants below are *remembered* with the stated confidence, and every
choice the sources leave open is an option; the defaults are this package's reading of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from wdmoe_opt.bandwidth import allocate, demands
from wdmoe_opt.errors import InputError, UnknownNameError
from wdmoe_opt.kernels.pricing import (
    block_ratios,
    busy_times,
    device_times,
    inverse_token_times,
    price_tokens,
)
from wdmoe_opt.metrics import WLR_READINGS, price
from wdmoe_opt.problem import Problem
from wdmoe_opt.registry import Control, Point, Termination
from wdmoe_opt.solvers.topk import equal_bandwidth
from wdmoe_opt.validation import RealArray, real_scalar, whole

#: Largest number of thresholds tried; a finer delta is refused rather than run for hours.
MAX_TRIALS = 10_000


@dataclass(frozen=True)
class Algorithm1:
    """Options of Algorithm 1.

    Parameters
    ----------
    alpha : float
        Start threshold, 0.5 (remembered 50 %; a re-implementation by others later used 0.8).
    delta : float
        Threshold step, 0.1 (remembered 40 %; the re-implementation uses 0.05).
    gamma : float
        Stop once WLR / WLR of plain top-k exceeds this, 1.01 (remembered 35 %; the other: 1.05).
    theta_max : float
        Last threshold; 1 is the natural limit of a cosine.
    strict : bool
        Drop where S < theta instead of S <= theta (the re-implementation's code says <=, its text "below").
    vector : {"selected", "all"}
        Length of the cosine's vectors: the token's selected experts, or all reachable experts with
        weight 0 where the token does not use them (open; "all" makes S small wherever there are many
        experts, so nearly every token drops at the first threshold).
    cosine_latency : {"token", "waiting"}
        Latency in the cosine: one token's time on the expert, or the waiting time of the expert's device
        under plain top-k (open).
    reading : {"wlr-token", "wlr-device", "wlr-block"}
        Which weight-to-latency ratio must rise (open; the re-implementation uses the per-token mean).
    update_loads : bool
        Whether waiting latencies inside the ratio follow the trial's loads (open); without effect on
        "wlr-token", which has none.
    renormalise : bool
        Whether kept weights are scaled back to the token's top-k sum before the ratio (open).
    tie : {"lowest-index", "highest-index"}
        Which of several equally light experts is dropped (open).
    scope : {"block", "all-blocks"}
        One threshold search per block, or one for the whole model (open).
    trial : {"best", "last"}
        Which trial is kept if none exceeds gamma: the best seen, plain top-k included, or the last.
    """

    alpha: float = 0.5
    delta: float = 0.1
    gamma: float = 1.01
    theta_max: float = 1.0
    strict: bool = False
    vector: Literal["selected", "all"] = "selected"
    cosine_latency: Literal["token", "waiting"] = "token"
    reading: Literal["wlr-token", "wlr-device", "wlr-block"] = "wlr-token"
    update_loads: bool = True
    renormalise: bool = False
    tie: Literal["lowest-index", "highest-index"] = "lowest-index"
    scope: Literal["block", "all-blocks"] = "block"
    trial: Literal["best", "last"] = "best"

    def __post_init__(self) -> None:
        for name in ("alpha", "gamma", "theta_max"):
            real_scalar(name, getattr(self, name), minimum=0)
        real_scalar("delta", self.delta, minimum=0, above=True)
        if (self.theta_max - self.alpha) / self.delta > MAX_TRIALS:
            raise InputError("delta", f"gives more than {MAX_TRIALS} thresholds", value=self.delta)
        for name in ("strict", "update_loads", "renormalise"):
            if not isinstance(getattr(self, name), (bool, np.bool_)):
                raise InputError(name, "must be True or False", value=getattr(self, name))
        choices = {
            "vector": ("selected", "all"),
            "cosine_latency": ("token", "waiting"),
            "reading": WLR_READINGS,
            "tie": ("lowest-index", "highest-index"),
            "scope": ("block", "all-blocks"),
            "trial": ("best", "last"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise UnknownNameError(name, getattr(self, name), known)

    def thresholds(self) -> list[float]:
        """Thresholds in the order they are tried; the last may fall short of theta_max by less than delta."""
        steps = max((self.theta_max - self.alpha) / self.delta, 0.0)
        return [self.alpha + n * self.delta for n in range(int(steps + 1e-9) + 1)]


@dataclass(frozen=True)
class Wdmoe(Algorithm1):
    """Options of Algorithm 1 and of the order of the two levels.

    Parameters
    ----------
    rounds : int
        How often selection and bandwidth are run, each selection at the bandwidth of the round before;
        1 is the order remembered for paper A (55 %; alternation until stable: 20 %). The fastest round
        is returned.
    """

    rounds: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("rounds", self.rounds, 1, 1000, "must be at least 1 and at most 1000")


def wdmoe_selection(problem: Problem, control: Control, algorithm: Algorithm1) -> Point:
    """Algorithm 1 at equal bandwidth (paper B).

    The method does not know floors: its point may violate them, and says so.

    Parameters
    ----------
    problem : Problem
    control : Control
    algorithm : Algorithm1
    """
    bandwidth = equal_bandwidth(problem)
    keep, trace = select(problem, bandwidth, algorithm)
    return Point(keep, bandwidth, Termination("heuristic", detail=_summary(trace)), trace=tuple(trace))


def wdmoe(problem: Problem, control: Control, algorithm: Wdmoe) -> Point:
    """Algorithm 1 at equal bandwidth, then optimal bandwidth (paper A).

    Parameters
    ----------
    problem : Problem
    control : Control
    algorithm : Wdmoe
    """
    bandwidth = equal_bandwidth(problem)
    best: Point | None = None
    best_latency = float("inf")
    trace: list[dict[str, Any]] = []
    for number in range(algorithm.rounds):
        keep, steps = select(problem, bandwidth, algorithm)
        trace += [{"round": number, **step} for step in steps]
        allocation = allocate(problem, *demands(problem, keep))
        latency = price(problem, keep, allocation.bandwidth).latency
        if best is None or latency < best_latency:
            best_latency = latency
            end = Termination("heuristic", detail=_summary(steps))
            best = Point(keep, allocation.bandwidth, end, kkt_residual=allocation.kkt_residual)
        # A device the last round left without bandwidth has no rate, which no cosine can use.
        if allocation.bandwidth is None or not (allocation.bandwidth > 0).all():
            break
        bandwidth = allocation.bandwidth
    assert best is not None
    return replace(best, trace=tuple(trace))


def select(
    problem: Problem, bandwidth: RealArray | None, algorithm: Algorithm1
) -> tuple[NDArray[np.bool_], list[dict[str, Any]]]:
    """Run Algorithm 1 at a given bandwidth.

    Returns
    -------
    keep : bool array (blocks, tokens, m)
    trace : list of dict
        One record per trial: block (-1 with scope "all-blocks"), theta, ratio (WLR over that of plain
        top-k), dropped (experts), kept (whether this trial is the one returned).
    """
    start = problem.top_k_keep
    base = price(problem, start, bandwidth)
    token_time = base.link_time[:, problem.tables.expert_device] + problem.tables.compute
    similarity = _cosines(problem, start, token_time, base.device_time, algorithm)
    light = lightest_column(problem.tables.ids, problem.tables.weights, start, algorithm.tie)
    ratio = _Ratio(problem, base.link_time, base.device_time, base.block_latency, algorithm)
    blocks = problem.instance.blocks
    groups = [range(blocks)] if algorithm.scope == "all-blocks" else [range(i, i + 1) for i in range(blocks)]
    keep = start.copy()
    trace: list[dict[str, Any]] = []
    for group in groups:
        rows = slice(group.start, group.stop)
        label = -1 if algorithm.scope == "all-blocks" else group.start
        keep[rows], steps = _search(start[rows], similarity[rows], light[rows], ratio, rows, algorithm)
        trace += [{"block": label, **step} for step in steps]
    return keep, trace


def _search(
    start: NDArray[np.bool_],
    similarity: RealArray,
    lightest: NDArray[np.intp],
    ratio: _Ratio,
    rows: slice,
    algorithm: Algorithm1,
) -> tuple[NDArray[np.bool_], list[dict[str, Any]]]:
    """Threshold search over one group of blocks."""
    reference = ratio(start, rows)
    droppable = start.sum(axis=2) > 1
    steps: list[dict[str, Any]] = []
    chosen, chosen_ratio, chosen_step = start, 1.0, -1
    for number, theta in enumerate(algorithm.thresholds()):
        below = similarity < theta if algorithm.strict else similarity <= theta
        drop = below & droppable
        trial = start.copy()
        np.put_along_axis(
            trial,
            lightest[:, :, None],
            np.take_along_axis(trial, lightest[:, :, None], 2) & ~drop[:, :, None],
            2,
        )
        value = _relative(ratio(trial, rows), reference)
        steps.append({"theta": theta, "ratio": value, "dropped": int(drop.sum()), "kept": False})
        if value > chosen_ratio or algorithm.trial == "last" or value > algorithm.gamma:
            chosen, chosen_ratio, chosen_step = trial, value, number
        if value > algorithm.gamma:
            break
    if chosen_step >= 0:
        steps[chosen_step]["kept"] = True
    return chosen, steps


def _relative(value: float, reference: float) -> float:
    """Ratio of two WLRs; either may be 0 (a device without a rate) or infinite (one that needs no time)."""
    if value == reference:
        return 1.0
    return value / reference if reference > 0.0 else float("inf")


def _cosines(
    problem: Problem,
    start: NDArray[np.bool_],
    token_time: RealArray,
    device_time: RealArray,
    algorithm: Algorithm1,
) -> RealArray:
    """Cosine between gate weights and latencies of every token, (blocks, tokens)."""
    t = problem.tables
    if algorithm.cosine_latency == "waiting":
        waiting = device_time[:, t.expert_device]
        # An expert whose device waits for nobody still takes its own token's time.
        token_time = np.where(waiting > 0, waiting, token_time)
    reachable = t.reachable[:, t.expert_device]
    if algorithm.vector == "all":
        token_time = _finite_direction(np.where(reachable, token_time, 0.0))
    rows = np.arange(start.shape[0])[:, None, None]
    times = np.where(start, token_time[rows, np.maximum(t.ids, 0)], 0.0)
    weights = _unit_peak(np.where(start, t.weights, 0.0))
    if algorithm.vector == "all":
        time_norm = np.sqrt((token_time**2).sum(axis=1))[:, None]
    else:
        times = _finite_direction(times)
        time_norm = np.sqrt((times**2).sum(axis=2))
    norm = np.sqrt((weights**2).sum(axis=2)) * time_norm
    dot = (weights * times).sum(axis=2)
    # Zero norms: a token with no weight or no latency left to speak of is treated as aligned.
    cosine = np.divide(dot, norm, out=np.ones_like(dot), where=norm > 0)
    # Rounding must not lift a token above theta = 1.
    aligned: RealArray = np.minimum(cosine, 1.0)
    return aligned


def _finite_direction(times: RealArray) -> RealArray:
    """Latency vectors along the last axis at unit peak; infinite entries rule the direction."""
    endless = np.isinf(times)
    return _unit_peak(np.where(endless.any(axis=-1, keepdims=True), endless.astype(np.float64), times))


def _unit_peak(vectors: RealArray) -> RealArray:
    """Vectors along the last axis over their largest entry, so that no square overflows."""
    peak = vectors.max(axis=-1, keepdims=True)
    scaled: RealArray = np.divide(vectors, peak, out=np.zeros_like(vectors), where=peak > 0)
    return scaled


def lightest_column(
    ids: NDArray[Any], weights: RealArray, keep: NDArray[np.bool_], tie: str
) -> NDArray[np.intp]:
    """Column of each token's lightest selected expert, (..., tokens).

    Parameters
    ----------
    ids : int array (..., tokens, m)
    weights : float array (..., tokens, m)
    keep : bool array (..., tokens, m)
    tie : {"lowest-index", "highest-index"}
        Which of several equally light experts.
    """
    selected = np.where(keep, weights, np.inf)
    tied = selected == selected.min(axis=-1, keepdims=True)
    sign = 1 if tie == "lowest-index" else -1
    column: NDArray[np.intp] = np.where(tied, sign * ids.astype(np.int64), np.iinfo(np.int64).max).argmin(
        axis=-1
    )
    return column


class _Ratio:
    """The chosen reading of the WLR over a group of blocks, computed by the metric's own kernels."""

    def __init__(
        self,
        problem: Problem,
        link_time: RealArray,
        device_time: RealArray,
        latency: RealArray,
        algorithm: Algorithm1,
    ) -> None:
        t = problem.tables
        self.problem, self.algorithm = problem, algorithm
        self.link_time, self.device_time, self.latency = link_time, device_time, latency
        self.token_rate = np.empty((link_time.shape[0], t.expert_device.size))
        inverse_token_times(link_time, t.compute, t.expert_device, self.token_rate)

    def __call__(self, keep: NDArray[np.bool_], rows: slice) -> float:
        t = self.problem.tables
        blocks, devices, experts = keep.shape[0], self.link_time.shape[1], t.expert_device.size
        weights = t.weights[rows]
        if self.algorithm.renormalise:
            kept = np.where(keep, weights, 0.0).sum(axis=2)
            scale = np.divide(t.mass[rows], kept, out=np.zeros_like(kept), where=kept > 0)
            weights = weights * scale[:, :, None]
        load, sent = np.empty((blocks, experts), dtype=np.int64), np.empty((blocks, devices))
        kept_weight, retention = np.empty((blocks, devices)), np.empty(keep.shape[:2])
        per_token, per_device, per_block = np.empty(blocks), np.empty(blocks), np.empty(blocks)
        price_tokens(
            t.ids[rows], weights, t.mass[rows], keep, keep.shape[2], self.problem.expert_cap, t.expert_device,
            t.by_device, self.token_rate[rows], load, sent, kept_weight, retention, per_token,
            np.empty((3, 3), dtype=np.int64),
        )  # fmt: skip
        if self.algorithm.reading == "wlr-token":
            return float(per_token.mean())
        device_time, latency = self.device_time[rows], self.latency[rows]
        if self.algorithm.update_loads:
            busy, device_time, latency = np.empty(sent.shape), np.empty(sent.shape), np.empty(blocks)
            busy_times(load, sent, t.expert_device, t.compute, t.activation, t.link_delay, busy)
            device_times(sent, busy, self.link_time[rows], device_time, latency)
        block_ratios(kept_weight, device_time, latency, per_device, per_block)
        return float((per_device if self.algorithm.reading == "wlr-device" else per_block).mean())


def _summary(trace: list[dict[str, Any]]) -> str:
    kept = [step for step in trace if step["kept"]]
    dropped = sum(step["dropped"] for step in kept)
    return f"Algorithm 1: {len(trace)} trials, {dropped} expert{'' if dropped == 1 else 's'} dropped"
