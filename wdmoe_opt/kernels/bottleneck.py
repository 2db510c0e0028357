"""Selection at a given bandwidth: the slowest device sheds its lightest work (fact 9).

At a fixed bandwidth a deadline T lets device k serve so many tokens, and keeping most gate weight
means that every device keeps its heaviest. Lowering T therefore always takes the lightest pair off the
device that is slowest now: one pass along this path visits the latency-retention frontier of a block
in order, without a linear program. Where experts share a device and cost activation, emptying the
expert with the least weight per second competes with the lightest pair.
"""

from __future__ import annotations

from math import inf

import numpy as np

from wdmoe_opt.kernels.compiled import compiled
from wdmoe_opt.kernels.moves import FLOOR_SLACK, apply_move


@compiled
def sort_pairs(
    ids: np.ndarray, share: np.ndarray, keep: np.ndarray, hosts: np.ndarray, devices: int
) -> tuple[np.ndarray, np.ndarray]:
    """Kept (token, column) pairs of one block by device, lightest first.

    Returns
    -------
    pairs : int array (pairs,)
        token * m + column.
    ends : int array (devices + 1,)
        Device k owns pairs[ends[k]:ends[k + 1]].
    """
    tokens, columns = ids.shape
    ends = np.zeros(devices + 1, dtype=np.int64)
    for j in range(tokens):
        for c in range(columns):
            if keep[j, c]:
                ends[hosts[ids[j, c]] + 1] += 1
    for k in range(devices):
        ends[k + 1] += ends[k]
    place = ends[:-1].copy()
    pairs = np.empty(ends[devices], dtype=np.int64)
    values = np.empty(ends[devices])
    for j in range(tokens):
        for c in range(columns):
            if keep[j, c]:
                k = hosts[ids[j, c]]
                pairs[place[k]] = j * columns + c
                values[place[k]] = share[j, c]
                place[k] += 1
    out = np.empty_like(pairs)
    for k in range(devices):
        order = np.argsort(values[ends[k] : ends[k + 1]], kind="mergesort")
        for r in range(order.size):
            out[ends[k] + r] = pairs[ends[k] + order[r]]
    return out, ends


@compiled
def shed_bottleneck(
    ids: np.ndarray,
    share: np.ndarray,
    keep: np.ndarray,
    count: np.ndarray,
    kept: np.ndarray,
    hosts: np.ndarray,
    compute: np.ndarray,
    activation: np.ndarray,
    link_delay: np.ndarray,
    link_time: np.ndarray,
    load: np.ndarray,
    sent: np.ndarray,
    by_device: bool,
    token_floor: float,
    budget: float,
    pairs: np.ndarray,
    ends: np.ndarray,
    place: np.ndarray,
) -> float:
    """Take work off the slowest device of one block until ``budget`` or the device is exhausted.

    Parameters
    ----------
    ids, share, keep : arrays (tokens, m)
    count, kept : arrays (tokens,)
    link_time, sent : float arrays (devices,)
    load : int array (experts,)
    budget : float
        Retention (sum over tokens) that may be spent.
    pairs, ends : arrays
        From `sort_pairs`.
    place : int array (devices,), updated
        Next pair of each device to look at.

    Returns
    -------
    float
        Retention spent.
    """
    columns = ids.shape[1]
    devices, experts = sent.size, hosts.size
    weight, stuck = np.zeros(experts), np.zeros(experts, dtype=np.int64)
    time, active = np.zeros(devices), np.zeros(devices, dtype=np.int64)
    costly = False
    for e in range(experts):
        if load[e] > 0:
            k = hosts[e]
            active[k] += 1
            time[k] += activation[e] + compute[e] * load[e]
            costly = costly or activation[e] > 0.0
    for k in range(devices):
        if sent[k] > 0.0:
            time[k] += link_delay[k] + sent[k] * link_time[k]
            costly = costly or link_delay[k] > 0.0
    if costly:
        for j in range(ids.shape[0]):
            for c in range(columns):
                if keep[j, c]:
                    e = ids[j, c]
                    weight[e] += share[j, c]
                    stuck[e] += count[j] == 1 or kept[j] - share[j, c] < token_floor - FLOOR_SLACK
    spent = 0.0
    while True:
        k = 0
        for q in range(1, devices):
            if time[q] > time[k]:
                k = q
        if time[k] <= 0.0:
            return spent
        pair = _next_droppable(keep, share, count, kept, token_floor, pairs, ends, place, k, columns)
        lightest = inf
        if pair >= 0:
            e = ids[pair // columns, pair % columns]
            lightest = share[pair // columns, pair % columns] / max(compute[e] + link_time[k], 1e-300)
        emptied = -1
        if costly:
            for e in range(experts):
                if hosts[e] != k or load[e] == 0 or stuck[e] > 0 or weight[e] > budget - spent:
                    continue
                seconds = activation[e] + load[e] * (compute[e] + link_time[k])
                if active[k] == 1:
                    seconds += link_delay[k]
                if weight[e] / seconds < lightest:
                    lightest, emptied = weight[e] / seconds, e
        if emptied < 0 and (pair < 0 or share[pair // columns, pair % columns] > budget - spent):
            return spent
        if emptied < 0:
            j, c = pair // columns, pair % columns
            spent += _shed(
                ids, share, keep, count, kept, hosts, compute, activation, link_delay, link_time, load, sent,
                by_device, token_floor, costly, weight, stuck, time, active, j, c,
            )  # fmt: skip
            continue
        for r in range(ends[k], ends[k + 1]):
            j, c = pairs[r] // columns, pairs[r] % columns
            # A token can lose two experts only if its floor still holds after the first.
            if keep[j, c] and ids[j, c] == emptied and stuck[emptied] == 0:
                spent += _shed(
                    ids, share, keep, count, kept, hosts, compute, activation, link_delay, link_time, load,
                    sent, by_device, token_floor, costly, weight, stuck, time, active, j, c,
                )  # fmt: skip


@compiled
def _next_droppable(
    keep: np.ndarray,
    share: np.ndarray,
    count: np.ndarray,
    kept: np.ndarray,
    token_floor: float,
    pairs: np.ndarray,
    ends: np.ndarray,
    place: np.ndarray,
    k: int,
    columns: int,
) -> int:
    """Lightest pair of device k that its token can spare, or -1; what cannot go now never can."""
    while ends[k] + place[k] < ends[k + 1]:
        pair = pairs[ends[k] + place[k]]
        j, c = pair // columns, pair % columns
        if keep[j, c] and count[j] > 1 and kept[j] - share[j, c] >= token_floor - FLOOR_SLACK:
            return int(pair)
        place[k] += 1
    return -1


@compiled
def _shed(
    ids: np.ndarray,
    share: np.ndarray,
    keep: np.ndarray,
    count: np.ndarray,
    kept: np.ndarray,
    hosts: np.ndarray,
    compute: np.ndarray,
    activation: np.ndarray,
    link_delay: np.ndarray,
    link_time: np.ndarray,
    load: np.ndarray,
    sent: np.ndarray,
    by_device: bool,
    token_floor: float,
    costly: bool,
    weight: np.ndarray,
    stuck: np.ndarray,
    time: np.ndarray,
    active: np.ndarray,
    j: int,
    c: int,
) -> float:
    """Drop one pair and keep times, weights and stuck counts current; return the share lost."""
    e = ids[j, c]
    k = hosts[e]
    if costly:
        for q in range(ids.shape[1]):
            if keep[j, q]:
                stuck[ids[j, q]] -= count[j] == 1 or kept[j] - share[j, q] < token_floor - FLOOR_SLACK
        weight[e] -= share[j, c]
    before = sent[k]
    apply_move(ids, share, keep, count, kept, hosts, load, sent, by_device, j, c, -1)
    time[k] -= compute[e] + (before - sent[k]) * link_time[k]
    if load[e] == 0:
        time[k] -= activation[e]
        active[k] -= 1
        if active[k] == 0:
            time[k] = 0.0
    if costly:
        for q in range(ids.shape[1]):
            if keep[j, q]:
                stuck[ids[j, q]] += count[j] == 1 or kept[j] - share[j, q] < token_floor - FLOOR_SLACK
    return float(share[j, c])
