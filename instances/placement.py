"""Which device hosts which expert."""

from __future__ import annotations

import numpy as np

from wdmoe_opt.errors import InputError, UnknownNameError
from wdmoe_opt.validation import IntArray

PLACEMENTS = ("contiguous", "one-per-device", "balanced")


def place(rule: str, experts: int, devices: int, load: IntArray) -> IntArray:
    """Host of every expert, int (experts,), by the rule of that name.

    Parameters
    ----------
    rule : {"contiguous", "one-per-device", "balanced"}
    experts, devices : int
    load : int array (experts,)
        For "balanced": measured choices of each expert, which must not come from the batch itself.

    Raises
    ------
    UnknownNameError
        If there is no such rule.
    InputError
        If the rule cannot be followed.
    """
    if rule == "contiguous":
        return contiguous(experts, devices)
    if rule == "one-per-device":
        return one_per_device(experts, devices)
    if rule == "balanced":
        return balanced(load, devices)
    raise UnknownNameError("placement", rule, PLACEMENTS)


def contiguous(experts: int, devices: int) -> IntArray:
    """Experts in runs of equal length (to within one) along the devices, int (experts,)."""
    return np.arange(experts, dtype=np.int64) * devices // experts


def one_per_device(experts: int, devices: int) -> IntArray:
    """Expert e on device e, the papers' setting, int (experts,).

    Raises
    ------
    InputError
        If there are not as many devices as experts.
    """
    if experts != devices:
        raise InputError("placement", f"'one-per-device' needs {experts} devices, the fleet has {devices}")
    return np.arange(experts, dtype=np.int64)


def balanced(load: IntArray, devices: int) -> IntArray:
    """Heaviest expert first, each on the device with the least load so far, int (experts,).

    A device takes at most experts / devices of them, rounded up, as memory would have it. The speed of
    the devices is not looked at. Ties go to the lower number.

    Parameters
    ----------
    load : int array (experts,)
        Measured choices of each expert, summed over blocks.
    devices : int

    Raises
    ------
    InputError
        If no load was measured.

    Notes
    -----
    Longest processing time first: R. L. Graham, "Bounds on multiprocessing timing anomalies", SIAM J.
    Appl. Math. 17 (1969), with the cap on the count added.
    """
    if load.sum() <= 0:
        raise InputError("placement", "'balanced' needs tokens of the family outside the batch")
    host = np.empty(load.size, dtype=np.int64)
    total, count = np.zeros(devices), np.zeros(devices, dtype=np.int64)
    most = -(-load.size // devices)
    for expert in np.argsort(-load, kind="stable"):
        device = int(np.where(count < most, total, np.inf).argmin())
        host[expert] = device
        total[device] += load[expert]
        count[device] += 1
    return host
