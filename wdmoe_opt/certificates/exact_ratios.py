"""Bounds on the weight-to-latency ratio in rational arithmetic; see `ratios`, written apart from it."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations, pairwise
from math import inf
from typing import TYPE_CHECKING

from wdmoe_opt.certificates.check import Verdict
from wdmoe_opt.certificates.exact import (
    ENUMERATED,
    Prices,
    deadline_failures,
    dearest_bandwidth,
    device_bound,
    fitting_sets,
    link_time,
    to_float,
    token_bound,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wdmoe_opt.certificates.certificate import Certificate
    from wdmoe_opt.certificates.exact import Block, Number


def ratio_verdict(blocks: Sequence[Block], c: Certificate, *, shared: bool) -> Verdict:
    """Mean over blocks of the most kept weight over latency; ``shared``: several have one bandwidth."""
    assert c.grid is not None
    failures = []
    if c.floor is not None:
        failures = [f"floor: {text}" for text in deadline_failures(blocks, c.floor)]
    total: Number = Fraction(0)
    spent = [Fraction(0)] * len(blocks[0].low)
    for i, block in enumerate(blocks):
        lowest = block.after
        if c.floor is not None:
            assert c.floor.deadline is not None
            lowest = max(lowest, Fraction(float(c.floor.deadline[i])))
        grid = [Fraction(x) for x in c.grid[i].tolist()]
        if grid[-1] * lowest < 1:
            failures.append(f"block {i}: the grid does not cover every possible latency")
            continue
        prices = Prices.of(block, c, i)
        # Before the first value of a grid even all the weight gives no larger ratio.
        late: Number = most_weight(block) * grid[0] if grid[0] > 0 else -inf
        most = _most_ratio(block, prices, grid)
        spent = [a + b for a, b in zip(spent, prices.bandwidth, strict=True)]
        if not shared:
            most = most + dearest_bandwidth(block, prices.bandwidth)
        total = total + max(most, late)
    if failures:
        return Verdict(inf, tuple(failures))
    if shared:
        total = total + dearest_bandwidth(blocks[0], spent)
    if isinstance(total, float):
        return Verdict(inf, ("the prices prove nothing",))
    return Verdict(to_float(total / len(blocks), up=True))


def _most_ratio(block: Block, prices: Prices, grid: Sequence[Fraction]) -> Number:
    """Most of ``worth - tokens x`` over all values of x = 1 / latency."""
    tokens = token_bound(block, prices)
    most: Number = -inf
    for left, right in list(pairwise(grid)) or [(grid[0], grid[0])]:
        latest: Number = inf if left == 0 else 1 / left
        sets = [fitting_sets(block, prices, k, min(latest, block.until)) for k in range(len(prices.send))]
        for x in (left, right):
            worth: Number = Fraction(0)
            for k, mine in enumerate(sets):
                ends = (block, prices, k, mine, Fraction(1), x)
                worth = worth + device_bound(*ends, limits=False, toll=prices.toll[k])
            if inf in (worth, tokens):
                return inf
            most = max(most, worth - tokens * x)
    return most


def most_weight(block: Block) -> Fraction:
    """Most gate weight a selection keeps."""
    total = Fraction(0)
    for j, options in enumerate(block.options):
        weights = sorted((block.weight[j, c] for c, _ in options), reverse=True)
        total += sum(weights[: block.problem.expert_cap], Fraction(0))
    return total


def token_ratio_verdict(blocks: Sequence[Block], c: Certificate) -> Verdict:
    """Mean over tokens of the best mean ratio, where retention is paid for."""
    assert c.retention is not None
    total = Fraction(0)
    for i, block in enumerate(blocks):
        mu = Fraction(float(c.retention[i]))
        best = Fraction(0)
        for j in range(len(block.options)):
            value = _best_option(block, j, mu)
            if value is None:
                return Verdict(inf, ("a token has no option, or one that takes no time",))
            best += value
        total += best / len(block.options) - mu * block.mean_floor
    return Verdict(to_float(total / len(blocks), up=True))


def _best_option(block: Block, j: int, mu: Fraction) -> Fraction | None:
    ratio = {}
    for c, e in block.options[j]:
        k = block.hosts[e]
        top = block.high[k] if block.problem.instance.token_time_link is None else Fraction(1)
        found = link_time(block, k, top)
        time = Fraction(0) if found is None else found[0].low + block.compute[e]
        if found is not None and time <= 0:
            return None
        ratio[c] = Fraction(0) if found is None else block.weight[j, c] / time
    share = {c: block.share[j, c] for c in ratio}
    cap = block.problem.expert_cap
    if block.problem.candidate_columns > ENUMERATED:
        kept = sorted(share.values(), reverse=True)[:cap]
        return max(ratio.values()) + mu * sum(kept, Fraction(0))
    best: Fraction | None = None
    for size in range(1, min(len(ratio), cap) + 1):
        for chosen in combinations(ratio, size):
            kept_share = sum((share[c] for c in chosen), Fraction(0))
            if kept_share >= block.token_floor:
                value = sum((ratio[c] for c in chosen), Fraction(0)) / size + mu * kept_share
                best = value if best is None else max(best, value)
    return best
