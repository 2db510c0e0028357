"""Bounds on the weight-to-latency ratio: never below an optimum, tight on easy cases, and tampering."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from makers import deadline_certificate, near_prices, random_problem
from profiles import enough, few

import wdmoe_opt as wo
from wdmoe_opt import Certificate, Instance, Problem
from wdmoe_opt.certificates.check import inspect, recompute
from wdmoe_opt.certificates.exact import inspect_exactly
from wdmoe_opt.certificates.facts import facts_of
from wdmoe_opt.certificates.ratios import most_weight
from wdmoe_opt.floors import floor_conflict
from wdmoe_opt.testing.arrays import Shape, random_arrays


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


def ratio_certificate(problem: Problem, best: wo.Solution) -> Certificate | None:
    """Near prices in units of weight, with the best price of retention; None if no latency is ruled out."""
    prices = near_prices(problem, best)
    floor = deadline_certificate(problem, prices, best.block_latency * 2)
    if not (floor.deadline > 0).all():
        return None
    ratio = np.maximum(best.evaluation.block_wlr["wlr-block"], 1e-9)
    last = 1 / floor.deadline * (1 + 1e-9)
    first = np.minimum(ratio / most_weight(facts_of(problem)), last)
    grid = first[:, None] * (last / first)[:, None] ** np.linspace(0, 1, 12)
    grid[:, -1] = last
    scaled = {k: v * ratio.reshape(-1, *[1] * (v.ndim - 1)) for k, v in prices.items()}
    scaled["points"] = prices["points"]
    scaled["bandwidth"] = scaled["bandwidth"] / best.block_latency[:, None]
    mean = problem.tables.mass.mean(axis=1)
    tries = [
        Certificate(form="ratio", floor=floor, grid=grid, **scaled | {"retention": retention})
        for retention in (
            0 * mean,
            np.maximum(scaled["retention"] - mean, 0),
            *(mean * f for f in (0.3, 1, 3)),
        )
    ]
    return min(tries, key=lambda c: recompute(problem, c))


@pytest.mark.compiled
@pytest.mark.parametrize("start", range(0, 80, 20))
def test_ratio_per_block_is_bounded_from_above(start: int) -> None:
    loose, count = [], 0
    for seed in range(start, start + few(20)):
        found = ratio_problem(seed, "wlr-block")
        if found is None:
            continue
        problem, best = found
        c = ratio_certificate(problem, best)
        if c is None:
            continue
        bound = recompute(problem, c)
        assert bound >= best.objective * (1 - 1e-12)
        if seed % 4 == 0:
            exact = inspect_exactly(problem, c).bound
            assert best.objective * (1 - 1e-12) <= exact <= bound
            assert not np.isfinite(bound) or exact == pytest.approx(bound, rel=1e-9)
        loose.append(bound / best.objective - 1)
        count += 1
    assert enough(count, 4)
    assert np.quantile(loose, 0.3) < 0.2


@pytest.mark.parametrize("allocation", ["per-block", "shared", "fixed"])
def test_ratio_per_block_is_the_same_in_both_arithmetics(allocation: str) -> None:
    """Of one block, with and without a price of bandwidth."""
    shape = Shape(
        blocks=1, tokens=2, devices=2, per_device=2, hosts=True, activation=True, times_per_expert=True
    )
    compared = 0
    for seed in range(few(10)):
        instance = Instance.from_arrays(**random_arrays(shape, seed))
        problem = Problem(instance, objective="wlr-block", allocation=allocation, min_retention=0.6)
        best = wo.solve(problem, "enumerate")
        c = ratio_certificate(problem, best)
        if c is None:
            continue
        fast, exact = recompute(problem, c), inspect_exactly(problem, c).bound
        assert best.objective * (1 - 1e-12) <= exact <= fast
        assert exact == pytest.approx(fast, rel=1e-9)
        compared += 1
    assert compared


@pytest.mark.parametrize("seed", range(60))
def test_ratio_per_token_is_bounded_from_above(seed: int) -> None:
    found = ratio_problem(seed, "wlr-token")
    if found is None:
        return
    problem, best = found
    bounds = []
    top = best.objective * np.r_[0.0, np.geomspace(1e-3, 10, 6)]
    for mu in top:
        c = Certificate(form="token-ratio", retention=np.full(problem.instance.blocks, mu))
        bound, exact = recompute(problem, c), inspect_exactly(problem, c).bound
        assert bound >= best.objective * (1 - 1e-12)
        assert exact <= bound
        assert exact >= best.objective * (1 - 1e-12)
        bounds.append(bound)
    if not np.asarray(problem.min_retention).any():
        assert bounds[0] == pytest.approx(best.objective, rel=1e-6)  # tokens are then independent


def test_short_grid_false_floor_and_lowered_claim_fail() -> None:
    problem, best = next(filter(None, (ratio_problem(seed, "wlr-block") for seed in range(9, 50))))
    c = ratio_certificate(problem, best)
    assert c is not None
    bound = recompute(problem, c)
    assert np.isfinite(bound)
    short = replace(c, grid=c.grid[:, :-1])
    assert "does not cover" in inspect(problem, short).failures[0]
    assert "does not cover" in inspect_exactly(problem, short).failures[0]
    late = replace(c, floor=replace(c.floor, deadline=c.floor.deadline * 10))
    assert "floor" in inspect(problem, late).failures[0]
    assert inspect_exactly(problem, late).bound == np.inf
    claim = replace(best, lower_bound=bound, bound_kind="certified", certificate=c.sealed(problem, bound))
    assert wo.certify(problem, claim)
    assert not wo.certify(problem, replace(claim, lower_bound=bound * (1 - 1e-6)))


def test_one_bandwidth_for_all_blocks_proves_no_more_than_one_for_each() -> None:
    """The same prices: a hertz is paid for once by all blocks together, or once by each."""
    compared = 0
    for problem, best in filter(None, (ratio_problem(seed, "wlr-block") for seed in range(80))):
        c = ratio_certificate(problem, best) if problem.allocation == "per-block" else None
        if c is None:
            continue
        # From latency infinity on: all the weight before the first value is taken into account differently.
        c = replace(c, grid=np.hstack([np.zeros((len(c.grid), 1)), c.grid]))
        joint = problem.replace(allocation="shared")
        bound = recompute(joint, c)
        assert bound <= recompute(problem, c) * (1 + 1e-9)
        assert inspect_exactly(joint, c).bound <= bound
        compared += problem.instance.blocks > 1
    assert compared >= 3
