"""Tampered solutions and certificates: certify says what is wrong, and never that all is proved."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from test_instance import good

import wdmoe_opt as wo

PROBLEM = wo.Problem(wo.Instance.from_arrays(**good()), min_retention=0.9)


@pytest.fixture(scope="module")
def solution() -> wo.Solution:
    return wo.solve(PROBLEM, "certified")


def tampered(certificate: wo.Certificate, field: str, change: Any) -> wo.Certificate:
    value = getattr(certificate, field)
    return replace(certificate, **{field: change(np.array(value))})


CHANGES = {
    "times 2": lambda a: a * 2,
    "times 1e300": lambda a: np.minimum(a * 1e300, 1e308),
    "zero": lambda a: a * 0,
    "subnormal": lambda a: a * 0 + 5e-324,
    "one ulp up": lambda a: np.nextafter(a, np.inf),
}


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(
    "field", ["send", "work", "wake", "retention", "bandwidth", "points", "deadline", "offset", "grid"]
)
def test_changed_prices_are_noticed(solution: wo.Solution, field: str, change: str, exact: bool) -> None:
    """Prices that were changed do not pass, and what they prove is below the value all the same."""
    assert solution.certificate is not None
    if getattr(solution.certificate, field) is None:
        pytest.skip(f"form {solution.certificate.form!r} has no {field}")
    try:
        forged = tampered(solution.certificate, field, CHANGES[change])
    except wo.InputError:
        return  # points must be above 0
    if np.array_equal(getattr(forged, field), getattr(solution.certificate, field)):
        return
    report = wo.certify(PROBLEM, replace(solution, certificate=forged), exact=exact)
    assert not report
    assert any("digest" in text for text in report.failures)
    assert not report.bound > solution.latency * (1 + 1e-9)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"lower_bound": np.inf}, "claims the bound inf"),
        ({"lower_bound": np.nan}, "claims the bound nan"),
        ({"lower_bound": 1e308}, "claims the bound 1e+308"),
        ({"certificate": None}, "without a certificate"),
        ({"keep": None}, "malformed"),
        ({"keep": np.ones((2, 2), dtype=bool)}, "malformed"),
        ({"keep": np.full((2, 2, 3), np.nan)}, "malformed"),
        ({"keep": np.zeros((2, 2, 3), dtype=bool)}, "not feasible"),
        ({"bandwidth": np.full(3, np.nan)}, "malformed"),
        ({"bandwidth": np.full(3, 1e308)}, "not feasible"),
        ({"bandwidth": np.full(3, -1.0)}, "not feasible"),
        ({"bandwidth": np.zeros(0)}, "malformed"),
        ({"bandwidth": "x"}, "malformed"),
    ],
)
def test_changed_solutions_are_noticed(solution: wo.Solution, change: dict[str, Any], words: str) -> None:
    report = wo.certify(PROBLEM, replace(solution, **change))
    assert not report
    assert any(words in text for text in report.failures), report.failures
    assert all(len(text.splitlines()) == 1 for text in report.failures)


def test_a_certificate_of_other_numbers_does_not_fit(solution: wo.Solution) -> None:
    other = wo.Problem(PROBLEM.instance.replace(compute_time=[5e-324] * 3), min_retention=0.9)
    report = wo.certify(other, solution)
    assert not report
    small = PROBLEM.for_block(0)
    assert any("does not fit" in text or "malformed" in text for text in wo.certify(small, solution).failures)
