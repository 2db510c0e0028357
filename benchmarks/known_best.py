"""Best known values with their provenance: ``python -m wdmoe_opt.benchmarks.known_best --write``.

Every tiny problem (`agreement.tiny_problem`) is enumerated; every captured instance is solved at floor 0.95
with each allocation by all native methods, and its bound is certified. Without ``--write`` the file is held
against what is found now. Lines are of four classes, as in SCIP's solution files:

==========  ========================================================
optimal     the least latency, enumerated or certified to `CLOSED`
best        a latency that has been reached
bound       what no latency is below, by a rechecked certificate
infeasible  no selection meets the floors; without a value
==========  ========================================================
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Literal, cast, get_args

from rich.console import Console
from rich.progress import track

import wdmoe_opt as wo
from wdmoe_opt.archive import write_text
from wdmoe_opt.benchmarks.agreement import tiny_problem
from wdmoe_opt.problem import Allocation

Kind = Literal["optimal", "best", "bound", "infeasible"]
#: Where the tests read it, from the root of a checkout.
FILE = Path("tests") / "known_best.json"
TINY = 60
FLOOR = 0.95
#: Gap to which a certified value is called optimal, and rounding of prices.
CLOSED, ROUNDING = 1e-7, 1e-9
#: What reaches values, the prover first; and its seconds per captured problem.
METHODS = ("exact", "certified", "alternating", "greedy")
TIME_LIMIT = 2.0
REGENERATE = "run python -m wdmoe_opt.benchmarks.known_best --write"


@dataclass(frozen=True)
class Line:
    """One fact about one problem.

    Attributes
    ----------
    kind : {"optimal", "best", "bound", "infeasible"}
    value : float or None, s
    method : str
        What found it.
    gap : float or None
        What is left between it and the other side, relatively.
    digest : str
        Of the problem: a line about another instance or request does not count.
    date, version : str
    """

    kind: Kind
    value: float | None
    method: str
    gap: float | None
    digest: str
    date: str
    version: str


#: Lines by the name of the problem.
KnownBest = Mapping[str, tuple[Line, ...]]


def tiny_names() -> list[str]:
    """Names of the tiny problems."""
    return [f"tiny-{seed}" for seed in range(TINY)]


def captured_names() -> list[str]:
    """Names of the captured problems: instance and allocation."""
    return [f"{name} {how}" for name in wo.list_instances() for how in get_args(Allocation)]


def problem_of(name: str) -> wo.Problem:
    """The problem behind a name."""
    if name in tiny_names():
        return tiny_problem(int(name.removeprefix("tiny-")))
    instance, allocation = name.split()
    loaded = wo.load_instance(instance)
    floor = 0.0 if loaded.loads is not None else FLOOR
    return wo.Problem(loaded, allocation=cast(Allocation, allocation), min_retention=floor)


def known(name: str, time_limit: float = TIME_LIMIT) -> tuple[Line, ...]:
    """Find out what can be said of a problem now."""
    problem = problem_of(name)
    if name in tiny_names():
        return _enumerated(problem)
    able = [m for m in METHODS if not wo.registry.find_solver(m).refusal(problem)]
    found = [wo.solve(problem, m, rel_gap=CLOSED, time_limit=time_limit) for m in able]
    return _proved(problem, found)


def _enumerated(problem: wo.Problem) -> tuple[Line, ...]:
    best = wo.solve(problem, "enumerate")
    if not best.feasible:
        return (_line(problem, "infeasible", None, "enumerate", None),)
    return (_line(problem, "optimal", best.latency, "enumerate", 0.0),)


def _proved(problem: wo.Problem, found: Iterable[wo.Solution]) -> tuple[Line, ...]:
    """Best value and best certified bound; together an optimum where they meet."""
    found = list(found)
    best = min((s for s in found if s.feasible), key=lambda s: s.latency)
    proof = max((s for s in found if s.bound_kind == "certified"), key=lambda s: s.lower_bound)
    gap = wo.gap(problem, best, lower_bound=proof.lower_bound)
    kind: Kind = "optimal" if gap <= CLOSED else "best"
    return (
        _line(problem, kind, best.latency, best.method, gap),
        _line(problem, "bound", proof.lower_bound, proof.method, gap),
    )


def _line(problem: wo.Problem, kind: Kind, value: float | None, method: str, gap: float | None) -> Line:
    today = date.today().isoformat()
    return Line(kind, value, method, gap, problem.digest, today, wo.__version__)


# ---------------------------------------------------------------------- the file


def read(path: Path = FILE) -> KnownBest:
    """Lines of the file by the name of the problem."""
    content = json.loads(path.read_text("utf-8"))
    return {name: tuple(Line(**line) for line in lines) for name, lines in content.items()}


def write(lines: KnownBest, path: Path = FILE) -> None:
    """Write the file, one line per fact."""
    parts = []
    for name, facts in lines.items():
        rows = ",\n  ".join(json.dumps(asdict(fact)) for fact in facts)
        parts.append(f" {json.dumps(name)}: [\n  {rows}\n ]")
    text = "{\n" + ",\n".join(parts) + "\n}\n"
    write_text(path, text)


def better_of(before: tuple[Line, ...], now: tuple[Line, ...]) -> tuple[Line, ...]:
    """The better fact of each class; facts about another problem of the same name are dropped."""
    digest = now[0].digest
    old = [fact for fact in before if fact.digest == digest]
    lines = [_better([f for f in (*old, *now) if f.kind == kind], kind) for kind in get_args(Kind)]
    best = [line for line in lines if line is not None]
    closed = any(line.kind == "optimal" for line in best)
    return tuple(line for line in best if not (closed and line.kind == "best"))


def _better(lines: list[Line], kind: Kind) -> Line | None:
    """The strongest of several facts of one class, the older one where they say the same."""
    if not lines:
        return None
    sign = -1.0 if kind == "bound" else 1.0
    return min(lines, key=lambda line: 0.0 if line.value is None else sign * line.value)


# ---------------------------------------------------------------------- holding answers against it


def contradictions(name: str, facts: tuple[Line, ...], solution: wo.Solution) -> Iterator[str]:
    """What a solution and the known facts about its problem cannot both be right about."""
    where = f"{name}, {solution.method}"
    if any(fact.digest != solution.problem.digest for fact in facts):
        yield f"{name}: the problem has changed since the file was written; {REGENERATE}"
        return
    by_kind = {fact.kind: fact for fact in facts}
    if "infeasible" in by_kind and solution.feasible:
        yield f"{where}: feasible, known is that nothing is"
    value = by_kind.get("optimal", by_kind.get("best"))
    if value is not None and value.value is not None:
        yield from _against_value(where, value, value.value, solution)
    bound = by_kind.get("bound")
    if bound is None or bound.value is None or not solution.feasible:
        return
    if solution.latency < bound.value * (1 - ROUNDING):
        yield f"{where}: {solution.latency!r} s is below the certified bound {bound.value!r} s"


def _against_value(where: str, line: Line, value: float, solution: wo.Solution) -> Iterator[str]:
    of = f"the {line.kind} value {value!r} s ({line.method}, {line.date})"
    if solution.feasible and solution.latency < value * (1 - ROUNDING):
        rule = (
            "cannot be" if line.kind == "optimal" else f"is better than known: verify it, then {REGENERATE}"
        )
        yield f"{where}: {solution.latency!r} s against {of}: {rule}"
    if solution.bound_kind != "none" and solution.lower_bound > value * (1 + ROUNDING):
        yield f"{where}: the bound {solution.lower_bound!r} s is above {of}"
    if solution.termination.reason == "infeasible":
        yield f"{where}: says infeasible against {of}"


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description="Best known values with provenance.")
    parser.add_argument("--write", action="store_true", help=f"keep what is better in {FILE}")
    parser.add_argument("--fresh", action="store_true", help="forget what the file says")
    parser.add_argument("--time-limit", type=float, default=TIME_LIMIT, help="seconds per method and problem")
    options = parser.parse_args()
    before = read() if FILE.is_file() and not options.fresh else {}
    names = [*tiny_names(), *captured_names()]
    now = {
        name: known(name, options.time_limit)
        for name in track(names, "solving", console=Console(stderr=True), transient=True)
    }
    merged = {name: better_of(before.get(name, ()), facts) for name, facts in now.items()}
    for name, facts in merged.items():
        if facts != before.get(name, ()):
            print(name, *(f"{f.kind} {f.value!r} by {f.method}" for f in facts), sep="; ")
    if options.write:
        write(merged)
    sys.exit(0 if options.write or merged == before else 1)


if __name__ == "__main__":
    main()
