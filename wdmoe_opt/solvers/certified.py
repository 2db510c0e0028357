"""Certified: prices of the relaxed problem by Newton, a rounded and traded selection, and the proof.

The relaxation is almost integral (fact 4), its dual is smooth in all but a few tokens (fact 8), and every
price proves a bound (fact 6). So a handful of Newton steps on the smoothed optimality conditions, at ever
narrower smoothing, give a bound; what is clearly worth its price is kept, the rest by value until the
floor holds; trades against the exact latency do the rest.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wdmoe_opt.bandwidth import allocate, demands
from wdmoe_opt.certificates.certificate import Certificate
from wdmoe_opt.floors import repair_floors
from wdmoe_opt.kernels.pricing import busy_times, count_loads
from wdmoe_opt.problem import Problem
from wdmoe_opt.registry import Control, Point, Termination
from wdmoe_opt.relaxation import LEAD, PROVE, Proof, Relaxation, join
from wdmoe_opt.search import Search, groups, start_selection
from wdmoe_opt.solvers.alternating import explore
from wdmoe_opt.solvers.deadline import Deadline
from wdmoe_opt.validation import RealArray

#: Exact trades after rounding.
TRADES = 60
#: Bandwidths near the best one that are tried where blocks share it, and how far they lie, in logarithms.
TREMBLES, TREMBLE_WIDTHS = 8, (3e-3, 1e-3, 3e-4)
#: A round of alternation that improves by less than this part is the last.
ROUND_PROGRESS = 1e-5
#: Tokens up to which local search and ascent pay.
POLISH_TOKENS = 256
#: Gap from which ascent is worth its time with more tokens, too.
WIDE_GAP = 5e-3
#: Tokens up to which the search starts from elsewhere, too, and in how many rounds.
EXPLORED_TOKENS, EXPLORE_ROUNDS = 64, 10
#: Ascent steps on each block where the stages leave a gap.
ASCENT = 80


def certified(problem: Problem, control: Control) -> Point:
    """Find a selection with bandwidths, and prove how far from the best it can be.

    Parameters
    ----------
    problem : Problem
    control : Control
        Stops at its ``rel_gap``, when its time is up, or where only branching could help (`exact`).

    Returns
    -------
    Point
        With a certificate.

    Notes
    -----
    Source: problem-and-mathematics, facts 3 to 8.
    """
    plain, conflict = start_selection(problem)
    if plain is None:
        return Point.nothing("infeasible", detail=conflict)
    deadline = Deadline.of(control)
    parts = groups(problem)

    def work(rows: slice) -> Group:
        group = Group(problem, rows, plain, control, deadline)
        group.run()
        return group

    if control.threads > 1 and len(parts) > 1:
        with ThreadPoolExecutor(control.threads) as pool:
            done = list(pool.map(work, parts))
    else:
        done = [work(rows) for rows in parts]
    return _point(problem, control, done)


class Group:
    """Blocks that are solved together, from prices to a selection."""

    def __init__(
        self, problem: Problem, rows: slice, plain: NDArray[np.bool_], control: Control, deadline: Deadline
    ) -> None:
        self.problem, self.rows, self.plain = problem, rows, plain
        self.rel_gap, self.seed, self.deadline = control.rel_gap, control.seed, deadline
        self.relaxation = Relaxation(problem, rows)
        self.keep = plain[rows]
        self.value = np.inf
        self.bandwidth: RealArray | None = None
        self.trace: list[dict[str, Any]] = []

    @property
    def lower(self) -> float:
        """Best bound so far, s."""
        return 0.0 if self.relaxation.best is None else self.relaxation.best.bound

    @property
    def closed(self) -> bool:
        """Whether the gap is small enough."""
        return self.value - self.lower <= self.rel_gap * self.value

    def run(self) -> None:
        """Prices, bounds and selections at ever narrower smoothing, then searches and ascent."""
        relaxation = self.relaxation
        relaxation.start(self.plain)
        relaxation.first_retention_price(LEAD[0].width)
        for stage in LEAD:
            relaxation.settle(stage)
        relaxation.hold()
        for stage in PROVE:
            residual = relaxation.settle(stage)
            relaxation.bound()
            self._round()
            self.note(f"width {stage.width:g}, residual {residual:.1e}")
            if self.done:
                return
        for step in (self._alternate, self._polish, self._ascend):
            step()
            if self.done:
                return

    @property
    def done(self) -> bool:
        """Whether the gap is closed or the time is up."""
        return self.closed or self.deadline.left == 0.0

    @property
    def traded(self) -> bool:
        """Whether exact trades apply: one block, free bandwidth, one transfer per pair."""
        by_device = self.problem.tables.by_device
        return self.relaxation.free and self.relaxation.blocks == 1 and not by_device

    def note(self, step: str) -> None:
        """Add a line to the trace."""
        self.trace.append(
            {"block": self.rows.start, "step": step, "objective": self.value, "bound": self.lower}
        )

    def _accept(self, keep: NDArray[np.bool_], value: float, bandwidth: RealArray | None) -> bool:
        """Keep a point if it is the best so far."""
        better = value < self.value
        if better:
            self.keep, self.value, self.bandwidth = keep.copy(), value, bandwidth
        return better

    def _round(self) -> None:
        """Round the prices to a selection, repaired where a floor is missed, with trades where they apply."""
        problem, relaxation = self.problem, self.relaxation
        keep = relaxation.round()
        kept = (keep * relaxation.share).sum(axis=2)
        short = kept.sum(axis=1) < relaxation.needed * (1 - 1e-10)
        floors = relaxation.floors[:, None] * (1 - 1e-10)
        if short.any() or (relaxation.floors.any() and (kept < floors).any()):
            whole = self.plain.copy()
            whole[self.rows] = keep
            keep = repair_floors(problem, whole)[self.rows]
        if not self.traded:
            search = Search(problem, self.rows, keep)
            self._accept(search.keep, search.value, search.bandwidth)
            return
        t = problem.tables
        sent = np.empty((1, t.low.size))
        load = np.empty((1, t.expert_device.size), dtype=np.int64)
        count_loads(t.ids[self.rows], keep, t.expert_device, t.by_device, load, sent)
        busy, out = np.empty(sent.shape), np.empty(t.low.size)
        busy_times(load, sent, t.expert_device, t.compute, t.activation, t.link_delay, busy)
        stop = self.lower * (1 + 0.5 * self.rel_gap)
        value = relaxation.trade(keep, load, sent, busy, TRADES, stop, out)
        self._accept(keep, value, out)

    def _alternate(self) -> None:
        """Selection at the relaxed bandwidth, bandwidth at the selection, in turn; then from nearby ones.

        Where blocks share bandwidth, each block's last token decides about its latency, so a little
        more bandwidth here than there lets other numbers of tokens fit.
        """
        if self.traded:
            return
        search = Search(self.problem, self.rows, self.plain[self.rows])
        bandwidth = self.relaxation.bandwidth
        rng = np.random.default_rng(self.seed)
        for attempt in range(TREMBLES if self.relaxation.free else 1):
            best = np.inf
            while True:
                if self.relaxation.free:
                    search.bandwidth, search.hold = bandwidth[None, :].copy(), True
                search.start(self.plain[self.rows])
                search.shed(1)
                search.hold = False
                search.value = search.price()
                self._accept(search.keep, search.value, search.bandwidth)
                if not search.value < best * (1 - ROUND_PROGRESS) or self.done:
                    break
                best = search.value
                if self.relaxation.free:
                    assert search.bandwidth is not None
                    bandwidth = search.bandwidth[0]
            if self.done or not self.relaxation.free:
                break
            assert self.bandwidth is not None
            size = TREMBLE_WIDTHS[attempt % len(TREMBLE_WIDTHS)]
            bandwidth = self.bandwidth[0] * np.exp(rng.normal(0.0, size, self.bandwidth.shape[1]))
            bandwidth = self.relaxation.within_limits(bandwidth)
        self.note("alternation")

    def _polish(self) -> None:
        """Local search from the best selection so far, where a single token matters."""
        if self.relaxation.tokens > POLISH_TOKENS:
            return
        search = Search(self.problem, self.rows, self.keep)
        search.polish(lambda: self.deadline.left == 0.0)
        self._accept(search.keep, search.value, search.bandwidth)
        self.note("local search")
        if self.done or self.relaxation.tokens > EXPLORED_TOKENS:
            return
        run = explore(search, self.plain, EXPLORE_ROUNDS, self.deadline)
        self._accept(run.best, run.value, None)
        self.note("other starts")

    def _ascend(self) -> None:
        """Raise the bound where few tokens make it jagged."""
        if self.relaxation.tokens > POLISH_TOKENS and self.value - self.lower < WIDE_GAP * self.value:
            return
        self.relaxation.improve(self.keep, ASCENT)
        self.note("ascent")


def _point(problem: Problem, control: Control, done: list[Group]) -> Point:
    selection = np.concatenate([group.keep for group in done])
    bandwidth = allocate(problem, *demands(problem, selection))
    proofs = [group.relaxation.best for group in done]
    certificate = None
    if all(proof is not None and proof.bound > 0 for proof in proofs):
        certificate = assemble(problem, [p for p in proofs if p is not None])
    trace = sorted((line for group in done for line in group.trace), key=lambda line: line["block"])
    value = sum(group.value for group in done)
    lower = sum(group.lower for group in done)
    if value - lower <= control.rel_gap * value:
        end = Termination("optimal", detail=f"certified within {(value - lower) / value:.2e}")
    else:
        late = done[0].deadline.left == 0.0
        words = "the time limit passed" if late else "the relaxation leaves this gap; exact branches on it"
        end = Termination("feasible-at-limit", "time" if late else "relaxation", words)
    return Point(
        selection, bandwidth.bandwidth, end, lower_bound=lower, bound_kind="claimed",
        kkt_residual=bandwidth.kkt_residual, trace=tuple(trace), certificate=certificate,
    )  # fmt: skip


def assemble(problem: Problem, proofs: list[Proof]) -> Certificate:
    """One certificate from the proofs of all groups."""
    proof = proofs[0]
    if proof.form == "shared":
        floor = None
        if proof.floor is not None:
            floor = Certificate(
                form="deadline", deadline=proof.floor.deadline, **_prices(problem, [proof.floor])
            )
        return Certificate(
            form="shared", offset=proof.offset, grid=proof.grid, toll=proof.toll, floor=floor,
            **_prices(problem, proofs),
        )  # fmt: skip
    deadline = np.concatenate([proof.deadline for proof in proofs])
    return Certificate(form="deadline", deadline=deadline, **_prices(problem, proofs))


def _prices(problem: Problem, proofs: list[Proof]) -> dict[str, RealArray]:
    names = ("send", "work", "wake", "retention", "bandwidth", "points")
    prices = {name: np.concatenate([getattr(proof, name) for proof in proofs]) for name in names}
    if any(proof.share is not None for proof in proofs):
        shape = problem.tables.ids.shape[1:]
        prices["share"] = np.concatenate(
            [np.zeros((len(p.send), *shape)) if p.share is None else p.share for p in proofs]
        )
    return prices
