"""Certified, for the ratio per block: a good point, and prices that bound all others (wlr-block).

With x = 1 / latency a block's ratio is at most what its devices earn at x less x times what its tokens pay,
kept weight being paid back, plus the price of its bandwidth. The largest over all x is convex in the
prices. First prices are those of the latency problem that keeps as much weight as the point, by Newton, or
the multipliers of the point's bandwidth; descent aims at the point's own ratio.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wdmoe_opt.certificates.certificate import Certificate
from wdmoe_opt.floors import richest_keep, token_retention
from wdmoe_opt.kernels.ascent import MOVE
from wdmoe_opt.kernels.ratio_step import ratio_step
from wdmoe_opt.metrics import Evaluation, price
from wdmoe_opt.problem import FEASIBILITY_TOLERANCE, Problem
from wdmoe_opt.registry import Control, Point
from wdmoe_opt.relaxation import PROVE, Proof, Quote, Relaxation, dearest, join
from wdmoe_opt.search import Search, groups
from wdmoe_opt.solvers.alternating import alternating
from wdmoe_opt.solvers.certified import POLISH_TOKENS, certified
from wdmoe_opt.solvers.certified_token_ratio import certified_token_ratio, ratio_point
from wdmoe_opt.solvers.deadline import Deadline
from wdmoe_opt.validation import RealArray, freeze

#: Floors at which the fastest selection is tried, between the problem's own (0) and all weight (1).
FLOORS = (0.0, 0.25, 0.5, 0.75)
#: Further ones on both sides of a block's best, ever nearer.
NEARER = (0.12, 0.06, 0.03)
#: Gap to which selections are sought there.
PROBE_GAP = 5e-3
#: Descent steps from every start, and from the best of them.
FIRST_STEPS, STEPS = 30, 200
#: Steps without progress after which they are halved, and the length at which to stop.
PATIENCE, LAST_LENGTH = 8, 0.01
#: Least price of retention where there is a floor, as a part of a mean token's gate weight.
TRACE_PRICE = 0.02
#: Ascents towards the least latency of every block, and their steps.
ASCENTS, FLOOR_STEPS = 2, 60
#: Factors on first prices of retention and of bandwidth that are tried if those prove less than this part.
CHEAPER, CLOSE = (1.0, 0.5, 0.2, 0.05, 0.0), 0.9
#: Values of 1 / latency in a certificate.
GRID = 16


def certified_ratio(problem: Problem, control: Control) -> Point:
    """`certified` for the readings of the weight-to-latency ratio that can be bounded."""
    if problem.objective == "wlr-token":
        return certified_token_ratio(problem, control)
    return certified_block_ratio(problem, control)


def certified_block_ratio(problem: Problem, control: Control) -> Point:
    """Find a point of large kept weight over latency, and prove how far from the best it can be.

    Parameters
    ----------
    problem : Problem
        Objective "wlr-block".
    control : Control

    Returns
    -------
    Point
        With a certificate, unless some block's least latency could not be bounded.
    """
    deadline = Deadline.of(control)
    points = Points(problem, alternating(problem, control))
    if points.start.empty:
        return points.start
    points.probe(control, deadline)
    keep, bandwidth = points.best
    priced = price(problem, keep, bandwidth)
    bounds = [RatioBound(problem, rows, points, priced) for rows in groups(problem)]
    found = [(bound, bound.search(control.rel_gap, deadline)) for bound in bounds]
    certificate = ratio_certificate(found)
    trace = tuple(
        {"block": bound.rows.start, "objective": bound.target, "bound": sum_, "step": "descent"}
        for bound, (sum_, _) in found
    )
    return ratio_point(problem, control, deadline, (keep, bandwidth), priced.objective, certificate, trace)


# ---------------------------------------------------------------------- points


class Points:
    """The best points met, group by group; ``fast`` is the fastest selection that keeps the floors."""

    def __init__(self, problem: Problem, start: Point) -> None:
        self.problem, self.start = problem, start
        self.easy = problem.replace(objective="latency")
        self.searches: dict[int, Search] = {}
        if start.keep is not None:
            self.fast = start.keep
            self.offer(start.keep)

    @property
    def best(self) -> tuple[NDArray[np.bool_], RealArray | None]:
        """Selection and bandwidth of the whole problem."""
        done = [self.searches[rows.start] for rows in groups(self.problem)]
        keep = np.concatenate([search.keep for search in done])
        if self.problem.allocation == "fixed":
            return keep, self.problem.fixed_bandwidth
        shares = np.concatenate([np.atleast_2d(search.bandwidth) for search in done])  # type: ignore[arg-type]
        return keep, shares[0] if self.problem.allocation == "shared" else shares

    def offer(self, keep: NDArray[np.bool_]) -> RealArray:
        """Take over every group in which a selection is better; returns the blocks' ratios."""
        ratios = np.empty(len(keep))
        for rows in groups(self.problem):
            search = Search(self.problem, rows, keep[rows])
            ratios[rows] = (search.kept * search.mass).sum(axis=1) / search.block_latency
            known = self.searches.get(rows.start)
            if known is None or search.value < known.value:
                self.searches[rows.start] = search
        return ratios

    def probe(self, control: Control, deadline: Deadline) -> None:
        """Try the fastest selections at several floors, nearer to where every block's ratio is largest."""
        top = np.minimum(token_retention(self.problem, richest_keep(self.problem)).mean(axis=1), 1.0)
        low = np.minimum(np.asarray(self.problem.min_retention), top)
        level, value = np.zeros(low.shape), np.zeros(low.shape)

        def attempt(part: RealArray) -> None:
            if deadline.left == 0.0:
                return
            asked = self.easy.replace(min_retention=low + part * (top - low) * (1 - 1e-9))
            limit = deadline.left if np.isfinite(deadline.left) else None
            found = certified(asked, replace(control, rel_gap=PROBE_GAP, time_limit=limit))
            if found.keep is None:
                return
            if not part.any():
                self.fast = found.keep
            ratio = self.offer(found.keep)
            level[:] = np.where(ratio > value, part, level)
            value[:] = np.maximum(ratio, value)

        for part in FLOORS:
            attempt(np.full(low.shape, part))
        for step in NEARER:
            middle = level.copy()
            for side in (-step, step):
                attempt(np.clip(middle + side, 0.0, 1.0))
        if self.problem.instance.tokens <= POLISH_TOKENS:
            for search in self.searches.values():
                search.polish(lambda: deadline.left == 0.0)


# ---------------------------------------------------------------------- bounds


class State:
    """Prices of a group of blocks in kept gate weight, and what they prove.

    Attributes
    ----------
    seconds : float array (blocks, devices), s
        Time of a transfer on air that ``second`` refers to.
    second, retention, bandwidth : float arrays (blocks, devices), (blocks,), (blocks, devices)
    points : float array (blocks, devices)
        ln of bandwidths.
    first : float array (blocks,), 1/s
        Least 1 / latency that is looked at.
    """

    def __init__(
        self, seconds: RealArray, second: RealArray, retention: RealArray, nu: RealArray, points: RealArray,
        first: RealArray,
    ) -> None:  # fmt: skip
        self.seconds, self.second, self.retention = seconds, second, retention
        self.bandwidth, self.points, self.first = nu, points, first

    def copy(self) -> State:
        """A copy that shares nothing that changes."""
        parts = (self.second, self.retention, self.bandwidth, self.points, self.first)
        return State(self.seconds, *(array.copy() for array in parts))

    def move(self, second: RealArray, retention: RealArray, nu: RealArray) -> None:
        """Multiply prices by exponentials; a hertz costs the same on every device."""
        self.second *= np.exp(np.clip(second, -MOVE, MOVE))
        self.retention *= np.exp(np.clip(retention, -MOVE, MOVE))
        self.bandwidth *= np.exp(np.clip(nu, -MOVE, MOVE))
        level_hertz(self.bandwidth)


def level_hertz(nu: RealArray) -> None:
    """Scale prices of bandwidth so that their sums over blocks are equal on all devices."""
    whole = nu.sum(axis=0)
    nu *= np.divide(whole.mean(), whole, out=np.zeros_like(whole), where=whole > 0)


class RatioBound:
    """Search for the prices that bound the ratios of blocks that share bandwidth, or of a single block.

    Parameters
    ----------
    problem : Problem
        Objective "wlr-block".
    rows : slice
    points : Points
        What was found.
    priced : Evaluation
        The best of them.
    """

    def __init__(self, problem: Problem, rows: slice, points: Points, priced: Evaluation) -> None:
        self.keep, self.rows, self.easy = points.best[0], rows, points.easy
        self.ratio = priced.block_wlr["wlr-block"][rows]
        self.latency = priced.block_latency[rows]
        self.relaxation = Relaxation(self.easy, rows)
        t = problem.tables
        self.mass = np.ascontiguousarray(t.mass[rows])
        self.whole = (richest_keep(problem)[rows] * t.weights[rows]).sum(axis=(1, 2))
        # Every block alone, with all the bandwidth.
        self.alone = join([least_latency(self.easy, i, points.fast) for i in range(rows.start, rows.stop)])
        with np.errstate(divide="ignore"):
            self.last = 1 / self.alone.deadline * (1 + 1e-9)
        #: Values of 1 / latency below which no block has a larger ratio than the last prices prove.
        self.late = np.zeros(len(self.ratio))
        shape = self.relaxation.ids.shape
        self.surplus, self.value = np.zeros(shape), np.zeros((shape[0], self.relaxation.experts))
        self.toll = np.zeros((shape[0], self.relaxation.devices))
        self.slope, self.spent = np.zeros((shape[0], self.relaxation.devices + 1)), np.zeros(self.toll.shape)

    @property
    def target(self) -> float:
        """Sum of the point's ratios: no bound can be below."""
        return float(self.ratio.sum())

    def search(self, rel_gap: float, deadline: Deadline) -> tuple[float, State]:
        """Best sum of ratios that any prices found prove, and the prices."""
        starts = [self._descend(start, FIRST_STEPS, rel_gap, deadline) for start in self._starts()]
        bound, best = min(starts, key=lambda pair: pair[0])
        if bound > self.target * (1 + rel_gap) and deadline.left > 0.0:
            return self._descend(best, STEPS, rel_gap, deadline)
        return bound, best

    def evaluate(self, state: State) -> float:
        """Sum of ratios that prices prove; leaves slopes, and the prices that follow, behind."""
        r, t = self.relaxation, self.easy.tables
        least, most = r.compute_range
        send, ratios = state.seconds * state.second, np.empty(r.blocks)
        for i in range(r.blocks):
            ratios[i] = ratio_step(
                r.ids[i], r.share[i], self.mass[i], t.expert_device, t.compute, t.activation, r.wakes[i],
                r.choosable[i], t.by_device, float(r.floors[i]) * (1 - FEASIBILITY_TOLERANCE),
                self.easy.expert_cap, float(r.needed[i]) * (1 - FEASIBILITY_TOLERANCE), r.bound_link,
                r.quickest, r.free, i, np.array([state.first[i], self.last[i]]), least[i], most[i],
                r.limits[i], send[i], state.second[i], float(state.retention[i]), state.bandwidth[i],
                1.0 / self.latency[i], state.points[i], self.toll[i], self.surplus[i], self.value[i],
                self.slope[i], self.spent[i],
            )  # fmt: skip
        cost = dearest(state.bandwidth.sum(axis=0), r.bound_link) if r.free else 0.0
        if r.blocks == 1:
            ratios += cost
            cost = 0.0
        self.late = ratios / self.whole
        return float(np.maximum(ratios, self.whole * state.first).sum()) + cost

    def _descend(self, state: State, steps: int, rel_gap: float, deadline: Deadline) -> tuple[float, State]:
        """Steps towards the point's own ratios, shorter when they stop helping (Polyak's rule)."""
        state = state.copy()
        best, bound = state.copy(), np.inf
        length, stale = 1.0, 0
        for _ in range(steps):
            value = self.evaluate(state)
            if value < bound:
                stale = 0 if value < bound - 1e-6 * abs(bound) or bound == np.inf else stale + 1
                best, bound = state.copy(), value
            else:
                stale += 1
            if bound <= self.target * (1 + rel_gap) or deadline.left == 0.0:
                break
            if stale > PATIENCE:
                length, stale, state = 0.5 * length, 0, best.copy()
                if length < LAST_LENGTH:
                    break
                value = self.evaluate(state)
            if not self._step(state, length * (value - self.target)):
                break
        return bound, best

    def _step(self, state: State, excess: float) -> bool:
        """Move against the slopes, by what would take away the excess were they constant."""
        nu = state.bandwidth
        paid, whole = nu * self.spent, nu.sum(axis=0)
        part = np.divide(nu, whole, out=np.zeros_like(nu), where=whole > 0)
        tilt = paid - part * paid.sum(axis=0)
        level = float(paid.sum()) - (dearest(whole, self.relaxation.bound_link) if whole.any() else 0.0)
        norm = float((self.slope**2).sum() + (tilt**2).sum() + level**2)
        if not 0 < norm < np.inf:
            return False
        size = excess / norm
        # Towards where earlier and later latencies allow the same ratio.
        state.first = np.clip(np.sqrt(state.first * np.maximum(self.late, 0.0)), 1e-6 * self.last, self.last)
        devices = self.relaxation.devices
        state.move(size * self.slope[:, :devices], size * self.slope[:, devices], size * (tilt + level))
        return True

    # ------------------------------------------------------------------ first prices

    def _starts(self) -> list[State]:
        quotes = self._newton(by_weight=False) + self._newton(by_weight=True)
        quotes.append(self.relaxation.multipliers(self.keep[self.rows]))
        return [self._state(quote) for quote in quotes if quote.sound]

    def _newton(self, *, by_weight: bool) -> list[Quote]:
        """Prices of the latency problem that asks for as much retention, or weight, as the point keeps."""
        relaxation = Relaxation(self.easy, self.rows)
        if by_weight:
            heavy = self.mass / self.mass.mean(axis=1, keepdims=True)
            relaxation.share = freeze(relaxation.share * heavy[:, :, None])
        return [newton_prices(relaxation, self.keep)]

    def _state(self, quote: Quote) -> State:
        """Prices in weight from prices in seconds: at the point both problems have the same multipliers."""
        scale = self.ratio / np.maximum(quote.second.sum(axis=1), 1e-300)
        second = quote.second * scale[:, None]
        seconds = np.divide(quote.send, quote.second, out=np.zeros_like(second), where=quote.second > 0)
        mean = self.mass.mean(axis=1)
        trace = np.where(self.relaxation.needed > 0, TRACE_PRICE * mean, 0.0)
        retention = np.where(trace > 0, np.maximum(quote.retention * scale - mean, trace), 0.0)
        nu = quote.bandwidth * (scale / self.latency)[:, None]
        level_hertz(nu)
        return State(seconds, second, retention, nu, np.log(quote.points), 0.8 * self.ratio / self.whole)


def newton_prices(relaxation: Relaxation, keep: NDArray[np.bool_]) -> Quote:
    """Prices of a group's latency problem that asks for as much as a selection keeps."""
    kept = (relaxation.share * keep[relaxation.rows]).sum(axis=(1, 2))
    relaxation.needed = np.maximum(kept, relaxation.needed)
    relaxation.lead(keep)
    for stage in PROVE:
        relaxation.settle(stage)
    return relaxation.quote()


def least_latency(problem: Problem, i: int, fast: NDArray[np.bool_]) -> Proof:
    """A latency that block ``i`` exceeds even with all the bandwidth, aiming at that of ``fast``."""
    rows = slice(i, i + 1)
    single = Relaxation(problem, rows)
    target = single.latency(fast[rows])
    # Prices as if what is kept were asked for; without such a floor retention must be cheaper.
    quotes = [newton_prices(Relaxation(problem, rows), fast), single.multipliers(fast[rows])]
    proofs = [single.nothing()]
    for quote in quotes:
        if not quote.sound:
            continue
        cheaper = [
            replace(quote, retention=quote.retention * mu, bandwidth=quote.bandwidth * nu)
            for mu in CHEAPER
            for nu in CHEAPER
        ]
        start = quote
        if single.prove(quote).bound < CLOSE * float(target[0]):
            start = max(cheaper, key=lambda q: single.prove(q).bound)
        for _ in range(ASCENTS):
            proofs.append(single.prove(start))
            start = single.ascend(start, target, FLOOR_STEPS)
        proofs.append(single.prove(start))
    return max(proofs, key=lambda proof: proof.bound)


# ---------------------------------------------------------------------- certificates


def ratio_certificate(parts: list[tuple[RatioBound, tuple[float, State]]]) -> Certificate | None:
    """One certificate from the prices of all groups; None if a block's least latency is not known."""
    prices: dict[str, list[RealArray]] = {}
    for bound, (_, state) in parts:
        bound.evaluate(state)
        if not np.isfinite(bound.last).all():
            return None
        grid = np.linspace(0.0, 1.0, GRID)
        mine = {
            "send": state.seconds * state.second,
            "work": state.second,
            "wake": bound.value,
            "share": bound.surplus,
            "retention": state.retention,
            "bandwidth": state.bandwidth,
            "points": np.exp(state.points),
            "toll": bound.toll,
            "grid": state.first[:, None] * (bound.last / state.first)[:, None] ** grid,
        }
        mine["grid"][:, -1] = bound.last
        for name, array in mine.items():
            prices.setdefault(name, []).append(array)
    whole: dict[str, Any] = {name: np.concatenate(arrays) for name, arrays in prices.items()}
    return Certificate(form="ratio", floor=_floor([bound.alone for bound, _ in parts]), **whole)


def _floor(proofs: list[Proof]) -> Certificate:
    names = ("send", "work", "wake", "retention", "bandwidth", "points", "deadline")
    prices: dict[str, Any] = {
        name: np.concatenate([getattr(proof, name) for proof in proofs]) for name in names
    }
    shape = next((proof.share.shape[1:] for proof in proofs if proof.share is not None), None)
    if shape is not None:
        prices["share"] = np.concatenate(
            [np.zeros((len(p.send), *shape)) if p.share is None else p.share for p in proofs]
        )
    return Certificate(form="deadline", **prices)
