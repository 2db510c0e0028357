"""What a certificate proves, recomputed in double precision with every step rounded outward.

Nothing here, nor in the modules it stands on (`facts`, `tokens`, `devices`), uses a solver, a kernel or the
metric: only a problem's data and NumPy. Proofs are in docs/certificates.md. Sums of n terms are widened by
more than n ulps of the sum of their sizes; numpy's ``log1p`` is taken to be good to 4 ulps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from wdmoe_opt.certificates.devices import (
    DevicePrices,
    active_sets,
    device_bound,
    fitting_terms,
    must_serve,
    tolled,
)
from wdmoe_opt.certificates.facts import EPS, facts_of
from wdmoe_opt.certificates.tokens import TokenPrices, token_bound
from wdmoe_opt.errors import InputError

if TYPE_CHECKING:
    from wdmoe_opt.certificates.certificate import Certificate
    from wdmoe_opt.certificates.devices import ActiveSets
    from wdmoe_opt.certificates.facts import BoolArray, Facts
    from wdmoe_opt.problem import Problem
    from wdmoe_opt.validation import RealArray

#: Prices below this count as 0, and times below it are for exact arithmetic: products must not underflow.
DUST = 1e-140
#: Least deadline of a block, s, that double precision is sure of.
LEAST_TIME = 1e-100


@dataclass(frozen=True)
class Verdict:
    """What a certificate proves.

    Attributes
    ----------
    bound : float
        On the objective's best value; infinitely bad where nothing is proved.
    failures : tuple of str
        Why nothing is proved.
    """

    bound: float
    failures: tuple[str, ...] = ()


def recompute(problem: Problem, certificate: Certificate) -> float:
    """Bound that a certificate really proves for a problem.

    Parameters
    ----------
    problem : Problem
    certificate : Certificate
        Its claim and its digest are not looked at.

    Returns
    -------
    float
        From below where the objective is minimised (-inf: proves nothing), from above where it is
        maximised (inf: proves nothing).

    Raises
    ------
    InputError
        If the certificate's arrays do not have the problem's shapes.
    """
    return inspect(problem, certificate).bound


def inspect(problem: Problem, certificate: Certificate) -> Verdict:
    """Like `recompute`, with the reasons where nothing is proved."""
    check_shapes(problem, certificate)
    wrong = wrong_form(problem, certificate)
    if wrong:
        return refused(problem, wrong)
    facts = facts_of(problem)
    if certificate.form == "tree":
        from wdmoe_opt.certificates.branches import tree_verdict

        return tree_verdict(problem, facts, certificate)
    if certificate.form in ("ratio", "token-ratio"):
        from wdmoe_opt.certificates import ratios

        shared = problem.allocation == "shared" and problem.instance.blocks > 1
        if certificate.form == "ratio":
            return ratios.ratio_verdict(facts, certificate, shared=shared)
        return ratios.token_ratio_verdict(facts, certificate)
    return flat_verdict(facts, certificate)


def flat_verdict(facts: Facts, certificate: Certificate) -> Verdict:
    """What prices prove of the latency, without any tree."""
    if certificate.form == "mean":
        from wdmoe_opt.certificates.means import mean_verdict

        return mean_verdict(facts, certificate)
    verdict = deadline_verdict if certificate.form == "deadline" else shared_verdict
    return verdict(facts, certificate)


def refused(problem: Problem, *failures: str) -> Verdict:
    """Nothing is proved."""
    return Verdict(-np.inf if problem.objective == "latency" else np.inf, failures)


def check_shapes(problem: Problem, certificate: Certificate, blocks: int | None = None) -> None:
    """Raise unless the arrays have the problem's sizes (or those of so many of its blocks)."""
    inst = problem.instance
    sizes = {"blocks": inst.blocks if blocks is None else blocks, "devices": inst.devices}
    sizes |= {"experts": inst.experts, "tokens": inst.tokens, "m": inst.columns}
    for name, axes in (
        ("send", ("blocks", "devices")),
        ("wake", ("blocks", "experts")),
        ("share", ("blocks", "tokens", "m")),
        ("retention", ("blocks",)),
        ("toll", ("blocks", "devices")),
    ):
        array = getattr(certificate, name)
        expected = tuple(sizes[axis] for axis in axes)
        if array is not None and array.shape != expected:
            words = ", ".join(axes)
            rule = f"must have shape {expected}, ({words}) of the problem; got {array.shape}"
            raise InputError(f"certificate.{name}", rule)
    if certificate.floor is not None:
        check_shapes(problem, certificate.floor, blocks)


def wrong_form(problem: Problem, certificate: Certificate) -> str:
    """Why a form cannot bound the problem's objective, "" if it can."""
    form, objective = certificate.form, problem.objective
    forms = {
        "latency": ("deadline", "shared", "mean", "tree"),
        "wlr-block": ("ratio",),
        "wlr-token": ("token-ratio",),
    }
    if form not in forms.get(objective, ()):
        return f"form {form!r} does not bound objective {objective!r}"
    several = problem.instance.blocks > 1
    if form in ("shared", "mean") and several and problem.allocation == "per-block":
        return f"form {form!r} does not bound several blocks with allocation 'per-block'"
    return ""


# ---------------------------------------------------------------------- prices


@dataclass(frozen=True, eq=False)
class Prices:
    """A certificate's prices in the shapes of the parts, and the token part's value, (blocks,)."""

    device: DevicePrices
    sets: ActiveSets
    tokens: RealArray

    @classmethod
    def of(cls, facts: Facts, c: Certificate) -> Prices:
        """Prices of a certificate whose shapes have been checked."""
        assert c.points is not None
        send, work, wake, retention, bandwidth = (
            _without_dust(array) for array in (c.send, c.work, c.wake, c.retention, c.bandwidth)
        )
        share = None
        if c.share is not None and facts.loads is None:
            share = np.ascontiguousarray(c.share.transpose(2, 0, 1)[: facts.pair.shape[0]])
            wake = np.maximum(wake, _share_sums(facts, share))
        # Fixed bandwidth needs no price.
        nu = bandwidth if np.isfinite(facts.budget) else np.zeros(bandwidth.shape)
        prices = TokenPrices(send, work, retention, share, repaid=c.form == "ratio")
        tokens = token_bound(facts, prices)
        if not _in_scale(facts, c):
            # Only exact arithmetic can tell: nothing is proved here.
            tokens = np.full(tokens.shape, -np.inf)
        if facts.loads is not None:
            tokens = tokens + (wake * facts.awake).sum(axis=1) * (1 - (facts.experts + 4) * EPS)
        return cls(DevicePrices(send, work, nu, c.points, wake), active_sets(facts, wake), tokens)


def _without_dust(prices: RealArray | None) -> RealArray:
    """Prices without those whose products could underflow: any prices prove something, 0 as well."""
    assert prices is not None
    return np.where(np.abs(prices) < DUST, 0.0, prices)


def _in_scale(facts: Facts, c: Certificate) -> bool:
    """Whether nothing is so small or large that products of it could underflow."""
    times = (facts.light, facts.heavy, facts.activation, facts.delay)
    sound = not any(((array > 0) & (array < DUST)).any() for array in times)
    if c.deadline is not None:
        sound &= not ((c.deadline > 0) & (c.deadline < LEAST_TIME)).any()
    if c.grid is not None:
        sound &= not (c.grid > 1 / LEAST_TIME).any()
    return sound


def _share_sums(facts: Facts, share: RealArray) -> RealArray:
    """Upper bound on what all tokens together pay for an expert, (blocks, experts)."""
    _, blocks, tokens = facts.pair.shape
    size = blocks * (facts.experts + 1)
    sums = np.bincount(facts.pair.ravel(), share.ravel(), size).reshape(blocks, facts.experts + 1)
    upper: RealArray = sums[:, :-1] * (1 + (tokens * share.shape[0] + 4) * EPS)
    return upper


def dearest_bandwidth(prices: RealArray, low: RealArray, high: RealArray, budget: float) -> RealArray:
    """Upper bound on the price of any bandwidth within limits and budget, (...,) from (..., devices).

    For every t >= 0 it is at most ``t budget + sum of max over the limits of (price - t) b``; the best t is
    one of the prices, or 0.
    """
    if not np.isfinite(budget):
        return np.zeros(prices.shape[:-1])
    t = np.concatenate([prices, np.zeros((*prices.shape[:-1], 1))], axis=-1)[..., None]
    over = prices[..., None, :] - t
    top = high[..., None, :]
    rest = np.where(over > 0, over * top, over * low[..., None, :]).sum(axis=-1)
    size = (np.maximum(prices[..., None, :], t) * top).sum(axis=-1)
    spent = t[..., 0] * budget
    value = spent + rest + (prices.shape[-1] + 8) * EPS * (spent + size)
    least: RealArray = value.min(axis=-1)
    return least


# ---------------------------------------------------------------------- deadline form


def deadline_verdict(facts: Facts, certificate: Certificate) -> Verdict:
    """Sum of the deadlines, if every one of them is proved."""
    assert certificate.deadline is not None
    deadline = certificate.deadline
    if not (deadline > 0).any():
        return Verdict(-np.inf, ("the certificate claims nothing: every deadline is 0",))
    failures = deadline_failures(facts, certificate)
    if failures:
        return Verdict(-np.inf, failures)
    return Verdict(sum_down(deadline))


def deadline_failures(facts: Facts, certificate: Certificate) -> tuple[str, ...]:
    """Blocks whose deadline is above 0 and not proved, in words."""
    assert certificate.deadline is not None
    deadline = certificate.deadline
    margin = deadline_margins(facts, certificate)
    failed = (deadline > 0) & ~(margin > 0)
    return tuple(
        f"block {i}: latency {deadline[i]:.9g} s is not proved out of reach (margin {margin[i]:.3g})"
        for i in np.flatnonzero(failed)
    )


def deadline_margins(facts: Facts, certificate: Certificate) -> RealArray:
    """By how much the token part exceeds the device parts and the bandwidth, rounded down, (blocks,)."""
    assert certificate.deadline is not None
    prices = Prices.of(facts, certificate)
    deadline = certificate.deadline
    terms = fitting_terms(facts, prices.sets, deadline)
    budget = dearest_bandwidth(prices.device.bandwidth, facts.low, facts.high, facts.budget)
    scale = np.ones(deadline.shape)
    worth = np.full(prices.device.send.shape, np.inf)
    margin = -scale
    # For a single set the stored tangent points are mostly good enough, for several they rarely are.
    several = terms.wake.shape[-1] > 1
    # Limits on transfers only ever lower a worth; for a single set it is mostly low enough without them.
    tries = [(True, True), (True, False)] if several else [(False, False), (True, False), (True, True)]
    for limits, refine in tries:
        found = device_bound(facts, prices.device, terms, deadline, scale, limits=limits, refine=refine)
        worth = np.minimum(worth, found)
        margin = _margin(prices.tokens, worth, budget)
        if (margin[deadline > 0] > 0).all():
            break
    return margin


def _margin(tokens: RealArray, worth: RealArray, budget: RealArray) -> RealArray:
    devices = worth.shape[-1]
    size = np.abs(worth)
    size = np.where(np.isfinite(size), size, 0.0).sum(axis=-1)
    with np.errstate(invalid="ignore"):
        rounding = (devices + 8) * EPS * (np.where(np.isfinite(tokens), np.abs(tokens), 0.0) + size + budget)
        margin: RealArray = tokens - worth.sum(axis=-1) - budget - rounding
    return margin


def sum_down(values: RealArray) -> float:
    """Sum, rounded down where there is anything to round."""
    return (
        float(values.sum() - (values.size + 4) * EPS * np.abs(values).sum())
        if values.size > 1
        else float(values[0])
    )


# ---------------------------------------------------------------------- shared form


def shared_verdict(facts: Facts, certificate: Certificate) -> Verdict:
    """Sum over blocks of the least latency at these prices, less what all bandwidth costs."""
    prices = Prices.of(facts, certificate)
    failures: list[str] = []
    lowest = facts.after
    if certificate.floor is not None:
        failures += [f"floor: {text}" for text in deadline_failures(facts, certificate.floor)]
        assert certificate.floor.deadline is not None
        lowest = np.maximum(lowest, certificate.floor.deadline)
    failures += _grid_failures(facts, certificate, prices, lowest)
    if failures:
        return Verdict(-np.inf, tuple(failures))
    least = _least_latencies(facts, certificate, prices)
    nu = prices.device.bandwidth.sum(axis=0) * (1 + (least.size + 2) * EPS)
    cost = float(dearest_bandwidth(nu, facts.low[0], facts.high[0], facts.budget))
    size = float(np.abs(least[np.isfinite(least)]).sum()) + cost
    bound = float(least.sum() - cost - (least.size + 4) * EPS * size)
    if not bound > 0:
        return Verdict(-np.inf, (f"the prices prove nothing: their bound is {bound:.6g} s",))
    return Verdict(bound)


def _grid_failures(facts: Facts, c: Certificate, prices: Prices, lowest: RealArray) -> list[str]:
    """Blocks whose grid leaves out a possible latency."""
    assert c.grid is not None
    assert c.offset is not None
    free = _is_free(facts, c, prices)
    with np.errstate(invalid="ignore"):
        after = lowest - c.offset - 2 * EPS * (lowest + np.abs(c.offset))
        until = facts.until - c.offset + 2 * EPS * (facts.until + np.abs(c.offset))
        end = (after > 0) & (c.grid[:, -1] * after * (1 - 4 * EPS) >= 1)
        begin = (c.grid[:, 0] == 0) | (c.grid[:, 0] * until * (1 + 4 * EPS) <= 1)
    begin &= (c.grid[:, 0] == 0) | (until > 0)
    return [
        f"block {i}: the grid does not cover every possible latency"
        for i in np.flatnonzero(~(free | (begin & end)))
    ]


def _is_free(facts: Facts, c: Certificate, prices: Prices) -> BoolArray:
    """Blocks with the grid 0 alone, whose device part does not depend on it."""
    assert c.grid is not None
    assert c.offset is not None
    delayed = facts.delay[facts.hosts] + facts.activation > 0
    depends = ((facts.usable & delayed) | (prices.device.wake > 0)).any(axis=1)
    free: BoolArray = (c.grid[:, -1] == 0) & (c.offset == 0) & ~depends
    return free


def _least_latencies(facts: Facts, c: Certificate, prices: Prices) -> RealArray:
    """Least of ``latency - price of bandwidth`` of every block, rounded down, (blocks,)."""
    assert c.grid is not None
    assert c.offset is not None
    tokens = prices.tokens
    grid = c.grid.T if c.grid.shape[1] > 1 else np.repeat(c.grid.T, 2, axis=0)
    left, right = grid[:-1], grid[1:]
    # Sets are those that fit the latest latency of a piece; so the worth is convex over the piece.
    with np.errstate(divide="ignore"):
        latest = c.offset + 1 / left
    latest = np.minimum(latest + 4 * EPS * np.abs(latest), facts.until)
    terms = fitting_terms(facts, prices.sets, latest)
    priced, lump = tolled(facts, prices.device, c.toll)
    ends = []
    for x in (left, right):
        worth = device_bound(facts, priced, terms, 1 + c.offset * x, x, limits=False, refine=True, lump=lump)
        size = np.where(np.isfinite(worth), np.abs(worth), 0.0).sum(axis=-1)
        ends.append(worth.sum(axis=-1) + (worth.shape[-1] + 2) * EPS * size)
    least = _piece_minimum(tokens, left, right, *ends).min(axis=0)
    free = _is_free(facts, c, prices)
    # A lump is proportional to x like the token part; on a device that may idle it can only cost.
    lumps = np.where(must_serve(facts), lump, np.maximum(lump, 0.0))
    size = np.where(np.isfinite(tokens), np.abs(tokens), 0.0) + np.abs(lumps).sum(axis=-1)
    left_over = tokens - lumps.sum(axis=-1) - (lumps.shape[-1] + 4) * EPS * size
    root = 2 * np.sqrt(np.maximum(left_over, 0.0)) * (1 - 4 * EPS)
    least = np.where(free, root - ends[0][0], least)
    size = np.where(np.isfinite(least), np.abs(least), 0.0) + np.abs(c.offset)
    bound: RealArray = least + c.offset - 8 * EPS * size
    return bound


def _piece_minimum(
    tokens: RealArray, left: RealArray, right: RealArray, at_left: RealArray, at_right: RealArray
) -> RealArray:
    """Lower bound on ``1/x + tokens x - chord(x)`` over [left, right], the chord through two values."""
    width = right - left
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        steep = (at_right - at_left) / width
        size = np.abs(tokens) + (np.abs(at_left) + np.abs(at_right)) / width
        slope = np.where(width > 0, tokens - steep - 16 * EPS * size, 0.0)
        turn = 1 / np.sqrt(slope)
        inside = 2 * np.sqrt(slope) - slope * left
        first, last = 1 / left, 1 / right + slope * width
        value = np.where(turn <= left, first, np.where(turn < right, inside, last))
        start = tokens * left - at_left
        wide = np.abs(slope) * right + np.abs(tokens) * left + np.abs(at_left)
        value = value + start - 32 * EPS * (np.where(np.isfinite(value), np.abs(value), 0.0) + wide)
    # No set of loads fits the piece at all, or a token has no option.
    value = np.where((at_left == -np.inf) | np.isposinf(tokens), np.inf, value)
    safe: RealArray = np.where(np.isnan(value), -np.inf, value)
    return safe
