"""What one of several blocks that share bandwidth must take, less its price of bandwidth (fact 6).

With x = 1 / (T - offset) and prices that grow like x, a block with latency T pays x times its token
bound, and device k earns at most a function D_k(x) that is convex in x and hence below its chord between
two grid points. On each piece T + (paid - chord slope) x is explicit, so the least of all pieces is a
bound on T plus the price of the block's bandwidth, whatever T is.

Limits on the transfers of a device would break convexity. A toll t on every transfer does not, and earns
at most t times the limit; the best toll at the x that decides makes the limit exact there.
"""

from __future__ import annotations

from math import exp, inf, sqrt

import numpy as np

from wdmoe_opt.kernels.bounds import Limits, device_term, set_value
from wdmoe_opt.kernels.compiled import compiled
from wdmoe_opt.kernels.link import log_time_terms
from wdmoe_opt.kernels.price_newton import Link

#: Rounds of tolls and grid refined at the x that decides, and the relative move of x that ends them.
ROUNDS, SETTLED = 10, 1e-5
#: Toll, as a multiple of a transfer's worth, on a device that cannot serve the fewest it must.
FORBIDDING = -30.0


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
    limits: Limits,
    start: float,
    points: np.ndarray,
    toll: np.ndarray,
) -> float:
    """Bound on T plus the sum of nu_k b_k of block ``i``.

    Parameters
    ----------
    paid : float
        Token bound at prices per unit of x.
    offset : float, s
    grid : float array (g,), 1/s, refined
        Values of x from 0 to the largest possible, the last repeated as often as it may be refined; a
        single 0 if device terms do not depend on x.
    nu : float array (devices,)
    start : float, 1/s
        About the x that decides.
    points : float array (devices,), updated
        ln of bandwidths to start from.
    toll : float array (devices,), filled
        Price of the limits on transfers.
    """
    found, lump, where = np.zeros(send.size), np.zeros(send.size), points.copy()
    best, x = -inf, start
    low, high = 0.0, inf
    for step in range(ROUNDS):
        # First without tolls: what was proved without limits stays proved.
        saved = find_tolls(
            i, x, offset, send, work, nu, link, members, ends, activation, value, least, most, limits,
            step > 0, where, found, lump,
        )  # fmt: skip
        if grid.size > 1 and grid[-1] == grid[-2]:
            _insert(grid, x)
        earned = np.zeros(grid.size)
        for g in range(grid.size):
            if g > 0 and grid[g] == grid[g - 1]:
                earned[g] = earned[g - 1]
                continue
            earned[g] = _all_earned(
                i, grid[g], offset, send, work, nu, link, members, ends, activation, value, least, most,
                limits, found, lump, points.copy(),
            )  # fmt: skip
        bound, turn, _ = share_minimum(paid - (saved if grid.size == 1 else 0.0), offset, grid, earned)
        if bound > best:
            best = bound
            toll[:], points[:] = found, where
        if step == 0:
            x = turn
            continue
        if abs(turn - x) <= SETTLED * x:
            break
        # Tolls for an x push the one that decides to the other side of where they balance.
        if turn < x:
            high = min(high, x)
        else:
            low = max(low, x)
        x = turn
        if 0.0 < low < high < inf and (step % 2 == 0 or not low < turn < high):
            x = sqrt(low * high)
    return best


@compiled
def _insert(grid: np.ndarray, x: float) -> None:
    """Put a value into an ascending grid whose last one is repeated."""
    g = grid.size - 1
    if not grid[0] < x < grid[g]:
        return
    while grid[g - 1] > x:
        grid[g] = grid[g - 1]
        g -= 1
    grid[g] = x


@compiled
def _all_earned(
    i: int,
    x: float,
    offset: float,
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
    limits: Limits,
    toll: np.ndarray,
    lump: np.ndarray,
    points: np.ndarray,
) -> float:
    """Most that all devices of block ``i`` earn at x, less the tolls, and with what tolls are worth."""
    dummy = np.zeros((1, 1))
    total = 0.0
    for k in range(send.size):
        term, _, _, _ = device_term(
            k, i, 1.0 + (offset - link.delay[k] - limits.base[k]) * x, x, send[k] - toll[k], work[k], nu[k],
            link, dummy, True, members[ends[k] : ends[k + 1]], activation, value, least[k], most[k],
            limits.held[k], 0.0, inf, limits.fewest[k] > 0.0, lump[k] * x, points[k],
        )  # fmt: skip
        total += term
    return total


@compiled
def find_tolls(
    i: int,
    x: float,
    offset: float,
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
    limits: Limits,
    tolled: bool,
    points: np.ndarray,
    toll: np.ndarray,
    lump: np.ndarray,
) -> float:
    """Fill the tolls that are best at x, or none, what they are worth per x, and ln of the bandwidths.

    Returns
    -------
    float
        What all tolls are worth per x where device terms do not depend on x: on a device that may idle,
        a toll can then only cost.
    """
    dummy = np.zeros((1, 1))
    saved = 0.0
    tried = np.empty(5)
    for k in range(send.size):
        own = members[ends[k] : ends[k + 1]]
        seconds = 1.0 + (offset - link.delay[k] - limits.base[k]) * x
        serves = limits.fewest[k] > 0.0
        tried[:] = 0.0
        if tolled and (serves or limits.largest[k] < inf):
            _try_tolls(
                k, i, x, seconds, send[k], work[k], nu[k], link, own, activation, value, least[k], most[k],
                limits, points[k], tried,
            )  # fmt: skip
        best, toll[k], lump[k] = inf, 0.0, 0.0
        start = points[k]
        for r in range(tried.size):
            t = tried[r]
            if r > 0 and t == 0.0:
                continue
            worth = t * (limits.largest[k] if t > 0.0 else max(limits.fewest[k], 1.0)) if t != 0.0 else 0.0
            term, _, _, where = device_term(
                k, i, seconds, x, send[k] - t, work[k], nu[k], link, dummy, True, own, activation, value,
                least[k], most[k], limits.held[k], 0.0, inf, serves, worth * x, start,
            )  # fmt: skip
            if term < best:
                best, toll[k], lump[k], points[k] = term, t, worth, where
        saved += lump[k] if serves or limits.held[k] else max(lump[k], 0.0)
    return saved


@compiled
def _try_tolls(
    k: int,
    i: int,
    x: float,
    seconds: float,
    send: float,
    work: float,
    nu: float,
    link: Link,
    members: np.ndarray,
    activation: np.ndarray,
    value: np.ndarray,
    least: float,
    most: float,
    limits: Limits,
    point: float,
    tried: np.ndarray,
) -> None:
    """Fill tolls worth trying; the first is none."""
    worth = send + work * most
    largest = limits.largest[k]
    term, _, n, where = device_term(
        k, i, seconds, x, send, work, nu, link, np.zeros((1, 1)), True, members, activation, value, least,
        most, limits.held[k], limits.fewest[k] * x, largest * x if largest < inf else inf, False, 0.0, point,
    )  # fmt: skip
    if term == -inf:
        tried[1] = FORBIDDING * worth
        return
    if largest < inf:
        tried[1] = worth
    if n == -1:
        return
    awake, _ = set_value(n, members, activation, value)
    left = seconds - x * awake
    time, first, _ = log_time_terms(
        exp(where), link.bits_down, link.c_down[i, k], link.bits_up, link.c_up[i, k]
    )
    for ray in range(2):
        # At this toll the limited bandwidth is the best one.
        c = most if ray else least
        if left > 0.0 and first < 0.0:
            t = send + work * c - nu * exp(where) * (time + c) ** 2 / (-first * left)
            if t < 0.0 or largest < inf:
                tried[2 + ray] = max(t, FORBIDDING * worth)


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
