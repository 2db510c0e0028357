"""The convex relaxation (facts 3 and 5) by CVXPY and Clarabel, then rounding and repair.

The bound is the value of the relaxation, with two refinements where devices take time before their first
token. One block: the bound min(H, value(H)) is largest where value(H) = H, found by regula falsi. Shared
bandwidth: no block of an optimum takes longer than the best point's latency less the others' bounds.
"""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from wdmoe_opt.bandwidth import allocate, demands
from wdmoe_opt.floors import repair_floors
from wdmoe_opt.metrics import price
from wdmoe_opt.problem import Problem
from wdmoe_opt.registry import Control, Point
from wdmoe_opt.solvers.deadline import Deadline
from wdmoe_opt.solvers.reference import conclude, single_blocks, solve_apart
from wdmoe_opt.validation import RealArray

if TYPE_CHECKING:
    from wdmoe_opt.formulations.joint_latency import JointLatencyModel

#: Relative accuracy asked of Clarabel's value; the bound is lowered by it.
VALUE_TOLERANCE = 1e-6
#: Selection shares above which a pair is kept, tried in turn.
THRESHOLDS = (0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95)


def restriction(problem: Problem) -> str:
    """Why the convex program does not apply, "" if it does."""
    if problem.max_latency is not None:
        return "it does not do a cap on latency"
    return ""


def convex(problem: Problem, control: Control, max_solves: int = 12) -> Point:
    """Relax, round, repair.

    Parameters
    ----------
    problem : Problem
        Objective "latency", bandwidth shared or per block; both dispatch rules, floors of both kinds.
        Devices with several experts of unlike times, and dispatch "device", loosen the bound.
    control : Control
    max_solves : int
        Most convex programs solved per group of coupled blocks.

    Returns
    -------
    Point
        Bound claimed, where Clarabel reports full accuracy; none elsewhere.
    """
    return solve_apart(problem, control, lambda part, limits: _solve(part, limits, max_solves))


def _solve(problem: Problem, control: Control, max_solves: int) -> Point:
    from wdmoe_opt.formulations.joint_latency import JointLatencyModel

    deadline = Deadline.of(control)
    model = JointLatencyModel(problem)
    value, status = _value(model, deadline)
    if value is None:
        limit = "time" if deadline.left == 0.0 else ""
        return conclude(problem, None, control, limit=limit, detail=f"Clarabel: {status}")
    keep, latency = _rounded(problem, model)
    bound, solves = value, 1
    waits = bool(problem.tables.activation.any() or problem.tables.link_delay.any())
    if waits and problem.instance.blocks == 1:
        bound, keep, solves = _fixed_point(problem, model, deadline, bound, (keep, latency), max_solves)
    elif waits:
        bound, keep, solves = _by_horizon(problem, model, deadline, bound, (keep, latency))
    detail = f"Clarabel: {status}, {solves} program(s); rounded and repaired"
    reached = "" if status == "optimal" else f" ({status}: no bound)"
    return conclude(
        problem,
        keep,
        control,
        bound=bound if not reached else None,
        limit="rounding",
        detail=detail + reached,
    )


def _value(model: JointLatencyModel, deadline: Deadline) -> tuple[float | None, str]:
    """Value in s, lowered by its tolerance, None if there is none; and the status."""
    import cvxpy as cp

    from wdmoe_opt.formulations.common import CLARABEL

    left = {} if math.isinf(deadline.end) else {"time_limit": max(deadline.left, 1e-3)}
    # At a limit CVXPY fills in zeros and prices them; inaccurate statuses are read here, not printed.
    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
        warnings.simplefilter("ignore", UserWarning)
        try:
            model.problem.solve(**CLARABEL, **left)
        except cp.error.SolverError as error:
            return None, str(error).split(".", maxsplit=1)[0]
    status = str(model.problem.status)
    if status not in ("optimal", "optimal_inaccurate") or model.variables["flow"].value is None:
        return None, status
    return float(model.problem.value) * model.data.time_unit * (1 - VALUE_TOLERANCE), status


def _rounded(problem: Problem, model: JointLatencyModel) -> tuple[NDArray[np.bool_], float]:
    """Fastest of the rounded and repaired selections, and its latency, s."""
    share = np.asarray(model.extract().keep)
    best: NDArray[np.bool_] | None = None
    least = math.inf
    for threshold in THRESHOLDS:
        keep = share >= threshold
        heaviest = share == share.max(axis=2, keepdims=True)
        first = heaviest & (np.cumsum(heaviest, axis=2) == 1)
        keep = repair_floors(problem, keep | (first & ~keep.any(axis=2, keepdims=True)))
        latency = price(problem, keep, allocate(problem, *demands(problem, keep)).bandwidth).latency
        if best is None or latency < least:
            best, least = keep, latency
    assert best is not None
    return best, least


def _fixed_point(
    problem: Problem,
    model: JointLatencyModel,
    deadline: Deadline,
    bound: float,
    best: tuple[NDArray[np.bool_], float],
    max_solves: int,
) -> tuple[float, NDArray[np.bool_], int]:
    """Raise the bound min(H, value(H)) of one block; value falls as H grows."""
    keep, latency = best
    low, high = bound, latency
    solves = 1
    while solves < max_solves and deadline.left > 0 and high - low > 1e-7 * high:
        horizon = 0.5 * (low + high)
        model.set_horizon(np.array([horizon]))
        value, status = _value(model, deadline)
        solves += 1
        if status != "optimal" or value is None:
            low = horizon  # most likely too short; a status is no proof, the bound is left as it is
            continue
        bound = max(bound, min(horizon, value))
        low, high = (horizon, min(high, value)) if value > horizon else (max(low, value), horizon)
        rounded = _rounded(problem, model)
        if rounded[1] < latency:
            keep, latency = rounded
    return bound, keep, solves


def _by_horizon(
    problem: Problem,
    model: JointLatencyModel,
    deadline: Deadline,
    bound: float,
    best: tuple[NDArray[np.bool_], float],
) -> tuple[float, NDArray[np.bool_], int]:
    """Raise the bound of blocks that share bandwidth by limiting how long each can take."""
    from wdmoe_opt.formulations.joint_latency import JointLatencyModel

    keep, latency = best
    alone = []
    for part in single_blocks(problem):
        value, status = _value(JointLatencyModel(part), deadline)
        alone.append(value if value is not None and status == "optimal" else 0.0)
        if deadline.left == 0.0:
            return bound, keep, 1 + len(alone)
    least: RealArray = np.array(alone)
    model.set_horizon(latency - (least.sum() - least))
    value, status = _value(model, deadline)
    if value is not None and status == "optimal":
        bound = max(bound, min(value, latency))
        rounded = _rounded(problem, model)
        if rounded[1] < latency:
            keep, latency = rounded
    return bound, keep, 2 + len(alone)
