"""What no solution may break, as a list of faults in words; prices are those of the plain-Python oracle."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, get_args

import numpy as np

from wdmoe_opt.certificates.certify import certify
from wdmoe_opt.certificates.check import recompute
from wdmoe_opt.problem import Problem
from wdmoe_opt.registry import Point, Reason, SolverInfo
from wdmoe_opt.solution import Solution
from wdmoe_opt.testing import oracles

#: Relative difference of two ways of adding up the same price.
ROUNDING = 1e-9
#: Relative gap up to which a solver may say "optimal" where it was not asked for another.
OPTIMAL_GAP = 1e-3


def solution_faults(
    info: SolverInfo, solution: Solution, *, optimum: float | None = None, rel_gap: float = OPTIMAL_GAP
) -> list[str]:
    """What is wrong with a solution, given what its solver declares.

    Parameters
    ----------
    info : SolverInfo
    solution : Solution
    optimum : float, optional
        Best value of the objective: bounds and claims of optimality are held against it.
    rel_gap : float
        What the solver was asked for.
    """
    end = solution.termination
    found = []
    if solution.method != info.name:
        found.append(f"is signed {solution.method!r}, not {info.name!r}")
    if end.reason not in get_args(Reason):
        found.append(f"ends with {end.reason!r}, which is none of {', '.join(get_args(Reason))}")
    if end.reason in ("infeasible", "no-solution"):
        return [*found, *_faults_without_point(solution, optimum)]
    return [
        *found,
        *point_faults(info, solution),
        *bound_faults(info, solution, optimum, rel_gap),
        *trace_faults(solution, optimum),
    ]


def _faults_without_point(solution: Solution, optimum: float | None) -> Iterator[str]:
    if solution.keep is not None or solution.bandwidth is not None:
        yield f"ends with {solution.termination.reason!r} and hands out a point"
    if solution.latency != math.inf or solution.feasible:
        yield f"ends with {solution.termination.reason!r} and latency {solution.latency}"
    if solution.termination.reason == "infeasible" and optimum is not None and math.isfinite(optimum):
        yield f"ends with 'infeasible', the optimum is {optimum!r}"


# ---------------------------------------------------------------------- the point


def point_faults(info: SolverInfo, solution: Solution) -> Iterator[str]:
    """Held against the oracle: prices, candidates, bandwidth, and floors where they are declared."""
    problem = solution.problem
    arrays = problem.instance.arrays()
    priced = oracles.price(arrays, solution.keep, solution.bandwidth, dispatch=problem.dispatch)
    for name, value in oracle_values(problem, priced).items():
        claimed = solution.wlr[name] if name.startswith("wlr") else getattr(solution, name)
        if not _same(claimed, value):
            yield f"prices its {name} at {claimed!r}, the oracle at {value!r}"
    hard = oracles.broken(
        arrays,
        solution.keep,
        solution.bandwidth,
        candidates=problem.candidate_columns if problem.selectable else None,
        fixed=problem.fixed_bandwidth if problem.allocation == "fixed" else None,
    )
    yield from hard
    soft = _floor_faults(problem, solution, priced.latency)
    if info.honours_floors:
        yield from (f"declares to honour floors, but {fault}" for fault in soft)
    if solution.feasible == bool(hard or soft):
        yield f"calls itself {'' if solution.feasible else 'not '}feasible, the oracle finds {hard + soft}"


def oracle_values(problem: Problem, priced: Any) -> dict[str, float]:
    """What the oracle's price says of latency, retention and the ratios."""
    values = {"latency": priced.latency, "retention": priced.retention}
    if problem.selectable:
        values |= {name: float(np.mean(ratios)) for name, ratios in priced.wlr.items()}
    return values


def _floor_faults(problem: Problem, solution: Solution, latency: float) -> list[str]:
    """Floors, caps and finite latency, by the oracle."""
    found = []
    if problem.selectable:
        floors = tuple(
            np.asarray(floor).tolist() for floor in (problem.min_retention, problem.min_token_retention)
        )
        found = oracles.short(
            problem.instance.arrays(),
            solution.keep,
            solution.bandwidth,
            floors=(floors[0], floors[1]),
            max_experts=problem.max_experts,
        )
    if not math.isfinite(latency):
        found.append("its latency is infinite")
    cap = problem.max_latency
    if cap is not None and latency > cap * (1 + oracles.TOLERANCE):
        found.append(f"its latency {latency} is above max_latency {cap}")
    return found


def _same(first: float, second: float) -> bool:
    return first == second or abs(first - second) <= ROUNDING * abs(second)


# ---------------------------------------------------------------------- what is claimed


def bound_faults(
    info: SolverInfo, solution: Solution, optimum: float | None, rel_gap: float = OPTIMAL_GAP
) -> Iterator[str]:
    """Held against the solution's own value, the optimum, and the certificate."""
    sign, value, bound = _sign(solution.problem), solution.objective, solution.lower_bound
    optimal = solution.termination.reason == "optimal"
    if optimum is not None and optimal and sign * (value - optimum) > (rel_gap + ROUNDING) * abs(optimum):
        yield f"says 'optimal' at {value!r}, the optimum is {optimum!r}"
    if optimum is not None and solution.feasible and sign * (optimum - value) > ROUNDING * abs(optimum):
        yield f"has the value {value!r}, better than the optimum {optimum!r}"
    if solution.termination.limit == "check":
        yield f"claims more than it can show: {solution.termination.detail}"
    if solution.bound_kind == "none":
        if info.bound == "certified":
            yield "declares certified bounds and gives none"
        return
    if info.bound == "none":
        yield "declares no bounds and gives one"
    if info.bound == "certified" and solution.bound_kind != "certified":
        yield f"declares certified bounds, its bound {bound!r} is only claimed"
    if optimum is not None and sign * (bound - optimum) > ROUNDING * abs(optimum):
        yield f"has the bound {bound!r}, beyond the optimum {optimum!r}"
    if solution.bound_kind == "certified":
        yield from (f"certify(): {text}" for text in certify(solution.problem, solution).failures)


def trace_faults(solution: Solution, optimum: float | None) -> Iterator[str]:
    """Values and bounds on the way, where all blocks are one group and latency is asked for."""
    problem = solution.problem
    coupled = problem.allocation == "shared" or problem.instance.blocks == 1
    if optimum is None or not coupled or problem.objective != "latency":
        return
    for step, record in enumerate(solution.trace):
        if record.get("objective", math.inf) < optimum * (1 - ROUNDING):
            yield f"traces the value {record['objective']!r} in step {step}, the optimum is {optimum!r}"
        if record.get("bound", -math.inf) > optimum * (1 + ROUNDING):
            yield f"traces the bound {record['bound']!r} in step {step}, the optimum is {optimum!r}"


def certificate_faults(problem: Problem, point: Point) -> Iterator[str]:
    """Hold what a solver with certified bounds believes against what its certificate proves."""
    if point.empty:
        return
    if point.certificate is None:
        yield "declares certified bounds and hands out no certificate"
        return
    proved = recompute(problem, point.certificate)
    if not (math.isfinite(proved) and abs(point.lower_bound - proved) <= 1e-6 * abs(proved)):
        yield f"believes the bound {point.lower_bound!r}, its certificate proves {proved!r}"


def _sign(problem: Problem) -> float:
    """1 where the objective is minimised, -1 where it is maximised."""
    return 1.0 if problem.objective == "latency" else -1.0
