"""The catalogue of small problems that every solver is tried on: one for each declared ability."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any

import numpy as np

from wdmoe_opt.instance import Instance
from wdmoe_opt.problem import Problem
from wdmoe_opt.testing.oracles import least_latency


def fleet(blocks: int = 2, tokens: int = 3, **changes: Any) -> Instance:
    """Three devices, four experts (two on device 1), three candidates of which two are top-k.

    Parameters
    ----------
    **changes
        Fields of `Instance` that are to differ.
    """
    rng = np.random.default_rng(7)
    fields: dict[str, Any] = {
        "expert_ids": rng.random((blocks, tokens, 4)).argsort(axis=2)[:, :, :3],
        "gate_weights": -np.sort(-rng.dirichlet(np.ones(3), (blocks, tokens)), axis=2),
        "top_k": 2,
        "expert_device": [0, 1, 1, 2],
        "compute_time": [1e-4, 2e-4, 2e-4],
        "gain_down": [1e-10, 3e-11, 2e-10],
        "gain_up": [1e-10, 3e-11, 2e-10],
        "power_down": 10.0,
        "power_up": 0.2,
        "noise_density": 4e-21,
        "total_bandwidth": 2e7,
        "bits_down": 65536.0,
        "bits_up": 65536.0,
    }
    return Instance(**{**fields, **changes})


def measured() -> Instance:
    """A link without a bandwidth knob."""
    radio: dict[str, Any] = dict.fromkeys(
        ("gain_down", "gain_up", "power_down", "power_up", "noise_density", "total_bandwidth")
    )
    return fleet(**radio, token_time_link=[1e-3, 2e-3, 1e-3])


def loads_only() -> Instance:
    """Routing known as counts."""
    routing: dict[str, Any] = dict.fromkeys(("expert_ids", "gate_weights", "top_k", "expert_device"))
    return fleet(**routing, loads=[[3, 0, 2], [1, 4, 0]])


def near_zero_weights() -> Instance:
    """Gates that put nearly everything on one expert, and ties among the rest."""
    weights = np.tile([1.0 - 2e-12, 1e-12, 1e-12], (2, 3, 1))
    weights[0, 1] = [1.0, 0.0, 0.0]
    weights[1, 2] = [1 / 3, 1 / 3, 1 / 3]
    return fleet(gate_weights=weights)


SLOW_START: Mapping[str, Any] = {"activation_time": [1e-3, 2e-3, 0.0], "link_delay": [0.0, 1e-3, 1e-3]}
PROBLEMS: Mapping[str, Callable[[], Problem]] = MappingProxyType(
    {
        "shared": lambda: Problem(fleet(), min_retention=0.7),
        "per-block": lambda: Problem(fleet(), min_retention=0.7, allocation="per-block"),
        "fixed": lambda: Problem(fleet(), min_retention=0.7, allocation="fixed"),
        "activation": lambda: Problem(fleet(**SLOW_START), min_retention=0.7),
        "token floor": lambda: Problem(fleet(), min_token_retention=0.6, allocation="per-block"),
        "re-routing": lambda: Problem(fleet(), min_retention=0.9, candidates=3),
        "max_experts": lambda: Problem(fleet(), candidates=3, max_experts=1, allocation="per-block"),
        "dispatch by device": lambda: Problem(fleet(**SLOW_START), min_retention=0.8, dispatch="device"),
        "one block": lambda: Problem(fleet(blocks=1), min_retention=0.7),
        "gains per block": lambda: Problem(
            fleet(gain_down=[[1e-10, 3e-11, 2e-10], [2e-11, 3e-10, 1e-10]]), min_retention=0.7
        ),
        "extreme gains": lambda: Problem(
            fleet(gain_down=[1e-15, 3e-11, 1e-4], gain_up=[1e-13, 3e-11, 1e-2]), allocation="per-block"
        ),
        "near-zero weights": lambda: Problem(near_zero_weights(), min_retention=0.99),
        "unreachable device": lambda: Problem(fleet(gain_up=[1e-10, 3e-11, 0.0]), candidates=3),
        "limits on shares": lambda: Problem(
            fleet(bandwidth_min=1e6, bandwidth_max=9e6), min_retention=0.7, allocation="per-block"
        ),
        "measured link": lambda: Problem(measured(), min_retention=0.7, allocation="fixed"),
        "loads only": lambda: Problem(loads_only()),
        "retention": lambda: Problem(fleet(), objective="retention", max_latency=0.004),
        "wlr-token": lambda: Problem(fleet(), objective="wlr-token", min_retention=0.7, allocation="fixed"),
        "wlr-device": lambda: Problem(fleet(), objective="wlr-device", min_retention=0.7, allocation="fixed"),
        "wlr-block": lambda: Problem(fleet(), objective="wlr-block", min_retention=0.7, allocation="fixed"),
    }
)


@cache
def optimum(case: str) -> float:
    """Best objective of a problem of the catalogue: enumerated, or by nested search where loads are known."""
    from wdmoe_opt.solving import solve

    problem = PROBLEMS[case]()
    if not problem.selectable:
        return least_latency(problem.instance.arrays(), None)
    return float(solve(problem, "enumerate").objective)


def larger_problem() -> Problem:
    """Too large to be closed in a moment: for time limits."""
    return Problem(fleet(blocks=3, tokens=24, **SLOW_START), min_retention=0.9, candidates=3)
