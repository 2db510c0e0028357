"""The convex models against exact bandwidth and the enumerated optimum."""

from __future__ import annotations

import numpy as np
import pytest

import wdmoe_opt as wo
from wdmoe_opt.benchmarks.agreement import tiny_problem

pytest.importorskip("cvxpy", reason="cvxpy is not installed")
pytest.importorskip("clarabel", reason="clarabel is not installed")

from wdmoe_opt.formulations.bandwidth import BandwidthModel
from wdmoe_opt.formulations.common import CLARABEL
from wdmoe_opt.formulations.joint_latency import DeadlineModel, JointLatencyModel

FREE = [seed for seed in range(36) if seed % 3 != 2]  # allocation "fixed" has no convex joint model


def solved(model):
    """Solve and insist on full accuracy."""
    assert model.problem.is_dpp()
    model.problem.solve(**CLARABEL)
    assert model.problem.status == "optimal"
    return model.extract()


def without_floors(problem, **changes):
    plain = {"min_retention": 0.0, "min_token_retention": 0.0, "max_experts": None, "candidates": "top-k"}
    return problem.replace(**{**plain, **changes})


@pytest.mark.parametrize("seed", FREE)
def test_bandwidth_model_has_the_exact_value(seed):
    problem = without_floors(tiny_problem(seed))
    exact = wo.solve(problem, "topk").latency
    found = solved(BandwidthModel(problem))
    assert found.latency == pytest.approx(exact, rel=1e-6)
    priced = wo.evaluate(problem, problem.top_k_keep, found.bandwidth)
    assert priced.feasible
    assert priced.latency == pytest.approx(exact, rel=1e-6)


def test_bandwidth_model_of_loads_alone():
    instance = tiny_problem(1).instance
    keys = ("expert_ids", "gate_weights", "top_k", "expert_device", "activation_time", "compute_time")
    arrays = {k: v for k, v in instance.arrays().items() if k not in keys}
    loads = np.arange(instance.devices)[None, :]
    problem = wo.Problem(wo.Instance(loads=loads, compute_time=np.zeros(instance.devices), **arrays))
    model = problem.to_cvxpy()
    assert isinstance(model, BandwidthModel)
    assert solved(model).latency == pytest.approx(wo.solve(problem, "topk").latency, rel=1e-6)


@pytest.mark.parametrize("seed", FREE)
def test_joint_value_is_below_the_optimum(seed):
    problem = tiny_problem(seed)
    optimum = wo.solve(problem, "enumerate")
    if not optimum.feasible:
        pytest.skip("the floors of this problem cannot be met")
    assert solved(problem.to_cvxpy()).latency <= optimum.latency * (1 + 1e-6)


@pytest.mark.parametrize("seed", range(12))
def test_joint_value_at_full_retention_is_that_of_the_bandwidth_problem(seed):
    problem = tiny_problem(seed)
    devices = problem.instance.devices
    instance = problem.instance.replace(
        activation_time=np.zeros(devices), link_delay=np.zeros(devices), compute_time=np.full(devices, 1e-5)
    )
    for allocation in ("shared", "per-block"):
        full = without_floors(
            problem,
            instance=instance,
            min_retention=1.0,
            allocation=allocation,
            bandwidth=None,
            dispatch="expert",
        )
        assert (full.tables.weights[full.allowed] > 0).all()
        exact = wo.solve(full, "topk").latency
        assert solved(JointLatencyModel(full)).latency == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("seed", [0, 6, 9, 12, 15, 21, 24])
def test_both_programs_agree_on_the_least_deadline(seed):
    problem = tiny_problem(seed, blocks=1).replace(min_retention=0.6)
    bound = wo.solve(problem, "convex", max_solves=40, rel_gap=0.0).lower_bound
    model = DeadlineModel(problem, np.array([bound * 1.001]))
    assert solved(model).latency == pytest.approx(bound * 1.001)
    assert model.problem.value <= 1.0
    model.set_deadlines(np.array([bound * 0.999]))
    solved(model)
    assert model.problem.value > 1.0


@pytest.mark.parametrize("seed", [1, 3, 4])
def test_an_update_equals_a_new_model_and_rebuilds_nothing(seed):
    first = tiny_problem(seed).replace(min_retention=0.6)
    inst = first.instance
    second = first.replace(
        instance=inst.replace(gain_down=inst.gain_down * 1.7, gate_weights=inst.gate_weights * 0.9)
    ).replace(min_retention=0.7)
    for build in (JointLatencyModel, BandwidthModel):
        model = build(first)
        solved(model)
        program = model.problem.get_problem_data("CLARABEL")[1]
        model.update(second)
        assert solved(model).latency == pytest.approx(solved(build(second)).latency, rel=1e-6)
        assert model.problem.get_problem_data("CLARABEL")[1] is program  # the compiled chain is kept


def test_an_update_with_other_candidates_is_refused():
    problem = tiny_problem(1)
    with pytest.raises(wo.InputError, match="build a new one"):
        JointLatencyModel(problem).update(tiny_problem(4))


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_units_do_not_matter(scale):
    """The same situation in kHz and kbit: normalisation makes the same program of it."""
    problem = tiny_problem(1)
    inst = problem.instance
    scaled = inst.replace(
        total_bandwidth=inst.total_bandwidth * scale,
        bits_down=inst.bits_down * scale,
        bits_up=inst.bits_up * scale,
        noise_density=inst.noise_density / scale,
    )
    first = solved(problem.to_cvxpy()).latency
    assert solved(problem.replace(instance=scaled).to_cvxpy()).latency == pytest.approx(first, rel=1e-7)


@pytest.mark.parametrize(
    "changes",
    [{"allocation": "fixed"}, {"objective": "wlr-block"}, {"objective": "retention", "max_latency": 1.0}],
)
def test_what_is_not_convex_is_refused(changes):
    with pytest.raises(wo.WdmoeError, match="to_pyomo"):
        tiny_problem(1).replace(**changes).to_cvxpy()
