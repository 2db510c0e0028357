"""From prices to a selection: what is clearly worth its price, then the best value until the floor holds."""

from __future__ import annotations

from math import inf

import numpy as np

from wdmoe_opt.kernels.block_bandwidth import block_bandwidth, block_multipliers
from wdmoe_opt.kernels.compiled import compiled
from wdmoe_opt.kernels.link import link_time as time_on_air

#: Pairs whose value is this close to their price, relatively, are sorted; the others are clear.
DOUBT = 0.15


@compiled
def round_block(
    ids: np.ndarray,
    share: np.ndarray,
    price: np.ndarray,
    is_open: np.ndarray,
    mu: float,
    needed: float,
    floor: float,
    cap: int,
    keep: np.ndarray,
) -> float:
    """Choose experts of one block so that at least ``needed`` retention is kept, dear pairs last.

    Parameters
    ----------
    ids : int array (tokens, m)
        Experts; -1 where there is no usable candidate.
    share : float array (tokens, m)
    price : float array (experts,)
        Of a (token, expert) pair.
    is_open : bool array (experts,)
        Experts to use; others only where a token or the floor has no choice.
    mu : float
        Price of retention.
    needed : float
        Retention, summed over tokens.
    floor : float
        Retention every token must keep.
    cap : int
        Most experts of a token.
    keep : bool array (tokens, m), filled

    Returns
    -------
    float
        Retention kept; below ``needed`` if that is out of reach.
    """
    tokens, columns = ids.shape
    keep[:, :] = False
    count = np.zeros(tokens, dtype=np.int64)
    kept = np.zeros(tokens)
    doubtful = np.empty(tokens * columns, dtype=np.int64)
    ratio = np.empty(tokens * columns)
    number = 0
    total = 0.0
    for j in range(tokens):
        for c in range(columns):
            e = ids[j, c]
            if e < 0 or not is_open[e]:
                continue
            worth = mu * share[j, c]
            if worth >= price[e] * (1.0 + DOUBT) and count[j] < cap:
                keep[j, c] = True
                count[j] += 1
                kept[j] += share[j, c]
            elif worth > price[e] * (1.0 - DOUBT):
                doubtful[number] = j * columns + c
                ratio[number] = worth / price[e]
                number += 1
        while count[j] == 0 or kept[j] < floor:
            if not _add_best(ids, share, price, is_open, mu, cap, j, floor, keep, count, kept):
                break
        total += kept[j]
    order = np.argsort(-ratio[:number], kind="mergesort")
    last = -1
    for r in range(number):
        if total >= needed:
            break
        pair = doubtful[order[r]]
        j, c = pair // columns, pair % columns
        if not keep[j, c] and count[j] < cap:
            keep[j, c] = True
            count[j] += 1
            kept[j] += share[j, c]
            total += share[j, c]
            last = r
    if total < needed:
        total = _fill(ids, share, price, is_open, mu, needed, cap, keep, count, kept, total)
        last = number - 1
    # What overshoots the floor pays for dropping the worst of the doubtful.
    for r in range(last, -1, -1):
        pair = doubtful[order[r]]
        j, c = pair // columns, pair % columns
        s = share[j, c]
        if keep[j, c] and count[j] > 1 and total - s >= needed and kept[j] - s >= floor:
            keep[j, c] = False
            count[j] -= 1
            kept[j] -= s
            total -= s
    return total


@compiled
def _add_best(
    ids: np.ndarray,
    share: np.ndarray,
    price: np.ndarray,
    is_open: np.ndarray,
    mu: float,
    cap: int,
    j: int,
    floor: float,
    keep: np.ndarray,
    count: np.ndarray,
    kept: np.ndarray,
) -> bool:
    """Give token j one more expert: the cheapest, or towards its floor the one of best value."""
    best, chosen, chosen_open = inf, -1, False
    for c in range(ids.shape[1]):
        e = ids[j, c]
        if e < 0 or keep[j, c]:
            continue
        if kept[j] < floor:
            cost = price[e] / share[j, c] if share[j, c] > 0.0 else inf
        else:
            cost = price[e] - mu * share[j, c]
        better = cost < best if is_open[e] == chosen_open else is_open[e]
        if better or chosen < 0:
            best, chosen, chosen_open = cost, c, is_open[e]
    if chosen < 0 or count[j] >= cap:
        return False
    keep[j, chosen] = True
    count[j] += 1
    kept[j] += share[j, chosen]
    return True


@compiled
def _fill(
    ids: np.ndarray,
    share: np.ndarray,
    price: np.ndarray,
    is_open: np.ndarray,
    mu: float,
    needed: float,
    cap: int,
    keep: np.ndarray,
    count: np.ndarray,
    kept: np.ndarray,
    total: float,
) -> float:
    """Add pairs by value, those of open experts first, until the floor holds; return the retention."""
    tokens, columns = ids.shape
    pairs = np.empty(tokens * columns, dtype=np.int64)
    ratio = np.empty(tokens * columns)
    for stage in range(2):
        number = 0
        for j in range(tokens):
            for c in range(columns):
                e = ids[j, c]
                if e >= 0 and not keep[j, c] and is_open[e] == (stage == 0) and share[j, c] > 0.0:
                    pairs[number] = j * columns + c
                    ratio[number] = share[j, c] / max(price[e], 1e-300)
                    number += 1
        order = np.argsort(-ratio[:number], kind="mergesort")
        for r in range(number):
            if total >= needed:
                return total
            j, c = pairs[order[r]] // columns, pairs[order[r]] % columns
            if count[j] < cap:
                keep[j, c] = True
                count[j] += 1
                kept[j] += share[j, c]
                total += share[j, c]
    return total


@compiled
def exchange(
    ids: np.ndarray,
    share: np.ndarray,
    hosts: np.ndarray,
    compute: np.ndarray,
    activation: np.ndarray,
    delay: np.ndarray,
    is_open: np.ndarray,
    slack: float,
    floor: float,
    cap: int,
    bits_down: float,
    c_down: np.ndarray,
    bits_up: float,
    c_up: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    total: float,
    rounds: int,
    stop: float,
    keep: np.ndarray,
    load: np.ndarray,
    sent: np.ndarray,
    busy: np.ndarray,
    out: np.ndarray,
) -> float:
    """Trade a pair of a dear device for one of a cheap device while that makes the block faster.

    The best trade at the present multipliers drops the lightest pair of one device for the heaviest
    free pair of another, as far as ``slack`` retention allows; it stays if the exact latency falls.

    Parameters
    ----------
    rounds : int
        Trades to try.
    stop : float, s
        Latency at which to stop.
    keep, load, sent, busy, out : arrays, updated
        Selection (tokens, m), its tokens per expert, transfers, bandwidth-free seconds, and the bandwidth.

    Returns
    -------
    float
        Latency, s.
    """
    devices = sent.size
    tokens, columns = ids.shape
    latency, _ = block_bandwidth(sent, busy, bits_down, c_down, bits_up, c_up, low, high, total, out)
    count, kept = np.zeros(tokens, dtype=np.int64), np.zeros(tokens)
    for j in range(tokens):
        for c in range(columns):
            if keep[j, c]:
                count[j] += 1
                kept[j] += share[j, c]
    barred = np.zeros((tokens, columns), dtype=np.bool_)
    link_time, times, lam = np.empty(devices), np.empty(devices), np.empty(devices)
    lightest, heaviest = np.empty(devices, dtype=np.int64), np.empty(devices, dtype=np.int64)
    trial = np.empty(devices)
    fresh = True
    for _ in range(rounds):
        if latency <= stop:
            break
        if fresh:
            for k in range(devices):
                link_time[k] = inf
                times[k] = busy[k]
                if sent[k] > 0.0:
                    link_time[k] = time_on_air(out[k], bits_down, c_down[k], bits_up, c_up[k])
                    times[k] += sent[k] * link_time[k]
            block_multipliers(sent, times, bits_down, c_down, bits_up, c_up, low, high, out, lam)
        _best_of_each(ids, share, hosts, is_open, floor, cap, keep, count, kept, barred, lightest, heaviest)
        gain, source, sink = _best_trade(
            ids, share, hosts, compute, activation, load, lam, link_time, slack, lightest, heaviest
        )
        if gain <= 0.0:
            break
        a, b = lightest[source], heaviest[sink] if sink >= 0 else -1
        _shift(ids, share, hosts, compute, activation, delay, keep, count, kept, load, sent, busy, a, b)
        found, _ = block_bandwidth(sent, busy, bits_down, c_down, bits_up, c_up, low, high, total, trial)
        fresh = found < latency
        if fresh:
            latency = found
            out[:] = trial
            slack -= share[a // columns, a % columns]
            if b >= 0:
                slack += share[b // columns, b % columns]
        else:
            _shift(ids, share, hosts, compute, activation, delay, keep, count, kept, load, sent, busy, b, a)
            barred[a // columns, a % columns] = True
            if b >= 0:
                barred[b // columns, b % columns] = True
    return latency


@compiled
def _best_of_each(
    ids: np.ndarray,
    share: np.ndarray,
    hosts: np.ndarray,
    is_open: np.ndarray,
    floor: float,
    cap: int,
    keep: np.ndarray,
    count: np.ndarray,
    kept: np.ndarray,
    barred: np.ndarray,
    lightest: np.ndarray,
    heaviest: np.ndarray,
) -> None:
    """Per device the lightest pair that can go and the heaviest that can come; -1 where there is none."""
    columns = ids.shape[1]
    low, high = np.full(lightest.size, inf), np.full(lightest.size, -inf)
    lightest[:] = -1
    heaviest[:] = -1
    for j in range(ids.shape[0]):
        for c in range(columns):
            e = ids[j, c]
            if e < 0 or barred[j, c]:
                continue
            k, s = hosts[e], share[j, c]
            if keep[j, c]:
                if s < low[k] and count[j] > 1 and kept[j] - s >= floor:
                    low[k], lightest[k] = s, j * columns + c
            elif s > high[k] and is_open[e] and count[j] < cap:
                high[k], heaviest[k] = s, j * columns + c


@compiled
def _best_trade(
    ids: np.ndarray,
    share: np.ndarray,
    hosts: np.ndarray,
    compute: np.ndarray,
    activation: np.ndarray,
    load: np.ndarray,
    lam: np.ndarray,
    link_time: np.ndarray,
    slack: float,
    lightest: np.ndarray,
    heaviest: np.ndarray,
) -> tuple[float, int, int]:
    """Largest gain at the multipliers, the device that gives and the one that takes (-1 for none)."""
    columns = ids.shape[1]
    best, source, sink = 0.0, -1, -1
    for k in range(lam.size):
        a = lightest[k]
        if a < 0:
            continue
        j, c = a // columns, a % columns
        e = ids[j, c]
        freed = lam[k] * (link_time[k] + compute[e] + (activation[e] if load[e] == 1 else 0.0))
        if share[j, c] <= slack and freed > best:
            best, source, sink = freed, k, -1
        for q in range(lam.size):
            b = heaviest[q]
            if b < 0 or q == k or not link_time[q] < inf:
                continue
            r, d = b // columns, b % columns
            e = ids[r, d]
            gain = freed - lam[q] * (link_time[q] + compute[e] + (activation[e] if load[e] == 0 else 0.0))
            if gain > best and share[j, c] - share[r, d] <= slack:
                best, source, sink = gain, k, q
    return best, source, sink


@compiled
def _shift(
    ids: np.ndarray,
    share: np.ndarray,
    hosts: np.ndarray,
    compute: np.ndarray,
    activation: np.ndarray,
    delay: np.ndarray,
    keep: np.ndarray,
    count: np.ndarray,
    kept: np.ndarray,
    load: np.ndarray,
    sent: np.ndarray,
    busy: np.ndarray,
    drop: int,
    add: int,
) -> None:
    """Drop one pair and add another (-1 for none), one transfer per pair."""
    columns = ids.shape[1]
    for n in range(2):
        pair = add if n else drop
        if pair < 0:
            continue
        sign = 1 if n else -1
        j, c = pair // columns, pair % columns
        e = ids[j, c]
        keep[j, c] = n == 1
        count[j] += sign
        kept[j] += sign * share[j, c]
        k = hosts[e]
        # A first token wakes its expert, and its device; the last one lets them sleep.
        if load[e] == (0 if n else 1):
            busy[k] += sign * activation[e]
        if sent[k] == (0 if n else 1):
            busy[k] += sign * delay[k]
        load[e] += sign
        sent[k] += sign
        busy[k] += sign * compute[e]
        if sent[k] == 0.0:
            busy[k] = 0.0
