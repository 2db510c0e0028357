"""The mean form in rational arithmetic; see `means`, written apart from it."""

from __future__ import annotations

from fractions import Fraction
from math import inf
from typing import TYPE_CHECKING

import numpy as np

from wdmoe_opt.certificates.check import Verdict
from wdmoe_opt.certificates.exact import (
    LN2,
    Prices,
    dearest_bandwidth,
    directions,
    link_time,
    must_serve,
    stored_point,
    to_float,
    token_bound,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wdmoe_opt.certificates.certificate import Certificate
    from wdmoe_opt.certificates.exact import Block, Number


def mean_verdict(blocks: Sequence[Block], certificate: Certificate) -> Verdict:
    """Sum over blocks of the least weighted mean at these prices, less what all bandwidth costs."""
    total: Number = Fraction(0)
    after = Fraction(0)
    spent = [Fraction(0)] * len(blocks[0].low)
    failures = []
    for i, block in enumerate(blocks):
        prices = Prices.of(block, certificate, i)
        if sum(prices.work) > 1:
            failures.append(f"block {i}: the weights of its devices sum to more than 1")
        total = total + token_bound(block, prices)
        for k in range(len(prices.send)):
            total = total - _device_worth(block, prices, k)
        total = total - _experts_worth(block, prices)
        after += block.after
        spent = [a + b for a, b in zip(spent, prices.bandwidth, strict=True)]
    if failures:
        return Verdict(-inf, tuple(failures))
    total = total - dearest_bandwidth(blocks[0], spent)
    if not total > 0:
        return Verdict(-inf, (f"the prices prove nothing: their bound is {float(total):.6g} s",))
    bound = max(total, after)
    return Verdict(bound if isinstance(bound, float) else to_float(bound, up=False))


def _device_worth(block: Block, prices: Prices, k: int) -> Number:
    """Most that a device's load is worth, less its weighted time and its bandwidth."""
    _, _, least, most = block.limits(k)
    serving, fewest = must_serve(block, k), max(least, 1)
    found: list[Number] = [] if serving else [-prices.bandwidth[k] * block.low[k]]
    if most >= fewest:
        found += [_worth_at(block, prices, k, n) for n in ({fewest, most} if serving else {most})]
    return max(found, default=-inf)


def _worth_at(block: Block, prices: Prices, k: int, n: int) -> Number:
    weight, nu = prices.work[k], prices.bandwidth[k]
    base = prices.send[k] * n - weight * block.delay[k]
    if weight == 0:
        return base - nu * block.low[k]
    best: Number = inf
    for point in {stored_point(block, k, prices.points[k]), _point(block, prices, k, n)}:
        found = link_time(block, k, point)
        if found is None:
            continue
        time, fall = found
        worst: Number = -inf
        for b in (block.low[k], block.high[k]):
            step = b - point
            sure = time.low - (fall.high if step > 0 else fall.low) * step
            worst = max(worst, base - weight * n * sure - nu * b)
        best = min(best, worst)
    return best


def _point(block: Block, prices: Prices, k: int, n: int) -> Fraction:
    """Bandwidth where time on air falls about as fast as bandwidth costs, by bisection in floats.

    Any point would do, but the bound falls in proportion to how far the point is off.
    """
    if block.problem.instance.token_time_link is not None or block.low[k] == block.high[k]:
        return stored_point(block, k, prices.points[k])
    wanted = float(prices.bandwidth[k] / (prices.work[k] * n))
    left, right = float(max(block.low[k], block.high[k] / 10**12)), float(block.high[k])
    ways = [(float(bits), float(snr)) for bits, snr in directions(block, k)]
    for _ in range(80):
        middle = (left * right) ** 0.5
        fall = sum(bits * float(LN2.low) * _steepness(middle, snr) for bits, snr in ways)
        left, right = (middle, right) if fall > wanted else (left, middle)
    return stored_point(block, k, left)


def _steepness(b: float, snr: float) -> float:
    """How fast ``1 / (b ln(1 + snr / b))`` falls."""
    log = float(np.log1p(snr / b))
    return (log - snr / (b + snr)) / (b * log) ** 2 if log > 0 else 0.0


def _experts_worth(block: Block, prices: Prices) -> Fraction:
    """Most that the prices of active experts exceed their weighted activation."""
    total = Fraction(0)
    for e in block.usable() | block.awake:
        over = prices.wake[e] - prices.work[block.hosts[e]] * block.activation[e]
        total += over if e in block.awake else max(over, Fraction(0))
    return total
