"""Bounds on the weight-to-latency ratio, from above, in double precision; see docs/certificates.md."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from wdmoe_opt.certificates.check import Prices, Verdict, deadline_failures, dearest_bandwidth
from wdmoe_opt.certificates.devices import device_bound, fitting_terms, link, tolled
from wdmoe_opt.certificates.facts import EPS
from wdmoe_opt.certificates.tokens import CHUNK, ENUMERATED, subsets_of

if TYPE_CHECKING:
    from wdmoe_opt.certificates.certificate import Certificate
    from wdmoe_opt.certificates.facts import Facts
    from wdmoe_opt.validation import RealArray


def ratio_verdict(facts: Facts, c: Certificate, *, shared: bool) -> Verdict:
    """Mean over blocks of the most kept weight over latency.

    Parameters
    ----------
    shared : bool
        Whether several blocks have one bandwidth: then only the sum of their prices is paid for.
    """
    assert c.grid is not None
    failures: list[str] = []
    lowest = facts.after
    if c.floor is not None:
        failures += [f"floor: {text}" for text in deadline_failures(facts, c.floor)]
        assert c.floor.deadline is not None
        lowest = np.maximum(lowest, c.floor.deadline)
    covered = c.grid[:, -1] * lowest * (1 - 4 * EPS) >= 1
    failures += [
        f"block {i}: the grid does not cover every possible latency" for i in np.flatnonzero(~covered)
    ]
    if failures:
        return Verdict(np.inf, tuple(failures))
    prices = Prices.of(facts, c)
    most = _most_ratios(facts, c, prices)
    # Before the first value of a grid even all the weight gives no larger ratio than this.
    first = c.grid[:, 0]
    late = np.where(first > 0, most_weight(facts) * first * (1 + 4 * EPS), -np.inf)
    nu = prices.device.bandwidth
    if shared:
        total = nu.sum(axis=0) * (1 + (most.size + 2) * EPS)
        cost = dearest_bandwidth(total, facts.low[0], facts.high[0], facts.budget)
        ratios = np.append(np.maximum(most, late), cost)
    else:
        cost = dearest_bandwidth(nu, facts.low, facts.high, facts.budget)
        ratios = np.maximum(most + cost + 4 * EPS * (np.abs(most) + cost), late)
    size = float(np.abs(ratios).sum())
    bound = float(ratios.sum() + (2 * ratios.size + 8) * EPS * size) / most.size
    if not np.isfinite(bound):
        return Verdict(np.inf, ("the prices prove nothing",))
    return Verdict(bound * (1 + 2 * EPS) if bound > 0 else bound)


def _most_ratios(facts: Facts, c: Certificate, prices: Prices) -> RealArray:
    """Most of ``worth - tokens x`` over all values of x = 1 / latency, rounded up, (blocks,)."""
    assert c.grid is not None
    grid = c.grid.T if c.grid.shape[1] > 1 else np.repeat(c.grid.T, 2, axis=0)
    # Sets are those that fit the latest latency of a piece; so the worth is convex over the piece.
    with np.errstate(divide="ignore"):
        latest = 1 / grid[:-1]
    terms = fitting_terms(facts, prices.sets, np.minimum(latest * (1 + 4 * EPS), facts.until))
    priced, lump = tolled(facts, prices.device, c.toll)
    most = np.full(prices.tokens.shape, -np.inf)
    known = np.where(np.isfinite(prices.tokens), np.abs(prices.tokens), 0.0)
    for x in (grid[:-1], grid[1:]):
        worth = device_bound(facts, priced, terms, np.ones(x.shape), x, limits=False, refine=True, lump=lump)
        size = np.where(np.isfinite(worth), np.abs(worth), 0.0).sum(axis=-1) + known * x
        with np.errstate(invalid="ignore"):
            ratio = worth.sum(axis=-1) - prices.tokens * x + (worth.shape[-1] + 12) * EPS * size
        unknown = np.isnan(ratio) | ~np.isfinite(prices.tokens)
        most = np.maximum(most, np.where(unknown, np.inf, ratio).max(axis=0))
    return most


def most_weight(facts: Facts) -> RealArray:
    """Most gate weight a selection keeps, rounded up, (blocks,)."""
    ordered = -np.sort(-facts.weight, axis=0)[: facts.cap]
    weight: RealArray = ordered.sum(axis=(0, 2)) * (1 + ordered[:, 0].size * EPS)
    return weight


def mean_up(values: RealArray) -> float:
    """Mean, rounded up where there is anything to round."""
    if values.size == 1:
        return float(values[0])
    return float(values.mean() + (values.size + 4) * EPS * np.abs(values).mean())


# ---------------------------------------------------------------------- ratio per token


def token_ratio_verdict(facts: Facts, c: Certificate) -> Verdict:
    """Mean over tokens of the best mean ratio, where retention is paid for."""
    assert c.retention is not None
    candidates, _, tokens = facts.pair.shape
    ratio = _pair_ratios(facts)
    nothing = Verdict(np.inf, ("a token has no option, or one that takes no time",))
    if not np.isfinite(ratio).all():
        return nothing
    if candidates <= ENUMERATED:
        best = _best_options(facts, c.retention, ratio)
    else:
        kept = -np.sort(-facts.share, axis=0)[: facts.cap]
        best = ratio.max(axis=0) + c.retention[:, None] * kept.sum(axis=0)
    paid = c.retention * facts.mean_floor
    size = best.mean(axis=1) + paid
    bound = best.mean(axis=1) - paid + (tokens + 4 * candidates + 64) * EPS * size
    if not np.isfinite(bound).all():
        return nothing
    return Verdict(mean_up(bound))


def _pair_ratios(facts: Facts) -> RealArray:
    """Gate weight over a token's time, (m, blocks, tokens); 0 where not allowed."""
    time, _, _ = link(facts, facts.high[:, :, None])
    with np.errstate(divide="ignore", invalid="ignore"):
        rate = 1 / (time[:, facts.hosts, 0] + facts.expert_compute)
        none = np.zeros((rate.shape[0], 1))
        ratios: RealArray = facts.weight * np.concatenate([rate, none], axis=1).ravel()[facts.pair]
    return ratios


def _best_options(facts: Facts, retention: RealArray, ratio: RealArray) -> RealArray:
    """Largest ``mean ratio + price of retention`` over a token's options, (blocks, tokens)."""
    candidates, blocks, tokens = ratio.shape
    subsets = subsets_of(candidates, facts.cap)
    chosen = subsets.astype(np.float64)
    mean = chosen / chosen.sum(axis=1, keepdims=True)
    kept, flat = facts.share.reshape(candidates, -1), ratio.reshape(candidates, -1)
    absent = (facts.pair % (facts.experts + 1) == facts.experts).reshape(candidates, -1)
    price, floor = np.repeat(retention, tokens), np.repeat(facts.token_floor, tokens)
    best = np.empty(blocks * tokens)
    step = max(1, CHUNK // len(subsets))
    for start in range(0, best.size, step):
        part = slice(start, start + step)
        share = chosen @ kept[:, part]
        value = mean @ flat[:, part] + price[part] * share
        out = (chosen @ absent[:, part] > 0) | (share < floor[part] - 2 * candidates * EPS)
        value[out] = -np.inf
        best[part] = value.max(axis=0)
    return best.reshape(blocks, tokens)
