"""Peers give the answers we give, where they are installed; they are no part of the package's own list."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest

import wdmoe_opt as wo
from wdmoe_opt.benchmarks.agreement import tiny_problem
from wdmoe_opt.benchmarks.peers import PEERS, find_solver
from wdmoe_opt.benchmarks.peers.cvxpy_bandwidth import within_limits
from wdmoe_opt.benchmarks.runner.task import answer
from wdmoe_opt.benchmarks.suites.generators import synthetic
from wdmoe_opt.registry import Control

CONTROL = Control(time_limit=60.0, rel_gap=1e-4)
#: How far from the exact bandwidth's latency a peer may end, relatively.
BANDWIDTH = {
    "cvxpy-clarabel-bandwidth": 1e-5,
    "cvxpy-scs-bandwidth": 1e-3,
    "trust-constr": 1e-3,
    "slsqp": 1e-5,
}


def solve(name, problem, control=CONTROL):
    info = find_solver(name)
    available = info.availability()
    if not available:
        pytest.skip(available.reason)
    assert not info.refusal(problem)
    return answer(info, problem, control, {})


def test_peers_are_not_in_the_package_list():
    assert not set(PEERS) & {info.name for info in wo.list_solvers()}
    with pytest.raises(wo.UnknownNameError, match="maingo"):
        find_solver("maing")


@pytest.mark.parametrize("name", BANDWIDTH)
@pytest.mark.parametrize("allocation", ["shared", "per-block"])
def test_bandwidth_peers_reach_the_exact_optimum(name, allocation):
    problem = wo.Problem(synthetic(tokens=64, blocks=3), allocation=allocation)
    exact = wo.solve(problem, "topk").latency
    found = solve(name, problem)
    assert found.feasible, found.violations
    assert found.latency == pytest.approx(exact, rel=BANDWIDTH[name])
    assert found.latency >= exact * (1 - 1e-9)


@pytest.mark.parametrize("name", ["cvxpy-clarabel-bandwidth", "cvxpy-scs-bandwidth"])
def test_re_solving_takes_the_new_numbers(name):
    """The model is kept; a problem of the same structure must still get its own answer."""
    for seed in (0, 1, 0):
        problem = wo.Problem(synthetic(tokens=64, seed=seed))
        exact = wo.solve(problem, "topk").latency
        assert solve(name, problem).latency == pytest.approx(exact, rel=BANDWIDTH[name])


@pytest.mark.parametrize("name", ["cvxpy-clarabel-bandwidth", "trust-constr"])
def test_given_loads(name):
    problem = wo.Problem(wo.load_instance("mixtral-8x7b-mmlu-load:anatomy.3#0-1"))
    exact = wo.solve(problem, "topk").latency
    assert solve(name, problem).latency == pytest.approx(exact, rel=1e-3)


def test_clarabel_is_tried_again_where_it_fails():
    """32 blocks that share bandwidth, on which its first settings make no progress."""
    problem = wo.Problem(
        wo.load_instance("mixtral-8x7b-mmlu-load:college_physics.0", placement="one-per-device")
    )
    exact = wo.solve(problem, "topk").latency
    assert solve("cvxpy-clarabel-bandwidth", problem).latency == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("name", ["maingo", "gurobi", "bonmin", "cvxpy-scs"])
@pytest.mark.parametrize("seed", [1, 4, 6, 9, 11])
def test_joint_peers_on_enumerable_problems(name, seed, capfd):
    """Both dispatch rules, all allocations, with and without activation; global solvers find the optimum."""
    problem = tiny_problem(seed)
    if find_solver(name).refusal(problem):
        pytest.skip("refused")
    best = wo.solve(problem, "enumerate")
    found = solve(name, problem)
    if not best.feasible:
        assert not found.feasible
        return
    if name == "gurobi" and "provenInfeasible" in found.termination.detail:
        pytest.xfail("Gurobi calls a feasible problem infeasible, within its tolerances; the row says so")
    assert found.feasible, found.termination
    assert found.latency >= best.latency * (1 - 1e-9)
    if found.bound_kind != "none":
        assert found.lower_bound <= best.latency * (1 + 1e-6)
    if name in ("maingo", "gurobi"):
        assert found.latency == pytest.approx(best.latency, rel=2e-4)


def test_gurobi_says_where_its_licence_ends():
    problem = wo.Problem(synthetic(tokens=256), min_retention=0.9)
    found = solve("gurobi", problem, Control(time_limit=2.0))
    if found.has_point:
        pytest.skip("a full licence is installed")
    assert found.termination.limit == "licence"


@pytest.mark.parametrize(
    "name", ["cvxpy-clarabel-bandwidth", "cvxpy-scs-bandwidth", "trust-constr", "cvxpy-scs"]
)
def test_no_time_gives_nothing_or_a_point_within_limits(name):
    problem = wo.Problem(synthetic(tokens=32), min_retention=0.9)
    found = solve(name, problem, Control(time_limit=0.0))
    if found.has_point:
        assert not {"total_bandwidth", "bandwidth"} & {v.constraint for v in found.violations}
    else:
        assert math.isinf(found.latency)


def test_a_solver_stopped_before_it_gave_bandwidth_leaves_none():
    # Clarabel does so now and then after a millisecond.
    problem = wo.Problem(synthetic(tokens=32))
    np.testing.assert_array_equal(within_limits(problem, np.zeros((1, 8))), np.zeros((1, 8)))


def test_a_missing_module_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "maingopy", None)
    available = find_solver("maingo").availability()
    assert not available
    assert available.reason == "maingopy not installed; install wdmoe_opt[peers]"


def test_bandwidth_stays_within_limits_of_devices():
    inst = synthetic(tokens=64)
    limits = inst.replace(bandwidth_min=np.full(8, 1e6), bandwidth_max=np.full(8, 20e6))
    problem = wo.Problem(limits)
    exact = wo.solve(problem, "topk").latency
    for name in BANDWIDTH:
        found = solve(name, problem)
        assert found.feasible, (name, found.violations)
        assert found.latency == pytest.approx(exact, rel=2e-3)
