"""One suite for every registered solver: declared abilities decide what is expected, refusals are asserted.

`SolverSuite` only uses the public interface: a third party registers a solver and subclasses it with its
own ``names``.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

import wdmoe_opt as wo
from wdmoe_opt.registry import find_solver

EVERY = tuple(info.name for info in wo.list_solvers())
REASONS = {"optimal", "heuristic", "feasible-at-limit", "infeasible", "no-solution"}


def fleet(blocks=2, tokens=3, **changes):
    """Three devices, four experts (two on device 1), three candidates of which two are top-k."""
    rng = np.random.default_rng(7)
    ids = rng.random((blocks, tokens, 4)).argsort(axis=2)[:, :, :3]
    weights = -np.sort(-rng.dirichlet(np.ones(3), (blocks, tokens)), axis=2)
    fields = {
        "expert_ids": ids,
        "gate_weights": weights,
        "top_k": 2,
        "expert_device": [0, 1, 1, 2],
        "compute_time": [1e-4, 2e-4, 2e-4],
        "gain_down": [1e-10, 3e-11, 2e-10],
        "gain_up": [1e-10, 3e-11, 2e-10],
        "power_down": 10.0,
        "power_up": 0.2,
        "noise_density": 4e-21,
        "total_bandwidth": 2e7,
        "bits_down": 65536.0,
        "bits_up": 65536.0,
    }
    return wo.Instance(**{**fields, **changes})


def measured():
    """A link without a bandwidth knob."""
    radio = dict.fromkeys(
        ("gain_down", "gain_up", "power_down", "power_up", "noise_density", "total_bandwidth")
    )
    return fleet(**radio, token_time_link=[1e-3, 2e-3, 1e-3])


def loads_only():
    """Routing known as counts."""
    routing = dict.fromkeys(("expert_ids", "gate_weights", "top_k", "expert_device"))
    return fleet(**routing, loads=[[3, 0, 2], [1, 4, 0]])


SLOW_START = {"activation_time": [1e-3, 2e-3, 0.0], "link_delay": [0.0, 1e-3, 1e-3]}
PROBLEMS = {
    "shared": lambda: wo.Problem(fleet(), min_retention=0.7),
    "per-block": lambda: wo.Problem(fleet(), min_retention=0.7, allocation="per-block"),
    "fixed": lambda: wo.Problem(fleet(), min_retention=0.7, allocation="fixed"),
    "activation": lambda: wo.Problem(fleet(**SLOW_START), min_retention=0.7),
    "token floor": lambda: wo.Problem(fleet(), min_token_retention=0.6, allocation="per-block"),
    "re-routing": lambda: wo.Problem(fleet(), min_retention=0.9, candidates=3),
    "max_experts": lambda: wo.Problem(fleet(), candidates=3, max_experts=1, allocation="per-block"),
    "dispatch by device": lambda: wo.Problem(fleet(**SLOW_START), min_retention=0.8, dispatch="device"),
    "one block": lambda: wo.Problem(fleet(blocks=1), min_retention=0.7),
    "gains per block": lambda: wo.Problem(
        fleet(gain_down=[[1e-10, 3e-11, 2e-10], [2e-11, 3e-10, 1e-10]]), min_retention=0.7
    ),
    "unreachable device": lambda: wo.Problem(fleet(gain_up=[1e-10, 3e-11, 0.0]), candidates=3),
    "limits on shares": lambda: wo.Problem(
        fleet(bandwidth_min=1e6, bandwidth_max=9e6), min_retention=0.7, allocation="per-block"
    ),
    "measured link": lambda: wo.Problem(measured(), min_retention=0.7, allocation="fixed"),
    "loads only": lambda: wo.Problem(loads_only()),
    "retention": lambda: wo.Problem(fleet(), objective="retention", max_latency=0.04),
    "wlr-token": lambda: wo.Problem(fleet(), objective="wlr-token", min_retention=0.7, allocation="fixed"),
    "wlr-device": lambda: wo.Problem(fleet(), objective="wlr-device", min_retention=0.7, allocation="fixed"),
    "wlr-block": lambda: wo.Problem(fleet(), objective="wlr-block", min_retention=0.7, allocation="fixed"),
}


class SolverSuite:
    """What holds for every solver."""

    #: Registered names of the solvers under test.
    names: tuple[str, ...] = ()

    @pytest.fixture
    def info(self, name):
        return find_solver(name)

    @staticmethod
    def run(info, problem, **options):
        """Solve, or skip with the reason why the solver is not here."""
        available = info.availability()
        if not available:
            pytest.skip(available.reason)
        return wo.solve(problem, info.name, **options)

    def test_declared_abilities_decide(self, info, case):
        """It either refuses, naming methods that can, or returns a point the metric agrees with."""
        problem = PROBLEMS[case]()
        if info.refusal(problem):
            with pytest.raises(wo.UnsupportedError, match=r"cannot be used: .*; use .+"):
                wo.solve(problem, info.name)
            return
        solution = self.run(info, problem, time_limit=30.0)
        self.check(info, problem, solution)
        assert solution.termination.reason not in ("infeasible", "no-solution")
        if info.honours_floors:
            assert solution.feasible, solution.violations

    @staticmethod
    def check(info, problem, solution):
        """What a solution may never break."""
        assert solution.method == info.name
        assert solution.termination.reason in REASONS
        if solution.termination.reason in ("infeasible", "no-solution"):
            assert solution.latency == math.inf
            assert not solution.feasible
            return
        if problem.selectable:
            assert solution.keep.dtype == np.bool_
            assert not (solution.keep & ~problem.allowed).any()
            assert solution.keep.any(axis=2).all()
        again = wo.evaluate(problem, solution.keep, solution.bandwidth)
        assert again.latency == solution.latency
        broken = {v.constraint for v in solution.violations}
        assert not broken & {
            "total_bandwidth",
            "bandwidth",
            "bandwidth (fixed)",
            "bandwidth_min",
            "bandwidth_max",
        }
        if solution.bound_kind == "none":
            assert solution.termination.reason != "optimal"
            return
        assert info.bound != "none"
        assert solution.gap >= 0.0
        if solution.termination.reason == "optimal":
            assert solution.gap <= 1e-3

    @pytest.mark.parametrize("time_limit", [0.0, 1e-4])
    def test_no_time_gives_nothing_or_a_checked_point(self, info, time_limit):
        problem = PROBLEMS["shared"]()
        solution = self.run(info, problem, time_limit=time_limit)
        self.check(info, problem, solution)
        if info.honours_floors and solution.termination.reason != "no-solution":
            assert solution.feasible

    def test_unreachable_floors_are_named(self, info):
        problem = wo.Problem(fleet(), min_token_retention=0.99, max_experts=1, allocation="per-block")
        solution = self.run(info, problem)
        assert not solution.feasible
        if info.honours_floors:
            assert solution.termination.reason == "infeasible"
            assert "min_token_retention cannot be met by token [0, 0]" in solution.termination.detail

    def test_the_same_call_gives_the_same_answer(self, info):
        problem = PROBLEMS["per-block"]()
        first, second = (self.run(info, problem, seed=3) for _ in range(2))
        assert first.latency == second.latency
        assert np.array_equal(first.keep, second.keep)

    def test_unknown_options_are_refused(self, info):
        with pytest.raises(wo.InputError, match="no_such_option"):
            self.run(info, PROBLEMS["per-block"](), no_such_option=1)

    def test_scale_of_time_does_not_matter(self, info):
        """A thousand times the bits over a thousand times the bandwidth is the same situation."""
        problem = PROBLEMS["per-block"]()
        inst = problem.instance
        grown = inst.replace(
            total_bandwidth=inst.total_bandwidth * 1e3,
            noise_density=inst.noise_density / 1e3,
            bits_down=inst.bits_down * 1e3,
            bits_up=inst.bits_up * 1e3,
        )
        here = self.run(info, problem, rel_gap=1e-6).latency
        there = self.run(info, problem.replace(instance=grown), rel_gap=1e-6).latency
        assert there == pytest.approx(here, rel=2e-6)


class TestRegisteredSolvers(SolverSuite):
    """The suite over the registry."""

    names = EVERY


def pytest_generate_tests(metafunc):
    """Every solver of the class, and every problem."""
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", PROBLEMS)
    if "name" in metafunc.fixturenames:
        metafunc.parametrize("name", metafunc.cls.names)


def test_every_registered_solver_is_in_the_suite():
    assert {info.name for info in wo.list_solvers()} == set(TestRegisteredSolvers.names)


def test_every_problem_is_solved_by_some_solver():
    for case, build in PROBLEMS.items():
        assert any(not info.refusal(build()) for info in wo.list_solvers()), case


def test_a_solver_that_is_missing_says_why():
    absent = wo.SolverInfo("absent", "", "nowhere:nothing", requires=("no_such_module",), extra="models")
    assert absent.availability().reason == "no_such_module not installed; install wdmoe_opt[models]"
    probed = wo.SolverInfo("probed", "", "nowhere:nothing", probe=lambda: "no licence")
    assert not probed.availability()
    assert probed.availability().reason == "no licence"


def test_declared_restrictions_refuse():
    blind = wo.SolverInfo("blind", "", "nowhere:nothing", activation=False, restriction=lambda p: "too large")
    assert "activation" in blind.refusal(PROBLEMS["activation"]())
    assert blind.refusal(PROBLEMS["shared"]()) == "too large"
