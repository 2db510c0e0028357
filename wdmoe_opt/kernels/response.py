"""What the tokens of a block do at given prices, smoothed: loads, retention and their slopes.

A token keeps a candidate if its gate weight, priced at mu, is worth more than its work, priced at p
(fact 7). That step function is spread over a band of prices around equality, so that loads become
piecewise linear in the prices and Newton's method applies to them. A token that wants nobody raises its
own bid phi until it keeps one expert (or its own floor). An expert that costs activation is switched on
in proportion to how far its tokens' surplus covers the price of that time.

The smoothing only guides the search for prices: bounds come from `token_bound`, which smooths nothing.
"""

from __future__ import annotations

from math import inf
from typing import NamedTuple

import numpy as np

from wdmoe_opt.kernels.compiled import compiled
from wdmoe_opt.kernels.token_floor import needed_pairs

#: Surplus of a candidate that a token's floor leaves no choice about, in widths of the smoothing.
ANYHOW = 1e9


class Items(NamedTuple):
    """What tokens can take: candidates, or with dispatch "device" all candidates on one device together.

    Attributes
    ----------
    ids : int32 array (blocks, tokens, m)
        Switch of the item: the expert, or with dispatch "device" the device; -1 where there is none.
    share : float array (blocks, tokens, m)
        Retention that the item adds.
    work : float array (blocks, tokens, m), s
        Compute time of the item.
    hosts : int32 array (switches,)
        Device of a switch.
    activation : float array (blocks, switches), s
        Paid once per block by a switch that is on.
    alike : bool
        Whether all items of a device take equal compute time.
    """

    ids: np.ndarray
    share: np.ndarray
    work: np.ndarray
    hosts: np.ndarray
    activation: np.ndarray
    alike: bool


@compiled
def raise_bid(surplus: np.ndarray, gain: np.ndarray, band: np.ndarray, need: float) -> float:
    """Least bid phi >= 0 at which sum of gain * clip(1/2 + (surplus + gain phi) / (2 band)) is ``need``.

    Entries with ``band`` 0 do not count; inf if even everything is too little.
    """
    phi = 0.0
    for _ in range(4 * surplus.size + 4):
        total = 0.0
        slope = 0.0
        edge = inf  # next bid at which the slope changes
        for c in range(surplus.size):
            g = gain[c]
            if band[c] <= 0.0 or g <= 0.0:
                continue
            a = surplus[c] + gain[c] * phi
            if a >= band[c]:
                total += g
            elif a > -band[c]:
                total += g * (0.5 + 0.5 * a / band[c])
                slope += g * gain[c] * 0.5 / band[c]
                edge = min(edge, (band[c] - surplus[c]) / gain[c])
            else:
                edge = min(edge, (-band[c] - surplus[c]) / gain[c])
        if total >= need * (1.0 - 1e-12):
            return phi
        if slope > 0.0 and phi + (need - total) / slope <= edge:
            return phi + (need - total) / slope
        if edge == inf:
            return inf
        # Past the edge by more than rounding, so that the piece behind it is seen next.
        phi = edge * (1.0 + 1e-12) + 1e-300
    return phi


@compiled
def respond(
    items: Items,
    i: int,
    price: np.ndarray,
    mu: float,
    seconds: np.ndarray,
    mean_work: np.ndarray,
    width: float,
    floor: float,
    on: np.ndarray,
    bids: np.ndarray,
    load: np.ndarray,
    active: np.ndarray,
    slopes: np.ndarray,
) -> float:
    """Loads and retention of block ``i`` at prices ``price`` per transfer and ``mu`` per retention.

    Parameters
    ----------
    seconds, mean_work : float arrays (devices,), s
        Time of a transfer at the present bandwidth with mean work, and that work.
    width : float
        Half width of the smoothing band, relative to the prices.
    floor : float
        Retention every token must keep.
    on : float array (switches,), updated
        How far each switch is on, 0 to 1.
    bids : float array (tokens,), filled
        What a token pays beyond mu for each item that it needs for its floor.
    load : float array (devices,), filled
        Transfers in units of the mean one.
    active : float array (devices,), filled, s
        Activation time paid.
    slopes : float array (devices + 1, devices + 1), filled
        d load / d (-price) and, in the last row and column, d load / d mu, d retention / d mu.

    Returns
    -------
    float
        Retention, summed over tokens.
    """
    tokens, columns = items.ids.shape[1:]
    devices, switches = price.size, items.hosts.size
    last = devices
    load[:] = 0.0
    active[:] = 0.0
    slopes[:, :] = 0.0
    value, used, kept = np.zeros(switches), np.zeros(switches), np.zeros(switches)
    use_slope, mix_slope, keep_slope = np.zeros(switches), np.zeros(switches), np.zeros(switches)
    surplus, band, gain = np.empty(columns), np.empty(columns), np.empty(columns)
    unit, taken = np.empty(columns), np.empty(columns)
    must = np.zeros(columns, dtype=np.bool_)
    for j in range(tokens):
        wanted = 0.0
        must[:] = False
        need = 1.0
        if floor > 0.0:
            need = float(needed_pairs(items.ids[i, j], items.share[i, j], floor, must))
        for c in range(columns):
            e = items.ids[i, j, c]
            taken[c] = 0.0
            band[c] = 0.0
            if e < 0:
                continue
            k = items.hosts[e]
            unit[c] = 1.0
            if not items.alike:
                unit[c] += (items.work[i, j, c] - mean_work[k]) / seconds[k]
            band[c] = width * price[k] * unit[c]
            surplus[c] = mu * items.share[i, j, c] - price[k] * unit[c]
            gain[c] = 1.0
            if must[c]:
                surplus[c], gain[c] = ANYHOW * band[c], 0.0
            taken[c] = min(max(0.5 + 0.5 * surplus[c] / band[c], 0.0), 1.0)
            wanted += gain[c] * taken[c]
        bids[j] = 0.0
        forced = wanted < need
        if forced:
            bids[j] = _raised(surplus, gain, band, need)
            _forced_slopes(items, i, j, surplus, gain, band, unit, bids[j], taken, slopes)
        for c in range(columns):
            e = items.ids[i, j, c]
            if e < 0 or taken[c] <= 0.0:
                continue
            s = items.share[i, j, c]
            used[e] += unit[c] * taken[c]
            kept[e] += s * taken[c]
            a = surplus[c] + gain[c] * bids[j]
            value[e] += a if taken[c] >= 1.0 else (a + band[c]) * (a + band[c]) * 0.25 / band[c]
            if not forced and taken[c] < 1.0:
                d = 0.5 / band[c]
                use_slope[e] += d * unit[c] * unit[c]
                mix_slope[e] += d * unit[c] * s
                keep_slope[e] += d * s * s
    retention = 0.0
    for e in range(switches):
        k = items.hosts[e]
        if not seconds[k] < inf:
            continue  # out of reach: nobody wants it, and being on would cost nothing
        a = items.activation[i, e]
        part_on = 1.0
        if a > 0.0:
            cost = price[k] / seconds[k] * a
            spread = max(width, 0.05) * cost
            part_on = min(max(0.5 + 0.5 * (value[e] - cost) / spread, 0.0), 1.0)
            active[k] += part_on * a
            if 0.0 < part_on < 1.0:
                d = 0.5 / spread
                weight = used[e] + a / seconds[k]
                slopes[k, k] += d * weight * weight
                slopes[k, last] += d * weight * kept[e]
                slopes[last, last] += d * kept[e] * kept[e]
            on[e] = part_on
        load[k] += part_on * used[e]
        retention += part_on * kept[e]
        slopes[k, k] += part_on * use_slope[e]
        slopes[k, last] += part_on * mix_slope[e]
        slopes[last, last] += part_on * keep_slope[e]
    for k in range(devices):
        slopes[last, k] = slopes[k, last]
    return retention


@compiled
def _raised(surplus: np.ndarray, gain: np.ndarray, band: np.ndarray, need: float) -> float:
    """`raise_bid`, or a bid for everything where even that is too little."""
    phi = raise_bid(surplus, gain, band, need)
    if phi < inf:
        return phi
    phi = 0.0
    for c in range(surplus.size):
        if band[c] > 0.0 and gain[c] > 0.0:
            phi = max(phi, (band[c] - surplus[c]) / gain[c])
    return phi


@compiled
def _forced_slopes(
    items: Items,
    i: int,
    j: int,
    surplus: np.ndarray,
    gain: np.ndarray,
    band: np.ndarray,
    unit: np.ndarray,
    bid: float,
    taken: np.ndarray,
    slopes: np.ndarray,
) -> None:
    """What a token takes at its bid, and its slopes: what it takes is fixed in sum, so items trade places."""
    last = slopes.shape[0] - 1
    total = 0.0
    for c in range(taken.size):
        if band[c] <= 0.0:
            continue
        a = 0.5 + 0.5 * (surplus[c] + gain[c] * bid) / band[c]
        taken[c] = min(max(a, 0.0), 1.0)
        if 0.0 < a < 1.0:
            total += gain[c] * gain[c] * 0.5 / band[c]
    if total <= 0.0:
        return
    for c in range(taken.size):
        if band[c] <= 0.0 or not 0.0 < taken[c] < 1.0:
            continue
        k = items.hosts[items.ids[i, j, c]]
        d = 0.5 / band[c]
        s = items.share[i, j, c]
        for q in range(taken.size):
            if band[q] <= 0.0 or not 0.0 < taken[q] < 1.0:
                continue
            other = items.hosts[items.ids[i, j, q]]
            slope = (d if c == q else 0.0) - d * gain[c] * gain[q] * 0.5 / band[q] / total
            slopes[k, other] += slope * unit[c] * unit[q]
            slopes[k, last] += slope * unit[c] * items.share[i, j, q]
            slopes[last, last] += slope * s * items.share[i, j, q]
