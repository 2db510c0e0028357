"""The check in rational arithmetic: enclosures, and agreement with the check in double precision."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from makers import random_problem
from profiles import enough, few
from test_check import certificates, optimum

from wdmoe_opt.certificates.check import inspect
from wdmoe_opt.certificates.exact import inspect_exactly, logarithm, root_below, rounded, to_float


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
    mpmath = pytest.importorskip("mpmath")
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
