"""A priced answer: selection, bandwidth, what they cost, and what is known about the optimum."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wdmoe_opt.errors import UnsupportedError
from wdmoe_opt.metrics import Evaluation, Violation, evaluate
from wdmoe_opt.problem import Problem
from wdmoe_opt.registry import BoundKind, Termination
from wdmoe_opt.validation import IntArray, RealArray, freeze

if TYPE_CHECKING:
    import pandas as pd

    from wdmoe_opt.certificates.certificate import Certificate


@dataclass(frozen=True, eq=False)
class Solution:
    """A point priced by the metric; what a solver believed of it is not kept.

    Attributes
    ----------
    problem : Problem
    keep : bool array (blocks, tokens, m), or None where only loads are known or no point was found
        Which candidates each token uses, aligned with the instance's ``expert_ids``.
    bandwidth : float array (devices,) or (blocks, devices), Hz, or None on a measured link
    evaluation : Evaluation
    method : str
        The solver's name, "given" for a user's own point.
    lower_bound : float
        On the objective's best value, from above where it is maximised; -inf with ``bound_kind`` "none".
    bound_kind : {"none", "claimed", "certified"}
    kkt_residual : float
        Relative gap of the bandwidth for this selection, NaN where it was not optimised.
    termination : Termination
    timings : mapping of str to s
    trace : tuple of mapping
        The solver's steps.
    certificate : Certificate or None
        What proves the bound, with ``bound_kind`` "certified"; see `certify`.
    """

    problem: Problem
    keep: NDArray[np.bool_] | None
    bandwidth: RealArray | None
    evaluation: Evaluation
    method: str = "given"
    lower_bound: float = -math.inf
    bound_kind: BoundKind = "none"
    kkt_residual: float = math.nan
    termination: Termination = field(default_factory=Termination)
    timings: Mapping[str, float] = field(default_factory=dict)
    trace: tuple[Mapping[str, Any], ...] = ()
    certificate: Certificate | None = None

    @classmethod
    def from_arrays(
        cls, problem: Problem, *, keep: ArrayLike | None = None, bandwidth: ArrayLike | None = None
    ) -> Self:
        """Price a user's own point; arguments as in `evaluate`."""
        priced = evaluate(problem, keep, bandwidth)
        # A copy: the caller's array may change later, the price would not.
        selection = freeze(problem.checked_keep(keep).copy()) if problem.selectable else None
        given = Termination("heuristic", detail="given by the user")
        return cls(problem, selection, priced.bandwidth, priced, termination=given)

    def save(self, path: str | Path) -> str:
        """Write everything to a file that is complete in itself, and return its content hash.

        Parameters
        ----------
        path : str or Path
            Ends in .npz. The file appears complete or not at all.

        Raises
        ------
        InstanceFileError
            If the ending is another one, or the file cannot be written.
        """
        from wdmoe_opt.solution_file import save_solution

        return save_solution(self, path)

    @classmethod
    def load(cls, path: str | Path) -> Solution:
        """Read a file written by `save`; the point is priced again, claims are kept for `certify`.

        Raises
        ------
        InstanceFileError
            If the file is missing, damaged, or breaks a rule.
        """
        from wdmoe_opt.solution_file import load_solution

        return load_solution(path)

    @property
    def expert_ids(self) -> IntArray:
        """Candidates that ``keep`` is aligned with, (blocks, tokens, m)."""
        ids = self.problem.instance.expert_ids
        if ids is None:
            raise UnsupportedError("there are no experts to name: the instance has loads only")
        return ids

    @property
    def has_point(self) -> bool:
        """Whether there is a point; if not, ``termination`` says why."""
        absent = self.keep is None and self.bandwidth is None
        return not (absent and self.termination.reason in ("infeasible", "no-solution"))

    @property
    def latency(self) -> float:
        """Total latency, s."""
        return self.evaluation.latency

    @property
    def block_latency(self) -> RealArray:
        """Latency of each block, s (blocks,)."""
        return self.evaluation.block_latency

    @property
    def device_time(self) -> RealArray:
        """Time of each device in each block, s (blocks, devices)."""
        return self.evaluation.device_time

    @property
    def retention(self) -> float:
        """Mean kept gate weight over blocks: 1 for plain top-k; above 1 if tokens keep more than that."""
        return self.evaluation.retention

    @property
    def block_retention(self) -> RealArray:
        """Mean kept gate weight of each block, (blocks,)."""
        return self.evaluation.block_retention

    @property
    def token_retention(self) -> RealArray:
        """Kept gate weight of each token, (blocks, tokens)."""
        return self.evaluation.token_retention

    @property
    def wlr(self) -> dict[str, float]:
        """The three readings of the weight-to-latency ratio, 1/s."""
        return self.evaluation.wlr

    @property
    def energy(self) -> float:
        """Energy, J; see `Evaluation.energy`."""
        return self.evaluation.energy

    @property
    def objective(self) -> float:
        """Value of the problem's objective."""
        return self.evaluation.objective

    @property
    def feasible(self) -> bool:
        """Whether no constraint is violated."""
        return self.evaluation.feasible

    @property
    def violations(self) -> tuple[Violation, ...]:
        """Broken constraints."""
        return self.evaluation.violations

    @property
    def gap(self) -> float:
        """Distance of objective and bound over the objective; inf without a bound or a point."""
        value = self.objective
        if self.bound_kind == "none" or not math.isfinite(value):
            return math.inf
        if value == self.lower_bound:
            return 0.0
        if value == 0:
            return math.inf
        sign = 1.0 if self.problem.objective == "latency" else -1.0
        return sign * (value - self.lower_bound) / value

    def gate_weights(self, *, renormalise: bool = True) -> RealArray:
        """What the model should mix with, (blocks, tokens, m), 0 where an expert is not used.

        Parameters
        ----------
        renormalise : bool
            Scale a token's kept weights back to the sum of its top-k weights.

        Raises
        ------
        UnsupportedError
            If the instance has loads only.
        """
        keep = self._selection()
        t = self.problem.tables
        weights = np.where(keep, t.weights, 0.0)
        if renormalise:
            kept = weights.sum(axis=2)
            weights *= np.divide(t.mass, kept, out=np.zeros_like(kept), where=kept > 0)[:, :, None]
        return weights

    def dense(self) -> NDArray[np.bool_]:
        """Return the selection over all experts, bool (blocks, tokens, experts)."""
        keep = self._selection()
        blocks, tokens, columns = np.nonzero(keep)
        full = np.zeros((*keep.shape[:2], self.problem.instance.experts), dtype=bool)
        full[blocks, tokens, self.problem.tables.ids[blocks, tokens, columns]] = True
        return full

    def _selection(self) -> NDArray[np.bool_]:
        if self.keep is None:
            why = "the instance has loads only" if not self.problem.selectable else self.termination.reason
            raise UnsupportedError(f"there is no selection: {why}")
        return self.keep

    def to_frame(self) -> pd.DataFrame:
        """One row per block and device, as a pandas frame (extra ``frames``)."""
        try:
            import pandas as pd
        except ImportError:
            raise UnsupportedError("to_frame needs pandas; install wdmoe_opt[frames]") from None
        e = self.evaluation
        blocks, devices = e.device_time.shape
        width = np.nan if self.bandwidth is None else np.broadcast_to(self.bandwidth, (blocks, devices))
        air = np.zeros_like(e.link_time)
        np.multiply(e.link_time, e.transfers, out=air, where=e.transfers > 0)
        return pd.DataFrame(
            {
                "block": np.repeat(np.arange(blocks), devices),
                "device": np.tile(np.arange(devices), blocks),
                "bandwidth_hz": np.broadcast_to(width, (blocks, devices)).ravel(),
                "transfers": e.transfers.ravel().astype(np.int64),
                "air_time_s": air.ravel(),
                "device_time_s": e.device_time.ravel(),
                "block_latency_s": np.repeat(e.block_latency, devices),
            }
        )

    def __str__(self) -> str:
        lines = [
            f"{self.method}: latency {self.latency * 1e3:.3f} ms over {self.block_latency.size} block(s), "
            f"retention {self.retention:.4f}, {'feasible' if self.feasible else 'NOT feasible'}"
        ]
        if not self.has_point:
            return f"{self.method}: no point\n  {self.termination.reason}: {self.termination.detail}"
        lines += [f"  violates {violation}" for violation in self.violations]
        if self.bound_kind != "none":
            side = "lower" if self.problem.objective == "latency" else "upper"
            lines.append(f"  {self.bound_kind} {side} bound {self.lower_bound:.6g}, gap {self.gap:.3%}")
        lines.append(f"  {self.termination.reason}: {self.termination.detail}")
        return "\n".join(lines)
