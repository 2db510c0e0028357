"""Branch and bound by linear programs: blocks that share bandwidth, and small ones of unlike experts.

Every branch is bounded by `mean_relaxation`, whose multipliers are the branch's certificate. Split is what
misses most of the true latency: the transfers of a device, whether an expert is active, and where neither
is in doubt, a single (token, expert) pair. Where the limits of all loads meet, the bound is exact.
"""

from __future__ import annotations

import numpy as np

from wdmoe_opt.certificates.tree import EXPERT, LOAD
from wdmoe_opt.mean_relaxation import Answer, MeanRelaxation
from wdmoe_opt.relaxation import Relaxation
from wdmoe_opt.solvers.branching import Branch, BranchTree, Choice, contradiction
from wdmoe_opt.solvers.certified import Group

#: Largest number of (token, expert) pairs of a group for which linear programs are quick enough.
MOST_PAIRS = 6000
#: The same for a single block, whose bounds by ascent start closer.
FEW_PAIRS = 100
#: Part of the latency that must be missing for a load or an expert to be split on.
MISSING = 1e-7
#: What a second missed on a device counts beyond its multiplier: one that waits now may not below.
UNWEIGHTED = 0.02
#: Part of the allowed gap that the linear programs leave to the check.
SPARED = 0.5
#: Least distance of a load from the cut to either side, relative to the room there.
INSIDE = 1e-9


class MeanTree(BranchTree):
    """Branches bounded by linear programs."""

    @staticmethod
    def fits(group: Group) -> bool:
        """Whether it is for this group."""
        relaxation = group.relaxation
        pairs = int((relaxation.ids >= 0).sum())
        if not relaxation.free or pairs > MOST_PAIRS:
            return False
        if relaxation.blocks > 1:
            return True
        # A single block: where ascent cannot branch on loads.
        countable = relaxation.alike and not relaxation.problem.tables.by_device
        return not countable and pairs <= FEW_PAIRS

    def _plant(self) -> None:
        self.means = MeanRelaxation(self.relaxation, self.value)
        super()._plant()

    def _ascend(self, branch: Branch) -> None:
        relaxation = self.relaxation.restricted(branch.parts)
        if contradiction(relaxation, self.problem):
            branch.empty, branch.bound, branch.proof = True, np.inf, None
            return
        before: Answer | None = branch.notes
        tangents = self.means.first_tangents if before is None else before.tangents
        goal = self.value * (1.0 - SPARED * self.rel_gap)
        answer = self.means.solve(relaxation, tangents, goal, self.deadline)
        branch.notes = answer
        if answer is None:
            return
        self._candidate(relaxation, answer.mean)
        if answer.proof.bound > branch.bound:
            branch.proof, branch.bound = answer.proof, answer.proof.bound

    def _choose(self, branch: Branch) -> Choice | None:
        relaxation = self.relaxation.restricted(branch.parts)
        answer: Answer | None = branch.notes
        if answer is None:
            return self._doubtful_pair(relaxation, branch, np.zeros(relaxation.ids.shape))
        choices = [self._missed_load(answer), self._missed_expert(relaxation, answer)]
        score, choice = max(choices, key=lambda found: found[0])
        if score > MISSING * self.value:
            return choice
        return self._doubtful_pair(relaxation, branch, answer.mean) or choice

    def _missed_load(self, answer: Answer) -> tuple[float, Choice | None]:
        """The device whose transfers the relaxation misses most of."""
        fewest, largest = answer.fewest, answer.largest
        missing = answer.missing * (answer.proof.work + UNWEIGHTED)
        score = np.where(fewest < largest, missing, -1.0)
        i, k = np.unravel_index(int(score.argmax()), score.shape)
        if score[i, k] < 0:
            return -1.0, None
        cut = min(max(np.floor(answer.load[i, k] + INSIDE), fewest[i, k]), largest[i, k] - 1)
        return float(score[i, k]), (LOAD, (self._first + int(i), int(k), -1), float(cut))

    def _missed_expert(self, relaxation: Relaxation, answer: Answer) -> tuple[float, Choice | None]:
        """The expert of whose activation the relaxation misses most."""
        t = self.problem.tables
        free = relaxation.choosable & (t.activation > 0)
        if not free.any():
            return -1.0, None
        cost = (answer.proof.work[:, t.expert_device] + UNWEIGHTED) * t.activation
        score = np.where(free, np.minimum(answer.awake, 1 - answer.awake) * cost, -1.0)
        i, e = np.unravel_index(int(score.argmax()), score.shape)
        return float(score[i, e]), (EXPERT, (self._first + int(i), int(e), -1), 0.0)
