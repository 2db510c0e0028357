"""The certified solvers: bounds against enumeration, certificates against the check, gaps on real gates."""

import math
from itertools import pairwise, product

import numpy as np
import pytest

import wdmoe_opt as wo
from wdmoe_opt.benchmarks.agreement import tiny_problem
from wdmoe_opt.benchmarks.heuristics import synthetic
from wdmoe_opt.certificates.check import inspect
from wdmoe_opt.kernels.bounds import token_bound
from wdmoe_opt.relaxation import Relaxation, Stage
from wdmoe_opt.solvers.certified import certified
from wdmoe_opt.solvers.exact import exact
from wdmoe_opt.testing.arrays import Shape, measured_arrays, random_arrays, random_shape

FAMILIES = [f"deepseek-v2-lite-{part}" for part in ("intent", "law", "summary", "translation")]


def random_problem(seed: int) -> wo.Problem | None:
    """A small problem of any shape, floors, allocation and dispatch; None if it cannot be built."""
    rng = np.random.default_rng([7, seed])
    shape = random_shape(rng)
    measured = rng.random() < 0.15
    arrays = (measured_arrays if measured else random_arrays)(shape, seed)
    try:
        instance = wo.Instance.from_arrays(**arrays)
        return wo.Problem(
            instance,
            min_retention=float(rng.choice([0.0, 0.5, 0.8, 0.95, 1.0])),
            min_token_retention=float(rng.choice([0.0, 0.0, 0.5])),
            max_experts=None if rng.random() < 0.7 else int(rng.integers(1, 4)),
            candidates="top-k" if rng.random() < 0.6 else int(instance.columns),
            allocation="fixed" if measured else ["shared", "per-block", "fixed"][int(rng.integers(3))],
            dispatch="device" if rng.random() < 0.4 else "expert",
        )
    except wo.InputError:
        return None


@pytest.mark.parametrize("first", range(0, 120, 20))
def test_every_certified_bound_lies_below_the_optimum(first):
    """Any shape, floor, cap, allocation and dispatch: bound <= optimum <= value, and the check agrees."""
    compared = certified_bounds = points = 0
    for seed in range(first, first + 20):
        problem = random_problem(seed)
        if problem is None:
            continue
        found = wo.solve(problem, "certified", rel_gap=1e-4)
        if not found.has_point:
            continue
        points += 1
        assert found.feasible, (seed, found.violations)
        if found.bound_kind == "certified":
            certified_bounds += 1
            assert wo.certify(problem, found), seed
        try:
            best = wo.solve(problem, "enumerate", max_states=20_000)
        except wo.UnsupportedError:
            continue
        compared += 1
        assert found.lower_bound <= best.latency * (1 + 1e-9), seed
        assert found.latency >= best.latency * (1 - 1e-9), seed
    assert compared >= 5
    assert certified_bounds >= 0.9 * points


@pytest.mark.parametrize("seed", range(80))
def test_exact_closes_tiny_problems(seed):
    """To 1e-6, whatever the allocation, dispatch, activation, delays and floors."""
    problem = tiny_problem(seed)
    best = wo.solve(problem, "enumerate")
    found = wo.solve(problem, "exact", rel_gap=1e-6)
    if not best.feasible:
        assert found.termination.reason == best.termination.reason == "infeasible"
        return
    assert found.termination.reason == "optimal"
    assert found.bound_kind == "certified"
    assert found.lower_bound <= best.latency * (1 + 1e-9)
    assert found.latency == pytest.approx(best.latency, rel=1e-6)
    assert found.gap <= 1.1e-6
    assert wo.certify(problem, found)


@pytest.mark.parametrize("seed", [3, 22, 61])
def test_exact_mode_rechecks_a_tree(seed):
    """One block, and two that share bandwidth, with activation and with delays."""
    problem = tiny_problem(seed)
    found = wo.solve(problem, "exact", rel_gap=1e-6)
    assert found.certificate.form == "tree"
    assert wo.certify(problem, found, exact=True)


@pytest.mark.parametrize("seed", range(3))
def test_gap_on_a_block_of_synthetic_gates(seed):
    problem = wo.Problem(synthetic(512, seed=seed), min_retention=0.95)
    found = wo.solve(problem, "certified", rel_gap=2e-4)
    assert found.bound_kind == "certified"
    assert found.gap <= 2e-4
    assert found.latency <= wo.solve(problem, "alternating").latency * (1 + 1e-4)


@pytest.mark.compiled
@pytest.mark.parametrize("family", FAMILIES)
def test_gap_on_whole_captured_models(family):
    """26 blocks that share bandwidth, 64 experts on 8 boards, measured activation: within 1 %."""
    problem = wo.Problem(wo.load_instance(family), min_retention=0.95)
    found = wo.solve(problem, "certified", rel_gap=5e-3)
    assert found.bound_kind == "certified"
    assert found.gap <= 0.01
    assert wo.certify(problem, found)


@pytest.mark.parametrize("name", [*(f"{family}@128#0-1" for family in FAMILIES), "gpt-oss-20b-decode#0-2"])
@pytest.mark.parametrize("allocation", ["shared", "per-block", "fixed"])
def test_no_feasible_point_of_any_method_lies_below_a_certified_bound(name, allocation):
    problem = wo.Problem(wo.load_instance(name), min_retention=0.9, allocation=allocation)
    bound = wo.solve(problem, "certified").lower_bound
    assert bound > 0
    for method in ("topk", "greedy", "alternating", "local-search", "wdmoe", "certified"):
        found = wo.solve(problem, method)
        if found.feasible:
            assert found.latency >= bound * (1 - 1e-9), method


def test_dispatch_by_device_has_a_bound_of_its_own():
    instance = wo.load_instance("deepseek-v2-lite-law@128#2")
    by_expert = wo.solve(wo.Problem(instance, min_retention=0.95), "certified")
    by_device = wo.solve(wo.Problem(instance, min_retention=0.95, dispatch="device"), "certified")
    assert by_device.bound_kind == "certified"
    assert by_device.gap <= 0.02
    assert by_device.latency < by_expert.latency


def test_the_bound_rises_with_the_floor():
    instance = synthetic(256)
    bounds = [
        wo.solve(wo.Problem(instance, min_retention=floor), "certified", rel_gap=2e-4).lower_bound
        for floor in (0.7, 0.8, 0.9, 0.95, 0.99)
    ]
    assert all(low <= high * (1 + 2e-4) for low, high in pairwise(bounds))


def test_a_claim_raised_by_a_millionth_fails():
    problem = wo.Problem(synthetic(128), min_retention=0.95)
    found = wo.solve(problem, "certified", rel_gap=1e-3)
    certificate = found.certificate
    raised = type(certificate)(
        **{
            name: getattr(certificate, name)
            for name in ("form", "send", "work", "wake", "share", "retention", "bandwidth", "points")
        },
        deadline=certificate.deadline * (1 + 1e-6),
    )
    assert inspect(problem, certificate).bound > 0
    assert inspect(problem, raised).bound == -math.inf


def test_threads_do_not_change_the_answer():
    problem = wo.Problem(wo.load_instance("deepseek-v2-lite-law@64#0-3"), min_retention=0.9,
                         allocation="per-block")  # fmt: skip
    one, two = (wo.solve(problem, "certified", threads=threads) for threads in (1, 2))
    assert one.lower_bound == two.lower_bound
    assert (one.keep == two.keep).all()


def test_floors_out_of_reach_are_named():
    problem = tiny_problem(0)
    found = wo.solve(problem, "certified")
    assert found.termination.reason == "infeasible"
    assert "cannot be met" in found.termination.detail


def test_a_time_limit_keeps_the_best():
    problem = wo.Problem(synthetic(48, seed=3), min_retention=0.95)
    short = wo.solve(problem, "exact", rel_gap=1e-9, time_limit=0.3)
    assert short.termination.limit == "time"
    assert short.bound_kind == "certified"
    assert 0 < short.lower_bound <= short.latency


@pytest.mark.parametrize("step", ["_split", "_ascend", "_verify", "_candidate"])
@pytest.mark.parametrize("when", [4, 7])
def test_an_interruption_anywhere_leaves_a_whole_tree(monkeypatch, step, when):
    """Ctrl-C before or in the middle of a split: the certificate still holds."""
    from wdmoe_opt.solvers.price_tree import PriceTree

    problem = wo.Problem(synthetic(48, seed=3), min_retention=0.95)
    original, calls = getattr(PriceTree, step), []

    def interrupted(tree, *arguments):
        calls.append(step)
        if len(calls) == when:
            raise KeyboardInterrupt
        return original(tree, *arguments)

    monkeypatch.setattr(PriceTree, step, interrupted)
    stopped = wo.solve(problem, "exact", rel_gap=1e-9)
    assert stopped.termination.limit == "interrupt"
    assert stopped.bound_kind == "certified"
    assert stopped.certificate.form == "tree"
    assert wo.certify(problem, stopped)


@pytest.mark.parametrize("step", ["_split", "_ascend", "_verify", "_candidate"])
@pytest.mark.parametrize("when", [1, 4, 7])
def test_an_interruption_leaves_a_whole_tree_of_shared_bandwidth(monkeypatch, step, when):
    from wdmoe_opt.solvers.mean_tree import MeanTree

    problem = tiny_problem(55)
    original, calls = getattr(MeanTree, step), []

    def interrupted(tree, *arguments):
        calls.append(step)
        if len(calls) == when:
            raise KeyboardInterrupt
        return original(tree, *arguments)

    monkeypatch.setattr(MeanTree, step, interrupted)
    stopped = wo.solve(problem, "exact", rel_gap=1e-6)
    assert stopped.termination.limit == "interrupt"
    assert stopped.bound_kind == "certified"
    assert wo.certify(problem, stopped)


@pytest.mark.parametrize(("seed", "when"), [(3, 1), (3, 2), (55, 1), (56, 1)])
@pytest.mark.parametrize("stage", ["lead", "settle", "_polish", "_ascend", "run"])
def test_an_interruption_before_any_branch_keeps_what_there_is(monkeypatch, seed, stage, when):
    """Ctrl-C in a stage of any group: the plain selection at least, and no bound that does not hold."""
    from wdmoe_opt.solvers.certified import Group

    problem = tiny_problem(seed)
    owner = Group if hasattr(Group, stage) else Relaxation
    original, calls = getattr(owner, stage), []

    def interrupted(self, *arguments):
        calls.append(stage)
        if len(calls) == when:
            raise KeyboardInterrupt
        return original(self, *arguments)

    monkeypatch.setattr(owner, stage, interrupted)
    stopped = wo.solve(problem, "exact", rel_gap=1e-9)
    if len(calls) < when:
        return
    assert stopped.feasible
    assert stopped.termination.reason == "feasible-at-limit"
    assert stopped.termination.limit == "interrupt"
    assert stopped.bound_kind in ("none", "certified")
    if stopped.bound_kind == "certified":
        assert stopped.lower_bound <= wo.solve(problem, "enumerate").latency * (1 + 1e-9)
        assert wo.certify(problem, stopped)


def test_branch_limit():
    problem = wo.Problem(synthetic(48, seed=3), min_retention=0.95)
    found = wo.solve(problem, "exact", rel_gap=1e-9, max_branches=20)
    assert found.termination.limit == "branches"
    assert wo.certify(problem, found)
    with pytest.raises(wo.InputError, match="max_branches"):
        wo.solve(problem, "exact", max_branches=0)


def test_ascent_never_lowers_the_best_bound():
    problem = wo.Problem(wo.load_instance("deepseek-v2-lite-law@32#1"), min_retention=0.95)
    relaxation = Relaxation(problem, slice(0, 1))
    relaxation.lead(problem.top_k_keep)
    relaxation.settle(Stage(0.2, 1e-3, 6, 0.02))
    before = relaxation.bound()
    keep = wo.solve(problem, "alternating").keep
    after = relaxation.improve(keep, 40)
    assert after >= before
    assert after <= wo.solve(problem, "alternating").latency


def test_points_carry_their_certificate():
    from wdmoe_opt.registry import Control

    problem = tiny_problem(1)
    for solver in (certified, exact):
        point = solver(problem, Control(rel_gap=1e-3))
        assert inspect(problem, point.certificate).bound == pytest.approx(point.lower_bound, rel=1e-6)


def cheapest_option(cost, share, floor):
    """Least price of a non-empty set of candidates that keeps the floor, by listing all."""
    best = math.inf
    for chosen in product([False, True], repeat=len(cost)):
        kept = [c for c, yes in enumerate(chosen) if yes]
        if kept and share[kept].sum() >= floor:
            best = min(best, cost[kept].sum())
    return best


def token_price(cost, share, floor):
    """`token_bound` of one token whose candidates are on devices of their own, without a retention price."""
    m = len(cost)
    return token_bound(
        np.arange(m, dtype=np.int32)[None], share[None], np.arange(m), cost, np.zeros(m), False, 0.0, floor,
        m, np.zeros(m, dtype=np.bool_), np.zeros((0, 0), dtype=np.bool_), np.empty((1, m)), np.empty(m),
        np.empty((2, m)), np.empty((2, m)), np.empty((1, m), dtype=np.int8),
    )  # fmt: skip


def test_a_floor_per_token_never_costs_more_than_its_cheapest_option():
    """Counting candidates is a bound, exact where there are two, and often exact beyond."""
    rng = np.random.default_rng(5)
    exact = 0
    for _ in range(400):
        m = int(rng.integers(2, 6))
        share = -np.sort(-rng.dirichlet(np.ones(m)))
        cost, floor = rng.uniform(0, 1, m), float(rng.uniform(0, 0.999))
        found, best = token_price(cost, share, floor), cheapest_option(cost, share, floor)
        assert found <= best + 1e-12
        exact += found >= best - 1e-12
        if m == 2:
            assert found == pytest.approx(best, abs=1e-12)
    assert exact >= 250


@pytest.mark.parametrize("floor", [0.01, 0.3, 0.5, 0.8])
@pytest.mark.parametrize("mean", [0.0, 0.7])
def test_floors_per_token_keep_the_bound_close(floor, mean):
    """Also those that bind nobody, and without a mean floor, where retention has no price."""
    gaps = []
    for seed in range(8):
        shape = Shape(blocks=1, tokens=32, devices=4, top_k=2, columns=2)
        instance = wo.Instance.from_arrays(**random_arrays(shape, seed))
        found = wo.solve(wo.Problem(instance, min_retention=mean, min_token_retention=floor), "certified")
        assert found.bound_kind == "certified"
        gaps.append(found.gap)
    assert np.median(gaps) <= 0.02
