"""Training batches as a pure function of the step, so that a run can stop and continue anywhere."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Batches:
    """Windows of a token stream in random order; every pass cuts it at another offset.

    Parameters
    ----------
    stream : int array (tokens,)
    context : int
        Tokens of a window.
    size : int
        Windows of a batch.
    seed : int
    """

    stream: NDArray[np.int64]
    context: int
    size: int
    seed: int

    @property
    def windows(self) -> int:
        """Windows of a pass; one less than fit, which leaves room for the offset."""
        return (self.stream.size - 1) // self.context - 1

    def at(self, step: int) -> NDArray[np.int64]:
        """Batch of a step, (size, context + 1): each token and, one to the right, what follows it."""
        passes, places = np.divmod(np.arange(step * self.size, (step + 1) * self.size), self.windows)
        starts = [
            _starts(self.seed, int(number), self.windows, self.context)[place]
            for number, place in zip(passes, places, strict=True)
        ]
        return self.stream[np.array(starts)[:, None] + np.arange(self.context + 1)]


@lru_cache(maxsize=2)
def _starts(seed: int, number: int, windows: int, context: int) -> NDArray[np.int64]:
    """First token of every window of a pass, in its order."""
    random = np.random.default_rng([seed, number])
    offset = int(random.integers(context))
    return offset + context * random.permutation(windows)
