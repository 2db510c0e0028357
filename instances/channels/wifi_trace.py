"""Replay of a measured Wi-Fi trace: four downlinks at once, without a bandwidth knob."""

from __future__ import annotations

from typing import Any

import numpy as np

from wdmoe_opt.errors import InputError, UnknownNameError
from wdmoe_opt.validation import RealArray, freeze, real_scalar

from .state import ChannelSequence
from .traces import MISSING, WIFI_FILE, load_arrays

#: The links of the trace: 802.11n access points on 2.4 GHz / 20 MHz (ap1, ap3) and 5 GHz / 40 MHz (ap2, ap4).
WIFI_LINKS = ("ap1", "ap2", "ap3", "ap4")

WIFI_PROVENANCE = {
    "source": "github.com/adamiaonr/wifi-vehicles",
    "file": "ap-selection/data/feup-exp-201901/summary/final-exp-log.csv",
    "commit": "c30607399a5474a5eac36b489554919403474e4d",
    "licence": "CC BY 4.0",
    "changes": "rows with isIperfOn = 1 only; seconds, links and received bytes only",
}


def wifi_goodput() -> tuple[RealArray, RealArray]:
    """All measured seconds of the trace.

    Returns
    -------
    systime : float array (seconds,), s
        Unix time.
    goodput : float array (seconds, links), bit/s
        UDP payload received in that second, links as `WIFI_LINKS`; NaN where a link was not measured.
    """
    data = load_arrays(WIFI_FILE)
    received = data["bytes_received"]
    goodput = np.where(received == MISSING, np.nan, 8.0 * received)
    return freeze(data["systime"].astype(np.float64)), freeze(goodput)


def wifi_states(
    *,
    bits_down: float,
    bits_up: float | None = None,
    uplink_ratio: float = 1.0,
    links: tuple[str, ...] = WIFI_LINKS,
) -> ChannelSequence:
    """Replay the seconds in which all four links were measured, one device per link.

    A token takes ``bits_down / goodput + bits_up / (uplink_ratio * goodput)``; a second without a
    single received byte makes the device unreachable (``inf``).

    Parameters
    ----------
    bits_down : float, bit per token
    bits_up : float, bit per token, optional
        Default as ``bits_down``; 0 leaves the uplink out.
    uplink_ratio : float, default 1
        Uplink goodput over the downlink goodput of the same second. The trace holds downlinks only:
        this number, and that it is constant, is an assumption of the caller. 1 is what a half-duplex
        802.11 link with equal rates and air time in both directions would give.
    links : tuple of str, default all four
        Which links, in which order; each at most once.

    Returns
    -------
    ChannelSequence
        States with ``token_time_link``, for allocation "fixed". Times count from the first second;
        seconds that were not measured on all four links are left out, so they may jump.

    Raises
    ------
    InputError
        Naming field, first bad index, value and rule.
    UnknownNameError
        If there is no such link.
    """
    down = real_scalar("bits_down", bits_down, minimum=0)
    up = down if bits_up is None else real_scalar("bits_up", bits_up, minimum=0)
    if down + up == 0:
        raise InputError("bits_down", "bits_down and bits_up cannot both be 0", value=0.0)
    ratio = real_scalar("uplink_ratio", uplink_ratio, minimum=0, above=True)
    columns = _columns(links)
    systime, goodput = wifi_goodput()
    complete = ~np.isnan(goodput).any(axis=1)
    with np.errstate(divide="ignore"):
        token_time = (down + up / ratio) / goodput[complete][:, columns]
    parameters: dict[str, Any] = {"bits_down": down, "bits_up": up, "uplink_ratio": ratio, "links": [*links]}
    times = systime[complete]
    return ChannelSequence(
        times - times[0], {"token_time_link": token_time}, None, {**WIFI_PROVENANCE, **parameters}
    )


def _columns(links: tuple[str, ...]) -> list[int]:
    if not links:
        raise InputError("links", "must name at least one link")
    for index, link in enumerate(links):
        if link not in WIFI_LINKS:
            raise UnknownNameError("links", link, WIFI_LINKS)
        if link in links[:index]:
            raise InputError("links", "must not name a link twice", index=(index,), value=link)
    return [WIFI_LINKS.index(link) for link in links]
