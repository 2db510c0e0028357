"""The conformance suite for solvers: declared abilities decide what is expected, refusals are asserted.

Only the public interface is used. For a solver of your own::

    from wdmoe_opt.testing.suite import SolverSuite

    class TestMySolver(SolverSuite):
        names = ("my-solver",)
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import Any

import numpy as np

from wdmoe_opt.errors import InputError, UnsupportedError
from wdmoe_opt.problem import Problem
from wdmoe_opt.registry import Control, SolverInfo, find_solver, list_solvers
from wdmoe_opt.solution import Solution
from wdmoe_opt.solving import solve
from wdmoe_opt.testing.checks import OPTIMAL_GAP, certificate_faults, solution_faults
from wdmoe_opt.testing.problems import PROBLEMS, fleet, larger_problem, optimum

try:
    import pytest
except ImportError:
    raise ImportError("wdmoe_opt.testing.suite needs pytest; install wdmoe_opt[test]") from None

#: Problems solved where one per allocation says enough.
FEW = ("shared", "per-block", "one block", "measured link", "loads only", "retention")


class SolverSuite:
    """What holds for every solver. Subclass it with the names of yours; every test runs for each."""

    #: Registered names of the solvers under test.
    names: tuple[str, ...] = ()
    #: Seconds by which a solver may overrun its time limit on these small problems.
    grace: float = 10.0
    #: Seconds every solve may take.
    patience: float = 30.0
    #: Threads that solve one problem at once.
    pool: int = 4

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Every solver of the class, and every problem of the catalogue."""
        if "case" in metafunc.fixturenames:
            metafunc.parametrize("case", PROBLEMS)
        if "taken" in metafunc.fixturenames:
            metafunc.parametrize(("name", "taken"), self._taken())
        elif "proved" in metafunc.fixturenames:
            certified = [pair for pair in self._taken() if find_solver(pair[0]).bound == "certified"]
            metafunc.parametrize(("name", "proved"), certified)
        elif "name" in metafunc.fixturenames:
            metafunc.parametrize("name", self.names)

    def _taken(self) -> list[tuple[str, str]]:
        """Every solver with those of the few problems that it declares to take."""
        return [
            (name, few)
            for name in self.names
            for few in FEW
            if not find_solver(name).refusal(PROBLEMS[few]())
        ]

    @pytest.fixture
    def info(self, name: str) -> SolverInfo:
        """One solver under test."""
        return find_solver(name)

    def run(self, info: SolverInfo, problem: Problem, **options: Any) -> Solution:
        """Solve, or skip with the reason why the solver is not here or does not take the problem."""
        available = info.availability()
        if not available:
            pytest.skip(available.reason)
        refusal = info.refusal(problem)
        if refusal:
            pytest.skip(f"{info.name} refuses: {refusal}")
        return solve(problem, info.name, **{"time_limit": self.patience, **options})

    @staticmethod
    def check(
        info: SolverInfo, solution: Solution, *, best: float | None = None, rel_gap: float = OPTIMAL_GAP
    ) -> None:
        """Fail with everything that is wrong with a solution."""
        faults = solution_faults(info, solution, optimum=best, rel_gap=rel_gap)
        assert not faults, f"{info.name}: " + "; ".join(faults)

    # ------------------------------------------------------------------ what it is asked

    def test_declared_abilities_decide(self, info: SolverInfo, case: str) -> None:
        """It either refuses, naming methods that can, or returns a point that the oracle agrees with."""
        problem = PROBLEMS[case]()
        if info.refusal(problem):
            with pytest.raises(UnsupportedError, match=r"cannot be used: .*; use .+"):
                solve(problem, info.name)
            return
        solution = self.run(info, problem)
        self.check(info, solution, best=optimum(case))
        end = solution.termination
        assert end.reason not in ("infeasible", "no-solution"), f"{info.name}: finds nothing: {end}"

    def test_it_believes_what_its_certificate_proves(self, info: SolverInfo, proved: str) -> None:
        """The bound in a solver's own point is the one its certificate proves for this problem."""
        problem = PROBLEMS[proved]()
        faults = list(certificate_faults(problem, info.run(problem, Control(time_limit=self.patience), {})))
        assert not faults, f"{info.name}: " + "; ".join(faults)

    def test_unreachable_floors_are_named(self, info: SolverInfo) -> None:
        """Where no selection meets a floor, a solver that honours floors says which token is to blame."""
        problem = Problem(fleet(), min_token_retention=0.99, max_experts=1, allocation="per-block")
        solution = self.run(info, problem)
        assert not solution.feasible
        if info.honours_floors:
            assert solution.termination.reason == "infeasible", f"{info.name}: {solution.termination}"
            assert "min_token_retention cannot be met by token [0, 0]" in solution.termination.detail

    def test_unknown_options_are_refused(self, info: SolverInfo) -> None:
        """An option it does not have is an error, not silently dropped."""
        with pytest.raises(InputError, match="no_such_option"):
            self.run(info, PROBLEMS["per-block"](), no_such_option=1)

    # ------------------------------------------------------------------ limits

    @pytest.mark.parametrize("time_limit", [0.0, 1e-4])
    @pytest.mark.parametrize("problem_of", ["shared", "per-block"])
    def test_no_time_gives_nothing_or_a_checked_point(
        self, info: SolverInfo, time_limit: float, problem_of: str
    ) -> None:
        """Without time it returns nothing, or a point as good as any: never zeros, never a false claim."""
        solution = self.timed(info, PROBLEMS[problem_of](), time_limit)
        self.check(info, solution, best=optimum(problem_of))

    def test_time_limits_are_kept(self, info: SolverInfo) -> None:
        """On a problem it cannot close in time it stops, and what it has is in order."""
        try:
            solution = self.timed(info, larger_problem(), 0.2)
        except UnsupportedError:
            pytest.skip(f"{info.name} finds the problem too large")
        self.check(info, solution)

    def timed(self, info: SolverInfo, problem: Problem, time_limit: float) -> Solution:
        """Solve under a time limit, and fail if it is overrun by more than `grace`."""
        started = perf_counter()
        solution = self.run(info, problem, time_limit=time_limit)
        seconds = perf_counter() - started
        assert seconds <= time_limit + self.grace, (
            f"{info.name}: took {seconds:.3g} s, the time limit is {time_limit} s"
        )
        return solution

    # ------------------------------------------------------------------ the same call, the same answer

    def test_the_same_call_gives_the_same_answer(self, info: SolverInfo, taken: str) -> None:
        """Twice with one seed: the same selection, bandwidth and bound, bit by bit."""
        problem = PROBLEMS[taken]()
        first, second = (self.run(info, problem, seed=3) for _ in range(2))
        self.same(info, first, second)

    def test_inputs_are_not_modified(self, info: SolverInfo, taken: str) -> None:
        """Instance and request are the same after a solve, and still read-only."""
        problem = PROBLEMS[taken]()
        before = {name: np.array(value) for name, value in problem.instance.arrays(copy=False).items()}
        request = {name: np.array(value) for name, value in _request(problem).items()}
        self.run(info, problem)
        for name, value in problem.instance.arrays(copy=False).items():
            unchanged = np.array_equal(before[name], value, equal_nan=np.asarray(value).dtype.kind == "f")
            assert unchanged, f"{info.name}: changes the instance's {name}"
            writable = isinstance(value, np.ndarray) and value.ndim > 0 and value.flags.writeable
            assert not writable, f"{info.name}: makes the instance's {name} writable"
        for name, value in _request(problem).items():
            assert np.array_equal(request[name], value), f"{info.name}: changes the request's {name}"

    def test_threads_may_share_a_problem(self, info: SolverInfo, taken: str) -> None:
        """Several threads that solve one problem at once get what one alone gets."""
        problem = PROBLEMS[taken]()
        alone = self.run(info, problem)
        with ThreadPoolExecutor(self.pool) as pool:
            together = list(pool.map(lambda _: self.run(info, problem), range(self.pool)))
        for solution in together:
            self.same(info, alone, solution)

    @staticmethod
    def same(info: SolverInfo, first: Solution, second: Solution) -> None:
        """Fail unless two solutions are equal bit by bit."""
        for name in ("latency", "lower_bound", "keep", "bandwidth"):
            ours, theirs = getattr(first, name), getattr(second, name)
            assert np.array_equal(ours, theirs), (
                f"{info.name}: the same call gives another {name}: {ours}, then {theirs}"
            )

    def test_scale_does_not_matter(self, info: SolverInfo, taken: str) -> None:
        """A thousand times the bits over a thousand times the bandwidth is the same situation."""
        problem = PROBLEMS[taken]()
        inst = problem.instance
        if inst.token_time_link is not None:
            pytest.skip("a measured link has neither bits nor bandwidth")
        assert inst.total_bandwidth is not None
        assert inst.noise_density is not None
        assert inst.bits_down is not None
        assert inst.bits_up is not None
        grown = inst.replace(
            total_bandwidth=inst.total_bandwidth * 1e3,
            noise_density=inst.noise_density / 1e3,
            bits_down=inst.bits_down * 1e3,
            bits_up=inst.bits_up * 1e3,
        )
        here = self.run(info, problem, rel_gap=1e-6).objective
        there = self.run(info, problem.replace(instance=grown), rel_gap=1e-6).objective
        assert abs(there - here) <= 2e-6 * abs(here), f"{info.name}: {here!r}, in larger numbers {there!r}"


def _request(problem: Problem) -> dict[str, Any]:
    """The request's fields that are arrays."""
    names = ("min_retention", "min_token_retention", "bandwidth")
    return {name: getattr(problem, name) for name in names if getattr(problem, name) is not None}


def missing_solvers(suites: Sequence[type[SolverSuite]]) -> set[str]:
    """Registered solvers that none of the suites tests."""
    return {info.name for info in list_solvers()} - {name for suite in suites for name in suite.names}
