"""Bonmin, shipped with CasADi: branch and bound over nonlinear programs, exact only if they are convex.

The reduced program is not convex in (selection, share), so that Bonmin's own bound is none.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from wdmoe_opt.benchmarks.peers.reduced import ReducedProgram
from wdmoe_opt.problem import Problem
from wdmoe_opt.registry import Control, Point
from wdmoe_opt.solvers.deadline import Deadline
from wdmoe_opt.solvers.reference import conclude, solve_apart


def probe() -> str:
    """What CasADi lacks, "" if nothing."""
    import casadi

    return "" if casadi.has_nlpsol("bonmin") else "this CasADi was built without Bonmin"


def bonmin(problem: Problem, control: Control, algorithm: str = "B-BB") -> Point:
    """Solve the joint program by Bonmin; "B-BB" is the algorithm its manual advises for non-convex ones."""
    return solve_apart(problem, control, lambda part, limits: _solve(part, limits, algorithm))


def _solve(problem: Problem, control: Control, algorithm: str) -> Point:
    import casadi

    deadline = Deadline.of(control)
    program = ReducedProgram(problem)
    bounds = program.variables
    x = casadi.SX.sym("x", bounds.low.size)
    objective, rules = program.build(casadi.vertsplit(x), casadi.log)
    options: dict[str, Any] = {
        "algorithm": algorithm,
        "allowable_fraction_gap": max(control.rel_gap, 1e-9),
        "bb_log_level": 0,
        "nlp_log_level": 0,
        "print_level": 0,
        "sb": "yes",
    }
    if control.time_limit is not None:
        options["time_limit"] = max(control.time_limit, 1e-3)
    settings: dict[str, Any] = {
        "discrete": bounds.binary.tolist(),
        "print_time": False,
        "error_on_fail": False,
        "bonmin": options,
    }
    engine = casadi.nlpsol(
        "engine", "bonmin", {"x": x, "f": objective, "g": casadi.vertcat(*rules)}, settings
    )
    found = engine(x0=bounds.start, lbx=bounds.low, ubx=bounds.high, lbg=-math.inf, ubg=0.0)
    words = str(engine.stats()["return_status"])
    late = "time" if deadline.left == 0.0 or "LIMIT" in words else ""
    point = np.array(found["x"]).ravel()
    usable = np.isfinite(point).all() and float(found["f"]) < 1e6
    if not usable or words in ("INFEASIBLE", "NO_SOLUTION_KNOWN"):
        return conclude(problem, None, control, limit=late, detail=f"Bonmin: {words}")
    return conclude(problem, program.keep(point), control, limit=late, detail=f"Bonmin: {words}")
