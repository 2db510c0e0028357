"""Alternating optimisation: selection at given bandwidth, bandwidth at given selection, in turn."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from wdmoe_opt.floors import repair_floors
from wdmoe_opt.problem import Problem
from wdmoe_opt.registry import Control, Point, Termination
from wdmoe_opt.search import Search, search_groups, start_selection
from wdmoe_opt.solvers.deadline import Deadline
from wdmoe_opt.solvers.topk import equal_bandwidth
from wdmoe_opt.solvers.wdmoe import Algorithm1, select
from wdmoe_opt.validation import whole

#: A round that improves by less than this part is the last from its start.
ROUND_PROGRESS = 1e-4


def alternating(problem: Problem, control: Control, rounds: int = 10, polish: bool = True) -> Point:
    """Alternate from several starts, keep the best, polish it.

    At a given bandwidth the selection walks the bottleneck path (fact 9: a parametric search, no linear
    program); re-routes and the readings of the weight-to-latency ratio go by price-directed moves. At a
    given selection the bandwidth is exact. A round is kept only if it improves, so the trace is monotone
    and the result never worse than a start. Starts: plain top-k at equal and at optimal bandwidth,
    Algorithm 1 (repaired where it breaks a floor), and a greedy descent.

    Parameters
    ----------
    problem : Problem
    control : Control
        Its time limit is looked at between rounds.
    rounds : int
        At most so many rounds from each start.
    polish : bool
        Whether the best point goes through local search.
    """
    whole("rounds", rounds, 1, 10_000, "must be at least 1 and at most 10000")
    plain, conflict = start_selection(problem)
    if plain is None:
        return Point.nothing("infeasible", detail=conflict)
    deadline = Deadline.of(control)
    trace: list[dict[str, Any]] = []

    def work(search: Search) -> None:
        explore(search, plain, rounds, deadline, trace, polish=polish)

    selection, bandwidth = search_groups(problem, control.threads, plain, work)
    trace.sort(key=lambda record: record["block"])
    limit = "time" if deadline.left == 0.0 else ""
    detail = f"alternating, {len(trace)} improvements"
    end = Termination("feasible-at-limit" if limit else "heuristic", limit, detail)
    return Point(selection, bandwidth, end, trace=tuple(trace))


def explore(
    search: Search,
    plain: NDArray[np.bool_],
    rounds: int,
    deadline: Deadline,
    trace: list[dict[str, Any]] | None = None,
    *,
    polish: bool = True,
) -> Alternation:
    """Alternate on one group of blocks from all starts; the search ends at the best point if it is polished.

    Parameters
    ----------
    search : Search
    plain : bool array (blocks, tokens, m)
        Selection of the whole problem to start from; keeps the floors.
    rounds : int
        At most so many from each start.
    deadline : Deadline
    trace : list, optional
        Receives a record per improvement.
    polish : bool
        Whether the best point goes through local search.
    """
    problem = search.problem
    uniform = equal_bandwidth(problem)
    paper = repair_floors(problem, select(problem, uniform, Algorithm1())[0])
    search.start(plain[search.rows])
    run = Alternation(search, plain[search.rows], rounds, deadline, [] if trace is None else trace)
    equal = None if uniform is None else np.atleast_2d(uniform)
    if equal is not None and equal.shape[0] > 1:
        equal = equal[search.rows]
    run.from_bandwidth(equal)
    run.from_selection(plain[search.rows])
    run.from_selection(paper[search.rows])
    search.hold = False
    search.start(plain[search.rows])
    search.descend(4, patience=2)
    run.accept("greedy")
    search.start(run.best)
    if polish:
        search.polish(lambda: deadline.left == 0.0)
        run.accept("polish")
    return run


class Alternation:
    """Rounds on one group of blocks, and the best selection so far."""

    def __init__(
        self,
        search: Search,
        richest: NDArray[np.bool_],
        rounds: int,
        deadline: Deadline,
        trace: list[dict[str, Any]],
    ) -> None:
        self.search, self.richest, self.rounds = search, richest, rounds
        self.deadline, self.trace = deadline, trace
        self.best, self.value = search.keep.copy(), np.inf
        self.accept("start")

    def accept(self, step: str) -> bool:
        """Note the present point if it is the best so far."""
        improved = self.search.value < self.value
        if improved:
            self.best, self.value = self.search.keep.copy(), self.search.value
            self.trace.append({"step": step, **self.search.record(0)})
        return improved

    def from_bandwidth(self, bandwidth: Any) -> None:
        """Alternate, beginning with a selection for this bandwidth."""
        search = self.search
        value = np.inf
        for _ in range(self.rounds):
            if bandwidth is not None:
                search.bandwidth, search.hold = bandwidth, True
            search.start(self.richest)
            self._select()
            search.hold = False
            search.value = search.price()
            self.accept("round")
            if not search.value < value - ROUND_PROGRESS * abs(search.value) or self.deadline.left == 0.0:
                return
            value = search.value
            bandwidth = search.bandwidth

    def from_selection(self, keep: NDArray[np.bool_]) -> None:
        """Alternate, beginning with the bandwidth for this selection."""
        self.search.hold = False
        self.search.start(keep)
        self.accept("start")
        self.from_bandwidth(self.search.bandwidth)

    def _select(self) -> None:
        """Selection at the held bandwidth."""
        search = self.search
        if search.problem.objective == "latency":
            search.shed(1)
        if search.problem.objective != "latency" or search.reroutes():
            search.descend(4)
