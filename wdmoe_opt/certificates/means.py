"""The mean form of the check: a block waits at least for any weighted mean of its devices.

With weights of a block's devices that sum to at most 1, its latency is at least the weighted sum of their
times. At a given bandwidth a device's part of it, less what its transfers are paid, is linear in their
number; so its least is taken where the device idles, or at a limit of its transfers. There the time on air
is convex in the bandwidth, and any tangent bounds it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from wdmoe_opt.certificates.check import Prices, Verdict, dearest_bandwidth, sum_down
from wdmoe_opt.certificates.devices import STEPS, link, must_serve
from wdmoe_opt.certificates.facts import EPS

if TYPE_CHECKING:
    from wdmoe_opt.certificates.certificate import Certificate
    from wdmoe_opt.certificates.facts import Facts
    from wdmoe_opt.validation import RealArray


def mean_verdict(facts: Facts, certificate: Certificate) -> Verdict:
    """Sum over blocks of the least weighted mean at these prices, less what all bandwidth costs."""
    prices = Prices.of(facts, certificate)
    weight = prices.device.work
    failures = [
        f"block {i}: the weights of its devices sum to more than 1"
        for i in np.flatnonzero(~(weight.sum(axis=1) * (1 + (weight.shape[1] + 2) * EPS) <= 1))
    ]
    if failures:
        return Verdict(-np.inf, tuple(failures))
    worth, size = _devices_worth(facts, prices)
    woken, woken_size = _experts_worth(facts, prices)
    size = size + woken_size + np.where(np.isfinite(prices.tokens), np.abs(prices.tokens), 0.0)
    with np.errstate(invalid="ignore"):
        least = prices.tokens - worth - woken - (weight.shape[1] + facts.experts + 16) * EPS * size
    least = np.where(np.isnan(least), -np.inf, least)
    nu = prices.device.bandwidth.sum(axis=0) * (1 + (least.size + 2) * EPS)
    cost = float(dearest_bandwidth(nu, facts.low[0], facts.high[0], facts.budget))
    total = float(np.abs(least[np.isfinite(least)]).sum()) + cost
    bound = float(least.sum() - cost - (least.size + 4) * EPS * total)
    if not bound > 0:
        return Verdict(-np.inf, (f"the prices prove nothing: their bound is {bound:.6g} s",))
    return Verdict(max(bound, sum_down(facts.after)))


def _devices_worth(facts: Facts, prices: Prices) -> tuple[RealArray, RealArray]:
    """Most that any loads' prices exceed their weighted times and the price of bandwidth, (blocks,).

    Also the sum of the sizes of what was added up.
    """
    serving = must_serve(facts)
    fewest = np.maximum(facts.least, 1.0)
    loaded = facts.most >= fewest
    idle = np.where(serving, -np.inf, -prices.device.bandwidth * facts.low * (1 - 4 * EPS))
    most, size = _worth_at(facts, prices, facts.most)
    few, few_size = _worth_at(facts, prices, fewest)
    # Between no transfer and the most of them, either end is best.
    most = np.maximum(most, np.where(serving, few, -np.inf))
    worth = np.maximum(idle, np.where(loaded, most, -np.inf))
    sizes = np.where(loaded, np.maximum(size, few_size), 0.0)
    return worth.sum(axis=1), sizes.sum(axis=1)


def _worth_at(facts: Facts, prices: Prices, n: RealArray) -> tuple[RealArray, RealArray]:
    """Upper bound on what ``n`` transfers are worth at the best bandwidth; and its size."""
    device = prices.device
    busy = device.work * n
    low = facts.low
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        point = _points(facts, device.points, device.bandwidth / busy)
        time, fall, _ = (array[:, :, 0] for array in link(facts, point[:, :, None]))
        base = device.send * n - device.work * facts.delay
        size = np.abs(device.send) * n + device.work * facts.delay
        ends = []
        for b in (low, facts.high):
            step = b - point
            # Time and slope are good to 16 and 40 ulps.
            sure = time + fall * step - 128 * EPS * time * (1 + np.abs(step) / point)
            air = np.where(busy > 0, busy * sure, 0.0)
            paid = device.bandwidth * b
            total = size + np.abs(air) + paid
            ends.append((base - air - paid + 32 * EPS * total, total))
    worth = np.maximum(ends[0][0], ends[1][0])
    most = np.maximum(ends[0][1], ends[1][1])
    return np.where(np.isnan(worth), np.inf, worth), np.where(np.isfinite(most), most, 0.0)


def _points(facts: Facts, start: RealArray, wanted: RealArray) -> RealArray:
    """Bandwidths where the time on air falls about as fast as ``wanted``, by Newton in logarithms."""
    if facts.link_time is not None:
        return np.ones(start.shape)
    low = np.maximum(facts.low, facts.high * 1e-12)
    b = np.clip(start, low, facts.high)
    goal = np.log(wanted)
    for _ in range(STEPS):
        _, first, second = (array[:, :, 0] for array in link(facts, b[:, :, None]))
        step = (goal - np.log(-first)) * first / (b * second)
        step = np.where(np.isnan(step), 0.0, np.clip(step, -3.0, 3.0))
        new = np.clip(b * np.exp(step), low, facts.high)
        moved = np.abs(new - b) > 1e-8 * b
        b = new
        if not moved.any():
            break
    return b


def _experts_worth(facts: Facts, prices: Prices) -> tuple[RealArray, RealArray]:
    """Most that the prices of active experts exceed their weighted activation, (blocks,); and its size."""
    cost = prices.device.work[:, facts.hosts] * facts.activation
    wake = prices.device.wake
    worth = np.where(facts.awake, wake - cost, np.where(facts.usable, np.maximum(wake - cost, 0.0), 0.0))
    size = np.where(facts.usable | facts.awake, wake + cost, 0.0)
    return worth.sum(axis=1), size.sum(axis=1)
