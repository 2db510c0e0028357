"""Three failures measured in our own dependencies, each with a test that would catch it here.

1. A status is not evidence: CVXPY with HiGHS and no time said ``user_limit`` with the point 0.
2. SI units break convex solvers: Clarabel said ``optimal`` with 3.45 where 1.97 is right.
3. Solver objectives lie on the wrong side of the truth by the feasibility tolerance: SCIP.

The first two failures are also shown themselves, so that a dependency that mends them is noticed.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import wdmoe_opt as wo
from wdmoe_opt.registry import Control, find_solver
from wdmoe_opt.solvers import milp, minlp
from wdmoe_opt.solvers.reference import BACKEND_TOLERANCE, conclude
from wdmoe_opt.testing.checks import solution_faults
from wdmoe_opt.testing.problems import PROBLEMS, optimum

#: Solvers that stand on another package.
BACKENDS = ("convex", "milp", "minlp", "slsqp")
CASES = ("shared", "per-block")


def need(method: str) -> None:
    """Skip with the reason why a solver is not here."""
    available = find_solver(method).availability()
    if not available:
        pytest.skip(available.reason)


def check(solution: wo.Solution, case: str) -> None:
    """Nothing of what the suite looks at is wrong."""
    faults = solution_faults(find_solver(solution.method), solution, optimum=optimum(case))
    assert not faults


# ---------------------------------------------------------------------- a status is not evidence


def test_cvxpy_at_its_limit_still_hands_out_zeros() -> None:
    """The failure itself, in the version installed: a status other than "infeasible" with a false point.

    If this fails the dependency has changed: look again, then drop it.
    """
    cp = pytest.importorskip("cvxpy")
    pytest.importorskip("highspy")
    rng = np.random.default_rng(0)
    x = cp.Variable(40, boolean=True)
    weights = rng.integers(10, 60, (20, 40))
    program = cp.Problem(cp.Maximize(rng.integers(1, 50, 40) @ x), [weights @ x >= 600])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            program.solve(solver="HIGHS", time_limit=0.0)
    except cp.error.SolverError:
        pytest.skip("this CVXPY raises where it has no point")
    if x.value is None:
        pytest.skip("this CVXPY hands out no point")
    assert (weights @ x.value < 600 - 1).any()


@pytest.mark.parametrize("method", BACKENDS)
@pytest.mark.parametrize("time_limit", [0.0, 1e-6, 1e-3])
@pytest.mark.parametrize("case", CASES)
def test_a_backend_at_its_limit_gives_nothing_or_a_true_point(
    method: str, time_limit: float, case: str
) -> None:
    """Without time: no point, or one that the oracle prices as said and finds within every limit."""
    need(method)
    found = wo.solve(PROBLEMS[case](), method, time_limit=time_limit)
    check(found, case)
    if found.termination.reason != "no-solution":
        assert 0 < found.latency < math.inf


#: What a backend may leave in the variables while its status says "optimal".
GARBAGE: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "zeros": np.zeros_like,
    "ones": np.ones_like,
    "NaN": lambda x: np.full_like(x, np.nan),
    "halves": lambda x: np.full_like(x, 0.5),
    "far away": lambda x: np.full_like(x, 532.0),
}


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("case", CASES)
def test_garbage_with_a_good_status_is_repaired_and_not_called_optimal(
    garbage: str, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backend that says "optimal" over garbage: its selection is repaired, priced, and proves nothing."""
    pytest.importorskip("pyomo")

    class Model:
        """A formal model whose variables hold garbage."""

        def __init__(self, problem: wo.Problem) -> None:
            self.model = None
            self.data = dataclasses.make_dataclass("Data", ["time_unit"])(1.0)
            self.problem = problem

        def extract(self) -> Any:
            """What the backend left."""
            shape = self.problem.allowed.shape
            keep = GARBAGE[garbage](np.empty(shape))
            return dataclasses.make_dataclass("Found", ["keep", "bandwidth"])(keep, None)

    backend = minlp.Backend("liar", lambda: "", lambda *_, **__: minlp.Outcome(True, None, "optimal"))
    monkeypatch.setattr(minlp, "BACKENDS", (backend,))
    monkeypatch.setattr("wdmoe_opt.formulations.pyomo_model", Model)
    found = wo.solve(PROBLEMS[case](), "minlp")
    check(found, case)
    assert found.feasible
    assert found.termination.reason == "heuristic"
    assert found.bound_kind == "none"


# ---------------------------------------------------------------------- SI units


#: Times the bits, the bandwidth and the gains: hertz as they are, or as a solver would see kHz or nHz.
SCALES = (1e-9, 1e-6, 1e-3, 1.0, 1e3, 1e6)


def scaled(problem: wo.Problem, factor: float) -> wo.Problem:
    """The same situation in other numbers."""
    inst = problem.instance
    names = ["bits_down", "bits_up", "total_bandwidth", "gain_down", "gain_up"]
    names += [n for n in ("bandwidth_min", "bandwidth_max") if getattr(inst, n) is not None]
    return problem.replace(instance=inst.replace(**{n: getattr(inst, n) * factor for n in names}))


@pytest.mark.parametrize("method", [info.name for info in wo.list_solvers()])
def test_units_do_not_matter(method: str) -> None:
    """Over 15 decades of bits and hertz every solver gives the same value, to 1e-9 where it is exact."""
    need(method)
    problem = PROBLEMS["one block"]()
    values = [wo.solve(scaled(problem, factor), method).latency for factor in SCALES]
    # Rounded selections are given their exact bandwidth, so that equal selections have equal prices.
    tolerance = 1e-6 if method == "slsqp" else 1e-9
    assert values == pytest.approx([values[SCALES.index(1.0)]] * len(SCALES), rel=tolerance)


@pytest.mark.parametrize("case", ["shared", "per-block", "activation", "limits on shares"])
@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_models_never_see_si_numbers(case: str, factor: float) -> None:
    """What models are built from does not change with the instance's units, and is not large."""
    pytest.importorskip("cvxpy")
    from wdmoe_opt.formulations.common import normalise

    here, there = normalise(PROBLEMS[case]()), normalise(scaled(PROBLEMS[case](), factor))
    for name in ("snr_down", "snr_up", "slow_down", "slow_up", "compute", "activation", "delay", "low"):
        numbers = getattr(here, name)
        assert getattr(there, name) == pytest.approx(numbers, rel=1e-9), name
        assert (numbers < 1e5).all(), name


def test_clarabel_is_wrong_in_si_units_and_right_in_ours() -> None:
    """The bandwidth problem in hertz, given to Clarabel as it is, misses the value our model gets."""
    cp = pytest.importorskip("cvxpy")
    pytest.importorskip("clarabel")
    problem = wo.Problem(PROBLEMS["one block"]().instance, min_retention=1.0)
    exact = wo.solve(problem, "topk")
    model = problem.to_cvxpy()
    model.problem.solve(solver="CLARABEL")
    ours = float(model.problem.value) * model.data.time_unit
    assert ours == pytest.approx(exact.latency, rel=1e-4)

    t, sent = problem.tables, exact.evaluation.transfers[0]
    b, pace = cp.Variable(t.low.size), cp.Variable(t.low.size)
    rules = [cp.sum(b) <= t.total, b >= 0]
    for c, bits in ((t.c_down[0], t.bits_down), (t.c_up[0], t.bits_up)):
        rate = -cp.rel_entr(b, b + c) / np.log(2)  # bit/s
        rules.append(cp.multiply(bits, pace) <= rate)
    slowest = cp.max(cp.multiply(sent, cp.inv_pos(pace)))
    raw = cp.Problem(cp.Minimize(slowest), rules)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            raw.solve(solver="CLARABEL")
    except cp.error.SolverError:
        return
    wrong = raw.value is None or abs(raw.value / exact.latency - 1) > 1e-2 or raw.status != "optimal"
    assert wrong, f"Clarabel now solves the problem in SI units: {raw.status} {raw.value}"


# ---------------------------------------------------------------------- the wrong side of the truth


#: How far beyond the optimum a backend's own value and bound may lie.
FEASTOL = 1e-6


@pytest.mark.parametrize("excess", [1e-9, 1e-7, FEASTOL, 1e-3])
def test_a_value_below_the_truth_is_never_reported(excess: float) -> None:
    """A backend's point that overdraws the bandwidth by its tolerance is repaired before it is priced.

    Its claimed value, below the optimum, is not kept anywhere; a bound above the value is dropped.
    """
    problem, best = PROBLEMS["shared"](), wo.solve(PROBLEMS["shared"](), "enumerate")
    overdrawn = np.asarray(best.bandwidth) * (1 + excess)
    point = conclude(
        problem, best.keep, Control(), bandwidth=overdrawn, bound=best.latency * (1 + excess), detail="liar"
    )
    priced = wo.evaluate(problem, point.keep, point.bandwidth)
    assert priced.feasible
    assert priced.latency == pytest.approx(best.latency, rel=1e-12)
    assert np.sum(point.bandwidth) <= problem.tables.total * (1 + 1e-12)
    if excess > BACKEND_TOLERANCE:
        assert point.bound_kind == "none"
        assert "contradicted" in point.termination.detail
    else:
        assert point.lower_bound <= best.latency


@pytest.mark.parametrize("method", ["milp", "minlp"])
@pytest.mark.parametrize("case", ["shared", "per-block", "activation"])
def test_backends_with_loose_tolerances_stay_on_the_right_side(
    method: str, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a feasibility tolerance of 1e-6 inside, what comes out is on the right side of the optimum.

    The value is that of our own evaluation. The bound may be wrong by the tolerance where the backend's
    point is another one: that is why it is only ever claimed, never certified.
    """
    need(method)
    if method == "milp":
        original = milp._run

        def loose(engine: Any, *arguments: Any) -> Any:
            solve = engine.solve

            def with_tolerance(*args: Any, solver_options: dict[str, Any], **kwargs: Any) -> Any:
                changed = {n: FEASTOL for n in solver_options if n.endswith("feasibility_tolerance")}
                return solve(*args, solver_options={**solver_options, **changed}, **kwargs)

            monkeypatch.setattr(engine, "solve", with_tolerance)
            try:
                return original(engine, *arguments)
            finally:
                monkeypatch.setattr(engine, "solve", solve)

        monkeypatch.setattr(milp, "_run", loose)
    else:
        options = minlp._scip_options

        def loose_options(*arguments: Any) -> dict[str, Any]:
            return {**options(*arguments), "numerics/feastol": FEASTOL}

        scip = minlp.Backend("scip", minlp.BACKENDS[0].missing, minlp._direct("scip_direct", loose_options))
        monkeypatch.setattr(minlp, "BACKENDS", (scip,))
    problem, best = PROBLEMS[case](), optimum(case)
    found = wo.solve(problem, method, rel_gap=1e-6, time_limit=60.0)
    assert found.feasible
    assert found.latency >= best * (1 - 1e-12)
    assert found.bound_kind != "certified"
    assert found.lower_bound <= found.latency
    assert found.lower_bound <= best * (1 + FEASTOL)
