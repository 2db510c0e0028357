"""Wall-clock limits of solvers that search."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter

from wdmoe_opt.registry import Control


class OutOfTimeError(Exception):
    """The time limit passed."""


@dataclass(frozen=True)
class Deadline:
    """Wall-clock end of a search.

    Parameters
    ----------
    end : float, s
        On the clock of `time.perf_counter`.
    """

    end: float

    @classmethod
    def of(cls, control: Control) -> Deadline:
        """The end that ``control.time_limit`` sets, counted from now."""
        return cls(float("inf") if control.time_limit is None else perf_counter() + control.time_limit)

    @property
    def left(self) -> float:
        """Seconds left, never negative."""
        return max(self.end - perf_counter(), 0.0)

    def check(self) -> None:
        """Raise `OutOfTimeError` once the time is up."""
        if self.left == 0.0:
            raise OutOfTimeError
