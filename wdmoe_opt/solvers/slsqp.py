"""The textbook route for P-BW: sequential quadratic programming on the epigraph form (SciPy's SLSQP)."""

from __future__ import annotations

from typing import Any

import numpy as np

from wdmoe_opt.bandwidth import demands
from wdmoe_opt.kernels.link import log_time_terms
from wdmoe_opt.problem import Problem
from wdmoe_opt.registry import Control, Point, Termination
from wdmoe_opt.solvers.deadline import Deadline, OutOfTimeError
from wdmoe_opt.validation import RealArray

#: Smallest share given to a loaded device: at 0 the time has no derivative.
LEAST_SHARE = 1e-9


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
    minimise sum_i T_i subject to t_ik(b_k) <= T_i and sum_k b_k <= 1, in shares of the total bandwidth and
    in units of the latency at equal shares. Made to compare with `topk`, which is exact and faster.
    """
    deadline = Deadline.of(control)
    keep = problem.top_k_keep if problem.selectable else None
    sent, busy = demands(problem, keep)
    blocks = problem.instance.blocks
    shared = problem.allocation == "shared"
    groups = [slice(0, blocks)] if shared else [slice(i, i + 1) for i in range(blocks)]
    rows, words = [], ""
    try:
        for rows_of in groups:
            share, words = _allocate(problem, sent[rows_of], busy[rows_of], rows_of, deadline, max_iterations)
            rows.append(share)
    except OutOfTimeError:
        return Point.nothing("no-solution", "time", "the time limit passed during SLSQP")
    bandwidth = rows[0] if shared else np.array(rows)
    return Point(keep, bandwidth, Termination("heuristic", detail=f"plain top-k; SLSQP: {words}"))


def _allocate(
    problem: Problem, sent: RealArray, busy: RealArray, rows: slice, deadline: Deadline, max_iterations: int
) -> tuple[RealArray, str]:
    """Bandwidth, Hz (devices,), for some blocks, and SLSQP's own words."""
    from scipy.optimize import minimize

    t = problem.tables
    index = np.argwhere(sent > 0)
    loaded = (sent > 0).any(axis=0)
    low = np.maximum(t.low / t.total, np.where(loaded, LEAST_SHARE, 0.0))
    high = np.where(loaded, np.minimum(t.high / t.total, 1.0), low)
    assert problem.uniform_bandwidth is not None
    start = np.clip(problem.uniform_bandwidth / t.total, low, high)
    c_down, c_up = t.c_down[rows], t.c_up[rows]
    devices = start.size

    def times(share: RealArray) -> tuple[RealArray, RealArray]:
        """Seconds and their derivative by the share, of every loaded (block, device)."""
        deadline.check()
        value, slope = np.empty(len(index)), np.empty(len(index))
        for n, (i, k) in enumerate(index):
            b = max(share[k], LEAST_SHARE)
            time, first, _ = log_time_terms(b * t.total, t.bits_down, c_down[i, k], t.bits_up, c_up[i, k])
            value[n] = busy[i, k] + sent[i, k] * time
            slope[n] = sent[i, k] * first / b
        return value, slope

    blocks = sent.shape[0]
    at_start = np.zeros(blocks)
    np.maximum.at(at_start, index[:, 0], times(start)[0])
    unit = float(at_start.sum()) or 1.0

    def slack(x: RealArray) -> RealArray:
        late: RealArray = x[devices + index[:, 0]] - times(x[:devices])[0] / unit
        return late

    def slack_slope(x: RealArray) -> RealArray:
        matrix = np.zeros((len(index), x.size))
        matrix[np.arange(len(index)), index[:, 1]] = -times(x[:devices])[1] / unit
        matrix[np.arange(len(index)), devices + index[:, 0]] = 1.0
        return matrix

    objective = np.r_[np.zeros(devices), np.ones(blocks)]
    budget = np.r_[np.ones(devices), np.zeros(blocks)]
    rules: list[dict[str, Any]] = [
        {"type": "ineq", "fun": slack, "jac": slack_slope},
        {"type": "ineq", "fun": lambda x: 1.0 - budget @ x, "jac": lambda x: -budget},
    ]
    result = minimize(
        lambda x: float(objective @ x),
        np.r_[start, at_start / unit],
        jac=lambda x: objective,
        bounds=[*zip(low, high, strict=True), *[(0.0, None)] * blocks],
        constraints=rules,
        method="SLSQP",
        options={"maxiter": max_iterations, "ftol": 1e-12},
    )
    share = np.clip(result.x[:devices], low, high)
    return share / max(float(share.sum()), 1.0) * t.total, str(result.message)
