"""Better prices for one block by ascent: where tokens are few, bounds are jagged and Newton stops short.

The bound of a block is the minimum of functions that are linear in its prices, so at any prices the
tokens' choices and the devices' best sets and bandwidths give a direction of ascent (what is charged less
what is earned). Steps aim at a value that cannot be exceeded, the latency of a known selection (Polyak's
rule), taken in the logarithms of the prices, and shorten when they stop helping.
"""

from __future__ import annotations

from math import exp, inf

import numpy as np

from wdmoe_opt.kernels.bounds import Limits, block_deadline, device_term, order_members, token_bound
from wdmoe_opt.kernels.compiled import compiled
from wdmoe_opt.kernels.price_newton import Link
from wdmoe_opt.kernels.share_bound import find_tolls, share_minimum

#: Steps without progress after which they are halved, first length, length at which to stop.
PATIENCE, FIRST_LENGTH, LAST_LENGTH = 6, 1.0, 0.02
#: Relative precision of deadlines on the way.
COARSE = 1e-6
#: Least weight of a step in the mean selection.
RECENT = 0.1
#: Largest step of the logarithm of a price.
MOVE = 0.3
#: Largest factor by which the x that tolls are for moves in a step.
DRIFT = 1.03


@compiled
def ascend(
    ids: np.ndarray,
    share: np.ndarray,
    hosts: np.ndarray,
    compute: np.ndarray,
    activation: np.ndarray,
    wakes: np.ndarray,
    usable: np.ndarray,
    by_device: bool,
    floor: float,
    cap: int,
    needed: float,
    link: Link,
    link_time: np.ndarray,
    free: bool,
    i: int,
    offset: float,
    grid: np.ndarray,
    least: np.ndarray,
    most: np.ndarray,
    limits: Limits,
    target: float,
    steps: int,
    seconds: np.ndarray,
    second: np.ndarray,
    prices: np.ndarray,
    nu: np.ndarray,
    points: np.ndarray,
    mean: np.ndarray,
    awake: np.ndarray,
) -> float:
    """Raise the bound of block ``i`` alone, or of its share (fixed bandwidth prices).

    Parameters
    ----------
    ids, share : arrays (tokens, m)
    offset, grid : float, s; float array (g,)
        Of the shared form; an empty grid asks for the deadline of the block alone.
    target : float, s
        Value that the bound cannot exceed.
    seconds : float array (devices,), s
        Time of a transfer on air that ``second`` refers to.
    second : float array (devices,), updated
        Price of a device second: a transfer costs ``seconds * second``.
    prices : float array (2,), updated
        Price of retention and, for the block alone, of bandwidth.
    nu : float array (devices,)
        Bandwidth prices of the shared form.
    points : float array (devices,), updated
        ln of bandwidths.
    mean, awake : float arrays (tokens, m), (experts,), filled
        How often pairs were kept and experts active on the way, late steps counting more: about the
        relaxed solution.

    Returns
    -------
    float
        Best bound; ``second`` and ``prices`` are those that prove it.
    """
    devices = second.size
    experts = hosts.size
    surplus, value = np.empty(ids.shape), np.empty(experts)
    used, kept = np.empty((2, experts)), np.empty((2, experts))
    slope, spent = np.empty(devices + 2), np.empty(devices)
    best, bound = -inf, 0.0
    best_second, best_prices = second.copy(), prices.copy()
    length, stale = FIRST_LENGTH, 0
    here = np.array([1.0 / max(target - nu @ np.exp(points) - offset, 1e-300)])
    pair, send = np.empty(experts), np.empty(devices)
    picked, chosen = np.empty(ids.shape, dtype=np.int8), np.empty(experts)
    mean[:, :] = 0.0
    awake[:] = 0.0
    for step in range(steps):
        for k in range(devices):
            send[k] = seconds[k] * second[k]
        for e in range(experts):
            pair[e] = second[hosts[e]] * compute[e]
        paid = token_bound(
            ids, share, hosts, send, pair, by_device, prices[0], floor, cap, wakes, limits.forced, surplus,
            value, used, kept, picked,
        )  # fmt: skip
        paid += prices[0] * needed
        members, ends = order_members(hosts, activation, value, usable, devices)
        if grid.size == 0:
            bound = block_deadline(
                i, paid, bound if bound > 0.0 else target, send, second, prices[1], link, link_time, free,
                members, ends, activation, value, least, most, limits, COARSE, points,
            )  # fmt: skip
            _deadline_slope(
                hosts, i, bound, prices, send, second, link, link_time, free, members, ends, activation,
                value, used, kept, needed, least, most, limits, points, slope, chosen,
            )  # fmt: skip
        else:
            bound = _share_slope(
                hosts, i, paid, offset, grid, prices, send, second, nu, link, members, ends, activation,
                value, used, kept, needed, least, most, limits, points, slope, chosen, here, spent,
            )  # fmt: skip
        _average(ids, picked, chosen, max(1.0 / (step + 1.0), RECENT), mean, awake)
        if bound >= target:
            return bound
        if bound > best * (1.0 + 1e-7) + 1e-300:
            best = bound
            best_second[:], best_prices[:] = second, prices
            stale = 0
        else:
            stale += 1
            if stale > PATIENCE:
                length *= 0.5
                stale = 0
                second[:], prices[:] = best_second, best_prices
                if length < LAST_LENGTH:
                    break
        norm = 0.0
        for r in range(devices + 2):
            norm += slope[r] * slope[r]
        if not (norm > 0.0 and norm < inf):
            break
        size = length * max(target - bound, 1e-6 * target) / norm
        for k in range(devices):
            second[k] *= exp(min(max(size * slope[k], -MOVE), MOVE))
        for r in range(2):
            prices[r] *= exp(min(max(size * slope[devices + r], -MOVE), MOVE))
    second[:], prices[:] = best_second, best_prices
    return best


@compiled
def _average(
    ids: np.ndarray,
    picked: np.ndarray,
    chosen: np.ndarray,
    weight: float,
    mean: np.ndarray,
    awake: np.ndarray,
) -> None:
    """Move the mean selection and the mean active experts towards the present ones."""
    for e in range(awake.size):
        awake[e] += weight * (chosen[e] - awake[e])
    for j in range(ids.shape[0]):
        for c in range(ids.shape[1]):
            taken = 1.0 if picked[j, c] == 2 else 0.0
            if picked[j, c] == 1:
                taken = chosen[ids[j, c]]
            mean[j, c] += weight * (taken - mean[j, c])


@compiled
def share_step(
    ids: np.ndarray,
    share: np.ndarray,
    hosts: np.ndarray,
    compute: np.ndarray,
    activation: np.ndarray,
    wakes: np.ndarray,
    usable: np.ndarray,
    by_device: bool,
    floor: float,
    cap: int,
    needed: float,
    link: Link,
    i: int,
    offset: float,
    grid: np.ndarray,
    least: np.ndarray,
    most: np.ndarray,
    limits: Limits,
    send: np.ndarray,
    second: np.ndarray,
    mu: float,
    nu: np.ndarray,
    here: np.ndarray,
    points: np.ndarray,
    weight: float,
    slope: np.ndarray,
    spent: np.ndarray,
    mean: np.ndarray,
    awake: np.ndarray,
) -> float:
    """Bound of block ``i`` in the shared form, and its slopes.

    Parameters
    ----------
    send, second, mu : float arrays (devices,), float
        Prices per unit of x.
    here : float array (1,), 1/s, updated
        The x that decides.
    points : float array (devices,), updated
        ln of bandwidths.
    weight : float
        Of this step in ``mean`` and ``awake``, as in `ascend`.
    slope : float array (devices + 2,), filled
        By the logarithms of device seconds and of retention.
    spent : float array (devices,), filled
        Bandwidth: the slope by ``nu``.
    """
    experts = hosts.size
    surplus, value = np.empty(ids.shape), np.empty(experts)
    used, kept = np.empty((2, experts)), np.empty((2, experts))
    pair = np.empty(experts)
    picked, chosen = np.empty(ids.shape, dtype=np.int8), np.zeros(experts)
    for e in range(experts):
        pair[e] = second[hosts[e]] * compute[e]
    prices = np.array([mu, 0.0])
    paid = mu * needed + token_bound(
        ids, share, hosts, send, pair, by_device, mu, floor, cap, wakes, limits.forced, surplus, value, used,
        kept, picked,
    )  # fmt: skip
    members, ends = order_members(hosts, activation, value, usable, second.size)
    bound = _share_slope(
        hosts, i, paid, offset, grid, prices, send, second, nu, link, members, ends, activation, value, used,
        kept, needed, least, most, limits, points, slope, chosen, here, spent,
    )  # fmt: skip
    _average(ids, picked, chosen, weight, mean, awake)
    return bound


@compiled
def _set_sums(
    n: int,
    members: np.ndarray,
    value: np.ndarray,
    used: np.ndarray,
    kept: np.ndarray,
    weight: float,
    chosen: np.ndarray,
) -> tuple[float, float, float]:
    """Value of a chosen set, what its tokens are charged, and what they keep; marks it in ``chosen``."""
    earned, charged, held = 0.0, 0.0, 0.0
    for r in range(members.size):
        e = members[r]
        if r == n if n < members.size else r <= n - members.size + 1:
            earned += value[e]
            charged += used[0, e]
            held += kept[0, e]
            chosen[e] += weight
        charged += used[1, e]
        held += kept[1, e]
    return earned, charged, held


@compiled
def _deadline_slope(
    hosts: np.ndarray,
    i: int,
    deadline: float,
    prices: np.ndarray,
    send: np.ndarray,
    second: np.ndarray,
    link: Link,
    link_time: np.ndarray,
    free: bool,
    members: np.ndarray,
    ends: np.ndarray,
    activation: np.ndarray,
    value: np.ndarray,
    used: np.ndarray,
    kept: np.ndarray,
    needed: float,
    least: np.ndarray,
    most: np.ndarray,
    limits: Limits,
    points: np.ndarray,
    slope: np.ndarray,
    chosen: np.ndarray,
) -> None:
    """Fill d deadline / d ln (device seconds, retention, bandwidth), by the implicit function theorem."""
    devices = second.size
    slope[devices] = needed
    slope[devices + 1] = -link.total
    pace = 0.0
    slope[:devices] = 0.0
    for e in range(limits.opened.size):
        chosen[e] = 1.0 if limits.opened[e] else 0.0
        if limits.opened[e]:
            slope[hosts[e]] += used[1, e]
            slope[devices] -= kept[1, e]
    for k in range(devices):
        own = members[ends[k] : ends[k + 1]]
        time = deadline - link.delay[k] - limits.base[k]
        term, rate, n, where = device_term(
            k, i, time, 1.0, send[k], second[k], prices[1], link, link_time, free, own, activation, value,
            least[k], most[k], limits.held[k], limits.fewest[k], limits.largest[k], False, 0.0, points[k],
        )  # fmt: skip
        earned, charged, held = _set_sums(n, own, value, used, kept, 1.0, chosen)
        slope[k] += charged
        slope[devices] -= held
        if n != -1:
            slope[k] -= term + prices[1] * exp(where) - earned
            slope[devices + 1] += exp(where)
            pace += rate
    slope[devices] *= prices[0]
    slope[devices + 1] *= prices[1]
    for r in range(devices + 2):
        slope[r] /= max(pace, 1e-300)


@compiled
def _share_slope(
    hosts: np.ndarray,
    i: int,
    paid: float,
    offset: float,
    grid: np.ndarray,
    prices: np.ndarray,
    send: np.ndarray,
    second: np.ndarray,
    nu: np.ndarray,
    link: Link,
    members: np.ndarray,
    ends: np.ndarray,
    activation: np.ndarray,
    value: np.ndarray,
    used: np.ndarray,
    kept: np.ndarray,
    needed: float,
    least: np.ndarray,
    most: np.ndarray,
    limits: Limits,
    points: np.ndarray,
    slope: np.ndarray,
    chosen: np.ndarray,
    here: np.ndarray,
    spent: np.ndarray,
) -> float:
    """Bound of the shared form with tolls for x = ``here``, and fill its slopes at the x that decides it."""
    devices = second.size
    earned = np.zeros(grid.size)
    charge, capacity = np.zeros((grid.size, devices)), np.zeros((grid.size, devices))
    holding = np.zeros(grid.size)
    sets = np.empty((grid.size, devices), dtype=np.int64)
    places = np.empty((grid.size, devices))
    dummy = np.zeros((1, 1))
    toll, lump = np.zeros(devices), np.zeros(devices)
    saved = find_tolls(
        i, here[0], offset, send, second, nu, link, members, ends, activation, value, least, most, limits,
        True, points, toll, lump,
    )  # fmt: skip
    for g in range(grid.size):
        x = grid[g]
        for e in range(limits.opened.size):
            if limits.opened[e]:
                charge[g, hosts[e]] += used[1, e]
                holding[g] += kept[1, e]
        for k in range(devices):
            own = members[ends[k] : ends[k + 1]]
            time = 1.0 + (offset - link.delay[k] - limits.base[k]) * x
            term, _, n, points[k] = device_term(
                k, i, time, x, send[k] - toll[k], second[k], nu[k], link, dummy, True, own, activation, value,
                least[k], most[k], limits.held[k], 0.0, inf, limits.fewest[k] > 0.0, lump[k] * x, points[k],
            )  # fmt: skip
            earned[g] += term
            places[g, k] = points[k]
            sets[g, k] = n
            value_sum, charged, held = _set_sums(n, own, value, used, kept, 0.0, chosen)
            charge[g, k] += charged
            holding[g] += held
            if n != -1:
                capacity[g, k] = term + nu[k] * exp(points[k]) - x * value_sum
    if grid.size == 1:
        paid -= saved
    bound, x, g = share_minimum(paid, offset, grid, earned)
    # Damped: tolls for an x push the one that decides to the other side of where they balance.
    here[0] *= min(max(x / here[0], 1.0 / DRIFT), DRIFT)
    part = 0.0
    h = min(g + 1, grid.size - 1)
    if h > g:
        part = (x - grid[g]) / (grid[h] - grid[g])
    for e in range(limits.opened.size):
        chosen[e] = 1.0 if limits.opened[e] else 0.0
    for k in range(devices):
        points[k] = (1.0 - part) * places[g, k] + part * places[h, k]
        own = members[ends[k] : ends[k + 1]]
        first_spent = exp(places[g, k]) if sets[g, k] != -1 else link.low[k]
        last_spent = exp(places[h, k]) if sets[h, k] != -1 else link.low[k]
        spent[k] = (1.0 - part) * first_spent + part * last_spent
        _set_sums(sets[g, k], own, value, used, kept, 1.0 - part, chosen)
        _set_sums(sets[h, k], own, value, used, kept, part, chosen)
    # Charges of active experts count x times wherever the deciding set holds them.
    first, last = grid[g], grid[h]
    if grid.size == 1:
        # Device terms do not depend on x: charges and lumps stand in the token part.
        first = x
        for k in range(devices):
            capacity[0, k] += x * (lump[k] if limits.fewest[k] > 0.0 or limits.held[k] else max(lump[k], 0.0))
    slope[devices] = needed * x - (1.0 - part) * first * holding[g] - part * last * holding[h]
    slope[devices] *= prices[0]
    slope[devices + 1] = 0.0
    for k in range(devices):
        slope[k] = (1.0 - part) * (first * charge[g, k] - capacity[g, k]) + part * (
            last * charge[h, k] - capacity[h, k]
        )
    return bound
