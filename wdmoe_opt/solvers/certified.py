"""Certified: prices of the relaxed problem by Newton, a rounded and traded selection, and the proof.

For objective "latency"; those of the weight-to-latency ratio are in `certified_ratio`.

The relaxation is almost integral (fact 4), its dual is smooth in all but a few tokens (fact 8), and every
price proves a bound (fact 6). So a handful of Newton steps on the smoothed optimality conditions, at ever
narrower smoothing, give a bound; what is clearly worth its price is kept, the rest by value until the
floor holds; trades against the exact latency do the rest.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wdmoe_opt.bandwidth import allocate, demands
from wdmoe_opt.certificates.certificate import Certificate
from wdmoe_opt.floors import repair_floors
from wdmoe_opt.kernels.single_block import RESIDUAL
from wdmoe_opt.problem import Problem
from wdmoe_opt.registry import Control, Point, Termination
from wdmoe_opt.relaxation import PROVE, Proof, Relaxation
from wdmoe_opt.search import Search, groups, start_selection
from wdmoe_opt.single_block import PROVE_TABLE, Workspace
from wdmoe_opt.solvers.alternating import explore
from wdmoe_opt.solvers.deadline import Deadline
from wdmoe_opt.validation import RealArray, freeze

#: Exact trades after rounding.
TRADES = 60
#: Where blocks share bandwidth: how far from the best bandwidth others are tried, in logarithms.
TREMBLES = tuple(np.geomspace(6e-3, 1e-4, 40))
#: A round of alternation that improves by less than this part is the last.
ROUND_PROGRESS = 1e-5
#: Tokens up to which local search and ascent pay.
POLISH_TOKENS = 256
#: Gap from which ascent is worth its time with more tokens, too.
WIDE_GAP = 2e-2
#: Tokens up to which the search starts from elsewhere, too, and in how many rounds.
EXPLORED_TOKENS, EXPLORE_ROUNDS = 64, 10
#: Ascent steps on each block where the stages leave a gap.
ASCENT = 80


def restriction(problem: Problem) -> str:
    """Why nothing can be certified of a problem, "" if it can."""
    if problem.objective != "wlr-device":
        return ""
    able = "'latency', 'wlr-token' and 'wlr-block'"
    return f"no bound is known for objective 'wlr-device'; certified are {able}"


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
    Source: docs/mathematics.md, facts 3 to 8.
    """
    if not problem.selectable:
        from wdmoe_opt.solvers.certified_loads import certified_loads

        return certified_loads(problem, control)
    if problem.objective != "latency":
        from wdmoe_opt.solvers.certified_ratio import certified_ratio

        return certified_ratio(problem, control)
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
        if self.traded:
            self._run_single()
        else:
            self._run_stages()
        self.finish()

    def finish(self) -> None:
        """Searches and ascent, where the stages left a gap."""
        for step in (self._alternate, self._polish, self._ascend):
            if self.done:
                return
            step()

    def adopt(self, space: Workspace) -> None:
        """Take over what the compiled stages of a single block found."""
        self.relaxation.best = space.proof(self.relaxation.tokens)
        found = space.narrowed(self.relaxation.tokens)[1]
        self.keep, self.bandwidth, self.value = found.keep[None], found.bandwidth, space.latency

    def _run_single(self) -> None:
        """The stages of a single block with free bandwidth, compiled as one."""
        relaxation, t = self.relaxation, self.problem.tables
        block = relaxation.as_block()
        space = Workspace(relaxation.tokens, relaxation.columns, t.low.size, t.expert_device.size)
        space.begin()
        space.lead(block, relaxation.link, freeze(self.plain[self.rows]))
        for r, stage in enumerate(PROVE):
            space.prove(block, relaxation.link, PROVE_TABLE[r : r + 1], TRADES, self.rel_gap)
            self.adopt(space)
            self.note(f"width {stage.width:g}, residual {space.found.numbers[RESIDUAL]:.1e}")
            if self.done:
                return

    def _run_stages(self) -> None:
        """Prices by Newton, stage by stage, with bounds and roundings."""
        relaxation = self.relaxation
        relaxation.lead(self.plain)
        for stage in PROVE:
            residual = relaxation.settle(stage)
            relaxation.bound()
            self._round()
            self.note(f"width {stage.width:g}, residual {residual:.1e}")
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
        """Round the prices to a selection, repaired where a floor is missed."""
        problem, relaxation = self.problem, self.relaxation
        keep = relaxation.round()
        kept = (keep * relaxation.share).sum(axis=2)
        short = kept.sum(axis=1) < relaxation.needed * (1 - 1e-10)
        floors = relaxation.floors[:, None] * (1 - 1e-10)
        if short.any() or (relaxation.floors.any() and (kept < floors).any()):
            whole = self.plain.copy()
            whole[self.rows] = keep
            keep = repair_floors(problem, whole)[self.rows]
        search = Search(problem, self.rows, keep)
        self._accept(search.keep, search.value, search.bandwidth)

    def _alternate(self) -> None:
        """Selection at the relaxed bandwidth, bandwidth at the selection, in turn; then from nearby ones.

        Where blocks share bandwidth, each block's last token decides about its latency, so a little
        more bandwidth here than there lets other numbers of tokens fit.
        """
        if self.traded:
            return
        search = Search(self.problem, self.rows, self.plain[self.rows])
        if not self.relaxation.free:
            self._select_at(search, None)
            self.note("selection")
            return
        bandwidth, before = self.relaxation.bandwidth, np.inf
        while self._select_at(search, bandwidth) < before * (1 - ROUND_PROGRESS) and not self.done:
            assert search.bandwidth is not None
            bandwidth, before = search.bandwidth[0], search.value
        rng = np.random.default_rng(self.seed)
        for size in TREMBLES:
            if self.done:
                break
            assert self.bandwidth is not None
            shift = np.exp(rng.normal(0.0, size, self.relaxation.devices))
            self._select_at(search, self.relaxation.within_limits(self.bandwidth[0] * shift))
        self.note("alternation")

    def _select_at(self, search: Search, bandwidth: RealArray | None) -> float:
        """Best selection at a bandwidth (or the fixed one), then the best bandwidth for it; offered, s."""
        if bandwidth is not None:
            search.bandwidth, search.hold = bandwidth[None, :].copy(), True
        search.start(self.plain[self.rows])
        search.shed(1)
        search.hold = False
        search.value = search.price()
        self._accept(search.keep, search.value, search.bandwidth)
        return search.value

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
        search.start(explore(search, self.plain, EXPLORE_ROUNDS, self.deadline).best)
        self._accept(search.keep, search.value, search.bandwidth)
        self.note("other starts")

    def _ascend(self) -> None:
        """Raise the bound where few tokens make it jagged."""
        wide = self.value - self.lower >= WIDE_GAP * self.value
        if self.relaxation.tokens > POLISH_TOKENS and not wide:
            return
        if self.traded:
            self.relaxation.lead(self.plain)
        self.relaxation.improve(self.keep, ASCENT)
        self.note("ascent")


def _point(problem: Problem, control: Control, done: list[Group]) -> Point:
    selection = np.concatenate([group.keep for group in done])
    bandwidth = allocate(problem, *demands(problem, selection))
    proofs = [group.relaxation.best for group in done]
    certificate = None
    if all(proof is not None and proof.bound > 0 for proof in proofs):
        certificate = assemble(problem.tables.ids.shape, [p for p in proofs if p is not None])
    trace = sorted((line for group in done for line in group.trace), key=lambda line: line["block"])
    value = sum(group.value for group in done)
    lower = sum(group.lower for group in done)
    if value - lower <= control.rel_gap * value:
        end = Termination("optimal", detail=f"certified within {(value - lower) / max(value, 1e-300):.2e}")
    else:
        late = done[0].deadline.left == 0.0
        words = "the time limit passed" if late else "the relaxation leaves this gap; exact branches on it"
        end = Termination("feasible-at-limit", "time" if late else "relaxation", words)
    return Point(
        selection, bandwidth.bandwidth, end, lower_bound=lower, bound_kind="claimed",
        kkt_residual=bandwidth.kkt_residual, trace=tuple(trace), certificate=certificate,
    )  # fmt: skip


def assemble(shape: tuple[int, ...], proofs: list[Proof]) -> Certificate:
    """One certificate from the proofs of all groups; ``shape`` is (blocks, tokens, m)."""
    proof = proofs[0]
    if proof.form == "shared":
        floor = None
        if proof.floor is not None:
            floor = Certificate(
                form="deadline", deadline=proof.floor.deadline, **_prices(shape, [proof.floor])
            )
        return Certificate(
            form="shared",
            offset=proof.offset,
            grid=proof.grid,
            toll=proof.toll,
            floor=floor,
            **_prices(shape, proofs),
        )
    if proof.form == "mean":
        return Certificate(form="mean", **_prices(shape, proofs))
    deadline = np.concatenate([proof.deadline for proof in proofs])
    return Certificate(form="deadline", deadline=deadline, **_prices(shape, proofs))


def _prices(shape: tuple[int, ...], proofs: list[Proof]) -> dict[str, Any]:
    names = ("send", "work", "wake", "retention", "bandwidth", "points")
    # Read-only, so that the certificate takes them as they are.
    prices = {name: freeze(np.concatenate([getattr(proof, name) for proof in proofs])) for name in names}
    if any(proof.share is not None for proof in proofs):
        prices["share"] = np.concatenate(
            [np.zeros((len(p.send), *shape[1:])) if p.share is None else p.share for p in proofs]
        )
    return prices
