"""What a floor on a token's retention says about how many of its candidates it keeps, and which."""

from __future__ import annotations

from math import inf

import numpy as np

from wdmoe_opt.kernels.compiled import compiled


@compiled
def needed_pairs(ids: np.ndarray, share: np.ndarray, floor: float, must: np.ndarray) -> int:
    """Mark the candidates without which a token misses its floor; how many further ones it needs at least."""
    total, had = 0.0, 0.0
    for c in range(ids.size):
        if ids[c] >= 0:
            total += share[c]
    short = floor * (1.0 - 1e-9)
    for c in range(ids.size):
        if ids[c] >= 0 and total - share[c] < short:
            must[c] = True
        if must[c]:
            had += share[c]
    rest = np.sort(np.where((ids >= 0) & ~must, -share, inf))
    need = 0
    while had < short and need < rest.size and rest[need] < inf:
        had -= rest[need]
        need += 1
    return need
