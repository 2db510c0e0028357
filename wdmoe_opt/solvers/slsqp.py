"""The textbook route for P-BW: sequential quadratic programming on the epigraph form (SciPy's SLSQP)."""

from __future__ import annotations

from typing import Any

import numpy as np

from wdmoe_opt.problem import Problem
from wdmoe_opt.registry import Control, Point, Termination
from wdmoe_opt.solvers.bandwidth_program import BandwidthProgram, bandwidth_programs
from wdmoe_opt.solvers.deadline import Deadline, OutOfTimeError
from wdmoe_opt.validation import RealArray


def slsqp(problem: Problem, control: Control, max_iterations: int = 500) -> Point:
    """Keep every reachable top-k expert and allocate the bandwidth by SLSQP.

    Parameters
    ----------
    problem : Problem
    control : Control
    max_iterations : int
        Per allocation.

    Notes
    -----
    Made to compare with `topk`, which is exact and faster.
    """
    deadline = Deadline.of(control)
    keep = problem.top_k_keep if problem.selectable else None
    rows, words = [], ""
    try:
        for program in bandwidth_programs(problem):
            share, words = _allocate(program, deadline, max_iterations)
            rows.append(share * problem.tables.total)
    except OutOfTimeError:
        return Point.nothing("no-solution", "time", "the time limit passed during SLSQP")
    bandwidth = rows[0] if problem.allocation == "shared" else np.array(rows)
    return Point(keep, bandwidth, Termination("heuristic", detail=f"plain top-k; SLSQP: {words}"))


def _allocate(program: BandwidthProgram, deadline: Deadline, max_iterations: int) -> tuple[RealArray, str]:
    """Shares (devices,), and SLSQP's own words."""
    from scipy.optimize import minimize

    deadline.check()
    line, devices = np.arange(len(program.index)), program.devices

    def slack(x: RealArray) -> RealArray:
        deadline.check()
        return -program.lateness(x)

    def slack_slope(x: RealArray) -> RealArray:
        deadline.check()
        matrix = np.zeros((line.size, x.size))
        matrix[line, program.index[:, 1]] = -program.slopes(x)
        matrix[line, devices + program.index[:, 0]] = 1.0
        return matrix

    rules: list[dict[str, Any]] = [
        {"type": "ineq", "fun": slack, "jac": slack_slope},
        {"type": "ineq", "fun": lambda x: 1.0 - program.budget @ x, "jac": lambda x: -program.budget},
    ]
    result = minimize(
        lambda x: float(program.objective @ x),
        np.r_[program.start, program.start_latency / program.unit],
        jac=lambda x: program.objective,
        bounds=[*zip(program.low, program.high, strict=True), *[(0.0, None)] * program.blocks],
        constraints=rules,
        method="SLSQP",
        options={"maxiter": max_iterations, "ftol": 1e-12},
    )
    share = np.clip(result.x[:devices], program.low, program.high)
    return share / max(float(share.sum()), 1.0), str(result.message)
