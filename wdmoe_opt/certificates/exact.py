"""The check once more in rational arithmetic: slow, plain loops, no assumption about rounding.

Everything linear is computed with fractions. Logarithms come from `decimal`, whose ``ln`` is correctly
rounded, and are enclosed one unit outward in the last of 50 digits; roots come from integer square roots.
Written apart from `check`, so that the two also test each other. Proofs are in docs/certificates.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from fractions import Fraction
from itertools import combinations, pairwise
from math import inf, isfinite, isqrt
from typing import TYPE_CHECKING, Any

import numpy as np

from wdmoe_opt.certificates.check import Verdict, check_shapes, refused, wrong_form
from wdmoe_opt.problem import FEASIBILITY_TOLERANCE

if TYPE_CHECKING:
    from wdmoe_opt.certificates.certificate import Certificate
    from wdmoe_opt.problem import Problem

Number = Fraction | float
TOLERANCE = Fraction(FEASIBILITY_TOLERANCE)
#: Spacing of floats at 1: how a point is found feasible is rounded, too.
EPS = Fraction(1, 2**52)
DIGITS = 50
_DOWN, _UP = Context(DIGITS, ROUND_FLOOR), Context(DIGITS, ROUND_CEILING)
#: Subsets of a token's candidates are listed up to so many candidates, as in the fast check.
ENUMERATED = 8


def recompute_exactly(problem: Problem, certificate: Certificate) -> float:
    """Like `check.recompute`, in rational arithmetic; the result is rounded outward to a float."""
    return inspect_exactly(problem, certificate).bound


def inspect_exactly(problem: Problem, certificate: Certificate) -> Verdict:
    """Like `check.inspect`, in rational arithmetic."""
    check_shapes(problem, certificate)
    wrong = wrong_form(problem, certificate)
    if wrong:
        return refused(problem, wrong)
    blocks = [Block.of(problem, i) for i in range(problem.instance.blocks)]
    if certificate.form == "tree":
        from wdmoe_opt.certificates.exact_branches import tree_verdict

        return tree_verdict(problem, certificate)
    if certificate.form in ("ratio", "token-ratio"):
        from wdmoe_opt.certificates import exact_ratios

        shared = problem.allocation == "shared" and problem.instance.blocks > 1
        if certificate.form == "ratio":
            return exact_ratios.ratio_verdict(blocks, certificate, shared=shared)
        return exact_ratios.token_ratio_verdict(blocks, certificate)
    return flat_verdict(blocks, certificate)


def flat_verdict(blocks: Sequence[Block], certificate: Certificate) -> Verdict:
    """What prices prove of the latency, without any tree."""
    if certificate.form == "mean":
        from wdmoe_opt.certificates.exact_means import mean_verdict

        return mean_verdict(blocks, certificate)
    return (_deadline if certificate.form == "deadline" else _shared)(blocks, certificate)


# ---------------------------------------------------------------------- numbers


@dataclass(frozen=True)
class Span:
    """An enclosed positive number."""

    low: Fraction
    high: Fraction


def logarithm(value: Fraction) -> Span:
    """Natural logarithm of a number of at least 1, enclosed."""
    top, bottom = Decimal(value.numerator), Decimal(value.denominator)
    low, high = _DOWN.ln(_DOWN.divide(top, bottom)), _UP.ln(_UP.divide(top, bottom))
    return Span(max(Fraction(_DOWN.next_minus(low)), Fraction(0)), Fraction(_UP.next_plus(high)))


LN2 = logarithm(Fraction(2))


def root_below(value: Fraction) -> Fraction:
    """Square root, rounded down."""
    if value <= 0:
        return Fraction(0)
    # Enough bits for a relative error of 2^-100.
    shift = 200 + max(value.denominator.bit_length() - value.numerator.bit_length(), 0)
    return Fraction(isqrt((value.numerator << (2 * shift)) // value.denominator), 1 << shift)


def rounded(value: Fraction, *, up: bool) -> Fraction:
    """The same to 40 digits, rounded one way: keeps fractions short."""
    context = Context(40, ROUND_CEILING if up else ROUND_FLOOR)
    return Fraction(context.divide(Decimal(value.numerator), Decimal(value.denominator)))


def to_float(value: Fraction, *, up: bool) -> float:
    """Nearest float on the safe side."""
    near = float(value)
    if isfinite(near) and ((Fraction(near) < value) if up else (Fraction(near) > value)):
        near = float(np.nextafter(near, inf if up else -inf))
    return near


# ---------------------------------------------------------------------- a block


@dataclass
class Block:
    """One block of a problem in fractions, with whatever restrictions have been put on it.

    Only known loads come with ``awake``, ``least`` and ``most``: their devices are loaded.

    Attributes
    ----------
    options : list of list of (column, expert)
        Candidates of every token.
    weight, share : dict from (token, column)
    forced : set of (token, column)
    """

    problem: Problem
    index: int
    options: list[list[tuple[int, int]]]
    weight: dict[tuple[int, int], Fraction]
    share: dict[tuple[int, int], Fraction]
    mean_floor: Fraction
    token_floor: Fraction
    hosts: list[int]
    compute: list[Fraction]
    activation: list[Fraction]
    delay: list[Fraction]
    low: list[Fraction]
    high: list[Fraction]
    budget: Fraction | None
    loads: list[int] | None
    forced: set[tuple[int, int]] = field(default_factory=set)
    awake: set[int] = field(default_factory=set)
    least: dict[int, int] = field(default_factory=dict)
    most: dict[int, int] = field(default_factory=dict)
    after: Fraction = Fraction(0)
    until: Number = inf

    @classmethod
    def of(cls, problem: Problem, i: int) -> Block:
        """Block ``i`` of a problem, unrestricted."""
        inst = problem.instance
        hosts = list(range(inst.devices)) if inst.expert_device is None else inst.expert_device.tolist()
        options, weight, share = _candidates(problem, i)
        low, high, budget = _limits(problem, i)
        tokens, columns = inst.tokens, inst.columns
        loads = None if inst.loads is None else inst.loads[i].tolist()
        block = cls(
            problem=problem,
            index=i,
            options=options,
            weight=weight,
            share=share,
            mean_floor=_floor(problem.min_retention, i, tokens + columns + 8),
            token_floor=_floor(problem.min_token_retention, i, columns + 8),
            hosts=hosts,
            compute=_per_expert(inst.compute_time, hosts, inst.devices),
            activation=_per_expert(inst.activation_time, hosts, inst.devices),
            delay=[Fraction(x) for x in inst.link_delay.tolist()],
            low=low,
            high=high,
            budget=budget,
            loads=loads,
        )
        if loads is not None:
            block.least = block.most = {k: n for k, n in enumerate(loads) if n > 0}
            block.awake = {k for k, n in enumerate(loads) if n > 0}
        return block

    @property
    def by_device(self) -> bool:
        """Whether a token is sent once per device."""
        return self.problem.dispatch == "device"

    def usable(self) -> set[int]:
        """Experts that some token may use."""
        if self.loads is not None:
            return {k for k, n in enumerate(self.loads) if n > 0}
        return {e for options in self.options for _, e in options}

    def limits(self, k: int) -> tuple[Fraction, Fraction, int, int]:
        """Least and largest compute per transfer of a device, and least and most transfers."""
        if self.loads is not None:
            n = self.loads[k]
            return self.compute[k], self.compute[k], max(n, self.least.get(k, n)), min(n, self.most.get(k, n))
        mine = [[e for _, e in options if self.hosts[e] == k] for options in self.options]
        times = [self.compute[e] for experts in mine for e in experts]
        if not times:
            return Fraction(0), Fraction(0), self.least.get(k, 0), 0
        heavy, most = max(times), len(times)
        if self.by_device:
            heavy = max(sum((self.compute[e] for e in experts), Fraction(0)) for experts in mine)
            most = sum(1 for experts in mine if experts)
        light = min(times)
        open_pairs = sum(1 for j, options in enumerate(self.options) for c, e in options
                         if self.hosts[e] == k and (j, c) not in self.forced)  # fmt: skip
        if open_pairs == 0:
            # Its load is decided, and so is the compute of a mean transfer.
            light = heavy = sum(times, Fraction(0)) / most
        return light, heavy, self.least.get(k, 0), min(most, self.most.get(k, most))


def _floor(floor: Any, i: int, operations: int) -> Fraction:
    value = Fraction(float(np.asarray(floor)[i]))
    return value * (1 - TOLERANCE - operations * EPS)


def _per_expert(times: Any, hosts: list[int], devices: int) -> list[Fraction]:
    values = [Fraction(x) for x in times.tolist()]
    return [values[k] for k in hosts] if len(values) == devices else values


def _candidates(problem: Problem, i: int) -> tuple[Any, Any, Any]:
    inst = problem.instance
    options: list[list[tuple[int, int]]] = []
    weight: dict[tuple[int, int], Fraction] = {}
    share: dict[tuple[int, int], Fraction] = {}
    if inst.expert_ids is None or inst.gate_weights is None:
        return options, weight, share
    for j in range(inst.tokens):
        mass = sum((Fraction(w) for w in inst.gate_weights[i, j, : inst.top_k].tolist()), Fraction(0))
        allowed = np.flatnonzero(problem.allowed[i, j]).tolist()
        options.append([(c, int(inst.expert_ids[i, j, c])) for c in allowed])
        for c in allowed:
            weight[j, c] = Fraction(float(inst.gate_weights[i, j, c]))
            share[j, c] = weight[j, c] / mass
    return options, weight, share


def _limits(problem: Problem, i: int) -> tuple[list[Fraction], list[Fraction], Fraction | None]:
    inst = problem.instance
    if inst.total_bandwidth is None:
        return [Fraction(0)] * inst.devices, [Fraction(0)] * inst.devices, None
    total = Fraction(inst.total_bandwidth)
    slack = total * (TOLERANCE + inst.devices * EPS)
    if problem.allocation == "fixed":
        shape = (inst.blocks, inst.devices)
        given = np.broadcast_to(np.asarray(problem.fixed_bandwidth), shape)[i].tolist()
        top = [Fraction(b) * (1 + 4 * EPS) + slack for b in given]
        return top, top, None
    budget = total * (1 + TOLERANCE + (inst.devices + 4) * EPS)
    low = [0.0] * inst.devices if inst.bandwidth_min is None else inst.bandwidth_min.tolist()
    high = [inf] * inst.devices if inst.bandwidth_max is None else inst.bandwidth_max.tolist()
    return (
        [max(Fraction(b) * (1 - 4 * EPS) - slack, Fraction(0)) for b in low],
        [min(Fraction(b) * (1 + 4 * EPS) + slack, budget) if isfinite(b) else budget for b in high],
        budget,
    )


# ---------------------------------------------------------------------- prices of a block


@dataclass(frozen=True)
class Prices:
    """One block's prices in fractions."""

    send: list[Fraction]
    work: list[Fraction]
    wake: list[Fraction]
    share: dict[tuple[int, int], Fraction]
    retention: Fraction
    bandwidth: list[Fraction]
    points: list[float]
    weight: int
    toll: list[Fraction]

    @classmethod
    def of(cls, block: Block, c: Certificate, i: int) -> Prices:
        """Row ``i`` of a certificate, for a block."""

        def row(name: str) -> list[Fraction]:
            return [Fraction(x) for x in getattr(c, name)[i].tolist()]

        share = {}
        if c.share is not None:
            share = {key: Fraction(float(c.share[i, key[0], key[1]])) for key in block.weight}
        paid = [Fraction(0)] * len(block.hosts)
        for j, options in enumerate(block.options):
            for column, e in options:
                paid[e] += share.get((j, column), Fraction(0))
        assert c.retention is not None
        assert c.points is not None
        assert c.bandwidth is not None
        return cls(
            send=row("send"),
            work=row("work"),
            wake=[max(given, sums) for given, sums in zip(row("wake"), paid, strict=True)],
            share=share,
            retention=Fraction(float(c.retention[i])),
            # Fixed bandwidth needs no price.
            bandwidth=row("bandwidth") if block.budget is not None else [Fraction(0)] * c.bandwidth.shape[1],
            points=c.points[i].tolist(),
            weight=1 if c.form == "ratio" else 0,
            toll=[Fraction(0)] * c.bandwidth.shape[1] if c.toll is None else row("toll"),
        )


# ---------------------------------------------------------------------- token part


def token_bound(block: Block, prices: Prices) -> Number:
    """Least cost of what every token must select; inf where a token has no option."""
    if block.loads is not None:
        total = Fraction(0)
        for k, n in enumerate(block.loads):
            total += n * (prices.send[k] + prices.work[k] * block.compute[k])
        return total + sum((prices.wake[e] for e in block.awake), Fraction(0))
    total = prices.retention * block.mean_floor * len(block.options)
    for j in range(len(block.options)):
        least = _least_cost(block, prices, j)
        if least is None:
            return inf
        total += least
    return total


def _pair_costs(block: Block, prices: Prices, j: int) -> dict[int, Fraction]:
    """Cost of every candidate of a token, by column, without its transfer."""
    costs = {}
    for c, e in block.options[j]:
        cost = prices.work[block.hosts[e]] * block.compute[e] + prices.share.get((j, c), Fraction(0))
        cost -= prices.retention * block.share[j, c] + prices.weight * block.weight[j, c]
        costs[c] = cost
    return costs


def _least_cost(block: Block, prices: Prices, j: int) -> Fraction | None:
    costs = _pair_costs(block, prices, j)
    expert = dict(block.options[j])
    forced = {c for c in costs if (j, c) in block.forced}
    columns = block.problem.candidate_columns
    capped = block.problem.expert_cap < columns
    if columns <= ENUMERATED and (block.token_floor > 0 or capped):
        return _enumerated(block, prices, j, costs, forced)
    if block.token_floor > 0:
        return _relaxed(block, prices, j, costs, forced)
    if capped and not block.by_device and not forced:
        pairs = sorted(cost + prices.send[block.hosts[expert[c]]] for c, cost in costs.items())
        kept = pairs[: block.problem.expert_cap]
        return kept[0] + sum((min(x, Fraction(0)) for x in kept[1:]), Fraction(0)) if kept else None
    return _unbound(block, prices, costs, expert, forced)


def _unbound(
    block: Block, prices: Prices, costs: dict[int, Fraction], expert: dict[int, int], forced: set[int]
) -> Fraction | None:
    """Without floor and cap: every transfer on its own."""
    groups: dict[object, list[int]] = {}
    for c in costs:
        groups.setdefault(block.hosts[expert[c]] if block.by_device else ("pair", c), []).append(c)
    total, held, cheapest = Fraction(0), False, None
    for columns in groups.values():
        send = prices.send[block.hosts[expert[columns[0]]]]
        must = [c for c in columns if c in forced]
        pays = sum((costs[c] for c in columns if c not in forced and costs[c] < 0), Fraction(0))
        if must:
            total += send + sum((costs[c] for c in must), Fraction(0)) + pays
            held = True
            continue
        least = min(costs[c] for c in columns)
        value = send + (pays if least <= 0 else least)
        total += min(value, Fraction(0))
        cheapest = value if cheapest is None else min(cheapest, value)
    if held or (cheapest is not None and cheapest <= 0):
        return total
    return cheapest


def _enumerated(
    block: Block, prices: Prices, j: int, costs: dict[int, Fraction], forced: set[int]
) -> Fraction | None:
    expert = dict(block.options[j])
    best: Fraction | None = None
    for size in range(1, min(len(costs), block.problem.expert_cap) + 1):
        for chosen in combinations(costs, size):
            if not forced <= set(chosen):
                continue
            if sum((block.share[j, c] for c in chosen), Fraction(0)) < block.token_floor:
                continue
            visits = [block.hosts[expert[c]] for c in chosen]
            sends = sum((prices.send[k] for k in (set(visits) if block.by_device else visits)), Fraction(0))
            cost = sends + sum((costs[c] for c in chosen), Fraction(0))
            best = cost if best is None else min(best, cost)
    return best


def _relaxed(
    block: Block, prices: Prices, j: int, costs: dict[int, Fraction], forced: set[int]
) -> Fraction | None:
    """Floor per token by its price, at every breakpoint."""
    expert = dict(block.options[j])
    prices_tried = {Fraction(0)}
    for c, cost in costs.items():
        if block.share[j, c] > 0:
            prices_tried.add((cost + prices.send[block.hosts[expert[c]]]) / block.share[j, c])
    best: Fraction | None = None
    for t in sorted(prices_tried):
        if t >= 0:
            reduced = {c: cost - t * block.share[j, c] for c, cost in costs.items()}
            value = _unbound(block, prices, reduced, expert, forced)
            if value is None:
                return None
            best = value + t * block.token_floor if best is None else max(best, value + t * block.token_floor)
    return best


# ---------------------------------------------------------------------- device part


@dataclass(frozen=True)
class Rate:
    """Tangent of ``1 / (tau(b) + c)`` at a point: height from above, slope enclosed."""

    point: Fraction
    height: Fraction
    flat: Fraction
    steep: Fraction

    def over(self, b: Fraction) -> Fraction:
        """Upper bound on the rate at ``b``."""
        step = b - self.point
        return self.height + (self.steep if step > 0 else self.flat) * step


def directions(block: Block, k: int) -> Iterator[tuple[Fraction, Fraction]]:
    """Bits and SNR bandwidth of the needed directions."""
    inst, i = block.problem.instance, block.index
    for bits, power, gain in (
        (inst.bits_down, inst.power_down, inst.gain_down),
        (inst.bits_up, inst.power_up, inst.gain_up),
    ):
        if bits:
            assert power is not None
            assert gain is not None
            assert inst.noise_density is not None
            g = float(gain[k] if gain.ndim == 1 else gain[i, k])
            yield Fraction(bits), Fraction(float(power[k])) * Fraction(g) / Fraction(inst.noise_density)


def link_time(block: Block, k: int, b: Fraction) -> tuple[Span, Span] | None:
    """Seconds per transfer and how fast they fall with bandwidth, enclosed; None if it takes for ever."""
    inst = block.problem.instance
    zero = Span(Fraction(0), Fraction(0))
    if inst.token_time_link is not None:
        known = float(inst.token_time_link[k])
        return (Span(Fraction(known), Fraction(known)), zero) if isfinite(known) else None
    time, fall = zero, zero
    for bits, snr in directions(block, k):
        if snr == 0 or b <= 0:
            return None
        x = snr / b
        log, part = logarithm(1 + x), x / (1 + x)
        seconds = Span(bits * LN2.low / (b * log.high), bits * LN2.high / (b * log.low))
        # (log - part) / log grows with the logarithm.
        steep = Span(max(1 - part / log.low, Fraction(0)) / b, max(1 - part / log.high, Fraction(0)) / b)
        time = Span(time.low + seconds.low, time.high + seconds.high)
        fall = Span(fall.low + seconds.low * steep.low, fall.high + seconds.high * steep.high)
    return (
        Span(rounded(time.low, up=False), rounded(time.high, up=True)),
        Span(rounded(fall.low, up=False), rounded(fall.high, up=True)),
    )


def tangent(block: Block, k: int, b: Fraction, compute: Fraction) -> Rate | None:
    """Tangent at ``b``; None where the rate is infinite (nothing takes time)."""
    found = link_time(block, k, b)
    if found is None:
        return Rate(b, Fraction(0), Fraction(0), Fraction(0))
    time, fall = found
    if time.low + compute <= 0:
        return None
    height = rounded(1 / (time.low + compute), up=True)
    below = rounded(1 / (time.high + compute), up=False)
    return Rate(b, height, fall.low * below * below, fall.high * height * height)


def best_point(block: Block, k: int, compute: Fraction, wanted: float) -> Fraction:
    """Bandwidth where the rate's slope is about ``wanted``, by bisection in floats; any would do."""
    low, high = float(block.low[k]), float(block.high[k])
    if block.problem.instance.token_time_link is not None:
        return Fraction(1)
    if low == high or wanted <= 0:
        return block.high[k]
    bottom = max(low, high * 1e-12)
    c = float(compute)
    ways = [(float(bits), float(snr)) for bits, snr in directions(block, k)]

    def slope(b: float) -> float:
        time = fall = 0.0
        for bits, snr in ways:
            log = float(np.log1p(snr / b))
            if log == 0:
                return 0.0
            seconds = bits * float(LN2.low) / (b * log)
            time += seconds
            fall += seconds * (log - snr / (b + snr)) / (b * log)
        return fall / (time + c) ** 2

    left, right = bottom, high
    for _ in range(80):
        middle = (left * right) ** 0.5
        left, right = (middle, right) if slope(middle) > wanted else (left, middle)
    return min(max(Fraction(left), block.low[k]), block.high[k])


def stored_point(block: Block, k: int, point: float) -> Fraction:
    """A stored tangent point within the device's limits."""
    if block.problem.instance.token_time_link is not None:
        return Fraction(1)
    return min(max(Fraction(point), block.low[k], block.high[k] / 10**12), block.high[k])


@dataclass(frozen=True)
class ActiveSet:
    """A set of active experts, or a prefix of which the last one is cut."""

    activation: Fraction
    wake: Fraction


def prefixes(block: Block, prices: Prices, k: int) -> tuple[list[ActiveSet], list[ActiveSet], bool]:
    """Nested sets from those that must be active, single ones, and whether any must."""
    mine = [e for e in sorted(block.usable() | block.awake) if block.hosts[e] == k]
    held = [e for e in mine if e in block.awake]
    free = [e for e in mine if e not in block.awake]
    free.sort(key=lambda e: -prices.wake[e] / block.activation[e] if block.activation[e] else -inf)
    activation = sum((block.activation[e] for e in held), Fraction(0))
    wake = sum((prices.wake[e] for e in held), Fraction(0))
    nested = [ActiveSet(activation, wake)]
    for e in free:
        last = nested[-1]
        nested.append(ActiveSet(last.activation + block.activation[e], last.wake + prices.wake[e]))
    single = [] if held else [ActiveSet(block.activation[e], prices.wake[e]) for e in free]
    return nested, single, bool(held)


def fitting_sets(block: Block, prices: Prices, k: int, latest: Number) -> list[ActiveSet]:
    """Sets that leave time for the transfers that a loaded device has at least."""
    nested, single, held = prefixes(block, prices, k)
    light, _, least, most = block.limits(k)
    top = Fraction(1) if block.problem.instance.token_time_link is not None else block.high[k]
    found = link_time(block, k, top)
    if found is None or most < max(least, 1):
        return []
    room: Number = inf
    if latest != inf:
        assert isinstance(latest, Fraction)
        room = latest - block.delay[k] - max(least, 1) * (found[0].low + light)
    sets = [s for s in (nested if held else nested[1:]) + single if s.activation <= room]
    for inside, beyond in pairwise(nested):
        if sets and inside.activation <= room < beyond.activation:
            assert isinstance(room, Fraction)
            part = (room - inside.activation) / (beyond.activation - inside.activation)
            sets.append(ActiveSet(room, inside.wake + part * (beyond.wake - inside.wake)))
    return sets


def device_bound(
    block: Block,
    prices: Prices,
    k: int,
    sets: Sequence[ActiveSet],
    time: Fraction,
    scale: Fraction,
    *,
    limits: bool,
    toll: Fraction = Fraction(0),
) -> Number:
    """Upper bound on a device's worth: ``time`` is the latency times the scale of the prices.

    A toll is taken off the price of a transfer; what all tolls are worth at most is a loaded device's.
    """
    light, heavy, _, _ = block.limits(k)
    idle: Number = -inf if must_serve(block, k) else -prices.bandwidth[k] * block.low[k]
    found = [idle]
    for compute in {light, heavy} if sets else set():
        ray = (block, prices, k, sets, time, scale, compute, limits, toll)
        found.append(min(_ray_bound(*ray, refine=True), _ray_bound(*ray, refine=False)))
    return max(found)


def must_serve(block: Block, k: int) -> bool:
    """Whether a device cannot idle."""
    return block.limits(k)[2] > 0 or any(block.hosts[e] == k for e in block.awake)


def tolls(block: Block, k: int, toll: Fraction) -> Fraction:
    """Most that a loaded device's transfers pay in tolls."""
    _, _, least, most = block.limits(k)
    return toll * (most if toll > 0 else max(least, 1))


def _ray_bound(
    block: Block,
    prices: Prices,
    k: int,
    sets: Sequence[ActiveSet],
    time: Fraction,
    scale: Fraction,
    compute: Fraction,
    limits: bool,
    toll: Fraction,
    *,
    refine: bool,
) -> Number:
    light, heavy, least, most = block.limits(k)
    nu = prices.bandwidth[k]
    send, lump = prices.send[k] - toll, scale * tolls(block, k, toll)
    worth = max(send + prices.work[k] * compute, Fraction(0))
    dearest = send + prices.work[k] * heavy
    needed = max(least, 1) * scale
    lines = []
    for s in sets:
        room = max(time - scale * (block.delay[k] + s.activation), Fraction(0))
        # Only where to put a tangent: what underflows may.
        served = float(worth * room)
        wanted = float(nu) / served if served > 0 else 0.0
        b = best_point(block, k, compute, wanted) if refine else stored_point(block, k, prices.points[k])
        own, lightest = tangent(block, k, b, compute), tangent(block, k, b, light)
        lines.append((room, scale * s.wake + lump + min(dearest, Fraction(0)) * needed, own, lightest))

    def bound(mix: Fraction, extra: Fraction) -> Number:
        """With a share ``mix`` of the load, the rest its limit, and a price on the least transfers."""
        most_found: Number = -inf
        for room, base, own, lightest in lines:
            for b in (block.low[k], block.high[k]):
                value = base - nu * b + (1 - mix) * max(dearest, Fraction(0)) * most * scale - extra * needed
                if mix * worth * room > 0:
                    if own is None:
                        return inf
                    value += mix * worth * room * own.over(b)
                if extra * room > 0:
                    if lightest is None:
                        return inf
                    value += extra * room * lightest.over(b)
                most_found = max(most_found, value)
        return most_found

    best = bound(Fraction(1), Fraction(0))
    if limits:
        best = min(best, bound(Fraction(0), Fraction(0)))
        for room, _, own, lightest in lines:
            gain = worth * room * own.flat if own is not None else Fraction(0)
            if gain > 0:
                best = min(best, bound(_short(min(nu / gain, Fraction(1))), Fraction(0)))
            slope = room * lightest.flat if lightest is not None else Fraction(0)
            if slope > 0 and nu / slope > worth:
                best = min(best, bound(Fraction(1), _short(nu / slope - worth)))
    return best


def _short(value: Fraction) -> Fraction:
    """A nearby number of few digits, where any number would do."""
    return Fraction(float(value))


def dearest_bandwidth(block: Block, prices: Sequence[Fraction]) -> Fraction:
    """Most that any bandwidth within limits and budget costs: the dearest devices first."""
    if block.budget is None:
        return Fraction(0)
    cost = sum((p * b for p, b in zip(prices, block.low, strict=True)), Fraction(0))
    left = max(block.budget - sum(block.low, Fraction(0)), Fraction(0))
    for k in sorted(range(len(prices)), key=lambda k: -prices[k]):
        more = min(block.high[k] - block.low[k], left)
        cost += prices[k] * more
        left -= more
    return cost


# ---------------------------------------------------------------------- forms


def deadline_margin(block: Block, prices: Prices, deadline: Fraction) -> Number:
    """By how much the token part exceeds the device parts and the bandwidth."""
    worth: Number = dearest_bandwidth(block, prices.bandwidth)
    for k in range(len(prices.send)):
        sets = fitting_sets(block, prices, k, deadline)
        worth = worth + device_bound(block, prices, k, sets, deadline, Fraction(1), limits=True)
    return token_bound(block, prices) - worth if worth != inf else -inf


def deadline_failures(blocks: Sequence[Block], c: Certificate) -> list[str]:
    """Blocks whose deadline is above 0 and not proved, in words."""
    assert c.deadline is not None
    failures = []
    for i, block in enumerate(blocks):
        deadline = float(c.deadline[i])
        if deadline > 0:
            margin = deadline_margin(block, Prices.of(block, c, i), Fraction(deadline))
            if not margin > 0:
                text = f"latency {deadline:.9g} s is not proved out of reach (margin {float(margin):.3g})"
                failures.append(f"block {i}: {text}")
    return failures


def _deadline(blocks: Sequence[Block], c: Certificate) -> Verdict:
    assert c.deadline is not None
    if not (c.deadline > 0).any():
        return Verdict(-inf, ("the certificate claims nothing: every deadline is 0",))
    failures = deadline_failures(blocks, c)
    if failures:
        return Verdict(-inf, tuple(failures))
    return Verdict(to_float(sum((Fraction(t) for t in c.deadline.tolist()), Fraction(0)), up=False))


def _shared(blocks: Sequence[Block], c: Certificate) -> Verdict:
    assert c.offset is not None
    assert c.grid is not None
    failures: list[str] = []
    if c.floor is not None:
        failures = [f"floor: {text}" for text in deadline_failures(blocks, c.floor)]
    total: Number = Fraction(0)
    spent = [Fraction(0)] * len(blocks[0].low)
    for i, block in enumerate(blocks):
        prices = Prices.of(block, c, i)
        lowest = block.after
        if c.floor is not None:
            assert c.floor.deadline is not None
            lowest = max(lowest, Fraction(float(c.floor.deadline[i])))
        offset, grid = Fraction(float(c.offset[i])), [Fraction(x) for x in c.grid[i].tolist()]
        if _is_free(block, prices, offset, grid):
            least = _free_least(block, prices)
        elif not _covers(grid, offset, lowest, block.until):
            failures.append(f"block {i}: the grid does not cover every possible latency")
            continue
        else:
            least = _grid_least(block, prices, offset, grid)
        total = total + least
        spent = [a + b for a, b in zip(spent, prices.bandwidth, strict=True)]
    if failures:
        return Verdict(-inf, tuple(failures))
    total = total - dearest_bandwidth(blocks[0], spent)
    if not total > 0:
        return Verdict(-inf, (f"the prices prove nothing: their bound is {float(total):.6g} s",))
    return Verdict(total if isinstance(total, float) else to_float(total, up=False))


def _is_free(block: Block, prices: Prices, offset: Fraction, grid: Sequence[Fraction]) -> bool:
    """Whether the grid is 0 alone and the device part does not depend on it."""
    delayed = any(block.delay[block.hosts[e]] + block.activation[e] > 0 for e in block.usable())
    return grid[-1] == 0 and offset == 0 and not delayed and not any(prices.wake)


def _covers(grid: Sequence[Fraction], offset: Fraction, lowest: Fraction, until: Number) -> bool:
    end = lowest > offset and grid[-1] * (lowest - offset) >= 1
    if grid[0] == 0:
        return end
    return end and isinstance(until, Fraction) and until > offset and grid[0] * (until - offset) <= 1


def _worth(
    block: Block, prices: Prices, offset: Fraction, x: Fraction, sets: Sequence[Sequence[ActiveSet]]
) -> Number:
    """Upper bound on all devices' worth at ``x = 1 / (latency - offset)``, times ``x``."""
    total: Number = Fraction(0)
    for k, mine in enumerate(sets):
        ends = (block, prices, k, mine, 1 + offset * x, x)
        total = total + device_bound(*ends, limits=False, toll=prices.toll[k])
    return total


def _free_least(block: Block, prices: Prices) -> Number:
    zero = Fraction(0)
    sets = [fitting_sets(block, prices, k, inf) for k in range(len(prices.send))]
    tokens = token_bound(block, prices)
    for k, toll in enumerate(prices.toll):
        # In proportion to x, as the token part; on a device that may idle it can only cost.
        lump = tolls(block, k, toll)
        tokens = tokens - (lump if must_serve(block, k) else max(lump, Fraction(0)))
    return (
        inf if tokens == inf else 2 * root_below(Fraction(tokens)) - _worth(block, prices, zero, zero, sets)
    )


def _grid_least(block: Block, prices: Prices, offset: Fraction, grid: Sequence[Fraction]) -> Number:
    tokens = token_bound(block, prices)
    if tokens == inf:
        return inf
    assert isinstance(tokens, Fraction)
    least: Number = inf
    pieces = list(pairwise(grid)) or [(grid[0], grid[0])]
    for left, right in pieces:
        latest: Number = inf if left == 0 else offset + 1 / left
        sets = [fitting_sets(block, prices, k, min(latest, block.until)) for k in range(len(prices.send))]
        first = _worth(block, prices, offset, left, sets)
        last = _worth(block, prices, offset, right, sets)
        if first == -inf:
            continue
        if inf in (first, last):
            return -inf
        assert isinstance(first, Fraction)
        assert isinstance(last, Fraction)
        least = min(least, offset + _piece_least(tokens, left, right, first, last))
    return least


def _piece_least(
    tokens: Fraction, left: Fraction, right: Fraction, first: Fraction, last: Fraction
) -> Number:
    """Least of ``1/x + tokens x - chord(x)`` on [left, right], from below."""
    if left == right:
        return 1 / left + tokens * left - first if left else inf
    slope = tokens - (last - first) / (right - left)
    start = tokens * left - first - slope * left
    # 1/x + slope x turns at x = 1 / sqrt(slope).
    if slope <= 0 or slope * right * right <= 1:
        return start + 1 / right + slope * right
    if slope * left * left >= 1:
        return start + 1 / left + slope * left
    return start + 2 * root_below(slope)
