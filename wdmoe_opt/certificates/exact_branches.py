"""Branch-and-bound trees in rational arithmetic; see `branches`, written apart from it."""

from __future__ import annotations

from fractions import Fraction
from math import floor, inf
from typing import TYPE_CHECKING

from wdmoe_opt.certificates.branches import check_roots, leaves_below
from wdmoe_opt.certificates.check import Verdict, check_shapes, wrong_form
from wdmoe_opt.certificates.exact import Block, deadline_failures, flat_verdict, to_float
from wdmoe_opt.certificates.tree import DEADLINE, EXPERT, LOAD, PAIR

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wdmoe_opt.certificates.certificate import Certificate
    from wdmoe_opt.certificates.exact import Number
    from wdmoe_opt.certificates.tree import Tree
    from wdmoe_opt.problem import Problem


def tree_verdict(problem: Problem, certificate: Certificate) -> Verdict:
    """Sum over roots of the least that any leaf proves."""
    tree = certificate.tree
    assert tree is not None
    check_roots(problem, tree)
    total: Number = Fraction(0)
    failures: list[str] = []
    for root in tree.roots:
        least: Number = inf
        for leaf in leaves_below(tree, root):
            value, wrong = _leaf_bound(problem, tree, root, leaf)
            failures += [f"leaf {leaf}: {text}" for text in wrong]
            least = min(least, value)
        total = total + least
    if failures:
        return Verdict(-inf, tuple(failures))
    return Verdict(total if isinstance(total, float) else to_float(total, up=False))


def _leaf_bound(problem: Problem, tree: Tree, root: int, node: int) -> tuple[Number, tuple[str, ...]]:
    own = int(tree.index[root, 0])
    numbers = range(problem.instance.blocks) if own < 0 else [own]
    blocks = [restricted(Block.of(problem, i), tree, node) for i in numbers]
    if any(contradicts(block) for block in blocks):
        return inf, ()
    leaf = tree.leaves[node]
    if isinstance(leaf, str):
        return -inf, ("is not empty",)
    check_shapes(problem, leaf, len(blocks))
    wrong = wrong_form(problem, leaf) if len(blocks) > 1 else ""
    if wrong:
        return -inf, (wrong,)
    after = sum((block.after for block in blocks), Fraction(0))
    if leaf.form != "deadline":
        verdict = flat_verdict(blocks, leaf)
        bound: Number = verdict.bound if verdict.bound in (inf, -inf) else Fraction(verdict.bound)
        return max(bound, after), verdict.failures
    failures = deadline_failures(blocks, leaf)
    if failures:
        return -inf, tuple(failures)
    assert leaf.deadline is not None
    deadlines = [Fraction(t) for t in leaf.deadline.tolist()]
    return _deadline_bound(blocks, deadlines), ()


def _deadline_bound(blocks: Sequence[Block], deadlines: Sequence[Fraction]) -> Number:
    total = Fraction(0)
    for block, deadline in zip(blocks, deadlines, strict=True):
        if deadline >= block.until:
            return inf
        total += max(deadline, block.after)
    return total


def restricted(block: Block, tree: Tree, node: int) -> Block:
    """Put the restrictions from the root to ``node`` on a block, in place."""
    for step in tree.path(node)[1:]:
        i, second, third = tree.index[step].tolist()
        if i == block.index:
            _restrict(block, tree, step, second, third)
    return block


def _restrict(block: Block, tree: Tree, step: int, second: int, third: int) -> None:
    kind, side, value = int(tree.kind[step]), bool(tree.side[step]), float(tree.value[step])
    if kind == PAIR and side:
        block.forced.add((second, third))
        expert = dict(block.options[second]).get(third)
        if expert is not None:
            block.awake.add(expert)
            host = block.hosts[expert]
            block.least[host] = max(block.least.get(host, 0), 1)
    elif kind == PAIR:
        block.options[second] = [option for option in block.options[second] if option[0] != third]
    elif kind == EXPERT and side:
        block.awake.add(second)
    elif kind == EXPERT:
        block.options = [[o for o in options if o[1] != second] for options in block.options]
    elif kind == LOAD and side:
        block.least = {**block.least, second: max(block.least.get(second, 0), floor(value) + 1)}
    elif kind == LOAD:
        block.most = {**block.most, second: min(block.most.get(second, floor(value)), floor(value))}
    elif kind == DEADLINE and side:
        block.after = max(block.after, Fraction(value))
    elif kind == DEADLINE:
        block.until = min(block.until, Fraction(value))


def contradicts(block: Block) -> bool:
    """Whether no selection can keep the restrictions, seen without any price."""
    if block.after >= block.until or not block.awake <= block.usable():
        return True
    for k in range(len(block.delay)):
        _, _, least, most = block.limits(k)
        if least > min(most, block.most.get(k, most)):
            return True
    if block.loads is not None:
        return False
    kept = Fraction(0)
    cap = block.problem.expert_cap
    for j, options in enumerate(block.options):
        columns = {c for c, _ in options}
        forced = {c for token, c in block.forced if token == j}
        if not columns or not forced <= columns or len(forced) > cap:
            return True
        richest = sum(sorted((block.share[j, c] for c in columns), reverse=True)[:cap], Fraction(0))
        if richest < block.token_floor:
            return True
        kept += richest
    return kept < block.mean_floor * len(block.options)
