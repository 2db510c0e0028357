"""The mean form: against enumerated optima, with and without restrictions, in both arithmetics."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from makers import mean_certificate, near_prices, random_prices, random_problem
from test_branches import inside, random_splits, shared_least
from test_check import optimum
from test_exact import inspect, inspect_exactly

from wdmoe_opt import Problem
from wdmoe_opt.certificates.branches import contradictions, restricted
from wdmoe_opt.certificates.check import flat_verdict
from wdmoe_opt.certificates.exact import Block
from wdmoe_opt.certificates.exact import flat_verdict as exact_flat
from wdmoe_opt.certificates.exact_branches import restricted as exact_restricted
from wdmoe_opt.certificates.facts import facts_of


def boundable(seed: int) -> Problem | None:
    """A random problem whose blocks share bandwidth, or that has fixed bandwidth or one block."""
    problem = random_problem(seed)
    apart = problem.allocation == "per-block" and problem.instance.blocks > 1
    return problem.replace(allocation="shared") if apart else problem


@pytest.mark.parametrize("start", range(0, 240, 40))
def test_no_bound_exceeds_the_optimum(start: int) -> None:
    loose, count = [], 0
    for seed in range(start, start + 40):
        problem = boundable(seed)
        best = optimum(problem)
        if best is None:
            continue
        for prices in (near_prices(problem, best), random_prices(problem, seed)):
            c = mean_certificate(prices)
            fast, exact = inspect(problem, c).bound, inspect_exactly(problem, c).bound
            assert fast <= exact <= best.objective * (1 + 1e-12), seed
            if max(fast, exact) > 1e-9 * best.objective:
                assert exact == pytest.approx(fast, rel=1e-7)
            loose.append(1 - max(fast, 0.0) / best.objective)
            count += 1
    assert count > 20
    assert min(loose) < 0.1  # the test has teeth


@pytest.mark.parametrize("start", range(0, 300, 50))
def test_no_leaf_exceeds_its_restricted_optimum(start: int) -> None:
    """Under random restrictions; where one selection is left, some leaves are exact."""
    closest, count = np.inf, 0
    for seed in range(start, start + 50):
        problem = random_problem(seed)
        if not problem.selectable or problem.instance.total_bandwidth is None:
            continue
        problem = problem.replace(allocation="shared")
        if problem.instance.tokens * problem.candidate_columns > 6:
            continue
        best = optimum(problem)
        if best is None:
            continue
        points = shared_least(problem)
        splits = random_splits(problem, best, np.random.default_rng(seed))
        if splits.rows[0][2][0] >= 0 and problem.instance.blocks > 1:
            continue
        blank = splits.tree(dict.fromkeys(splits.open, "empty"))
        for leaf in splits.open:
            facts = restricted(facts_of(problem), blank, leaf)
            inner = [p.block_latency for keep, p in points if inside(problem, blank, leaf, keep, p)]
            left = [float(np.maximum(latency, facts.after).sum()) for latency in inner]
            if contradictions(facts).any() or not left:
                continue
            for prices in (near_prices(problem, best), random_prices(problem, seed)):
                c = mean_certificate(prices)
                blocks = [
                    exact_restricted(Block.of(problem, i), blank, leaf) for i in range(len(facts.light))
                ]
                bound, exactly = flat_verdict(facts, c).bound, exact_flat(blocks, c).bound
                assert bound <= exactly <= min(left) * (1 + 1e-12), (seed, leaf)
                closest = min(closest, 1 - bound / min(left))
                count += 1
    assert count > 10
    assert closest < 0.1


def test_weights_above_one_are_refused() -> None:
    problem = boundable(3)
    c = mean_certificate(near_prices(problem, optimum(problem)))
    heavier = replace(c, work=c.work * (1 + 1e-11))
    for check in (inspect, inspect_exactly):
        verdict = check(problem, heavier)
        assert verdict.bound == -np.inf
        assert verdict.failures[0] == "block 0: the weights of its devices sum to more than 1"


def test_zero_prices_prove_nothing() -> None:
    problem = boundable(3)
    c = mean_certificate(near_prices(problem, optimum(problem)))
    nothing = {name: array * 0 for name, array in c.arrays().items() if name != "points"}
    for check in (inspect, inspect_exactly):
        verdict = check(problem, replace(c, **nothing))
        assert verdict.bound == -np.inf
        assert verdict.failures


def test_the_form_is_not_for_several_blocks_with_bandwidth_of_their_own() -> None:
    seed = next(s for s in range(100) if random_problem(s).instance.blocks == 2)
    problem = random_problem(seed)
    if problem.instance.total_bandwidth is None:
        return
    c = mean_certificate(random_prices(problem, seed))
    apart = problem.replace(allocation="per-block")
    assert "'mean' does not bound" in inspect(apart, c).failures[0]
