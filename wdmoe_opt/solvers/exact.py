"""Exact: branch and bound over the relaxations of `certified`, to a gap of one's own or to a limit.

Blocks on their own are bounded by ascent on their prices (`price_tree`), blocks that share bandwidth, and
small ones whose experts or transfers are not all alike, by a linear program (`mean_tree`). The open and
the closed branches, each with its prices, are the certificate; it is as good at an interruption as at the
end.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np

from wdmoe_opt.bandwidth import allocate, demands
from wdmoe_opt.certificates.certificate import Certificate
from wdmoe_opt.certificates.tree import Tree
from wdmoe_opt.interrupts import interrupts_heard
from wdmoe_opt.problem import Problem
from wdmoe_opt.registry import Control, Point, Termination
from wdmoe_opt.search import groups, start_selection
from wdmoe_opt.solvers.branching import BranchTree
from wdmoe_opt.solvers.certified import Group, assemble
from wdmoe_opt.solvers.certified_loads import certified_loads
from wdmoe_opt.solvers.deadline import Deadline
from wdmoe_opt.solvers.mean_tree import MeanTree
from wdmoe_opt.solvers.price_tree import PriceTree
from wdmoe_opt.validation import whole


def exact(problem: Problem, control: Control, max_branches: int = 1_000_000) -> Point:
    """Branch until the gap is closed, the time is up, or the user interrupts.

    Parameters
    ----------
    problem : Problem
    control : Control
        ``rel_gap`` is reached on every block, and so in total. After Ctrl-C the best selection and bound
        so far are returned.
    max_branches : int
        Of every tree.

    Returns
    -------
    Point
        With a certificate: prices for every branch.

    Notes
    -----
    Source: docs/mathematics.md, facts 3 to 8.
    """
    whole("max_branches", max_branches, 1, 2**31 - 1, "must be at least 1")
    if not problem.selectable:
        # Convex: nothing to branch on.
        return certified_loads(problem, control)
    plain, conflict = start_selection(problem)
    if plain is None:
        return Point.nothing("infeasible", detail=conflict)
    deadline = Deadline.of(control)
    parts = groups(problem)
    trees: list[BranchTree] = []
    for number, rows in enumerate(parts):
        group = Group(problem, rows, plain, control, deadline)
        interrupted = any(tree.interrupted for tree in trees) or not _finished(group)
        left = deadline.left / (len(parts) - number)
        own = Deadline.of(replace(control, time_limit=left if np.isfinite(left) else None))
        kind = MeanTree if MeanTree.fits(group) else PriceTree
        trees.append(kind(problem, group, control, own, max_branches))
        if interrupted:
            trees[-1].interrupted = True
        else:
            trees[-1].grow()
    return _point(problem, control, trees)


def _finished(group: Group) -> bool:
    """Run the stages of `certified`; False if the user interrupted them."""
    try:
        with interrupts_heard():
            group.run()
    except KeyboardInterrupt:
        return False
    return True


# ---------------------------------------------------------------------- answer


def _point(problem: Problem, control: Control, trees: list[BranchTree]) -> Point:
    selection = np.concatenate([tree.keep for tree in trees])
    bandwidth = allocate(problem, *demands(problem, selection))
    value, bound = sum(tree.value for tree in trees), sum(tree.bound for tree in trees)
    number = sum(len(tree.branches) for tree in trees)
    if bound >= value * (1 - control.rel_gap) * (1 - 1e-12):
        end = Termination(
            "optimal", detail=f"{number} branches, gap {(value - bound) / max(value, 1e-300):.2e}"
        )
    else:
        limit: Literal["time", "interrupt", "branches"] = "branches"
        if any(tree.deadline.left == 0.0 for tree in trees):
            limit = "time"
        elif any(tree.interrupted for tree in trees):
            limit = "interrupt"
        words = f"{number} branches" if limit != "interrupt" else f"interrupted after {number} branches"
        end = Termination("feasible-at-limit", limit, words)
    trace = sorted((line for tree in trees for line in tree.trace), key=lambda line: line["block"])
    certificate = _certificate(problem, trees) if bound > 0 else None
    return Point(
        selection, bandwidth.bandwidth, end, lower_bound=bound, bound_kind="claimed" if bound > 0 else "none",
        kkt_residual=bandwidth.kkt_residual, trace=tuple(trace), certificate=certificate,
    )  # fmt: skip


def _certificate(problem: Problem, trees: list[BranchTree]) -> Certificate:
    """One tree of all groups, or plain prices where nothing was branched on."""
    shape = problem.tables.ids.shape
    proofs = [tree.branches[0].proof for tree in trees if len(tree.branches) == 1]
    plain = [proof for proof in proofs if proof is not None]
    if len(plain) == len(trees) and (len(plain) == 1 or all(proof.form == "deadline" for proof in plain)):
        return assemble(shape, plain)
    parent: list[int] = []
    kind: list[int] = []
    index: list[tuple[int, int, int]] = []
    value: list[float] = []
    side: list[int] = []
    leaves: dict[int, Certificate | Literal["empty"]] = {}
    for tree in trees:
        shift = len(parent)
        for branch in tree.branches:
            parent.append(branch.parent + shift if branch.parent >= 0 else -1)
            what, where, at, half = branch.split
            kind.append(what)
            index.append(where)
            value.append(at)
            side.append(half)
        for number, leaf in tree.leaves.items():
            leaves[number + shift] = "empty" if leaf.proof is None else assemble(shape, [leaf.proof])
    grown = Tree(
        parent=np.array(parent), kind=np.array(kind), index=np.array(index), value=np.array(value),
        side=np.array(side), leaves=leaves,
    )  # fmt: skip
    return Certificate(form="tree", tree=grown)
