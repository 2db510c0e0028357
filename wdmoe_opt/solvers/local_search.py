"""Local search: trades of cheap for dear weight, swaps and expert emptying, after any solver."""

from __future__ import annotations

from wdmoe_opt.floors import repair_floors
from wdmoe_opt.problem import Problem
from wdmoe_opt.registry import Control, Point, Termination, check_request, find_solver
from wdmoe_opt.search import Search, search_groups, start_selection
from wdmoe_opt.solvers.deadline import Deadline


def local_search(problem: Problem, control: Control, start: str = "topk") -> Point:
    """Polish another solver's selection; the result is never worse, unless that broke a floor.

    Parameters
    ----------
    problem : Problem
    control : Control
        Its time limit is looked at between trades.
    start : str
        Name of the solver whose point is polished.
    """
    _, conflict = start_selection(problem)
    if conflict:
        return Point.nothing("infeasible", detail=conflict)
    deadline = Deadline.of(control)
    info = find_solver(start)
    check_request(info, problem, ())
    begin = info.run(problem, control, {})
    if begin.keep is None or begin.termination.limit == "interrupt":
        return begin
    keep = repair_floors(problem, problem.checked_keep(begin.keep))

    def work(search: Search) -> None:
        search.polish(lambda: deadline.left == 0.0)

    selection, bandwidth = search_groups(problem, control.threads, keep, work)
    limit = "time" if deadline.left == 0.0 else ""
    reason = Termination("feasible-at-limit" if limit else "heuristic", limit, f"local search from {start}")
    return Point(selection, bandwidth, reason)
