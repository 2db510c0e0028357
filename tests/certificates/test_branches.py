"""Trees: every leaf against the enumerated optimum of its restricted problem, and broken trees."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from makers import largest_deadlines, near_prices, random_prices, random_problem, shared_certificate
from profiles import enough, few
from test_check import optimum, random_tolls

import wdmoe_opt as wo
from wdmoe_opt import Certificate, Problem
from wdmoe_opt.bandwidth import allocate, demands
from wdmoe_opt.certificates.branches import contradictions, one_block, restricted
from wdmoe_opt.certificates.check import flat_verdict, inspect, recompute
from wdmoe_opt.certificates.exact import Block, inspect_exactly
from wdmoe_opt.certificates.exact import flat_verdict as exact_flat
from wdmoe_opt.certificates.exact_branches import restricted as exact_restricted
from wdmoe_opt.certificates.facts import facts_of
from wdmoe_opt.certificates.tree import DEADLINE, EXPERT, LOAD, PAIR, ROOT, Tree
from wdmoe_opt.floors import usable
from wdmoe_opt.metrics import price
from wdmoe_opt.solvers.token_options import token_options


class Splits:
    """A tree in the making."""

    def __init__(self, roots: list[int]) -> None:
        self.rows = [(-1, ROOT, (block, -1, -1), 0.0, 0) for block in roots]
        self.open = list(range(len(roots)))

    def split(self, node: int, kind: int, index: tuple[int, ...], value: float) -> None:
        full = (*index, -1, -1)[:3]
        self.open.remove(node)
        for side in (0, 1):
            self.open.append(len(self.rows))
            self.rows.append((node, kind, full, value, side))

    def tree(self, leaves: dict) -> Tree:
        parent, kind, index, value, side = zip(*self.rows, strict=True)
        return Tree(parent=parent, kind=kind, index=index, value=value, side=side, leaves=leaves)


def random_splits(problem: Problem, best: wo.Solution, rng: np.random.Generator) -> Splits:
    inst = problem.instance
    splits = Splits(list(range(inst.blocks)) if rng.random() < 0.7 or inst.blocks == 1 else [-1])
    for _ in range(int(rng.integers(1, 5))):
        node = int(rng.choice(splits.open))
        root = node
        while splits.rows[root][0] >= 0:
            root = splits.rows[root][0]
        block = splits.rows[root][2][0]
        i = int(rng.integers(inst.blocks)) if block < 0 else block
        kind = int(rng.choice([PAIR, EXPERT, LOAD, DEADLINE]))
        if kind == PAIR:
            index = (i, int(rng.integers(inst.tokens)), int(rng.integers(problem.candidate_columns)))
        elif kind == EXPERT:
            index = (i, int(rng.integers(inst.experts)))
        elif kind == LOAD:
            index = (i, int(rng.integers(inst.devices)))
        else:
            index = (i,)
        value = {LOAD: float(rng.integers(0, 3)), DEADLINE: best.block_latency[i] * rng.uniform(0.6, 1.6)}
        splits.split(node, kind, index, value.get(kind, 0.0))
    return splits


def tree_certificate(problem: Problem, best: wo.Solution, seed: int, *, near: bool) -> Certificate:
    """A random tree, every leaf with the largest deadlines its prices prove."""
    splits = random_splits(problem, best, np.random.default_rng(seed))
    blank = splits.tree(dict.fromkeys(splits.open, "empty"))
    prices = near_prices(problem, best) if near else random_prices(problem, seed)
    leaves: dict[int, object] = {}
    for leaf in splits.open:
        block = int(blank.index[blank.path(leaf)[0], 0])
        facts = facts_of(problem) if block < 0 else one_block(facts_of(problem), block)
        part = slice(None) if block < 0 else slice(block, block + 1)
        facts = restricted(facts, blank, leaf)
        if contradictions(facts).any():
            leaves[leaf] = "empty"
            continue
        own = {name: np.ascontiguousarray(array[part]) for name, array in prices.items()}
        leaves[leaf] = largest_deadlines(facts, own, best.block_latency[part] * 4)
    return Certificate(form="tree", tree=splits.tree(leaves))


def selections(problem: Problem):
    """Every selection that keeps its floors, priced with the best bandwidth of each block alone."""
    able = usable(problem)
    options = [token_options(problem, able, i, j) for i, j in np.ndindex(*able.shape[:2])]
    apart = problem if problem.allocation == "fixed" else problem.replace(allocation="per-block")
    for chosen in product(*options):
        keep = np.array(chosen).reshape(able.shape)
        bandwidth = allocate(apart, *demands(apart, keep)).bandwidth
        priced = price(apart, keep, bandwidth)
        if priced.feasible:
            yield keep, priced


def inside(problem: Problem, tree: Tree, leaf: int, keep: np.ndarray, priced: wo.Evaluation) -> bool:
    """Whether a selection keeps a leaf's restrictions (latencies may be longer than the best)."""
    for step in tree.path(leaf)[1:]:
        i, second, third = tree.index[step].tolist()
        side, value = bool(tree.side[step]), float(tree.value[step])
        kind = tree.kind[step]
        if kind == PAIR:
            holds = bool(keep[i, second, third])
        elif kind == EXPERT:
            holds = priced.expert_load[i, second] > 0
        elif kind == LOAD:
            holds = priced.transfers[i, second] > value
        elif side:
            continue
        else:
            holds = priced.block_latency[i] > value
        if holds != side:
            return False
    return True


@pytest.mark.parametrize("seed", range(120))
def test_no_leaf_exceeds_its_restricted_optimum(seed: int) -> None:
    problem = random_problem(seed)
    if not problem.selectable or problem.instance.tokens * problem.candidate_columns > 6:
        return
    best = optimum(problem)
    if best is None:
        return
    points = list(selections(problem))
    for near in (True, False):
        c = tree_certificate(problem, best, seed, near=near)
        assert c.tree is not None
        fast, exact = recompute(problem, c), inspect_exactly(problem, c).bound
        assert fast <= exact <= best.objective * (1 + 1e-12)
        assert exact == pytest.approx(fast, rel=1e-9)
        for leaf, prices in c.tree.leaves.items():
            block = int(c.tree.index[c.tree.path(leaf)[0], 0])
            part = slice(None) if block < 0 else slice(block, block + 1)
            left = [p.block_latency[part] for keep, p in points if inside(problem, c.tree, leaf, keep, p)]
            facts = facts_of(problem) if block < 0 else one_block(facts_of(problem), block)
            facts = restricted(facts, c.tree, leaf)
            if (facts.after >= facts.until).any():
                assert prices == "empty"
            elif prices == "empty":
                assert not left
            else:
                # A latency above the best is no contradiction: a point may wait.
                waited = [np.maximum(latency, facts.after) for latency in left]
                assert all((prices.deadline <= latency * (1 + 1e-12)).all() for latency in waited)


def shared_least(problem: Problem) -> list[tuple[np.ndarray, wo.Evaluation]]:
    """Every selection at the best bandwidth that all blocks share."""
    points = []
    for keep, _ in selections(problem):
        priced = price(problem, keep, allocate(problem, *demands(problem, keep)).bandwidth)
        points.append((keep, priced))
    return points


@pytest.mark.parametrize("start", range(0, 200, 50))
def test_tolls_prove_no_more_than_restrictions_allow(start: int) -> None:
    """Shared form under restrictions, without and with random tolls."""
    count = 0
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
            prices = near_prices(problem, best)
            floor = largest_deadlines(facts, prices, best.block_latency * 4)
            plain = shared_certificate(problem, prices, floor, np.maximum(best.block_latency, 1e-9))
            for toll in (None, random_tolls(plain, seed), random_tolls(plain, seed + 1000)):
                c = replace(plain, toll=toll)
                blocks = [
                    exact_restricted(Block.of(problem, i), blank, leaf) for i in range(len(facts.light))
                ]
                bound, exactly = flat_verdict(facts, c).bound, exact_flat(blocks, c).bound
                assert bound <= exactly <= min(left) * (1 + 1e-12), (seed, leaf)
                count += 1
    assert enough(count, 10)


def test_restrictions_tighten_the_bound() -> None:
    """Branching on what the optimum does not do must not lower the bound: it rises, mostly."""
    gains = []
    for seed in range(few(80)):
        problem = random_problem(seed)
        if not problem.selectable:
            continue
        best = optimum(problem)
        if best is None or problem.instance.blocks > 1:
            continue
        flat = largest_deadlines(facts_of(problem), near_prices(problem, best), best.block_latency)
        tree = recompute(problem, tree_certificate(problem, best, seed, near=True))
        assert tree >= recompute(problem, flat) * (1 - 1e-9) or flat.deadline.max() == 0
        gains.append(tree / best.objective - flat.deadline.sum() / best.objective)
    assert enough(max(gains), 0.05)


@pytest.fixture(scope="module")
def proved() -> tuple[Problem, Certificate]:
    for seed in range(100):
        problem = random_problem(seed)
        best = optimum(problem) if problem.selectable else None
        if best is not None:
            c = tree_certificate(problem, best, seed, near=True)
            deadlines = [leaf.deadline for leaf in c.tree.leaves.values() if leaf != "empty"]
            if recompute(problem, c) > 0 and len(deadlines) > 2 and min(map(min, deadlines)) > 0:
                return problem, c
    raise AssertionError("no tree found")


def test_false_leaves_are_refused(proved: tuple[Problem, Certificate]) -> None:
    problem, c = proved
    node = next(n for n, leaf in c.tree.leaves.items() if leaf != "empty")
    leaf = c.tree.leaves[node]
    higher = replace(leaf, deadline=leaf.deadline * (1 + 1e-6))
    for false, message in ((higher, f"leaf {node}: block"), ("empty", f"leaf {node} is not empty")):
        tree = replace(c.tree, leaves={**c.tree.leaves, node: false})
        verdict = inspect(problem, replace(c, tree=tree))
        assert verdict.bound == -np.inf
        assert message in verdict.failures[0]
        exactly = inspect_exactly(problem, replace(c, tree=tree))
        assert exactly.bound == -np.inf
        assert f"leaf {node}: " in exactly.failures[0]
        assert replace(c, tree=tree).expected_digest(problem) != c.expected_digest(problem)


def test_broken_trees_are_named() -> None:
    good = {"parent": [-1, 0, 0], "kind": [0, 2, 2], "index": [[0, -1, -1], [0, 1, -1], [0, 1, -1]]}
    good |= {"value": [0.0, 0, 0], "side": [0, 0, 1], "leaves": {1: "empty", 2: "empty"}}
    Tree(**good)
    for change, message in (
        ({"side": [0, 1, 1]}, "two sides of one split"),
        ({"index": [[0, -1, -1], [0, 1, -1], [0, 2, -1]]}, "two sides of one split"),
        ({"parent": [-1, 0, 2]}, "must name an earlier node"),
        ({"kind": [0, 0, 2]}, "must be 0 for a root"),
        ({"kind": [0, 9, 2]}, "must name a kind"),
        ({"leaves": {1: "empty"}}, "every node without children"),
        ({"leaves": {1: "empty", 2: "full"}}, "must be 'empty' or a Certificate"),
    ):
        with pytest.raises(wo.InputError, match=message):
            Tree(**{**good, **change})


def test_roots_must_cover_every_block() -> None:
    problem = random_problem(5).replace(min_retention=0.0)
    splits = Splits([0, 0])
    c = Certificate(form="tree", tree=splits.tree({0: "empty", 1: "empty"}))
    with pytest.raises(wo.InputError, match="every block at one root"):
        recompute(problem, c)
