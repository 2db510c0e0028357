"""P-BW on the epigraph form by SciPy's trust-constr; `slsqp` does it by SLSQP.

minimise sum_i T_i subject to t_ik(b_k) <= T_i and sum_k b_k <= 1, in shares of the total bandwidth and in
units of the latency at equal shares, with exact first derivatives.
"""

from __future__ import annotations

import warnings

import numpy as np

from wdmoe_opt.bandwidth import demands
from wdmoe_opt.benchmarks.peers.cvxpy_bandwidth import within_limits
from wdmoe_opt.kernels.link import log_time_terms
from wdmoe_opt.problem import Problem
from wdmoe_opt.registry import Control, Point, Termination
from wdmoe_opt.solvers.deadline import Deadline
from wdmoe_opt.solvers.slsqp import LEAST_SHARE
from wdmoe_opt.validation import RealArray


def trust_constr(problem: Problem, control: Control, max_iterations: int = 1000) -> Point:
    """Keep every reachable top-k expert and allocate the bandwidth by trust-constr."""
    deadline = Deadline.of(control)
    keep = problem.top_k_keep if problem.selectable else None
    sent, busy = demands(problem, keep)
    blocks = problem.instance.blocks
    shared = problem.allocation == "shared"
    groups = [slice(0, blocks)] if shared else [slice(i, i + 1) for i in range(blocks)]
    rows, words = [], ""
    for group in groups:
        if deadline.left == 0.0:
            return Point.nothing("no-solution", "time", "the time limit passed during trust-constr")
        share, words = _allocate(problem, sent[group], busy[group], group, deadline, max_iterations)
        rows.append(share * problem.tables.total)
    bandwidth = within_limits(problem, rows[0] if shared else np.array(rows))
    limit = "time" if deadline.left == 0.0 else ""
    return Point(keep, bandwidth, Termination("heuristic", limit, f"plain top-k; trust-constr: {words}"))


def _allocate(
    problem: Problem, sent: RealArray, busy: RealArray, rows: slice, deadline: Deadline, max_iterations: int
) -> tuple[RealArray, str]:
    """Shares (devices,) for some blocks, and trust-constr's own words."""
    from scipy.optimize import Bounds, LinearConstraint, NonlinearConstraint, minimize
    from scipy.sparse import csr_matrix

    t = problem.tables
    index = np.argwhere(sent > 0)
    loaded = (sent > 0).any(axis=0)
    low = np.maximum(t.low / t.total, np.where(loaded, LEAST_SHARE, 0.0))
    high = np.where(loaded, np.minimum(t.high / t.total, 1.0), low)
    assert problem.uniform_bandwidth is not None
    start = np.clip(problem.uniform_bandwidth / t.total, low, high)
    c_down, c_up = t.c_down[rows], t.c_up[rows]
    blocks, devices = sent.shape

    def times(share: RealArray) -> tuple[RealArray, RealArray]:
        """Seconds and their derivative by the share, of every loaded (block, device)."""
        value, slope = np.empty(len(index)), np.empty(len(index))
        for n, (i, k) in enumerate(index):
            b = max(share[k], LEAST_SHARE)
            time, first, _ = log_time_terms(b * t.total, t.bits_down, c_down[i, k], t.bits_up, c_up[i, k])
            value[n] = busy[i, k] + sent[i, k] * time
            slope[n] = sent[i, k] * first / b
        return value, slope

    at_start = np.zeros(blocks)
    np.maximum.at(at_start, index[:, 0], times(start)[0])
    unit = float(at_start.sum()) or 1.0
    line = np.arange(len(index))

    def lateness(x: RealArray) -> RealArray:
        late: RealArray = times(x[:devices])[0] / unit - x[devices + index[:, 0]]
        return late

    def slopes(x: RealArray) -> csr_matrix:
        entries = np.r_[times(x[:devices])[1] / unit, -np.ones(len(index))]
        where = (np.r_[line, line], np.r_[index[:, 1], devices + index[:, 0]])
        return csr_matrix((entries, where), shape=(len(index), x.size))

    objective = np.r_[np.zeros(devices), np.ones(blocks)]
    budget = np.r_[np.ones(devices), np.zeros(blocks)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of steps where the quasi-Newton update is skipped
        result = minimize(
            lambda x: float(objective @ x),
            np.r_[start, 1.001 * at_start / unit],
            jac=lambda x: objective,
            hess=lambda x: csr_matrix((x.size, x.size)),
            bounds=Bounds(np.r_[low, np.zeros(blocks)], np.r_[high, np.full(blocks, np.inf)]),
            constraints=[
                NonlinearConstraint(lateness, -np.inf, 0.0, jac=slopes),
                LinearConstraint(budget[None, :], -np.inf, 1.0),
            ],
            method="trust-constr",
            callback=lambda x, state: deadline.left == 0.0,
            options={"maxiter": max_iterations, "gtol": 1e-9, "xtol": 1e-9, "sparse_jacobian": True},
        )
    return np.clip(result.x[:devices], low, high), str(result.message)
