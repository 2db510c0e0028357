"""The figures that the project promised itself, beside what the rows say: kept, missed or not measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from wdmoe_opt.benchmarks.report.gaps import SLACK, bounded
from wdmoe_opt.benchmarks.report.results import main_rows, task_rows
from wdmoe_opt.benchmarks.report.spread import median

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Expectation:
    """One promise.

    Attributes
    ----------
    what : str
    limit : float
        To be reached, or not to be exceeded where ``at_most``.
    at_most : bool
    values : float array
        One per problem.
    """

    what: str
    limit: float
    at_most: bool
    values: NDArray[np.float64]

    @property
    def measured(self) -> float:
        """Median over the problems; NaN where nothing was measured."""
        return median(self.values)

    @property
    def verdict(self) -> str:
        """One of "kept", "missed" and "not measured"."""
        if not self.values.size:
            return "not measured"
        kept = self.measured <= self.limit if self.at_most else self.measured >= self.limit
        return "kept" if kept else "missed"

    @property
    def share_kept(self) -> float:
        """Share of the problems on which it is kept."""
        kept = self.values <= self.limit if self.at_most else self.values >= self.limit
        return float(kept.mean()) if self.values.size else np.nan


def expectations(rows: pd.DataFrame) -> list[Expectation]:
    """Every promise that rows of a benchmark can speak to; unanswered rows do not count."""
    return [
        Expectation(
            "bandwidth alone: times faster than a re-solved CVXPY model, the fastest there",
            200.0, False, bandwidth_advantage(rows, "cvxpy"),
        ),
        Expectation(
            "bandwidth alone: times faster than SLSQP", 1000.0, False, bandwidth_advantage(rows, "slsqp")
        ),
        Expectation(
            "greedy on 512 tokens × 8 devices, in metric evaluations",
            30.0, True, metric_evaluations(rows, "greedy"),
        ),
        Expectation(
            "certified on 512 tokens × 8 devices, in metric evaluations",
            150.0, True, metric_evaluations(rows, "certified"),
        ),
        Expectation(
            "certified: times faster than the best peer to the gap that it reaches",
            1000.0, False, peer_advantage(rows),
        ),
    ]  # fmt: skip


def bandwidth_advantage(rows: pd.DataFrame, peer: str) -> NDArray[np.float64]:
    """Fastest time of the peers named so over the fastest of this package, per bandwidth problem."""
    own = main_rows(task_rows(rows, "bandwidth"))
    own = own[own["answered"]]
    ours = own[own["kind"] == "ours"].groupby("problem")["time_s"].min()
    named = own["solver"].str.contains(peer) | own["method"].str.contains(peer)
    theirs = own[named & (own["kind"] == "peer")].groupby("problem")["time_s"].min()
    return _known((theirs / ours).to_numpy())


def metric_evaluations(rows: pd.DataFrame, method: str) -> NDArray[np.float64]:
    """Time of a method over that of one evaluation, on single blocks of 512 tokens and 8 devices."""
    own = main_rows(task_rows(rows, "joint"))
    own = own[(own["family"] == method) & own["answered"]]
    own = own[(own["tokens"] == 512) & (own["devices"] == 8) & (own["blocks"] == 1)]
    return _known((own["time_s"] / own["metric_s"]).to_numpy())


def peer_advantage(rows: pd.DataFrame) -> NDArray[np.float64]:
    """Time of the peer with the least gap over that of `certified` to the same gap, per problem.

    0 where `certified` does not reach it.
    """
    own = bounded(rows, "joint")
    own = own[own["answered"] & (own["time_s"] > 0)]
    peers = own[own["kind"] == "peer"].sort_values(["bound_gap", "time_s"]).drop_duplicates("problem")
    found = []
    for peer in peers.itertuples():
        ours = own[(own["problem"] == peer.problem) & (own["method"] == "certified")]
        close = ours["time_s"][ours["bound_gap"] <= peer.bound_gap + SLACK]
        found.append(peer.time_s / close.min() if len(close) else 0.0)
    return np.array(found, float)


def _known(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values[np.isfinite(values)]
