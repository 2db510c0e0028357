"""Plain top-k routing: the baseline at equal bandwidth, and with the best bandwidth."""

from __future__ import annotations

import numpy as np

from wdmoe_opt.bandwidth import allocate, demands
from wdmoe_opt.problem import Problem
from wdmoe_opt.registry import Control, Point, Termination
from wdmoe_opt.validation import RealArray


def top_k_uniform(problem: Problem, control: Control) -> Point:
    """Keep every reachable top-k expert and split the bandwidth equally.

    Parameters
    ----------
    problem : Problem
    control : Control

    Notes
    -----
    The "Mixtral-based" baseline of papers A and B. With allocation "fixed" the given bandwidth stands.
    """
    keep = problem.top_k_keep if problem.selectable else None
    return Point(keep, equal_bandwidth(problem), Termination("heuristic", detail="plain top-k"))


def top_k(problem: Problem, control: Control) -> Point:
    """Keep every reachable top-k expert and allocate the bandwidth exactly (P-BW, fact 2).

    Parameters
    ----------
    problem : Problem
    control : Control
    """
    keep = problem.top_k_keep if problem.selectable else None
    best = allocate(problem, *demands(problem, keep))
    detail = "plain top-k, optimal bandwidth"
    return Point(
        keep, best.bandwidth, Termination("heuristic", detail=detail), kkt_residual=best.kkt_residual
    )


def equal_bandwidth(problem: Problem) -> RealArray | None:
    """Equal shares in the shape of the allocation; what is fixed where it is; None on a measured link."""
    if problem.allocation == "fixed":
        return problem.fixed_bandwidth
    share = problem.uniform_bandwidth
    if problem.allocation == "per-block" and share is not None:
        return np.tile(share, (problem.instance.blocks, 1))
    return share
