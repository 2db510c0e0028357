"""The integer models, solved by HiGHS and SCIP, against enumeration."""

from __future__ import annotations

import numpy as np
import pytest

import wdmoe_opt as wo
from wdmoe_opt.benchmarks.agreement import tiny_problem

pytest.importorskip("pyomo", reason="pyomo is not installed")
pytest.importorskip("highspy", reason="highspy is not installed")

from wdmoe_opt.formulations.minlp import JointModel
from wdmoe_opt.formulations.retention import RetentionModel
from wdmoe_opt.formulations.selection import SelectionModel
from wdmoe_opt.formulations.tangents import TangentModel
from wdmoe_opt.solvers.minlp import backends


def highs(model):
    """Optimal value of a linear model, in its own units."""
    from pyomo.contrib.solver.common.factory import SolverFactory

    options = {"mip_rel_gap": 1e-9, "mip_feasibility_tolerance": 1e-9}
    return SolverFactory("highs").solve(model.model, solver_options=options).incumbent_objective


@pytest.mark.parametrize("seed", [2, 5, 8, 11, 14, 17, 20])
def test_selection_model_has_the_enumerated_value(seed):
    problem = tiny_problem(seed)
    model = problem.to_pyomo()
    assert isinstance(model, SelectionModel)
    value = highs(model) * model.data.time_unit
    assert value == pytest.approx(wo.solve(problem, "enumerate").latency, rel=1e-6)
    found = model.extract()
    assert found.bandwidth is None
    assert wo.evaluate(problem, found.keep > 0.5).latency == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize("seed", [2, 5])
def test_an_update_equals_a_new_model(seed):
    first = tiny_problem(seed)
    inst = first.instance
    second = first.replace(instance=inst.replace(gain_up=inst.gain_up * 0.3), min_retention=0.5)
    model = SelectionModel(first)
    highs(model)
    model.update(second)
    assert highs(model) * model.data.time_unit == pytest.approx(
        wo.solve(second, "enumerate").latency, rel=1e-6
    )
    with pytest.raises(wo.InputError, match="build a new one"):
        model.update(tiny_problem(8))


@pytest.mark.parametrize("seed", [s for s in range(30) if s % 3 != 2])
def test_tangents_never_cost_more_than_the_truth(seed):
    """Random selections at random bandwidths satisfy the linear model at their true latency."""
    problem = tiny_problem(seed).replace(min_retention=0.0, min_token_retention=0.0, max_experts=None)
    rng = np.random.default_rng(seed)
    model = TangentModel(problem)
    rows, devices, t = model.data.rows, problem.instance.devices, problem.tables
    model.add_tangents(rng.dirichlet(np.ones(devices), rows) * t.total)
    import pyomo.environ as pyo

    for _ in range(20):
        keep = problem.allowed & (rng.random(problem.allowed.shape) < 0.6)
        keep |= problem.top_k_keep & (rng.random(keep.shape) < 0.5)
        share = rng.dirichlet(np.ones(devices), rows)
        bandwidth = (share[0] if problem.allocation == "shared" else share) * t.total
        link = wo.evaluate(problem, keep, bandwidth).link_time / model.data.time_unit
        for (row, k), variable in model.model.share.items():
            variable.set_value(float(share[row, k]))
        chosen = keep[tuple(model.data.pairs.T)]
        for p, kept in zip(model.model.pairs, chosen, strict=True):
            model.model.select[p].set_value(int(kept))
        group, where = model.data.groups
        taken = np.zeros(len(where))
        np.maximum.at(taken, group, chosen)
        if t.by_device:
            for g, on in enumerate(taken):
                model.model.send[g].set_value(float(on))
        for g, (i, _, k) in enumerate(where):
            model.model.air[g].set_value(float(taken[g] * link[i, k]))
        worst = min(pyo.value(c.body - c.lower) if c.has_lb() else pyo.value(c.upper - c.body)
                    for c in model.model.tangents.values())  # fmt: skip
        assert worst >= -1e-9


@pytest.mark.parametrize("seed", [2, 5, 8])
def test_retention_model_has_the_enumerated_value(seed):
    problem = tiny_problem(seed)
    cap = 1.1 * wo.solve(problem, "enumerate").latency
    asked = problem.replace(objective="retention", max_latency=cap)
    model = asked.to_pyomo()
    assert isinstance(model, RetentionModel)
    assert highs(model) == pytest.approx(wo.solve(asked, "enumerate").retention, rel=1e-6)


@pytest.mark.skipif(not backends(), reason="no global solver is installed")
@pytest.mark.parametrize("seed", [1, 3, 4, 6])
def test_joint_model_by_a_global_solver(seed):
    problem = tiny_problem(seed)
    model = problem.to_pyomo()
    assert isinstance(model, JointModel)
    outcome = backends()[0].solve(model.model, time_limit=60.0, rel_gap=1e-7)
    best = wo.solve(problem, "enumerate").latency
    assert outcome.found
    assert outcome.bound * model.data.time_unit == pytest.approx(best, rel=1e-6)
    found = model.extract()
    assert wo.evaluate(problem, found.keep > 0.5, found.bandwidth).latency == pytest.approx(best, rel=1e-4)


def test_loads_alone_have_no_integer_model():
    inst = tiny_problem(1).instance
    arrays = {
        k: v for k, v in inst.arrays().items() if k.startswith(("gain", "power", "noise", "total", "bits"))
    }
    loads = wo.Instance(loads=np.ones((1, inst.devices), dtype=int), compute_time=0.0, **arrays)
    with pytest.raises(wo.UnsupportedError, match="to_cvxpy"):
        wo.Problem(loads).to_pyomo()
