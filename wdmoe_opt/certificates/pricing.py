"""A second way to price a point, in plain NumPy: nothing is shared with the metric it is held against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from wdmoe_opt.problem import FEASIBILITY_TOLERANCE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import ArrayLike, NDArray

    from wdmoe_opt.problem import Problem
    from wdmoe_opt.validation import IntArray, RealArray

#: Two ways of rounding may judge a borderline point differently by so much, relatively.
ROUNDING = 1e-12
SLACK = FEASIBILITY_TOLERANCE + ROUNDING


@dataclass(frozen=True)
class Price:
    """What a point costs.

    Attributes
    ----------
    objective : float
    latency : float, s
    faults : tuple of str
        Broken constraints.
    """

    objective: float
    latency: float
    faults: tuple[str, ...]


def reprice(problem: Problem, keep: ArrayLike | None, bandwidth: ArrayLike | None) -> Price:
    """Price a point of a problem.

    Raises
    ------
    InputError
        If an array has the wrong shape or type.
    """
    selection = problem.checked_keep(keep) if problem.selectable else None
    width = None
    if problem.instance.token_time_link is None:
        given = problem.fixed_bandwidth if bandwidth is None else bandwidth
        width = problem.checked_bandwidth(np.asarray(given))
    sent, loads = _counts(problem, selection)
    link = _link_times(problem, width)
    times = _device_times(problem, sent, loads, link)
    blocks = times.max(axis=1)
    retention = None if selection is None else _retention(problem, selection)
    latency = float(blocks.sum())
    value = _objective(problem, selection, retention, link, times, blocks)
    faults = (
        *_selection_faults(problem, selection, retention),
        *_bandwidth_faults(problem, width),
        *_time_faults(problem, latency),
    )
    return Price(value, latency, faults)


def _pairs(problem: Problem, keep: NDArray[np.bool_]) -> tuple[IntArray, IntArray, IntArray]:
    """Block, token and expert of every kept pair."""
    ids = problem.instance.expert_ids
    assert ids is not None
    i, j, c = np.nonzero(keep & (ids >= 0))
    return i, j, ids[i, j, c]


def _counts(problem: Problem, keep: NDArray[np.bool_] | None) -> tuple[RealArray, RealArray]:
    """Transfers (blocks, devices) and tokens (blocks, experts)."""
    inst = problem.instance
    if keep is None:
        assert inst.loads is not None
        return inst.loads.astype(np.float64), inst.loads.astype(np.float64)
    assert inst.expert_device is not None
    i, j, e = _pairs(problem, keep)
    loads = np.bincount(i * inst.experts + e, minlength=inst.blocks * inst.experts)
    visits = np.stack([i, j, inst.expert_device[e]])
    if problem.dispatch == "device":
        visits = np.unique(visits, axis=1)
    sent = np.bincount(visits[0] * inst.devices + visits[2], minlength=inst.blocks * inst.devices)
    return (
        sent.reshape(inst.blocks, inst.devices).astype(np.float64),
        loads.reshape(inst.blocks, inst.experts).astype(np.float64),
    )


def _link_times(problem: Problem, width: RealArray | None) -> RealArray:
    """Seconds per transfer, (blocks, devices), by Shannon's rate."""
    inst = problem.instance
    shape = (inst.blocks, inst.devices)
    if inst.token_time_link is not None:
        return np.broadcast_to(inst.token_time_link, shape)
    b = np.broadcast_to(np.asarray(width), shape)
    time = np.zeros(shape)
    ways = (
        (inst.bits_down, inst.power_down, inst.gain_down),
        (inst.bits_up, inst.power_up, inst.gain_up),
    )
    for bits, power, gain in ways:
        if bits:
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                snr = np.asarray(power) * np.asarray(gain) / (inst.noise_density * b)
                time = time + bits / (b * np.log1p(snr) / np.log(2.0))
    return np.where((b > 0) & ~np.isnan(time), time, np.inf)


def _device_times(problem: Problem, sent: RealArray, loads: RealArray, link: RealArray) -> RealArray:
    inst = problem.instance
    hosts = np.arange(inst.devices) if inst.expert_device is None else inst.expert_device
    busy = loads * inst.per_expert(inst.compute_time) + (loads > 0) * inst.per_expert(inst.activation_time)
    times = np.where(sent > 0, np.where(sent > 0, link, 0.0) * sent + inst.link_delay, 0.0)
    np.add.at(times.T, hosts, busy.T)
    return times


def _retention(problem: Problem, keep: NDArray[np.bool_]) -> RealArray:
    """Kept over top-k gate weight of every token, (blocks, tokens)."""
    inst = problem.instance
    assert inst.gate_weights is not None
    assert inst.expert_ids is not None
    kept = np.where(keep & (inst.expert_ids >= 0), inst.gate_weights, 0.0).sum(axis=2)
    share: RealArray = kept / inst.gate_weights[:, :, : inst.top_k].sum(axis=2)
    return share


def _objective(
    problem: Problem,
    keep: NDArray[np.bool_] | None,
    retention: RealArray | None,
    link: RealArray,
    times: RealArray,
    blocks: RealArray,
) -> float:
    if problem.objective == "latency":
        return float(blocks.sum())
    assert keep is not None
    assert retention is not None
    if problem.objective == "retention":
        return float(retention.mean())
    return float(_ratios(problem, keep, link, times, blocks).mean())


def _ratios(
    problem: Problem, keep: NDArray[np.bool_], link: RealArray, times: RealArray, blocks: RealArray
) -> RealArray:
    """Weight-to-latency ratio of every block by the problem's reading."""
    inst = problem.instance
    assert inst.gate_weights is not None
    assert inst.expert_ids is not None
    assert inst.expert_device is not None
    used = keep & (inst.expert_ids >= 0)
    i, j, e = _pairs(problem, keep)
    weight = inst.gate_weights[used]
    device = inst.expert_device[e]
    if problem.objective == "wlr-block":
        kept = np.bincount(i, weight, inst.blocks)
        return np.divide(kept, blocks, out=np.zeros(inst.blocks), where=kept > 0)
    if problem.objective == "wlr-device":
        kept = np.bincount(i * inst.devices + device, weight, times.size).reshape(times.shape)
        of_devices: RealArray = np.divide(kept, times, out=np.zeros(times.shape), where=kept > 0).sum(axis=1)
        return of_devices
    ratio = weight / (link[i, device] + inst.per_expert(inst.compute_time)[e])
    token = i * inst.tokens + j
    count = np.bincount(token, minlength=inst.blocks * inst.tokens)
    mean = np.bincount(token, ratio, count.size) / np.maximum(count, 1)
    per_block: RealArray = mean.reshape(inst.blocks, inst.tokens).mean(axis=1)
    return per_block


# ---------------------------------------------------------------------- constraints


def _selection_faults(
    problem: Problem, keep: NDArray[np.bool_] | None, retention: RealArray | None
) -> Iterator[str]:
    if keep is None or retention is None:
        return
    ids = problem.instance.expert_ids
    assert ids is not None
    used = keep & (ids >= 0)
    beyond = used & ~problem.allowed
    if beyond.any():
        yield f"{_at('keep', beyond)} is not among the token's reachable candidates"
    count = used.sum(axis=2)
    if (count == 0).any():
        yield f"{_at('keep', count == 0)} keeps no expert"
    crowded = count > problem.expert_cap
    if crowded.any():
        yield f"{_at('keep', crowded)} keeps more than max_experts = {problem.expert_cap}"
    mean_floor, token_floor = np.asarray(problem.min_retention), np.asarray(problem.min_token_retention)
    short = retention.mean(axis=1) < mean_floor * (1 - SLACK)
    if short.any():
        yield f"{_at('retention', short)} is below min_retention"
    low = retention < token_floor[:, None] * (1 - SLACK)
    if low.any():
        yield f"{_at('token retention', low)} is below min_token_retention"


def _bandwidth_faults(problem: Problem, width: RealArray | None) -> Iterator[str]:
    inst = problem.instance
    if width is None:
        return
    assert inst.total_bandwidth is not None
    slack = SLACK * inst.total_bandwidth
    with np.errstate(over="ignore"):
        used = width.sum(axis=-1)
    if (used > inst.total_bandwidth + slack).any():
        yield f"bandwidth sums to {used.max():.9g} Hz, more than total_bandwidth = {inst.total_bandwidth:.9g}"
    if (width < 0).any():
        yield f"{_at('bandwidth', width < 0)} is negative"
    if problem.allocation == "fixed":
        off = np.abs(width - np.asarray(problem.fixed_bandwidth)) > slack
        if off.any():
            yield f"{_at('bandwidth', off)} is not the fixed one"
        return
    if inst.bandwidth_min is not None and (width < inst.bandwidth_min - slack).any():
        yield f"{_at('bandwidth', width < inst.bandwidth_min - slack)} is below bandwidth_min"
    if inst.bandwidth_max is not None and (width > inst.bandwidth_max + slack).any():
        yield f"{_at('bandwidth', width > inst.bandwidth_max + slack)} is above bandwidth_max"


def _time_faults(problem: Problem, latency: float) -> Iterator[str]:
    if not np.isfinite(latency):
        yield "a loaded device cannot be reached or has no bandwidth: the latency is infinite"
    elif problem.max_latency is not None and latency > problem.max_latency * (1 + SLACK):
        yield f"latency {latency:.9g} s is above max_latency = {problem.max_latency:.9g} s"


def _at(name: str, bad: NDArray[np.bool_]) -> str:
    """First place where something is wrong, in words."""
    index = ", ".join(str(int(n)) for n in np.argwhere(bad)[0])
    more = int(bad.sum()) - 1
    return f"{name}[{index}]" + (f" (and {more} more)" if more else "")
