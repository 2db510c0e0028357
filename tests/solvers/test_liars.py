"""Every solver that lies is caught by the conformance suite, and by `certify` where it claims something."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

import wdmoe_opt as wo
from wdmoe_opt import registry
from wdmoe_opt.testing import liars
from wdmoe_opt.testing.liars import LIARS
from wdmoe_opt.testing.problems import PROBLEMS, optimum
from wdmoe_opt.testing.suite import SolverSuite


class Suite(SolverSuite):
    """The suite with little patience."""

    grace = 0.3


#: Test of the suite, its argument, and what it says of the lie.
CAUGHT = {
    "bound-above-value": ("declared_abilities_decide", "shared", "contradicted by its own point"),
    "bound-above-optimum": ("declared_abilities_decide", "shared", "beyond the optimum"),
    "nan-bound": ("declared_abilities_decide", "shared", "its bound nan is contradicted"),
    "wrong-trace": ("declared_abilities_decide", "shared", "traces the value"),
    "wrong-trace-bound": ("declared_abilities_decide", "one block", "traces the bound"),
    "false-optimum": ("declared_abilities_decide", "per-block", "says 'optimal' with a gap of inf"),
    "false-optimum-with-bound": ("declared_abilities_decide", "per-block", "says 'optimal' at"),
    "optimum-with-a-gap": ("declared_abilities_decide", "per-block", "says 'optimal' with a gap of 0"),
    "false-infeasible": ("declared_abilities_decide", "shared", "ends with 'infeasible', the optimum is"),
    "point-without-solution": ("declared_abilities_decide", "shared", "'no-solution' and hands out a point"),
    "broken-floor": ("declared_abilities_decide", "shared", "declares to honour floors, but block 0 retains"),
    "too-much-bandwidth": ("declared_abilities_decide", "shared", "bandwidth sums to"),
    "negative-bandwidth": ("declared_abilities_decide", "per-block", "holds a negative number"),
    "nan-bandwidth": ("declared_abilities_decide", "shared", "malformed point: bandwidth.* must be finite"),
    "outside-candidates": (
        "declared_abilities_decide",
        "shared",
        r"keep\[0, 0, 2\] is outside the candidates",
    ),
    "no-expert": ("declared_abilities_decide", "shared", r"token \[0, 0\] keeps no expert"),
    "zero-certificate": ("declared_abilities_decide", "per-block", "is only claimed"),
    "stale-certificate": ("it_believes_what_its_certificate_proves", "per-block", "its certificate proves"),
    "no-certificate": ("declared_abilities_decide", "shared", "is only claimed"),
    "time-limit-ignored": ("time_limits_are_kept", None, "the time limit is 0.2 s"),
    "restless": ("the_same_call_gives_the_same_answer", "shared", "gives another latency"),
    "one-thread-only": ("threads_may_share_a_problem", "shared", "gives another latency"),
    "writes-inputs": ("inputs_are_not_modified", "shared", "changes the instance's compute_time"),
    "writes-request": ("inputs_are_not_modified", "shared", "changes the request's min_retention"),
    "absolute-tolerance": ("scale_does_not_matter", "shared", "in larger numbers"),
    "swallows-options": ("unknown_options_are_refused", None, "DID NOT RAISE"),
    "overstated-abilities": ("declared_abilities_decide", "dispatch by device", "dispatch by device"),
}


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """All liars under their names, for one test."""
    for name, info in LIARS.items():
        monkeypatch.setitem(registry._SOLVERS, name, info)


def ask(test: str, name: str, case: str | None) -> None:
    """Run one test of the suite on one solver."""
    arguments = [registry.find_solver(name), *([] if case is None else [case])]
    getattr(Suite(), f"test_{test}")(*arguments)


def test_every_liar_is_listed() -> None:
    """No lie without a test that catches it."""
    assert set(CAUGHT) == set(LIARS)


@pytest.mark.parametrize("name", CAUGHT)
def test_the_suite_catches(name: str) -> None:
    """The suite fails on the liar with words that name the lie."""
    test, case, words = CAUGHT[name]
    with pytest.raises(
        (AssertionError, wo.WdmoeError, NotImplementedError, pytest.fail.Exception), match=words
    ):
        ask(test, name, case)


@pytest.mark.parametrize(
    ("test", "case"), sorted({(test, case) for test, case, _ in CAUGHT.values()}, key=str)
)
def test_honest_solvers_pass_the_same_tests(test: str, case: str | None) -> None:
    """What the liars fail is not the test itself: plain top-k passes, and a solver with certificates."""
    ask(test, "certified" if "certificate" in test else "topk", case)


#: What `certify` says of a liar's solution; lies about behaviour leave no trace in a solution.
CERTIFIED = {
    "bound-above-optimum": "comes without a certificate",
    "false-optimum-with-bound": "comes without a certificate",
    "false-infeasible": "there is no point to check",
    "broken-floor": "is below min_retention",
    "too-much-bandwidth": "more than total_bandwidth",
    "negative-bandwidth": "is negative",
    "outside-candidates": "not among the token's reachable candidates",
    "no-expert": "keeps no expert",
    "zero-certificate": "comes without a certificate",
    "no-certificate": "comes without a certificate",
}


@pytest.mark.parametrize("name", CERTIFIED)
def test_certify_catches(name: str) -> None:
    """The report on a liar's solution is falsy and names the lie."""
    problem = PROBLEMS["per-block" if "certificate" in name else "shared"]()
    report = wo.certify(problem, wo.solve(problem, name))
    assert not report
    assert CERTIFIED[name] in str(report)


def test_nothing_is_proved_by_what_proves_nothing() -> None:
    """Zero prices and prices of another instance: `solve` keeps what they prove, not what is believed."""
    problem = PROBLEMS["per-block"]()
    zero = wo.solve(problem, "zero-certificate")
    assert zero.bound_kind == "claimed"
    assert zero.certificate is None
    stale = wo.solve(problem, "stale-certificate")
    assert stale.bound_kind == "none"
    assert stale.lower_bound <= optimum("per-block")


@pytest.mark.parametrize("name", ["bound-above-value", "nan-bound", "stale-certificate"])
def test_solve_drops_a_bound_that_its_own_point_contradicts(name: str) -> None:
    """No solution leaves `solve` with a negative gap."""
    found = wo.solve(PROBLEMS["per-block"](), name)
    assert found.bound_kind == "none"
    assert found.gap == math.inf
    assert found.termination.limit == "check"
    assert "contradicted by its own point" in found.termination.detail


@pytest.mark.parametrize("name", ["false-optimum", "optimum-with-a-gap"])
def test_optimal_means_within_the_gap_asked_for(name: str) -> None:
    """No bound, or a proved one a quarter as high, does not make a point optimal."""
    found = wo.solve(PROBLEMS["per-block"](), name)
    assert found.gap > 0.5
    assert found.termination.reason == "feasible-at-limit"
    assert found.termination.limit == "check"


@pytest.mark.parametrize("lie", ["zero", "stale", "resealed", "nan point", "nan value", "optimal", "bound"])
def test_certify_catches_what_solve_would_not_let_pass(lie: str) -> None:
    """Solutions put together by hand, past `solve`: the same lies are named."""
    problem = PROBLEMS["per-block"]()
    true = wo.solve(problem, "certified")
    assert wo.certify(problem, true)
    other = liars.slowed(problem)
    stale = wo.solve(other, "certified")
    zero = liars.zero_prices(problem, true.latency)
    never = replace(true.evaluation, latency=math.nan)
    changes, words = {
        "zero": ({"certificate": zero.sealed(problem, true.latency)}, "proves nothing"),
        "stale": (
            {"certificate": stale.certificate, "lower_bound": true.latency},
            "digest does not match",
        ),
        "resealed": (
            {"certificate": stale.certificate.sealed(problem, true.latency), "lower_bound": true.latency},
            "proves nothing",
        ),
        "optimal": (
            {"certificate": None, "bound_kind": "none", "termination": wo.Termination("optimal")},
            "it says 'optimal' and nothing is proved",
        ),
        "bound": ({"lower_bound": true.latency * 1.1}, "the solution claims the bound"),
        "nan point": ({"bandwidth": true.bandwidth * np.nan}, "malformed"),
        "nan value": ({"evaluation": never}, "claimed is nan"),
    }[lie]
    report = wo.certify(problem, replace(true, **changes))
    assert not report
    assert words in str(report)
