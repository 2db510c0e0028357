"""Our optima against SCIP and HiGHS; a disagreement is cut down, kept in tests/regressions and run again."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from profiles import examples

import wdmoe_opt as wo
from wdmoe_opt import Problem, registry
from wdmoe_opt.benchmarks.agreement import answers, faults, tiny_problem
from wdmoe_opt.registry import find_solver
from wdmoe_opt.testing.checks import solution_faults
from wdmoe_opt.testing.liars import LIARS
from wdmoe_opt.testing.regressions import minimised, record, recorded, smaller
from wdmoe_opt.testing.strategies import problems

FOLDER = Path(__file__).parent / "regressions"
KEPT = sorted(FOLDER.glob("*.json"))
#: Everything that says something about an optimum, the oracle first.
METHODS = (
    "enumerate",
    "certified",
    "exact",
    "convex",
    "milp",
    "minlp",
    "greedy",
    "alternating",
    "local-search",
)
SIZES = {
    "blocks": st.integers(1, 2),
    "tokens": st.integers(1, 3),
    "devices": st.integers(1, 3),
    "per_device": st.integers(1, 2),
    "top_k": st.integers(1, 2),
    "columns": st.integers(1, 3),
}


@st.composite
def small(draw: st.DrawFn) -> Problem:
    """Problems that SCIP closes in about a second."""
    sizes = {name: draw(size) for name, size in SIZES.items()}
    return draw(problems(kinds=("radio", "radio", "measured"), **sizes))


def disagreements(problem: Problem, methods: tuple[str, ...], time_limit: float = 10.0) -> list[str]:
    """What does not fit among the answers, and what is wrong with each by itself."""
    solutions = answers(problem, methods, time_limit)
    found = list(faults(solutions))
    optimum = solutions["enumerate"].objective
    for name, solution in solutions.items():
        wrong = solution_faults(find_solver(name), solution, optimum=optimum, rel_gap=1e-6)
        found += [f"{name} {fault}" for fault in wrong]
    return found


def agree(problem: Problem, methods: tuple[str, ...], folder: Path = FOLDER) -> None:
    """Fail, and keep the smallest problem that fails, unless all methods agree."""
    found = disagreements(problem, methods)
    if found:
        least = minimised(problem, lambda part: bool(disagreements(part, methods)))
        path = record(least, folder, "; ".join(disagreements(least, methods)))
        pytest.fail(f"{'; '.join(found)}; kept as {path}")


@pytest.mark.parametrize("rival", ["milp", "minlp"])
def test_rivals_agree(rival: str) -> None:
    """HiGHS on linear programs, SCIP on the nonlinear one: the enumerated optimum, no bound above it."""
    available = find_solver(rival).availability()
    if not available:
        pytest.skip(available.reason)

    # No shrinking by Hypothesis: every try would be kept. `minimised` cuts the first failure down.
    @settings(examples(30), phases=[Phase.explicit, Phase.reuse, Phase.generate])
    @given(small())
    def run(problem: Problem) -> None:
        agree(problem, ("enumerate", rival))

    run()


@pytest.mark.parametrize("path", KEPT, ids=[path.stem for path in KEPT])
def test_what_went_wrong_once_is_right(path: Path) -> None:
    """Every problem that was ever kept: all methods agree on it."""
    problem, fault = recorded(path)
    assert fault, "the file says what went wrong"
    assert not disagreements(problem, METHODS)


# ---------------------------------------------------------------------- the mechanism


@pytest.fixture
def lying(monkeypatch: pytest.MonkeyPatch) -> str:
    """A solver that claims too high a bound."""
    name = "bound-above-optimum"
    monkeypatch.setitem(registry._SOLVERS, name, LIARS[name])
    return name


def test_a_disagreement_is_cut_down_and_kept(lying: str, tmp_path: Path) -> None:
    """A liar's disagreement ends as a file of one block, on which it still lies and the others agree."""
    problem = tiny_problem(3)
    assert disagreements(problem, ("enumerate", lying))
    with pytest.raises(pytest.fail.Exception, match=r"above the optimum; .*kept as "):
        agree(problem, ("enumerate", lying), tmp_path)
    (path,) = tmp_path.glob("*.json")
    least, fault = recorded(path)
    assert "above the optimum" in fault
    assert least.instance.blocks == 1
    assert least.instance.tokens <= 2
    assert disagreements(least, ("enumerate", lying))
    assert not disagreements(least, ("enumerate", "certified"), time_limit=600.0)  # compiles, too
    lies = partial(disagreements, methods=("enumerate", lying))
    assert not any(lies(part) for part in smaller(least))


@pytest.mark.parametrize("seed", range(12))
def test_kept_problems_come_back_as_they_were(seed: int, tmp_path: Path) -> None:
    """Instance, floors, given bandwidth, candidates, caps: nothing is lost on the way through the file."""
    problem = tiny_problem(seed)
    again, fault = recorded(record(problem, tmp_path, "none"))
    assert fault == "none"
    assert again.digest == problem.digest


def test_other_instance_files_are_refused(tmp_path: Path) -> None:
    """A file without a request is no regression."""
    path = tmp_path / "plain.json"
    tiny_problem(0).instance.save(path)
    with pytest.raises(wo.InputError, match="holds no request"):
        recorded(path)
