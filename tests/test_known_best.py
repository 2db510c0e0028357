"""Answers against the best known values: better than known is a failure until it is verified."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

import wdmoe_opt as wo
from wdmoe_opt.benchmarks import known_best
from wdmoe_opt.benchmarks.known_best import (
    Line,
    better_of,
    captured_names,
    contradictions,
    problem_of,
    read,
    tiny_names,
    write,
)

KNOWN = read(Path(__file__).parent / "known_best.json")
#: By how much, relatively, the default method may stay above the best known value of a captured problem.
BEHIND = 0.02


def test_every_problem_has_its_line() -> None:
    """Tiny problems are settled; captured ones have a value and a bound; each says where it is from."""
    assert set(KNOWN) == {*tiny_names(), *captured_names()}
    for name, facts in KNOWN.items():
        kinds = {fact.kind for fact in facts}
        assert kinds in ({"optimal"}, {"infeasible"}, {"optimal", "bound"}, {"best", "bound"}), name
        for fact in facts:
            assert fact.method in {info.name for info in wo.list_solvers()}
            assert (fact.value is None) == (fact.kind == "infeasible")
            assert fact.date >= "2026-01-01"
            assert fact.version


@pytest.mark.parametrize("name", tiny_names())
def test_tiny_problems(name: str) -> None:
    """Enumeration gives the known value again; bounds and heuristics are on their sides of it."""
    problem = problem_of(name)
    again = wo.solve(problem, "enumerate")
    optimal = {fact.kind: fact.value for fact in KNOWN[name]}.get("optimal")
    assert again.feasible == (optimal is not None)
    if optimal is not None:
        assert again.latency == pytest.approx(optimal, rel=1e-9)
    for method in ("certified", "alternating"):
        assert not list(contradictions(name, KNOWN[name], wo.solve(problem, method, time_limit=0.2)))


@pytest.mark.compiled
@pytest.mark.parametrize("name", captured_names())
def test_captured_problems(name: str) -> None:
    """The default method contradicts no known value or bound, and is not far behind."""
    found = wo.solve(problem_of(name), "certified")
    assert not list(contradictions(name, KNOWN[name], found))
    best = next(fact.value for fact in KNOWN[name] if fact.kind in ("optimal", "best"))
    assert best is not None
    assert found.latency <= best * (1 + BEHIND)
    assert wo.certify(found.problem, found)


# ---------------------------------------------------------------------- the mechanism


def lines(problem: wo.Problem, **values: float | None) -> tuple[Line, ...]:
    """Facts about a problem."""
    return tuple(
        Line(kind, value, "enumerate", None, problem.digest, "2026-11-22", "0.1.0")  # type: ignore[arg-type]
        for kind, value in values.items()
    )


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"best": 1.001}, "is better than known: verify it, then run python -m"),
        ({"optimal": 1.001}, "cannot be"),
        ({"bound": 1.001}, "is below the certified bound"),
        ({"best": 0.5}, "the bound .* s is above the best value"),
        ({"infeasible": None}, "feasible, known is that nothing is"),
    ],
)
def test_every_contradiction_is_named(facts: dict[str, float | None], words: str) -> None:
    """One known fact moved past the truth, class by class."""
    problem = problem_of("tiny-1")
    found = wo.solve(problem, "enumerate")
    moved = {kind: None if part is None else part * found.latency for kind, part in facts.items()}
    complaints = "; ".join(contradictions("tiny-1", lines(problem, **moved), found))
    assert re.search(words, complaints)


def test_a_changed_problem_is_noticed() -> None:
    """Facts about another instance of the same name do not count."""
    problem = problem_of("tiny-1")
    facts = [replace(line, digest="another") for line in lines(problem, optimal=1.0)]
    (complaint,) = contradictions("tiny-1", tuple(facts), wo.solve(problem, "topk"))
    assert "the problem has changed" in complaint


def test_the_stronger_fact_is_kept(tmp_path: Path) -> None:
    """Lower values, higher bounds; an optimum replaces a best value; other problems' facts are dropped."""
    problem = problem_of("tiny-1")
    old, new = lines(problem, best=2.0, bound=1.0), lines(problem, best=1.5, bound=0.5)
    assert [line.value for line in better_of(old, new)] == [1.5, 1.0]
    closed = lines(problem, optimal=1.5)
    assert [line.kind for line in better_of(old, closed)] == ["optimal", "bound"]
    other = tuple(replace(line, digest="another") for line in old)
    assert better_of(other, new) == new
    write({"tiny-1": new}, tmp_path / "known.json")
    assert known_best.read(tmp_path / "known.json") == {"tiny-1": new}
