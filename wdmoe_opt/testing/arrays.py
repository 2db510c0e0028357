"""Arrays of random instances, the same for the same seed; needs NumPy only."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from wdmoe_opt.problem import Problem


@dataclass(frozen=True)
class Shape:
    """What a random instance looks like; everything else follows from the seed.

    ``per_device`` experts stand on every device on average (1 with ``hosts`` False: the papers' setting),
    ``columns`` candidates are listed and ``top_k`` of them are plain routing.
    """

    blocks: int = 2
    tokens: int = 5
    devices: int = 3
    per_device: int = 1
    top_k: int = 2
    columns: int = 2
    hosts: bool = False
    unreachable: bool = False
    ties: bool = False
    zero_weights: bool = False
    missing: bool = False
    activation: bool = False
    link_delay: bool = False
    limits: bool = False
    gains_per_block: bool = False
    times_per_expert: bool = False
    one_way: bool = False
    wide: bool = False

    @property
    def experts(self) -> int:
        """How many experts there are."""
        return self.devices * self.per_device


def random_arrays(shape: Shape, seed: int) -> dict[str, Any]:
    """Arrays for `Instance.from_arrays` of the given shape, the same for the same seed."""
    rng = np.random.default_rng(seed)
    arrays = {**radio_arrays(rng, shape), **fleet_arrays(rng, shape)}
    hosts = np.arange(shape.experts) % shape.devices
    if shape.hosts or shape.per_device > 1:
        hosts = rng.integers(0, shape.devices, shape.experts)
        arrays["expert_device"] = hosts
    down, up = np.atleast_2d(arrays["gain_down"], arrays["gain_up"])
    reachable = np.broadcast_to(
        ((down > 0) | (arrays["bits_down"] == 0)) & ((up > 0) | (arrays["bits_up"] == 0)),
        (shape.blocks, shape.devices),
    )
    for i in range(shape.blocks):
        # At least one expert can always be reached.
        if not reachable[i][hosts].any():
            hosts[0] = int(np.argmax(reachable[i]))
    if not all(reachable[i][hosts].any() for i in range(shape.blocks)):
        return random_arrays(shape, seed + 1_000_003)
    ids, weights = random_routing(rng, shape, reachable[:, hosts])
    arrays.update(expert_ids=ids, gate_weights=weights, top_k=min(shape.top_k, ids.shape[2]))
    return arrays


def radio_arrays(rng: np.random.Generator, shape: Shape) -> dict[str, Any]:
    """Channel and payload; SNR bandwidths P g / N0 from a hundredth to a million times the budget."""
    devices = shape.devices
    size = (shape.blocks, devices) if shape.gains_per_block else (devices,)
    if shape.wide:
        down = 10.0 ** rng.uniform(-20, 0, size)
        up = 10.0 ** rng.uniform(-20, 0, size)
        total = 10.0 ** rng.uniform(3, 10)
    else:
        down = 10.0 ** rng.uniform(-12, -7, size)
        up = down * 10.0 ** rng.uniform(-0.5, 0.5, size)
        total = 10.0 ** rng.uniform(6, 8.3)
    if shape.unreachable and devices > 1:
        lost = rng.random(size) < 0.3
        lost[..., rng.integers(devices)] = False
        down = np.where(lost & (rng.random(size) < 0.7), 0.0, down)
        up = np.where(lost & (down > 0), 0.0, up)
    arrays: dict[str, Any] = {
        "gain_down": down,
        "gain_up": up,
        "power_down": 10.0 ** rng.uniform(0, 1, devices),
        "power_up": float(10.0 ** rng.uniform(-1.5, 0)),
        "noise_density": 4e-21,
        "total_bandwidth": float(total),
        "bits_down": float(10.0 ** rng.uniform(3.5, 5)),
        "bits_up": float(10.0 ** rng.uniform(3.5, 5)),
    }
    if shape.one_way:
        arrays["bits_up" if rng.random() < 0.5 else "bits_down"] = 0.0
    if shape.limits:
        share = total / devices
        low = rng.uniform(0, 1, devices) * share * (rng.random(devices) < 0.6)
        arrays["bandwidth_min"] = low
        arrays["bandwidth_max"] = np.maximum(low * 1.01, rng.uniform(0.3, 3, devices) * share)
    return arrays


def fleet_arrays(rng: np.random.Generator, shape: Shape) -> dict[str, Any]:
    """Compute, activation and link delay."""
    size = shape.experts if shape.times_per_expert else shape.devices
    arrays: dict[str, Any] = {"compute_time": 10.0 ** rng.uniform(-5, -3, size)}
    if shape.activation:
        arrays["activation_time"] = 10.0 ** rng.uniform(-4, -2, size) * (rng.random(size) < 0.8)
    if shape.link_delay:
        arrays["link_delay"] = 10.0 ** rng.uniform(-4, -2, shape.devices)
    return arrays


def random_routing(
    rng: np.random.Generator, shape: Shape, reachable: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Candidates and weights in which every token has a reachable expert among its top-k."""
    experts = shape.experts
    columns = min(max(shape.columns, shape.top_k), experts)
    top_k = min(shape.top_k, columns)
    ids = np.empty((shape.blocks, shape.tokens, columns), dtype=np.int64)
    weights = np.empty(ids.shape)
    for i in range(shape.blocks):
        for j in range(shape.tokens):
            gate = np.sort(rng.dirichlet(np.full(experts, 0.7)))[::-1] + 1e-12
            if shape.ties and rng.random() < 0.6:
                gate = np.sort(np.round(gate * 4) + 1)[::-1] / 8
            if shape.zero_weights and rng.random() < 0.5:
                gate[1:] = rng.choice([0.0, 1e-300, 1e-30])
            order = rng.permutation(experts)
            listed = columns
            if shape.missing and rng.random() < 0.5:
                listed = int(rng.integers(1, columns + 1))
            reach = reachable[i, order]
            if not reach[: min(listed, top_k)].any():
                first = int(np.argmax(reach))
                order[0], order[first] = order[first], order[0]
            ids[i, j] = order[:columns]
            weights[i, j] = gate[:columns]
            ids[i, j, listed:] = -1
            weights[i, j, listed:] = 0.0
    return ids, weights


def loads_arrays(shape: Shape, seed: int, *, idle: float = 0.3) -> dict[str, Any]:
    """Arrays of an instance with loads only; a share ``idle`` of them is zero, and may be a whole block."""
    rng = np.random.default_rng(seed)
    arrays = {
        **radio_arrays(rng, replace(shape, unreachable=False)),
        **fleet_arrays(rng, replace(shape, times_per_expert=False)),
    }
    size = (shape.blocks, shape.devices)
    arrays["loads"] = rng.integers(1, 200, size) * (rng.random(size) >= idle)
    return arrays


def measured_arrays(shape: Shape, seed: int) -> dict[str, Any]:
    """Arrays of an instance with a measured link; with ``unreachable`` some devices take for ever."""
    rng = np.random.default_rng(seed)
    times = 10.0 ** rng.uniform(-4, -2, shape.devices)
    if shape.unreachable and shape.devices > 1:
        times[int(rng.integers(shape.devices))] = np.inf
    hosts = np.arange(shape.experts) % shape.devices
    arrays = {"token_time_link": times, "expert_device": hosts, **fleet_arrays(rng, shape)}
    reachable = np.broadcast_to(np.isfinite(times)[hosts], (shape.blocks, shape.experts))
    ids, weights = random_routing(rng, shape, reachable)
    return {**arrays, "expert_ids": ids, "gate_weights": weights, "top_k": min(shape.top_k, ids.shape[2])}


def random_shape(rng: np.random.Generator, **fixed: Any) -> Shape:
    """Draw a shape with every flag on half of the time."""
    flags = {name: bool(rng.random() < 0.5) for name, kind in Shape.__annotations__.items() if kind == "bool"}
    sizes = {
        "blocks": int(rng.integers(1, 4)),
        "tokens": int(rng.integers(1, 9)),
        "devices": int(rng.integers(1, 6)),
        "per_device": int(rng.integers(1, 4)),
        "top_k": int(rng.integers(1, 4)),
        "columns": int(rng.integers(1, 5)),
    }
    return Shape(**{**sizes, **flags, "wide": False, **fixed})


def random_keep(problem: Problem, seed: int) -> np.ndarray:
    """Random selection that uses only allowed candidates, at least one per token."""
    rng = np.random.default_rng(seed)
    keep = problem.allowed & (rng.random(problem.allowed.shape) < 0.6)
    for i, j in np.argwhere(~keep.any(axis=2)):
        keep[i, j, rng.choice(np.flatnonzero(problem.allowed[i, j]))] = True
    return keep
