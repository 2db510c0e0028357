"""The one metric: what a selection with a bandwidth allocation costs, keeps and violates."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from wdmoe_opt.errors import InputError
from wdmoe_opt.kernels.link import link_time, link_times
from wdmoe_opt.kernels.pricing import (
    CROWDED,
    EMPTY,
    STRAY,
    block_ratios,
    busy_times,
    device_times,
    inverse_token_times,
    price_tokens,
)
from wdmoe_opt.problem import FEASIBILITY_TOLERANCE, Problem
from wdmoe_opt.validation import freeze, require_type

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import ArrayLike, NDArray

    from wdmoe_opt.validation import IntArray, RealArray

#: Names of the three readings of the weight-to-latency ratio (paper A leaves the choice open).
WLR_READINGS = ("wlr-token", "wlr-device", "wlr-block")


@dataclass(frozen=True)
class Violation:
    """One constraint family that a point breaks.

    Attributes
    ----------
    constraint : str
        Name of the family, as the request or the instance calls it.
    index : tuple of int
        Where it is broken worst (block, token or device indices; empty for a total).
    value, limit : float
        The value there and the limit it breaks.
    count : int
        How many members of the family are broken.
    """

    constraint: str
    index: tuple[int, ...]
    value: float
    limit: float
    count: int = 1

    def __str__(self) -> str:
        where = f"[{', '.join(map(str, self.index))}]" if self.index else ""
        more = f" (worst of {self.count})" if self.count > 1 else ""
        return f"{self.constraint}{where} = {self.value:.6g}, limit {self.limit:.6g}{more}"


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Price of one point; all times in s, all arrays read-only.

    Attributes
    ----------
    latency : float
        Sum of block latencies.
    block_latency : (blocks,)
        Time of the slowest device of each block.
    device_time : (blocks, devices)
        Activation, link delay, transfers and compute of each device.
    link_time : (blocks, devices)
        Seconds on air per transfer.
    transfers : (blocks, devices)
        Transfers to each device.
    expert_load : (blocks, experts)
        Tokens of each expert.
    retention : float
        Mean kept gate weight over blocks.
    block_retention : (blocks,)
    token_retention : (blocks, tokens)
        Kept gate weight over top-k gate weight; NaN-free, empty where only loads are known.
    block_wlr : mapping of str to (blocks,), 1/s
        The three readings of the weight-to-latency ratio, see `wlr`.
    violations : tuple of Violation
    """

    problem: Problem
    bandwidth: RealArray | None
    latency: float
    block_latency: RealArray
    device_time: RealArray
    link_time: RealArray
    transfers: RealArray
    expert_load: IntArray
    retention: float
    block_retention: RealArray
    token_retention: RealArray
    block_wlr: Mapping[str, RealArray]
    violations: tuple[Violation, ...]

    @property
    def feasible(self) -> bool:
        """Whether every constraint holds within the feasibility tolerance."""
        return not self.violations

    @property
    def wlr(self) -> dict[str, float]:
        """Mean over blocks of each reading, 1/s.

        wlr-token: per token the mean over its experts of w / t, t one token's link and compute time
        (paper B); averaged over tokens. Maximised alone it always keeps a single expert.
        wlr-device: kept weight of a device over its waiting latency, summed over loaded devices.
        wlr-block: kept weight of a block over its latency.
        """
        return {name: float(values.mean()) for name, values in self.block_wlr.items()}

    @property
    def objective(self) -> float:
        """Value of the problem's objective at this point."""
        name = self.problem.objective
        if name == "latency":
            return self.latency
        return self.retention if name == "retention" else self.wlr[name]

    @cached_property
    def air_time(self) -> tuple[RealArray, RealArray]:
        """Seconds each device receives and sends, two arrays (blocks, devices); zeros on a measured link."""
        t = self.problem.tables
        down = np.zeros(self.transfers.shape)
        up = np.zeros(self.transfers.shape)
        if self.bandwidth is None:
            return down, up
        b = np.broadcast_to(self.bandwidth, down.shape)
        for i, k in np.argwhere(self.transfers > 0):
            n = self.transfers[i, k]
            down[i, k] = n * link_time(b[i, k], t.bits_down, t.c_down[i, k], 0.0, 0.0)
            up[i, k] = n * link_time(b[i, k], 0.0, 0.0, t.bits_up, t.c_up[i, k])
        return down, up

    @cached_property
    def transmit_energy(self) -> RealArray:
        """Transmit power times air time, both directions, J (blocks, devices); NaN on a measured link."""
        inst = self.problem.instance
        if inst.power_down is None or inst.power_up is None:
            return np.full(self.transfers.shape, np.nan)
        down, up = self.air_time
        energy: RealArray = freeze(inst.power_down * down + inst.power_up * up)
        return energy

    @cached_property
    def compute_energy(self) -> RealArray:
        """Compute power times activation and compute time, J (blocks, devices); NaN where unknown."""
        inst = self.problem.instance
        if inst.compute_power is None:
            return np.full(self.transfers.shape, np.nan)
        # Summed without the link delay, not freed of it later: the delay may be longer by any factor.
        busy = self._busy(np.zeros_like(inst.link_delay))
        energy: RealArray = freeze(inst.compute_power * busy)
        return energy

    @cached_property
    def busy_time(self) -> RealArray:
        """Activation, compute and link delay of each device, s (blocks, devices)."""
        return self._busy(self.problem.tables.link_delay)

    def _busy(self, link_delay: RealArray) -> RealArray:
        t = self.problem.tables
        busy = np.empty(self.transfers.shape)
        busy_times(
            self.expert_load, self.transfers, t.expert_device, t.compute, t.activation, link_delay, busy
        )
        frozen: RealArray = freeze(busy)
        return frozen

    @property
    def energy(self) -> float:
        """Total energy, J: transmission, plus computation where devices state their watts."""
        return float(self.transmit_energy.sum() + np.nansum(self.compute_energy))


def evaluate(
    problem: Problem, keep: ArrayLike | None = None, bandwidth: ArrayLike | None = None
) -> Evaluation:
    """Price a selection with a bandwidth allocation, without any tolerance.

    Parameters
    ----------
    problem : Problem
    keep : bool array (blocks, tokens, m), optional
        Which candidates each token uses, aligned with ``expert_ids``; None where only loads are known.
    bandwidth : float array (devices,) or (blocks, devices), Hz, optional
        Default the problem's fixed bandwidth, if its allocation is "fixed".

    Returns
    -------
    Evaluation
        Infeasible points are priced too (an unreachable device takes infinite time); what they break
        is listed in ``violations``.

    Raises
    ------
    InputError
        If shapes or types are wrong, or bandwidth is needed and missing.

    Notes
    -----
    Source: docs/mathematics.md, sections 1 and 2. Cost is linear in the (token, candidate) pairs.
    """
    require_type("problem", problem, Problem)
    if problem.selectable and keep is None:
        raise InputError("keep", "is missing: the instance has tokens to select for")
    selection = None if keep is None else problem.checked_keep(keep)
    if problem.tables.fixed_link_time is not None:
        if bandwidth is not None:
            raise InputError("bandwidth", "cannot be given: the instance's measured link has no such knob")
        return price(problem, selection, None)
    if bandwidth is not None:
        return price(problem, selection, problem.checked_bandwidth(bandwidth))
    if problem.allocation != "fixed":
        raise InputError("bandwidth", f"is missing: allocation is {problem.allocation!r}")
    return price(problem, selection, problem.fixed_bandwidth)


def price(problem: Problem, keep: NDArray[np.bool_] | None, bandwidth: RealArray | None) -> Evaluation:
    """`evaluate` for arrays that are already checked."""
    t = problem.tables
    shape = t.c_down.shape
    if t.fixed_link_time is not None:
        link_time = t.fixed_link_time
    else:
        assert bandwidth is not None
        rows = bandwidth if bandwidth.ndim == 2 else bandwidth[None, :]
        link_time = link_times(rows, t.bits_down, t.c_down, t.bits_up, t.c_up)
    faults = np.zeros((3, 3), dtype=np.int64)
    if keep is None:
        loads = problem.instance.loads
        assert loads is not None
        transfers, expert_load = loads.astype(np.float64), loads
        retention = np.empty((shape[0], 0))
        kept = np.zeros(shape)
    else:
        expert_load = np.empty((shape[0], t.expert_device.size), dtype=np.int64)
        transfers = np.empty(shape)
        kept = np.empty(shape)
        retention = np.empty(t.mass.shape)
        token_rate = np.empty(expert_load.shape)
        per_token = np.empty(shape[0])
        inverse_token_times(link_time, t.compute, t.expert_device, token_rate)
        price_tokens(
            t.ids, t.weights, t.mass, keep, problem.candidate_columns, problem.expert_cap,
            t.expert_device, t.by_device, token_rate, expert_load, transfers, kept, retention,
            per_token, faults,
        )  # fmt: skip
    busy = np.empty(shape)
    busy_times(expert_load, transfers, t.expert_device, t.compute, t.activation, t.link_delay, busy)
    device_time = np.empty(shape)
    block_latency = np.empty(shape[0])
    device_times(transfers, busy, link_time, device_time, block_latency)
    block_wlr: dict[str, RealArray] = {}
    if keep is not None:
        per_device = np.empty(shape[0])
        per_block = np.empty(shape[0])
        block_ratios(kept, device_time, block_latency, per_device, per_block)
        block_wlr = dict(zip(WLR_READINGS, map(freeze, (per_token, per_device, per_block)), strict=True))
    block_retention = retention.mean(axis=1) if keep is not None else np.ones(shape[0])
    latency = float(block_latency.sum())
    return Evaluation(
        problem=problem,
        bandwidth=bandwidth,
        latency=latency,
        block_latency=freeze(block_latency),
        device_time=freeze(device_time),
        link_time=freeze(link_time),
        transfers=freeze(transfers),
        expert_load=freeze(expert_load),
        retention=float(block_retention.mean()),
        block_retention=freeze(block_retention),
        token_retention=freeze(retention),
        block_wlr=block_wlr,
        violations=tuple(
            _violations(problem, keep, bandwidth, latency, device_time, block_retention, retention, faults)
        ),
    )


def unpriced(problem: Problem) -> Evaluation:
    """The worst possible price, for a solver that found no point: infinite times, no retention."""
    blocks, devices = problem.tables.c_down.shape
    never = freeze(np.full((blocks, devices), np.inf))
    unknown = freeze(np.full(blocks, np.nan))
    return Evaluation(
        problem=problem,
        bandwidth=None,
        latency=float("inf"),
        block_latency=freeze(np.full(blocks, np.inf)),
        device_time=never,
        link_time=never,
        transfers=freeze(np.zeros((blocks, devices))),
        expert_load=freeze(np.zeros((blocks, problem.tables.expert_device.size), dtype=np.int64)),
        retention=float("nan"),
        block_retention=unknown,
        token_retention=freeze(np.full(problem.tables.mass.shape, np.nan)),
        block_wlr=dict.fromkeys(WLR_READINGS, unknown),
        violations=(Violation("points found", (), 0.0, 1.0),),
    )


def _violations(
    problem: Problem,
    keep: NDArray[np.bool_] | None,
    bandwidth: RealArray | None,
    latency: float,
    device_time: RealArray,
    block_retention: RealArray,
    token_retention: RealArray,
    faults: IntArray,
) -> Iterator[Violation]:
    """Every broken constraint family, selection first."""
    faulty = {EMPTY: ("experts per token", 0.0, 1.0), STRAY: ("keep outside candidates", 1.0, 0.0)}
    for kind, (name, value, limit) in faulty.items():
        if faults[kind, 0]:
            index = (int(faults[kind, 1]), int(faults[kind, 2]))
            yield Violation(name, index, value, limit, int(faults[kind, 0]))
    if keep is not None and faults[CROWDED, 0]:
        used = (keep & (problem.tables.ids >= 0)).sum(axis=2)
        worst = np.unravel_index(int(used.argmax()), used.shape)
        index = (int(worst[0]), int(worst[1]))
        cap = float(problem.expert_cap)
        yield Violation("max_experts", index, float(used[worst]), cap, int(faults[CROWDED, 0]))
    if problem.selectable:
        yield from _below("min_retention", block_retention, np.asarray(problem.min_retention))
        floor = np.asarray(problem.min_token_retention)
        if floor.any():
            yield from _below("min_token_retention", token_retention, floor[:, None])
    yield from _unserved(device_time)
    if bandwidth is not None:
        yield from _bandwidth_violations(problem, bandwidth)
    deadline = problem.max_latency
    if deadline is not None and not latency <= deadline * (1 + FEASIBILITY_TOLERANCE):
        yield Violation("max_latency", (), latency, float(deadline))


def _unserved(device_time: RealArray) -> Iterator[Violation]:
    """Loaded devices that never answer: unreachable, or without bandwidth."""
    if not np.isfinite(device_time).all():
        where = np.argwhere(~np.isfinite(device_time))
        yield Violation("device_time", tuple(map(int, where[0])), float("inf"), float("inf"), len(where))


def _below(name: str, values: RealArray, floor: RealArray) -> Iterator[Violation]:
    short = floor * (1 - FEASIBILITY_TOLERANCE) - values
    if (short > 0).any():
        index = np.unravel_index(int(short.argmax()), short.shape)
        limit = float(np.broadcast_to(floor, values.shape)[index])
        yield Violation(name, tuple(map(int, index)), float(values[index]), limit, int((short > 0).sum()))


def _bandwidth_violations(problem: Problem, bandwidth: RealArray) -> Iterator[Violation]:
    t = problem.tables
    used = bandwidth.sum(axis=-1)
    slack = FEASIBILITY_TOLERANCE * t.total
    if (used > t.total + slack).any():
        index: tuple[Any, ...] = () if used.ndim == 0 else (int(used.argmax()),)
        yield Violation(
            "total_bandwidth", index, float(used.max()), t.total, int((used > t.total + slack).sum())
        )
    if bandwidth.min() < 0:
        yield _extreme("bandwidth", bandwidth, np.zeros(()), -1.0, 0.0)
    if problem.allocation == "fixed":
        fixed = problem.fixed_bandwidth
        assert fixed is not None
        if fixed is not bandwidth and (np.abs(bandwidth - fixed) > slack).any():
            worst = np.broadcast_to(fixed, np.broadcast_shapes(bandwidth.shape, np.shape(fixed)))
            yield _extreme("bandwidth (fixed)", np.broadcast_to(bandwidth, worst.shape), worst, 0.0, slack)
        return
    if (bandwidth < t.low - slack).any():
        yield _extreme("bandwidth_min", bandwidth, t.low, -1.0, slack)
    if (bandwidth > t.high + slack).any():
        yield _extreme("bandwidth_max", bandwidth, t.high, 1.0, slack)


def _extreme(name: str, values: RealArray, limit: RealArray, side: float, slack: float) -> Violation:
    """The entry furthest beyond ``limit``: below it (-1), above it (+1) or either way (0)."""
    limits = np.broadcast_to(limit, values.shape)
    excess = np.abs(values - limits) if side == 0 else side * (values - limits)
    excess = np.where(np.isnan(excess), -np.inf, excess)
    index = np.unravel_index(int(excess.argmax()), excess.shape)
    count = int((excess > slack).sum())
    return Violation(name, tuple(map(int, index)), float(values[index]), float(limits[index]), count)
