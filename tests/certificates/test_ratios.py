"""Bounds on the weight-to-latency ratio: never below an optimum, tight on easy cases, and tampering."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from makers import deadline_certificate, near_prices, random_problem

import wdmoe_opt as wo
from wdmoe_opt import Certificate, Problem
from wdmoe_opt.certificates.check import inspect, recompute
from wdmoe_opt.certificates.exact import inspect_exactly
from wdmoe_opt.certificates.facts import facts_of
from wdmoe_opt.certificates.ratios import most_weight
from wdmoe_opt.floors import floor_conflict


def ratio_problem(seed: int, objective: str) -> tuple[Problem, wo.Solution] | None:
    """A tiny problem with that objective and its optimum; None where it is out of reach."""
    problem = random_problem(seed)
    if not problem.selectable:
        return None
    if objective == "wlr-token" and problem.allocation != "fixed":
        return None
    several = problem.instance.blocks > 1
    allocation = "per-block" if problem.allocation == "shared" and several else problem.allocation
    problem = problem.replace(objective=objective, allocation=allocation)
    if floor_conflict(problem):
        return None
    try:
        best = wo.solve(problem, "enumerate", max_states=2000, time_limit=3)
    except wo.UnsupportedError:
        return None
    return (problem, best) if best.termination.reason == "optimal" else None


def ratio_certificate(problem: Problem, best: wo.Solution) -> Certificate:
    """Near prices; the smallest ratios that they prove, found by bisection of every block alone."""
    prices = near_prices(problem, best)
    floor = deadline_certificate(problem, prices, best.block_latency * 2)
    value = np.maximum(best.evaluation.block_wlr["wlr-block"], 1e-9)
    top = most_weight(facts_of(problem))

    def at(ratio: np.ndarray) -> Certificate:
        first = np.maximum(floor.deadline, 0.0)
        last = np.maximum(top / ratio * (1 + 1e-9), first)
        steps = np.linspace(0, 1, 20)
        grid = first[:, None] + (last - first)[:, None] * steps**2
        grid[:, -1] = last
        claim = {"weight": 1 / value, "ratio": ratio, "grid": grid}
        known = floor if (floor.deadline > 0).any() else None
        return Certificate(form="ratio", floor=known, **claim, **prices)

    low, high = value * 0.5, value * 1e4
    for _ in range(40):
        middle = np.sqrt(low * high)
        failed = " ".join(inspect(problem, at(middle)).failures)
        fails = np.array([f"block {i}:" in failed for i in range(value.size)])
        low, high = np.where(fails, middle, low), np.where(fails, high, middle)
    return at(high)


@pytest.mark.parametrize("start", range(0, 80, 20))
def test_ratio_per_block_is_bounded_from_above(start: int) -> None:
    loose, count = [], 0
    for seed in range(start, start + 20):
        found = ratio_problem(seed, "wlr-block")
        if found is None:
            continue
        problem, best = found
        c = ratio_certificate(problem, best)
        bound, exact = recompute(problem, c), inspect_exactly(problem, c).bound
        assert bound >= best.objective * (1 - 1e-12)
        assert exact >= best.objective * (1 - 1e-12)
        assert exact <= bound
        assert not np.isfinite(bound) or exact == pytest.approx(bound, rel=1e-9)
        loose.append(bound / best.objective - 1)
        count += 1
    assert count > 4
    assert np.quantile(loose, 0.3) < 0.3


@pytest.mark.parametrize("seed", range(60))
def test_ratio_per_token_is_bounded_from_above(seed: int) -> None:
    found = ratio_problem(seed, "wlr-token")
    if found is None:
        return
    problem, best = found
    bounds = []
    top = best.objective * np.r_[0.0, np.geomspace(1e-3, 10, 20)]
    for mu in top:
        c = Certificate(form="token-ratio", retention=np.full(problem.instance.blocks, mu))
        bound, exact = recompute(problem, c), inspect_exactly(problem, c).bound
        assert bound >= best.objective * (1 - 1e-12)
        assert exact <= bound
        assert exact >= best.objective * (1 - 1e-12)
        bounds.append(bound)
    if not np.asarray(problem.min_retention).any():
        assert bounds[0] == pytest.approx(best.objective, rel=1e-6)  # tokens are then independent


def test_lowered_ratio_short_grid_and_zero_claim_fail() -> None:
    problem, best = next(filter(None, (ratio_problem(seed, "wlr-block") for seed in range(9, 50))))
    c = ratio_certificate(problem, best)
    assert np.isfinite(recompute(problem, c))
    lower = inspect(problem, replace(c, ratio=c.ratio * (1 - 1e-6)))
    assert lower.bound == np.inf
    assert "block 0" in lower.failures[0]
    assert inspect_exactly(problem, replace(c, ratio=c.ratio * (1 - 1e-6))).bound == np.inf
    short = inspect(problem, replace(c, grid=c.grid[:, :-1]))
    assert "does not cover" in short.failures[0]
    zero = inspect(problem, replace(c, ratio=c.ratio * 0))
    assert "greater than 0" in zero.failures[0]
