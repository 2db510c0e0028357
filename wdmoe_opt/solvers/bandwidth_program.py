"""P-BW on the epigraph form, as general nonlinear solvers take it.

minimise sum_i T_i subject to t_ik(b_k) <= T_i and sum_k b_k <= 1, in shares of the total bandwidth and in
units of the latency at equal shares, with exact first derivatives. Variables: shares, then latencies.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np

from wdmoe_opt.bandwidth import demands
from wdmoe_opt.kernels.link import log_time_terms
from wdmoe_opt.problem import Problem
from wdmoe_opt.search import groups
from wdmoe_opt.validation import RealArray

#: Smallest share given to a loaded device: at 0 the time has no derivative.
LEAST_SHARE = 1e-9


class BandwidthProgram:
    """Bandwidth of blocks that share it, for plain top-k or given loads.

    Parameters
    ----------
    problem : Problem
    rows : slice
        The blocks.
    sent, busy : array (blocks, devices)
        Transfers, and seconds of work, of these blocks.
    """

    def __init__(self, problem: Problem, rows: slice, sent: RealArray, busy: RealArray) -> None:
        t = problem.tables
        self.tables, self.sent, self.busy = t, sent, busy
        self.c_down, self.c_up = t.c_down[rows], t.c_up[rows]
        self.blocks, self.devices = sent.shape
        #: Loaded (block, device) pairs.
        self.index = np.argwhere(sent > 0)
        loaded = (sent > 0).any(axis=0)
        self.low = np.maximum(t.low / t.total, np.where(loaded, LEAST_SHARE, 0.0))
        self.high = np.where(loaded, np.minimum(t.high / t.total, 1.0), self.low)
        assert problem.uniform_bandwidth is not None
        self.start = np.clip(problem.uniform_bandwidth / t.total, self.low, self.high)
        self.objective = np.r_[np.zeros(self.devices), np.ones(self.blocks)]
        self.budget = np.r_[np.ones(self.devices), np.zeros(self.blocks)]

    def times(self, share: RealArray) -> tuple[RealArray, RealArray]:
        """Seconds and their derivative by the share, of every loaded (block, device)."""
        t = self.tables
        value, slope = np.empty(len(self.index)), np.empty(len(self.index))
        for n, (i, k) in enumerate(self.index):
            b = max(share[k], LEAST_SHARE)
            time, first, _ = log_time_terms(
                b * t.total, t.bits_down, self.c_down[i, k], t.bits_up, self.c_up[i, k]
            )
            value[n] = self.busy[i, k] + self.sent[i, k] * time
            slope[n] = self.sent[i, k] * first / b
        return value, slope

    @cached_property
    def start_latency(self) -> RealArray:
        """Latency of every block at the start, s (blocks,)."""
        latency = np.zeros(self.blocks)
        np.maximum.at(latency, self.index[:, 0], self.times(self.start)[0])
        return latency

    @cached_property
    def unit(self) -> float:
        """Seconds in which latencies are counted."""
        return float(self.start_latency.sum()) or 1.0

    def lateness(self, x: RealArray) -> RealArray:
        """By how much every loaded (block, device) is behind its block's latency."""
        late: RealArray = self.times(x[: self.devices])[0] / self.unit - x[self.devices + self.index[:, 0]]
        return late

    def slopes(self, x: RealArray) -> RealArray:
        """Derivatives of the lateness by the shares, at its (block, device)'s own share."""
        slope: RealArray = self.times(x[: self.devices])[1] / self.unit
        return slope


def bandwidth_programs(problem: Problem) -> Iterator[BandwidthProgram]:
    """The programs that together allocate a problem's bandwidth to plain top-k, or to given loads."""
    keep = problem.top_k_keep if problem.selectable else None
    sent, busy = demands(problem, keep)
    for rows in groups(problem):
        yield BandwidthProgram(problem, rows, sent[rows], busy[rows])
