"""Channel states: cells, path loss, fading over time, and replay of measured links."""

from __future__ import annotations

from .cell import cell_states
from .fading import Autoregressive, Fading, Rayleigh, Rician, Unfaded, doppler_hz
from .state import ChannelSequence, ChannelState, combine

__all__ = [
    "Autoregressive",
    "ChannelSequence",
    "ChannelState",
    "Fading",
    "Rayleigh",
    "Rician",
    "Unfaded",
    "cell_states",
    "combine",
    "doppler_hz",
]
