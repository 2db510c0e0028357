"""Solvers that misbehave, as a plugin: what a benchmark must survive and say."""

import os
import time

import numpy as np

import wdmoe_opt as wo
from wdmoe_opt.solvers.topk import top_k_uniform


def failing(problem, control):
    raise RuntimeError("no idea what to do")


def hanging(problem, control):
    time.sleep(1e6)


def dying(problem, control):
    os._exit(7)


def malformed(problem, control):
    return wo.Point(
        problem.top_k_keep, np.full(problem.instance.devices, np.nan), wo.Termination("heuristic")
    )


def lying(problem, control):
    """Plain top-k, called optimal."""
    point = top_k_uniform(problem, control)
    return wo.Point(point.keep, point.bandwidth, wo.Termination("optimal"))


def overbound(problem, control):
    """A bound above what others reach."""
    point = top_k_uniform(problem, control)
    value = wo.evaluate(problem, point.keep, point.bandwidth).latency
    end = wo.Termination("feasible-at-limit", "time")
    return wo.Point(point.keep, point.bandwidth, end, lower_bound=value, bound_kind="claimed")


def infeasible(problem, control):
    """Ten times the bandwidth there is, called optimal."""
    bandwidth = problem.uniform_bandwidth * 10
    return wo.Point(problem.top_k_keep, bandwidth, wo.Termination("optimal"))


def empty(problem, control):
    return wo.Point.nothing("no-solution", "time", "ran out of time")


def chatty(problem, control):
    """Prints more than a pipe holds."""
    print("x" * 1_000_000)
    os.write(1, b"y" * 1_000_000)
    return top_k_uniform(problem, control)


for solver in (failing, hanging, dying, malformed, lying, overbound, infeasible, empty, chatty):
    wo.register_solver(solver.__name__, solver, summary=f"test: {solver.__name__}", objectives=("latency",))
