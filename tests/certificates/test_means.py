"""The mean form: against enumerated optima, with and without restrictions, in both arithmetics."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from makers import mean_certificate, near_prices, random_prices, random_problem
from profiles import enough, few
from test_branches import inside, random_splits, shared_least
from test_check import optimum

import wdmoe_opt as wo
from wdmoe_opt import Certificate, Problem
from wdmoe_opt.benchmarks.agreement import tiny_problem
from wdmoe_opt.certificates.branches import contradictions, restricted
from wdmoe_opt.certificates.check import flat_verdict, inspect
from wdmoe_opt.certificates.exact import Block, inspect_exactly
from wdmoe_opt.certificates.exact import flat_verdict as exact_flat
from wdmoe_opt.certificates.exact_branches import restricted as exact_restricted
from wdmoe_opt.certificates.facts import facts_of
from wdmoe_opt.certificates.tree import LOAD


def boundable(seed: int) -> Problem | None:
    """A random problem whose blocks share bandwidth, or that has fixed bandwidth or one block."""
    problem = random_problem(seed)
    apart = problem.allocation == "per-block" and problem.instance.blocks > 1
    return problem.replace(allocation="shared") if apart else problem


@pytest.mark.parametrize("start", range(0, 240, 40))
def test_no_bound_exceeds_the_optimum(start: int) -> None:
    loose, count = [], 0
    for seed in range(start, start + few(40)):
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
    assert enough(count, 20)
    assert enough(0.1, min(loose))  # the test has teeth


@pytest.mark.compiled
@pytest.mark.parametrize("start", range(0, 300, 50))
def test_no_leaf_exceeds_its_restricted_optimum(start: int) -> None:
    """Under random restrictions; where one selection is left, some leaves are exact."""
    closest, count = np.inf, 0
    for seed in range(start, start + few(50)):
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
    assert enough(count, 10)
    assert enough(0.1, closest)


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


@pytest.fixture(scope="module")
def closed() -> wo.Solution:
    """Two blocks that share bandwidth, activation and delays, closed by branches of this form."""
    found = wo.solve(tiny_problem(304), "exact", rel_gap=1e-6)
    forms = {leaf.form for leaf in found.certificate.tree.leaves.values() if leaf != "empty"}
    assert forms == {"mean"}
    assert wo.certify(found.problem, found)
    return found


@pytest.mark.parametrize("name", ["send", "wake", "share", "retention", "points"])
def test_edited_leaves_prove_no_falsehood(closed: wo.Solution, name: str) -> None:
    """Where the loads are decided these prices may cancel; the bound stays below the optimum."""
    leaves = closed.certificate.tree.leaves
    for factor in (0.5, 0.99, 1.01, 3.0):
        scaled = {
            node: leaf
            if leaf == "empty" or getattr(leaf, name) is None
            else replace(leaf, **{name: getattr(leaf, name) * factor})
            for node, leaf in leaves.items()
        }
        edited = Certificate(form="tree", tree=replace(closed.certificate.tree, leaves=scaled))
        assert inspect(closed.problem, edited).bound <= closed.latency * (1 + 1e-12)


@pytest.mark.parametrize("name", ["work", "bandwidth"])
def test_edited_leaves_no_longer_prove_the_claim(closed: wo.Solution, name: str) -> None:
    """Both checks notice, even if the digest is made anew."""
    tree = closed.certificate.tree
    factor = 0.99 if name == "work" else 1.01
    leaves = {
        node: leaf if leaf == "empty" else replace(leaf, **{name: getattr(leaf, name) * factor})
        for node, leaf in tree.leaves.items()
    }
    edited = Certificate(form="tree", tree=replace(tree, leaves=leaves))
    lying = replace(closed, certificate=edited.sealed(closed.problem, closed.lower_bound))
    assert not wo.certify(closed.problem, lying)
    assert not wo.certify(closed.problem, lying, exact=True)


def test_leaves_do_not_prove_their_claim_under_other_limits(closed: wo.Solution) -> None:
    tree = closed.certificate.tree
    load = tree.kind == LOAD
    assert load.any()
    looser = replace(tree, value=np.where(load, tree.value + 1, tree.value))
    edited = Certificate(form="tree", tree=looser)
    assert inspect(closed.problem, edited).bound < closed.lower_bound * (1 - 1e-6)
    assert inspect_exactly(closed.problem, edited).bound < closed.lower_bound * (1 - 1e-6)
