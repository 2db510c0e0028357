"""Fleets: named rows of device profiles, and what an expert costs on them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wdmoe_opt.errors import InputError, UnknownNameError
from wdmoe_opt.instances.devices import DeviceProfile, expert_weights, load_profile

_ORIN_MIX = (
    "agx-orin-maxn", "orin-nano-maxn-super", "orin-nx", "agx-orin-30w",
    "agx-orin-maxn", "orin-nx", "orin-nano-maxn-super", "agx-orin-30w",
)  # fmt: skip
#: Boards of each fleet, nearest to the base station first. All but "jetson-mix-8" leave out the boards
#: that are estimated as a whole; "agx-mix-8" has boards of 64 GB and more, for large experts.
FLEETS: dict[str, tuple[str, ...]] = {
    "orin-mix-8": _ORIN_MIX,
    "jetson-mix-8": (
        "agx-thor", "orin-nano-15w", "agx-orin-maxn", "xavier-nx-estimated",
        "agx-orin-50w", "orin-nx", "orin-nano-maxn-super", "agx-xavier-estimated",
    ),
    "orin-nano-8": ("orin-nano-maxn-super",) * 8,
    "agx-mix-8": (
        "agx-orin-maxn", "agx-orin-30w", "agx-thor", "agx-orin-50w",
        "agx-orin-15w", "agx-orin-maxn", "agx-orin-50w", "agx-orin-30w",
    ),
    "orin-mix-4": _ORIN_MIX[:4],
    "orin-mix-64": _ORIN_MIX * 8,
}  # fmt: skip


def fleet_profiles(fleet: str | Sequence[str | Path], precision: str = "fp16") -> list[DeviceProfile]:
    """Device profiles of a named fleet, or of boards.

    Parameters
    ----------
    fleet : str or sequence of str or Path
        A name of `FLEETS`; or one entry per board: the name of a shipped profile, or the path of a
        profile file (``.json``), which must be of the same precision.
    precision : str

    Raises
    ------
    UnknownNameError
        If there is no such fleet or board.
    InputError
        If a profile file is of another precision.
    """
    if not isinstance(fleet, str):
        return [_board(board, precision) for board in fleet]
    if fleet not in FLEETS:
        raise UnknownNameError("fleet", fleet, FLEETS)
    return [load_profile(name, precision=precision) for name in FLEETS[fleet]]


def _board(board: str | Path, precision: str) -> DeviceProfile:
    if isinstance(board, str) and not board.endswith(".json"):
        return load_profile(board, precision=precision)
    profile = DeviceProfile.from_file(board)
    if profile.precision != precision:
        rule = f"must be of precision {precision!r}, is {profile.precision!r}"
        raise InputError("boards", rule, value=Path(board).name)
    return profile


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
