"""Trees of branch and bound: growth, checked leaves, selections; subclasses bound the branches.

A branch's prices are held against the certificate's check when it is made, and only whole, checked splits
enter the tree: so it is as good at an interruption as at the end.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wdmoe_opt.certificates.branches import leaf_bound, one_block
from wdmoe_opt.certificates.facts import facts_of
from wdmoe_opt.certificates.tree import EXPERT, PAIR, ROOT
from wdmoe_opt.certificates.weaken import CUTS
from wdmoe_opt.floors import repair_floors
from wdmoe_opt.interrupts import interrupts_heard
from wdmoe_opt.problem import FEASIBILITY_TOLERANCE, Problem
from wdmoe_opt.registry import Control
from wdmoe_opt.relaxation import Proof, Relaxation, Restriction
from wdmoe_opt.search import Search
from wdmoe_opt.solvers.certified import Group, assemble
from wdmoe_opt.solvers.deadline import Deadline
from wdmoe_opt.validation import RealArray

#: Branches between two local searches from the best candidate of a branch.
POLISH_EVERY = 50
#: By how much, relatively, the check may stay below a branch before its parent's prices are tried.
AGREED = 1e-8

#: Kind, index, value and side of a split, as in a certificate's tree; and without side.
Split = tuple[int, tuple[int, int, int], float, int]
Choice = tuple[int, tuple[int, int, int], float]


@dataclass(eq=False)
class Branch:
    """A node of the tree: restrictions, prices, bound, and what its subclass of tree notes of it."""

    number: int
    parent: int
    split: Split
    parts: list[Restriction]
    proof: Proof | None
    bound: float
    empty: bool = False
    notes: Any = None


class BranchTree(ABC):
    """Branch and bound on one group of blocks."""

    def __init__(
        self, problem: Problem, group: Group, control: Control, deadline: Deadline, max_branches: int
    ) -> None:
        self.problem, self.group, self.relaxation = problem, group, group.relaxation
        self.rows, self.rel_gap, self.deadline = group.rows, control.rel_gap, deadline
        self.max_branches, self.interrupted = max_branches, False
        self.keep, self.value = group.keep, group.value
        if self.value == np.inf:
            # The group was interrupted before its first selection.
            plain = Search(problem, self.rows, self.keep)
            self.keep, self.value = plain.keep, plain.value
        self.joint = self.relaxation.blocks > 1 and self.relaxation.free
        facts = facts_of(problem)
        self.facts = facts if self.joint else one_block(facts, self.rows.start)
        self.ticket = count()
        self.heap: list[tuple[float, int, Branch]] = []
        self.trace: list[dict[str, Any]] = []
        start = self._start()
        where = (-1 if self.joint else self.rows.start, -1, -1)
        root = Branch(0, -1, (ROOT, where, 0.0, 0), self._free_parts(), start, start.bound)
        self.branches: list[Branch] = [root]
        self.leaves: dict[int, Branch] = {0: root}

    def _start(self) -> Proof:
        """What the group has proved."""
        return self.relaxation.best or self.relaxation.nothing()

    def _free_parts(self) -> list[Restriction]:
        relaxation = self.relaxation
        return [
            Restriction(
                np.zeros(relaxation.ids.shape[1:], dtype=np.int8),
                np.zeros(relaxation.experts, dtype=np.int8), np.zeros(relaxation.devices),
                np.full(relaxation.devices, np.inf),
            )
            for _ in range(relaxation.blocks)
        ]  # fmt: skip

    # ------------------------------------------------------------------ for subclasses

    @abstractmethod
    def _ascend(self, branch: Branch) -> None:
        """Find prices, bound and candidate of a branch."""

    @abstractmethod
    def _choose(self, branch: Branch) -> Choice | None:
        """What to split a branch on; None if there is nothing."""

    def _doubtful_pair(self, relaxation: Relaxation, branch: Branch, mean: RealArray) -> Choice | None:
        """The open pair that the relaxation, which takes it with a share of `mean`, is least sure of."""
        forced = np.stack([part.state > 0 for part in branch.parts])
        free = (relaxation.ids >= 0) & ~forced
        if not free.any():
            return None
        doubt = np.minimum(mean, 1 - mean) + 1e-3 * np.minimum(relaxation.share, 1.0)
        i, j, c = np.unravel_index(int(np.where(free, doubt, -1.0).argmax()), doubt.shape)
        return PAIR, (self._first + int(i), int(j), int(c)), 0.0

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
            with interrupts_heard():
                self._branch()
        except KeyboardInterrupt:
            self.interrupted = True
        return self.interrupted

    def _branch(self) -> None:
        self._plant()
        while self.heap and len(self.branches) < self.max_branches and self.deadline.left > 0.0:
            bound, _, branch = heappop(self.heap)
            if bound >= self.goal:
                break
            self._split(branch)

    def _plant(self) -> None:
        root = self.branches[0]
        if root.bound < self.goal:
            better = replace(root)
            self._ascend(better)
            self._verify(better, root.proof)
            if better.bound >= root.bound:
                self.branches[0] = self.leaves[0] = root = better
            self._push(root)

    def _verify(self, branch: Branch, inherited: Proof | None) -> None:
        """Hold a new branch against the check: its own prices or its parent's, else a weaker claim."""
        if branch.bound == np.inf or branch.proof is None:
            return
        path = self._path(branch)
        hoped, branch.bound = branch.bound, -np.inf
        for proof in dict.fromkeys((branch.proof, inherited)):
            if proof is None:
                continue
            proved = leaf_bound(self.facts, path, assemble(self.problem.tables.ids.shape, [proof]))
            if proved > max(branch.bound, 0.0):
                branch.proof, branch.bound = proof, proved
            if branch.bound >= hoped * (1 - AGREED):
                return
        for cut in CUTS if branch.bound <= 0 and branch.proof.form == "deadline" else ():
            claim = replace(branch.proof, deadline=branch.proof.deadline * (1 - cut))
            proved = leaf_bound(self.facts, path, assemble(self.problem.tables.ids.shape, [claim]))
            if proved > 0:
                branch.proof, branch.bound = claim, proved
                return
        if branch.bound <= 0:
            branch.proof, branch.bound = self.relaxation.nothing(), 0.0

    def _path(self, leaf: Branch) -> list[Split]:
        """Splits from the root to a leaf."""
        path = []
        node = leaf
        while True:
            path.append(node.split)
            if node.parent < 0:
                return path[::-1]
            node = self.branches[node.parent]

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
            parts[split[1][0] - self._first] = half(parts[split[1][0] - self._first], split, side)
            part = Branch(
                len(self.branches) + side, branch.number, (*split, side), parts, branch.proof, branch.bound,
                notes=branch.notes,
            )  # fmt: skip
            self._ascend(part)
            self._verify(part, branch.proof)
            halves.append(part)
        # Only whole, checked splits enter the tree: an interruption before leaves it as it was.
        self.branches += halves
        self.leaves.update((part.number, part) for part in halves)
        del self.leaves[branch.number]
        for part in halves:
            self._push(part)
        if len(self.branches) % (2 * POLISH_EVERY) < 2:
            self._polish()
        # What a parent needed is no longer needed.
        branch.parts, branch.proof, branch.notes = [], None, None

    @property
    def _first(self) -> int:
        return int(self.rows.start)

    def _decided(self, relaxation: Relaxation, branch: Branch) -> NDArray[np.bool_] | None:
        """The selection, if nothing is left to decide."""
        forced = np.stack([part.state > 0 for part in branch.parts])
        return forced if ((relaxation.ids >= 0) == forced).all() else None

    # ------------------------------------------------------------------ selections

    def _candidate(self, relaxation: Relaxation, mean: RealArray) -> None:
        """Offer the selection that a branch's mean suggests."""
        keep = (mean > 0.5) & (relaxation.ids >= 0)
        lost = ~keep.any(axis=2)
        if lost.any():
            usual = np.where(relaxation.ids >= 0, mean + 1e-9 * relaxation.share, -1.0)
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


def half(part: Restriction, split: Choice, side: int) -> Restriction:
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


def contradiction(relaxation: Relaxation, problem: Problem) -> bool:
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
