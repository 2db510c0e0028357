"""Normalised data of a problem: what every formal model is built from.

Solvers fail silently on Hz and bits side by side, so no model ever sees SI units:

=================  =====================================================================
quantity           unit in the models
=================  =====================================================================
bandwidth          share of the total bandwidth
time               `Data.time_unit` s: latency of a trivial feasible point, or the cap on latency
gate weight        share of the token's top-k weight ("retention")
rate               rate at an equal share of the bandwidth
=================  =====================================================================

Results leave in SI units through each model's ``extract()``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wdmoe_opt.bandwidth import allocate, demands
from wdmoe_opt.errors import InputError
from wdmoe_opt.floors import fixed_link_times, richest_keep, usable
from wdmoe_opt.metrics import price
from wdmoe_opt.problem import Problem
from wdmoe_opt.validation import IntArray, RealArray

#: What to solve the convex models with: the data are normalised already, and Clarabel's own scaling on top
#: of that makes it fail on devices that need no bandwidth.
CLARABEL: dict[str, Any] = {"solver": "CLARABEL", "equilibrate_enable": False}


@dataclass(frozen=True, eq=False)
class Extract:
    """Variables of a solved model, in the package's units and shapes.

    Attributes
    ----------
    keep : float array (blocks, tokens, m), or None
        Selection, 0 to 1; fractional if the model is a relaxation. None where nothing is selected.
    bandwidth : float array (devices,) or (blocks, devices), Hz, or None
        None where the model has no bandwidth.
    latency : float, s
        The model's own latency, to be compared with `wdmoe_opt.evaluate`, never trusted.
    """

    keep: RealArray | None
    bandwidth: RealArray | None
    latency: float


@dataclass(frozen=True, eq=False)
class Data:
    """A problem in normalised units, with its usable (block, token, column) triples listed.

    Attributes
    ----------
    problem : Problem
    time_unit : float, s
    pairs : int array (pairs, 3)
        Block, token and column of every usable candidate.
    pair_expert, pair_device : int arrays (pairs,)
    pair_retention : float array (pairs,)
        Gate weight over the token's top-k weight.
    snr_down, snr_up : float arrays (blocks, devices)
        SNR at the total bandwidth, P g / (N0 B).
    slow_down, slow_up : float arrays (blocks, devices)
        Time units of one transfer at an equal share of the bandwidth; 0 without payload.
    compute, activation : float arrays (experts,), time units
    delay : float array (devices,), time units
    low, high : float arrays (devices,)
        Limits of the shares.
    """

    problem: Problem
    time_unit: float
    pairs: IntArray
    pair_expert: IntArray
    pair_device: IntArray
    pair_retention: RealArray
    snr_down: RealArray
    snr_up: RealArray
    slow_down: RealArray
    slow_up: RealArray
    compute: RealArray
    activation: RealArray
    delay: RealArray
    low: RealArray
    high: RealArray

    @property
    def shape(self) -> tuple[int, int]:
        """Blocks and devices."""
        blocks, devices = self.snr_down.shape
        return blocks, devices

    @property
    def tokens(self) -> int:
        """Tokens per block."""
        return self.problem.instance.tokens

    @property
    def rows(self) -> int:
        """Bandwidth vectors: 1 if shared by all blocks, else one per block."""
        return 1 if self.problem.allocation == "shared" else self.shape[0]

    @property
    def rate_rows(self) -> int:
        """Different rate vectors: 1 if bandwidth and channel are the same in all blocks."""
        static = all(np.ptp(snr, axis=0).max() == 0 for snr in (self.snr_down, self.snr_up))
        return 1 if self.rows == 1 and static else self.shape[0]

    @property
    def directions(self) -> tuple[str, ...]:
        """Directions with a payload."""
        slow = {"down": self.slow_down, "up": self.slow_up}
        return tuple(name for name, s in slow.items() if s.any())

    def snr(self, direction: str) -> RealArray:
        """SNR at the total bandwidth in one direction, (blocks, devices)."""
        return self.snr_down if direction == "down" else self.snr_up

    def slow(self, direction: str) -> RealArray:
        """Time units of a transfer at an equal share in one direction, (blocks, devices)."""
        return self.slow_down if direction == "down" else self.slow_up

    def equal_rate(self, direction: str) -> RealArray:
        """Spectral rate b ln(1 + snr / b) at an equal share b, (blocks, devices); 1 if unreachable."""
        return _share_rate(self.snr(direction))

    @cached_property
    def groups(self) -> tuple[IntArray, IntArray]:
        """Transfers: the group of every pair (pairs,), and block, token, device of each (groups, 3).

        One group per pair, or with dispatch "device" per (block, token, device).
        """
        where = np.column_stack([self.pairs[:, :2], self.pair_device])
        if not self.problem.tables.by_device:
            return np.arange(len(where)), where
        distinct, group = np.unique(where, axis=0, return_inverse=True)
        return group.reshape(-1), distinct

    def cheapest(self, values: RealArray) -> RealArray:
        """Least of a value per expert over the usable experts of a device, (blocks, devices); 0 if none."""
        least = np.full(self.shape, np.inf)
        np.minimum.at(least, (self.pairs[:, 0], self.pair_device), values[self.pair_expert])
        return np.where(np.isfinite(least), least, 0.0)

    @cached_property
    def tight(self) -> bool:
        """Whether the convex models lose nothing but integrality, see `joint_latency`."""
        hosts = self.problem.tables.expert_device
        alike = all(np.ptp(self.compute[hosts == k]) == 0 for k in np.unique(hosts))
        alone = np.bincount(hosts).max() == 1
        return alike and not self.problem.tables.by_device and (bool(alone) or not self.activation.any())

    @cached_property
    def structure(self) -> tuple[Any, ...]:
        """What a model is built around; only numbers may change in an update."""
        p = self.problem
        parts = (self.pairs, self.pair_expert, self.pair_device, self.activation > 0, self.delay > 0)
        request = (
            p.objective,
            p.allocation,
            p.dispatch,
            p.max_experts,
            p.max_latency is None,
            self.directions,
            self.rate_rows,
        )
        limits = (np.isfinite(p.tables.high), p.instance.expert_device)
        arrays = (None if a is None else (a.shape, a.tobytes()) for a in (*parts, *limits))
        return (*request, self.shape, self.tokens, *arrays)

    def keep(self, values: RealArray) -> RealArray:
        """A value per pair as an array (blocks, tokens, m), 0 elsewhere."""
        full = np.zeros(self.problem.tables.ids.shape)
        full[tuple(self.pairs.T)] = np.clip(values, 0.0, 1.0)
        return full

    def bandwidth(self, shares: RealArray) -> RealArray:
        """Shares (rows, devices) in Hz, in the shape of the allocation and within its limits."""
        p = self.problem
        inside = np.clip(shares, self.low, self.high)
        inside /= np.maximum(inside.sum(axis=1, keepdims=True), 1.0)
        full: RealArray = inside * p.tables.total
        return full[0] if p.allocation == "shared" else full


def normalise(problem: Problem, time_unit: float | None = None) -> Data:
    """Normalised data of a problem.

    Parameters
    ----------
    problem : Problem
    time_unit : float, s, optional
        Default `trivial_latency`.
    """
    t = problem.tables
    unit = trivial_latency(problem) if time_unit is None else time_unit
    total = t.total if t.total > 0 else 1.0
    pairs = np.argwhere(usable(problem)) if problem.selectable else np.zeros((0, 3), dtype=np.int64)
    index = tuple(pairs.T)
    experts = t.ids[index].astype(np.int64) if problem.selectable else np.zeros(0, dtype=np.int64)
    slow = [
        bits * np.log(2.0) / (total * unit * _share_rate(c / total))
        for bits, c in ((t.bits_down, t.c_down), (t.bits_up, t.c_up))
    ]
    return Data(
        problem=problem,
        time_unit=unit,
        pairs=pairs,
        pair_expert=experts,
        pair_device=t.expert_device[experts].astype(np.int64),
        pair_retention=(t.weights[index] / t.mass[tuple(pairs[:, :2].T)]) if len(pairs) else np.zeros(0),
        snr_down=t.c_down / total,
        snr_up=t.c_up / total,
        slow_down=slow[0],
        slow_up=slow[1],
        compute=t.compute / unit,
        activation=t.activation / unit,
        delay=t.link_delay / unit,
        low=t.low / total,
        high=np.minimum(t.high / total, 1.0),
    )


def trivial_latency(problem: Problem) -> float:
    """Total latency of a point that is easily found and keeps all floors, s.

    The richest selection at its best bandwidth: an upper bound on the least latency.
    """
    keep = richest_keep(problem) if problem.selectable else None
    value = price(problem, keep, allocate(problem, *demands(problem, keep)).bandwidth).latency
    return value if 0 < value < float("inf") else 1.0


def link_time_parameter(problem: Problem, time_unit: float) -> RealArray:
    """Time units of a transfer at the fixed bandwidth, (blocks, devices); 0 where nothing is served."""
    times = fixed_link_times(problem) / time_unit
    return np.where(np.isfinite(times), times, 0.0)


def check_structure(old: Data, new: Data) -> None:
    """Refuse an update that changes more than numbers.

    Raises
    ------
    InputError
        If candidates, sizes or the request differ from what the model was built for.
    """
    if old.structure != new.structure:
        rule = "differs from the model's in more than numbers (candidates, sizes or request): build a new one"
        raise InputError("problem", rule)


def _share_rate(snr: RealArray) -> RealArray:
    """Spectral rate b ln(1 + snr / b) at b = 1 / devices; 1 where the SNR is 0."""
    share = 1.0 / snr.shape[1]
    rate = share * np.log1p(snr / share)
    positive: NDArray[np.float64] = np.where(snr > 0, rate, 1.0)
    return positive
