"""Channel states: cells, path loss, fading over time, and replay of measured links."""

from __future__ import annotations

from .cell import DEFAULT_DISTANCES_M, cell_states
from .fading import Autoregressive, Fading, Rayleigh, Rician, Unfaded, doppler_hz
from .fiveg_trace import FIVEG_TRACES, STEADY_TRACES, fiveg_round_trips, fiveg_states
from .named import CELL_PARAMETERS, CHANNEL_SEED, CHANNELS, channel_names, channel_states
from .state import ChannelSequence, ChannelState, combine
from .tr38901 import breakpoint_distance_m, line_of_sight_probability, path_loss_db, tr38901_states
from .wifi_trace import WIFI_LINKS, wifi_goodput, wifi_states

__all__ = [
    "CELL_PARAMETERS",
    "CHANNELS",
    "CHANNEL_SEED",
    "DEFAULT_DISTANCES_M",
    "FIVEG_TRACES",
    "STEADY_TRACES",
    "WIFI_LINKS",
    "Autoregressive",
    "ChannelSequence",
    "ChannelState",
    "Fading",
    "Rayleigh",
    "Rician",
    "Unfaded",
    "breakpoint_distance_m",
    "cell_states",
    "channel_names",
    "channel_states",
    "combine",
    "doppler_hz",
    "fiveg_round_trips",
    "fiveg_states",
    "line_of_sight_probability",
    "path_loss_db",
    "tr38901_states",
    "wifi_goodput",
    "wifi_states",
]
