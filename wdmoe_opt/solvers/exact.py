"""Exact: branch and bound over the relaxation of `certified`, to a gap of one's own or to a limit.

What makes the relaxation loose is branched on in this order: which experts are active, how many
transfers a device gets, and single (token, expert) pairs. A branch starts with its parent's prices, and
ascent on them stops as soon as the branch cannot hold anything better than the best selection known. The
open and the closed branches, each with its prices, are the certificate; it is as good at an
interruption as at the end.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from itertools import count
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from wdmoe_opt.bandwidth import allocate, demands
from wdmoe_opt.certificates.branches import leaf_bound, one_block
from wdmoe_opt.certificates.certificate import Certificate
from wdmoe_opt.certificates.facts import facts_of
from wdmoe_opt.certificates.tree import EXPERT, LOAD, PAIR, ROOT, Tree
from wdmoe_opt.certificates.weaken import CUTS
from wdmoe_opt.floors import repair_floors
from wdmoe_opt.problem import FEASIBILITY_TOLERANCE, Problem
from wdmoe_opt.registry import Control, Point, Termination
from wdmoe_opt.relaxation import Proof, Quote, Relaxation, Restriction
from wdmoe_opt.search import Search, groups, start_selection
from wdmoe_opt.solvers.certified import Group, assemble
from wdmoe_opt.solvers.certified_loads import certified_loads
from wdmoe_opt.solvers.deadline import Deadline
from wdmoe_opt.validation import RealArray, whole

#: Ascent steps at the root of a tree and at a branch.
ROOT_STEPS, BRANCH_STEPS = 150, 20
#: How far from 0 and 1 the mean of a decision must be to be branched on.
DOUBT = 0.02
#: Branches between two local searches from the best candidate of a branch.
POLISH_EVERY = 50


def exact(problem: Problem, control: Control, max_branches: int = 1_000_000) -> Point:
    """Branch until the gap is closed, the time is up, or the user interrupts.

    Parameters
    ----------
    problem : Problem
    control : Control
        ``rel_gap`` is reached on every block, and so in total. After Ctrl-C while it branches the best
        selection and bound so far are returned.
    max_branches : int
        Of every tree.

    Returns
    -------
    Point
        With a certificate: prices for every branch.

    Notes
    -----
    Source: problem-and-mathematics, facts 3 to 8.
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
    interrupted = False
    for number, rows in enumerate(parts):
        group = Group(problem, rows, plain, control, deadline)
        group.run()
        left = deadline.left / (len(parts) - number)
        own = Deadline.of(replace(control, time_limit=left if np.isfinite(left) else None))
        tree = BranchTree(problem, group, control, own, max_branches)
        trees.append(tree)
        if not interrupted:
            interrupted = tree.grow()
    return _point(problem, control, trees)


@dataclass(eq=False)
class Branch:
    """A node of the tree: restrictions, prices, bound."""

    number: int
    parent: int
    split: tuple[int, tuple[int, int, int], float, int]
    parts: list[Restriction]
    quote: Quote
    proof: Proof | None
    bound: float
    mean: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 0, 0)))
    awake: RealArray = field(default_factory=lambda: np.zeros((0, 0)))
    empty: bool = False


class BranchTree:
    """Branch and bound on one group of blocks."""

    def __init__(
        self, problem: Problem, group: Group, control: Control, deadline: Deadline, max_branches: int
    ) -> None:
        self.problem, self.group, self.relaxation = problem, group, group.relaxation
        self.rows, self.rel_gap, self.deadline = group.rows, control.rel_gap, deadline
        self.max_branches, self.interrupted = max_branches, False
        self.keep, self.value = group.keep, group.value
        self.branches: list[Branch] = []
        self.leaves: dict[int, Branch] = {}
        self.ticket = count()
        self.heap: list[tuple[float, int, Branch]] = []
        self.known: Proof | None = None
        self.trace: list[dict[str, Any]] = []

    # ------------------------------------------------------------------ growth

    @property
    def bound(self) -> float:
        """Least bound of all leaves, s."""
        return min((leaf.bound for leaf in self.leaves.values()), default=0.0)

    @property
    def goal(self) -> float:
        """Bound that a branch needs in order to be closed."""
        return self.value * (1.0 - self.rel_gap)

    def grow(self) -> bool:
        """Branch until the gap is closed or a limit is hit; whether the user interrupted."""
        try:
            self._plant()
            while self.heap and len(self.branches) < self.max_branches and self.deadline.left > 0.0:
                bound, _, branch = heappop(self.heap)
                if bound >= self.goal:
                    break
                self._split(branch)
        except KeyboardInterrupt:
            self.interrupted = True
        return self.interrupted

    def _verify(self, branch: Branch, inherited: Proof | None) -> None:
        """Hold a new branch against the check: its own prices, else its parent's, else a weaker claim."""
        if branch.bound == np.inf or branch.proof is None:
            return
        path = self._path(branch)
        for proof in (branch.proof, inherited):
            if proof is None:
                continue
            proved = leaf_bound(self.facts, path, assemble(self.problem.tables.ids.shape, [proof]))
            if proved > 0:
                branch.proof, branch.bound = proof, proved
                return
        for cut in CUTS:
            claim = replace(branch.proof, deadline=branch.proof.deadline * (1 - cut))
            proved = leaf_bound(self.facts, path, assemble(self.problem.tables.ids.shape, [claim]))
            if proved > 0 and claim.form == "deadline":
                branch.proof, branch.bound = claim, proved
                return
        branch.bound = 0.0

    def _path(self, leaf: Branch) -> list[tuple[int, tuple[int, int, int], float, int]]:
        """Splits from the root to a leaf."""
        path = []
        node = leaf
        while True:
            path.append(node.split)
            if node.parent < 0:
                return path[::-1]
            node = self.branches[node.parent]

    def _plant(self) -> None:
        relaxation, t = self.relaxation, self.problem.tables
        best = relaxation.best or relaxation.prove(relaxation.multipliers(self.keep))
        free = [
            Restriction(
                np.zeros(relaxation.ids.shape[1:], dtype=np.int8),
                np.zeros(relaxation.experts, dtype=np.int8), np.zeros(relaxation.devices),
                np.full(relaxation.devices, np.inf),
            )
            for _ in range(relaxation.blocks)
        ]  # fmt: skip
        self.joint = relaxation.blocks > 1 and relaxation.free
        if self.joint and relaxation.dependent:
            self.known = best.floor
            if self.known is None:
                latency = relaxation.latency(self.keep)
                self.known = relaxation.each_alone(self.keep, latency, ROOT_STEPS)
        facts = facts_of(self.problem)
        self.facts = facts if self.joint else one_block(facts, self.rows.start)
        self.loads = not t.by_device and relaxation.alike
        # With a choice of active experts, limits of loads are beyond the bound's reach.
        hosted = np.bincount(t.expert_device, t.activation > 0, relaxation.devices)
        self._countable = (hosted <= 0) | (np.bincount(t.expert_device, minlength=relaxation.devices) <= 1)
        root = Branch(0, -1, (ROOT, (-1 if self.joint else self.rows.start, -1, -1), 0.0, 0), free,
                      self._root_quote(best), best, best.bound)  # fmt: skip
        self.branches.append(root)
        self.leaves[0] = root
        if best.bound < self.goal:
            self._ascend(root, ROOT_STEPS)
            self._verify(root, best)
            self._push(root)

    def _root_quote(self, best: Proof) -> Quote:
        """Prices of the group's best proof, in seconds of block latency."""
        latency = self.relaxation.latency(self.keep)
        if best.form == "deadline":
            return best.quote(latency)
        scale = np.maximum(best.horizon, 0.0) - best.offset
        return Quote(
            best.send / scale[:, None], best.work / scale[:, None], best.retention / scale, best.bandwidth,
            best.points, best.horizon,
        )  # fmt: skip

    def _push(self, branch: Branch) -> None:
        if not branch.empty and branch.bound < self.goal:
            heappush(self.heap, (branch.bound, next(self.ticket), branch))

    def _split(self, branch: Branch) -> None:
        """Replace a leaf by its two halves."""
        split = self._choose(branch)
        if split is None:
            return
        halves = []
        for side in (0, 1):
            parts = list(branch.parts)
            parts[split[1][0] - self._first] = _half(parts[split[1][0] - self._first], split, side)
            half = Branch(
                len(self.branches) + side,
                branch.number,
                (*split, side),
                parts,
                branch.quote,
                branch.proof,
                branch.bound,
            )
            self._ascend(half, BRANCH_STEPS)
            self._verify(half, branch.proof)
            halves.append(half)
        # Only whole, checked splits enter the tree: an interruption before leaves it as it was.
        self.branches += halves
        self.leaves.update((half.number, half) for half in halves)
        del self.leaves[branch.number]
        for half in halves:
            self._push(half)
        if len(self.branches) % (2 * POLISH_EVERY) < 2:
            self._polish()
        # What a parent needed is no longer needed.
        branch.parts, branch.proof = [], None

    @property
    def _first(self) -> int:
        return int(self.rows.start)

    # ------------------------------------------------------------------ bounds

    def _ascend(self, branch: Branch, steps: int) -> None:
        """Prices, bound and candidate of a branch."""
        relaxation = self.relaxation.restricted(branch.parts)
        if _contradiction(relaxation, self.problem):
            branch.empty, branch.bound, branch.proof = True, np.inf, None
            return
        decided = self._decided(relaxation, branch)
        if decided is not None:
            self._settle(relaxation, branch, decided)
            return
        self._try_prices(relaxation, branch, branch.quote)
        if branch.bound >= self.goal:
            return
        if self.joint:
            quote, proof = relaxation.ascend_jointly(branch.quote, self.known, self.goal, steps)
            self._take(branch, quote, proof)
        else:
            goal = np.array([self.goal])
            self._try_prices(relaxation, branch, relaxation.ascend(branch.quote, goal, steps))
        branch.mean, branch.awake = relaxation.mean, relaxation.awake
        self._candidate(relaxation, branch)

    def _try_prices(self, relaxation: Relaxation, branch: Branch, quote: Quote) -> None:
        self._take(branch, quote, relaxation.prove(quote, self.known))

    def _take(self, branch: Branch, quote: Quote, proof: Proof) -> None:
        """Prices of a branch, if they prove more than what it has from its parent."""
        if branch.proof is None or proof.bound > branch.bound:
            branch.proof, branch.quote, branch.bound = proof, quote, max(proof.bound, branch.bound)

    def _decided(self, relaxation: Relaxation, branch: Branch) -> NDArray[np.bool_] | None:
        """The selection, if nothing is left to decide."""
        forced = np.stack([part.state > 0 for part in branch.parts])
        return forced if ((relaxation.ids >= 0) == forced).all() else None

    def _settle(self, relaxation: Relaxation, branch: Branch, keep: NDArray[np.bool_]) -> None:
        """A branch with one selection: its exact price and multipliers."""
        value = self._offer(keep)
        quote = self.relaxation.multipliers(keep, 0.0)
        self._try_prices(relaxation, branch, quote)
        if branch.bound < min(value, self.value) * (1 - self.rel_gap):
            if self.joint:
                goal = min(value, self.value) * (1 - 0.5 * self.rel_gap)
                self._take(branch, *relaxation.ascend_jointly(quote, self.known, goal, ROOT_STEPS))
            else:
                self._try_prices(relaxation, branch, relaxation.ascend(quote, quote.horizon, BRANCH_STEPS))
        # Nothing is left to branch on, whatever rounding leaves of the gap.
        branch.empty = True

    # ------------------------------------------------------------------ selections

    def _candidate(self, relaxation: Relaxation, branch: Branch) -> None:
        """Offer the selection that the branch's mean suggests."""
        keep = (branch.mean > 0.5) & (relaxation.ids >= 0)
        lost = ~keep.any(axis=2)
        if lost.any():
            usual = np.where(relaxation.ids >= 0, branch.mean + 1e-9 * relaxation.share, -1.0)
            blocks, tokens = np.nonzero(lost)
            keep[blocks, tokens, usual[lost].argmax(axis=1)] = True
        self._offer(keep)

    def _offer(self, keep: NDArray[np.bool_]) -> float:
        """Price a selection, repaired where it breaks a floor; note it if it is the best."""
        selection = self.group.plain.copy()
        selection[self.rows] = keep
        selection = repair_floors(self.problem, selection)
        search = Search(self.problem, self.rows, selection[self.rows])
        self._note(search)
        return search.value

    def _polish(self) -> None:
        search = Search(self.problem, self.rows, self.keep)
        search.polish(lambda: self.deadline.left == 0.0)
        self._note(search)

    def _note(self, search: Search) -> None:
        if search.value < self.value:
            self.keep, self.value = search.keep.copy(), search.value
            self.trace.append(
                {"block": self.rows.start, "step": f"branch {len(self.branches)}", "objective": self.value,
                 "bound": self.bound}
            )  # fmt: skip

    # ------------------------------------------------------------------ branching

    def _choose(self, branch: Branch) -> tuple[int, tuple[int, int, int], float] | None:
        """Most doubtful expert, load or pair of a branch."""
        relaxation = self.relaxation.restricted(branch.parts)
        if branch.mean.size == 0:
            branch.mean = np.zeros(relaxation.ids.shape)
            branch.awake = np.zeros((relaxation.blocks, relaxation.experts))
        return (
            self._doubtful_expert(relaxation, branch)
            or self._doubtful_load(relaxation, branch)
            or self._doubtful_pair(relaxation, branch)
        )

    def _doubtful_expert(
        self, relaxation: Relaxation, branch: Branch
    ) -> tuple[int, tuple[int, int, int], float] | None:
        t = self.problem.tables
        open_now = np.stack([limits.opened for limits in relaxation.limits])
        free = relaxation.usable_experts & ~open_now & (t.activation > 0)
        doubt = np.where(free, np.minimum(branch.awake, 1 - branch.awake), 0.0)
        score = doubt * branch.quote.second[:, t.expert_device] * t.activation
        if not (doubt > DOUBT).any():
            return None
        i, e = np.unravel_index(int(np.where(doubt > DOUBT, score, -1.0).argmax()), score.shape)
        return EXPERT, (self._first + int(i), int(e), -1), 0.0

    def _doubtful_load(
        self, relaxation: Relaxation, branch: Branch
    ) -> tuple[int, tuple[int, int, int], float] | None:
        if not self.loads:
            return None
        t = self.problem.tables
        pairs = relaxation.ids >= 0
        load = np.zeros((relaxation.blocks, relaxation.devices))
        blocks = np.nonzero(pairs)[0]
        np.add.at(load, (blocks, t.expert_device[relaxation.ids[pairs]]), branch.mean[pairs])
        fewest = np.stack([limits.fewest for limits in relaxation.limits])
        largest = np.stack([limits.largest for limits in relaxation.limits])
        cut = np.floor(load)
        able = (fewest <= cut) & (largest >= cut + 1) & self._countable
        doubt = np.where(able, np.minimum(load - cut, cut + 1 - load), 0.0)
        i, k = np.unravel_index(int((doubt * branch.quote.send).argmax()), doubt.shape)
        if doubt[i, k] <= DOUBT:
            return None
        return LOAD, (self._first + int(i), int(k), -1), float(cut[i, k])

    def _doubtful_pair(
        self, relaxation: Relaxation, branch: Branch
    ) -> tuple[int, tuple[int, int, int], float] | None:
        forced = np.stack([part.state > 0 for part in branch.parts])
        free = (relaxation.ids >= 0) & ~forced
        if not free.any():
            return None
        doubt = np.minimum(branch.mean, 1 - branch.mean) + 1e-3 * np.minimum(relaxation.share, 1.0)
        i, j, c = np.unravel_index(int(np.where(free, doubt, -1.0).argmax()), doubt.shape)
        return PAIR, (self._first + int(i), int(j), int(c)), 0.0


def _half(part: Restriction, split: tuple[int, tuple[int, int, int], float], side: int) -> Restriction:
    """Restrictions of one side of a split."""
    kind, (_, second, third), value = split
    if kind == PAIR:
        state = part.state.copy()
        state[second, third] = 1 if side else -1
        return replace(part, state=state)
    if kind == EXPERT:
        experts = part.experts.copy()
        experts[second] = 1 if side else -1
        return replace(part, experts=experts)
    fewest, largest = part.fewest.copy(), part.largest.copy()
    if side:
        fewest[second] = max(fewest[second], value + 1)
    else:
        largest[second] = min(largest[second], value)
    return replace(part, fewest=fewest, largest=largest)


def _contradiction(relaxation: Relaxation, problem: Problem) -> bool:
    """Whether restrictions leave no selection, seen without any price."""
    cap = problem.expert_cap
    slack = 1 - FEASIBILITY_TOLERANCE
    hosts = problem.tables.expert_device
    for i, limits in enumerate(relaxation.limits):
        there = relaxation.ids[i] >= 0
        forced = limits.forced if limits.forced.size else np.zeros(there.shape, dtype=np.bool_)
        possible = np.bincount(hosts[relaxation.ids[i][there]], minlength=relaxation.devices)
        if (limits.fewest > np.minimum(possible, limits.largest)).any():
            return True
        if not there.any(axis=1).all() or (forced & ~there).any() or (forced.sum(axis=1) > cap).any():
            return True
        if (limits.opened & ~relaxation.usable_experts[i]).any():
            return True
        richest = -np.sort(-np.where(there, relaxation.share[i], 0.0), axis=1)[:, :cap].sum(axis=1)
        short = (richest < relaxation.floors[i] * (1 - 2e-9)).any()
        if short or richest.sum() < relaxation.needed[i] * (slack - 1e-9):
            return True
    return False


# ---------------------------------------------------------------------- answer


def _point(problem: Problem, control: Control, trees: list[BranchTree]) -> Point:
    selection = np.concatenate([tree.keep for tree in trees])
    bandwidth = allocate(problem, *demands(problem, selection))
    value, bound = sum(tree.value for tree in trees), sum(tree.bound for tree in trees)
    number = sum(len(tree.branches) for tree in trees)
    if bound >= value * (1 - control.rel_gap) * (1 - 1e-12):
        end = Termination("optimal", detail=f"{number} branches, gap {(value - bound) / value:.2e}")
    else:
        limit: Literal["time", "interrupt", "branches"] = "branches"
        if any(tree.deadline.left == 0.0 for tree in trees):
            limit = "time"
        elif any(tree.interrupted for tree in trees):
            limit = "interrupt"
        end = Termination("feasible-at-limit", limit, f"{number} branches")
    trace = sorted((line for tree in trees for line in tree.trace), key=lambda line: line["block"])
    return Point(
        selection, bandwidth.bandwidth, end, lower_bound=bound, bound_kind="claimed",
        kkt_residual=bandwidth.kkt_residual, trace=tuple(trace), certificate=_certificate(problem, trees),
    )  # fmt: skip


def _certificate(problem: Problem, trees: list[BranchTree]) -> Certificate:
    """One tree of all groups, or plain prices where nothing was branched on."""
    shape = problem.tables.ids.shape
    if all(len(tree.branches) == 1 for tree in trees):
        return assemble(shape, [p for p in (tree.branches[0].proof for tree in trees) if p is not None])
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
