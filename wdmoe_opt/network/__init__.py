"""A simulated wireless network that a model's blocks are sent through, one after another."""

from __future__ import annotations

from .channel_playback import ChannelPlayback
from .device_history import DeviceHistory
from .policies import BlockCall, Choice, HistoryPolicy, SessionPolicy, SolverPolicy
from .report import BlockRecord, LoopReport
from .wireless_network import Delivery, WirelessNetwork

__all__ = [
    "BlockCall",
    "BlockRecord",
    "ChannelPlayback",
    "Choice",
    "Delivery",
    "DeviceHistory",
    "HistoryPolicy",
    "LoopReport",
    "SessionPolicy",
    "SolverPolicy",
    "WirelessNetwork",
]
