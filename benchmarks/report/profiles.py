"""Performance profiles (Dolan and Moré, 2002) of the time to a feasible point close to the best bound."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from wdmoe_opt.benchmarks.report.gaps import SLACK, bounded, common

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

#: Gaps of the panels.
WITHIN = (0.1, 0.01, 0.001)


@dataclass(frozen=True)
class Profile:
    """Shares of problems solved within a multiple of the fastest solver's time.

    Attributes
    ----------
    within : float
        The gap to the best certified bound that counts as solved.
    problems : int
        Common problems with a certified bound; those that nobody solves count, so no curve need reach 1.
    solved : int
        Those that some solver solves.
    ratios : dict of str to float array
        Per family the rising multiples of the problems it solves.
    """

    within: float
    problems: int
    solved: int
    ratios: dict[str, NDArray[np.float64]]

    def share(self, solver: str, multiple: float) -> float:
        """Share of all problems that a solver solves within a multiple of the fastest time."""
        return float((self.ratios[solver] <= multiple).sum()) / self.problems if self.problems else 0.0


def profile(rows: pd.DataFrame, task: str, within: float) -> Profile:
    """Profile over all problems of a task that have a certified bound, one curve per family.

    Problems that at most half of the families were tried on, such as those of a special contestant, do not
    count; of the others, a family does not solve what it was not tried on.
    """
    own = common(bounded(rows, task))
    close = own[own["answered"] & (own["bound_gap"] <= within + SLACK) & (own["time_s"] > 0)]
    times = close.groupby(["problem", "family"])["time_s"].min()
    fastest = times.groupby("problem").transform("min")
    multiple = (times / fastest).reset_index()
    ratios = {
        str(family): np.sort(multiple["time_s"][multiple["family"] == family].to_numpy(float))
        for family in own["family"].unique()
    }
    return Profile(within, own["problem"].nunique(), close["problem"].nunique(), ratios)
