"""Greedy: from plain top-k, always the move that gains most latency per retained weight lost."""

from __future__ import annotations

from typing import Any

from wdmoe_opt.problem import Problem
from wdmoe_opt.registry import Control, Point, Termination
from wdmoe_opt.search import Search, search_groups, start_selection
from wdmoe_opt.validation import whole


def greedy(problem: Problem, control: Control, batches: int = 6) -> Point:
    """Drop and re-route by exact prices until the floors bind or nothing gains.

    Moves of a token and the emptying of whole experts (which saves their activation time) compete by
    weight lost per latency gained at the multipliers of the bandwidth problem; bandwidth and prices are
    exact between batches. Where bandwidth is shared by blocks or fixed, only a block's slowest device
    has a price: there the same rule walks the bottleneck path first.

    Parameters
    ----------
    problem : Problem
    control : Control
    batches : int
        Into how many batches the retention that may be spent is cut.
    """
    whole("batches", batches, 1, 10_000, "must be at least 1 and at most 10000")
    keep, conflict = start_selection(problem)
    if keep is None:
        return Point.nothing("infeasible", detail=conflict)
    trace: list[dict[str, Any]] = []

    def work(search: Search) -> None:
        if problem.objective == "latency" and not search.together():
            for left in range(min(batches, 3), 0, -1):
                search.shed(left, trace)
        search.descend(batches, trace)

    selection, bandwidth = search_groups(problem, control.threads, keep, work)
    trace.sort(key=lambda record: record["block"])
    detail = f"greedy, {len(trace)} batches"
    return Point(selection, bandwidth, Termination("heuristic", detail=detail), trace=tuple(trace))
