"""Price-directed moves on one block's selection: drop, re-route, empty an expert.

Prices say what one more unit of work costs in latency: ``unit[e]`` s per token computed by expert e,
``send[k]`` s per transfer to device k, ``wake[e]`` s for having expert e active. They come from the
multipliers of the bandwidth problem (envelope theorem, fact 8). A move of token j loses ``loss`` of
its retention and gains ``gain`` of latency at these prices; the best moves lose least per gain.
"""

from __future__ import annotations

from math import exp, inf, log

import numpy as np

from wdmoe_opt.kernels.compiled import compiled
from wdmoe_opt.kernels.pricing import count_loads

#: Slack on retention floors inside searches, well below the feasibility tolerance.
FLOOR_SLACK = 1e-12
BUCKETS = 256
#: Largest part of the present value one batch may gain at the prices, before they are taken anew.
STRIDE = 0.1
#: What a move gains: latency at the prices, or one of two readings of the weight-to-latency ratio.
LATENCY, PER_TOKEN, PER_DEVICE = 0, 1, 2


@compiled
def _alone(ids: np.ndarray, keep: np.ndarray, hosts: np.ndarray, j: int, device: int, skip: int) -> bool:
    """Whether token j keeps no expert on ``device`` apart from column ``skip``."""
    found = 0
    for c in range(ids.shape[1]):
        found += keep[j, c] and c != skip and hosts[ids[j, c]] == device
    return found == 0


@compiled
def _work(
    ids: np.ndarray,
    keep: np.ndarray,
    hosts: np.ndarray,
    unit: np.ndarray,
    send: np.ndarray,
    by_device: bool,
    j: int,
    column: int,
    without: int,
) -> float:
    """Price of serving token j at ``column``, given its other experts apart from column ``without``."""
    e = ids[j, column]
    if by_device:
        for c in range(ids.shape[1]):
            if keep[j, c] and c != column and c != without and hosts[ids[j, c]] == hosts[e]:
                return float(unit[e])
    return float(unit[e] + send[hosts[e]])


@compiled
def best_token_moves(
    ids: np.ndarray,
    share: np.ndarray,
    allowed: np.ndarray,
    keep: np.ndarray,
    count: np.ndarray,
    kept: np.ndarray,
    frozen: np.ndarray,
    hosts: np.ndarray,
    load: np.ndarray,
    unit: np.ndarray,
    send: np.ndarray,
    wake: np.ndarray,
    by_device: bool,
    floor: float,
    budget: float,
    loss: np.ndarray,
    gain: np.ndarray,
    drop: np.ndarray,
    add: np.ndarray,
) -> None:
    """Fill every token's best drop or re-route within ``budget``; ``drop[j] = -1`` where none gains.

    Parameters
    ----------
    ids, share, allowed, keep : arrays (tokens, m)
        Experts, gate weight over top-k sum, selectable, selected.
    count, kept : arrays (tokens,)
        Experts kept and their shares' sum.
    frozen : bool array (tokens,)
        Tokens to leave alone.
    floor : float
        Least kept share per token.
    """
    columns = ids.shape[1]
    for j in range(ids.shape[0]):
        drop[j] = -1
        if frozen[j]:
            continue
        best = inf
        spare = min(kept[j] - floor + FLOOR_SLACK, budget)
        for c in range(columns):
            if not keep[j, c]:
                continue
            saved = _work(ids, keep, hosts, unit, send, by_device, j, c, -1)
            lost = share[j, c]
            if count[j] > 1 and lost <= spare and lost < best * saved:
                best = lost / saved
                loss[j], gain[j], drop[j], add[j] = lost, saved, c, -1
            for a in range(columns):
                if keep[j, a] or not allowed[j, a] or share[j, c] - share[j, a] > spare:
                    continue
                g = saved - _work(ids, keep, hosts, unit, send, by_device, j, a, c)
                if load[ids[j, a]] == 0:
                    g -= wake[ids[j, a]]
                lost = share[j, c] - share[j, a]
                if g > 0.0 and lost < best * g:
                    best = lost / g
                    loss[j], gain[j], drop[j], add[j] = lost, g, c, a


@compiled
def best_ratio_moves(
    per_device: bool,
    ids: np.ndarray,
    share: np.ndarray,
    mass: np.ndarray,
    allowed: np.ndarray,
    keep: np.ndarray,
    count: np.ndarray,
    kept: np.ndarray,
    frozen: np.ndarray,
    hosts: np.ndarray,
    compute: np.ndarray,
    link_time: np.ndarray,
    device_time: np.ndarray,
    kept_weight: np.ndarray,
    by_device: bool,
    floor: float,
    budget: float,
    loss: np.ndarray,
    gain: np.ndarray,
    drop: np.ndarray,
    add: np.ndarray,
) -> None:
    """Like `best_token_moves`, with gain in the weight-to-latency ratio.

    Per token the ratio is the mean over its experts of w / t; per device it is kept weight over time,
    of which a move changes one or two terms.
    """
    columns = ids.shape[1]
    for j in range(ids.shape[0]):
        drop[j] = -1
        if frozen[j]:
            continue
        best = inf
        spare = min(kept[j] - floor + FLOOR_SLACK, budget)
        ratios = 0.0
        if not per_device:
            for c in range(columns):
                if keep[j, c]:
                    ratios += share[j, c] * mass[j] / (link_time[hosts[ids[j, c]]] + compute[ids[j, c]])
        for c in range(columns):
            if not keep[j, c]:
                continue
            for a in range(-1, columns):
                if (a < 0 and count[j] < 2) or (a >= 0 and (keep[j, a] or not allowed[j, a])):
                    continue
                lost = share[j, c] - (share[j, a] if a >= 0 else 0.0)
                if lost > spare:
                    continue
                if per_device:
                    g = _device_ratio_gain(
                        ids, share, mass, keep, hosts, compute, link_time, device_time, kept_weight,
                        by_device, j, c, a,
                    )  # fmt: skip
                else:
                    g = _token_ratio_gain(ids, share, mass, count, hosts, compute, link_time, ratios, j, c, a)
                if g > 0.0 and lost < best * g:
                    best = lost / g
                    loss[j], gain[j], drop[j], add[j] = lost, g, c, a


@compiled
def _token_ratio_gain(
    ids: np.ndarray,
    share: np.ndarray,
    mass: np.ndarray,
    count: np.ndarray,
    hosts: np.ndarray,
    compute: np.ndarray,
    link_time: np.ndarray,
    ratios: float,
    j: int,
    c: int,
    a: int,
) -> float:
    """Change of token j's mean w / t when column c goes and column a (or none) comes."""
    left = ratios - share[j, c] * mass[j] / (link_time[hosts[ids[j, c]]] + compute[ids[j, c]])
    number = count[j] - 1
    if a >= 0:
        left += share[j, a] * mass[j] / (link_time[hosts[ids[j, a]]] + compute[ids[j, a]])
        number += 1
    return float(left / number - ratios / count[j])


@compiled
def _device_ratio_gain(
    ids: np.ndarray,
    share: np.ndarray,
    mass: np.ndarray,
    keep: np.ndarray,
    hosts: np.ndarray,
    compute: np.ndarray,
    link_time: np.ndarray,
    device_time: np.ndarray,
    kept_weight: np.ndarray,
    by_device: bool,
    j: int,
    c: int,
    a: int,
) -> float:
    """Change of the sum of kept weight / time over devices when column c goes and column a comes."""
    k = hosts[ids[j, c]]
    weight = kept_weight[k] - share[j, c] * mass[j]
    time = device_time[k] - _work(ids, keep, hosts, compute, link_time, by_device, j, c, -1)
    before = kept_weight[k] / device_time[k]
    after = 0.0
    if a >= 0:
        q = hosts[ids[j, a]]
        more = share[j, a] * mass[j]
        longer = _work(ids, keep, hosts, compute, link_time, by_device, j, a, c)
        if q == k:
            weight += more
            time += longer
        else:
            after += (kept_weight[q] + more) / (device_time[q] + longer)
            if device_time[q] > 0.0:
                before += kept_weight[q] / device_time[q]
    if weight > 1e-12 and time > 0.0:
        after += weight / time
    return float(after - before)


@compiled
def take_selection(
    ids: np.ndarray,
    share: np.ndarray,
    keep: np.ndarray,
    hosts: np.ndarray,
    by_device: bool,
    count: np.ndarray,
    kept: np.ndarray,
    load: np.ndarray,
    sent: np.ndarray,
) -> None:
    """Fill experts and share kept per token (blocks, tokens), and the loads, of a selection."""
    count_loads(ids, keep, hosts, by_device, load, sent)
    for i in range(ids.shape[0]):
        for j in range(ids.shape[1]):
            number = 0
            total = 0.0
            for c in range(ids.shape[2]):
                if keep[i, j, c]:
                    number += 1
                    total += share[i, j, c]
            count[i, j] = number
            kept[i, j] = total


@compiled
def weight_sums(
    ids: np.ndarray,
    share: np.ndarray,
    mass: np.ndarray,
    keep: np.ndarray,
    count: np.ndarray,
    hosts: np.ndarray,
    per_device: np.ndarray,
    mean_per_expert: np.ndarray,
) -> None:
    """Fill kept weight per device, and per expert the sum of weight / experts of each of its tokens."""
    for i in range(ids.shape[0]):
        per_device[i, :] = 0.0
        mean_per_expert[i, :] = 0.0
        for j in range(ids.shape[1]):
            for c in range(ids.shape[2]):
                if keep[i, j, c]:
                    e = ids[i, j, c]
                    w = share[i, j, c] * mass[i, j]
                    per_device[i, hosts[e]] += w
                    mean_per_expert[i, e] += w / count[i, j]


@compiled
def propose_adds(
    ids: np.ndarray,
    share: np.ndarray,
    allowed: np.ndarray,
    keep: np.ndarray,
    count: np.ndarray,
    kept: np.ndarray,
    hosts: np.ndarray,
    compute: np.ndarray,
    activation: np.ndarray,
    link_time: np.ndarray,
    multipliers: np.ndarray,
    load: np.ndarray,
    sent: np.ndarray,
    by_device: bool,
    cap: int,
    amount: float,
    moved: np.ndarray,
) -> int:
    """Give tokens back the experts that cost least latency per weight, up to ``amount`` per token on average.

    Parameters as in `propose_moves`; ``cap`` is the most experts a token may have.
    """
    blocks, tokens, columns = ids.shape
    unit, send = np.empty(hosts.size), np.empty(sent.shape[1])
    cost, won = np.empty(tokens), np.empty(tokens)
    add = np.empty(tokens, dtype=np.int64)
    total = 0
    for i in range(blocks):
        moved[i, :, :] = -2
        for k in range(send.size):
            send[k] = multipliers[i, k] * link_time[i, k] if multipliers[i, k] > 0.0 else 0.0
        for e in range(hosts.size):
            unit[e] = multipliers[i, hosts[e]] * compute[e]
        for j in range(tokens):
            add[j] = -1
            best = inf
            if count[i, j] >= cap:
                continue
            for a in range(columns):
                if keep[i, j, a] or not allowed[i, j, a] or share[i, j, a] <= 0.0:
                    continue
                price = _work(ids[i], keep[i], hosts, unit, send, by_device, j, a, -1)
                if load[i, ids[i, j, a]] == 0:
                    price += multipliers[i, hosts[ids[i, j, a]]] * activation[ids[i, j, a]]
                if price < best * share[i, j, a]:
                    best = price / share[i, j, a]
                    cost[j], won[j], add[j] = price, share[i, j, a], a
        threshold = ratio_threshold(cost, won, add, inf, amount * tokens)
        gained = 0.0
        for j in range(tokens):
            if add[j] >= 0 and gained < amount * tokens and cost[j] <= threshold * won[j]:
                apply_move(
                    ids[i], share[i], keep[i], count[i], kept[i], hosts, load[i], sent[i], by_device, j, -1,
                    add[j],
                )  # fmt: skip
                moved[i, j, 0], moved[i, j, 1] = -1, add[j]
                gained += won[j]
                total += 1
    return total


@compiled
def escape_column(
    ids: np.ndarray,
    share: np.ndarray,
    allowed: np.ndarray,
    keep: np.ndarray,
    count: np.ndarray,
    kept: np.ndarray,
    load: np.ndarray,
    floor: float,
    j: int,
    c: int,
) -> int:
    """How token j can leave column c: -1 by dropping it, else the column to trade it for, -2 not at all."""
    if count[j] > 1 and kept[j] - share[j, c] >= floor - FLOOR_SLACK:
        return -1
    best = -2
    for a in range(ids.shape[1]):
        if keep[j, a] or not allowed[j, a] or load[ids[j, a]] == 0:
            continue
        if kept[j] - share[j, c] + share[j, a] < floor - FLOOR_SLACK:
            continue
        if best < 0 or share[j, a] > share[j, best]:
            best = a
    return best


@compiled
def best_emptying(
    ids: np.ndarray,
    share: np.ndarray,
    allowed: np.ndarray,
    keep: np.ndarray,
    count: np.ndarray,
    kept: np.ndarray,
    hosts: np.ndarray,
    load: np.ndarray,
    unit: np.ndarray,
    send: np.ndarray,
    wake: np.ndarray,
    by_device: bool,
    floor: float,
    budget: float,
    banned: np.ndarray,
) -> tuple[int, float, float]:
    """Expert whose tokens can all leave at the least loss per gain: (expert or -1, loss, gain)."""
    experts = load.size
    if wake.max() <= 0.0:
        return -1, 0.0, 0.0
    lost = np.zeros(experts)
    won = np.zeros(experts)
    stuck = banned.copy()
    for j in range(ids.shape[0]):
        for c in range(ids.shape[1]):
            if not keep[j, c]:
                continue
            e = ids[j, c]
            if stuck[e]:
                continue
            a = escape_column(ids, share, allowed, keep, count, kept, load, floor, j, c)
            if a == -2:
                stuck[e] = True
                continue
            lost[e] += share[j, c]
            won[e] += _work(ids, keep, hosts, unit, send, by_device, j, c, -1)
            if a >= 0:
                lost[e] -= share[j, a]
                won[e] -= _work(ids, keep, hosts, unit, send, by_device, j, a, c)
            elif lost[e] > budget:
                stuck[e] = True  # only a re-route that gains weight could mend this; rare, and skipped
    best = -1
    for e in range(experts):
        gain = won[e] + wake[e]
        if (
            load[e] > 0
            and not stuck[e]
            and lost[e] <= budget
            and gain > 0.0
            and (best < 0 or lost[e] * (won[best] + wake[best]) < lost[best] * gain)
        ):
            best = e
    if best < 0:
        return -1, 0.0, 0.0
    return best, lost[best], won[best] + wake[best]


@compiled
def apply_move(
    ids: np.ndarray,
    share: np.ndarray,
    keep: np.ndarray,
    count: np.ndarray,
    kept: np.ndarray,
    hosts: np.ndarray,
    load: np.ndarray,
    sent: np.ndarray,
    by_device: bool,
    j: int,
    drop: int,
    add: int,
) -> None:
    """Take column ``drop`` from token j and give it ``add`` (either -1 for none); loads follow."""
    if drop >= 0:
        e = ids[j, drop]
        keep[j, drop] = False
        count[j] -= 1
        kept[j] -= share[j, drop]
        load[e] -= 1
        if not by_device or _alone(ids, keep, hosts, j, hosts[e], -1):
            sent[hosts[e]] -= 1.0
    if add >= 0:
        e = ids[j, add]
        if not by_device or _alone(ids, keep, hosts, j, hosts[e], -1):
            sent[hosts[e]] += 1.0
        keep[j, add] = True
        count[j] += 1
        kept[j] += share[j, add]
        load[e] += 1


@compiled
def ratio_threshold(
    loss: np.ndarray, gain: np.ndarray, drop: np.ndarray, loss_limit: float, gain_limit: float
) -> float:
    """Loss per gain up to which all moves together stay within both limits, to within one bucket.

    A histogram over the logarithm of the ratio: linear in the tokens where sorting is not.
    """
    least, most = inf, 0.0
    for j in range(loss.size):
        if drop[j] >= 0 and loss[j] > 0.0:
            ratio = loss[j] / gain[j]
            least = min(least, ratio)
            most = max(most, ratio)
    if most <= 0.0:
        return 0.0
    if least >= most:
        return most
    scale = (BUCKETS - 1e-9) / log(most / least)
    losses = np.zeros(BUCKETS)
    gains = np.zeros(BUCKETS)
    used = 0.0
    won = 0.0
    for j in range(loss.size):
        if drop[j] < 0:
            continue
        if loss[j] <= 0.0:
            used += loss[j]
            won += gain[j]
            continue
        bucket = int(scale * log(loss[j] / gain[j] / least))
        bucket = min(max(bucket, 0), BUCKETS - 1)
        losses[bucket] += loss[j]
        gains[bucket] += gain[j]
    bucket = 0
    while bucket < BUCKETS and used + losses[bucket] <= loss_limit and won + gains[bucket] <= gain_limit:
        used += losses[bucket]
        won += gains[bucket]
        bucket += 1
    return least * exp((bucket + 1) / scale)


@compiled
def propose_moves(
    reading: int,
    ids: np.ndarray,
    share: np.ndarray,
    mass: np.ndarray,
    allowed: np.ndarray,
    keep: np.ndarray,
    count: np.ndarray,
    kept: np.ndarray,
    frozen: np.ndarray,
    banned: np.ndarray,
    hosts: np.ndarray,
    compute: np.ndarray,
    activation: np.ndarray,
    link_delay: np.ndarray,
    link_time: np.ndarray,
    multipliers: np.ndarray,
    device_time: np.ndarray,
    value: np.ndarray,
    load: np.ndarray,
    sent: np.ndarray,
    by_device: bool,
    token_floor: np.ndarray,
    block_floor: np.ndarray,
    slices: np.ndarray,
    reach: float,
    moved: np.ndarray,
) -> int:
    """Apply one batch of the best moves to every block and write it down.

    Parameters
    ----------
    reading : int
        What gains: LATENCY, or the weight-to-latency ratio PER_TOKEN or PER_DEVICE.
    ids, share, allowed, keep : arrays (blocks, tokens, m)
    mass : float array (blocks, tokens)
        Sum of top-k weights.
    count, kept, frozen : arrays (blocks, tokens)
    banned : bool array (blocks, experts)
        Experts not to be emptied.
    link_time, multipliers : float arrays (blocks, devices)
        Seconds per transfer and multipliers at the present loads.
    device_time : float array (blocks, devices), s
    value : float array (blocks,)
        Present latency or ratio of each block (a ratio summed over tokens for PER_TOKEN).
    load, sent : arrays (blocks, experts), (blocks, devices), updated
    token_floor, block_floor : float arrays (blocks,)
    slices : float array (blocks,)
        Retention (sum over tokens) a full batch may spend.
    reach : float
        Fraction of a full batch to use, at most 1.
    moved : int array (blocks, tokens, 2), filled
        Column dropped and column added of every token, -2 where it was left alone.

    Returns
    -------
    int
        Number of tokens moved.
    """
    blocks, tokens = ids.shape[:2]
    experts = hosts.size
    unit, wake, send = np.empty(experts), np.empty(experts), np.empty(sent.shape[1])
    loss, gain = np.empty(tokens), np.empty(tokens)
    drop, add = np.empty(tokens, dtype=np.int64), np.empty(tokens, dtype=np.int64)
    active, kept_weight = np.empty(sent.shape[1]), np.empty(sent.shape[1])
    total = 0
    for i in range(blocks):
        moved[i, :, :] = -2
        for k in range(send.size):
            send[k] = (
                multipliers[i, k] * link_time[i, k] if sent[i, k] > 0.0 or multipliers[i, k] > 0.0 else 0.0
            )
            active[k] = 0.0
        for e in range(experts):
            active[hosts[e]] += load[i, e] > 0
        for e in range(experts):
            k = hosts[e]
            unit[e] = multipliers[i, k] * compute[e]
            wake[e] = multipliers[i, k] * activation[e]
            if active[k] == (1.0 if load[i, e] > 0 else 0.0):
                wake[e] += multipliers[i, k] * link_delay[k]
        budget = kept[i].sum() - block_floor[i] * tokens + FLOOR_SLACK * tokens
        if reading == LATENCY:
            best_token_moves(
                ids[i], share[i], allowed[i], keep[i], count[i], kept[i], frozen[i], hosts, load[i], unit,
                send, wake, by_device, token_floor[i], budget, loss, gain, drop, add,
            )  # fmt: skip
        else:
            kept_weight[:] = 0.0
            for j in range(tokens):
                for c in range(ids.shape[2]):
                    if keep[i, j, c]:
                        kept_weight[hosts[ids[i, j, c]]] += share[i, j, c] * mass[i, j]
            best_ratio_moves(
                reading == PER_DEVICE, ids[i], share[i], mass[i], allowed[i], keep[i], count[i], kept[i],
                frozen[i], hosts, compute, link_time[i], device_time[i], kept_weight, by_device,
                token_floor[i], budget, loss, gain, drop, add,
            )  # fmt: skip
        limit = min(slices[i] * reach, budget)
        gain_limit = STRIDE * reach * value[i]
        threshold = ratio_threshold(loss, gain, drop, limit, gain_limit)
        if reading == LATENCY:
            emptied, lost, won = best_emptying(
                ids[i], share[i], allowed[i], keep[i], count[i], kept[i], hosts, load[i], unit, send, wake,
                by_device, token_floor[i], budget, banned[i],
            )  # fmt: skip
            if emptied >= 0 and (lost <= 0.0 or lost <= won * threshold or threshold <= 0.0):
                total += _empty(
                    ids[i], share[i], allowed[i], keep[i], count[i], kept[i], hosts, load[i], sent[i],
                    by_device, token_floor[i], emptied, moved[i],
                )  # fmt: skip
                continue
        total += _apply_batch(
            ids[i], share[i], keep[i], count[i], kept[i], hosts, load[i], sent[i], by_device, loss, gain,
            drop, add, threshold, limit, budget, gain_limit, moved[i],
        )  # fmt: skip
    return total


@compiled
def _empty(
    ids: np.ndarray,
    share: np.ndarray,
    allowed: np.ndarray,
    keep: np.ndarray,
    count: np.ndarray,
    kept: np.ndarray,
    hosts: np.ndarray,
    load: np.ndarray,
    sent: np.ndarray,
    by_device: bool,
    floor: float,
    expert: int,
    moved: np.ndarray,
) -> int:
    """Move every token off ``expert``; return how many."""
    total = 0
    for j in range(ids.shape[0]):
        for c in range(ids.shape[1]):
            if keep[j, c] and ids[j, c] == expert:
                a = escape_column(ids, share, allowed, keep, count, kept, load, floor, j, c)
                if a > -2:
                    apply_move(ids, share, keep, count, kept, hosts, load, sent, by_device, j, c, a)
                    moved[j, 0], moved[j, 1] = c, a
                    total += 1
    return total


@compiled
def _apply_batch(
    ids: np.ndarray,
    share: np.ndarray,
    keep: np.ndarray,
    count: np.ndarray,
    kept: np.ndarray,
    hosts: np.ndarray,
    load: np.ndarray,
    sent: np.ndarray,
    by_device: bool,
    loss: np.ndarray,
    gain: np.ndarray,
    drop: np.ndarray,
    add: np.ndarray,
    threshold: float,
    limit: float,
    budget: float,
    gain_limit: float,
    moved: np.ndarray,
) -> int:
    """Apply token moves up to the threshold within the limits, or else the single best one."""
    total = 0
    spent = 0.0
    won = 0.0
    best = -1
    for j in range(loss.size):
        if drop[j] < 0:
            continue
        if loss[j] <= budget and (best < 0 or loss[j] * gain[best] < loss[best] * gain[j]):
            best = j
        fits = spent + loss[j] <= limit and won + gain[j] <= gain_limit
        if fits and loss[j] <= threshold * gain[j]:
            apply_move(ids, share, keep, count, kept, hosts, load, sent, by_device, j, drop[j], add[j])
            moved[j, 0], moved[j, 1] = drop[j], add[j]
            spent += loss[j]
            won += gain[j]
            total += 1
    if total == 0 and best >= 0:
        j = best
        apply_move(ids, share, keep, count, kept, hosts, load, sent, by_device, j, drop[j], add[j])
        moved[j, 0], moved[j, 1] = drop[j], add[j]
        total = 1
    return total


@compiled
def undo_moves(
    ids: np.ndarray,
    share: np.ndarray,
    keep: np.ndarray,
    count: np.ndarray,
    kept: np.ndarray,
    hosts: np.ndarray,
    load: np.ndarray,
    sent: np.ndarray,
    by_device: bool,
    moved: np.ndarray,
) -> None:
    """Take back what `propose_moves` wrote down."""
    for i in range(ids.shape[0]):
        for j in range(ids.shape[1]):
            if moved[i, j, 0] > -2:
                apply_move(
                    ids[i], share[i], keep[i], count[i], kept[i], hosts, load[i], sent[i], by_device, j,
                    moved[i, j, 1], moved[i, j, 0],
                )  # fmt: skip
