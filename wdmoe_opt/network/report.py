"""What a model's forward passes cost on the network, and what deciding cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, dataclass, field, fields
from math import nan
from typing import TYPE_CHECKING, Any

import numpy as np

from wdmoe_opt.errors import UnsupportedError
from wdmoe_opt.validation import RealArray

if TYPE_CHECKING:
    import pandas as pd


@dataclass(slots=True)
class BlockRecord:
    """One block of one forward pass.

    Attributes
    ----------
    forward_pass, block, tokens : int
    time : float, s
        Simulated, when the gate had spoken.
    latency : float, s
        Simulated: air and device time of the slowest device, outages waited out included.
    retention : float
        Mean kept gate weight.
    experts : float
        Experts per token that were used, mean.
    floors_kept : bool
    gap : float
        Of the policy to its lower bound; NaN without one.
    outages : int
        Channel states waited for because a device could not be reached.
    solve_seconds : float, s
        Wall clock: the policy's decision.
    gate_seconds : float, s
        Wall clock: the router itself; NaN where no model ran.
    other_seconds : float, s
        Wall clock: moving the gate to the policy and back, and pricing.
    """

    forward_pass: int
    block: int
    tokens: int
    time: float
    latency: float
    retention: float
    experts: float
    floors_kept: bool
    gap: float
    outages: int
    solve_seconds: float
    gate_seconds: float = nan
    other_seconds: float = nan


@dataclass(eq=False)
class LoopReport:
    """Account of all blocks sent so far; grows as the model runs.

    Attributes
    ----------
    records : list of BlockRecord
        In the order sent.
    """

    records: list[BlockRecord] = field(default_factory=list)

    def column(self, name: str) -> Any:
        """One attribute of all records, as an array."""
        return np.array([getattr(record, name) for record in self.records])

    def per_pass(self, name: str, of: Callable[[RealArray], Any] = np.sum) -> RealArray:
        """An attribute of the records of each forward pass, taken together by ``of``, (passes,)."""
        values, passes = self.column(name), self.column("forward_pass")
        return np.array([of(values[passes == one]) for one in np.unique(passes)], dtype=np.float64)

    @property
    def passes(self) -> int:
        """Forward passes with a block sent."""
        return len({record.forward_pass for record in self.records})

    @property
    def tokens(self) -> int:
        """Tokens through all passes: each counts once, not once per block."""
        return int(self.per_pass("tokens", np.max).sum()) if self.records else 0

    @property
    def latency(self) -> float:
        """Simulated time of all blocks, s."""
        return float(sum(record.latency for record in self.records))

    @property
    def pass_latency(self) -> RealArray:
        """Simulated time of each forward pass, s (passes,)."""
        return self.per_pass("latency")

    @property
    def retention(self) -> float:
        """Mean kept gate weight over all tokens of all blocks; NaN before the first."""
        weights = self.column("tokens")
        return float(np.average(self.column("retention"), weights=weights)) if self.records else nan

    @property
    def floors_missed(self) -> int:
        """Blocks whose selection does not keep the floors."""
        return sum(not record.floors_kept for record in self.records)

    @property
    def outages(self) -> int:
        """Channel states waited for in all."""
        return sum(record.outages for record in self.records)

    @property
    def solve_over_latency(self) -> float:
        """Median over blocks of deciding (wall clock) over the block's simulated time; NaN without blocks."""
        return _median(self.column("solve_seconds") / self.column("latency")) if self.records else nan

    @property
    def solve_over_gate(self) -> float:
        """Median over blocks of deciding over the gate's own computing; NaN where no model ran."""
        return _median(self.column("solve_seconds") / self.column("gate_seconds")) if self.records else nan

    def to_frame(self) -> pd.DataFrame:
        """One row per block and forward pass, as a pandas frame (extra ``frames``)."""
        try:
            import pandas as pd
        except ImportError:
            raise UnsupportedError("to_frame needs pandas; install wdmoe_opt[frames]") from None
        names = [entry.name for entry in fields(BlockRecord)]
        return pd.DataFrame([astuple(record) for record in self.records], columns=names)

    def __str__(self) -> str:
        if not self.records:
            return "nothing was sent yet"
        gate, other = (_median(self.column(name)) for name in ("gate_seconds", "other_seconds"))
        lines = [
            f"{self.passes} forward pass(es), {self.tokens} tokens, {len(self.records)} blocks sent",
            f"  network: {self.latency * 1e3:.2f} ms simulated, median pass "
            f"{np.median(self.pass_latency) * 1e3:.2f} ms, retention {self.retention:.4f}",
            f"  deciding: {_median(self.column('solve_seconds')) * 1e3:.3f} ms a block, "
            f"{self.solve_over_latency:.2%} of its simulated time",
        ]
        if np.isfinite(gate):
            lines[-1] += f", {self.solve_over_gate:.1f} times the gate's {gate * 1e3:.3f} ms"
        lines.append(f"  moving and pricing: {other * 1e3:.3f} ms a block")
        if self.floors_missed or self.outages:
            lines.append(
                f"  floors missed in {self.floors_missed} blocks, outages waited out: {self.outages}"
            )
        return "\n".join(lines)


def _median(values: Any) -> float:
    """Median of the finite values; NaN if there is none."""
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if finite.size else nan
