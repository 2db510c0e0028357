"""Limits at their least, for every solver on every problem that it declares to take."""

from __future__ import annotations

from functools import cache

import pytest

import wdmoe_opt as wo
from wdmoe_opt.registry import list_solvers
from wdmoe_opt.testing.checks import solution_faults
from wdmoe_opt.testing.problems import PROBLEMS, optimum

TAKEN = [
    (info.name, case)
    for info in list_solvers()
    for case, make in PROBLEMS.items()
    if not info.refusal(make())
]
#: Options that count steps: (solver, option).
STEPS = [
    (info.name, option)
    for info in list_solvers()
    if info.availability()
    for option, default in info.options.items()
    if isinstance(default, int) and not isinstance(default, bool)
]


def here(method: str) -> wo.SolverInfo:
    info = wo.registry.find_solver(method)
    if not info.availability():
        pytest.skip(info.availability().reason)
    return info


@pytest.mark.parametrize(("method", "case"), TAKEN)
def test_no_time_at_all(method: str, case: str) -> None:
    """A point whose claims hold, or none and the words for it."""
    info = here(method)
    solution = wo.solve(PROBLEMS[case](), method, time_limit=0)
    assert solution_faults(info, solution, optimum=optimum(case)) == []
    end = solution.termination
    assert end.reason != "infeasible"
    if end.reason in ("no-solution", "feasible-at-limit"):
        assert end.limit in ("time", "relaxation")
        assert end.detail


@cache
def least(method: str, option: str) -> int:
    """The least value that an option accepts."""
    for value in (0, 1):
        try:
            wo.solve(PROBLEMS["shared"](), method, **{option: value})
        except wo.UnsupportedError:
            return value
        except wo.InputError as error:
            assert option in str(error)  # noqa: PT017
        else:
            return value
    raise AssertionError(f"{method} accepts neither 0 nor 1 as {option}")


@pytest.mark.parametrize(("method", "option"), STEPS)
def test_as_few_steps_as_can_be_asked_for(method: str, option: str) -> None:
    """One step of anything: a point whose claims hold, or a refusal; never a false optimum."""
    info = here(method)
    for case in (case for name, case in TAKEN if name == method):
        try:
            solution = wo.solve(PROBLEMS[case](), method, rel_gap=1e-6, **{option: least(method, option)})
        except wo.UnsupportedError as error:
            assert "max_states" in option
            assert "more than" in str(error)  # noqa: PT017
            continue
        faults = solution_faults(info, solution, optimum=optimum(case), rel_gap=1e-6)
        assert faults == [], case
        assert solution.termination.reason != "infeasible"


def test_every_option_that_counts_is_found() -> None:
    """The list above is made by looking: hold it against what is known to count."""
    known = {
        ("alternating", "rounds"), ("enumerate", "max_states"), ("exact", "max_branches"),
        ("greedy", "batches"), ("slsqp", "max_iterations"), ("wdmoe", "rounds"),
    }  # fmt: skip
    assert known <= set(STEPS)
