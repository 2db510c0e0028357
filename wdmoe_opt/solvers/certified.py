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
from wdmoe_opt.relaxation import Proof, Relaxation, Stage
from wdmoe_opt.search import Search, groups, start_selection
from wdmoe_opt.solvers.deadline import Deadline
from wdmoe_opt.validation import RealArray

#: Ever narrower smoothing; the first stages only lead to the bounds of the later ones.
LEAD = (Stage(0.5, 0.1, 6, 0.1), Stage(0.3, 0.02, 6, 0.05))
PROVE = (Stage(0.2, 1e-3, 6, 0.02), Stage(0.07, 1e-4, 6, 0.01), Stage(0.03, 1e-5, 6, 0.01))
#: Exact trades after rounding.
TRADES = 60
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
        self.rel_gap, self.deadline = control.rel_gap, deadline
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
        """Prices, bounds and selections at ever narrower smoothing, then polish."""
        relaxation = self.relaxation
        relaxation.start(self.plain)
        relaxation.first_retention_price(LEAD[0].width)
        for stage in LEAD:
            relaxation.settle(stage)
        for stage in PROVE:
            residual = relaxation.settle(stage)
            relaxation.bound()
            self._select()
            self.note(f"width {stage.width:g}, residual {residual:.1e}")
            if self.closed or self.deadline.left == 0.0:
                return
        self._polish()
        if not self.closed and self.deadline.left > 0.0:
            self.relaxation.improve(self.keep, ASCENT)
            self.note("ascent")

    def note(self, step: str) -> None:
        """Add a line to the trace."""
        self.trace.append(
            {"block": self.rows.start, "step": step, "objective": self.value, "bound": self.lower}
        )

    def _select(self) -> None:
        """Round, repair where a floor is missed, trade; keep the selection if it is the best."""
        problem, relaxation = self.problem, self.relaxation
        keep = relaxation.round()
        kept = (keep * relaxation.share).sum(axis=2)
        short = kept.sum(axis=1) < relaxation.needed * (1 - 1e-10)
        floors = relaxation.floors[:, None] * (1 - 1e-10)
        if short.any() or (relaxation.floors.any() and (kept < floors).any()):
            whole = self.plain.copy()
            whole[self.rows] = keep
            keep = repair_floors(problem, whole)[self.rows]
        value, bandwidth = self._price(keep)
        if value < self.value:
            self.keep, self.value, self.bandwidth = keep, value, bandwidth

    def _price(self, keep: NDArray[np.bool_]) -> tuple[float, RealArray | None]:
        """Exact latency, after trades where those apply."""
        problem, t = self.problem, self.problem.tables
        sent = np.empty((keep.shape[0], t.low.size))
        load = np.empty((keep.shape[0], t.expert_device.size), dtype=np.int64)
        count_loads(t.ids[self.rows], keep, t.expert_device, t.by_device, load, sent)
        busy = np.empty(sent.shape)
        busy_times(load, sent, t.expert_device, t.compute, t.activation, t.link_delay, busy)
        if self.relaxation.free and keep.shape[0] == 1 and not t.by_device:
            out = np.empty(t.low.size)
            stop = self.lower * (1 + 0.5 * self.rel_gap)
            return self.relaxation.trade(keep, load, sent, busy, TRADES, stop, out), out
        search = Search(problem, self.rows, keep)
        return search.value, search.bandwidth

    def _polish(self) -> None:
        """Local search from the best selection so far."""
        search = Search(self.problem, self.rows, self.keep)
        search.polish(lambda: self.deadline.left == 0.0)
        if search.value < self.value:
            self.keep, self.value, self.bandwidth = search.keep, search.value, search.bandwidth
        self.note("local search")


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
            floor = Certificate(form="deadline", deadline=proof.floor.deadline, **_prices(problem, [proof.floor]))
        return Certificate(
            form="shared", offset=proof.offset, grid=proof.grid, floor=floor, **_prices(problem, proofs)
        )
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
