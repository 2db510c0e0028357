"""What the check needs to know of a problem, read from its fields alone, widened by the tolerance.

A point is feasible if it keeps every rule within `FEASIBILITY_TOLERANCE`, as computed in floating point.
A bound must hold for all such points: floors and limits are moved outward by the tolerance and by the
rounding of whoever checks them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from wdmoe_opt.problem import FEASIBILITY_TOLERANCE

if TYPE_CHECKING:
    from wdmoe_opt.problem import Problem
    from wdmoe_opt.validation import IntArray, RealArray

BoolArray = NDArray[np.bool_]
#: Spacing of floats at 1: twice the largest relative error of one operation.
EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True, eq=False)
class Facts:
    """A problem as the check sees it; candidates stand first in the token arrays, which sums faster.

    Attributes
    ----------
    pair : int array (m, blocks, tokens)
        Where a pair's expert stands in a flat (blocks, experts + 1) array; the last column of a block
        stands for "not allowed".
    count : int array (blocks, experts)
        Allowed pairs of every expert.
    share : float array (m, blocks, tokens)
        What the pair adds to the token's retention; 0 where it is not allowed.
    weight : float array (m, blocks, tokens)
        Gate weight, 0 where the pair is not allowed.
    forced : bool array (m, blocks, tokens) or None
        Pairs that must be kept.
    mean_floor, token_floor : float array (blocks,)
    cap : int
        Most experts per token.
    by_device : bool
        Whether a token is sent once per device.
    hosts : int array (experts,)
    expert_compute, activation : float array (experts,), s
    usable, awake : bool array (blocks, experts)
        Which experts any pair may use, and which must be active.
    delay : float array (devices,), s
    light, heavy : float array (blocks, devices), s
        Least and largest compute per transfer.
    least, most : float array (blocks, devices)
        Limits of a device's transfers; 1 <= least means that it is loaded.
    low, high : float array (blocks, devices), Hz
    budget : float, Hz
        Infinite where bandwidth is fixed.
    down, up : float array (blocks, devices), bit/Hz and Hz
    loads : float array (blocks, devices) or None
        Transfers where they are all that is known.
    after, until : float array (blocks,), s
        Limits of the latency: above ``after``, at most ``until``.
    """

    pair: IntArray
    count: IntArray
    share: RealArray
    weight: RealArray
    forced: BoolArray | None
    mean_floor: RealArray
    token_floor: RealArray
    cap: int
    by_device: bool
    hosts: IntArray
    expert_compute: RealArray
    activation: RealArray
    usable: BoolArray
    awake: BoolArray
    delay: RealArray
    light: RealArray
    heavy: RealArray
    least: RealArray
    most: RealArray
    low: RealArray
    high: RealArray
    budget: float
    bits_down: float
    bits_up: float
    snr_down: RealArray
    snr_up: RealArray
    link_time: RealArray | None
    loads: RealArray | None
    after: RealArray
    until: RealArray

    @property
    def experts(self) -> int:
        """Number of experts of a block."""
        return int(self.hosts.size)


_FACTS: WeakKeyDictionary[Problem, Facts] = WeakKeyDictionary()


def facts_of(problem: Problem) -> Facts:
    """Facts of a problem, made once while it lives."""
    found = _FACTS.get(problem)
    if found is None:
        found = _FACTS[problem] = _facts(problem)
    return found


def _facts(problem: Problem) -> Facts:
    inst = problem.instance
    hosts = inst.expert_device if inst.expert_device is not None else np.arange(inst.devices)
    compute = _per_expert(inst.compute_time, hosts, inst.devices)
    pair, share, weight = _pairs(problem, hosts)
    loads = None if inst.loads is None else inst.loads.astype(np.float64)
    low, high, budget = _limits(problem)
    snr_down, snr_up = _snr(problem)
    shape = (inst.blocks, inst.devices)
    link = inst.token_time_link
    usable, light, heavy, most = _loads(problem, pair, hosts, compute)
    return Facts(
        pair=pair,
        count=pair_counts(pair, inst.blocks, hosts.size),
        share=share,
        weight=weight,
        forced=None,
        mean_floor=_lowered(problem.min_retention, inst.tokens + inst.columns + 8),
        token_floor=_lowered(problem.min_token_retention, inst.columns + 8),
        cap=problem.expert_cap,
        by_device=problem.dispatch == "device",
        hosts=hosts,
        expert_compute=compute,
        activation=_per_expert(inst.activation_time, hosts, inst.devices),
        usable=usable,
        awake=np.zeros(usable.shape, dtype=np.bool_) if loads is None else loads > 0,
        delay=inst.link_delay,
        light=light,
        heavy=heavy,
        least=np.zeros(shape) if loads is None else loads,
        most=most,
        low=low,
        high=high,
        budget=budget,
        bits_down=float(inst.bits_down or 0.0),
        bits_up=float(inst.bits_up or 0.0),
        snr_down=snr_down,
        snr_up=snr_up,
        link_time=None if link is None else np.broadcast_to(link, shape),
        loads=loads,
        after=np.zeros(inst.blocks),
        until=np.full(inst.blocks, np.inf),
    )


def _per_expert(times: RealArray, hosts: IntArray, devices: int) -> RealArray:
    return times[hosts] if times.size == devices else times


def _lowered(floor: object, operations: int) -> RealArray:
    """A floor as far down as a point may lie that someone's rounding found feasible."""
    lowered: RealArray = np.asarray(floor) * (1 - FEASIBILITY_TOLERANCE - operations * EPS)
    return lowered


def _pairs(problem: Problem, hosts: IntArray) -> tuple[IntArray, RealArray, RealArray]:
    inst = problem.instance
    if inst.expert_ids is None or inst.gate_weights is None:
        nothing = np.zeros((0, inst.blocks, 0))
        return nothing.astype(np.int64), nothing, nothing
    m = inst.top_k if problem.candidates == "top-k" else problem.candidates
    ids = inst.expert_ids[:, :, :m].transpose(2, 0, 1)
    weights = inst.gate_weights.transpose(2, 0, 1)
    reach = inst.reachable[:, hosts]
    rows = np.arange(inst.blocks)[:, None]
    allowed = (ids >= 0) & reach[rows, np.maximum(ids, 0)]
    pair = np.where(allowed, ids, hosts.size) + rows * (hosts.size + 1)
    mass = weights[: inst.top_k].sum(axis=0)
    kept = np.where(allowed, weights[:m], 0.0)
    return np.ascontiguousarray(pair), np.ascontiguousarray(kept / mass), np.ascontiguousarray(kept)


def _loads(
    problem: Problem, pair: IntArray, hosts: IntArray, compute: RealArray
) -> tuple[BoolArray, RealArray, RealArray, RealArray]:
    """Usable experts; per device least and largest compute per transfer, and most transfers."""
    inst = problem.instance
    shape = (inst.blocks, inst.devices)
    if inst.loads is not None:
        times = np.broadcast_to(compute, shape)
        return inst.loads > 0, times, times, inst.loads.astype(np.float64)
    count = pair_counts(pair, inst.blocks, hosts.size)
    return device_loads(pair, count, hosts, compute, inst.devices, problem.dispatch == "device")


def pair_counts(pair: IntArray, blocks: int, experts: int) -> IntArray:
    """Allowed pairs of every expert, (blocks, experts)."""
    count = np.bincount(pair.ravel(), minlength=blocks * (experts + 1)).reshape(blocks, experts + 1)
    return count[:, :experts]


def device_loads(
    pair: IntArray, count: IntArray, hosts: IntArray, compute: RealArray, devices: int, by_device: bool
) -> tuple[BoolArray, RealArray, RealArray, RealArray]:
    """Usable experts; per device least and largest compute per transfer, and most transfers."""
    blocks = count.shape[0]
    usable = count > 0
    light = np.full((blocks, devices), np.inf)
    heavy = np.zeros((blocks, devices))
    most = np.zeros((blocks, devices))
    open_times = np.where(usable, compute, np.inf)
    np.minimum.at(light.T, hosts, open_times.T)
    if by_device:
        # A transfer brings at most all of one token's work for the device.
        device = np.append(hosts, devices)
        i, j = np.arange(blocks)[:, None], np.arange(pair.shape[2])
        expert = pair - i * (hosts.size + 1)
        slot = ((i * pair.shape[2] + j) * (devices + 1) + device[expert]).ravel()
        size = blocks * pair.shape[2] * (devices + 1)
        work = np.bincount(slot, np.append(compute, 0.0)[expert].ravel(), size)
        sent = np.bincount(slot, minlength=size)
        split = (blocks, pair.shape[2], devices + 1)
        heavy = work.reshape(split)[:, :, :devices].max(axis=1) * (1 + pair.shape[0] * EPS)
        most = (sent.reshape(split)[:, :, :devices] > 0).sum(axis=1).astype(np.float64)
    else:
        np.maximum.at(heavy.T, hosts, np.where(usable, compute, 0.0).T)
        np.add.at(most.T, hosts, count.T.astype(np.float64))
    light[~np.isfinite(light)] = 0.0
    return usable, light, heavy, most


def _limits(problem: Problem) -> tuple[RealArray, RealArray, float]:
    """Limits of bandwidth, (blocks, devices), and the budget, outward by the tolerance."""
    inst = problem.instance
    shape = (inst.blocks, inst.devices)
    if inst.token_time_link is not None:
        return np.zeros(shape), np.zeros(shape), np.inf
    assert inst.total_bandwidth is not None
    slack = inst.total_bandwidth * (FEASIBILITY_TOLERANCE + inst.devices * EPS)
    if problem.allocation == "fixed":
        given = np.asarray(problem.fixed_bandwidth)
        top = np.broadcast_to((given + slack) * (1 + 4 * EPS), shape)
        return top, top, np.inf
    budget = inst.total_bandwidth * (1 + FEASIBILITY_TOLERANCE + (inst.devices + 4) * EPS)
    low = np.zeros(inst.devices) if inst.bandwidth_min is None else inst.bandwidth_min
    high = np.full(inst.devices, budget) if inst.bandwidth_max is None else inst.bandwidth_max
    lowest = np.maximum(low * (1 - 4 * EPS) - slack, 0.0)
    highest = np.minimum(high * (1 + 4 * EPS) + slack, budget)
    return np.broadcast_to(lowest, shape), np.broadcast_to(highest, shape), budget


def _snr(problem: Problem) -> tuple[RealArray, RealArray]:
    inst = problem.instance
    shape = (inst.blocks, inst.devices)
    if inst.token_time_link is not None:
        return np.zeros(shape), np.zeros(shape)
    assert inst.power_down is not None
    assert inst.power_up is not None
    assert inst.gain_down is not None
    assert inst.gain_up is not None
    assert inst.noise_density is not None
    down = inst.power_down * inst.gain_down / inst.noise_density
    up = inst.power_up * inst.gain_up / inst.noise_density
    return np.broadcast_to(down, shape), np.broadcast_to(up, shape)
