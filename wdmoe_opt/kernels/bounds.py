"""Lower bounds from prices (fact 6): what tokens must pay, and what devices can earn by a deadline.

At given prices every selection pays at least `token_bound`, and within a latency T no bandwidth
allocation earns more than the sum of `device_term` and the price of the whole bandwidth. Where the first
exceeds the second, T cannot be met. Nothing is smoothed here, and nothing is rounded outward: these
bounds are recomputed by the certificate's check before anybody is told of them.
"""

from __future__ import annotations

from math import exp, inf, log
from typing import NamedTuple

import numpy as np

from wdmoe_opt.kernels.compiled import compiled
from wdmoe_opt.kernels.link import bandwidth_for_excess, floor_time, log_time_terms
from wdmoe_opt.kernels.price_newton import Link
from wdmoe_opt.kernels.token_floor import needed_pairs

#: Newton steps for the best bandwidth of a device term; concave, so few are needed.
POINT_STEPS = 30
#: Step of ln bandwidth that is the last: the next would be about its square, and the value is flat there.
CLOSE = 1e-5
#: Least ln bandwidth looked at, below the largest one: there a device earns next to nothing.
DEEPEST = 40.0
#: Candidates up to which the check lists a token's options, so that counting them is no weaker.
COUNTED = 8
#: By how much a deadline must be out of reach, relative to what is paid: the check rounds outward.
MARGIN = 1e-10


class Limits(NamedTuple):
    """What a block's selections are restricted to, beyond the candidates; see `Relaxation.limits`.

    Attributes
    ----------
    forced : bool array (tokens, m), or (0, 0)
        Pairs that must be kept.
    opened : bool array (experts,)
        Experts that must be active; they are no members of a device's choice.
    base : float array (devices,), s
        Activation time of those.
    held : bool array (devices,)
        Devices with such experts.
    fewest, largest : float array (devices,)
        Limits of the transfers to a device, 0 and inf where there are none.
    """

    forced: np.ndarray
    opened: np.ndarray
    base: np.ndarray
    held: np.ndarray
    fewest: np.ndarray
    largest: np.ndarray


@compiled
def token_bound(
    ids: np.ndarray,
    share: np.ndarray,
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
    picked: np.ndarray,
) -> float:
    """Least that the tokens of a block pay at given prices, their retention priced at mu.

    An expert that costs activation is charged to its tokens: each pays all that the expert is worth to
    it (``surplus``), and their sum is the expert's ``value``, which the device then earns.

    Parameters
    ----------
    ids : int array (tokens, m)
        Experts; -1 where there is no usable candidate.
    share : float array (tokens, m)
    send : float array (devices,)
        Price of a transfer.
    pair : float array (experts,)
        Further price of a (token, expert) pair.
    by_device : bool
        Whether a token pays ``send`` once per device.
    floor : float
        Retention every token must keep: candidates without which it is missed are kept, and as many others
        as it takes at least; with more than `COUNTED` candidates, its linear relaxation is priced.
    cap : int
        Most experts of a token.
    wakes : bool array (experts,)
        Which experts cost activation that is not paid anyhow.
    forced : bool array (tokens, m), or (0, 0)
        Pairs that must be kept.
    surplus : float array (tokens, m), filled
    value : float array (experts,), filled
    used, kept : float arrays (2, experts), filled
        What the experts' tokens are charged, and the retention they get: row 0 if the expert is active,
        row 1 whether it is or not.
    picked : int8 array (tokens, m), filled
        1 for pairs that are kept if their expert is active, 2 for those kept anyhow.

    Returns
    -------
    float
        Sum over tokens.
    """
    tokens, columns = ids.shape
    total = 0.0
    value[:] = 0.0
    used[:, :] = 0.0
    kept[:, :] = 0.0
    picked[:, :] = 0
    cost = np.empty(columns)
    must = np.zeros(columns, dtype=np.bool_)
    for j in range(tokens):
        price = mu
        fixed, need = 0, 0
        for c in range(columns):
            must[c] = forced.size > 0 and forced[j, c] and ids[j, c] >= 0
        if floor > 0.0 and columns <= COUNTED:
            need = needed_pairs(ids[j], share[j], floor, must)
        elif floor > 0.0:
            bid = _floor_bid(ids, share, hosts, send, pair, mu, j, must, floor)
            price += bid
            total += bid * floor
        for c in range(columns):
            fixed += must[c]
        best, cheapest = inf, -1
        count = 0
        for c in range(columns):
            surplus[j, c] = 0.0
            cost[c] = inf
            e = ids[j, c]
            if e < 0:
                continue
            cost[c] = pair[e] + send[hosts[e]] - price * share[j, c]
            if cost[c] < best:
                best, cheapest = cost[c], c
            count += cost[c] < 0.0 and not must[c]
        if by_device:
            best = _spread_transfers(ids, share, hosts, send, pair, price, j, must, cost)
        extra = -1.0
        if need > 1 or (need == 1 and fixed > 0):
            extra = _count_bid(cost, must, need, ids[j], share[j], price, used, kept, picked[j])
            total += max(extra, 0.0)
        if extra < 0.0 and not by_device and count > cap - fixed:
            total += _crowd_out(cost, must, cap - fixed)
        if extra < 0.0 and fixed == 0 and best >= 0.0:
            total += best
            if cheapest >= 0:
                e = ids[j, cheapest]
                used[1, e] += best + price * share[j, cheapest]
                kept[1, e] += share[j, cheapest]
                picked[j, cheapest] = 2
        for c in range(columns):
            if cost[c] == inf or not (cost[c] < 0.0 or must[c]):
                continue
            e = ids[j, c]
            row = 0 if wakes[e] and not must[c] else 1
            used[row, e] += cost[c] + price * share[j, c]
            kept[row, e] += share[j, c]
            picked[j, c] = row + 1
            if row == 0:
                surplus[j, c] = -cost[c]
                value[e] -= cost[c]
            else:
                total += cost[c]
    return total


@compiled
def _count_bid(
    cost: np.ndarray,
    must: np.ndarray,
    need: int,
    ids: np.ndarray,
    share: np.ndarray,
    mu: float,
    used: np.ndarray,
    kept: np.ndarray,
    picked: np.ndarray,
) -> float:
    """Pay every free pair so much that ``need`` of them are worth it; return what that costs the token.

    Pairs that are then just worth it are noted as kept, as far as they are needed. -1 if so many are worth
    it anyhow.
    """
    order = np.argsort(np.where(must, inf, cost))
    last = order[need - 1]
    bid = cost[last]
    if not 0.0 <= bid < inf:
        return -1.0
    for c in range(cost.size):
        if not must[c]:
            cost[c] -= bid
    for q in range(need):
        c = order[q]
        if cost[c] == 0.0:
            used[1, ids[c]] += bid + mu * share[c]
            kept[1, ids[c]] += share[c]
            picked[c] = 2
    return float(bid * need)


@compiled
def _spread_transfers(
    ids: np.ndarray,
    share: np.ndarray,
    hosts: np.ndarray,
    send: np.ndarray,
    pair: np.ndarray,
    mu: float,
    j: int,
    must: np.ndarray,
    cost: np.ndarray,
) -> float:
    """Charge a device's one transfer to the token's pairs on it; return the least cost of any option.

    Negative costs may then be added up pair by pair: a device whose pairs are worth its transfer shares
    it among them in proportion to their worth, on any other no pair has a negative cost.
    """
    best = inf
    for c in range(ids.shape[1]):
        if ids[j, c] < 0:
            continue
        k = hosts[ids[j, c]]
        worth, least, first = 0.0, inf, -1
        for q in range(ids.shape[1]):
            if ids[j, q] >= 0 and hosts[ids[j, q]] == k:
                net = pair[ids[j, q]] - mu * share[j, q]
                worth += max(-net, 0.0)
                least = min(least, net)
                if must[q] and first < 0:
                    first = q
        net = pair[ids[j, c]] - mu * share[j, c]
        if first >= 0:
            # The device gets the token anyhow: its first forced pair pays the transfer.
            cost[c] = net + (send[k] if c == first else 0.0)
            continue
        best = min(best, send[k] + (least if worth <= 0.0 else -worth))
        cost[c] = max(net, 0.0)
        if net < 0.0 and worth > send[k]:
            cost[c] = net * (1.0 - send[k] / worth)
    return best


@compiled
def _crowd_out(cost: np.ndarray, must: np.ndarray, cap: int) -> float:
    """Raise free negative costs by a fee that leaves at most ``cap`` of them; return what it pays back."""
    order = np.sort(cost[~must])
    fee = -order[max(cap, 0)]
    for c in range(cost.size):
        if not must[c]:
            cost[c] += fee
    return float(-fee * max(cap, 0))


@compiled
def _floor_bid(
    ids: np.ndarray,
    share: np.ndarray,
    hosts: np.ndarray,
    send: np.ndarray,
    pair: np.ndarray,
    mu: float,
    j: int,
    must: np.ndarray,
    floor: float,
) -> float:
    """What token j pays per retention beyond mu, at which its linear relaxation just keeps its floor."""
    kept = 0.0
    for c in range(ids.shape[1]):
        e = ids[j, c]
        if e >= 0 and (must[c] or pair[e] + send[hosts[e]] < mu * share[j, c]):
            kept += share[j, c]
    bid = 0.0
    for _ in range(ids.shape[1]):
        if kept >= floor * (1.0 - 1e-9):
            break
        # The next pair to enter, by price per retention.
        ratio, gain = inf, 0.0
        for c in range(ids.shape[1]):
            e = ids[j, c]
            if e < 0 or must[c] or share[j, c] <= 0.0:
                continue
            asked = (pair[e] + send[hosts[e]]) / share[j, c] - mu
            if asked > bid or (asked == 0.0 and bid == 0.0):
                if asked < ratio:
                    ratio, gain = asked, 0.0
                if asked == ratio:
                    gain += share[j, c]
        if ratio == inf:
            break
        bid = ratio
        kept += gain
    return bid


@compiled
def best_point(
    weight: float,
    compute: float,
    nu: float,
    bits_down: float,
    c_down: float,
    bits_up: float,
    c_up: float,
    low: float,
    high: float,
    start: float,
) -> tuple[float, float]:
    """Maximise weight / (tau(b) + compute) - nu b over low <= b <= high; return the value and ln b.

    The slope in ln b is earnings' slope less nu b; Newton on the logarithm of their ratio.
    """
    top = log(high)
    bottom = max(log(low), top - DEEPEST) if low > 0.0 else top - DEEPEST
    u = min(max(start, bottom), top)
    for _ in range(POINT_STEPS):
        time, first, second = log_time_terms(exp(u), bits_down, c_down, bits_up, c_up)
        seconds = time + compute
        gain = -weight * first / (seconds * seconds)  # d earnings / d u
        if nu <= 0.0:
            u = top
            break
        if gain <= 0.0:
            u = bottom
            break
        ratio = log(gain / nu) - u
        bend = second / first - 2.0 * first / seconds - 1.0
        step = ratio / -min(bend, -0.05)
        step = min(max(step, -3.0), 3.0)
        moved = min(max(u + step, bottom), top)
        close = abs(moved - u) < CLOSE
        u = moved
        if close:
            break
    time, _, _ = log_time_terms(exp(u), bits_down, c_down, bits_up, c_up)
    return weight / (time + compute) - nu * exp(u), u


@compiled
def device_term(
    k: int,
    i: int,
    seconds: float,
    scale: float,
    send: float,
    work: float,
    nu: float,
    link: Link,
    link_time: np.ndarray,
    free: bool,
    members: np.ndarray,
    activation: np.ndarray,
    value: np.ndarray,
    least: float,
    most: float,
    held: bool,
    fewest: float,
    largest: float,
    serves: bool,
    lump: float,
    point: float,
) -> tuple[float, float, int, float]:
    """Most that device ``k`` can earn in ``seconds``, less the price of its bandwidth.

    Parameters
    ----------
    seconds : float, s
        Deadline less the device's delay; times ``scale`` if prices are per scaled second.
    scale : float
        Factor on activation times and values: 1, or x in the shared form, where sets that do not fit
        count all the same, so that the term stays convex in x.
    send, work : float
        Price of a transfer and of a second of compute.
    members : int array
        The device's experts in order of falling value per activation time.
    value : float array (experts,)
        What being active earns.
    least, most : float, s
        Least and largest compute time of a transfer.
    held : bool
        Whether some expert beyond ``members`` is active anyhow, its time taken off ``seconds``.
    fewest, largest : float
        Limits of its transfers, 0 and inf if there are none.
    serves : bool
        Whether it must not idle, whatever ``held`` and ``fewest`` say.
    lump : float
        What it earns besides if it is loaded.
    point : float
        ln of the bandwidth to start from.

    Returns
    -------
    term, rate, chosen, point : float, float, int, float
        Value; its derivative in the seconds; the best set (-2: nobody further, -1: the device idles,
        below the number of members a single one, above that the first ``chosen - members + 2``); ln of
        its bandwidth. The value is -inf if the device cannot do what it must.
    """
    best = -inf if held or serves or fewest > 0.0 else -nu * link.low[k]
    rate, chosen, where = 0.0, -1, point
    size = members.size
    if size == 0 and not held:
        return best, rate, chosen, where
    # What a device earns with tokens in so many seconds is convex in them: below its chord.
    first, last = seconds, seconds
    if size > 0:
        last -= scale * activation[members].sum()
        if not held:
            first -= scale * activation[members].min()
    if first < 0.0 and scale == 1.0:
        return best, rate, chosen, where
    first, last = max(first, 0.0), max(last, 0.0)
    limited = fewest > 0.0 or largest < inf
    at_last, pace, where = _earned(
        k, i, last, send, work, nu, link, link_time, free, least, most, fewest, largest, point
    )
    at_first = at_last
    if first > last and not limited:
        at_first, _, _ = _earned(
            k, i, first, send, work, nu, link, link_time, free, least, most, fewest, largest, where
        )
    known, known_pace, known_where = last, pace, where
    for n in range(2 * size - 2, -3 if held else -1, -1):
        # Sets of two and more, the largest first; then singles, and nobody where that is possible.
        if n == -1:
            continue
        awake, earned = set_value(n, members, activation, value)
        left = seconds - scale * awake
        if left < 0.0:
            if scale == 1.0:
                continue  # cannot be active by the deadline
            left = 0.0
        if not limited:
            chord = at_last
            if first > last:
                chord += (at_first - at_last) * (left - last) / (first - last)
            if chord + scale * earned + lump <= best:
                continue
        term, pace, where = at_last, known_pace, known_where
        if left != known:
            term, pace, where = _earned(
                k, i, left, send, work, nu, link, link_time, free, least, most, fewest, largest, known_where
            )
        if term + scale * earned + lump > best:
            best, rate, chosen, point = term + scale * earned + lump, pace, n, where
    where = point
    if (size > 1 or (held and size > 0)) and scale == 1.0:
        # Sets that do not fit as a whole count as far as they leave the time of the fewest transfers.
        spare = 0.0
        packed = -nu * link.low[k]
        if fewest > 0.0:
            spare = _least_time(k, i, link, link_time, free, least) * fewest * (1.0 + 1e-9)
            packed, _, _ = _earned(
                k, i, spare, send, work, nu, link, link_time, free, least, most, fewest, largest, where
            )
        packed += _packed(seconds - spare, scale, members, activation, value) + lump
        if packed > best:
            best, rate, chosen = packed, 0.0, 2 * size - 2
    return best, rate, chosen, where


@compiled
def _least_time(k: int, i: int, link: Link, link_time: np.ndarray, free: bool, least: float) -> float:
    """Seconds of the lightest transfer with all the bandwidth."""
    if not free:
        return float(link_time[i, k] + least)
    b = min(link.high[k], link.total)
    time, _, _ = log_time_terms(b, link.bits_down, link.c_down[i, k], link.bits_up, link.c_up[i, k])
    return float(time + least)


@compiled
def _earned(
    k: int,
    i: int,
    left: float,
    send: float,
    work: float,
    nu: float,
    link: Link,
    link_time: np.ndarray,
    free: bool,
    least: float,
    most: float,
    fewest: float,
    largest: float,
    point: float,
) -> tuple[float, float, float]:
    """Most that tokens earn in ``left`` seconds less the bandwidth; earnings per second; ln bandwidth."""
    best, pace, where = -inf, 0.0, point
    ceiling = (send + work * most) * largest if largest < inf else inf
    down, up = link.c_down[i, k], link.c_up[i, k]
    low, high = link.low[k], min(link.high[k], link.total)
    if fewest > 0.0:
        if not free:
            if left < fewest * (link_time[i, k] + least) * (1.0 - 1e-11):
                return -inf, 0.0, point
        else:
            needed = _bandwidth_for(left / fewest - least, link.bits_down, down, link.bits_up, up, high)
            if needed > high * (1.0 + 1e-9):
                return -inf, 0.0, point
            low = min(max(low, needed * (1.0 - 1e-9)), high)
    for ray in range(1 if least == most else 2):
        c = most if ray else least
        if free:
            # A toll may exceed a transfer's price; then none is best.
            weight = max(send + work * c, 0.0) * left
            term, u = best_point(weight, c, nu, link.bits_down, down, link.bits_up, up, low, high, point)
            earned = (term + nu * exp(u)) / left if left > 0.0 else 0.0
            if earned * left > ceiling:
                b = _bandwidth_for(weight / ceiling - c, link.bits_down, down, link.bits_up, up, high)
                b = min(max(b, low), high)
                term, earned, u = ceiling - nu * b, 0.0, log(max(b, 1e-300))
        else:
            earned, u = (send + work * c) / (link_time[i, k] + c), point
            term = earned * left
            if term > ceiling:
                term, earned = ceiling, 0.0
        if term > best:
            best, pace, where = term, earned, u
    return best, pace, where


@compiled
def _bandwidth_for(
    time: float, bits_down: float, c_down: float, bits_up: float, c_up: float, high: float
) -> float:
    """Bandwidth at which a transfer is ``time`` on air; inf if none is enough."""
    target = time - floor_time(bits_down, c_down, bits_up, c_up)
    if not target > 0.0:
        return inf
    b, _ = bandwidth_for_excess(target, high, bits_down, c_down, bits_up, c_up)
    return float(b)


@compiled
def set_value(n: int, members: np.ndarray, activation: np.ndarray, value: np.ndarray) -> tuple[float, float]:
    """Activation time and value of set ``n``: nobody, one, or from ``members.size`` on the first few."""
    if n < 0:
        return 0.0, 0.0
    if n < members.size:
        return activation[members[n]], value[members[n]]
    awake, earned = 0.0, 0.0
    for r in range(n - members.size + 2):
        awake += activation[members[r]]
        earned += value[members[r]]
    return awake, earned


@compiled
def _packed(
    seconds: float, scale: float, members: np.ndarray, activation: np.ndarray, value: np.ndarray
) -> float:
    """Most value of a set whose activation alone fills the seconds (fractional knapsack); -inf if all fit."""
    left = seconds
    earned = 0.0
    for r in range(members.size):
        a = scale * activation[members[r]]
        if a > left:
            return float(earned + scale * value[members[r]] * max(left, 0.0) / a)
        left -= a
        earned += scale * value[members[r]]
    return -inf


@compiled
def order_members(
    hosts: np.ndarray, activation: np.ndarray, value: np.ndarray, usable: np.ndarray, devices: int
) -> tuple[np.ndarray, np.ndarray]:
    """Usable experts by device, those of most value per activation time first; and where each begins."""
    experts = hosts.size
    ends = np.zeros(devices + 1, dtype=np.int64)
    for e in range(experts):
        if usable[e]:
            ends[hosts[e] + 1] += 1
    for k in range(devices):
        ends[k + 1] += ends[k]
    place = ends[:-1].copy()
    members = np.empty(ends[devices], dtype=np.int64)
    for e in range(experts):
        if not usable[e]:
            continue
        k = hosts[e]
        r = place[k]
        # Insertion keeps each device's list sorted; it is short.
        while r > ends[k] and value[members[r - 1]] * activation[e] < value[e] * activation[members[r - 1]]:
            members[r] = members[r - 1]
            r -= 1
        members[r] = e
        place[k] += 1
    return members, ends


@compiled
def block_deadline(
    i: int,
    paid: float,
    start: float,
    send: np.ndarray,
    work: np.ndarray,
    nu: float,
    link: Link,
    link_time: np.ndarray,
    free: bool,
    members: np.ndarray,
    ends: np.ndarray,
    activation: np.ndarray,
    value: np.ndarray,
    least: np.ndarray,
    most: np.ndarray,
    limits: Limits,
    precision: float,
    points: np.ndarray,
) -> float:
    """Largest deadline that prices rule out: root of paid - sum of device terms - nu * total.

    Safeguarded Newton; what is returned is ruled out by a margin above rounding. 0 if nothing is.
    ``precision`` is relative; ``points`` (devices,) holds ln of bandwidths, updated.
    """
    above, below = inf, 0.0
    deadline = start
    margin = MARGIN * (abs(paid) + nu * link.total)
    for _ in range(80):
        excess, slope = _unpaid(
            i, deadline, paid, send, work, nu, link, link_time, free, members, ends, activation, value, least,
            most, limits, points,
        )  # fmt: skip
        if excess > margin:
            below = deadline
            if excess <= 4.0 * margin:
                break  # Newton aims at two margins; nearer would gain less than the margin is worth
        else:
            above = deadline
        if above < inf and above - below <= precision * above:
            break
        moved = deadline + (excess - 2.0 * margin) / slope if slope > 0.0 else -1.0
        # Terms jump where a further set of experts fits; then Newton must not leave the bracket.
        if not below < moved < above:
            moved = 0.5 * (below + above) if above < inf else 2.0 * deadline
        elif excess <= margin and abs(moved - deadline) <= precision * deadline:
            moved = max(moved - 0.5 * precision * deadline, 0.5 * (below + moved))
        deadline = moved
        if above < 1e-12 * start:
            return 0.0
    return below


@compiled
def _unpaid(
    i: int,
    deadline: float,
    paid: float,
    send: np.ndarray,
    work: np.ndarray,
    nu: float,
    link: Link,
    link_time: np.ndarray,
    free: bool,
    members: np.ndarray,
    ends: np.ndarray,
    activation: np.ndarray,
    value: np.ndarray,
    least: np.ndarray,
    most: np.ndarray,
    limits: Limits,
    points: np.ndarray,
) -> tuple[float, float]:
    """What tokens pay beyond all that devices can earn by the deadline, and how fast that falls with it."""
    excess = paid - nu * link.total
    slope = 0.0
    for k in range(send.size):
        term, rate, _, points[k] = device_term(
            k, i, deadline - link.delay[k] - limits.base[k], 1.0, send[k], work[k], nu, link, link_time, free,
            members[ends[k] : ends[k + 1]], activation, value, least[k], most[k], limits.held[k],
            limits.fewest[k], limits.largest[k], False, 0.0, points[k],
        )  # fmt: skip
        excess -= term
        slope += rate
    return excess, slope
