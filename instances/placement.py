"""Which device hosts which expert."""

from __future__ import annotations

import numpy as np

from wdmoe_opt.errors import InputError
from wdmoe_opt.validation import IntArray


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
