"""Conversions from the units people have to SI; nothing else in the package speaks dB or MHz."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


#: What is too large for a double becomes infinite, for the checks of who takes it.
_large = np.errstate(over="ignore")


def _real(value: ArrayLike) -> Array:
    return np.asarray(value, dtype=np.float64)


@_large
def dbm_to_watt(power_dbm: ArrayLike) -> Array:
    """Power in W from dBm, elementwise (30 dBm = 1 W)."""
    return 10.0 ** ((_real(power_dbm) - 30.0) / 10.0)


@_large
def db_to_ratio(level_db: ArrayLike) -> Array:
    """Power ratio from dB, elementwise (3 dB is close to 2)."""
    return 10.0 ** (_real(level_db) / 10.0)


@_large
def path_loss_db_to_gain(path_loss_db: ArrayLike) -> Array:
    """Channel power gain from a path loss in dB; a loss of +inf dB is an unreachable device (gain 0)."""
    return 10.0 ** (-_real(path_loss_db) / 10.0)


@_large
def mhz_to_hz(frequency_mhz: ArrayLike) -> Array:
    """Frequency or bandwidth in Hz from MHz, elementwise."""
    return _real(frequency_mhz) * 1e6


@_large
def compute_time_per_token(flop_per_token: ArrayLike, tflops: ArrayLike) -> Array:
    """Seconds per token from FLOP per token and an effective compute rate in TFLOP/s."""
    return _real(flop_per_token) / (_real(tflops) * 1e12)


def expert_flop_per_token(width: int, expert_width: int) -> float:
    """FLOP per token of a gated feed-forward expert: three matrix products, 2 FLOP per weight.

    The activation's own work, a few FLOP per hidden value, is left out (a fraction of 1e-4;
    paper A counts it as ``eta * expert_width``).
    """
    return 6.0 * width * expert_width


def bits_per_token(bits_per_value: float, width: int) -> float:
    """Payload of one token in bit: bits per value times model width (paper A, L_comm = eps m)."""
    return float(bits_per_value) * width


def free_space_path_loss_db(distance_m: ArrayLike, carrier_ghz: float) -> Array:
    """Free-space path loss in dB: 32.4 + 20 log10(f / GHz) + 20 log10(d / m) (papers A and B, remembered)."""
    distance = _real(distance_m)
    loss: Array = 32.4 + 20.0 * np.log10(carrier_ghz) + 20.0 * np.log10(distance)
    return loss
