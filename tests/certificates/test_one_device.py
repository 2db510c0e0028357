"""One device's bound alone: above a dense search, and the same in both arithmetics."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pytest
from makers import Split, chain, random_prices
from profiles import enough, few

from wdmoe_opt import Certificate, Instance, Problem
from wdmoe_opt.certificates.branches import contradictions, restricted
from wdmoe_opt.certificates.devices import (
    DevicePrices,
    active_sets,
    device_bound,
    fitting_terms,
    must_serve,
    tolled,
)
from wdmoe_opt.certificates.exact import Block, Prices, fitting_sets
from wdmoe_opt.certificates.exact import device_bound as exact_bound
from wdmoe_opt.certificates.exact_branches import restricted as exact_restricted
from wdmoe_opt.certificates.facts import Facts, facts_of
from wdmoe_opt.certificates.tree import EXPERT, LOAD
from wdmoe_opt.testing.arrays import Shape, measured_arrays, random_arrays


class Case(NamedTuple):
    """Two devices under restrictions, twice; prices (tolls apart), a latency and the scale of the prices."""

    facts: Facts
    block: Block
    prices: dict[str, np.ndarray]
    toll: np.ndarray
    latency: float
    scale: float


def drawn_problem(rng: np.random.Generator) -> Problem:
    shape = Shape(
        blocks=1, tokens=4, devices=2, per_device=3, top_k=2, columns=3, hosts=True, times_per_expert=True,
        activation=rng.random() < 0.8, link_delay=rng.random() < 0.5, limits=rng.random() < 0.5,
    )  # fmt: skip
    seed = int(rng.integers(2**20))
    if rng.random() < 0.15:
        return Problem(Instance.from_arrays(**measured_arrays(shape, seed)), allocation="fixed")
    arrays = random_arrays(shape, seed)
    # A band of a tenth of a hertz is as good as one of ten megahertz, for as little payload.
    factor = float(rng.choice([1.0, 1e-8]))
    for name in ("total_bandwidth", "bandwidth_min", "bandwidth_max", "bits_down", "bits_up"):
        if arrays.get(name) is not None:
            arrays[name] = np.multiply(arrays[name], factor)[()]
    arrays["noise_density"] = np.divide(arrays["noise_density"], factor)[()]
    return Problem(Instance.from_arrays(**arrays), dispatch=str(rng.choice(["expert", "device"])))


def drawn(seed: int) -> Case | None:
    """A random case; None where its restrictions leave nothing."""
    rng = np.random.default_rng(seed)
    problem = drawn_problem(rng)
    prices = random_prices(problem, seed)
    prices.pop("share", None)
    prices["send"] = np.abs(prices["send"]) * rng.choice([-1, 1], prices["send"].shape, p=[0.3, 0.7])
    prices["bandwidth"] = prices["bandwidth"] * 1e7 / max(problem.tables.total, 1e-3)
    prices["wake"] = 10.0 ** rng.uniform(-4, -1, prices["wake"].shape)
    toll = rng.choice([-1, 0, 1], prices["send"].shape) * 1e-4 * (rng.random() < 0.3)
    splits = [
        Split(LOAD, int(rng.integers(2)), -1, float(rng.integers(0, 5)), int(rng.integers(2)))
        for _ in range(rng.integers(0, 3))
    ]
    splits += [
        Split(EXPERT, int(rng.integers(6)), -1, 0.0, int(rng.integers(2))) for _ in range(rng.integers(0, 3))
    ]
    tree, node = chain(0, tuple(splits))
    facts = restricted(facts_of(problem), tree, node)
    if contradictions(facts).any():
        return None
    block = exact_restricted(Block.of(problem, 0), tree, node)
    return Case(facts, block, prices, toll, 10.0 ** rng.uniform(-3, 0), float(rng.choice([1.0, 37.0, 1e-3])))


def bounds(case: Case, *, limits: bool) -> tuple[np.ndarray, list[float]]:
    """Both arithmetics' bounds of the two devices."""
    facts, c, scale = case.facts, case.prices, np.array([case.scale])
    paid = c["bandwidth"] * np.isfinite(facts.budget)
    device = DevicePrices(c["send"], c["work"], paid, c["points"], c["wake"])
    priced, lump = tolled(facts, device, case.toll)
    terms = fitting_terms(facts, active_sets(facts, c["wake"]), np.array([case.latency]))
    time = case.latency * scale
    fast = device_bound(facts, priced, terms, time, scale, limits=limits, refine=True, lump=lump)[0]
    fractions = Prices.of(case.block, Certificate(form="mean", **c), 0)
    exact = []
    for k in range(2):
        sets = fitting_sets(case.block, fractions, k, Fraction(case.latency))
        ends = (Fraction(float(time[0])), Fraction(case.scale))
        toll = Fraction(float(case.toll[0, k]))
        exact.append(float(exact_bound(case.block, fractions, k, sets, *ends, limits=limits, toll=toll)))
    return fast, exact


def worths(case: Case, k: int, rng: np.random.Generator) -> Iterator[float]:
    """What a device is worth at many bandwidths, with every set of active experts, few and most transfers."""
    facts, c, scale = case.facts, case.prices, case.scale
    nu = c["bandwidth"][0, k] * np.isfinite(facts.budget)
    low, high = facts.low[0, k], facts.high[0, k]
    if not must_serve(facts)[0, k]:
        yield -nu * low
    mine = np.flatnonzero((facts.hosts == k) & facts.usable[0])
    sets = [s for size in range(1, len(mine) + 1) for s in combinations(mine, size)]
    least, most = max(facts.least[0, k], 1.0), facts.most[0, k]
    for active in sets:
        if not {e for e in np.flatnonzero(facts.awake[0]) if facts.hosts[e] == k} <= set(active):
            continue
        wake = c["wake"][0, list(active)].sum()
        left = case.latency - facts.delay[k] - facts.activation[list(active)].sum()
        for b in (low, high, *(low + (high - low) * np.geomspace(1e-6, 1, 20)), *rng.uniform(low, high, 10)):
            air = seconds(facts, k, b)
            for compute in {facts.light[0, k], facts.heavy[0, k]}:
                for n in (least, min(most, left / (air + compute) if np.isfinite(air) else 0.0)):
                    if least <= n <= most and n * (air + compute) <= left:
                        own = c["send"][0, k] + c["work"][0, k] * compute
                        yield scale * (n * own + wake) - nu * b


def seconds(facts: Facts, k: int, b: float) -> float:
    """Seconds on air of one transfer."""
    if facts.link_time is not None:
        return float(facts.link_time[0, k])
    if b <= 0:
        return np.inf
    ways = ((facts.bits_down, facts.snr_down[0, k]), (facts.bits_up, facts.snr_up[0, k]))
    if any(bits > 0 and snr <= 0 for bits, snr in ways):
        return np.inf
    return sum(bits * np.log(2) / (b * np.log1p(snr / b)) for bits, snr in ways if bits > 0)


@pytest.mark.parametrize("start", range(0, 400, 50))
def test_bound_of_a_device(start: int) -> None:
    """No load is worth more; double precision lies above fractions, and where limits are left out, close."""
    reached = []
    for seed in range(start, start + few(50)):
        case = drawn(seed)
        if case is None:
            continue
        (free, exactly_free), (fast, exact) = (bounds(case, limits=limits) for limits in (False, True))
        rng = np.random.default_rng(seed)
        for k in range(2):
            best = max(worths(case, k, rng), default=-np.inf)
            size = 1e-13 * (1 + np.abs(case.prices["wake"]).sum() * case.scale)
            assert best <= exact[k] + size, (seed, k)
            assert exact[k] <= exactly_free[k]
            assert exactly_free[k] <= free[k] * (1 + np.sign(free[k]) * 1e-6) + size, (seed, k)
            assert fast[k] <= free[k] + size, (seed, k)
            assert best <= fast[k] + size, (seed, k)
            if np.isfinite(free[k]):
                assert free[k] == pytest.approx(exactly_free[k], rel=1e-5, abs=1e-9), (seed, k)
            if np.isfinite(best) and best > 0:
                reached.append(best / exact[k])
    assert enough(np.quantile(reached or [0.0], 0.7), 0.95)
