"""Mixed-integer linear programming by HiGHS, with tangents to the link time where bandwidth is free.

At fixed bandwidth one program is exact (P-SEL). With free bandwidth every program is a relaxation; its
selection gets its exactly best bandwidth, which gives a point, and tangents there, which make the next
program price that selection exactly. The loop ends when bound and point meet.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wdmoe_opt.bandwidth import allocate, demands
from wdmoe_opt.floors import repair_floors
from wdmoe_opt.metrics import price
from wdmoe_opt.problem import Problem
from wdmoe_opt.registry import Control, Point
from wdmoe_opt.solvers.deadline import Deadline
from wdmoe_opt.solvers.minlp import Outcome
from wdmoe_opt.solvers.reference import BACKEND_TOLERANCE, conclude, one_at_a_time, rank, solve_apart


def milp(problem: Problem, control: Control, max_rounds: int = 200) -> Point:
    """Solve the joint problem, or the selection at fixed bandwidth, exactly by linear programs.

    Parameters
    ----------
    problem : Problem
        Objective "latency" or "retention"; all allocations, dispatch rules, floors and activation.
    control : Control
    max_rounds : int
        Most programs solved, per block where blocks are independent.

    Returns
    -------
    Point
        Bound claimed: HiGHS' own dual bound on the last relaxation, rounded outward.

    Notes
    -----
    Source: fact 1 (convex link time), fact 9 (fixed bandwidth); `wdmoe_opt.formulations.tangents`.
    """
    return solve_apart(problem, control, one_at_a_time(lambda part, limits: _solve(part, limits, max_rounds)))


def _solve(problem: Problem, control: Control, max_rounds: int) -> Point:
    from pyomo.contrib.solver.common.factory import SolverFactory

    from wdmoe_opt.formulations.tangents import TangentModel

    deadline = Deadline.of(control)
    model = TangentModel(problem)
    engine = SolverFactory("highs")
    sign = 1.0 if problem.objective == "latency" else -1.0
    scale = model.data.time_unit if problem.objective == "latency" else 1.0
    best: NDArray[np.bool_] | None = None
    best_rank = (True, math.inf)
    bound, limit, status = -sign * math.inf, "iterations", ""
    rounds = 0
    while rounds < max_rounds:
        rounds += 1
        outcome = _run(engine, model.model, deadline, control)
        status = outcome.status
        if outcome.bound is not None:
            bound = sign * max(sign * bound, sign * outcome.bound * scale)
        if not outcome.found:
            limit = "time" if deadline.left == 0.0 else ""
            break
        found = model.extract()
        assert found.keep is not None
        keep = repair_floors(problem, np.asarray(found.keep) > 0.5)
        exact = allocate(problem, *demands(problem, keep))
        now = rank(price(problem, keep, exact.bandwidth))
        if now < best_rank:
            best, best_rank = keep, now
        if not best_rank[0] and _closed(best_rank[1], sign * bound, control):
            limit = ""
            break
        if deadline.left == 0.0 or problem.allocation == "fixed":
            limit = "time" if deadline.left == 0.0 else "backend"
            break
        assert exact.bandwidth is not None
        assert found.bandwidth is not None
        model.add_tangents(exact.bandwidth)
        model.add_tangents(found.bandwidth)
    detail = f"HiGHS: {status} after {rounds} program(s)"
    return conclude(problem, best, control, bound=bound, limit=limit, detail=detail)


def _closed(value: float, bound: float, control: Control) -> bool:
    """Whether bound and point are as close as asked, both to be minimised."""
    return value - bound <= max(control.rel_gap / 2, BACKEND_TOLERANCE) * abs(value)


def _run(engine: Any, model: Any, deadline: Deadline, control: Control) -> Outcome:
    """Solve one program; its variables hold the point if one was found."""
    options = {
        "mip_rel_gap": max(control.rel_gap / 4, 1e-9),
        "mip_abs_gap": 0.0,
        "mip_feasibility_tolerance": 1e-9,
        "primal_feasibility_tolerance": 1e-9,
        "random_seed": control.seed % 2**31,
    }
    result = engine.solve(
        model,
        time_limit=None if math.isinf(deadline.end) else max(deadline.left, 1e-3),
        threads=control.threads,
        load_solutions=False,
        raise_exception_on_nonoptimal_result=False,
        solver_options=options,
    )
    found = result.incumbent_objective is not None
    if found:
        result.solution_loader.load_vars()
    bound = result.objective_bound
    known = bound is not None and math.isfinite(bound)
    return Outcome(
        found, float(bound) if known else None, str(result.termination_condition).rpartition(".")[2]
    )
