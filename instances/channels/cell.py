"""The cell of paper A, every number configurable."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from wdmoe_opt import units
from wdmoe_opt.errors import InputError
from wdmoe_opt.validation import RealArray, real_array, real_scalar, whole

from .draws import checked_seed
from .fading import Fading, Rayleigh
from .state import ChannelSequence

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

#: Eight distances in m. The papers do not state theirs: a choice of this package, not a quotation.
DEFAULT_DISTANCES_M = (60.0, 90.0, 120.0, 150.0, 190.0, 230.0, 265.0, 300.0)

MAX_STATES = 10_000_000

_DOWN, _UP = 0, 1


def cell_states(
    states: int = 1,
    *,
    seed: int,
    distances_m: ArrayLike = DEFAULT_DISTANCES_M,
    carrier_ghz: float = 3.5,
    total_bandwidth_mhz: float = 100.0,
    power_down: ArrayLike = 10.0,
    power_up: ArrayLike = 0.2,
    noise_dbm_per_hz: float = -174.0,
    fading: Fading | None = None,
    reciprocal: bool = True,
    block_time: float = 1e-2,
) -> ChannelSequence:
    """Draw states of the cell of paper A: free space, one base station, block fading.

    "Remembered" marks defaults recalled from the paper, with the confidence of the recollection;
    none could be read off its text.

    Parameters
    ----------
    states : int, default 1
        Length of the sequence; a longer one starts with the states of a shorter one.
    seed : int
        The same seed gives the same states.
    distances_m : float array (devices,), m
        At least 1 m. Default `DEFAULT_DISTANCES_M`, eight devices from 60 to 300 m (the number of
        devices remembered, 75 %; "some tens to a few hundred metres" remembered, 25 %, values open).
    carrier_ghz : float, GHz, default 3.5
        Remembered, 70 %.
    total_bandwidth_mhz : float, MHz, default 100
        Remembered, 75 %.
    power_down, power_up : float or float array (devices,), W, default 10 and 0.2
        Base station and devices; remembered, 65 %.
    noise_dbm_per_hz : float, dBm/Hz, default -174
        Remembered, 65 %.
    fading : Fading, default Rayleigh()
        Independent Rayleigh fading whose mean power is the path gain; remembered, 60 %.
    reciprocal : bool, default True
        Both directions fade alike (time-division duplex); False draws the uplink independently.
    block_time : float, s, default 0.01
        Time from one state to the next: a choice of this package.

    Returns
    -------
    ChannelSequence
        States with the six radio fields.

    Raises
    ------
    InputError
        Naming field, first bad index, value and rule.

    Notes
    -----
    Path loss 32.4 + 20 log10(f / GHz) + 20 log10(d / m) dB, which is free space (remembered, 60 %).
    """
    distances = checked_distances(distances_m, minimum=1.0)
    carrier = real_scalar("carrier_ghz", carrier_ghz, minimum=0, above=True)
    return faded_states(
        states,
        mean_gain=units.path_loss_db_to_gain(units.free_space_path_loss_db(distances, carrier)),
        seed=seed,
        fading=Rayleigh() if fading is None else fading,
        reciprocal=reciprocal,
        block_time=block_time,
        radio=radio_fields(power_down, power_up, noise_dbm_per_hz, total_bandwidth_mhz),
        provenance={
            "source": "cell of paper A (WDMoE); values remembered, distances chosen by this package",
            "path_loss": "free space",
            "carrier_ghz": carrier,
            "distances_m": distances.tolist(),
        },
    )


def checked_distances(distances_m: ArrayLike, *, minimum: float) -> RealArray:
    """Distances (devices,) in m, none below ``minimum``."""
    distances = real_array("distances_m", distances_m, minimum=minimum)
    if distances.ndim != 1 or distances.size == 0:
        raise InputError("distances_m", f"must have shape (devices,), got {distances.shape}")
    return distances


def radio_fields(
    power_down: ArrayLike, power_up: ArrayLike, noise_dbm_per_hz: float, total_bandwidth_mhz: float
) -> dict[str, Any]:
    """Radio fields of a state that do not fade, in SI units."""
    bandwidth = real_scalar("total_bandwidth_mhz", total_bandwidth_mhz, minimum=0, above=True)
    noise = real_scalar("noise_dbm_per_hz", noise_dbm_per_hz)
    return {
        "power_down": real_array("power_down", power_down, minimum=0, above=True),
        "power_up": real_array("power_up", power_up, minimum=0, above=True),
        "noise_density": float(units.dbm_to_watt(noise)),
        "total_bandwidth": float(units.mhz_to_hz(bandwidth)),
    }


def faded_states(
    states: int,
    *,
    mean_gain: RealArray,
    seed: int,
    fading: Fading,
    reciprocal: bool,
    block_time: float,
    radio: dict[str, Any],
    provenance: dict[str, Any],
) -> ChannelSequence:
    """Fade the mean gains (devices,) over ``states`` blocks of ``block_time`` s."""
    states = whole("states", states, 1, MAX_STATES, f"must be 1 to {MAX_STATES}")
    seed = checked_seed(seed)
    step = real_scalar("block_time", block_time, minimum=0, above=True)
    if not isinstance(fading, Fading):
        raise InputError("fading", "must be a fading model such as Rayleigh()", value=fading)

    def gain(stream: int) -> RealArray:
        return mean_gain * fading.power(states, mean_gain.size, block_time=step, seed=seed, stream=stream)

    down = gain(_DOWN)
    parameters = {"seed": seed, "fading": fading.describe(), "reciprocal": reciprocal, "block_time": step}
    return ChannelSequence(
        np.arange(states) * step,
        {"gain_down": down, "gain_up": down if reciprocal else gain(_UP)},
        radio,
        {**provenance, **parameters},
    )
