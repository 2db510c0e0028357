"""Gurobi through Pyomo's direct interface, as `minlp` runs it; says where its size-limited licence ends."""

from __future__ import annotations

from wdmoe_opt.problem import Problem
from wdmoe_opt.registry import Control, Point
from wdmoe_opt.solvers.minlp import minlp


def gurobi(problem: Problem, control: Control) -> Point:
    """Solve the joint problem by Gurobi; bound claimed."""
    try:
        return minlp(problem, control, backend="gurobi")
    except Exception as error:
        words = " ".join(str(error).split())
        if "size-limited" not in words:
            raise
        return Point.nothing("no-solution", "licence", f"gurobi: {words[:200]}")
