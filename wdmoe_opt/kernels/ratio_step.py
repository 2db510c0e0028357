"""What a block's kept weight over latency can be at given prices, and how that changes with them.

With x = 1 / T and prices in kept gate weight, a block's ratio is at most what its devices earn at x less x
times what its tokens pay, plus the price of its bandwidth. Earnings are convex in x, so the ends of the
range of x decide; slopes are those of both ends, mixed where they are nearly equal.
"""

from __future__ import annotations

from math import exp, inf

import numpy as np

from wdmoe_opt.kernels.bounds import Limits, device_term, order_members, set_value, token_bound
from wdmoe_opt.kernels.compiled import compiled
from wdmoe_opt.kernels.price_newton import Link
from wdmoe_opt.kernels.share_bound import find_tolls

#: Difference of the two ends, relative to the larger, at which their slopes are mixed e to 1.
MIX = 0.01


@compiled
def weighted_tokens(
    ids: np.ndarray,
    share: np.ndarray,
    mass: np.ndarray,
    hosts: np.ndarray,
    send: np.ndarray,
    pair: np.ndarray,
    by_device: bool,
    mu: float,
    floor: float,
    cap: int,
    wakes: np.ndarray,
    forced: np.ndarray,
    surplus: np.ndarray,
    value: np.ndarray,
    used: np.ndarray,
    kept: np.ndarray,
) -> float:
    """`bounds.token_bound` where kept gate weight is paid back: a share of token j is worth mu + mass[j]."""
    experts = hosts.size
    worth, charged, held = np.empty(experts), np.empty((2, experts)), np.empty((2, experts))
    picked = np.empty((1, ids.shape[1]), dtype=np.int8)
    total = 0.0
    value[:] = 0.0
    used[:, :] = 0.0
    kept[:, :] = 0.0
    for j in range(ids.shape[0]):
        total += token_bound(
            ids[j : j + 1], share[j : j + 1], hosts, send, pair, by_device, mu + mass[j], floor, cap, wakes,
            forced, surplus[j : j + 1], worth, charged, held, picked,
        )  # fmt: skip
        for c in range(ids.shape[1]):
            e = ids[j, c]
            if e >= 0:
                value[e] += worth[e]
                worth[e] = 0.0
                for row in range(2):
                    used[row, e] += charged[row, e]
                    kept[row, e] += held[row, e]
                    charged[row, e], held[row, e] = 0.0, 0.0
    return total


@compiled
def ratio_step(
    ids: np.ndarray,
    share: np.ndarray,
    mass: np.ndarray,
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
    ends_x: np.ndarray,
    least: np.ndarray,
    most: np.ndarray,
    limits: Limits,
    send: np.ndarray,
    second: np.ndarray,
    mu: float,
    nu: np.ndarray,
    here: float,
    points: np.ndarray,
    toll: np.ndarray,
    surplus: np.ndarray,
    value: np.ndarray,
    slope: np.ndarray,
    spent: np.ndarray,
) -> float:
    """Most that block ``i`` can have as ratio less the price of its bandwidth, and its slopes.

    Parameters
    ----------
    mass : float array (tokens,)
        Gate weight of a share of 1.
    ends_x : float array (2,), 1/s
        Least and largest 1 / latency.
    send, second, mu, nu : float arrays (devices,), float, float array (devices,)
        Prices of a transfer, of a second of compute, of retention, of bandwidth.
    here : float, 1/s
        The x that tolls are for.
    points : float array (devices,), updated
        ln of bandwidths.
    toll, surplus, value : float arrays (devices,), (tokens, m), (experts,), filled
        Parts of the prices that follow from the others.
    slope : float array (devices + 1,), filled
        How the ratio falls with the logarithms of device seconds and of retention.
    spent : float array (devices,), filled
        Bandwidth that the block buys.
    """
    devices, experts = second.size, hosts.size
    used, kept = np.empty((2, experts)), np.empty((2, experts))
    pair = np.empty(experts)
    for e in range(experts):
        pair[e] = second[hosts[e]] * compute[e]
    paid = mu * needed + weighted_tokens(
        ids, share, mass, hosts, send, pair, by_device, mu, floor, cap, wakes, limits.forced, surplus, value,
        used, kept,
    )  # fmt: skip
    members, ends = order_members(hosts, activation, value, usable, devices)
    lump = np.zeros(devices)
    if free:
        find_tolls(
            i, here, 0.0, send, second, nu, link, members, ends, activation, value, least, most, limits,
            True, points, toll, lump,
        )  # fmt: skip
    else:
        _fixed_tolls(
            i, here, send, second, link, link_time, members, ends, activation, value, least, most, limits,
            toll, lump,
        )  # fmt: skip
    ratio, slopes = np.zeros(2), np.zeros((2, devices + 1))
    places, bought = np.empty((2, devices)), np.zeros((2, devices))
    for g in range(2):
        x = ends_x[g]
        ratio[g] = -x * paid
        held = 0.0
        for k in range(devices):
            own = members[ends[k] : ends[k + 1]]
            term, _, n, places[g, k] = device_term(
                k, i, 1.0 - link.delay[k] * x, x, send[k] - toll[k], second[k], nu[k], link, link_time, free,
                own, activation, value, least[k], most[k], False, 0.0, inf, False, lump[k] * x, points[k],
            )  # fmt: skip
            ratio[g] += term
            earned, charged, sure = _active(n, own, activation, value, used, kept)
            held += sure
            bought[g, k] = exp(places[g, k]) if n != -1 else link.low[k]
            if n != -1:
                slopes[g, k] -= term + nu[k] * bought[g, k] - x * earned
            slopes[g, k] += x * charged
        slopes[g, devices] = mu * x * (needed - held)
    top: float = max(ratio[0], ratio[1])
    first = exp((ratio[0] - top) / (MIX * abs(top) + 1e-300))
    last = exp((ratio[1] - top) / (MIX * abs(top) + 1e-300))
    part = last / (first + last)
    slope[:] = (1.0 - part) * slopes[0] + part * slopes[1]
    spent[:] = (1.0 - part) * bought[0] + part * bought[1]
    points[:] = (1.0 - part) * places[0] + part * places[1]
    return top


@compiled
def _active(
    n: int,
    members: np.ndarray,
    activation: np.ndarray,
    value: np.ndarray,
    used: np.ndarray,
    kept: np.ndarray,
) -> tuple[float, float, float]:
    """Value of a device's chosen set, what its tokens are charged, and what they keep."""
    _, earned = set_value(n, members, activation, value)
    charged, held = 0.0, 0.0
    for r in range(members.size):
        e = members[r]
        if r == n if n < members.size else r <= n - members.size + 1:
            charged += used[0, e]
            held += kept[0, e]
        charged += used[1, e]
        held += kept[1, e]
    return earned, charged, held


@compiled
def _fixed_tolls(
    i: int,
    x: float,
    send: np.ndarray,
    second: np.ndarray,
    link: Link,
    link_time: np.ndarray,
    members: np.ndarray,
    ends: np.ndarray,
    activation: np.ndarray,
    value: np.ndarray,
    least: np.ndarray,
    most: np.ndarray,
    limits: Limits,
    toll: np.ndarray,
    lump: np.ndarray,
) -> None:
    """Where bandwidth is fixed: all that a transfer is worth, if the device would have time for too many."""
    for k in range(send.size):
        toll[k], lump[k] = 0.0, 0.0
        if limits.largest[k] == inf:
            continue
        own = members[ends[k] : ends[k + 1]]
        whole = send[k] + second[k] * most[k]
        best = inf
        for t in (0.0, whole):
            worth = t * limits.largest[k]
            term, _, _, _ = device_term(
                k, i, 1.0 - link.delay[k] * x, x, send[k] - t, second[k], 0.0, link, link_time, False, own,
                activation, value, least[k], most[k], False, 0.0, inf, False, worth * x, 0.0,
            )  # fmt: skip
            if term < best:
                best, toll[k], lump[k] = term, t, worth
