"""Exact oracle for the weight-to-latency ratio of tiny instances: every selection of every block.

At fixed bandwidth a selection has one price. With bandwidth per block the best one for the reading per
block, kept weight over latency, is that of least latency. The other readings would need a bandwidth of
their own for every selection: they are refused.
"""

from __future__ import annotations

from itertools import product
from math import prod

import numpy as np

from wdmoe_opt.bandwidth import allocate, demands
from wdmoe_opt.floors import usable
from wdmoe_opt.metrics import price
from wdmoe_opt.problem import Problem
from wdmoe_opt.registry import Control, Point, Termination
from wdmoe_opt.solvers.deadline import Deadline, OutOfTimeError
from wdmoe_opt.solvers.reference import solve_apart
from wdmoe_opt.solvers.token_options import token_options, too_many


def restriction(problem: Problem) -> str:
    """Why a ratio cannot be enumerated, "" if it can."""
    if not problem.objective.startswith("wlr") or problem.allocation == "fixed":
        return ""
    if problem.objective != "wlr-block":
        return f"it does objective {problem.objective!r} only at fixed bandwidth"
    if problem.allocation == "shared" and problem.instance.blocks > 1:
        return "it does not do objective 'wlr-block' with bandwidth shared by several blocks"
    return ""


def best_ratio(problem: Problem, deadline: Deadline, max_states: int) -> Point:
    """Best selection of every block by the problem's reading; see `enumerate_loads`."""
    control = Control(time_limit=None if deadline.left == float("inf") else deadline.left)
    return solve_apart(problem, control, lambda part, _: _best(part, deadline, max_states))


def _best(problem: Problem, deadline: Deadline, max_states: int) -> Point:
    able = usable(problem)
    blocks, tokens, _ = able.shape
    options = [token_options(problem, able, i, j) for i in range(blocks) for j in range(tokens)]
    count = prod(len(o) for o in options)
    if count > max_states:
        raise too_many(f"there are {count} selections, more than {max_states}")
    best: Point | None = None
    value = -float("inf")
    try:
        for chosen in product(*options):
            deadline.check()
            keep = np.array(chosen).reshape(able.shape)
            allocation = allocate(problem, *demands(problem, keep))
            priced = price(problem, keep, allocation.bandwidth)
            if priced.feasible and priced.objective > value:
                value = priced.objective
                end = Termination("optimal", detail=f"best of {count} selections")
                best = Point(
                    keep,
                    allocation.bandwidth,
                    end,
                    lower_bound=value * (1 + 1e-9),
                    bound_kind="claimed",
                    kkt_residual=allocation.kkt_residual,
                )
    except OutOfTimeError:
        return Point.nothing("no-solution", "time", "the time limit passed before all selections were priced")
    return best or Point.nothing("infeasible", detail=f"none of {count} selections keeps all floors and caps")
