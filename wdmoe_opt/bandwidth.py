"""Exact bandwidth allocation for a given selection (P-BW, facts 1 and 2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from wdmoe_opt.errors import InputError
from wdmoe_opt.kernels.block_bandwidth import block_bandwidth
from wdmoe_opt.kernels.pricing import busy_times, count_loads
from wdmoe_opt.kernels.shared_bandwidth import shared_bandwidth
from wdmoe_opt.problem import Problem
from wdmoe_opt.validation import freeze, require_type

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from wdmoe_opt.validation import RealArray


@dataclass(frozen=True, eq=False)
class BandwidthAllocation:
    """An optimal allocation for one selection.

    Attributes
    ----------
    bandwidth : (devices,) or (blocks, devices), Hz
        Shared, or one row per block; None on a measured link.
    kkt_residual : float
        Relative Lagrangian gap at the point: no allocation is faster than (1 - kkt_residual) times
        its latency. Below 1e-9, unless lower limits leave less than 1e-6 of a bandwidth that blocks
        share. NaN with allocation "fixed", where nothing is optimised.
    """

    bandwidth: RealArray | None
    kkt_residual: float


def allocate_bandwidth(problem: Problem, keep: ArrayLike | None = None) -> BandwidthAllocation:
    """Minimise total latency over the bandwidth, for a given selection.

    Parameters
    ----------
    problem : Problem
        Its allocation decides what is free: "shared", "per-block", or nothing ("fixed").
    keep : bool array (blocks, tokens, m), optional
        The selection; None where only loads are known.

    Returns
    -------
    BandwidthAllocation

    Raises
    ------
    InputError
        If ``keep`` has another shape or type, or uses a device that cannot be reached.

    Notes
    -----
    One block: monotone Newton on a scalar (fact 2). Several blocks sharing bandwidth: a convex
    program solved by an interior point method in logarithms.
    """
    require_type("problem", problem, Problem)
    selection = problem.checked_keep(keep) if problem.selectable else None
    transfers, busy = demands(problem, selection)
    stranded = (transfers > 0) & ~problem.tables.reachable
    if stranded.any():
        index = tuple(int(i) for i in np.argwhere(stranded)[0])
        rule = "the selection uses a device that cannot be reached"
        raise InputError("keep", rule, index=index, value=int(transfers[index]))
    found = allocate(problem, transfers, busy)
    return BandwidthAllocation(
        None if found.bandwidth is None else freeze(found.bandwidth), found.kkt_residual
    )


def demands(problem: Problem, keep: NDArray[np.bool_] | None) -> tuple[RealArray, RealArray]:
    """Transfers and bandwidth-free seconds of every block and device, two arrays (blocks, devices)."""
    t = problem.tables
    if keep is None:
        loads = problem.instance.loads
        assert loads is not None
        expert_load, transfers = loads, loads.astype(np.float64)
    else:
        blocks, devices = t.c_down.shape
        transfers = np.empty((blocks, devices))
        expert_load = np.empty((blocks, t.expert_device.size), dtype=np.int64)
        count_loads(t.ids, keep, t.expert_device, t.by_device, expert_load, transfers)
    busy = np.empty(transfers.shape)
    busy_times(expert_load, transfers, t.expert_device, t.compute, t.activation, t.link_delay, busy)
    return transfers, busy


def allocate(problem: Problem, transfers: RealArray, busy: RealArray) -> BandwidthAllocation:
    """`allocate_bandwidth` from demands that reachable devices can serve."""
    t = problem.tables
    if problem.allocation == "fixed":
        return BandwidthAllocation(problem.fixed_bandwidth, float("nan"))
    blocks, devices = transfers.shape
    if problem.allocation == "shared" and blocks > 1:
        shared = np.empty(devices)
        _, residual = shared_bandwidth(
            transfers, busy, t.bits_down, t.c_down, t.bits_up, t.c_up, t.low, t.high, t.total, shared
        )
        return BandwidthAllocation(shared, residual)
    rows = np.empty((blocks, devices))
    residual = 0.0
    for i in range(blocks):
        _, gap = block_bandwidth(
            transfers[i], busy[i], t.bits_down, t.c_down[i], t.bits_up, t.c_up[i], t.low, t.high, t.total,
            rows[i],
        )  # fmt: skip
        residual = max(residual, gap)
    return BandwidthAllocation(rows if problem.allocation == "per-block" else rows[0], residual)
