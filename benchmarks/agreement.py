"""Do independent exact methods agree? Random tiny problems, solved by enumeration, MILP and MINLP.

Usage: ``python -m wdmoe_opt.benchmarks.agreement --count 500``
"""

from __future__ import annotations

import numpy as np

from wdmoe_opt import Instance, Problem

ALLOCATIONS = ("per-block", "shared", "fixed")


def tiny_problem(seed: int, *, blocks: int | None = None) -> Problem:
    """A random problem that can be enumerated: 2 to 6 tokens, 2 to 4 devices, 1 or 2 experts on each.

    Parameters
    ----------
    seed : int
        Allocation mode and activation cycle through all combinations with it; the rest is drawn.
    blocks : int, optional
        Default 1 or 2, drawn.
    """
    rng = np.random.default_rng([20260101, seed])
    allocation = ALLOCATIONS[seed % 3]
    active = seed // 3 % 2 == 1
    tokens, devices = int(rng.integers(2, 7)), int(rng.integers(2, 5))
    hosts = np.repeat(np.arange(devices), rng.integers(1, 3, devices))
    experts = hosts.size
    if blocks is None:
        blocks = int(rng.integers(1, 3))
    top_k = int(rng.integers(2, min(experts, 3) + 1))
    columns = min(experts, top_k + int(rng.integers(0, 2)))
    order = rng.random((blocks, tokens, experts)).argsort(axis=2)[:, :, :columns]
    weights = -np.sort(-rng.dirichlet(np.ones(columns), (blocks, tokens)), axis=2)
    radio = {
        "gain_down": 10.0 ** rng.uniform(-12, -9, devices),
        "gain_up": 10.0 ** rng.uniform(-11.5, -9, devices),
        "power_down": 10.0,
        "power_up": 0.2,
        "noise_density": 4e-21,
        "total_bandwidth": 10.0 ** rng.uniform(7, 8),
        "bits_down": 65536.0,
        "bits_up": float(rng.choice([0.0, 65536.0], p=[0.2, 0.8])),
    }
    scale = 65536.0 / radio["total_bandwidth"]
    per = experts if rng.random() < 0.5 else devices
    instance = Instance(
        expert_ids=order,
        gate_weights=weights,
        top_k=top_k,
        expert_device=hosts,
        compute_time=scale * rng.uniform(0, 1, per),
        activation_time=scale * rng.uniform(0, 3, per) if active else np.zeros(per),
        link_delay=scale * rng.uniform(0, 1, devices) if rng.random() < 0.3 else np.zeros(devices),
        **radio,
        name=f"tiny-{seed}",
    )
    shares = rng.dirichlet(np.ones(devices)) * radio["total_bandwidth"]
    return Problem(
        instance,
        min_retention=float(rng.choice([0.0, 0.6, 0.8, 0.95])),
        min_token_retention=float(rng.choice([0.0, 0.0, 0.5])),
        max_experts=2 if rng.random() < 0.2 else None,
        candidates=columns if rng.random() < 0.5 else "top-k",
        allocation=allocation,
        bandwidth=shares if allocation == "fixed" else None,
        dispatch="device" if rng.random() < 0.3 else "expert",
    )
