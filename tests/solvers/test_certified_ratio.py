"""The certified ratios: bounds against enumeration and brute force, the check, and refusals."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

import wdmoe_opt as wo
from wdmoe_opt.benchmarks.agreement import tiny_problem
from wdmoe_opt.benchmarks.heuristics import synthetic
from wdmoe_opt.solvers.certified_token_ratio import TokenOptions
from wdmoe_opt.solvers.enumerate_ratio import restriction


def rechecked(problem: wo.Problem, *, exact: bool = False) -> wo.Solution | None:
    """What certified finds, after its claims have been tried; None if nothing keeps the floors."""
    found = wo.solve(problem, "certified")
    if not found.has_point:
        assert found.termination.reason == "infeasible"
        return None
    assert found.feasible, found.violations
    assert found.bound_kind == "certified"
    assert found.objective <= found.lower_bound * (1 + 1e-12)
    assert wo.gap(problem, found) == pytest.approx(found.gap)
    report = wo.certify(problem, found)
    assert report, report
    assert not wo.certify(problem, replace(found, lower_bound=found.lower_bound * (1 - 1e-6)))
    if exact:
        assert wo.certify(problem, found, exact=True)
    return found


@pytest.mark.parametrize("objective", ["wlr-block", "wlr-token"])
@pytest.mark.parametrize("start", [0, 12])
def test_no_tiny_optimum_lies_above_its_bound(objective, start):
    compared, loose = 0, []
    for seed in range(start, start + 12):
        problem = tiny_problem(seed).replace(objective=objective)
        found = rechecked(problem, exact=seed == 1)
        if found is None or restriction(problem):
            continue
        best = wo.solve(problem, "enumerate")
        assert best.objective <= found.lower_bound * (1 + 1e-12), seed
        assert found.objective <= best.objective * (1 + 1e-9), seed
        loose.append(found.lower_bound / best.objective - 1)
        compared += 1
    assert compared >= 3
    assert np.median(loose) < 0.35


def best_shared_ratio(problem: wo.Problem, shares: int) -> float:
    """Best ratio per block of two devices that all blocks share, over all selections and many splits."""
    total = problem.instance.total_bandwidth
    splits = [(total * s, total * (1 - s)) for s in np.linspace(0.02, 0.98, shares)]
    options = [list(product([False, True], repeat=2))[1:]] * (
        problem.instance.blocks * problem.instance.tokens
    )
    best = 0.0
    for chosen in product(*options):
        keep = np.array(chosen).reshape(problem.top_k_keep.shape)
        for split in splits:
            priced = wo.evaluate(problem, keep, split)
            if priced.feasible:
                best = max(best, priced.objective)
    return best


@pytest.mark.parametrize("seed", range(3))
def test_blocks_that_share_bandwidth_stay_below_their_joint_bound(seed):
    rng = np.random.default_rng(seed)
    first = rng.uniform(0.5, 0.95, (2, 2))
    instance = wo.Instance.from_arrays(
        expert_ids=np.tile([0, 1], (2, 2, 1)), gate_weights=np.stack([first, 1 - first], axis=2),
        compute_time=rng.uniform(0, 1e-3, 2), activation_time=rng.uniform(0, 2e-3, 2) * (seed % 2),
        gain_down=10.0 ** rng.uniform(-11, -9, 2), gain_up=10.0 ** rng.uniform(-11, -9, 2), power_down=1.0,
        power_up=0.1, noise_density=4e-21, total_bandwidth=2e7, bits_down=3e4, bits_up=3e4,
    )  # fmt: skip
    problem = wo.Problem(instance, objective="wlr-block", min_retention=0.6)
    found = rechecked(problem, exact=True)
    oracle = best_shared_ratio(problem, 17)
    assert oracle <= found.lower_bound
    assert found.objective >= oracle * (1 - 0.03)


@pytest.mark.compiled
@pytest.mark.parametrize(
    ("instance", "floor", "gap"),
    [
        ("deepseek-v2-lite-law#0", 0.95, 0.01),
        ("deepseek-v2-lite-law#0", 0.5, 0.05),
        ("gpt-oss-20b-decode#1", 0.95, 0.06),
        (512, 0.95, 0.01),
        (512, 0.0, 0.02),
    ],
)
@pytest.mark.parametrize("allocation", ["per-block", "fixed"])
def test_gap_of_the_ratio_per_block(instance, floor, gap, allocation):
    gates = synthetic(instance) if isinstance(instance, int) else wo.load_instance(instance)
    problem = wo.Problem(gates, objective="wlr-block", min_retention=floor, allocation=allocation)
    found = rechecked(problem)
    assert found.gap <= gap
    assert found.objective >= wo.solve(problem, "alternating").objective * (1 - 1e-9)


@pytest.mark.parametrize("name", ["deepseek-v2-lite-law@128#0-1", "gpt-oss-20b-decode#1"])
@pytest.mark.parametrize("floor", [0.0, 0.9])
def test_ratio_per_token_at_fixed_bandwidth_is_all_but_exact(name, floor):
    problem = wo.Problem(
        wo.load_instance(name), objective="wlr-token", min_retention=floor, allocation="fixed"
    )
    found = rechecked(problem)
    # What one token more or less is worth.
    assert found.gap <= (0.25 / problem.instance.tokens if floor else 1e-8)
    if not floor:
        assert found.termination.reason == "optimal"
        assert (found.keep.sum(axis=2) == 1).all()


def test_price_of_retention_is_where_the_floor_is_met():
    problem = tiny_problem(5).replace(objective="wlr-token", min_retention=0.8, max_experts=None)
    options = TokenOptions(problem, 0)
    mu = options.settle()
    assert options.kept(options.at(mu)).sum() >= options.needed
    assert mu == 0 or options.kept(options.at(mu * (1 - 1e-9))).sum() < options.needed


def test_saved_and_loaded(tmp_path):
    problem = tiny_problem(1).replace(objective="wlr-block")
    found = wo.solve(problem, "certified")
    found.save(tmp_path / "ratio.npz")
    loaded = wo.Solution.load(tmp_path / "ratio.npz")
    assert wo.certify(loaded.problem, loaded)
    assert loaded.lower_bound == found.lower_bound


def test_the_ratio_per_device_is_refused_and_auto_takes_what_is_certified():
    problem = tiny_problem(1)
    for objective in ("wlr-block", "wlr-token"):
        assert wo.solve(problem.replace(objective=objective)).method == "certified"
    device = problem.replace(objective="wlr-device")
    with pytest.raises(wo.UnsupportedError, match="no bound is known"):
        wo.solve(device, "certified")
    assert wo.solve(device).method == "alternating"


def test_a_time_limit_keeps_point_and_bound():
    problem = wo.Problem(wo.load_instance("deepseek-v2-lite-law@64#0-1"), objective="wlr-block",
                         min_retention=0.9, allocation="per-block")  # fmt: skip
    found = wo.solve(problem, "certified", time_limit=0.0)
    assert found.feasible
    assert found.termination.limit == "time"
    assert wo.certify(problem, found)


def test_floors_out_of_reach_are_named():
    for objective in ("wlr-block", "wlr-token"):
        found = wo.solve(tiny_problem(0).replace(objective=objective), "certified")
        assert found.termination.reason == "infeasible"
        assert "cannot be met" in found.termination.detail
