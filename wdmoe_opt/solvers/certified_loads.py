"""Certified, where routing is known only as loads: the best bandwidth, and the proof that it is the best.

Nothing is relaxed: the problem is convex (facts 2 and 5), so the multipliers of its solution prove it.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from wdmoe_opt.bandwidth import allocate, demands
from wdmoe_opt.kernels.bounds import Limits, order_members
from wdmoe_opt.problem import Problem
from wdmoe_opt.registry import Control, Point, Termination
from wdmoe_opt.relaxation import Proof, Quote, Relaxation, TokenPart, join
from wdmoe_opt.search import groups
from wdmoe_opt.solvers.certified import assemble
from wdmoe_opt.validation import RealArray

#: By how much what loads cost is rounded down.
ROUNDING = 1e-14
#: No selection: only loads are known.
NONE: NDArray[np.bool_] = np.zeros((0, 0, 0), dtype=np.bool_)


def certified_loads(problem: Problem, control: Control) -> Point:
    """Allocate bandwidth to known loads, and prove that no other allocation is better.

    Parameters
    ----------
    problem : Problem
        Of an instance with loads only.
    control : Control

    Notes
    -----
    Source: docs/mathematics.md, facts 2, 5 and 6.
    """
    best = allocate(problem, *demands(problem, None))
    proofs = [_proof(problem, rows) for rows in groups(problem)]
    bound = sum(proof.bound for proof in proofs)
    value = sum(float(KnownLoads(problem, rows).latency(NONE).sum()) for rows in groups(problem))
    within = (value - bound) / value if value > 0 else 0.0
    done = within <= control.rel_gap
    end = Termination("optimal" if done else "feasible-at-limit", "" if done else "relaxation",
                      f"certified within {within:.2e}")  # fmt: skip
    return Point(
        None, best.bandwidth, end, lower_bound=bound, bound_kind="claimed", kkt_residual=best.kkt_residual,
        certificate=assemble(problem.tables.ids.shape, proofs) if bound > 0 else None,
    )  # fmt: skip


def _proof(problem: Problem, rows: slice) -> Proof:
    """Multipliers of the best bandwidth as prices; where blocks share it, of every block alone, too."""
    loads = KnownLoads(problem, rows)
    if not loads.sent.any():
        return loads.nothing()
    alone = None
    if loads.blocks > 1:
        alone = join([_proof(problem, slice(i, i + 1)) for i in range(rows.start, rows.stop)])
    quote = loads.multipliers(NONE, 0.0)
    # Blocks without tokens take no time; any horizon will do for them.
    quote = replace(quote, horizon=np.where(quote.horizon > 0, quote.horizon, quote.horizon.max()))
    return loads.prove(quote, alone)


class KnownLoads(Relaxation):
    """A group of blocks whose loads are given: the tokens' part of prices and bounds is a sum."""

    @cached_property
    def sent(self) -> RealArray:
        """Transfers to every device, (blocks, devices)."""
        return self.demands(NONE)[0]

    def _routing(self) -> tuple[NDArray[np.int32], RealArray]:
        tables = self.problem.tables
        return tables.ids[self.rows], tables.weights[self.rows]

    @cached_property
    def limits(self) -> list[Limits]:
        """Every device gets what it gets, and pays for its activation if that is anything."""
        activation = self.problem.tables.activation
        none = np.zeros((0, 0), dtype=np.bool_)
        return [
            Limits(none, sent > 0, np.where(sent > 0, activation, 0.0), sent > 0, sent, sent)
            for sent in self.sent
        ]

    @cached_property
    def wakes(self) -> NDArray[np.bool_]:
        """Nobody chooses which experts are active."""
        return np.zeros((self.blocks, self.experts), dtype=np.bool_)

    @cached_property
    def compute_range(self) -> tuple[RealArray, RealArray]:
        """Compute time of a transfer, s, least and largest (blocks, devices)."""
        compute = np.tile(self.problem.tables.compute, (self.blocks, 1))
        return compute, compute

    def demands(self, keep: NDArray[np.bool_]) -> tuple[RealArray, RealArray]:
        """Transfers and seconds of work, whatever the selection."""
        sent, busy = demands(self.problem, None)
        return sent[self.rows], busy[self.rows]

    def idle(self) -> RealArray:
        """Seconds that devices do not serve tokens (blocks, devices)."""
        t = self.problem.tables
        idle: RealArray = np.where(self.sent > 0, t.activation + t.link_delay, 0.0)
        return idle

    def _tokens(self, i: int, quote: Quote) -> TokenPart:
        t = self.problem.tables
        paid = float(self.sent[i] @ (quote.send[i] + quote.second[i] * t.compute))
        free, value = np.zeros(self.experts, dtype=np.bool_), np.zeros(self.experts)
        order = order_members(t.expert_device, t.activation, value, free, self.devices)
        return TokenPart(paid * (1 - ROUNDING), np.zeros((0, 0)), value, order)
