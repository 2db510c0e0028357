"""Known loads: the best bandwidth is proved to be the best, by a check of its own."""

import numpy as np
import pytest

import wdmoe_opt as wo

CAPTURED = ["mixtral-8x7b-mmlu-load", "olmoe-domains"]
ALLOCATIONS = ["shared", "per-block", "fixed"]


def random_loads(seed):
    """One to four blocks, each with some load, on one to five devices, with and without limits."""
    rng = np.random.default_rng([11, seed])
    blocks, devices = int(rng.integers(1, 5)), int(rng.integers(1, 6))
    loads = rng.integers(0, 9, (blocks, devices)) * (rng.random((blocks, devices)) < 0.8)
    loads[np.arange(blocks), rng.integers(0, devices, blocks)] += 1
    limits = {"bandwidth_min": 2e5, "bandwidth_max": 2e7} if rng.random() < 0.3 else {}
    return wo.Instance.from_arrays(
        loads=loads,
        compute_time=rng.uniform(0, 1e-3, devices),
        activation_time=rng.uniform(0, 5e-3, devices) * (rng.random() < 0.5),
        link_delay=rng.uniform(0, 2e-3, devices) * (rng.random() < 0.4),
        gain_down=10.0 ** rng.uniform(-12, -9, devices),
        gain_up=10.0 ** rng.uniform(-12, -9, devices),
        power_down=10.0,
        power_up=0.2,
        noise_density=4e-21,
        total_bandwidth=2e7,
        bits_down=65536.0,
        bits_up=65536.0 * float(rng.random() < 0.8),
        **limits,
    )


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_the_best_bandwidth_is_proved_on_random_loads(allocation):
    for seed in range(60):
        problem = wo.Problem(random_loads(seed), allocation=allocation)
        found = wo.solve(problem, "certified", rel_gap=1e-6)
        assert found.bound_kind == "certified", seed
        assert found.gap <= 1e-7, seed
        assert found.termination.reason == "optimal"
        assert wo.certify(problem, found), seed
        assert found.latency == pytest.approx(wo.solve(problem, "topk").latency, rel=1e-12)


@pytest.mark.compiled
@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize("name", CAPTURED)
def test_nothing_lies_below_the_bound_on_captured_loads(name, allocation):
    problem = wo.Problem(wo.load_instance(name), allocation=allocation)
    found = wo.solve(problem, rel_gap=1e-6)
    assert "auto took certified" in found.termination.detail
    assert found.gap <= 1e-7
    assert wo.certify(problem, found, exact=True)
    for info in wo.list_solvers():
        if not info.refusal(problem) and info.availability():
            assert wo.solve(problem, info.name, time_limit=5.0).latency >= found.lower_bound


def test_no_load_at_all_takes_no_time():
    instance = wo.Instance.from_arrays(
        loads=[[0, 0]], compute_time=[1e-4, 1e-4], gain_down=[1e-9, 1e-9], gain_up=[1e-9, 1e-9],
        power_down=1.0, power_up=0.1, noise_density=4e-21, total_bandwidth=2e7, bits_down=3e4, bits_up=3e4,
    )  # fmt: skip
    found = wo.solve(wo.Problem(instance), "certified")
    assert (found.latency, found.gap, found.termination.reason) == (0.0, 0.0, "optimal")
