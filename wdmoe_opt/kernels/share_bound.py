"""What one of several blocks that share bandwidth must take, less its price of bandwidth (fact 6).

With x = 1 / (T - offset) and prices that grow like x, a block with latency T pays x times its token
bound, and device k earns at most a function D_k(x) that is convex in x and hence below its chord between
two grid points. On each piece T + (paid - chord slope) x is explicit, so the least of all pieces is a
bound on T plus the price of the block's bandwidth, whatever T is.
"""

from __future__ import annotations

from math import inf, sqrt

import numpy as np

from wdmoe_opt.kernels.bounds import device_term
from wdmoe_opt.kernels.compiled import compiled
from wdmoe_opt.kernels.price_newton import Link


@compiled
def share_bound(
    i: int,
    paid: float,
    offset: float,
    grid: np.ndarray,
    send: np.ndarray,
    work: np.ndarray,
    nu: np.ndarray,
    link: Link,
    members: np.ndarray,
    ends: np.ndarray,
    activation: np.ndarray,
    value: np.ndarray,
    least: np.ndarray,
    most: np.ndarray,
    points: np.ndarray,
) -> float:
    """Bound on T plus the sum of nu_k b_k of block ``i``.

    Parameters
    ----------
    paid : float
        Token bound at prices per unit of x.
    offset : float, s
    grid : float array (g,), 1/s
        Values of x from 0 to the largest possible; a single 0 if device terms do not depend on x.
    nu : float array (devices,)
    points : float array (devices,)
        ln of bandwidths to start from.
    """
    earned = np.zeros(grid.size)
    dummy = np.zeros((1, 1))
    for g in range(grid.size):
        x = grid[g]
        for k in range(send.size):
            if ends[k] == ends[k + 1]:
                earned[g] -= nu[k] * link.low[k]
                continue
            term, _, _, where = device_term(
                k, i, 1.0 + (offset - link.delay[k]) * x, x, send[k], work[k], nu[k], link, dummy, True,
                members[ends[k] : ends[k + 1]], activation, value, least[k], most[k], points[k],
            )  # fmt: skip
            earned[g] += term
            points[k] = where
    return share_minimum(paid, offset, grid, earned)[0]


@compiled
def share_minimum(
    paid: float, offset: float, grid: np.ndarray, earned: np.ndarray
) -> tuple[float, float, int]:
    """Least of T + paid x - chord over all pieces; the x and the piece where it is taken."""
    if grid.size == 1:
        root = sqrt(max(paid, 0.0))
        return offset + 2.0 * root - earned[0], 1.0 / max(root, 1e-300), 0
    best, where, piece = inf, grid[-1], 0
    for g in range(grid.size - 1):
        first, last = grid[g], grid[g + 1]
        if last <= first:
            continue
        slope = (earned[g + 1] - earned[g]) / (last - first)
        lean = paid - slope
        x = last
        if lean > 0.0:
            x = min(max(1.0 / sqrt(lean), first), last)
        value = offset + 1.0 / x + lean * x - earned[g] + slope * first
        if value < best:
            best, where, piece = value, x, g
    return best, where, piece
