"""Fleets: named rows of device profiles, and what an expert costs on them."""

from __future__ import annotations

from typing import Any

import numpy as np

from wdmoe_opt.errors import UnknownNameError
from wdmoe_opt.instances.devices import DeviceProfile, expert_weights, load_profile

#: Boards of each fleet, nearest to the base station first. "orin-mix-8" has measured boards only.
FLEETS: dict[str, tuple[str, ...]] = {
    "orin-mix-8": (
        "agx-orin-maxn", "orin-nano-maxn-super", "orin-nx", "agx-orin-30w",
        "agx-orin-maxn", "orin-nx", "orin-nano-maxn-super", "agx-orin-30w",
    ),
    "jetson-mix-8": (
        "agx-thor", "orin-nano-15w", "agx-orin-maxn", "xavier-nx-estimated",
        "agx-orin-50w", "orin-nx", "orin-nano-maxn-super", "agx-xavier-estimated",
    ),
    "orin-nano-8": ("orin-nano-maxn-super",) * 8,
}  # fmt: skip


def fleet_profiles(fleet: str, precision: str = "fp16") -> list[DeviceProfile]:
    """Device profiles of a named fleet.

    Raises
    ------
    UnknownNameError
        If there is no such fleet.
    """
    if fleet not in FLEETS:
        raise UnknownNameError("fleet", fleet, FLEETS)
    return [load_profile(name, precision=precision) for name in FLEETS[fleet]]


def fleet_times(
    profiles: list[DeviceProfile], width: int, expert_width: int, level: str = "centre"
) -> dict[str, Any]:
    """Instance fields of a fleet for experts of a given shape: compute_time and activation_time, s.

    Parameters
    ----------
    profiles : list of DeviceProfile
    width, expert_width : int
        Model width and hidden width of the gated feed-forward expert.
    level : {"centre", "low", "high"}
        Of the measured spread, as a time.
    """
    weights = expert_weights(width, expert_width)
    return {
        "compute_time": np.array([profile.compute_time(weights, level) for profile in profiles]),
        "activation_time": np.array([profile.activation_time(weights, level) for profile in profiles]),
    }
