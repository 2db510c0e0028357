"""certify() rechecks everything that a solution claims; gap() says how far a point is from the optimum."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wdmoe_opt.certificates.check import inspect
from wdmoe_opt.certificates.pricing import ROUNDING, reprice
from wdmoe_opt.errors import InputError, UnsupportedError
from wdmoe_opt.validation import real_scalar, require_type

if TYPE_CHECKING:
    from collections.abc import Callable

    from wdmoe_opt.certificates.certificate import Certificate
    from wdmoe_opt.certificates.check import Verdict
    from wdmoe_opt.problem import Problem
    from wdmoe_opt.solution import Solution


@dataclass(frozen=True)
class Report:
    """What `certify` found; truthy only if everything that was claimed has been rechecked.

    Attributes
    ----------
    checks : tuple of str
        What was checked and is right.
    failures : tuple of str
        What is wrong, or was claimed and could not be rechecked.
    value : float
        The objective, priced again; NaN without a point.
    bound : float
        What the certificate proves; infinitely bad without one.
    gap : float
        Distance of value and bound over the value; inf where nothing is proved.
    exact : bool
        Whether the bound was rechecked in rational arithmetic.
    """

    checks: tuple[str, ...] = ()
    failures: tuple[str, ...] = ()
    value: float = math.nan
    bound: float = -math.inf
    gap: float = math.inf
    exact: bool = False

    def __bool__(self) -> bool:
        return not self.failures

    def __str__(self) -> str:
        head = "everything claimed was rechecked" if self else "NOT everything claimed is proved"
        lines = [head, *(f"  ok    {text}" for text in self.checks)]
        return "\n".join([*lines, *(f"  FAILS {text}" for text in self.failures)])


def certify(problem: Problem, solution: Solution, *, exact: bool = False) -> Report:
    """Check every claim of a solution with code that no solver uses.

    Parameters
    ----------
    problem : Problem
    solution : Solution
        Of this problem.
    exact : bool
        Check the certificate in rational arithmetic: slow, and free of any assumption about rounding.

    Returns
    -------
    Report
        Truthy only if the point is feasible and priced as claimed, and a bound, if one is claimed,
        follows from the solution's certificate.
    """
    _require(problem, solution)
    checks: list[str] = []
    failures: list[str] = []
    value = _check_point(problem, solution, checks, failures)
    worst = -math.inf if problem.objective == "latency" else math.inf
    bound = _check_bound(problem, solution, exact, checks, failures)
    if bound is not None and _beyond(problem, bound, value):
        failures.append(f"the proved bound {bound!r} contradicts the point's own value {value!r}")
    distance = math.inf if bound is None else _relative(problem, value, bound)
    _check_optimality(solution, distance, checks, failures)
    return Report(tuple(checks), tuple(failures), value, worst if bound is None else bound, distance, exact)


def gap(problem: Problem, solution: Solution, *, lower_bound: float | None = None) -> float:
    """How far a point is from the optimum at most, relatively.

    Parameters
    ----------
    problem : Problem
    solution : Solution
        For instance a user's own point, by `Solution.from_arrays`.
    lower_bound : float, optional
        A bound on the objective's best value, from above where it is maximised, that is to be believed.
        Default: what the solution's certificate proves; if it has none, what method "certified" proves.

    Returns
    -------
    float
        Distance of the point's value, priced again, and the bound over the value; inf where nothing is
        known or the point breaks a constraint.
    """
    _require(problem, solution)
    price = reprice(problem, solution.keep, solution.bandwidth)
    if price.faults:
        return math.inf
    if lower_bound is None:
        lower_bound = _proved(problem, solution)
    else:
        lower_bound = real_scalar("lower_bound", lower_bound)
    return _relative(problem, price.objective, lower_bound)


def _require(problem: Problem, solution: Solution) -> None:
    from wdmoe_opt.problem import Problem
    from wdmoe_opt.solution import Solution

    require_type("problem", problem, Problem)
    require_type("solution", solution, Solution)


def _proved(problem: Problem, solution: Solution) -> float:
    if solution.certificate is not None:
        return inspect(problem, solution.certificate).bound
    from wdmoe_opt.solving import solve

    return _trusted(solve(problem, "certified"))


def _trusted(solution: Solution) -> float:
    """A certified bound, else none."""
    worst = -math.inf if solution.problem.objective == "latency" else math.inf
    return solution.lower_bound if solution.bound_kind == "certified" else worst


def _relative(problem: Problem, value: float, bound: float) -> float:
    if value == bound:
        return 0.0
    if not (math.isfinite(value) and math.isfinite(bound)) or value == 0:
        return math.inf
    distance = value - bound if problem.objective == "latency" else bound - value
    return distance / value


def _beyond(problem: Problem, bound: float, value: float) -> bool:
    """Whether a bound excludes a point that is there."""
    slack = ROUNDING * abs(value)
    return bound > value + slack if problem.objective == "latency" else bound < value - slack


def _check_point(problem: Problem, solution: Solution, checks: list[str], failures: list[str]) -> float:
    """Value of the point, priced again; NaN if there is none."""
    if not solution.has_point:
        failures.append(f"there is no point to check ({solution.termination.reason})")
        return math.nan
    try:
        price = reprice(problem, solution.keep, solution.bandwidth)
    except InputError as error:
        failures.append(f"the point is malformed: {error}")
        return math.nan
    failures.extend(f"the point is not feasible: {fault}" for fault in price.faults)
    if not price.faults:
        checks.append("the point keeps every floor, cap and limit")
    claimed = solution.objective
    same = claimed == price.objective or abs(claimed - price.objective) <= ROUNDING * abs(price.objective)
    if same:
        checks.append(f"its {problem.objective} is {price.objective:.9g}, as claimed")
    else:
        failures.append(f"its {problem.objective} is {price.objective!r}, claimed is {claimed!r}")
    return price.objective


def _check_optimality(solution: Solution, distance: float, checks: list[str], failures: list[str]) -> None:
    """Hold the word "optimal" against what is proved."""
    if solution.termination.reason != "optimal":
        return
    if math.isfinite(distance):
        checks.append(f"it says 'optimal': proved to within {distance:.3g}")
    else:
        failures.append("it says 'optimal' and nothing is proved")


def _check_bound(
    problem: Problem, solution: Solution, exact: bool, checks: list[str], failures: list[str]
) -> float | None:
    """What the certificate proves; None if nothing is proved."""
    certificate = solution.certificate
    if certificate is None:
        if solution.bound_kind == "none":
            checks.append("nothing claimed about the optimum")
        else:
            claim = f"the {solution.bound_kind} bound {solution.lower_bound!r}"
            failures.append(f"{claim} comes without a certificate: not rechecked")
        return None
    if certificate.digest != certificate.expected_digest(problem):
        failures.append("the certificate's digest does not match: it was changed, or is of another problem")
    try:
        verdict = _inspect(exact)(problem, certificate)
    except (InputError, UnsupportedError) as error:
        failures.append(f"the certificate does not fit the problem: {error}")
        return None
    if not math.isfinite(verdict.bound):
        failures.extend(f"the certificate proves nothing: {text}" for text in verdict.failures)
        return None
    _compare(problem, solution, verdict.bound, exact, checks, failures)
    return verdict.bound


def _compare(
    problem: Problem, solution: Solution, bound: float, exact: bool, checks: list[str], failures: list[str]
) -> None:
    """Hold what the solution and its certificate claim against what is proved."""
    assert solution.certificate is not None
    claims = {"certificate": solution.certificate.bound}
    if solution.bound_kind != "none":
        claims["solution"] = solution.lower_bound
    low = problem.objective == "latency"
    for who, claim in claims.items():
        # NaN is at most nothing.
        if not (claim <= bound if low else claim >= bound):
            failures.append(f"the {who} claims the bound {claim!r}, proved is {bound!r}")
    if not failures:
        arithmetic = "rational arithmetic" if exact else "double precision, rounded outward"
        checks.append(f"the bound {bound:.9g} follows from the certificate ({arithmetic})")


def _inspect(exact: bool) -> Callable[[Problem, Certificate], Verdict]:
    if not exact:
        return inspect
    from wdmoe_opt.certificates.exact import inspect_exactly

    return inspect_exactly
