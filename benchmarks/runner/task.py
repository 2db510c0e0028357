"""One task: one contestant on one case with one seed, measured by a fixed protocol.

Protocol
--------
A worker process that has done nothing else imports the package, builds the problem and calls the solver once:
the *cold* call. It loads what the solver imports and the compiled kernels from Numba's disk cache. If kernels
had to be compiled, the call is repeated until none is, and the whole task is done again in another fresh
process, whose first call is the cold one; ``compile_s`` is what the calls that compiled took beyond it: what
this solver adds to the kernels that those before it in the run had compiled. Importing the package and
building the problem are in no figure.

Then the same call is repeated in the same process, *warm*: a first call of over 30 s is not repeated
(``repeats`` 0, ``warm_s`` is then the first call); one repeat where that takes over 5 s; else at least three,
and up to five until 2 s are spent. Reported are median, quartiles and minimum, and the answer of the last
call: what a peer imports may use its time limit up in the first. A call is what `wdmoe_opt.solve` does:
checks, search, pricing of the point by the metric, recheck of its certificate. Peers go through the same
steps.

A contestant at another method's retention has that method solved first, outside all times; its first call is
then not cold, and ``cold_s`` is NaN.

``metric_s`` is the median of warm `wdmoe_opt.evaluate` calls on the answer. A certified claim is rechecked by
`wdmoe_opt.certify`; other claims wait for what the others find, see `claims`.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from time import perf_counter
from typing import Any

import numpy as np

from wdmoe_opt import __version__
from wdmoe_opt.benchmarks.runner.rows import blank_row
from wdmoe_opt.benchmarks.suites.generators import GENERATORS
from wdmoe_opt.benchmarks.suites.load import fill
from wdmoe_opt.benchmarks.suites.suite import Case, Contestant
from wdmoe_opt.errors import UnsupportedError
from wdmoe_opt.library import load_instance
from wdmoe_opt.problem import Problem
from wdmoe_opt.registry import Control, SolverInfo, check_request
from wdmoe_opt.solution import Solution

#: Protocol of warm repeats: most repeats, s after which no more are started, least repeats of fast solvers,
#: s above which one repeat is enough, s above which none is made.
REPEATS, SPENT, LEAST, SLOW, VERY_SLOW = 5, 2.0, 3, 5.0, 30.0
#: Most calls that only compile, after the first.
COMPILING_CALLS = 6
PACKAGES = (
    "wdmoe_opt", "numpy", "scipy", "numba", "llvmlite", "cvxpy", "clarabel", "scs", "pyomo", "highspy",
    "pyscipopt", "maingopy", "casadi", "gurobipy",
)  # fmt: skip


@dataclass(frozen=True)
class Task:
    """What one row is about; goes to a worker as JSON.

    Attributes
    ----------
    suite : str
    case : Case
    contestant : Contestant
    seed : int
    plugins : tuple of str
        Modules or files that register further solvers, see `plugins`.
    """

    suite: str
    case: Case
    contestant: Contestant
    seed: int
    plugins: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Hash of everything that decides the row; where plugins lie does not."""
        what = {**asdict(self), "plugins": None, "version": __version__}
        return hashlib.blake2b(
            json.dumps(what, sort_keys=True, default=str).encode(), digest_size=12
        ).hexdigest()

    @property
    def control(self) -> Control:
        """What the solver is told."""
        return Control(self.contestant.time_limit, self.contestant.rel_gap, self.seed, 1)

    def to_json(self) -> str:
        """As text for a worker."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Task:
        """From what `to_json` wrote."""
        read = json.loads(text)
        contestant: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in read["contestant"].items()
        }
        return cls(
            read["suite"],
            Case(**read["case"]),
            Contestant(**contestant),
            read["seed"],
            tuple(read["plugins"]),
        )

    def row(self, **known: Any) -> dict[str, Any]:
        """The row of this task, with what is known of it."""
        c = self.contestant
        return {
            **blank_row(),
            "suite": self.suite,
            "case": self.case.name,
            "group": self.case.group,
            "axis": self.case.axis,
            "axis_value": self.case.axis_value,
            "seed": self.seed,
            "solver": c.label,
            "method": c.method,
            "options": json.dumps(c.options, sort_keys=True),
            "kind": c.kind,
            "time_limit_s": c.time_limit,
            "rel_gap": c.rel_gap,
            "task_key": self.key,
            "task": self.case.task,
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            **known,
        }


def build_problem(case: Case, seed: int) -> Problem:
    """The problem of a case for a seed.

    Raises
    ------
    InputError
        If the case does not describe a problem.
    """
    given = {"seed": seed}
    if case.generator:
        made = GENERATORS[case.generator](**fill(dict(case.parameters), given))
        if isinstance(made, Problem):
            return made.replace(**case.request) if case.request else made
    else:
        made = load_instance(fill(case.instance, given), **fill(dict(case.selection), given))
    request = dict(case.request)
    if made.loads is not None:
        request.pop("min_retention", None)  # a suite's floor means the cases that have gate weights
    if made.token_time_link is not None:
        request.setdefault("allocation", "fixed")
    return Problem(made, **request)


def answer(info: SolverInfo, problem: Problem, control: Control, options: Mapping[str, Any]) -> Solution:
    """What `wdmoe_opt.solve` does, for solvers that need not be registered.

    "Optimal" is left standing without a bound, too: `claims` judges it by what others find.
    """
    from wdmoe_opt.solving import run_solver

    check_request(info, problem, options)
    return run_solver(info, problem, control, options, optimal_within=math.inf)


class _Settled(Exception):  # noqa: N818
    """The row is decided before the solver is called."""

    def __init__(self, state: str, message: str) -> None:
        super().__init__(message)
        self.state = state


def perform(task: Task, report: Callable[[dict[str, Any]], None], *, final: bool = False) -> None:
    """Measure one task in this process, which must be fresh.

    Parameters
    ----------
    task : Task
    report : callable
        Gets the row so far under "row", each time instead of the one before, with "stage": "built" before the
        first call, "called" after it, "done"; and "compiled": whether kernels were compiled, so that there
        are no warm times.
    final : bool
        Take warm times even if kernels were compiled.
    """
    import wdmoe_opt.solving  # noqa: F401  not part of the first call

    row = task.row(**provenance())
    compiled = False
    try:
        info, problem = _prepared(task, row)
        report({"row": row, "compiled": False, "stage": "built"})
        compiled, solution = _first_columns(task, info, problem, row)
        compiled &= not final
        report({"row": row, "compiled": compiled, "stage": "called"})
        if compiled:  # the figures will come from another process
            row["first_s"] += _compile_rest(task, info, problem)
        else:
            row |= _later_columns(task, info, problem, solution, row["first_s"])
    except _Settled as end:
        row |= {"state": end.state, "message": str(end)}
    except UnsupportedError as error:
        row |= {"state": "refused", "message": str(error)}
    except Exception as error:  # a solver that fails is a result
        row |= {"state": "failed", "message": _words(error)}
    if task.contestant.at_retention_of:  # another solver ran before in this process
        row["cold_s"] = math.nan
    report({"row": row, "compiled": compiled, "stage": "done"})


def _prepared(task: Task, row: dict[str, Any]) -> tuple[SolverInfo, Problem]:
    """The solver and the problem; raises `_Settled` where there is nothing to measure."""
    from wdmoe_opt.benchmarks.peers import find_solver
    from wdmoe_opt.benchmarks.runner.plugins import load_plugins

    contestant = task.contestant
    try:
        load_plugins(task.plugins)
        problem = build_problem(task.case, task.seed)
    except Exception as error:
        raise _Settled("failed", f"the problem cannot be built: {_words(error)}") from error
    if contestant.at_retention_of:
        problem = _at_retention(problem, contestant.at_retention_of)
    row |= _problem_columns(problem)
    info = find_solver(contestant.method)
    available = info.availability()
    if not available:
        raise _Settled("unavailable", available.reason)
    if row["pairs"] > contestant.most_pairs:
        limit = (
            f"{row['pairs']} token-expert pairs, over the suite's limit of {contestant.most_pairs:g} for it"
        )
        raise _Settled("refused", limit)
    refusal = info.refusal(problem)
    if refusal:
        raise _Settled("refused", refusal)
    return info, problem


def _first_columns(
    task: Task, info: SolverInfo, problem: Problem, row: dict[str, Any]
) -> tuple[bool, Solution]:
    """Call the solver for the first time; fills the answer in."""
    first, compiled, solution = _first_call(info, problem, task.control, task.contestant.options)
    row |= {"first_s": first, "cold_s": first, **_answer_columns(problem, solution)}
    return compiled, solution


def _later_columns(
    task: Task, info: SolverInfo, problem: Problem, solution: Solution, first: float
) -> dict[str, Any]:
    """Warm times, the last answer, the metric's time, and the recheck."""
    last = [solution]

    def call() -> None:
        last[0] = answer(info, problem, task.control, task.contestant.options)

    found = {**_warm_columns(call, first), **_answer_columns(problem, last[0])}
    if last[0].has_point:
        found["metric_s"] = _metric_time(problem, last[0])
    return {**found, "claim_holds": _recheck(problem, last[0])}


def _at_retention(problem: Problem, method: str) -> Problem:
    """The problem with what another method keeps in each block as floors."""
    from wdmoe_opt.solving import solve

    reached = solve(problem, method).block_retention
    return problem.replace(min_retention=np.minimum(reached, 1.0))


def _first_call(
    info: SolverInfo, problem: Problem, control: Control, options: Mapping[str, Any]
) -> tuple[float, bool, Solution]:
    """Seconds of the first call, whether Numba compiled in it, and the answer."""
    from numba.core.event import install_timer

    compiled: list[float] = []
    started = perf_counter()
    with install_timer("numba:compile", compiled.append):
        solution = answer(info, problem, control, options)
    return perf_counter() - started, bool(compiled), solution


def _compile_rest(task: Task, info: SolverInfo, problem: Problem) -> float:
    """Seconds of further calls until one compiles nothing: the first may have spent its time limit on it."""
    spent, again = 0.0, True
    for _ in range(COMPILING_CALLS):
        if not again:
            break
        seconds, again, _ = _first_call(info, problem, task.control, task.contestant.options)
        spent += seconds
    return spent


def _warm_columns(call: Callable[[], object], first: float) -> dict[str, Any]:
    """Repeat a call by the protocol."""
    times: list[float] = []
    while first <= VERY_SLOW and len(times) < REPEATS:
        started = perf_counter()
        call()
        times.append(perf_counter() - started)
        if times[0] > SLOW or (len(times) >= LEAST and sum(times) > SPENT):
            break
    repeats = len(times)
    times = times or [first]
    quartiles = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else times * 3
    return {
        "warm_s": statistics.median(times),
        "warm_q1_s": quartiles[0],
        "warm_q3_s": quartiles[2],
        "warm_best_s": min(times),
        "repeats": repeats,
    }


def _metric_time(problem: Problem, solution: Solution) -> float:
    """Median seconds of pricing the answer, warm."""
    from wdmoe_opt.metrics import evaluate

    times: list[float] = []
    while len(times) < 5 or (sum(times) < 0.05 and len(times) < 200):
        started = perf_counter()
        evaluate(problem, solution.keep, solution.bandwidth)
        times.append(perf_counter() - started)
    return statistics.median(times[1:])


def _recheck(problem: Problem, solution: Solution) -> str:
    """Whether a certified claim holds; claims without a certificate are "unchecked", no claim is ""."""
    if solution.bound_kind == "none" and solution.termination.reason != "optimal":
        return ""
    if solution.bound_kind != "certified":
        return "unchecked"
    from wdmoe_opt.certificates.certify import certify

    return "yes" if certify(problem, solution) else "no"


def _problem_columns(problem: Problem) -> dict[str, Any]:
    inst = problem.instance
    return {
        "blocks": inst.blocks,
        "tokens": inst.tokens,
        "devices": inst.devices,
        "experts": inst.experts,
        "columns": inst.columns,
        "pairs": int(problem.allowed.sum()) if problem.selectable else 0,
        "objective": problem.objective,
        "allocation": problem.allocation,
        "dispatch": problem.dispatch,
        "candidates": str(problem.candidates),
        "min_retention": float(np.asarray(problem.min_retention).mean()),
    }


def _answer_columns(problem: Problem, solution: Solution) -> dict[str, Any]:
    end = solution.termination
    found: dict[str, Any] = {
        "state": "ok" if solution.has_point else "no-point",
        "message": "" if solution.has_point else f"{end.reason}: {end.detail}",
        "reason": end.reason,
        "limit": end.limit,
        "detail": end.detail,
        "claims_optimal": end.reason == "optimal",
        "bound_kind": solution.bound_kind,
    }
    if solution.bound_kind != "none":
        found["lower_bound"] = _finite(solution.lower_bound)
    if solution.has_point:
        found |= {
            "value": _finite(solution.objective),
            "latency_s": _finite(solution.latency),
            "retention": _finite(solution.retention) if problem.selectable else math.nan,
            "feasible": solution.feasible,
            "violations": "; ".join(map(str, solution.violations)),
            "gap": _finite(solution.gap),
            "device_time": json.dumps([float(f"{t:.6g}") for t in solution.device_time.mean(axis=0)]),
        }
    return found


def _finite(value: float) -> float:
    return float(value) if math.isfinite(value) else math.nan


def _words(error: BaseException) -> str:
    """An exception on one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:500]}" if text else type(error).__name__


def provenance() -> dict[str, str]:
    """Machine and versions, as columns of a row."""
    return {"machine": _machine(), "versions": _versions()}


@cache
def _machine() -> str:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return json.dumps(
        {
            "cpu": _cpu(),
            "cores": cores,
            "python": platform.python_version(),
            "platform": platform.platform(),
            "host": hashlib.blake2b(platform.node().encode(), digest_size=4).hexdigest(),
        }
    )


def _cpu() -> str:
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@cache
def _versions() -> str:
    return json.dumps({name: found for name in PACKAGES if (found := _version(name))})


def _version(name: str) -> str:
    if name == "wdmoe_opt":
        return __version__
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def tasks_of(
    suite: str, pairings: Sequence[tuple[Case, Contestant]], seeds: int, plugins: tuple[str, ...] = ()
) -> list[Task]:
    """Every pairing with every seed, seed by seed within a case."""
    return [Task(suite, case, c, seed, plugins) for seed in range(seeds) for case, c in pairings]
