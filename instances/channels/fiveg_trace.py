"""Replay of measured 5G round trips as link delay."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from wdmoe_opt.errors import InputError, UnknownNameError
from wdmoe_opt.validation import IntArray, RealArray, freeze, per_device, real_scalar, whole

from .state import ChannelSequence
from .traces import FIVEG_FILE, load_arrays

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

#: Traces without long outages, the default.
STEADY_TRACES = (
    "urban_n8_v0_run01",
    "arterial_n8_v50_run01",
    "arterial_n78_v50_run01",
    "arterial_n78_v80_run01",
    "south_n8_v0_01",
)
#: All traces; the last one holds outages (median round trip 2 s).
FIVEG_TRACES = (*STEADY_TRACES, "south_n8_v10_05")

#: Offset between devices that share a trace, in s.
REUSE_OFFSET = 10.0

MAX_DEVICES = 1000

FIVEG_PROVENANCE = {
    "source": "github.com/zxr805/CICV5G, data/; Zhang et al. 2025, doi:10.5281/zenodo.17475688",
    "commit": "ea215aa92c31d835b509abedeba8c01a38be18c6",
    "licence": "CC BY 4.0",
    "changes": "six runs; sending times, counted from the first message, and round trips only",
}


def fiveg_round_trips(trace: str) -> tuple[RealArray, RealArray]:
    """Every message of one trace.

    Parameters
    ----------
    trace : str
        One of `FIVEG_TRACES`.

    Returns
    -------
    sent : float array (messages,), s
        Since the first message.
    round_trip : float array (messages,), s
        Car - 5G - cloud - car, small messages.

    Raises
    ------
    UnknownNameError
        If there is no such trace.
    """
    if trace not in FIVEG_TRACES:
        raise UnknownNameError("traces", trace, FIVEG_TRACES)
    data = load_arrays(FIVEG_FILE)
    return freeze(data[f"{trace}.sent"] * 1e-3), freeze(data[f"{trace}.delay"] * 1e-3)


def fiveg_states(
    devices: int = 8,
    *,
    traces: tuple[str, ...] = STEADY_TRACES,
    offsets: ArrayLike | None = None,
    step: float = 0.05,
) -> ChannelSequence:
    """Replay round trips on a common clock: device d takes ``traces[d % len(traces)]``.

    At every tick a device has the round trip of the last message it had sent. The replay ends with the
    first trace that ends; traces last 54 to 115 s.

    Parameters
    ----------
    devices : int, default 8
    traces : tuple of str, default the five without outages
        See `FIVEG_TRACES`.
    offsets : float or float array (devices,), s, optional
        Where in its trace each device starts. Default: devices that share a trace start 10 s apart.
    step : float, s, default 0.05
        Time from one state to the next.

    Returns
    -------
    ChannelSequence
        States with ``link_delay`` alone; `combine` puts them on the links of another sequence.

    Raises
    ------
    InputError
        Naming field, first bad index, value and rule.
    UnknownNameError
        If there is no such trace.
    """
    devices = whole("devices", devices, 1, MAX_DEVICES, f"must be 1 to {MAX_DEVICES}")
    step = real_scalar("step", step, minimum=0, above=True)
    if not traces:
        raise InputError("traces", "must name at least one trace")
    names = [traces[device % len(traces)] for device in range(devices)]
    records = [fiveg_round_trips(name) for name in names]
    shared = np.arange(devices) // len(traces) * REUSE_OFFSET
    starts = per_device("offsets", shared if offsets is None else offsets, devices, minimum=0)
    left = np.round(np.array([sent[-1] for sent, _ in records]) - starts, 9)
    if left.min() < 0:
        device = int(left.argmin())
        rule = f"must lie within its trace of {records[device][0][-1]:g} s"
        raise InputError("offsets", rule, index=(device,), value=float(starts[device]))
    times = np.arange(int(np.round(left.min() / step, 6)) + 1) * step
    delay = [_held(sent, trip, start + times) for (sent, trip), start in zip(records, starts, strict=True)]
    parameters = {"traces": names, "offsets": starts.tolist(), "step": step}
    return ChannelSequence(
        times, {"link_delay": np.stack(delay, axis=1)}, None, {**FIVEG_PROVENANCE, **parameters}
    )


def _held(sent: RealArray, trip: RealArray, times: RealArray) -> RealArray:
    # In whole and rounded ms: a tick that falls on a sending time must not miss it by a rounding error.
    last: IntArray = np.searchsorted(np.round(sent * 1e3), np.round(times * 1e3, 6), side="right") - 1
    held: RealArray = trip[last]
    return held
