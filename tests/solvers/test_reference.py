"""The exact methods against each other, against brute force, and against backends that lie."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

import wdmoe_opt as wo
from wdmoe_opt.benchmarks.agreement import compare, tiny_problem
from wdmoe_opt.registry import Control, find_solver
from wdmoe_opt.solvers import minlp
from wdmoe_opt.solvers.reference import conclude, single_blocks

COUNT = 40


def brute_force(problem):
    """Best objective over all selections, each at its best bandwidth: no cleverness at all."""
    shape = problem.allowed.shape
    per_token = []
    for i, j in np.ndindex(*shape[:2]):
        columns = np.flatnonzero(problem.allowed[i, j])
        sizes = range(1, columns.size + 1)
        per_token.append([list(s) for n in sizes for s in itertools.combinations(columns, n)])
    best = math.inf if problem.objective == "latency" else -math.inf
    better = min if problem.objective == "latency" else max
    for subsets in itertools.product(*per_token):
        keep = np.zeros(shape, dtype=bool)
        for (i, j), subset in zip(np.ndindex(*shape[:2]), subsets, strict=True):
            keep[i, j, subset] = True
        priced = wo.evaluate(problem, keep, wo.allocate_bandwidth(problem, keep).bandwidth)
        if priced.feasible:
            best = better(best, priced.objective)
    return best


def small(seed):
    """A tiny problem cut to two tokens."""
    problem = tiny_problem(seed)
    inst = problem.instance
    cut = inst.replace(expert_ids=inst.expert_ids[:, :2], gate_weights=inst.gate_weights[:, :2])
    return problem.replace(instance=cut, min_retention=0.6)


@pytest.mark.parametrize("seed", range(18))
def test_enumeration_equals_brute_force(seed):
    problem = small(seed)
    found, best = wo.solve(problem, "enumerate"), brute_force(problem)
    assert found.latency == pytest.approx(best, rel=1e-9)
    if not found.feasible:
        assert found.termination.reason == "infeasible"
        return
    assert found.termination.reason == "optimal"
    assert found.lower_bound == pytest.approx(best, rel=1e-8)
    asked = problem.replace(objective="retention", max_latency=1.2 * best)
    kept = wo.solve(asked, "enumerate")
    assert kept.retention == pytest.approx(brute_force(asked), rel=1e-9)
    assert kept.feasible


@pytest.mark.parametrize("seed", range(COUNT))
def test_exact_methods_agree(seed):
    done = compare(seed)
    if len(done.solutions) < 2:
        pytest.skip("neither pyomo with highspy or pyscipopt nor cvxpy is installed")
    assert not done.faults


@pytest.mark.parametrize("seed", [0, 1, 2, 9, 10, 11])
@pytest.mark.parametrize("method", ["milp", "minlp"])
def test_retention_under_a_cap_agrees(seed, method):
    available = find_solver(method).availability()
    if not available:
        pytest.skip(available.reason)
    problem = small(seed)
    least = wo.solve(problem, "enumerate")
    if not least.feasible:
        pytest.skip("the floors of this problem cannot be met")
    asked = problem.replace(objective="retention", max_latency=1.2 * least.latency)
    found = wo.solve(asked, method, rel_gap=1e-6, time_limit=60.0)
    assert found.feasible
    assert found.retention == pytest.approx(wo.solve(asked, "enumerate").retention, rel=1e-6)
    assert found.lower_bound >= found.retention


@pytest.mark.parametrize("method", ["enumerate", "milp", "minlp"])
def test_a_cap_below_the_least_latency_gives_no_point(method):
    available = find_solver(method).availability()
    if not available:
        pytest.skip(available.reason)
    problem = small(1)
    least = wo.solve(problem, "enumerate").latency
    asked = problem.replace(objective="retention", max_latency=0.9 * least)
    found = wo.solve(asked, method, time_limit=60.0)
    assert found.latency == math.inf
    assert found.termination.reason == ("infeasible" if method == "enumerate" else "no-solution")


def test_a_cap_that_least_latency_breaks_is_infeasible():
    problem = small(1)
    least = wo.solve(problem, "enumerate").latency
    assert wo.solve(problem.replace(max_latency=least * 1.01), "enumerate").feasible
    tight = wo.solve(problem.replace(max_latency=least * 0.99), "enumerate")
    assert tight.termination.reason == "infeasible"


@pytest.mark.parametrize("seed", [0, 2, 5, 9])
@pytest.mark.parametrize("objective", ["wlr-block", "wlr-device", "wlr-token"])
def test_ratios_agree(seed, objective):
    """Enumeration and the nonlinear model, at fixed bandwidth; per block where least latency is best."""
    available = find_solver("minlp").availability()
    if not available:
        pytest.skip(available.reason)
    problem = small(seed).replace(objective=objective, min_retention=0.6)
    if objective != "wlr-block" and problem.allocation != "fixed":
        with pytest.raises(wo.UnsupportedError, match=r"only at fixed bandwidth; use .*minlp"):
            wo.solve(problem, "enumerate")
        return
    found = wo.solve(problem, "minlp", rel_gap=1e-6, time_limit=60.0)
    oracle = wo.solve(problem, "enumerate")
    assert oracle.objective == pytest.approx(brute_force(problem), rel=1e-9)
    assert found.objective == pytest.approx(oracle.objective, rel=1e-6)
    assert found.lower_bound >= found.objective


def test_the_oracle_refuses_what_is_too_large():
    with pytest.raises(wo.UnsupportedError, match="more than 10 load vectors"):
        wo.solve(tiny_problem(3), "enumerate", max_states=10)


@pytest.mark.parametrize("allocation", ["shared", "per-block"])
def test_slsqp_finds_the_exact_bandwidth(allocation):
    for seed in range(6):
        problem = tiny_problem(seed).replace(allocation=allocation, bandwidth=None)
        exact = wo.solve(problem, "topk")
        assert wo.solve(problem, "slsqp").latency == pytest.approx(exact.latency, rel=1e-6)


def test_the_minlp_says_which_solver_it_used():
    if not minlp.backends():
        pytest.skip(minlp.probe())
    name = minlp.backends()[0].name
    assert wo.solve(small(1), "minlp").termination.detail.startswith(f"{name}: ")
    with pytest.raises(wo.UnknownNameError, match="backend"):
        wo.solve(small(1), "minlp", backend="abacus")


def test_a_bound_that_its_own_point_contradicts_is_dropped():
    problem = small(1)
    keep = wo.solve(problem, "enumerate").keep
    point = conclude(problem, keep, Control(), bound=1e9, detail="liar: optimal")
    assert point.bound_kind == "none"
    assert point.termination.reason == "heuristic"
    assert "contradicted" in point.termination.detail


def test_a_selection_that_breaks_the_floors_is_repaired():
    problem = small(1)
    point = conclude(problem, np.zeros_like(problem.allowed), Control(), detail="liar: optimal")
    assert wo.evaluate(problem, point.keep, point.bandwidth).feasible
    assert point.termination.reason == "heuristic"


def test_an_unclosed_gap_is_no_optimum():
    problem = small(1)
    best = wo.solve(problem, "enumerate")
    point = conclude(problem, best.keep, Control(), bound=0.9 * best.latency, detail="liar: optimal")
    assert point.termination.reason == "feasible-at-limit"


@pytest.mark.parametrize("seed", [2, 3, 9])
def test_blocks_apart_add_up(seed):
    problem = tiny_problem(seed, blocks=2).replace(min_retention=0.5)
    whole = wo.solve(problem, "enumerate").latency
    assert sum(wo.solve(part, "enumerate").latency for part in single_blocks(problem)) == pytest.approx(whole)
