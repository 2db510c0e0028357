"""One block with free bandwidth, from prices to a proved and traded selection, in one compiled call.

The steps are those of `relaxation.Relaxation` for a single block with dispatch "expert": first prices from
the best bandwidth for plain routing, Newton at ever narrower smoothing, the bound that the prices prove,
a rounding, exact trades. In one call, because between steps of some microseconds Python would take most
of the time; and it can begin from the prices of an earlier call instead.
"""

from __future__ import annotations

from math import exp, inf, isfinite, log
from typing import NamedTuple

import numpy as np

from wdmoe_opt.kernels.block_bandwidth import block_bandwidth, block_multipliers
from wdmoe_opt.kernels.bounds import Limits, block_deadline, order_members, token_bound
from wdmoe_opt.kernels.compiled import compiled
from wdmoe_opt.kernels.link import link_time
from wdmoe_opt.kernels.price_newton import Link, Prices, first_retention_price, newton
from wdmoe_opt.kernels.pricing import busy_times, count_loads
from wdmoe_opt.kernels.response import Items
from wdmoe_opt.kernels.rounding import exchange, round_block

#: First product of price and slack, as a part of the deadline, and least multiplier to start from.
FIRST_BARRIER, LEAST_MULTIPLIER = 0.1, 0.05
#: Floors of a selection are met up to this part, well within the feasibility tolerance.
FLOOR_SLACK = 1e-12
#: Part of a floor that a rounding may miss before it is repaired.
SHORT = 1e-10
#: Feasibility tolerance of the metric: bounds must hold for whatever counts as feasible.
TOLERANCE = 1e-9
#: Relative precision of the deadline that prices rule out.
PRECISION = 4e-12
#: Residual at which a stage of the Newton iteration is given up.
ASTRAY = 3.0
#: Steps towards the first price of retention.
RETENTION_STEPS = 8
#: Entries of `Found.numbers`.
BOUND, LATENCY, RETENTION_PRICE, HERTZ, STAGES, RESIDUAL, COLD = range(7)


class Block(NamedTuple):
    """One block's tokens and fleet.

    Attributes
    ----------
    ids : int32 array (1, tokens, m)
        Experts, -1 where a candidate is not allowed.
    share : float array (1, tokens, m)
        Retention that a candidate adds.
    work : float array (1, tokens, m), s
        Compute time of a candidate; (1, 1, 1) if ``alike``.
    hosts : int32 array (experts,)
    compute, activation : float array (experts,), s
    delay : float array (devices,), s
    mean_work : float array (1, devices), s
        Compute time of a mean transfer.
    alike : bool
        Whether all experts of a device take equal compute time.
    needed : float
        Retention to keep, summed over tokens.
    floor : float
        Retention every token must keep.
    cap : int
        Most experts of a token.
    """

    ids: np.ndarray
    share: np.ndarray
    work: np.ndarray
    hosts: np.ndarray
    compute: np.ndarray
    activation: np.ndarray
    delay: np.ndarray
    mean_work: np.ndarray
    alike: bool
    needed: float
    floor: float
    cap: int


class Found(NamedTuple):
    """Best selection and best proof of a block, filled.

    Attributes
    ----------
    keep : bool array (tokens, m)
    bandwidth : float array (devices,), Hz
    send : float array (devices,), s per transfer
    work : float array (devices,)
        Price of a device second.
    wake : float array (experts,), s
    surplus : float array (tokens, m), s
        What tokens pay for active experts.
    points : float array (devices,), Hz
    numbers : float array (7,)
        Bound and latency, s; prices of retention and of a hertz; stages run; residual; 1 after a cold start.
    """

    keep: np.ndarray
    bandwidth: np.ndarray
    send: np.ndarray
    work: np.ndarray
    wake: np.ndarray
    surplus: np.ndarray
    points: np.ndarray
    numbers: np.ndarray


class _Quote(NamedTuple):
    """Prices of `Relaxation._quote` for one block."""

    seconds: np.ndarray
    second: np.ndarray
    send: np.ndarray
    points: np.ndarray
    hertz: float


@compiled
def fleet_work(hosts: np.ndarray, compute: np.ndarray, devices: int) -> tuple[bool, np.ndarray]:
    """Whether all experts of a device take equal time; compute time of a mean transfer, s (1, devices)."""
    least, most = np.full(devices, inf), np.zeros(devices)
    for e in range(hosts.size):
        least[hosts[e]] = min(least[hosts[e]], compute[e])
        most[hosts[e]] = max(most[hosts[e]], compute[e])
    alike = True
    mean = np.zeros((1, devices))
    for k in range(devices):
        if least[k] < inf:
            mean[0, k] = 0.5 * (least[k] + most[k])
            alike = alike and least[k] == most[k]
    return alike, mean


@compiled
def open_prices(block: Block, link: Link, plain: np.ndarray, prices: Prices, loads: np.ndarray) -> None:
    """Fill first prices and loads from the best bandwidth for a selection (1, tokens, m)."""
    devices = link.low.size
    sent, busy = np.empty((1, devices)), np.empty((1, devices))
    load = np.empty((1, block.hosts.size), dtype=np.int64)
    count_loads(block.ids, plain, block.hosts, False, load, sent)
    busy_times(load, sent, block.hosts, block.compute, block.activation, block.delay, busy)
    bandwidth, lam, times = np.full(devices, link.total / devices), np.empty(devices), np.empty(devices)
    latency, _ = block_bandwidth(
        sent[0], busy[0], link.bits_down, link.c_down[0], link.bits_up, link.c_up[0], link.low, link.high,
        link.total, bandwidth,
    )  # fmt: skip
    seconds = air_times(link, bandwidth)
    for k in range(devices):
        times[k] = busy[0, k] + (sent[0, k] * seconds[k] if sent[0, k] > 0.0 else 0.0)
    block_multipliers(
        sent[0], times, link.bits_down, link.c_down[0], link.bits_up, link.c_up[0], link.low, link.high,
        bandwidth, lam,
    )  # fmt: skip
    total = 0.0
    for k in range(devices):
        lam[k] = max(lam[k], LEAST_MULTIPLIER)
        total += lam[k]
    paid = 0.0
    for k in range(devices):
        time = seconds[k] if seconds[k] < inf else 1.0
        prices.transfer[0, k] = lam[k] / total * (time + block.mean_work[0, k])
        paid += prices.transfer[0, k]
        prices.slack[0, k] = FIRST_BARRIER * latency / devices / prices.transfer[0, k]
        prices.log_bandwidth[0, k] = log(max(bandwidth[k], 1e-6 * link.total))
    pairs = 0
    for j in range(block.ids.shape[1]):
        for c in range(block.ids.shape[2]):
            pairs += block.ids[0, j, c] >= 0
    prices.retention[0] = 4.0 * paid / devices * pairs / block.ids.shape[1]
    prices.deadline[0] = latency
    prices.hertz[0] = 0.5 * latency / link.total
    loads[:, :] = sent
    prices.on[:, :] = 1.0
    prices.bids[:, :] = 0.0


@compiled
def air_times(link: Link, bandwidth: np.ndarray) -> np.ndarray:
    """Seconds on air per transfer, (devices,); inf where a device cannot be reached."""
    seconds = np.empty(bandwidth.size)
    for k in range(bandwidth.size):
        c_d, c_u = link.c_down[0, k], link.c_up[0, k]
        out = (link.bits_down > 0.0 and c_d <= 0.0) or (link.bits_up > 0.0 and c_u <= 0.0)
        seconds[k] = (
            inf
            if out or bandwidth[k] <= 0.0
            else link_time(bandwidth[k], link.bits_down, c_d, link.bits_up, c_u)
        )
    return seconds


@compiled
def _copied(prices: Prices) -> Prices:
    return Prices(
        prices.transfer.copy(), prices.slack.copy(), prices.retention.copy(), prices.deadline.copy(),
        prices.log_bandwidth.copy(), prices.hertz.copy(), prices.on.copy(), prices.bids,
    )  # fmt: skip


@compiled
def _restored(prices: Prices, old: Prices) -> None:
    """Take back a step; bids are recomputed at every one."""
    prices.transfer[:, :] = old.transfer
    prices.slack[:, :] = old.slack
    prices.retention[:] = old.retention
    prices.deadline[:] = old.deadline
    prices.log_bandwidth[:, :] = old.log_bandwidth
    prices.hertz[:] = old.hertz
    prices.on[:, :] = old.on


@compiled
def _settle(
    block: Block, items: Items, link: Link, stage: np.ndarray, prices: Prices, loads: np.ndarray
) -> float:
    """One stage (width, barrier, steps, tolerance); taken back if it goes astray. Returns the residual."""
    before, before_loads = _copied(prices), loads.copy()
    dummy = np.zeros((1, link.low.size))
    needed, floors = np.full(1, block.needed), np.full(1, block.floor)
    _, residual = newton(
        items, link, dummy, True, needed, floors, block.mean_work, stage[0], stage[1] / link.low.size,
        int(stage[2]), stage[3], prices, loads,
    )  # fmt: skip
    if not residual < ASTRAY:
        _restored(prices, before)
        loads[:, :] = before_loads
    return residual


@compiled
def _quoted(block: Block, link: Link, prices: Prices, loads: np.ndarray) -> _Quote:
    """The present prices, and the price of a hertz that spends the whole budget."""
    devices = link.low.size
    points, send, second = np.empty(devices), np.empty(devices), np.empty(devices)
    spent, spread, used = 0.0, 0.0, 0.0
    for k in range(devices):
        points[k] = exp(prices.log_bandwidth[0, k])
    seconds = air_times(link, points)
    later = air_times(link, points * 1.0001)
    for k in range(devices):
        second[k] = 0.0
        used += points[k]
        if seconds[k] < inf:
            second[k] = prices.transfer[0, k] / (seconds[k] + block.mean_work[0, k])
            fall = (seconds[k] - later[k]) / (0.0001 * points[k])
            worth = second[k] * loads[0, k] * fall
            spent += worth * points[k]
            if worth > 0.0:
                spread += points[k]
        else:
            seconds[k] = 0.0
        send[k] = seconds[k] * second[k]
    return _Quote(seconds, second, send, points, spent * (spread / used) / link.total)


@compiled
def _compute_range(block: Block, devices: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Experts that are any token's candidate, and least and most compute time by device, (devices,)."""
    usable = np.zeros(block.hosts.size, dtype=np.bool_)
    for j in range(block.ids.shape[1]):
        for c in range(block.ids.shape[2]):
            if block.ids[0, j, c] >= 0:
                usable[block.ids[0, j, c]] = True
    least, most = np.full(devices, inf), np.zeros(devices)
    for e in range(usable.size):
        if usable[e]:
            k = block.hosts[e]
            least[k] = min(least[k], block.compute[e])
            most[k] = max(most[k], block.compute[e])
    for k in range(devices):
        if least[k] == inf:
            least[k] = 0.0
    return usable, least, most


@compiled
def _prove(
    block: Block,
    wide: Link,
    usable: np.ndarray,
    least: np.ndarray,
    most: np.ndarray,
    wakes: np.ndarray,
    quote: _Quote,
    mu: float,
    horizon: float,
    found: Found,
) -> None:
    """Keep the bound that prices prove, with them, if it is the best so far."""
    devices, experts = wide.low.size, block.hosts.size
    tokens, columns = block.ids.shape[1:]
    for k in range(devices):
        if not isfinite(quote.second[k]):
            return
    if not isfinite(mu):
        return
    pair, value = np.empty(experts), np.empty(experts)
    for e in range(experts):
        pair[e] = quote.second[block.hosts[e]] * block.compute[e]
    surplus = np.empty((tokens, columns))
    used, kept = np.empty((2, experts)), np.empty((2, experts))
    limits = Limits(
        np.zeros((0, 0), dtype=np.bool_), np.zeros(value.size, dtype=np.bool_), np.zeros(devices),
        np.zeros(devices, dtype=np.bool_), np.zeros(devices), np.full(devices, inf),
    )  # fmt: skip
    paid = token_bound(
        block.ids[0], block.share[0], block.hosts, quote.send, pair, False, mu,
        block.floor * (1.0 - TOLERANCE), block.cap, wakes, limits.forced, surplus, value, used, kept,
        np.empty(block.ids.shape[1:], dtype=np.int8),
    )  # fmt: skip
    paid += mu * block.needed * (1.0 - TOLERANCE)
    members, ends = order_members(block.hosts, block.activation, value, usable, devices)
    points = np.log(quote.points)
    dummy = np.zeros((1, devices))
    bound = block_deadline(
        0, paid, horizon, quote.send, quote.second, quote.hertz, wide, dummy, True, members, ends,
        block.activation, value, least, most, limits, PRECISION, points,
    )  # fmt: skip
    if bound > found.numbers[BOUND]:
        found.numbers[BOUND] = bound
        found.numbers[RETENTION_PRICE], found.numbers[HERTZ] = mu, quote.hertz
        found.send[:], found.work[:], found.wake[:] = quote.send, quote.second, value
        found.surplus[:, :] = surplus
        for k in range(devices):
            found.points[k] = exp(points[k])


@compiled
def repair_block(block: Block, keep: np.ndarray) -> None:
    """Make a selection (tokens, m) keep caps and floors, if any does; see `floors.repair_floors`."""
    tokens, columns = keep.shape
    kept, best = np.zeros(tokens), np.zeros(tokens)
    order = np.empty(tokens)
    total = 0.0
    for j in range(tokens):
        count, most, rich = 0, 0, 0
        for c in range(columns):
            if block.ids[0, j, c] < 0:
                keep[j, c] = False
                continue
            most += 1
            if most <= block.cap:
                best[j] += block.share[0, j, c]
                rich += 1
            if keep[j, c]:
                kept[j] += block.share[0, j, c]
                count += 1
        if count == 0 or count > block.cap or kept[j] < block.floor * (1.0 - FLOOR_SLACK):
            _take_richest(block, keep, j)
            kept[j], count = best[j], rich
        order[j] = (kept[j] - best[j]) / (max(rich - count, 0) + 0.5)
        total += kept[j]
    for j in np.argsort(order, kind="mergesort"):
        if total >= block.needed * (1.0 - FLOOR_SLACK):
            break
        _take_richest(block, keep, j)
        total += best[j] - kept[j]


@compiled
def _take_richest(block: Block, keep: np.ndarray, j: int) -> None:
    number = 0
    for c in range(keep.shape[1]):
        number += block.ids[0, j, c] >= 0
        keep[j, c] = block.ids[0, j, c] >= 0 and number <= block.cap


@compiled
def _short(block: Block, keep: np.ndarray) -> tuple[bool, float]:
    """Whether a selection misses a floor, and its retention."""
    total, short = 0.0, False
    for j in range(keep.shape[0]):
        kept = 0.0
        for c in range(keep.shape[1]):
            if keep[j, c]:
                kept += block.share[0, j, c]
        total += kept
        short = short or kept < block.floor * (1.0 - SHORT)
    return short or total < block.needed * (1.0 - SHORT), total


@compiled
def _round(
    block: Block,
    link: Link,
    quote: _Quote,
    prices: Prices,
    rounds: int,
    rel_gap: float,
    found: Found,
) -> None:
    """Round the prices to a selection, trade exactly, and keep it if it is the fastest so far."""
    devices, experts = link.low.size, block.hosts.size
    tokens, columns = block.ids.shape[1:]
    price, opened = np.empty(experts), np.empty(experts, dtype=np.bool_)
    for e in range(experts):
        k = block.hosts[e]
        price[e] = quote.second[k] * (quote.seconds[k] + block.compute[e])
        opened[e] = prices.on[0, e] > 0.5
    keep = np.empty((1, tokens, columns), dtype=np.bool_)
    round_block(
        block.ids[0], block.share[0], price, opened, prices.retention[0],
        block.needed - FLOOR_SLACK * tokens, block.floor, block.cap, keep[0],
    )  # fmt: skip
    short, kept = _short(block, keep[0])
    if short:
        repair_block(block, keep[0])
        _, kept = _short(block, keep[0])
    sent, busy = np.empty((1, devices)), np.empty((1, devices))
    load = np.empty((1, experts), dtype=np.int64)
    count_loads(block.ids, keep, block.hosts, False, load, sent)
    busy_times(load, sent, block.hosts, block.compute, block.activation, block.delay, busy)
    out = np.empty(devices)
    latency = exchange(
        block.ids[0], block.share[0], block.hosts, block.compute, block.activation, block.delay, opened,
        kept - block.needed + FLOOR_SLACK * tokens, block.floor, block.cap, link.bits_down, link.c_down[0],
        link.bits_up, link.c_up[0], link.low, link.high, link.total, rounds,
        found.numbers[BOUND] * (1.0 + 0.5 * rel_gap), keep[0], load[0], sent[0], busy[0], out,
    )  # fmt: skip
    if latency < found.numbers[LATENCY]:
        found.numbers[LATENCY] = latency
        found.keep[:, :] = keep[0]
        found.bandwidth[:] = out


@compiled
def lead_prices(
    block: Block,
    link: Link,
    plain: np.ndarray,
    lead: np.ndarray,
    warm: np.ndarray,
    prices: Prices,
    loads: np.ndarray,
    numbers: np.ndarray,
) -> None:
    """Prices that the proving stages can start from: those given, moved a little, else new ones.

    Parameters
    ----------
    plain : bool array (1, tokens, m)
        Selection whose best bandwidth gives new prices.
    lead, warm : float array (stages, 4)
        Stages for new prices, and for those given: none, or a last residual of 1 and more, means anew.
    prices : Prices, updated
    loads : float array (1, devices), filled
    numbers : float array (7,)
        `Found.numbers`; RESIDUAL and COLD are filled.
    """
    items = Items(
        block.ids, block.share, block.work, block.hosts, block.activation.reshape((1, block.activation.size)),
        block.alike,
    )  # fmt: skip
    numbers[COLD] = 0.0
    residual = inf
    for r in range(warm.shape[0]):
        residual = _settle(block, items, link, warm[r], prices, loads)
    if not residual < 1.0:
        numbers[COLD] = 1.0
        open_prices(block, link, plain, prices, loads)
        needed, floors = np.full(1, block.needed), np.full(1, block.floor)
        first_retention_price(
            items, link, np.zeros((1, link.low.size)), True, needed, floors, block.mean_work, lead[0, 0],
            RETENTION_STEPS, prices,
        )  # fmt: skip
        for r in range(lead.shape[0]):
            residual = _settle(block, items, link, lead[r], prices, loads)
    numbers[RESIDUAL] = residual


@compiled
def prove_and_round(
    block: Block,
    link: Link,
    prove: np.ndarray,
    rounds: int,
    rel_gap: float,
    prices: Prices,
    loads: np.ndarray,
    found: Found,
) -> None:
    """Bounds and selections at ever narrower smoothing, until the gap is closed.

    Parameters
    ----------
    prove : float array (stages, 4)
        Width, barrier, steps and tolerance of each stage; see `relaxation.Stage`.
    rounds : int
        Exact trades after each rounding.
    prices : Prices, updated
    loads : float array (1, devices), updated
    found : Found, updated
        The best so far; to begin, bound -1 and latency inf.
    """
    items = Items(
        block.ids, block.share, block.work, block.hosts, block.activation.reshape((1, block.activation.size)),
        block.alike,
    )  # fmt: skip
    slack = TOLERANCE * link.total
    wide = Link(
        link.bits_down, link.c_down, link.bits_up, link.c_up, np.maximum(link.low - slack, 0.0),
        link.high + slack, link.total + slack, link.delay,
    )  # fmt: skip
    wakes = np.empty(block.hosts.size, dtype=np.bool_)
    for e in range(wakes.size):
        wakes[e] = block.activation[e] > 0.0 or block.delay[block.hosts[e]] > 0.0
    usable, least, most = _compute_range(block, link.low.size)
    numbers = found.numbers
    for r in range(prove.shape[0]):
        numbers[RESIDUAL] = _settle(block, items, link, prove[r], prices, loads)
        quote = _quoted(block, link, prices, loads)
        _prove(block, wide, usable, least, most, wakes, quote, prices.retention[0], prices.deadline[0], found)
        _round(block, link, quote, prices, rounds, rel_gap, found)
        numbers[STAGES] += 1.0
        if numbers[LATENCY] - numbers[BOUND] <= rel_gap * numbers[LATENCY]:
            break
