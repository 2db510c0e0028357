"""Exact selection at a given bandwidth and deadline: most gate weight under device caps (fact 9).

With one price per token and device, a deadline T lets device k take cap_k tokens. Each device would
keep its cap_k heaviest pairs; where that leaves a token without any expert, it is put back along the
cheapest chain of evictions (successive shortest paths on the devices, a transportation problem solved
without a linear program).
"""

from __future__ import annotations

from math import floor, inf

import numpy as np

from wdmoe_opt.kernels.compiled import compiled


@compiled
def device_caps(deadline: float, fixed: np.ndarray, unit: np.ndarray, tokens: int, caps: np.ndarray) -> None:
    """Fill how many tokens each device can serve by the deadline; 0 where even none fits."""
    for k in range(unit.size):
        room = deadline * (1.0 + 1e-13) - fixed[k]
        if not room >= 0.0 or not unit[k] < inf:
            caps[k] = 0
        elif unit[k] <= 0.0:
            caps[k] = tokens
        else:
            caps[k] = min(floor(room / unit[k] * (1.0 + 1e-13)), tokens)


@compiled
def heaviest(
    share: np.ndarray, pairs: np.ndarray, ends: np.ndarray, caps: np.ndarray, keep: np.ndarray
) -> float:
    """Keep every device's cap_k heaviest pairs; return the kept share, the most any selection can have.

    ``pairs`` and ``ends`` as from `bottleneck.sort_pairs`, lightest first.
    """
    columns = share.shape[1]
    keep[:, :] = False
    total = 0.0
    for k in range(caps.size):
        first = max(ends[k], ends[k + 1] - caps[k])
        for r in range(first, ends[k + 1]):
            j, c = pairs[r] // columns, pairs[r] % columns
            keep[j, c] = True
            total += share[j, c]
    return total


@compiled
def cover_tokens(
    ids: np.ndarray,
    share: np.ndarray,
    allowed: np.ndarray,
    hosts: np.ndarray,
    caps: np.ndarray,
    keep: np.ndarray,
) -> float:
    """Give every token an expert at the least loss of kept share; return the loss, inf if impossible.

    Parameters
    ----------
    ids, share, allowed : arrays (tokens, m)
    hosts : int array (experts,)
    caps : int array (devices,)
    keep : bool array (tokens, m), updated
        From `heaviest`.
    """
    tokens, columns = ids.shape
    devices = caps.size
    count, used = np.zeros(tokens, dtype=np.int64), np.zeros(devices, dtype=np.int64)
    for j in range(tokens):
        for c in range(columns):
            if keep[j, c]:
                count[j] += 1
                used[hosts[ids[j, c]]] += 1
    lost = 0.0
    # Of each device: cheapest end of a chain (spare room, or a pair whose token can spare it).
    end_cost, end_pair = np.empty(devices), np.empty(devices, dtype=np.int64)
    # Of each pair of devices: cheapest token to push on, and where it goes.
    push_cost = np.empty((devices, devices))
    push_from, push_to = (
        np.empty((devices, devices), dtype=np.int64),
        np.empty((devices, devices), dtype=np.int64),
    )
    cost, after = np.empty(devices), np.empty(devices, dtype=np.int64)
    for start in range(tokens):
        if count[start] > 0:
            continue
        end_pair[:] = -1
        push_cost[:, :] = inf
        for k in range(devices):
            end_cost[k] = 0.0 if used[k] < caps[k] else inf
        for j in range(tokens):
            for c in range(columns):
                if not keep[j, c]:
                    continue
                k = hosts[ids[j, c]]
                if used[k] < caps[k]:
                    continue
                if count[j] > 1:
                    if share[j, c] < end_cost[k]:
                        end_cost[k], end_pair[k] = share[j, c], j * columns + c
                    continue
                for a in range(columns):
                    if allowed[j, a] and not keep[j, a] and hosts[ids[j, a]] != k:
                        q = hosts[ids[j, a]]
                        if share[j, c] - share[j, a] < push_cost[k, q]:
                            push_cost[k, q] = share[j, c] - share[j, a]
                            push_from[k, q], push_to[k, q] = j * columns + c, a
        for k in range(devices):
            cost[k], after[k] = end_cost[k], -1
        for _ in range(devices):  # Bellman-Ford: costs may be negative, cycles are not
            changed = False
            for k in range(devices):
                for q in range(devices):
                    if caps[q] > 0 and push_cost[k, q] + cost[q] < cost[k] - 1e-15:
                        cost[k] = push_cost[k, q] + cost[q]
                        after[k] = q
                        changed = True
            if not changed:
                break
        best, entry = inf, -1
        for c in range(columns):
            if allowed[start, c] and caps[hosts[ids[start, c]]] > 0:
                price = cost[hosts[ids[start, c]]] - share[start, c]
                if price < best:
                    best, entry = price, c
        if entry < 0 or not best < inf:
            return inf
        lost += best
        k = hosts[ids[start, entry]]
        keep[start, entry] = True
        count[start] = 1
        steps = 0
        while after[k] >= 0 and steps <= devices:
            q = after[k]
            j, c = push_from[k, q] // columns, push_from[k, q] % columns
            keep[j, c] = False
            keep[j, push_to[k, q]] = True
            k = q
            steps += 1
        if end_pair[k] >= 0 and used[k] >= caps[k]:
            j, c = end_pair[k] // columns, end_pair[k] % columns
            keep[j, c] = False
            count[j] -= 1
        else:
            used[k] += 1
    return lost


@compiled
def least_deadline(
    ids: np.ndarray,
    share: np.ndarray,
    allowed: np.ndarray,
    hosts: np.ndarray,
    fixed: np.ndarray,
    unit: np.ndarray,
    pairs: np.ndarray,
    ends: np.ndarray,
    needed: float,
    known: float,
    keep: np.ndarray,
) -> bool:
    """Least deadline whose best selection keeps ``needed`` share in all, below a ``known`` one.

    Parameters
    ----------
    fixed, unit : float arrays (devices,), s
        Time of an empty device (0 for all here) and per token.
    keep : bool array (tokens, m), filled
        The selection, if one is found.

    Returns
    -------
    bool
        Whether a deadline below ``known`` was found; if not, ``known`` is the optimum.
    """
    tokens = ids.shape[0]
    caps = np.empty(unit.size, dtype=np.int64)
    trial = np.empty(keep.shape, dtype=np.bool_)
    found = False
    low, high = 0.0, known
    below = _breakpoint_below(high, fixed, unit, tokens)
    # The next breakpoint first: mostly even the bound without coverage rules it out.
    middle = below
    while below > low:
        device_caps(middle, fixed, unit, tokens, caps)
        total = heaviest(share, pairs, ends, caps, trial)
        if total >= needed:
            total -= cover_tokens(ids, share, allowed, hosts, caps, trial)
        if total >= needed:
            high = middle
            found = True
            keep[:, :] = trial
            below = _breakpoint_below(high, fixed, unit, tokens)
        else:
            low = middle
        middle = min(0.5 * (low + high), below)
    return found


@compiled
def _breakpoint_below(deadline: float, fixed: np.ndarray, unit: np.ndarray, tokens: int) -> float:
    """Largest finishing time of any device and load that is below ``deadline``; -inf if there is none."""
    best = -inf
    for k in range(unit.size):
        if not (0.0 < unit[k] < inf):
            continue
        n = min(floor((deadline * (1.0 - 1e-12) - fixed[k]) / unit[k]), float(tokens))
        while n >= 1.0 and fixed[k] + n * unit[k] >= deadline * (1.0 - 1e-12):
            n -= 1.0
        if n >= 1.0:
            best = max(best, fixed[k] + n * unit[k])
    return best
