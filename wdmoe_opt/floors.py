"""What selections can reach: usable candidates, the richest selection, unreachable floors, repair."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wdmoe_opt.kernels.link import link_times
from wdmoe_opt.problem import FEASIBILITY_TOLERANCE, Problem
from wdmoe_opt.validation import RealArray


def fixed_link_times(problem: Problem) -> RealArray:
    """Seconds per transfer at the fixed bandwidth or on the measured link, (blocks, devices)."""
    t = problem.tables
    if t.fixed_link_time is not None:
        return t.fixed_link_time
    shares = np.atleast_2d(np.asarray(problem.fixed_bandwidth))
    times: RealArray = link_times(shares, t.bits_down, t.c_down, t.bits_up, t.c_up)
    return times


def usable(problem: Problem) -> NDArray[np.bool_]:
    """Candidates whose device can answer in finite time, bool (blocks, tokens, m).

    With allocation "fixed" a device without bandwidth is out, whatever its gain.
    """
    if problem.allocation != "fixed":
        return problem.allowed
    t = problem.tables
    answers = np.isfinite(fixed_link_times(problem))[:, t.expert_device]
    rows = np.arange(t.ids.shape[0])[:, None, None]
    return problem.allowed & answers[rows, np.maximum(t.ids, 0)]


def richest_keep(problem: Problem) -> NDArray[np.bool_]:
    """Every token's heaviest usable candidates up to ``max_experts``, bool (blocks, tokens, m).

    No selection keeps more gate weight, of any token.
    """
    able = usable(problem)
    return able & (np.cumsum(able, axis=2) <= problem.expert_cap)


def token_retention(problem: Problem, keep: NDArray[np.bool_]) -> RealArray:
    """Kept over top-k gate weight of every token, (blocks, tokens)."""
    t = problem.tables
    kept: RealArray = np.where(keep, t.weights, 0.0).sum(axis=2) / t.mass
    return kept


def floor_conflict(problem: Problem, shown: int = 5) -> str:
    """Which floors no selection can meet, what is needed and what is possible; "" if all can be met.

    Parameters
    ----------
    problem : Problem
        With tokens.
    shown : int
        How many offending tokens or blocks are named.
    """
    best = token_retention(problem, richest_keep(problem))
    stuck = ~usable(problem).any(axis=2)
    needed = np.broadcast_to(np.asarray(problem.min_token_retention)[:, None], best.shape)
    mean_needed = np.asarray(problem.min_retention)
    groups = (
        ("no candidate can be served for token", stuck, best, np.zeros_like(best)),
        ("min_token_retention cannot be met by token", _short(best, needed) & ~stuck, best, needed),
        ("min_retention cannot be met by block", _short(best.mean(axis=1), mean_needed), best.mean(axis=1),
         mean_needed),
    )  # fmt: skip
    parts = []
    for words, bad, possible, need in groups:
        where = [tuple(int(i) for i in index) for index in np.argwhere(bad)]
        named = [f"{list(w)} (needs {need[w]:.6g}, possible {possible[w]:.6g})" for w in where[:shown]]
        if where:
            more = f" and {len(where) - shown} more" if len(where) > shown else ""
            parts.append(f"{words} {', '.join(named)}{more}")
    return "; ".join(parts)


def repair_floors(problem: Problem, keep: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Nearest obvious selection that keeps all floors, caps and candidates, if any does.

    Tokens that break a rule of their own take their richest option; then, block by block, the tokens
    that gain most per added expert do, until the mean floor holds.

    Parameters
    ----------
    problem : Problem
        With floors that can be met, see `floor_conflict`.
    keep : bool array (blocks, tokens, m)
    """
    rich = richest_keep(problem)
    best = token_retention(problem, rich)
    keep = keep & usable(problem)
    now = token_retention(problem, keep)
    count = keep.sum(axis=2)
    needed = np.asarray(problem.min_token_retention)[:, None]
    broken = (count == 0) | (count > problem.expert_cap) | _short(now, needed)
    keep[broken] = rich[broken]
    now[broken] = best[broken]
    added = np.maximum(rich.sum(axis=2) - keep.sum(axis=2), 0) + 0.5
    for i, floor in enumerate(np.asarray(problem.min_retention)):
        for j in np.argsort((now[i] - best[i]) / added[i], kind="stable"):
            if not _short(now[i].mean(), floor):
                break
            keep[i, j], now[i, j] = rich[i, j], best[i, j]
    return keep


def _short(value: RealArray, floor: RealArray) -> NDArray[np.bool_]:
    """Whether a floor is missed, by the metric's tolerance."""
    missed: NDArray[np.bool_] = value < floor * (1 - FEASIBILITY_TOLERANCE)
    return missed
