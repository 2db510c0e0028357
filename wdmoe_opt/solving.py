"""solve(): one entry for every solver; the metric prices whatever comes back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from math import inf, isfinite
from time import perf_counter
from typing import TYPE_CHECKING, Any

from wdmoe_opt.errors import InputError, UnknownNameError, WdmoeError
from wdmoe_opt.instance import Instance
from wdmoe_opt.interrupts import interrupts_heard
from wdmoe_opt.metrics import Evaluation, evaluate, unpriced
from wdmoe_opt.problem import FEASIBILITY_TOLERANCE, Problem
from wdmoe_opt.registry import (
    COMMON_ARGUMENTS,
    BoundKind,
    Control,
    Point,
    SolverInfo,
    Termination,
    check_request,
    find_solver,
    list_solvers,
)
from wdmoe_opt.solution import Solution
from wdmoe_opt.validation import freeze, real_scalar, whole

if TYPE_CHECKING:
    from wdmoe_opt.certificates.certificate import Certificate

_REQUEST_FIELDS = frozenset(f.name for f in fields(Problem)) - {"instance"}


def solve(
    problem: Problem | Instance,
    method: str = "auto",
    *,
    time_limit: float | None = None,
    rel_gap: float = 1e-3,
    seed: int = 0,
    threads: int = 1,
    **options: Any,
) -> Solution:
    """Find an expert selection with a bandwidth allocation.

    Parameters
    ----------
    problem : Problem or Instance
        For an instance, request fields such as ``min_retention=0.95`` may be given as keywords.
    method : str
        A solver's name, see `list_solvers`; "auto" picks one and says which in ``termination``.
    time_limit : float, s, optional
        Wall clock of the search, for the solvers that search; the native ones without a search finish in
        milliseconds and do not look at it. Pricing the point and checking its certificate come on top: see
        ``timings``; the tree of a long `exact` takes seconds. If "auto" takes a general solver and none is
        given, a minute.
    rel_gap : float
        Relative gap at which solvers with a bound (`certified`, `exact`, `milp`, `minlp`) may stop.
    seed : int
        For solvers that draw; none of the native ones does.
    threads : int
        Threads over blocks, for `certified`, `greedy`, `alternating` and `local-search` (results do not
        depend on it), and for the solvers behind `milp` and `minlp`.
    **options
        The solver's own options, and for an instance the request's fields.

    Returns
    -------
    Solution
        Priced by `evaluate`. Check ``feasible``: a method that does not know floors may break them,
        and one that found no point at all (``termination.reason`` "infeasible" or "no-solution", also where
        memory ran out) returns infinite latency.

    Raises
    ------
    InputError
        If an argument breaks a rule.
    UnknownNameError
        If the method or an option does not exist.
    UnsupportedError
        If the method cannot do what is asked; the message names those that can.
    KeyboardInterrupt
        On Ctrl-C, except by method `exact`, which returns the best point and bound so far with
        ``termination.limit`` "interrupt". Either way nothing is left behind: the same call can be made again.
    """
    started = perf_counter()
    if isinstance(problem, Instance):
        request = {name: options.pop(name) for name in list(options) if name in _REQUEST_FIELDS}
        problem = Problem(problem, **request)
    elif not isinstance(problem, Problem):
        raise InputError("problem", f"must be a Problem or an Instance, got {type(problem).__name__}")
    else:
        misplaced = _REQUEST_FIELDS & options.keys()
        if misplaced:
            raise InputError(min(misplaced), "is part of the Problem; use problem.replace()")
    if time_limit is not None:
        time_limit = real_scalar("time_limit", time_limit, minimum=0)
    control = Control(
        time_limit=time_limit,
        rel_gap=real_scalar("rel_gap", rel_gap, minimum=0),
        seed=whole("seed", seed, 0, 2**63 - 1, "must be at least 0"),
        threads=whole("threads", threads, 1, 4096, "must be 1 to 4096"),
    )
    if isinstance(method, str) and method == "auto":
        return _solve_auto(problem, control, options)
    info = find_solver(method)
    check_request(info, problem, options)
    return run_solver(info, problem, control, options, started)


def run_solver(
    info: SolverInfo,
    problem: Problem,
    control: Control,
    options: Mapping[str, Any],
    started: float | None = None,
    optimal_within: float | None = None,
) -> Solution:
    """Run a solver, registered or not, on a request that passed `check_request`.

    Parameters
    ----------
    info : SolverInfo
    problem : Problem
    control : Control
    options : mapping
    started : float, s, optional
        When preparing began, by `time.perf_counter`.
    optimal_within : float, optional
        Largest gap with which "optimal" is left standing; ``control.rel_gap`` if None.

    Returns
    -------
    Solution
        See `priced_solution`; termination "no-solution" with limit "memory" where memory ran out.

    Raises
    ------
    WdmoeError
        If the solver returns no `Point`, or a malformed one.
    """
    began = perf_counter()
    started = began if started is None else started
    try:
        with interrupts_heard():
            point = info.run(problem, control, options)
            if not isinstance(point, Point):
                raise WdmoeError(f"method {info.name!r} returned a {type(point).__name__}, not a Point")
            timings = {"prepare": began - started, "solve": perf_counter() - began}
            within = control.rel_gap if optimal_within is None else optimal_within
            return priced_solution(problem, point, info.name, timings, within)
    except MemoryError as error:
        words = str(error) or "out of memory"
    # Outside the handler, whose error holds on to what the solver allocated.
    point = Point.nothing("no-solution", "memory", words)
    timings = {"prepare": began - started, "solve": perf_counter() - began}
    return priced_solution(problem, point, info.name, timings)


def priced_solution(
    problem: Problem, point: Point, method: str, timings: dict[str, float], rel_gap: float = inf
) -> Solution:
    """A solver's point as a solution: priced by the metric, its certificate recomputed, its claims doubted.

    Raises
    ------
    WdmoeError
        If the point or its certificate is malformed.
    """
    found = perf_counter()
    try:
        priced = unpriced(problem) if point.empty else evaluate(problem, point.keep, point.bandwidth)
    except InputError as error:
        raise WdmoeError(f"method {method!r} returned a malformed point: {error}") from error
    done = perf_counter()
    bound, kind, certificate = _rechecked_bound(method, problem, point)
    rechecked = perf_counter()
    end = point.termination
    if kind == "certified" and end.reason == "optimal":
        end = _confirmed(end, point.lower_bound, bound)
    if kind == "claimed" and _contradicted(priced, bound):
        detail = f"its bound {bound:.9g} is contradicted by its own point and dropped; {end.detail}"
        bound, kind, end = _worst(problem), "none", Termination("heuristic", "check", detail)
    if not point.empty and any(violation.constraint == "max_latency" for violation in priced.violations):
        end = _beyond_cap(problem, bound, kind, end)
        if end.reason == "infeasible":
            point = replace(point, keep=None, bandwidth=None, kkt_residual=float("nan"))
            priced = unpriced(problem)
    solution = Solution(
        problem,
        None if point.keep is None else freeze(problem.checked_keep(point.keep).copy()),
        None if priced.bandwidth is None else freeze(priced.bandwidth.copy()),
        priced,
        method=method,
        lower_bound=bound,
        bound_kind=kind,
        kkt_residual=point.kkt_residual,
        termination=end,
        timings={**timings, "price": done - found, "certify": rechecked - done},
        trace=point.trace,
        certificate=certificate,
    )
    if end.reason == "optimal" and not solution.gap <= rel_gap + CONFIRMED:
        detail = f"says 'optimal' with a gap of {solution.gap:.3g}; {end.detail}"
        solution = replace(solution, termination=Termination("feasible-at-limit", "check", detail))
    return solution


def _beyond_cap(problem: Problem, bound: float, kind: BoundKind, end: Termination) -> Termination:
    """What is to be said of a point above ``max_latency``: least latency does not look at the cap."""
    cap = float(problem.max_latency or inf)
    proved = problem.objective == "latency" and kind == "certified"
    if proved and bound > cap * (1 + FEASIBILITY_TOLERANCE):
        detail = f"max_latency = {cap!r} s is below the least possible latency, {bound:.9g} s (certified)"
        return Termination("infeasible", "", f"{detail}; {end.detail}")
    if end.reason == "heuristic":
        return end
    return Termination("heuristic", end.limit, f"its point is above max_latency; {end.detail}")


def _worst(problem: Problem) -> float:
    """The bound that says nothing."""
    return -inf if problem.objective == "latency" else inf


def _contradicted(priced: Evaluation, bound: float) -> bool:
    """Whether a point lies beyond a bound, or the bound is no number.

    The point must be feasible, but for a cap on the latency that is also the objective.
    """
    value, latency = priced.objective, priced.problem.objective == "latency"
    beyond = value - bound if latency else bound - value
    forgiven = ("max_latency",) if latency else ()
    broken = any(violation.constraint not in forgiven for violation in priced.violations)
    return not broken and not beyond >= -CLAIM_ROUNDING * abs(value)


def _rechecked_bound(
    method: str, problem: Problem, point: Point
) -> tuple[float, BoundKind, Certificate | None]:
    """A bound is certified if a certificate proves it, and is then what it proves; else it is claimed."""
    if point.certificate is not None:
        from wdmoe_opt.certificates.check import recompute
        from wdmoe_opt.certificates.weaken import weakened

        certificate = point.certificate
        try:
            proved = recompute(problem, certificate)
            if not isfinite(proved):
                certificate = weakened(problem, certificate)
                proved = recompute(problem, certificate)
        except InputError as error:
            raise WdmoeError(f"method {method!r} returned a malformed certificate: {error}") from error
        if isfinite(proved):
            return proved, "certified", certificate.sealed(problem, proved)
    return point.lower_bound, "none" if point.bound_kind == "none" else "claimed", None


def _confirmed(end: Termination, believed: float, proved: float) -> Termination:
    """Leave "optimal" standing only if the check proves what the solver believed."""
    if abs(believed - proved) <= CONFIRMED * abs(believed):
        return end
    return Termination("feasible-at-limit", "check", f"the check proves less than the solver; {end.detail}")


#: By how much, relatively, the proved bound may fall short of the solver's, and the gap be more than asked.
CONFIRMED = 1e-6
#: By how much, relatively, a claimed bound may pass the value of the point that it comes with.
CLAIM_ROUNDING = 1e-9
#: What certified takes per token-candidate pair, in s, with margin
#: (``python -m wdmoe_opt.benchmarks.certified``).
AUTO_SECONDS_PER_PAIR = 2e-6
#: The same for the readings of the weight-to-latency ratio.
AUTO_RATIO_SECONDS_PER_PAIR = 2e-4
#: What "auto" gives a general solver where no limit is given, s: those may take for ever.
AUTO_LIMIT = 60.0


def pick_method(problem: Problem, control: Control) -> tuple[str, str]:
    """Method that "auto" takes, and why, by what is asked, size and time limit."""
    if not problem.selectable:
        return "certified", "only bandwidth is free"
    if problem.objective != "latency" and problem.max_latency is not None:
        name = "milp" if problem.objective == "retention" else "minlp"
        check_request(find_solver(name), problem, ())
        return name, f"{problem.objective} under a latency cap"
    pairs = int(problem.allowed.sum())
    seconds = pairs * (
        AUTO_SECONDS_PER_PAIR if problem.objective == "latency" else AUTO_RATIO_SECONDS_PER_PAIR
    )
    if control.time_limit is not None and seconds > control.time_limit:
        return "greedy", f"{pairs} token-expert pairs would take certified about {seconds:.2g} s"
    if find_solver("certified").refusal(problem):
        return "alternating", f"objective {problem.objective!r} has no bound"
    return "certified", f"{pairs} token-expert pairs"


def _solve_auto(problem: Problem, control: Control, options: dict[str, Any]) -> Solution:
    if options:
        name = min(options)
        known = {name for info in list_solvers() if info.availability() for name in info.options}
        if name not in known:
            raise UnknownNameError("argument of solve", name, {*known, *_REQUEST_FIELDS, *COMMON_ARGUMENTS})
        raise InputError(name, "cannot be set with method 'auto'; name a method")
    name, reason = pick_method(problem, control)
    if name in ("milp", "minlp") and control.time_limit is None:
        control = replace(control, time_limit=AUTO_LIMIT)
        reason += f", for {AUTO_LIMIT:g} s as no time_limit is given"
    best = run_solver(find_solver(name), problem, control, {})
    end = best.termination
    detail = f"auto took {name} ({reason}); {end.detail}"
    return replace(best, termination=Termination(end.reason, end.limit, detail))
