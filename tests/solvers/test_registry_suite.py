"""The shipped conformance suite over every registered solver, and the registry itself."""

from __future__ import annotations

import pytest

import wdmoe_opt as wo
from wdmoe_opt import registry
from wdmoe_opt.testing.problems import PROBLEMS
from wdmoe_opt.testing.suite import SolverSuite, missing_solvers


class TestNativeSolvers(SolverSuite):
    """Solvers of this package, listed by hand: a new one must be added here."""

    names = (
        "alternating",
        "certified",
        "enumerate",
        "exact",
        "greedy",
        "local-search",
        "topk",
        "topk-uniform",
        "wdmoe",
        "wdmoe-selection",
        "wdmoe-testbed",
    )


class TestBackends(SolverSuite):
    """Solvers that stand on other packages."""

    names = ("convex", "milp", "minlp", "slsqp")


def test_every_registered_solver_is_in_the_suite() -> None:
    assert missing_solvers([TestNativeSolvers, TestBackends]) == set()


def test_a_solver_outside_the_suite_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    newcomer = wo.SolverInfo("newcomer", "not in any suite", "nowhere:nothing")
    monkeypatch.setitem(registry._SOLVERS, "newcomer", newcomer)
    assert missing_solvers([TestNativeSolvers, TestBackends]) == {"newcomer"}


def test_every_problem_is_solved_by_some_solver() -> None:
    for case, build in PROBLEMS.items():
        assert any(not info.refusal(build()) for info in wo.list_solvers()), case


def test_a_solver_that_is_missing_says_why() -> None:
    absent = wo.SolverInfo("absent", "", "nowhere:nothing", requires=("no_such_module",), extra="models")
    assert absent.availability().reason == "no_such_module not installed; install wdmoe_opt[models]"
    probed = wo.SolverInfo("probed", "", "nowhere:nothing", probe=lambda: "no licence")
    assert not probed.availability()
    assert probed.availability().reason == "no licence"


def test_declared_restrictions_refuse() -> None:
    blind = wo.SolverInfo("blind", "", "nowhere:nothing", activation=False, restriction=lambda p: "too large")
    assert "activation" in blind.refusal(PROBLEMS["activation"]())
    assert blind.refusal(PROBLEMS["shared"]()) == "too large"
