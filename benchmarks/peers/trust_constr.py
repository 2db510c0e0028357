"""P-BW on the epigraph form by SciPy's trust-constr; `slsqp` does it by SLSQP."""

from __future__ import annotations

import warnings

import numpy as np

from wdmoe_opt.benchmarks.peers.cvxpy_bandwidth import within_limits
from wdmoe_opt.problem import Problem
from wdmoe_opt.registry import Control, Point, Termination
from wdmoe_opt.solvers.bandwidth_program import BandwidthProgram, bandwidth_programs
from wdmoe_opt.solvers.deadline import Deadline
from wdmoe_opt.validation import RealArray


def trust_constr(problem: Problem, control: Control, max_iterations: int = 1000) -> Point:
    """Keep every reachable top-k expert and allocate the bandwidth by trust-constr."""
    deadline = Deadline.of(control)
    keep = problem.top_k_keep if problem.selectable else None
    rows, words = [], ""
    for program in bandwidth_programs(problem):
        if deadline.left == 0.0:
            return Point.nothing("no-solution", "time", "the time limit passed during trust-constr")
        share, words = _allocate(program, deadline, max_iterations)
        rows.append(share * problem.tables.total)
    bandwidth = within_limits(problem, rows[0] if problem.allocation == "shared" else np.array(rows))
    limit = "time" if deadline.left == 0.0 else ""
    return Point(keep, bandwidth, Termination("heuristic", limit, f"plain top-k; trust-constr: {words}"))


def _allocate(program: BandwidthProgram, deadline: Deadline, max_iterations: int) -> tuple[RealArray, str]:
    """Shares (devices,), and trust-constr's own words."""
    from scipy.optimize import Bounds, LinearConstraint, NonlinearConstraint, minimize
    from scipy.sparse import csr_matrix

    index, devices, blocks = program.index, program.devices, program.blocks
    line = np.arange(len(index))

    def slopes(x: RealArray) -> csr_matrix:
        entries = np.r_[program.slopes(x), -np.ones(len(index))]
        where = (np.r_[line, line], np.r_[index[:, 1], devices + index[:, 0]])
        return csr_matrix((entries, where), shape=(len(index), x.size))

    low, high = np.r_[program.low, np.zeros(blocks)], np.r_[program.high, np.full(blocks, np.inf)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of steps where the quasi-Newton update is skipped
        result = minimize(
            lambda x: float(program.objective @ x),
            np.r_[program.start, 1.001 * program.start_latency / program.unit],
            jac=lambda x: program.objective,
            hess=lambda x: csr_matrix((x.size, x.size)),
            bounds=Bounds(low, high),
            constraints=[
                NonlinearConstraint(program.lateness, -np.inf, 0.0, jac=slopes),
                LinearConstraint(program.budget[None, :], -np.inf, 1.0),
            ],
            method="trust-constr",
            callback=lambda x, state: deadline.left == 0.0,
            options={"maxiter": max_iterations, "gtol": 1e-9, "xtol": 1e-9, "sparse_jacobian": True},
        )
    return np.clip(result.x[:devices], program.low, program.high), str(result.message)
