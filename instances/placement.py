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
    load : int array (blocks, experts)
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
    """Heaviest expert first, each on the device whose busy blocks it burdens least, int (experts,).

    A device takes at most experts / devices of them, rounded up, as memory would have it. The speed of
    the devices is not looked at. Ties go to the lower number.

    Parameters
    ----------
    load : int array (blocks, experts)
        Measured choices of each expert.
    devices : int

    Raises
    ------
    InputError
        If no load was measured.

    Notes
    -----
    Longest processing time first (R. L. Graham, "Bounds on multiprocessing timing anomalies", SIAM J.
    Appl. Math. 17, 1969) with loads that are vectors over blocks: every block waits for its own slowest
    device, and expert e of one block is another network than expert e of the next. So the device is the
    one with the smallest sum over blocks of its load times the expert's, which adds least to the sum of
    squared loads; balancing the loads' totals over blocks instead leaves the single blocks as uneven as
    contiguous placement does.
    """
    if load.sum() <= 0:
        raise InputError("placement", "'balanced' needs tokens of the family outside the batch")
    blocks, experts = load.shape
    host = np.empty(experts, dtype=np.int64)
    total, count = np.zeros((blocks, devices)), np.zeros(devices, dtype=np.int64)
    most = -(-experts // devices)
    for expert in np.argsort(-load.sum(axis=0), kind="stable"):
        burden = load[:, expert] @ total
        device = int(np.where(count < most, burden, np.inf).argmin())
        host[expert] = device
        total[:, device] += load[:, expert]
        count[device] += 1
    return host
