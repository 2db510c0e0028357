"""What each device took per token so far, to predict what it will take next.

Paper A's testbed carries measured time over tokens served from earlier blocks and batches (remembered,
55 %); whether over a window or smoothed is open, so both are here.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from wdmoe_opt.errors import InputError, UnknownNameError
from wdmoe_opt.validation import RealArray, per_device, real_scalar, require_shape, whole

RULES = ("smoothed", "window")


class DeviceHistory:
    """Estimated time per token of every device, from observed times.

    Parameters
    ----------
    devices : int
    rule : {"smoothed", "window"}
        Exponential smoothing of time over tokens, or time over tokens of the last observations together.
    weight : float
        Of the newest observation when smoothing, above 0 and at most 1; 0.3 is this package's choice.
    window : int
        Observations of a device that count; 16 is this package's choice.
    prior : float or float array (devices,), s per token, optional
        Until a device was observed; default the mean of the others, 1 as long as there are none, so
        that at first the device with most tokens is predicted to finish last.

    Raises
    ------
    InputError
        Naming argument, value and rule.
    """

    def __init__(
        self,
        devices: int,
        *,
        rule: Literal["smoothed", "window"] = "smoothed",
        weight: float = 0.3,
        window: int = 16,
        prior: ArrayLike | None = None,
    ) -> None:
        self.devices = whole("devices", devices, 1, 2**31 - 1, "must be at least 1")
        if rule not in RULES:
            raise UnknownNameError("rule", rule, RULES)
        self.rule = rule
        self.weight = real_scalar("weight", weight, minimum=0, above=True)
        if self.weight > 1:
            raise InputError("weight", "must be at most 1", value=weight)
        self.window = whole("window", window, 1, 2**31 - 1, "must be at least 1")
        self.prior = None if prior is None else per_device("prior", prior, self.devices, minimum=0)
        self._smoothed = np.full(self.devices, np.nan)
        self._recent: list[deque[tuple[float, float]]] = [
            deque(maxlen=self.window) for _ in range(self.devices)
        ]

    def observe(self, device_time: ArrayLike, tokens: ArrayLike) -> None:
        """Take in what the devices of one block took.

        Parameters
        ----------
        device_time : float array (devices,), s
            From sending to the last answer. A device that never answered (inf) teaches nothing.
        tokens : float array (devices,)
            Transfers to each device; devices without any teach nothing.
        """
        times, counts = (np.asarray(value, dtype=np.float64) for value in (device_time, tokens))
        for name, array in (("device_time", times), ("tokens", counts)):
            require_shape(name, array, (self.devices,), "(devices,)")
        for k in np.flatnonzero((counts > 0) & np.isfinite(times)):
            now, old = times[k] / counts[k], self._smoothed[k]
            self._smoothed[k] = now if np.isnan(old) else old + self.weight * (now - old)
            self._recent[k].append((times[k], counts[k]))

    @property
    def estimates(self) -> RealArray:
        """Estimated time per token, s (devices,)."""
        found = (
            self._smoothed.copy()
            if self.rule == "smoothed"
            else np.array([_over(recent) for recent in self._recent])
        )
        unseen = np.isnan(found)
        if self.prior is not None:
            found[unseen] = self.prior[unseen]
        elif unseen.any():
            found[unseen] = 1.0 if unseen.all() else found[~unseen].mean()
        return found

    def __repr__(self) -> str:
        shown: Any = np.array2string(self.estimates * 1e3, precision=3)
        return f"<DeviceHistory {self.rule}: {shown} ms per token>"


def _over(recent: deque[tuple[float, float]]) -> float:
    """Time over tokens of some observations together; NaN without any."""
    if not recent:
        return float("nan")
    times, counts = np.array(recent).sum(axis=0)
    return float(times / counts)
