"""The convex relaxation of the joint problem by CVXPY and SCS; `convex` does it by Clarabel."""

from __future__ import annotations

import numpy as np

from wdmoe_opt.benchmarks.peers.cvxpy_bandwidth import SCS_ACCURACY, scs_options, solve_quietly
from wdmoe_opt.problem import Problem
from wdmoe_opt.registry import Control, Point
from wdmoe_opt.solvers.convex import THRESHOLDS
from wdmoe_opt.solvers.reference import conclude, rank, solve_apart


def scs(problem: Problem, control: Control, accuracy: float = SCS_ACCURACY) -> Point:
    """Relax, round at several thresholds, repair; no bound, as SCS is not accurate enough for one."""
    return solve_apart(problem, control, lambda part, limits: _solve(part, limits, accuracy))


def _solve(problem: Problem, control: Control, accuracy: float) -> Point:
    from wdmoe_opt.bandwidth import allocate, demands
    from wdmoe_opt.floors import repair_floors
    from wdmoe_opt.formulations.joint_latency import JointLatencyModel
    from wdmoe_opt.metrics import price

    model = JointLatencyModel(problem)
    status = solve_quietly(model, scs_options(control, accuracy))
    flow = model.variables["flow"].value
    if flow is None or not np.isfinite(flow).all():
        return conclude(
            problem, None, control, limit="time" if "limit" in status else "", detail=f"SCS: {status}"
        )
    share = np.asarray(model.extract().keep)
    first = np.arange(share.shape[2]) == share.argmax(axis=2)[:, :, None]
    keeps = [
        repair_floors(problem, (rounded := share >= t) | (first & ~rounded.any(axis=2, keepdims=True)))
        for t in THRESHOLDS
    ]
    best = min(
        keeps, key=lambda k: rank(price(problem, k, allocate(problem, *demands(problem, k)).bandwidth))
    )
    return conclude(problem, best, control, limit="rounding", detail=f"SCS: {status}; rounded and repaired")
