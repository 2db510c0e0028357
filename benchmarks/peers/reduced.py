"""The joint program in reduced space, for solvers that take expressions: selection, shares, latencies.

Sets, data and rules as in `wdmoe_opt.formulations.minlp`; rates and air times are expressions of the shares
instead of variables:

    busy_ik + sent_ik sum_d slow_d r_d(1/K) / r_d(b_k) <= T_i,     r(b) = b ln(1 + c / b)

in normalised units, see `wdmoe_opt.formulations.common`. A share is at least `LEAST`, as the time has no
value at 0; scaling an optimum into that costs a factor of at most 1 / (1 - devices * LEAST), which bounds are
lowered by.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wdmoe_opt.formulations.common import link_time_parameter, normalise
from wdmoe_opt.problem import Problem
from wdmoe_opt.validation import RealArray

LEAST = 1e-7


def restriction(problem: Problem) -> str:
    """Why the program does not apply, "" if it does."""
    return "" if problem.max_latency is None else "it does not do a cap on latency"


@dataclass(frozen=True, eq=False)
class Variables:
    """Bounds and a start of all variables in one row, and where the parts begin and end.

    Attributes
    ----------
    low, high, start : float arrays (variables,)
    binary : bool array (variables,)
    """

    low: RealArray
    high: RealArray
    start: RealArray
    binary: NDArray[np.bool_]


class ReducedProgram:
    """Variables and constraints as expressions of whatever algebra a solver has.

    Parameters
    ----------
    problem : Problem
        Objective "latency", with tokens.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem, self.data = problem, normalise(problem)
        data = self.data
        self.blocks, self.devices = data.shape
        self.group, self.transfers = data.groups
        self.by_device = bool(problem.tables.by_device)
        used = {(int(b), int(e)) for (b, _, _), e in zip(data.pairs, data.pair_expert, strict=True)}
        self.active = sorted((b, e) for b, e in used if data.activation[e] > 0)
        hosts = problem.tables.expert_device
        self.loaded = sorted({(b, int(hosts[e])) for b, e in used if data.delay[hosts[e]] > 0})
        self.free = problem.allocation != "fixed"
        sizes = (
            len(data.pairs),
            len(self.transfers) if self.by_device else 0,
            len(self.active),
            len(self.loaded),
            data.rows * self.devices if self.free else 0,
            self.blocks,
        )
        ends = np.cumsum(sizes)
        self.parts = [slice(int(end - size), int(end)) for end, size in zip(ends, sizes, strict=True)]

    @property
    def variables(self) -> Variables:
        """Bounds, a feasible start (plain top-k at equal shares), and what is binary."""
        size = self.parts[-1].stop
        low, high, start = np.zeros(size), np.ones(size), np.ones(size)
        binary = np.zeros(size, dtype=bool)
        binary[self.parts[0]] = True
        high[self.parts[5]] = 2.0  # a trivial point has 1; least shares must not cut it off
        start[self.parts[0]] = self.problem.top_k_keep[tuple(self.data.pairs.T)]
        if self.free:
            low[self.parts[4]] = np.tile(np.maximum(self.data.low, LEAST), self.data.rows)
            high[self.parts[4]] = np.tile(np.maximum(self.data.high, LEAST), self.data.rows)
            start[self.parts[4]] = 1.0 / self.devices
        return Variables(low, high, np.clip(start, low, high), binary)

    def build(self, x: Sequence[Any], log: Callable[[Any], Any]) -> tuple[Any, list[Any]]:
        """Objective, and expressions that must be at most 0.

        Parameters
        ----------
        x : sequence
            One entry per variable.
        log : callable
            Natural logarithm in the solver's algebra.
        """
        select, shared, active, loaded, share, latency = (list(x[part]) for part in self.parts)
        rules = self._selection_rules(select)
        sent = shared if self.by_device else select
        rules += [select[p] - shared[self.group[p]] for p in range(len(select))] if self.by_device else []
        load: dict[tuple[int, int], list[Any]] = {}
        for value, (block, _, device) in zip(sent, self.transfers, strict=True):
            load.setdefault((int(block), int(device)), []).append(value)
        busy = self._busy(select, active, loaded, rules)
        for (block, device), terms in load.items():
            air = total(terms) * self._link(block, device, share, log)
            rules.append(air + total(busy.get((block, device), [0.0])) - latency[block])
        if self.free:
            k = self.devices
            rules += [total(share[row * k : (row + 1) * k]) - 1.0 for row in range(self.data.rows)]
        return total(latency), rules

    def _selection_rules(self, select: list[Any]) -> list[Any]:
        """At least one expert per token, at most ``max_experts``, and the floors."""
        problem, data = self.problem, self.data
        of_token: dict[tuple[int, int], list[int]] = {}
        for p, (block, token, _) in enumerate(data.pairs):
            of_token.setdefault((int(block), int(token)), []).append(p)
        rules = []
        for (block, _), pairs in of_token.items():
            kept = total([select[p] for p in pairs])
            rules.append(1.0 - kept)
            if problem.max_experts is not None and problem.max_experts < len(pairs):
                rules.append(kept - float(problem.max_experts))
            floor = float(np.asarray(problem.min_token_retention)[block])
            if floor > 0:
                rules.append(floor - total([float(data.pair_retention[p]) * select[p] for p in pairs]))
        for block in range(self.blocks):
            floor = float(np.asarray(problem.min_retention)[block])
            if floor > 0:
                mine = np.flatnonzero(data.pairs[:, 0] == block)
                kept = total([float(data.pair_retention[p]) / data.tokens * select[p] for p in mine])
                rules.append(floor - kept)
        return rules

    def _busy(
        self, select: list[Any], active: list[Any], loaded: list[Any], rules: list[Any]
    ) -> dict[tuple[int, int], list[Any]]:
        """Terms of the time that bandwidth cannot change, by block and device; adds what ties them."""
        data, hosts = self.data, self.problem.tables.expert_device
        where = {key: n for n, key in enumerate(self.active)}
        which = {key: n for n, key in enumerate(self.loaded)}
        busy: dict[tuple[int, int], list[Any]] = {}
        for p, ((block, _, _), expert) in enumerate(zip(data.pairs, data.pair_expert, strict=True)):
            key = int(block), int(hosts[expert])
            busy.setdefault(key, []).append(float(data.compute[expert]) * select[p])
            if (int(block), int(expert)) in where:
                rules.append(select[p] - active[where[int(block), int(expert)]])
            if key in which:
                rules.append(select[p] - loaded[which[key]])
        for (block, expert), n in where.items():
            busy[block, int(hosts[expert])].append(float(data.activation[expert]) * active[n])
        for key, n in which.items():
            busy[key].append(float(data.delay[key[1]]) * loaded[n])
        return busy

    def _link(self, block: int, device: int, share: list[Any], log: Callable[[Any], Any]) -> Any:
        """Time of one transfer as an expression of the share."""
        if not self.free:
            return float(link_time_parameter(self.problem, self.data.time_unit)[block, device])
        row = 0 if self.data.rows == 1 else block
        b = share[row * self.devices + device]
        terms = []
        for d in self.data.directions:
            snr = float(self.data.snr(d)[block, device])
            scale = float(self.data.slow(d)[block, device] * self.data.equal_rate(d)[block, device])
            terms.append(scale / (b * log(1.0 + snr / b)))
        return total(terms) if terms else 0.0

    def keep(self, x: RealArray) -> NDArray[np.bool_]:
        """The selection of a point, bool (blocks, tokens, m)."""
        found = np.zeros(self.problem.allowed.shape, dtype=bool)
        found[tuple(self.data.pairs.T)] = np.asarray(x)[self.parts[0]] > 0.5
        return found

    def bound(self, value: float) -> float | None:
        """A bound on the objective in s, lowered by what least shares may cost; None if there is none."""
        if not math.isfinite(value):
            return None
        return value * self.data.time_unit * (1.0 - self.devices * LEAST)


def total(terms: Sequence[Any]) -> Any:
    """Sum without a leading zero, which some algebras do not take."""
    found = terms[0]
    for term in terms[1:]:
        found = found + term
    return found
