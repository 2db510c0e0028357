"""The check in rational arithmetic: enclosures, and agreement with the check in double precision."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import mpmath
import numpy as np
import pytest
from makers import near_prices, random_problem
from profiles import enough, few
from test_check import certificates, optimum

from wdmoe_opt import Certificate, Instance, Problem
from wdmoe_opt.certificates.check import inspect
from wdmoe_opt.certificates.exact import (
    Block,
    directions,
    inspect_exactly,
    link_time,
    logarithm,
    root_below,
    rounded,
    tangent,
    to_float,
)
from wdmoe_opt.testing.arrays import Shape, random_arrays


@pytest.mark.parametrize("start", range(0, 80, 20))
def test_both_checks_agree(start: int) -> None:
    """Double precision is never above rational arithmetic, and within 1e-9 of it (found: 1e-12)."""
    count = 0
    for seed in range(start, start + few(20)):
        problem = random_problem(seed)
        best = optimum(problem)
        if best is None:
            continue
        for c in certificates(problem, best, seed):
            fast, exact = inspect(problem, c).bound, inspect_exactly(problem, c).bound
            assert fast <= exact <= best.objective * (1 + 1e-12)
            assert exact == pytest.approx(fast, rel=1e-9)
            count += 1
    assert enough(count, 5)


def test_raised_claim_fails_exactly() -> None:
    for seed in range(30):
        problem = random_problem(seed)
        best = optimum(problem)
        if best is None:
            continue
        c = next(certificates(problem, best, seed))
        if inspect(problem, c).bound > 0 and (c.deadline < best.block_latency * 2.9).all():
            higher = replace(c, deadline=c.deadline * (1 + 1e-6))
            verdict = inspect_exactly(problem, higher)
            assert verdict.bound == -math.inf
            assert "is not proved out of reach" in verdict.failures[0]


@pytest.mark.parametrize("value", ["1", "2", "1.0000000001", "12345.678", "1e30"])
def test_logarithm_is_enclosed(value: str) -> None:
    with mpmath.workdps(80):
        number = Fraction(value)
        span = logarithm(number)
        truth = mpmath.log(mpmath.mpf(number.numerator) / number.denominator)
        low = mpmath.mpf(span.low.numerator) / span.low.denominator
        high = mpmath.mpf(span.high.numerator) / span.high.denominator
        assert low <= truth <= high
        assert high - low < mpmath.mpf(10) ** -45 * max(truth, 1)


def test_roots_and_roundings_err_on_the_safe_side() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        number = Fraction(float(10.0 ** rng.uniform(-30, 30))) / 3
        root = root_below(number)
        assert root * root <= number < (root * (1 + Fraction(1, 10**20))) ** 2
        assert rounded(number, up=False) <= number <= rounded(number, up=True)
        assert Fraction(to_float(number, up=False)) <= number <= Fraction(to_float(number, up=True))


@pytest.mark.parametrize("seed", range(4))
def test_link_times_and_tangents_are_enclosed(seed: int) -> None:
    """Time, its fall with bandwidth, and the rate's tangent, against 80 digits."""
    shape = Shape(blocks=1, tokens=2, devices=2, one_way=bool(seed % 2))
    block = Block.of(Problem(Instance.from_arrays(**random_arrays(shape, seed))), 0)
    rng = np.random.default_rng(seed)
    for k, b in [(k, Fraction(float(x))) for k in range(2) for x in 10.0 ** rng.uniform(-3, 9, 6)]:
        found = link_time(block, k, b)
        assert found is not None
        with mpmath.workdps(80):

            def seconds(at: mpmath.mpf, k: int = k) -> mpmath.mpf:
                ways = [(mp_of(bits), mp_of(snr)) for bits, snr in directions(block, k)]
                return mpmath.fsum(bits * mpmath.log(2) / (at * mpmath.log1p(snr / at)) for bits, snr in ways)

            point, c = mp_of(b), mpmath.mpf("1e-4")
            truth = (seconds(point), -mpmath.diff(seconds, point))
            for span, value in zip(found, truth, strict=True):
                assert mp_of(span.low) <= value <= mp_of(span.high)
                assert mp_of(span.high - span.low) < mpmath.mpf(10) ** -30 * value
            rate = tangent(block, k, b, Fraction(1, 10**4))
            assert rate is not None
            for factor in (0.5, 1 - 1e-12, 1.0, 1 + 1e-12, 2.0):
                assert mp_of(rate.over(b * Fraction(factor))) >= 1 / (seconds(point * factor) + c) * (
                    1 - 1e-60
                )


def mp_of(value: Fraction) -> mpmath.mpf:
    return mpmath.mpf(value.numerator) / value.denominator


def test_a_grid_of_zero_alone_is_worth_the_same_in_both_arithmetics() -> None:
    """Devices that wait for nothing: the bound in closed form, from prices of a good point."""
    compared = 0
    for seed in range(few(20)):
        shape = Shape(blocks=2, tokens=3, devices=2, per_device=2)
        instance = Instance.from_arrays(**random_arrays(shape, seed))
        problem = Problem(instance, min_retention=0.6)
        best = optimum(problem)
        assert best is not None
        prices = near_prices(problem, best)
        scaled = {k: v * best.block_latency.reshape(-1, *[1] * (v.ndim - 1)) for k, v in prices.items()}
        scaled |= {name: prices[name] for name in ("points", "bandwidth")}
        scaled |= {"wake": np.zeros_like(prices["wake"]), "share": None}
        c = Certificate(form="shared", offset=np.zeros(2), grid=np.zeros((2, 1)), **scaled)
        fast, exact = inspect(problem, c).bound, inspect_exactly(problem, c).bound
        assert fast <= exact <= best.objective * (1 + 1e-12)
        if fast > 0:
            assert exact == pytest.approx(fast, rel=1e-9)
            compared += 1
    assert compared
