"""Buffers of one block with free bandwidth and dispatch "expert", for the kernels of `single_block`.

Everything a kernel reads is read-only and everything it writes is not, wherever it comes from: an array's
writability is part of its compiled signature, and one signature is compiled once.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wdmoe_opt.kernels.price_newton import Link, Prices
from wdmoe_opt.kernels.single_block import (
    BOUND,
    HERTZ,
    LATENCY,
    RETENTION_PRICE,
    STAGES,
    Block,
    Found,
    lead_prices,
    prove_and_round,
)
from wdmoe_opt.relaxation import LEAD, PROVE, Proof, Stage
from wdmoe_opt.validation import RealArray, freeze


def stage_table(stages: tuple[Stage, ...]) -> RealArray:
    """Stages as kernels take them, (stages, 4)."""
    table: RealArray = freeze(np.array(stages, dtype=np.float64).reshape(-1, 4))
    return table


LEAD_TABLE, PROVE_TABLE = stage_table(LEAD), stage_table(PROVE)
#: Prices are always sought anew.
NO_STAGES = stage_table(())


class Workspace:
    """Prices, proof and selection of one block, for up to so many tokens.

    Parameters
    ----------
    tokens, columns : int
        Most tokens, and candidates per token.
    devices, experts : int
    """

    def __init__(self, tokens: int, columns: int, devices: int, experts: int) -> None:
        self.prices = Prices(
            np.empty((1, devices)), np.empty((1, devices)), np.empty(1), np.empty(1), np.empty((1, devices)),
            np.empty(1), np.empty((1, experts)), np.empty((1, tokens)),
        )  # fmt: skip
        self.loads = np.zeros((1, devices))
        self.found = Found(
            np.empty((tokens, columns), dtype=np.bool_), np.empty(devices), np.empty(devices),
            np.empty(devices), np.empty(experts), np.empty((tokens, columns)), np.empty(devices), np.zeros(7),
        )  # fmt: skip

    def narrowed(self, tokens: int) -> tuple[Prices, Found]:
        """Views for so many tokens."""
        found = self.found._replace(keep=self.found.keep[:tokens], surplus=self.found.surplus[:tokens])
        return self.prices._replace(bids=self.prices.bids[:, :tokens]), found

    def begin(self) -> None:
        """Forget what was found."""
        self.found.numbers[:] = 0.0
        # Prices that prove nothing are kept too, unless they are not even numbers: ascent can start there.
        self.found.numbers[BOUND], self.found.numbers[LATENCY] = -1.0, np.inf

    def lead(self, block: Block, link: Link, plain: NDArray[np.bool_], warm: RealArray = NO_STAGES) -> None:
        """Find prices to start from: by the stages ``warm`` from those at hand, else anew."""
        prices, _ = self.narrowed(block.ids.shape[1])
        lead_prices(block, link, plain, LEAD_TABLE, warm, prices, self.loads, self.found.numbers)

    def prove(self, block: Block, link: Link, stages: RealArray, rounds: int, rel_gap: float) -> None:
        """Bounds and selections of some stages, until the gap is closed."""
        prices, found = self.narrowed(block.ids.shape[1])
        prove_and_round(block, link, stages, rounds, rel_gap, prices, self.loads, found)

    @property
    def bound(self) -> float:
        """Best bound, s; 0 if nothing is proved."""
        return max(float(self.found.numbers[BOUND]), 0.0)

    @property
    def latency(self) -> float:
        """Latency of the best selection, s."""
        return float(self.found.numbers[LATENCY])

    def proof(self, tokens: int) -> Proof | None:
        """A copy of the best prices, None if there are none."""
        found = self.found
        if found.numbers[BOUND] < 0:
            return None
        nu = np.full((1, found.send.size), found.numbers[HERTZ])
        surplus = found.surplus[:tokens]
        return Proof(
            self.bound, found.send[None, :].copy(), found.work[None, :].copy(), found.wake[None, :].copy(),
            surplus[None].copy() if surplus.any() else None,
            found.numbers[RETENTION_PRICE : RETENTION_PRICE + 1].copy(), nu, found.points[None, :].copy(),
            found.numbers[BOUND : BOUND + 1].copy(), np.zeros(1), np.zeros((1, 1)),
            found.numbers[BOUND : BOUND + 1].copy(),
        )  # fmt: skip

    @property
    def stages(self) -> int:
        """Proving stages run."""
        return int(self.found.numbers[STAGES])
