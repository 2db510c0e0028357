"""The state of a search over selections: what greedy, alternating and local search share.

A `Search` holds the selection of a group of blocks with its loads, prices it exactly (the bandwidth is
the best one for the objective wherever it is free), and applies batches of moves that stay only if the
exact objective improves. Blocks that share bandwidth form one group; otherwise each is its own.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wdmoe_opt.floors import floor_conflict, repair_floors, usable
from wdmoe_opt.kernels.block_bandwidth import block_bandwidth, block_multipliers, soft_multipliers
from wdmoe_opt.kernels.bottleneck import shed_bottleneck, sort_pairs
from wdmoe_opt.kernels.link import link_times
from wdmoe_opt.kernels.moves import (
    FLOOR_SLACK,
    LATENCY,
    PER_DEVICE,
    PER_TOKEN,
    propose_adds,
    propose_moves,
    take_selection,
    undo_moves,
    weight_sums,
)
from wdmoe_opt.kernels.pricing import busy_times, device_times
from wdmoe_opt.kernels.ratio_bandwidth import ratio_bandwidth
from wdmoe_opt.kernels.shared_bandwidth import shared_bandwidth
from wdmoe_opt.kernels.transport import least_deadline
from wdmoe_opt.problem import FEASIBILITY_TOLERANCE, Problem
from wdmoe_opt.validation import RealArray

#: How sharply prices single out the slowest device where bandwidth cannot be moved.
SHARPNESS = 100.0
#: A batch that improves by less than this part counts as a failure; so many in a row end a search.
PROGRESS = 1e-5
PATIENCE = 6
#: Rounds of reweighting for the per-block ratio under shared bandwidth.
REWEIGHTINGS = 3
#: First and last amount of retention that `Search.polish` trades.
WIDEST_TRADE, FINEST_TRADE = 0.02, 0.002

_READINGS = {"wlr-token": PER_TOKEN, "wlr-device": PER_DEVICE}


class Search:
    """Selection, loads, bandwidth and prices of a group of blocks.

    Parameters
    ----------
    problem : Problem
    rows : slice
        The blocks of the group.
    keep : bool array (blocks of the group, tokens, m)
        Start; must keep the floors.
    pool : Executor, optional
        Spreads work on single blocks over threads; results do not depend on it.
    """

    def __init__(
        self,
        problem: Problem,
        rows: slice,
        keep: NDArray[np.bool_],
        pool: ThreadPoolExecutor | None = None,
    ) -> None:
        t = problem.tables
        self.problem, self.rows, self.pool = problem, rows, pool
        self.reading = _READINGS.get(problem.objective, LATENCY)
        self.ids, self.share, self.mass = t.ids[rows], problem.shares[rows], t.mass[rows]
        self.allowed = usable(problem)[rows]
        self.c_down, self.c_up = t.c_down[rows], t.c_up[rows]
        self.token_floor = np.asarray(problem.min_token_retention)[rows]
        self.block_floor = np.asarray(problem.min_retention)[rows]
        #: Keep the bandwidth as it is while pricing.
        self.hold = False
        self.bandwidth: RealArray | None = None
        # Pairs in order of weight, for the selection last begun from: along a descent pairs only leave.
        self._begun: NDArray[np.bool_] | None = None
        self._pairs: dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}
        self._all_pairs: dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}
        self.start(keep)

    def start(self, keep: NDArray[np.bool_]) -> None:
        """Begin anew from a selection; a held bandwidth stays."""
        t = self.problem.tables
        self.keep = keep.copy()
        blocks, tokens = keep.shape[:2]
        self.count, self.kept = np.empty((blocks, tokens), dtype=np.int64), np.empty((blocks, tokens))
        self.load = np.empty((blocks, t.expert_device.size), dtype=np.int64)
        self.sent = np.empty((blocks, t.low.size))
        take_selection(
            self.ids, self.share, self.keep, t.expert_device, t.by_device, self.count, self.kept, self.load,
            self.sent,
        )  # fmt: skip
        self.busy, self.device_time = np.empty_like(self.sent), np.empty_like(self.sent)
        self.multipliers, self.link_time = np.empty_like(self.sent), np.empty_like(self.sent)
        self.block_latency = np.empty(blocks)
        self.moved = np.empty((*self.count.shape, 2), dtype=np.int64)
        self.frozen = np.zeros(self.count.shape, dtype=np.bool_)
        self.banned = np.zeros(self.load.shape, dtype=np.bool_)
        if keep is not self._begun:
            self._begun, self._pairs = keep, {}
        self.value = self.price()

    # ------------------------------------------------------------------ pricing

    def price(self) -> float:
        """Best bandwidth for the present loads, times, multipliers; return the objective, to be minimised."""
        t = self.problem.tables
        busy_times(self.load, self.sent, t.expert_device, t.compute, t.activation, t.link_delay, self.busy)
        if t.fixed_link_time is not None:
            self.link_time = t.fixed_link_time[self.rows]
        else:
            if not self.hold:
                self._allocate()
            assert self.bandwidth is not None
            self.link_time = link_times(self.bandwidth, t.bits_down, self.c_down, t.bits_up, self.c_up)
        device_times(self.sent, self.busy, self.link_time, self.device_time, self.block_latency)
        self._take_multipliers()
        return self._objective()

    def _allocate(self) -> None:
        """The best bandwidth for the objective, one row or one per block."""
        p, t = self.problem, self.problem.tables
        if p.allocation == "fixed":
            given = p.fixed_bandwidth
            assert given is not None
            self.bandwidth = given[self.rows] if given.ndim == 2 else given[None, :]
            return
        groups = [slice(None)]
        if p.allocation == "per-block":
            groups = [slice(i, i + 1) for i in range(self.sent.shape[0])]
        self.bandwidth = np.empty((len(groups), t.low.size))
        for row, group in enumerate(groups):
            if self.reading == LATENCY:
                self._allocate_latency(group, self.bandwidth[row])
            else:
                self._allocate_ratio(group, self.bandwidth[row])

    def _allocate_latency(self, group: slice, out: RealArray) -> None:
        t = self.problem.tables
        sent, busy = self.sent[group], self.busy[group]
        c_down, c_up = self.c_down[group], self.c_up[group]
        link = (t.low, t.high, t.total)
        if sent.shape[0] == 1:
            block_bandwidth(sent[0], busy[0], t.bits_down, c_down[0], t.bits_up, c_up[0], *link, out)
            return
        shared_bandwidth(sent, busy, t.bits_down, c_down, t.bits_up, c_up, *link, out, self.multipliers)
        if self.problem.objective != "wlr-block":
            return
        # sum R_i / T_i is convex in T: raising its tangent raises it, and that is a weighted P-BW.
        kept = (self.kept * self.mass).sum(axis=1)
        for _ in range(REWEIGHTINGS):
            times, latency = np.empty_like(sent), np.empty(sent.shape[0])
            phi = link_times(out[None, :], t.bits_down, c_down, t.bits_up, c_up)
            device_times(sent, busy, phi, times, latency)
            weight = (kept / latency**2)[:, None]
            shared_bandwidth(
                sent * weight,
                busy * weight,
                t.bits_down,
                c_down,
                t.bits_up,
                c_up,
                *link,
                out,
                self.multipliers,
            )

    def _allocate_ratio(self, group: slice, out: RealArray) -> None:
        t = self.problem.tables
        weight, mean = self._weights()
        if self.reading == PER_DEVICE:
            terms = (weight[group, :, None], self.busy[group, :, None], self.sent[group, :, None])
        else:
            slot = _slots(t.expert_device, t.low.size)
            shape = (*mean[group].shape[:1], t.low.size, int(slot.max()) + 1)
            numerator, constant = np.zeros(shape), np.ones(shape)
            numerator[:, t.expert_device, slot] = mean[group]
            constant[:, t.expert_device, slot] = t.compute
            terms = (numerator, constant, np.ones(shape))
        numerators, constants, factors = (np.ascontiguousarray(term) for term in terms)
        ratio_bandwidth(
            numerators,
            constants,
            factors,
            np.asarray((self.sent[group] > 0).any(axis=0)),
            t.bits_down,
            self.c_down[group],
            t.bits_up,
            self.c_up[group],
            t.low,
            t.high,
            t.total,
            out,
        )

    def _weights(self) -> tuple[RealArray, RealArray]:
        """Kept weight per device, and per expert the sum over its tokens of weight / experts of the token."""
        t = self.problem.tables
        weight, mean = np.empty(self.sent.shape), np.empty(self.load.shape)
        weight_sums(self.ids, self.share, self.mass, self.keep, self.count, t.expert_device, weight, mean)
        return weight, mean

    def _take_multipliers(self) -> None:
        """Multipliers of the present bandwidth; those of the fastest shared one came with it."""
        t = self.problem.tables
        free = self.problem.allocation != "fixed" and not self.hold and self.reading == LATENCY
        blocks = self.sent.shape[0]
        for i in range(blocks):
            if not free:
                soft_multipliers(self.device_time[i], SHARPNESS, self.multipliers[i])
            elif self.problem.allocation == "per-block" or blocks == 1:
                assert self.bandwidth is not None
                block_multipliers(
                    self.sent[i], self.device_time[i], t.bits_down, self.c_down[i], t.bits_up, self.c_up[i],
                    t.low, t.high, self.bandwidth[i], self.multipliers[i],
                )  # fmt: skip

    def _objective(self) -> float:
        """Sum over blocks, to be minimised; also the blocks' own values, which bound a batch's gain."""
        if self.problem.objective == "latency":
            self.block_value = self.block_latency
            return float(self.block_latency.sum())
        t = self.problem.tables
        weight, mean = self._weights()
        with np.errstate(divide="ignore", invalid="ignore"):
            if self.reading == PER_TOKEN:
                per_block = (mean / (self.link_time[:, t.expert_device] + t.compute)).sum(axis=1)
                self.block_value = per_block
                return -float(per_block.sum()) / self.kept.shape[1]
            if self.reading == PER_DEVICE:
                self.block_value = np.where(weight > 0, weight / self.device_time, 0.0).sum(axis=1)
                return -float(self.block_value.sum())
            self.block_value = self.block_latency
            return -float((weight.sum(axis=1) / self.block_latency).sum())

    # ------------------------------------------------------------------ moves

    def descend(
        self, batches: int, trace: list[dict[str, Any]] | None = None, *, patience: int = PATIENCE
    ) -> None:
        """Apply batches of the best moves while they improve the objective and the floors allow.

        Parameters
        ----------
        batches : int
            Into how many batches the retention that may be spent is cut; prices are exact between them.
        trace : list, optional
            Receives one record per accepted batch.
        patience : int
            Batches without progress that end the descent.
        """
        tokens = self.kept.shape[1]
        slices = np.maximum(self.kept.sum(axis=1) - self.block_floor * tokens, 0.0) / batches
        reach, failures = 1.0, 0
        while failures < patience:
            number = self._propose(slices, reach)
            if number == 0:
                return
            before, state = self.value, self._prices()
            after = self.price()
            if after < before - 1e-13 * abs(before):
                failures = 0 if after < before - PROGRESS * abs(before) else failures + 1
                self.value = after
                reach = min(1.0, 2.0 * reach)
                if trace is not None:
                    trace.append(self.record(number))
                continue
            self._undo()
            self._restore(state)
            failures += 1
            if number <= self.count.shape[0] or reach < 1e-6:
                self._forbid()
            else:
                reach *= 0.25

    def shed(self, parts: int, trace: list[dict[str, Any]] | None = None) -> None:
        """Walk down the bottleneck path at the present bandwidth, spending 1/parts of what the floors leave.

        Where the problem is a transportation problem (fact 9), the end of the whole path (parts = 1)
        is checked against the next deadline and, if that can be met, replaced by the exact optimum.
        For objective "latency".
        """
        blocks = range(self.kept.shape[0])

        def work(i: int) -> None:
            self._shed_block(i, parts)
            if parts == 1 and self.transport:
                self._settle(i)

        list((self.pool.map if self.pool else map)(work, blocks))
        self.value = self.price()
        if trace is not None:
            trace.append(self.record(0))

    @cached_property
    def transport(self) -> bool:
        """Whether selection at a given bandwidth is a transportation problem, solved exactly."""
        p, t = self.problem, self.problem.tables
        hosts, devices = t.expert_device, t.low.size
        hosted = np.bincount(hosts, minlength=devices)
        alike = all(np.ptp(t.compute[hosts == k]) == 0 for k in range(devices) if hosted[k])
        free = p.expert_cap >= p.candidate_columns and not self.token_floor.any()
        return bool(not t.by_device and alike and free and (hosted.max() <= 1 or not t.activation.any()))

    def _settle(self, i: int) -> None:
        """Replace the selection of block i by the exact one, if the bottleneck path missed it."""
        t = self.problem.tables
        hosts, devices = t.expert_device, t.low.size
        fixed, unit = t.link_delay.copy(), self.link_time[i].copy()
        fixed[hosts] += t.activation
        unit += np.bincount(hosts, t.compute, devices) / np.maximum(np.bincount(hosts, minlength=devices), 1)
        if i not in self._all_pairs:
            self._all_pairs[i] = sort_pairs(self.ids[i], self.share[i], self.allowed[i], hosts, devices)
        used = self.sent[i] > 0
        known = float((fixed[used] + self.sent[i, used] * unit[used]).max(initial=0.0))
        best = np.empty_like(self.keep[i])
        needed = self.block_floor[i] * self.kept.shape[1] - FLOOR_SLACK * self.kept.shape[1]
        if least_deadline(
            self.ids[i], self.share[i], self.allowed[i], hosts, fixed, unit, *self._all_pairs[i], needed,
            known, best,
        ):  # fmt: skip
            self.keep[i] = best
            take_selection(
                self.ids[i : i + 1], self.share[i : i + 1], self.keep[i : i + 1], hosts, t.by_device,
                self.count[i : i + 1], self.kept[i : i + 1], self.load[i : i + 1], self.sent[i : i + 1],
            )  # fmt: skip
            self._pairs.pop(i, None)
            self._begun = None

    def _shed_block(self, i: int, parts: int) -> None:
        t = self.problem.tables
        tokens = self.kept.shape[1]
        budget = self.kept[i].sum() - self.block_floor[i] * tokens + FLOOR_SLACK * tokens
        if budget <= 0.0:
            return
        if i not in self._pairs:
            self._pairs[i] = sort_pairs(self.ids[i], self.share[i], self.keep[i], t.expert_device, t.low.size)
        shed_bottleneck(
            self.ids[i], self.share[i], self.keep[i], self.count[i], self.kept[i], t.expert_device,
            t.compute, t.activation, t.link_delay, self.link_time[i], self.load[i], self.sent[i],
            t.by_device, self.token_floor[i], budget / parts, *self._pairs[i],
            np.zeros(t.low.size, dtype=np.int64),
        )  # fmt: skip

    def grow(self, amount: float) -> int:
        """Give back the experts that cost least latency per weight, ``amount`` of retention per token."""
        t = self.problem.tables
        number: int = propose_adds(
            self.ids, self.share, self.allowed, self.keep, self.count, self.kept, t.expert_device, t.compute,
            t.activation, self.link_time, self.multipliers, self.load, self.sent, t.by_device,
            self.problem.expert_cap, amount, self.moved,
        )  # fmt: skip
        self._begun, self._pairs = None, {}
        self.value = self.price()
        return number

    def polish(self, expired: Callable[[], bool] = lambda: False) -> None:
        """Trade cheap weight for dear weight, in ever finer amounts, while that improves the objective."""
        if self.problem.objective == "latency" and not self.together():
            self.shed(1)
        self.descend(4, patience=2)
        amount = WIDEST_TRADE
        while amount >= FINEST_TRADE and not expired():
            before, best = self.value, self.keep.copy()
            self.frozen[:], self.banned[:] = False, False
            if self.grow(amount) > 0:
                if self.problem.objective == "latency" and not self.together():
                    self.shed(1)
                self.descend(4, patience=2)
            if not self.value < before - PROGRESS * abs(before):
                self.start(best)
                amount *= 0.2

    def together(self) -> bool:
        """Whether bandwidth makes all loaded devices of a block finish together, so that all have prices."""
        return self.problem.allocation == "per-block" or (
            self.problem.allocation == "shared" and self.sent.shape[0] == 1
        )

    def reroutes(self) -> bool:
        """Whether tokens have candidates beyond their top-k."""
        return self.problem.candidate_columns > int(self.problem.instance.top_k or 0)

    def record(self, moves: int) -> dict[str, Any]:
        """One line of a trace."""
        sign = 1.0 if self.problem.objective == "latency" else -1.0
        return {
            "block": self.rows.start,
            "objective": sign * self.value,
            "retention": float(self.kept.mean()),
            "moves": moves,
        }

    def _propose(self, slices: RealArray, reach: float) -> int:
        t = self.problem.tables
        number: int = propose_moves(
            self.reading, self.ids, self.share, self.mass, self.allowed, self.keep, self.count, self.kept,
            self.frozen, self.banned, t.expert_device, t.compute, t.activation, t.link_delay, self.link_time,
            self.multipliers, self.device_time, self.block_value, self.load, self.sent, t.by_device,
            self.token_floor, self.block_floor, slices, reach, self.moved,
        )  # fmt: skip
        return number

    def _undo(self) -> None:
        t = self.problem.tables
        undo_moves(
            self.ids, self.share, self.keep, self.count, self.kept, t.expert_device, self.load, self.sent,
            t.by_device, self.moved,
        )  # fmt: skip

    def _prices(self) -> tuple[Any, ...]:
        arrays = (self.busy, self.device_time, self.multipliers, self.block_latency, self.block_value)
        return (*(array.copy() for array in arrays), self.link_time, self.bandwidth)

    def _restore(self, state: tuple[Any, ...]) -> None:
        self.busy, self.device_time, self.multipliers, self.block_latency, self.block_value = state[:5]
        self.link_time, self.bandwidth = state[5:]

    def _forbid(self) -> None:
        """Freeze what a batch too small to cut further moved in vain."""
        touched = self.moved[:, :, 0] > -2
        self.frozen |= touched
        blocks, tokens = np.nonzero(touched)
        self.banned[blocks, self.ids[blocks, tokens, self.moved[blocks, tokens, 0]]] = True


def _slots(hosts: NDArray[np.int32], devices: int) -> NDArray[np.int64]:
    """Running number of each expert among those of its device."""
    seen = np.zeros(devices, dtype=np.int64)
    slot = np.empty(hosts.size, dtype=np.int64)
    for e, k in enumerate(hosts):
        slot[e] = seen[k]
        seen[k] += 1
    return slot


def start_selection(problem: Problem) -> tuple[NDArray[np.bool_] | None, str]:
    """Plain top-k, repaired where it breaks a floor or a cap; None and the reason if nothing can."""
    keep = problem.top_k_keep
    kept = np.where(keep, problem.shares, 0.0).sum(axis=2)
    slack = 1.0 - FEASIBILITY_TOLERANCE
    fits = (
        (kept.mean(axis=1) >= np.asarray(problem.min_retention) * slack).all()
        and (kept >= np.asarray(problem.min_token_retention)[:, None] * slack).all()
        and (problem.expert_cap >= problem.candidate_columns or keep.sum(axis=2).max() <= problem.expert_cap)
        and (problem.allocation != "fixed" or not (keep & ~usable(problem)).any())
    )
    if fits:
        return keep, ""
    conflict = floor_conflict(problem)
    return (None, conflict) if conflict else (repair_floors(problem, keep), "")


def groups(problem: Problem) -> list[slice]:
    """Blocks that have to be searched together."""
    blocks = problem.instance.blocks
    if problem.allocation == "shared":
        return [slice(0, blocks)]
    return [slice(i, i + 1) for i in range(blocks)]


def search_groups(
    problem: Problem, threads: int, keep: NDArray[np.bool_], work: Callable[[Search], None]
) -> tuple[NDArray[np.bool_], RealArray | None]:
    """Run ``work`` on a fresh `Search` of every group and put selection and bandwidth together.

    Groups, and single blocks within a group, are spread over ``threads`` threads.
    """
    parts = groups(problem)

    def run(rows: slice, pool: ThreadPoolExecutor | None) -> Search:
        search = Search(problem, rows, keep[rows], pool)
        work(search)
        return search

    if threads > 1:
        with ThreadPoolExecutor(threads) as pool:
            # A group that waits for its own blocks in the pool must not hold one of its threads.
            done = [run(parts[0], pool)] if len(parts) == 1 else list(pool.map(lambda r: run(r, None), parts))
    else:
        done = [run(rows, None) for rows in parts]
    selection = np.concatenate([search.keep for search in done])
    if problem.allocation == "fixed":
        return selection, problem.fixed_bandwidth
    shares = np.concatenate([np.atleast_2d(search.bandwidth) for search in done])  # type: ignore[arg-type]
    return selection, shares[0] if problem.allocation == "shared" else shares
