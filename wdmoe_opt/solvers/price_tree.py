"""Branch and bound by ascent on prices: blocks on their own, and large groups that share bandwidth.

What makes the relaxation loose is branched on in this order: which experts are active, how many
transfers a device gets, and single (token, expert) pairs. A branch starts with its parent's prices, and
ascent on them stops as soon as the branch cannot hold anything better than the best selection known.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from wdmoe_opt.certificates.tree import EXPERT, LOAD
from wdmoe_opt.relaxation import Proof, Quote, Relaxation
from wdmoe_opt.solvers.branching import Branch, BranchTree, Choice, contradiction
from wdmoe_opt.validation import RealArray

#: Ascent steps at the root of a tree and at a branch.
ROOT_STEPS, BRANCH_STEPS = 150, 20
#: How far from 0 and 1 the mean of a decision must be to be branched on.
DOUBT = 0.02


@dataclass(eq=False)
class Notes:
    """Prices of a branch, and what its relaxed selection looks like."""

    quote: Quote
    mean: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 0, 0)))
    awake: RealArray = field(default_factory=lambda: np.zeros((0, 0)))


class PriceTree(BranchTree):
    """Branches bounded by ascent."""

    def _start(self) -> Proof:
        relaxation = self.relaxation
        return relaxation.best or relaxation.prove(relaxation.multipliers(self.keep))

    def _plant(self) -> None:
        relaxation, t = self.relaxation, self.problem.tables
        best = self.branches[0].proof
        assert best is not None
        self.known: Proof | None = None
        if self.joint and relaxation.dependent:
            self.known = best.floor
            if self.known is None:
                latency = relaxation.latency(self.keep)
                self.known = relaxation.each_alone(self.keep, latency, ROOT_STEPS)
        self.loads = not t.by_device and relaxation.alike
        # With a choice of active experts, limits of loads are beyond the bound's reach.
        hosted = np.bincount(t.expert_device, t.activation > 0, relaxation.devices)
        self._countable = (hosted <= 0) | (np.bincount(t.expert_device, minlength=relaxation.devices) <= 1)
        self.branches[0].notes = Notes(self._root_quote(best))
        super()._plant()

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

    # ------------------------------------------------------------------ bounds

    def _ascend(self, branch: Branch) -> None:
        """Prices, bound and candidate of a branch."""
        steps = BRANCH_STEPS if branch.number else ROOT_STEPS
        notes = branch.notes = Notes(branch.notes.quote)
        relaxation = self.relaxation.restricted(branch.parts)
        if contradiction(relaxation, self.problem):
            branch.empty, branch.bound, branch.proof = True, np.inf, None
            return
        decided = self._decided(relaxation, branch)
        if decided is not None:
            self._settle(relaxation, branch, decided)
            return
        self._try_prices(relaxation, branch, notes.quote)
        if branch.bound >= self.goal:
            return
        if self.joint:
            quote, proof = relaxation.ascend_jointly(notes.quote, self.known, self.goal, steps)
            self._take(branch, quote, proof)
        else:
            goal = np.array([self.goal])
            self._try_prices(relaxation, branch, relaxation.ascend(notes.quote, goal, steps))
        notes.mean, notes.awake = relaxation.mean, relaxation.awake
        self._candidate(relaxation, notes.mean)

    def _try_prices(self, relaxation: Relaxation, branch: Branch, quote: Quote) -> None:
        self._take(branch, quote, relaxation.prove(quote, self.known))

    def _take(self, branch: Branch, quote: Quote, proof: Proof) -> None:
        """Prices of a branch, if they prove more than what it has from its parent."""
        if branch.proof is None or proof.bound > branch.bound:
            branch.proof, branch.bound = proof, max(proof.bound, branch.bound)
            branch.notes.quote = quote

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

    # ------------------------------------------------------------------ branching

    def _choose(self, branch: Branch) -> Choice | None:
        """Most doubtful expert, load or pair of a branch."""
        relaxation = self.relaxation.restricted(branch.parts)
        if branch.notes.mean.size == 0:
            branch.notes.mean = np.zeros(relaxation.ids.shape)
            branch.notes.awake = np.zeros((relaxation.blocks, relaxation.experts))
        return (
            self._doubtful_expert(relaxation, branch)
            or self._doubtful_load(relaxation, branch)
            or self._doubtful_pair(relaxation, branch, branch.notes.mean)
        )

    def _doubtful_expert(self, relaxation: Relaxation, branch: Branch) -> Choice | None:
        t = self.problem.tables
        open_now = np.stack([limits.opened for limits in relaxation.limits])
        free = relaxation.usable_experts & ~open_now & (t.activation > 0)
        doubt = np.where(free, np.minimum(branch.notes.awake, 1 - branch.notes.awake), 0.0)
        score = doubt * branch.notes.quote.second[:, t.expert_device] * t.activation
        if not (doubt > DOUBT).any():
            return None
        i, e = np.unravel_index(int(np.where(doubt > DOUBT, score, -1.0).argmax()), score.shape)
        return EXPERT, (self._first + int(i), int(e), -1), 0.0

    def _doubtful_load(self, relaxation: Relaxation, branch: Branch) -> Choice | None:
        if not self.loads:
            return None
        t = self.problem.tables
        pairs = relaxation.ids >= 0
        load = np.zeros((relaxation.blocks, relaxation.devices))
        blocks = np.nonzero(pairs)[0]
        np.add.at(load, (blocks, t.expert_device[relaxation.ids[pairs]]), branch.notes.mean[pairs])
        fewest = np.stack([limits.fewest for limits in relaxation.limits])
        largest = np.stack([limits.largest for limits in relaxation.limits])
        cut = np.floor(load)
        able = (fewest <= cut) & (largest >= cut + 1) & self._countable
        doubt = np.where(able, np.minimum(load - cut, cut + 1 - load), 0.0)
        i, k = np.unravel_index(int((doubt * branch.notes.quote.send).argmax()), doubt.shape)
        if doubt[i, k] <= DOUBT:
            return None
        return LOAD, (self._first + int(i), int(k), -1), float(cut[i, k])
