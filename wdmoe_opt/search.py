"""The state of a search over selections: what greedy, alternating and local search share.

A `Search` holds the selection of a group of blocks with its loads, prices them exactly (bandwidth by
P-BW where it is free), and applies batches of price-directed moves that are kept only if the exact
objective improves. Blocks that share bandwidth form one group; otherwise every block is its own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from wdmoe_opt.kernels.block_bandwidth import block_bandwidth, block_multipliers, soft_multipliers
from wdmoe_opt.kernels.link import link_times
from wdmoe_opt.kernels.bottleneck import shed_bottleneck, sort_pairs
from wdmoe_opt.kernels.moves import FLOOR_SLACK, propose_moves, undo_moves
from wdmoe_opt.kernels.pricing import busy_times, count_loads, device_times
from wdmoe_opt.kernels.shared_bandwidth import shared_bandwidth
from wdmoe_opt.problem import Problem
from wdmoe_opt.validation import RealArray

#: How sharply prices single out the slowest device where bandwidth cannot be moved.
SHARPNESS = 100.0
#: A batch that lowers the latency by less than this part counts as a failure; so many in a row end a search.
PROGRESS = 1e-5
PATIENCE = 6


class Search:
    """Selection, loads, bandwidth and prices of a group of blocks.

    Parameters
    ----------
    problem : Problem
    rows : slice
        The blocks of the group.
    keep : bool array (blocks of the group, tokens, m)
        Start; must keep the floors.
    """

    def __init__(self, problem: Problem, rows: slice, keep: NDArray[np.bool_]) -> None:
        t = problem.tables
        self.problem, self.rows = problem, rows
        self.ids, self.share, self.allowed = t.ids[rows], problem.shares[rows], problem.allowed[rows]
        self.keep = keep.copy()
        self.count = self.keep.sum(axis=2)
        self.kept = np.where(self.keep, self.share, 0.0).sum(axis=2)
        blocks = self.keep.shape[0]
        self.load = np.empty((blocks, t.expert_device.size), dtype=np.int64)
        self.sent = np.empty((blocks, t.low.size))
        count_loads(self.ids, self.keep, t.expert_device, t.by_device, self.load, self.sent)
        self.busy = np.empty_like(self.sent)
        self.device_time = np.empty_like(self.sent)
        self.multipliers = np.empty_like(self.sent)
        self.block_latency = np.empty(blocks)
        self.moved = np.empty((*self.count.shape, 2), dtype=np.int64)
        self.frozen = np.zeros(self.count.shape, dtype=np.bool_)
        self.banned = np.zeros(self.load.shape, dtype=np.bool_)
        self.token_floor = np.asarray(problem.min_token_retention)[rows]
        self.block_floor = np.asarray(problem.min_retention)[rows]
        self.bandwidth: RealArray | None = None
        self._pairs: dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}
        self.link_time = np.empty_like(self.sent)
        self.latency = self.price()

    def price(self) -> float:
        """Best bandwidth for the present loads, multipliers and times; return the group's latency, s."""
        t, rows = self.problem.tables, self.rows
        busy_times(self.load, self.sent, t.expert_device, t.compute, t.activation, t.link_delay, self.busy)
        c_down, c_up = t.c_down[rows], t.c_up[rows]
        if self.problem.allocation == "fixed":
            self._price_fixed(c_down, c_up)
            return float(self.block_latency.sum())
        link = (t.low, t.high, t.total)
        if self.problem.allocation == "shared" and self.sent.shape[0] > 1:
            self.bandwidth = np.empty((1, t.low.size))
            shared_bandwidth(
                self.sent, self.busy, t.bits_down, c_down, t.bits_up, c_up, *link, self.bandwidth[0], self.multipliers
            )
        else:
            self.bandwidth = np.empty(self.sent.shape)
            for i in range(self.sent.shape[0]):
                block_bandwidth(
                    self.sent[i], self.busy[i], t.bits_down, c_down[i], t.bits_up, c_up[i], *link, self.bandwidth[i]
                )
        self.link_time = link_times(self.bandwidth, t.bits_down, c_down, t.bits_up, c_up)
        device_times(self.sent, self.busy, self.link_time, self.device_time, self.block_latency)
        if self.bandwidth.shape[0] == self.sent.shape[0]:
            for i in range(self.sent.shape[0]):
                block_multipliers(
                    self.sent[i], self.device_time[i], t.bits_down, c_down[i], t.bits_up, c_up[i],
                    t.low, t.high, self.bandwidth[i], self.multipliers[i],
                )  # fmt: skip
        return float(self.block_latency.sum())

    def _price_fixed(self, c_down: RealArray, c_up: RealArray) -> None:
        t = self.problem.tables
        if t.fixed_link_time is not None:
            self.link_time = t.fixed_link_time[self.rows]
        else:
            given = self.problem.fixed_bandwidth
            assert given is not None
            self.bandwidth = given[self.rows] if given.ndim == 2 else given[None, :]
            self.link_time = link_times(self.bandwidth, t.bits_down, c_down, t.bits_up, c_up)
        device_times(self.sent, self.busy, self.link_time, self.device_time, self.block_latency)
        for i in range(self.sent.shape[0]):
            soft_multipliers(self.device_time[i], SHARPNESS, self.multipliers[i])

    def descend(self, batches: int, trace: list[dict[str, Any]] | None = None) -> None:
        """Apply batches of moves while they lower the latency and the floors allow.

        Parameters
        ----------
        batches : int
            Into how many batches the retention that may be spent is cut; prices are exact between them.
        trace : list, optional
            Receives one record per accepted batch: latency, retention, moves.
        """
        tokens = self.kept.shape[1]
        slices = np.maximum(self.kept.sum(axis=1) - self.block_floor * tokens, 0.0) / batches
        reach, failures = 1.0, 0
        while failures < PATIENCE:
            number = self._propose(slices, reach)
            if number == 0:
                return
            before, state = self.latency, self._prices()
            after = self.price()
            if after < before * (1.0 - 1e-13):
                failures = failures + 1 if after > before * (1.0 - PROGRESS) else 0
                self.latency = after
                reach = min(1.0, 2.0 * reach)
                if trace is not None:
                    trace.append({"latency": after, "retention": float(self.kept.mean()), "moves": number})
                continue
            self._undo()
            self._restore(state)
            failures += 1
            if number <= self.count.shape[0] or reach < 1e-6:
                self._forbid()
            else:
                reach *= 0.25

    def shed(self, parts: int) -> None:
        """Walk down the bottleneck path at the present bandwidth, spending 1/parts of what floors leave."""
        t = self.problem.tables
        tokens = self.kept.shape[1]
        for i in range(self.kept.shape[0]):
            budget = self.kept[i].sum() - self.block_floor[i] * tokens + FLOOR_SLACK * tokens
            if budget <= 0.0:
                continue
            pairs, ends = self._sorted_pairs(i)
            place = np.zeros(t.low.size, dtype=np.int64)
            shed_bottleneck(
                self.ids[i], self.share[i], self.keep[i], self.count[i], self.kept[i], t.expert_device,
                t.compute, t.activation, t.link_delay, self.link_time[i], self.load[i], self.sent[i],
                t.by_device, self.token_floor[i], budget / parts, pairs, ends, place,
            )  # fmt: skip
        self.latency = self.price()

    def _sorted_pairs(self, block: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Pairs of a block by device and weight; sorted once, as pairs only ever leave."""
        if block not in self._pairs:
            t = self.problem.tables
            self._pairs[block] = sort_pairs(
                self.ids[block], self.share[block], self.keep[block], t.expert_device, t.low.size
            )
        return self._pairs[block]

    def _propose(self, slices: RealArray, reach: float) -> int:
        t = self.problem.tables
        number: int = propose_moves(
            self.ids, self.share, self.allowed, self.keep, self.count, self.kept, self.frozen, self.banned,
            t.expert_device, t.compute, t.activation, t.link_delay, self.link_time, self.multipliers,
            self.block_latency, self.load, self.sent, t.by_device, self.token_floor, self.block_floor,
            slices, reach, self.moved,
        )  # fmt: skip
        return number

    def _undo(self) -> None:
        t = self.problem.tables
        undo_moves(
            self.ids, self.share, self.keep, self.count, self.kept, t.expert_device, self.load, self.sent,
            t.by_device, self.moved,
        )  # fmt: skip

    def _prices(self) -> tuple[Any, ...]:
        parts = (self.busy, self.device_time, self.multipliers, self.block_latency)
        return (*(part.copy() for part in parts), self.link_time, self.bandwidth)

    def _restore(self, state: tuple[Any, ...]) -> None:
        self.busy, self.device_time, self.multipliers, self.block_latency, self.link_time, self.bandwidth = state

    def _forbid(self) -> None:
        """Freeze what a batch too small to cut further moved in vain."""
        touched = self.moved[:, :, 0] > -2
        self.frozen |= touched
        blocks, tokens = np.nonzero(touched)
        self.banned[blocks, self.ids[blocks, tokens, self.moved[blocks, tokens, 0]]] = True
