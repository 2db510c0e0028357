"""What the model-based solvers share: blocks apart, points checked, bounds doubted.

A backend's status is never evidence. Whatever selection it returns is repaired to the floors, given the
exactly best bandwidth where latency counts, and priced by the metric; whatever bound it returns is
dropped if that price contradicts it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from threading import TIMEOUT_MAX, Lock

import numpy as np
from numpy.typing import NDArray

from wdmoe_opt.bandwidth import allocate, demands
from wdmoe_opt.floors import floor_conflict, repair_floors
from wdmoe_opt.instance import Instance
from wdmoe_opt.metrics import Evaluation, price
from wdmoe_opt.problem import Problem
from wdmoe_opt.registry import Control, Point, Reason, Termination
from wdmoe_opt.solvers.deadline import Deadline
from wdmoe_opt.validation import RealArray

#: Relative slack of backends' bounds: they are rounded outward by it before they are claimed.
BACKEND_TOLERANCE = 1e-7

_PYOMO = Lock()

#: Solves one problem with coupled blocks in the time that is left.
CoupledSolver = Callable[[Problem, Control], Point]


def solve_apart(problem: Problem, control: Control, solver: CoupledSolver) -> Point:
    """Solve independent blocks one by one, coupled ones together.

    Floors that cannot be met, and a time limit of 0, are answered here.
    """
    conflict = floor_conflict(problem) if problem.selectable else ""
    if conflict:
        return Point.nothing("infeasible", detail=conflict)
    deadline = Deadline.of(control)
    if deadline.left == 0.0:
        return Point.nothing("no-solution", "time", "the time limit is 0")
    coupled = problem.allocation == "shared" or problem.max_latency is not None
    if coupled or problem.instance.blocks == 1:
        return solver(problem, control)
    points = []
    for n, part in enumerate(single_blocks(problem)):
        if control.time_limit is not None:
            control = replace(control, time_limit=deadline.left / (problem.instance.blocks - n))
        points.append(solver(part, control))
        if points[-1].empty:
            return replace(points[-1], termination=_of_block(points[-1].termination, n))
    return _joined(problem, points)


def one_at_a_time(solver: CoupledSolver) -> CoupledSolver:
    """Let one thread at a time solve through Pyomo, which redirects the whole process's output meanwhile."""

    def in_turn(problem: Problem, control: Control) -> Point:
        deadline = Deadline.of(control)
        if not _PYOMO.acquire(timeout=min(deadline.left, TIMEOUT_MAX)):
            return Point.nothing("no-solution", "time", "the time limit passed while another thread solved")
        try:
            limited = control.time_limit is not None
            return solver(problem, replace(control, time_limit=deadline.left) if limited else control)
        finally:
            _PYOMO.release()

    return in_turn


def single_blocks(problem: Problem) -> Iterator[Problem]:
    """Every block as a problem of its own, with its own floors and, if fixed, bandwidth."""
    arrays = problem.instance.arrays(copy=False)
    floors = np.asarray(problem.min_retention), np.asarray(problem.min_token_retention)
    shares = None if problem.bandwidth is None else np.asarray(problem.bandwidth)
    for i in range(problem.instance.blocks):
        part = dict(arrays)
        for name in ("expert_ids", "gate_weights", "loads", "gain_down", "gain_up"):
            value = part.get(name)
            if value is not None and not (name.startswith("gain") and value.ndim == 1):
                part[name] = value[i : i + 1]
        yield problem.replace(
            instance=Instance.from_arrays(**part),
            min_retention=floors[0][i],
            min_token_retention=floors[1][i],
            bandwidth=shares if shares is None or shares.ndim == 1 else shares[i],
        )


def conclude(
    problem: Problem,
    keep: NDArray[np.bool_] | None,
    control: Control,
    *,
    bandwidth: RealArray | None = None,
    bound: float | None = None,
    limit: str = "",
    detail: str = "",
) -> Point:
    """Check what a backend returned and say what is known.

    Parameters
    ----------
    keep : bool array (blocks, tokens, m), or None
        The selection, None if there is none.
    bandwidth : float array, Hz, optional
        The backend's own; used if the exact one for least latency does worse by the objective.
    bound : float, optional
        On the objective in SI units, as the backend claims it.
    """
    if keep is None:
        return Point.nothing("no-solution", limit, detail)
    keep = repair_floors(problem, keep)
    best = allocate(problem, *demands(problem, keep))
    priced = price(problem, keep, best.bandwidth)
    chosen, residual = best.bandwidth, best.kkt_residual
    if bandwidth is not None and problem.objective.startswith("wlr"):
        own = price(problem, keep, bandwidth)
        if rank(own) < rank(priced):
            priced, chosen, residual = own, bandwidth, math.nan
    if not priced.feasible:
        broken = "; ".join(map(str, priced.violations))
        return Point.nothing("no-solution", limit, f"{detail}; its point violates {broken}")
    sign = 1.0 if problem.objective == "latency" else -1.0
    bound = None if bound is None else bound - sign * BACKEND_TOLERANCE * abs(bound)
    if bound is not None and sign * (bound - priced.objective) > 0:
        detail += f"; its bound {bound:.9g} is contradicted by this point and dropped"
        bound = None
    if bound is None or not math.isfinite(bound):
        return Point(keep, chosen, Termination("heuristic", limit, detail), kkt_residual=residual)
    gap = abs(priced.objective - bound) / abs(priced.objective) if priced.objective else abs(bound)
    closed = gap <= max(control.rel_gap, 3 * BACKEND_TOLERANCE)
    reason: Reason = "optimal" if closed else "feasible-at-limit"
    end = Termination(reason, "" if closed else limit or "gap", detail)
    return Point(keep, chosen, end, lower_bound=bound, bound_kind="claimed", kkt_residual=residual)


def rank(priced: Evaluation) -> tuple[bool, float]:
    """Sort key: feasible first, then by objective, best first."""
    sign = 1.0 if priced.problem.objective == "latency" else -1.0
    return (not priced.feasible, sign * priced.objective)


def _of_block(end: Termination, block: int) -> Termination:
    return replace(end, detail=f"block {block}: {end.detail}")


def _joined(problem: Problem, points: list[Point]) -> Point:
    """One point of all blocks: latencies add up, ratios are averaged."""
    keep = np.concatenate([p.keep for p in points if p.keep is not None])
    rows = [p.bandwidth for p in points if p.bandwidth is not None]
    bandwidth = np.vstack(rows) if rows else None
    if problem.allocation == "fixed":
        bandwidth = problem.fixed_bandwidth
    bounds = [p.lower_bound for p in points if p.bound_kind == "claimed"]
    total = sum(bounds) if problem.objective == "latency" else sum(bounds) / len(points)
    bounded = len(bounds) == len(points)
    ends = [p.termination for p in points]
    order: tuple[Reason, ...] = ("heuristic", "feasible-at-limit", "optimal")
    worst = min(ends, key=lambda end: order.index(end.reason))
    detail = (
        ends[0].detail
        if len({e.detail for e in ends}) == 1
        else f"{len(ends)} blocks, first: {ends[0].detail}"
    )
    return Point(
        keep,
        bandwidth,
        Termination(worst.reason, worst.limit, detail),
        lower_bound=total if bounded else -math.inf,
        bound_kind="claimed" if bounded else "none",
        kkt_residual=float(max(p.kkt_residual for p in points)),
        trace=tuple({"block": i, **step} for i, p in enumerate(points) for step in p.trace),
    )
