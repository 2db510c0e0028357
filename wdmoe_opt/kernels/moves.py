"""Price-directed moves on one block's selection: drop, re-route, empty an expert.

Prices say what one more unit of work costs in latency: ``unit[e]`` s per token computed by expert e,
``send[k]`` s per transfer to device k, ``wake[e]`` s for having expert e active. They come from the
multipliers of the bandwidth problem (envelope theorem, fact 8). A move of token j loses ``loss`` of
its retention and gains ``gain`` of latency at these prices; the best moves lose least per gain.
"""

from __future__ import annotations

from math import inf, log

import numpy as np

from wdmoe_opt.kernels.compiled import compiled

#: Slack on retention floors inside searches, well below the feasibility tolerance.
FLOOR_SLACK = 1e-12
BUCKETS = 256


@compiled
def _alone(ids: np.ndarray, keep: np.ndarray, hosts: np.ndarray, j: int, device: int, skip: int) -> bool:
    """Whether token j keeps no expert on ``device`` apart from column ``skip``."""
    for c in range(ids.shape[1]):
        if keep[j, c] and c != skip and hosts[ids[j, c]] == device:
            return False
    return True


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
                return unit[e]
    return unit[e] + send[hosts[e]]


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
        if load[e] > 0 and not stuck[e] and lost[e] <= budget and gain > 0.0 and (
            best < 0 or lost[e] * (won[best] + wake[best]) < lost[best] * gain
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
    return least * np.exp((bucket + 1) / scale)


@compiled
def propose_moves(
    ids: np.ndarray,
    share: np.ndarray,
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
    latency: np.ndarray,
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
    ids, share, allowed, keep : arrays (blocks, tokens, m)
    count, kept, frozen : arrays (blocks, tokens)
    banned : bool array (blocks, experts)
        Experts not to be emptied.
    link_time, multipliers : float arrays (blocks, devices)
        Seconds per transfer and multipliers at the present loads.
    latency : float array (blocks,)
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
    active = np.empty(sent.shape[1])
    total = 0
    for i in range(blocks):
        moved[i, :, :] = -2
        for k in range(send.size):
            send[k] = multipliers[i, k] * link_time[i, k] if sent[i, k] > 0.0 or multipliers[i, k] > 0.0 else 0.0
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
        best_token_moves(
            ids[i], share[i], allowed[i], keep[i], count[i], kept[i], frozen[i], hosts, load[i], unit, send,
            wake, by_device, token_floor[i], budget, loss, gain, drop, add,
        )  # fmt: skip
        limit = min(slices[i] * reach, budget)
        threshold = ratio_threshold(loss, gain, drop, limit, 0.1 * reach * latency[i])
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
            drop, add, threshold, limit, budget, 0.1 * reach * latency[i], moved[i],
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
