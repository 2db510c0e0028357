"""Branch-and-bound trees in double precision: facts under restrictions, and the least of the leaves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from wdmoe_opt.certificates.check import (
    Verdict,
    check_shapes,
    deadline_failures,
    flat_verdict,
    sum_down,
    wrong_form,
)
from wdmoe_opt.certificates.facts import EPS, device_loads, pair_counts
from wdmoe_opt.certificates.tree import DEADLINE, EXPERT, LOAD, PAIR
from wdmoe_opt.errors import InputError

if TYPE_CHECKING:
    from wdmoe_opt.certificates.certificate import Certificate
    from wdmoe_opt.certificates.facts import BoolArray, Facts
    from wdmoe_opt.certificates.tree import Tree
    from wdmoe_opt.problem import Problem
    from wdmoe_opt.validation import IntArray, RealArray


#: Kind, index, value and side of a split, as in `Tree`.
Split = tuple[int, tuple[int, int, int], float, int]


def tree_verdict(problem: Problem, facts: Facts, certificate: Certificate) -> Verdict:
    """Sum over roots of the least that any leaf proves."""
    tree = certificate.tree
    assert tree is not None
    check_roots(problem, tree)
    values, failures = [], []
    for root in tree.roots:
        block = int(tree.index[root, 0])
        own = facts if block < 0 else one_block(facts, block)
        leaves = [_leaf_verdict(problem, own, tree, leaf) for leaf in leaves_below(tree, root)]
        failures += [text for leaf in leaves for text in leaf.failures]
        values.append(min(leaf.bound for leaf in leaves))
    if failures:
        return Verdict(-np.inf, tuple(failures))
    return Verdict(sum_down(np.array(values)))


def check_roots(problem: Problem, tree: Tree) -> None:
    """Raise unless there is one root for all blocks, or one for every block, and splits stay below them."""
    blocks = tree.index[tree.roots, 0].tolist()
    if blocks != [-1] and sorted(blocks) != list(range(problem.instance.blocks)):
        raise InputError("tree.index", "must name every block at one root, or -1 at the only root")
    inst = problem.instance
    sizes = {
        PAIR: (inst.blocks, inst.tokens, problem.candidate_columns if problem.selectable else 0),
        EXPERT: (inst.blocks, inst.experts),
        LOAD: (inst.blocks, inst.devices),
        DEADLINE: (inst.blocks,),
    }
    for node, kind in enumerate(tree.kind.tolist()):
        index = tree.index[node].tolist()
        limits = sizes.get(kind, ())
        if any(not 0 <= at < size for at, size in zip(index, limits, strict=False)):
            raise InputError("tree.index", "must lie within the problem", index=(node,), value=index)
        root = int(tree.index[tree.path(node)[0], 0])
        if limits and root not in (-1, index[0]):
            rule = f"must split block {root} as its root says"
            raise InputError("tree.index", rule, index=(node, 0), value=index[0])


def leaves_below(tree: Tree, root: int) -> list[int]:
    """Leaves of one root."""
    return [leaf for leaf in sorted(tree.leaves) if tree.path(leaf)[0] == root]


def _leaf_verdict(problem: Problem, facts: Facts, tree: Tree, node: int) -> Verdict:
    """What a leaf proves under the restrictions on its path, infinite where nothing is left."""
    limited = restricted(facts, tree, node)
    if bool(contradictions(limited).any()):
        return Verdict(np.inf)
    leaf = tree.leaves[node]
    if isinstance(leaf, str):
        return Verdict(-np.inf, (f"leaf {node} is not empty",))
    blocks = limited.light.shape[0]
    check_shapes(problem, leaf, blocks)
    wrong = wrong_form(problem, leaf) if blocks > 1 else ""
    if wrong:
        return Verdict(-np.inf, (f"leaf {node}: {wrong}",))
    if leaf.form != "deadline":
        verdict = flat_verdict(limited, leaf)
        bound = max(verdict.bound, sum_down(limited.after))
        return Verdict(bound, tuple(f"leaf {node}: {text}" for text in verdict.failures))
    failures = deadline_failures(limited, leaf)
    assert leaf.deadline is not None
    if failures:
        return Verdict(-np.inf, tuple(f"leaf {node}: {text}" for text in failures))
    if (leaf.deadline >= limited.until).any():
        return Verdict(np.inf)
    return Verdict(sum_down(np.maximum(leaf.deadline, limited.after)))


# ---------------------------------------------------------------------- facts under restrictions


def one_block(facts: Facts, i: int) -> Facts:
    """Facts of one block alone."""
    part = slice(i, i + 1)
    names = (
        "count", "mean_floor", "token_floor", "usable", "awake", "light", "heavy", "least", "most", "low",
        "high", "snr_down", "snr_up", "after", "until",
    )  # fmt: skip
    rows: dict[str, Any] = {name: getattr(facts, name)[part] for name in names}
    return replace(
        facts,
        pair=np.ascontiguousarray(facts.pair[:, part] - i * (facts.experts + 1)),
        share=np.ascontiguousarray(facts.share[:, part]),
        weight=np.ascontiguousarray(facts.weight[:, part]),
        forced=None if facts.forced is None else facts.forced[:, part],
        link_time=None if facts.link_time is None else facts.link_time[part],
        loads=None if facts.loads is None else facts.loads[part],
        **rows,
    )


def restricted(facts: Facts, tree: Tree, node: int) -> Facts:
    """Facts under all restrictions from the root to ``node``."""
    path = [
        (int(tree.kind[n]), tuple(tree.index[n].tolist()), float(tree.value[n]), int(tree.side[n]))
        for n in tree.path(node)
    ]
    return under(facts, path)


def leaf_bound(facts: Facts, path: Sequence[Split], leaf: Certificate) -> float:
    """What one leaf's prices prove under the splits on its path, root first; -inf if nothing."""
    limited = under(facts, path)
    if bool(contradictions(limited).any()):
        return float(np.inf)
    if leaf.form != "deadline":
        return flat_verdict(limited, leaf).bound
    if deadline_failures(limited, leaf):
        return float(-np.inf)
    assert leaf.deadline is not None
    return float(sum_down(np.maximum(leaf.deadline, limited.after)))


def under(facts: Facts, path: Sequence[Split]) -> Facts:
    """Facts under the restrictions of a path of splits, root first."""
    shift = max(path[0][1][0], 0)
    pair, awake = facts.pair.copy(), facts.awake.copy()
    forced = np.zeros(pair.shape, dtype=np.bool_) if facts.forced is None else facts.forced.copy()
    least, limit = facts.least.copy(), np.full(facts.most.shape, np.inf)
    after, until = facts.after.copy(), facts.until.copy()
    none = facts.experts
    for kind, (block, second, third), value, side in path[1:]:
        i = block - shift
        start = i * (none + 1)
        if kind == PAIR and side:
            forced[third, i, second] = True
            expert = int(pair[third, i, second]) - start
            if expert < none:
                awake[i, expert] = True
                host = facts.hosts[expert]
                least[i, host] = max(least[i, host], 1.0)
        elif kind == PAIR:
            pair[third, i, second] = start + none
        elif kind == EXPERT and side:
            awake[i, second] = True
        elif kind == EXPERT:
            pair[:, i][pair[:, i] == start + second] = start + none
        elif kind == LOAD and side:
            least[i, second] = max(least[i, second], np.floor(value) + 1)
        elif kind == LOAD:
            limit[i, second] = min(limit[i, second], np.floor(value))
        elif side:
            after[i] = max(after[i], value)
        else:
            until[i] = min(until[i], value)
    return _with_pairs(facts, pair, forced, awake, least, limit, after, until)


def _with_pairs(
    facts: Facts,
    pair: IntArray,
    forced: BoolArray,
    awake: BoolArray,
    least: RealArray,
    limit: RealArray,
    after: RealArray,
    until: RealArray,
) -> Facts:
    """Facts with other pairs allowed, and what follows from them."""
    limits: dict[str, Any] = {"awake": awake, "least": least, "after": after, "until": until}
    if facts.loads is not None:
        return replace(facts, most=np.minimum(facts.most, limit), **limits)
    blocks, devices = facts.light.shape
    gone = pair % (facts.experts + 1) == facts.experts
    count = pair_counts(pair, blocks, facts.experts)
    usable, light, heavy, most = device_loads(
        pair, count, facts.hosts, facts.expert_compute, devices, facts.by_device
    )
    _settle(facts, pair, gone, forced, light, heavy)
    return replace(
        facts,
        pair=pair,
        count=count,
        share=np.where(gone, 0.0, facts.share),
        weight=np.where(gone, 0.0, facts.weight),
        forced=forced if forced.any() else None,
        usable=usable,
        light=light,
        heavy=heavy,
        most=np.minimum(most, limit),
        **limits,
    )


def _settle(
    facts: Facts, pair: IntArray, gone: BoolArray, forced: BoolArray, light: RealArray, heavy: RealArray
) -> None:
    """Narrow both rays to the mean compute of devices whose load is decided: all there is is forced."""
    devices = light.shape[1]
    expert = np.where(gone, 0, pair % (facts.experts + 1))
    device = np.where(gone, -1, facts.hosts[expert])
    for k in range(devices):
        here = device == k
        transfers = here.any(axis=0).sum(axis=1) if facts.by_device else here.sum(axis=(0, 2))
        decided = (transfers > 0) & ~(here & ~forced).any(axis=(0, 2))
        work = np.where(here, facts.expert_compute[expert], 0.0).sum(axis=(0, 2))
        mean = work[decided] / transfers[decided]
        wide = (pair.shape[0] * pair.shape[2] + 4) * EPS
        light[decided, k] = mean * (1 - wide)
        heavy[decided, k] = mean * (1 + wide)


def contradictions(facts: Facts) -> BoolArray:
    """Blocks in which no selection can keep the restrictions, seen without any price."""
    wrong = (facts.least > facts.most).any(axis=1) | (facts.after >= facts.until)
    wrong |= (facts.awake & ~facts.usable).any(axis=1)
    if facts.loads is not None:
        return wrong
    candidates, _, tokens = facts.pair.shape
    gone = facts.pair % (facts.experts + 1) == facts.experts
    lost = gone.all(axis=0)
    if facts.forced is not None:
        lost |= (facts.forced & gone).any(axis=0) | (facts.forced.sum(axis=0) > facts.cap)
    richest = (-np.sort(-facts.share, axis=0)[: facts.cap]).sum(axis=0) * (1 + 2 * candidates * EPS)
    lost |= richest < facts.token_floor[:, None]
    poor = richest.mean(axis=1) * (1 + (tokens + 4) * EPS) < facts.mean_floor
    found: BoolArray = wrong | lost.any(axis=1) | poor
    return found
