"""The token part of the check: least price of what every token must select, rounded down (fact 6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from wdmoe_opt.certificates.facts import EPS

if TYPE_CHECKING:
    from wdmoe_opt.certificates.facts import BoolArray, Facts
    from wdmoe_opt.validation import IntArray, RealArray

#: Candidates up to which a token's subsets are all listed where a floor or a cap couples them.
ENUMERATED = 8
#: Token-subset pairs that are listed at a time.
CHUNK = 2**19


@dataclass(frozen=True, eq=False)
class TokenPrices:
    """Prices as the token part uses them.

    Attributes
    ----------
    send, work : float array (blocks, devices)
    retention : float array (blocks,)
    share : float array (m, blocks, tokens) or None
    repaid : bool
        Whether kept gate weight is paid back.
    """

    send: RealArray
    work: RealArray
    retention: RealArray
    share: RealArray | None = None
    repaid: bool = False


def token_bound(facts: Facts, prices: TokenPrices) -> RealArray:
    """Lower bound on what the loads of any allowed selection cost at these prices, (blocks,).

    Infinite where some token has nothing to select.
    """
    if facts.loads is not None:
        return _loads_bound(facts, prices)
    candidates, _, tokens = facts.pair.shape
    send, base = _expert_prices(facts, prices)
    cost = base.ravel()[facts.pair]
    size = np.abs(prices.send)[:, facts.hosts] + prices.work[:, facts.hosts] * facts.expert_compute
    total = (size * facts.count).sum(axis=1)
    gained = prices.retention[:, None] * facts.share
    cost -= gained
    total += gained.sum(axis=(0, 2))
    if prices.repaid:
        cost -= facts.weight
        total += facts.weight.sum(axis=(0, 2))
    if prices.share is not None:
        cost += prices.share
        total += prices.share.sum(axis=(0, 2))
    least = least_costs(facts, cost, send).sum(axis=1)
    floor = prices.retention * facts.mean_floor * tokens
    # Each token's least is a sum of at most 4 m terms; their sizes add up to `total`.
    bound: RealArray = least + floor - (candidates * tokens + 4 * candidates + 16) * EPS * (total + floor)
    return bound


def _loads_bound(facts: Facts, prices: TokenPrices) -> RealArray:
    """What known loads cost."""
    assert facts.loads is not None
    cost = facts.loads * (prices.send + prices.work * facts.expert_compute)
    size = facts.loads * (np.abs(prices.send) + prices.work * facts.expert_compute)
    known: RealArray = cost.sum(axis=1) - (cost.shape[1] + 8) * EPS * size.sum(axis=1)
    return known


def _expert_prices(facts: Facts, prices: TokenPrices) -> tuple[RealArray, RealArray]:
    """Price of a transfer and of a pair by expert, (blocks, experts + 1); the last one is not allowed.

    With dispatch by expert a pair's price holds its transfer.
    """
    blocks = prices.send.shape[0]
    send = np.zeros((blocks, facts.experts + 1))
    base = np.empty((blocks, facts.experts + 1))
    send[:, :-1] = prices.send[:, facts.hosts]
    base[:, :-1] = prices.work[:, facts.hosts] * facts.expert_compute
    base[:, -1] = np.inf
    if not facts.by_device:
        base += send
    return send, base


def least_costs(facts: Facts, cost: RealArray, send: RealArray) -> RealArray:
    """Least cost of a token's options, (blocks, tokens), from the costs of pairs (m, blocks, tokens)."""
    floored = bool((facts.token_floor > 0).any())
    capped = facts.cap < facts.pair.shape[0]
    if floored or (capped and (facts.by_device or facts.forced is not None)):
        if facts.pair.shape[0] <= ENUMERATED:
            return _enumerated(facts, cost, send)
        if floored:
            return _relaxed(facts, cost, send)
    if facts.by_device:
        return _grouped(facts, cost, send)
    if capped and facts.forced is None:
        ordered = np.sort(cost, axis=0)
        rest: RealArray = np.minimum(ordered[1 : facts.cap], 0.0).sum(axis=0)
        capped_least: RealArray = ordered[0] + rest
        return capped_least
    return _free(facts, cost)


def _free(facts: Facts, cost: RealArray) -> RealArray:
    """Every pair on its own: all that pay, or the cheapest."""
    optional = np.minimum(cost, 0.0)
    if facts.forced is not None:
        forced_cost = np.where(facts.forced, cost, optional).sum(axis=0)
        rest = np.where(facts.forced.any(axis=0), -np.inf, cost.min(axis=0))
        total = forced_cost
    else:
        rest, total = cost.min(axis=0), optional.sum(axis=0)
    least: RealArray = np.where(rest > 0, rest, total)
    return least


def device_of_pairs(facts: Facts) -> IntArray:
    """Device of every pair, (m, blocks, tokens); where it is not allowed, one that no pair shares."""
    expert = facts.pair - np.arange(facts.pair.shape[1])[:, None] * (facts.experts + 1)
    hosts = np.append(facts.hosts, -1)
    device = hosts[expert]
    alone = -1 - np.arange(facts.pair.shape[0])[:, None, None]
    return np.where(device < 0, alone, device)


def _grouped(facts: Facts, cost: RealArray, send: RealArray) -> RealArray:
    """Pairs on one device share a transfer: the best of every device, then all that pay, or the cheapest.

    A cap is left out: the bound stays valid.
    """
    candidates = cost.shape[0]
    device = device_of_pairs(facts)
    transfer = send.ravel()[facts.pair]
    total = np.zeros(cost.shape[1:])
    least = np.full(cost.shape[1:], np.inf)
    held = np.zeros(cost.shape[1:], dtype=np.bool_)
    for c in range(candidates):
        same = device == device[c]
        optional = np.where(same, np.minimum(cost, 0.0), 0.0)
        cheapest = np.where(same, cost, np.inf).min(axis=0)
        value = np.where(cheapest > 0, cheapest, optional.sum(axis=0)) + transfer[c]
        first = ~same[:c].any(axis=0)
        pays = np.minimum(value, 0.0)
        if facts.forced is not None:
            mine = same & facts.forced
            must = mine.any(axis=0)
            forced_value = np.where(mine, cost, optional).sum(axis=0) + transfer[c]
            value, pays = np.where(must, forced_value, value), np.where(must, forced_value, pays)
            held |= must
        total += np.where(first, pays, 0.0)
        least = np.minimum(least, value)
    return np.where((least > 0) & ~held, least, total)


def subsets_of(candidates: int, cap: int) -> BoolArray:
    """Every non-empty subset of at most ``cap`` candidates, bool (subsets, m)."""
    numbers = np.arange(1, 2**candidates)
    inside = (numbers[:, None] >> np.arange(candidates)) & 1 == 1
    few: BoolArray = inside[inside.sum(axis=1) <= cap]
    return few


def _enumerated(facts: Facts, cost: RealArray, send: RealArray) -> RealArray:
    """Every subset of every token, in chunks of tokens."""
    candidates, blocks, tokens = cost.shape
    subsets = subsets_of(candidates, facts.cap)
    chosen = subsets.astype(np.float64)
    flat = cost.reshape(candidates, -1)
    least = np.empty(blocks * tokens)
    kept = facts.share.reshape(candidates, -1)
    floor = np.repeat(facts.token_floor, tokens)
    device = device_of_pairs(facts).reshape(candidates, -1)
    transfer = send.ravel()[facts.pair].reshape(candidates, -1)
    forced = None if facts.forced is None else facts.forced.reshape(candidates, -1)
    step = max(1, CHUNK // len(subsets))
    for start in range(0, least.size, step):
        part = slice(start, start + step)
        here = flat[:, part]
        absent = ~np.isfinite(here)
        price = chosen @ np.where(absent, 0.0, here)
        out = chosen @ absent > 0
        out |= chosen @ kept[:, part] < floor[part] - 2 * candidates * EPS
        if forced is not None:
            out |= (1 - chosen) @ forced[:, part] > 0
        if facts.by_device:
            for c in range(candidates):
                before = device[:c, part] == device[c, part]
                alone = subsets[:, c, None] & (chosen[:, :c] @ before == 0)
                price += np.where(alone, transfer[c, part], 0.0)
        price[out] = np.inf
        least[part] = price.min(axis=0)
    return least.reshape(blocks, tokens)


def _relaxed(facts: Facts, cost: RealArray, send: RealArray) -> RealArray:
    """Bound for many candidates under a floor per token: its price on top, at the best breakpoint.

    For every price t >= 0 of the floor, t * floor + least cost of pairs reduced by t * share is a bound;
    the best t is where some pair's reduced cost changes sign. A cap is left out.
    """
    floor = facts.token_floor[:, None]
    free = _grouped if facts.by_device else None

    def at(t: RealArray) -> RealArray:
        reduced = cost - t * facts.share
        value = _free(facts, reduced) if free is None else free(facts, reduced, send)
        # A token's sum has at most 4 m terms, each at most this large.
        size = t * (facts.share.sum(axis=0) + floor)
        lowered: RealArray = value + t * floor - 8 * cost.shape[0] * EPS * size
        return lowered

    best = at(np.zeros(cost.shape[1:]))
    transfer = send.ravel()[facts.pair] if facts.by_device else 0.0
    with np.errstate(divide="ignore", invalid="ignore"):
        breaks = np.where(facts.share > 0, (cost + transfer) / facts.share, 0.0)
    for t in np.where(np.isfinite(breaks) & (breaks > 0), breaks, 0.0):
        best = np.maximum(best, at(t))
    # Where even all candidates miss the floor there is no option, and any bound holds.
    return best
