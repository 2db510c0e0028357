"""Channels by name: sequences of states that scenarios refer to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from wdmoe_opt.errors import InputError, UnknownNameError
from wdmoe_opt.validation import RealArray, whole

from .cell import DEFAULT_DISTANCES_M, cell_states
from .fading import Autoregressive, Rician, doppler_hz
from .fiveg_trace import STEADY_TRACES, fiveg_states
from .state import ChannelSequence, combine
from .tr38901 import tr38901_states
from .wifi_trace import WIFI_LINKS, wifi_states

#: Of the fading in the standard instances; chosen once, without looking at results.
CHANNEL_SEED = 1
#: Rician K factor (power ratio, 6 dB) and speed (m/s, a pedestrian) of the variants: choices of this package.
RICIAN_K, WALKING_SPEED = 4.0, 1.4
_CARRIER_GHZ = 3.5
#: Numbers of a cell that a scenario may set.
CELL_PARAMETERS = (
    "distances_m", "carrier_ghz", "total_bandwidth_mhz", "power_down", "power_up", "noise_dbm_per_hz",
)  # fmt: skip

Builder = Callable[..., ChannelSequence]


@dataclass(frozen=True)
class NamedChannel:
    """A channel that scenarios refer to.

    Attributes
    ----------
    name, summary : str
    kind : {"drawn", "measured"}
        Whether the states are drawn from a model or replayed.
    """

    name: str
    summary: str
    kind: str
    build: Builder


def default_distances(devices: int) -> RealArray:
    """Distances in m of so many devices, 60 to 300: `DEFAULT_DISTANCES_M` for eight, else evenly spaced."""
    if devices == len(DEFAULT_DISTANCES_M):
        return np.array(DEFAULT_DISTANCES_M)
    return np.linspace(DEFAULT_DISTANCES_M[0], DEFAULT_DISTANCES_M[-1], devices)


def channel_names() -> list[str]:
    """Names of the channels."""
    return list(CHANNELS)


def channel_states(
    name: str,
    devices: int,
    states: int = 1,
    seed: int = CHANNEL_SEED,
    *,
    bits: tuple[float, float] | None = None,
    **parameters: Any,
) -> ChannelSequence:
    """Sequence of states of a named channel.

    Parameters
    ----------
    name : str
        See `channel_names`.
    devices : int
        1 to 10000; at most four on the measured Wi-Fi.
    states : int
        Length; a longer sequence starts with the states of a shorter one. At most the length of the
        trace on measured channels.
    seed : int
        Of the drawn channels.
    bits : tuple of float, bit per token, optional
        Payload down and up; needed by measured links, whose state is a time per token.
    **parameters
        Numbers of a cell to change: `CELL_PARAMETERS`, as in `cell_states`.

    Raises
    ------
    UnknownNameError
        If there is no such channel or parameter.
    InputError
        Naming field, value and rule.
    """
    if name not in CHANNELS:
        raise UnknownNameError("channel", name, CHANNELS)
    for key in parameters:
        if key not in CELL_PARAMETERS:
            raise UnknownNameError("channel", key, CELL_PARAMETERS)
    devices = whole("devices", devices, 1, 10_000, "must be 1 to 10000")
    return CHANNELS[name].build(devices, states, seed=seed, bits=bits, **parameters)


def _cell(**preset: Any) -> Builder:
    def build(
        devices: int, states: int, *, seed: int, bits: Any = None, **parameters: Any
    ) -> ChannelSequence:
        given = {"distances_m": default_distances(devices), **preset, **parameters}
        _require_devices(given["distances_m"], devices)
        return cell_states(states, seed=seed, **given)

    return build


def _urban(scenario: str, **preset: Any) -> Builder:
    def build(
        devices: int, states: int, *, seed: int, bits: Any = None, **parameters: Any
    ) -> ChannelSequence:
        given = {"distances_m": default_distances(devices), **preset, **parameters}
        _require_devices(given["distances_m"], devices)
        return tr38901_states(states, seed=seed, scenario=scenario, **given)

    return build


def _delayed(link: Builder) -> Builder:
    def build(
        devices: int, states: int, *, seed: int, bits: Any = None, **parameters: Any
    ) -> ChannelSequence:
        sharing = -(-devices // len(STEADY_TRACES))
        # As `fiveg_states` has it, 10 s apart, but closer where many devices share the 54 s of a trace.
        offsets = np.arange(devices) // len(STEADY_TRACES) * min(10.0, 30.0 / sharing)
        delays = fiveg_states(devices, offsets=offsets)
        _require_states(states, len(delays), "cicv5g")
        return combine(link(devices, states, seed=seed, **parameters), delays[:states])

    return build


def _wifi(devices: int, states: int, *, seed: int, bits: Any = None, **parameters: Any) -> ChannelSequence:
    if parameters:
        raise InputError(min(parameters), "cannot be set: the channel 'feup-wifi' is measured")
    if devices > len(WIFI_LINKS):
        rule = (
            f"must be at most {len(WIFI_LINKS)}, the links of 'feup-wifi' (fleet 'orin-mix-4', for example)"
        )
        raise InputError("devices", rule, value=devices)
    if bits is None:
        raise InputError("bits", "is missing: a measured link is a time per token")
    sequence = wifi_states(bits_down=bits[0], bits_up=bits[1], links=WIFI_LINKS[:devices])
    _require_states(states, len(sequence), "feup-wifi")
    return sequence[:states]


def _require_devices(distances: Any, devices: int) -> None:
    if np.shape(distances) != (devices,):
        rule = f"must have {devices} entries, one per device, got shape {np.shape(distances)}"
        raise InputError("distances_m", rule)


def _require_states(states: int, known: int, name: str) -> None:
    whole("states", states, 1, known, f"must be 1 to {known}, the length of the measured {name!r}")


_MOVING = Autoregressive(doppler_hz(WALKING_SPEED, _CARRIER_GHZ))
_RICIAN = Rician(RICIAN_K)
CHANNELS = {
    channel.name: channel
    for channel in (
        NamedChannel("cell-100mhz", "cell of paper A, 100 MHz, Rayleigh fading", "drawn", _cell()),
        NamedChannel(
            "cell-20mhz", "the same with 20 MHz", "drawn", _cell(total_bandwidth_mhz=20.0)
        ),
        NamedChannel(
            "cell-400mhz", "the same with 400 MHz", "drawn", _cell(total_bandwidth_mhz=400.0)
        ),
        NamedChannel(
            "cell-100mhz-rician", "the same with Rician fading, K = 6 dB", "drawn", _cell(fading=_RICIAN)
        ),
        NamedChannel(
            "cell-100mhz-moving",
            "the same at 1.4 m/s: first-order autoregressive fading, states 10 ms apart",
            "drawn",
            _cell(fading=_MOVING),
        ),
        NamedChannel(
            "umi-100mhz", "3GPP TR 38.901 street canyon with shadowing, 100 MHz", "drawn", _urban("umi")
        ),
        NamedChannel(
            "uma-100mhz", "3GPP TR 38.901 urban macro with shadowing, 100 MHz", "drawn", _urban("uma")
        ),
        NamedChannel(
            "umi-100mhz-moving",
            "the street canyon at 1.4 m/s, scattered paths only",
            "drawn",
            _urban("umi", fading=_MOVING),
        ),
        NamedChannel(
            "cell-100mhz-cicv5g",
            "cell-100mhz with measured 5G round trips as link delay, states 50 ms apart",
            "measured",
            _delayed(_cell(block_time=0.05)),
        ),
        NamedChannel(
            "feup-wifi",
            "measured Wi-Fi downlinks, one second a state, at most four devices, no bandwidth knob",
            "measured",
            _wifi,
        ),
    )
}  # fmt: skip
