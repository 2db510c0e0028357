"""Path loss of 3GPP TR 38.901 (release 16): urban micro street canyon ("umi") and urban macro ("uma").

Outdoor devices only: no penetration loss into buildings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wdmoe_opt import units
from wdmoe_opt.errors import InputError, UnknownNameError
from wdmoe_opt.validation import RealArray, per_device, real_array, real_scalar, refuse_where, require_shape

from .cell import checked_distances, faded_states, radio_fields
from .draws import checked_seed, complex_normals, uniforms
from .fading import Fading, Rician

if TYPE_CHECKING:
    from .state import ChannelSequence

BoolArray = NDArray[np.bool_]

MIN_DISTANCE_M, MAX_DISTANCE_M = 10.0, 5000.0
MIN_CARRIER_GHZ, MAX_CARRIER_GHZ = 0.5, 100.0
MIN_H_UT, MAX_H_UT = 1.5, 22.5

#: Mean Rician K factor with line of sight, both scenarios (table 7.5-6, part 1).
LINE_OF_SIGHT_K_DB = 9.0

_SPEED_OF_LIGHT = 3.0e8  # as note 1 of table 7.4.1-1 rounds it
_ENVIRONMENT_HEIGHT = 1.0
_LINE_OF_SIGHT, _SHADOWING = 2, 3


@dataclass(frozen=True)
class _Scenario:
    """Constants of one scenario: tables 7.4.1-1 (path loss in dB, f in GHz, d in m) and 7.4.2-1."""

    h_bs: float
    los_intercept: float
    los_slope: float
    los_breakpoint: float
    nlos_intercept: float
    nlos_slope: float
    nlos_carrier_slope: float
    nlos_height_slope: float
    los_shadowing: float
    nlos_shadowing: float
    los_decay: float


_SCENARIOS = {
    "umi": _Scenario(10.0, 32.4, 21.0, 9.5, 22.4, 35.3, 21.3, 0.3, 4.0, 7.82, 36.0),
    "uma": _Scenario(25.0, 28.0, 22.0, 9.0, 13.54, 39.08, 20.0, 0.6, 4.0, 6.0, 63.0),
}

SCENARIOS = tuple(_SCENARIOS)


def tr38901_states(
    states: int = 1,
    *,
    seed: int,
    scenario: str,
    distances_m: ArrayLike,
    carrier_ghz: float = 3.5,
    h_ut: ArrayLike = 1.5,
    h_bs: float | None = None,
    line_of_sight: ArrayLike | None = None,
    shadowing: bool = True,
    fading: Fading | None = None,
    reciprocal: bool = True,
    block_time: float = 1e-2,
    total_bandwidth_mhz: float = 100.0,
    power_down: ArrayLike = 10.0,
    power_up: ArrayLike = 0.2,
    noise_dbm_per_hz: float = -174.0,
) -> ChannelSequence:
    """Draw states of a TR 38.901 cell: path loss, line of sight, shadowing and fading.

    Devices stand still: line of sight and shadowing are drawn once per device, independently between
    devices, and hold over the sequence; only the fading changes. Powers, bandwidth and noise default
    to those of `cell_states`.

    Parameters
    ----------
    states : int, default 1
        Length of the sequence; a longer one starts with the states of a shorter one.
    seed : int
        The same seed gives the same states.
    scenario : {"umi", "uma"}
    distances_m : float array (devices,), m
        Horizontal distances, 10 to 5000 m.
    carrier_ghz : float, GHz, default 3.5
        0.5 to 100 GHz.
    h_ut : float or float array (devices,), m, default 1.5
        Height of the devices, 1.5 to 22.5 m.
    h_bs : float, m, optional
        Height of the base station, above 1 m; default that of the table, 10 m (umi) or 25 m (uma).
    line_of_sight : bool or bool array (devices,), optional
        Default: drawn with the probability of table 7.4.2-1.
    shadowing : bool, default True
        Log-normal shadowing with the standard deviations of table 7.4.1-1: 4 dB with line of sight;
        7.82 dB (umi) or 6 dB (uma) without.
    fading : Fading, optional
        Default: Rician with K = 9 dB with line of sight (the mean of table 7.5-6), Rayleigh without,
        independent from state to state.
    reciprocal : bool, default True
        Both directions fade alike; False draws the uplink independently (shadowing stays common).
    block_time : float, s, default 0.01
        Time from one state to the next.
    total_bandwidth_mhz : float, MHz
    power_down, power_up : float or float array (devices,), W
    noise_dbm_per_hz : float, dBm/Hz

    Returns
    -------
    ChannelSequence
        States with the six radio fields; its provenance records line of sight and shadowing drawn.

    Raises
    ------
    InputError
        Naming field, first bad index, value and rule.
    UnknownNameError
        If there is no such scenario.
    """
    distances = _checked_distances(distances_m)
    seed = checked_seed(seed)
    if line_of_sight is None:
        chance = line_of_sight_probability(distances, scenario=scenario, h_ut=h_ut)
        sight = uniforms(seed, _LINE_OF_SIGHT, distances.shape) < chance
    else:
        sight = _checked_sight(line_of_sight, distances.size)
    loss = path_loss_db(
        distances, scenario=scenario, line_of_sight=sight, carrier_ghz=carrier_ghz, h_ut=h_ut, h_bs=h_bs
    )
    shadow = _shadowing_db(seed, scenario, sight) if shadowing else np.zeros(distances.size)
    if fading is None:
        fading = Rician(np.where(sight, units.db_to_ratio(LINE_OF_SIGHT_K_DB), 0.0))
    return faded_states(
        states,
        mean_gain=units.path_loss_db_to_gain(loss + shadow),
        seed=seed,
        fading=fading,
        reciprocal=reciprocal,
        block_time=block_time,
        radio=radio_fields(power_down, power_up, noise_dbm_per_hz, total_bandwidth_mhz),
        provenance={
            "source": "3GPP TR 38.901, tables 7.4.1-1 and 7.4.2-1",
            "scenario": scenario,
            "carrier_ghz": float(carrier_ghz),
            "distances_m": distances.tolist(),
            "h_ut": np.asarray(h_ut).tolist(),
            "h_bs": _SCENARIOS[scenario].h_bs if h_bs is None else float(h_bs),
            "line_of_sight": sight.tolist(),
            "shadowing_db": shadow.tolist(),
        },
    )


def path_loss_db(
    distances_m: ArrayLike,
    *,
    scenario: str,
    line_of_sight: ArrayLike,
    carrier_ghz: float,
    h_ut: ArrayLike = 1.5,
    h_bs: float | None = None,
) -> RealArray:
    """Mean path loss in dB without shadowing, (devices,); parameters as in `tr38901_states`.

    Notes
    -----
    Source: 3GPP TR 38.901, table 7.4.1-1. The effective environment height h_E in the breakpoint
    distance is 1 m throughout. That is the table's value for umi, and for uma devices below 13 m;
    for higher uma devices the table draws h_E at random, here simplified to 1 m.
    """
    constants = _scenario(scenario)
    distances = _checked_distances(distances_m)
    sight = _checked_sight(line_of_sight, distances.size)
    carrier = _checked_carrier(carrier_ghz)
    low = _checked_height(h_ut, distances.size)
    high = constants.h_bs if h_bs is None else real_scalar("h_bs", h_bs, minimum=1, above=True)
    slant = np.hypot(distances, high - low)
    clear = _line_of_sight_loss(constants, distances, slant, carrier, low, high)
    blocked = (
        constants.nlos_intercept
        + constants.nlos_slope * np.log10(slant)
        + constants.nlos_carrier_slope * np.log10(carrier)
        - constants.nlos_height_slope * (low - 1.5)
    )
    loss: RealArray = np.where(sight, clear, np.maximum(clear, blocked))
    return loss


def breakpoint_distance_m(
    *, scenario: str, carrier_ghz: float, h_ut: float = 1.5, h_bs: float | None = None
) -> float:
    """Horizontal distance in m beyond which the line-of-sight loss grows with 40 dB per decade."""
    high = _scenario(scenario).h_bs if h_bs is None else real_scalar("h_bs", h_bs, minimum=1, above=True)
    low = _checked_height(h_ut, 1)
    return float(_breakpoint(_checked_carrier(carrier_ghz), low, high)[0])


def line_of_sight_probability(distances_m: ArrayLike, *, scenario: str, h_ut: ArrayLike = 1.5) -> RealArray:
    """Probability of line of sight, (devices,), of outdoor devices.

    Notes
    -----
    Source: 3GPP TR 38.901, table 7.4.2-1.
    """
    constants = _scenario(scenario)
    distances = _checked_distances(distances_m)
    height = _checked_height(h_ut, distances.size)
    near = np.minimum(18.0 / distances, 1.0)
    chance: RealArray = near + np.exp(-distances / constants.los_decay) * (1 - near)
    if scenario == "uma":
        lift = np.maximum((height - 13.0) / 10.0, 0.0) ** 1.5
        bonus = lift * 1.25 * (distances / 100.0) ** 3 * np.exp(-distances / 150.0)
        chance = np.where(distances <= 18.0, 1.0, chance * (1 + bonus))
    return chance


def _line_of_sight_loss(
    constants: _Scenario, distances: RealArray, slant: RealArray, carrier: float, low: RealArray, high: float
) -> RealArray:
    corner = _breakpoint(carrier, low, high)
    common = constants.los_intercept + 20.0 * np.log10(carrier)
    before = common + constants.los_slope * np.log10(slant)
    bend = constants.los_breakpoint * np.log10(corner**2 + (high - low) ** 2)
    after = common + 40.0 * np.log10(slant) - bend
    loss: RealArray = np.where(distances <= corner, before, after)
    return loss


def _breakpoint(carrier: float, low: RealArray, high: float) -> RealArray:
    heights = (high - _ENVIRONMENT_HEIGHT) * (low - _ENVIRONMENT_HEIGHT)
    return 4.0 * heights * (carrier * 1e9 / _SPEED_OF_LIGHT)


def _shadowing_db(seed: int, scenario: str, sight: BoolArray) -> RealArray:
    constants = _scenario(scenario)
    normal = np.sqrt(2.0) * complex_normals(seed, _SHADOWING, sight.shape).real
    shadow: RealArray = np.where(sight, constants.los_shadowing, constants.nlos_shadowing) * normal
    return shadow


def _scenario(name: object) -> _Scenario:
    if not isinstance(name, str):
        raise InputError("scenario", f"must be one of {', '.join(SCENARIOS)}", value=name)
    if name not in _SCENARIOS:
        raise UnknownNameError("scenario", name, SCENARIOS)
    return _SCENARIOS[name]


def _checked_distances(distances_m: ArrayLike) -> RealArray:
    distances = checked_distances(distances_m, minimum=MIN_DISTANCE_M)
    rule = f"must be at most {MAX_DISTANCE_M:g} m, the range of TR 38.901"
    refuse_where("distances_m", distances > MAX_DISTANCE_M, distances, rule)
    return distances


def _checked_carrier(carrier_ghz: float) -> float:
    carrier = real_scalar("carrier_ghz", carrier_ghz)
    if not MIN_CARRIER_GHZ <= carrier <= MAX_CARRIER_GHZ:
        rule = f"must be {MIN_CARRIER_GHZ:g} to {MAX_CARRIER_GHZ:g} GHz, the range of TR 38.901"
        raise InputError("carrier_ghz", rule, value=carrier)
    return carrier


def _checked_height(h_ut: ArrayLike, devices: int) -> RealArray:
    height = real_array("h_ut", h_ut)
    bad = (height < MIN_H_UT) | (height > MAX_H_UT)
    refuse_where("h_ut", bad, height, f"must be {MIN_H_UT:g} to {MAX_H_UT:g} m, the range of TR 38.901")
    return per_device("h_ut", height, devices)


def _checked_sight(line_of_sight: ArrayLike, devices: int) -> BoolArray:
    sight: NDArray[Any] = np.asarray(line_of_sight)
    if sight.dtype != np.bool_:
        raise InputError("line_of_sight", f"must be bool, got dtype {sight.dtype}")
    if sight.ndim == 0:
        return np.full(devices, bool(sight))
    require_shape("line_of_sight", sight, (devices,), "(devices,) or a scalar")
    return sight
