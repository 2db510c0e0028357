"""Greedy, alternating and local search: never infeasible, never better than the optimum, rarely worse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import wdmoe_opt as wo
from wdmoe_opt.benchmarks.relative import captured
from wdmoe_opt.search import Search
from wdmoe_opt.solving import pick_method
from wdmoe_opt.testing.arrays import Shape, random_arrays, random_shape

METHODS = ("greedy", "alternating", "local-search")
ALLOCATIONS = ("shared", "per-block", "fixed")


def tiny_problem(rng: np.random.Generator, **fixed: Any) -> wo.Problem | None:
    """A random enumerable problem with everything on or off; None if no candidate can be reached."""
    shape = random_shape(
        rng,
        blocks=int(rng.integers(1, 3)),
        tokens=int(rng.integers(2, 6)),
        devices=int(rng.integers(2, 5)),
        per_device=int(rng.integers(1, 3)),
        wide=False,
    )
    inst = wo.Instance.from_arrays(**random_arrays(shape, int(rng.integers(1 << 30))))
    request: dict[str, Any] = {
        "allocation": str(rng.choice(ALLOCATIONS)),
        "dispatch": str(rng.choice(["expert", "device"])),
        "min_retention": float(rng.choice([0, 0.6, 0.8, 0.9, 0.95, 1])),
        "min_token_retention": float(rng.choice([0, 0, 0.5, 0.8])),
        "max_experts": int(rng.integers(1, 4)) if rng.random() < 0.3 else None,
        "candidates": inst.columns if rng.random() < 0.5 else "top-k",
    }
    try:
        return wo.Problem(inst, **{**request, **fixed})
    except wo.InputError:
        return None


@pytest.mark.parametrize("seed", range(4))
def test_against_enumeration(seed: int) -> None:
    """Every point is feasible, none beats the enumerated optimum, and most of alternating's reach it."""
    rng = np.random.default_rng([11, seed])
    reached = compared = 0
    while compared < 20:
        problem = tiny_problem(rng)
        if problem is None or wo.registry.find_solver("enumerate").refusal(problem):
            continue
        best = wo.solve(problem, "enumerate")
        for method in METHODS:
            found = wo.solve(problem, method)
            if best.termination.reason == "infeasible":
                assert found.termination.reason == "infeasible"
                assert found.termination.detail
                continue
            assert found.feasible
            assert found.latency >= best.latency * (1 - 1e-9)
            if method == "alternating":
                compared += 1
                reached += found.latency <= best.latency * (1 + 1e-6)
    assert reached >= 0.75 * compared


def test_selection_at_fixed_bandwidth_is_exact() -> None:
    """One expert per device, drop only, bandwidth fixed: the enumerated optimum, every time (fact 9)."""
    rng = np.random.default_rng(3)
    for _ in range(60):
        shape = Shape(
            blocks=1,
            tokens=int(rng.integers(2, 9)),
            devices=int(rng.integers(2, 5)),
            activation=bool(rng.random() < 0.5),
        )
        inst = wo.Instance.from_arrays(**random_arrays(shape, int(rng.integers(1 << 30))))
        floor = float(rng.choice([0.6, 0.7, 0.8, 0.9, 0.95]))
        problem = wo.Problem(inst, allocation="fixed", min_retention=floor)
        best = wo.solve(problem, "enumerate").latency
        for method in ("greedy", "alternating"):
            assert wo.solve(problem, method).latency == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize("objective", ["wlr-token", "wlr-device", "wlr-block"])
@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_readings_of_the_ratio_rise(objective: str, allocation: str) -> None:
    """For every reading the point is feasible and at least as good as plain top-k."""
    rng = np.random.default_rng(8)
    compared = 0
    while compared < 8:
        problem = tiny_problem(rng, objective=objective, allocation=allocation)
        if problem is None:
            continue
        plain = wo.solve(problem, "topk")
        for method in METHODS:
            found = wo.solve(problem, method)
            if found.termination.reason == "infeasible":
                continue
            assert found.feasible
            if plain.feasible:
                compared += 1
                assert found.objective >= plain.objective * (1 - 1e-6)


def test_token_ratio_without_floors_keeps_the_best_single_expert() -> None:
    """Maximised alone, the mean of w / t keeps the one expert with the largest ratio (problem section 2)."""
    inst = wo.load_instance("deepseek-v2-lite-intent", blocks=1, tokens=24)
    problem = wo.Problem(inst, objective="wlr-token", allocation="fixed")
    found = wo.solve(problem, "greedy")
    link = found.evaluation.link_time[0]
    hosts = inst.expert_device[inst.expert_ids[0]]
    ratio = inst.gate_weights[0] / (link[hosts] + inst.compute_time[hosts])
    assert (found.keep[0].sum(axis=1) == 1).all()
    kept = np.where(found.keep[0], ratio, 0).sum(axis=1)
    assert kept == pytest.approx(ratio.max(axis=1), rel=1e-12)


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_alternating_trace_is_monotone_and_never_worse_than_its_starts(allocation: str) -> None:
    """The noted objective only falls, and ends at or below plain top-k and the paper's policy."""
    inst = wo.load_instance("deepseek-v2-lite-law", blocks=2, tokens=64)
    paper = wo.solve(wo.Problem(inst, allocation=allocation), "wdmoe")
    problem = wo.Problem(inst, allocation=allocation, min_retention=np.minimum(paper.block_retention, 1.0))
    found = wo.solve(problem, "alternating")
    assert found.feasible
    assert found.latency <= min(paper.latency, wo.solve(problem, "topk").latency) * (1 + 1e-12)
    for block in {record["block"] for record in found.trace}:
        values = [record["objective"] for record in found.trace if record["block"] == block]
        assert values == sorted(values, reverse=True)


@pytest.mark.compiled
@pytest.mark.parametrize("name", captured())
def test_alternating_beats_the_papers_policy_at_its_own_retention(name: str) -> None:
    """On whole captured models: at least as fast as Algorithm 1 with optimal bandwidth, block for block."""
    inst = wo.load_instance(name)
    paper = wo.solve(inst, "wdmoe")
    found = wo.solve(wo.Problem(inst, min_retention=np.minimum(paper.block_retention, 1.0)), "alternating")
    assert found.feasible
    assert found.latency < paper.latency
    assert (found.block_retention >= paper.block_retention * (1 - 1e-9)).all()


@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize("method", METHODS)
def test_threads_do_not_change_the_answer(method: str, allocation: str) -> None:
    """One and two threads give the same bits."""
    inst = wo.load_instance("gpt-oss-20b-decode", blocks=6)
    problem = wo.Problem(inst, min_retention=0.9, allocation=allocation)
    one, two = (wo.solve(problem, method, threads=threads) for threads in (1, 2))
    assert (one.keep == two.keep).all()
    assert (one.bandwidth == two.bandwidth).all()
    assert one.latency == two.latency


def test_emptying_an_expert_saves_its_activation() -> None:
    """A light expert with a long activation time is emptied, though its tokens weigh more than others."""
    arrays = random_arrays(Shape(blocks=1, tokens=6, devices=2, per_device=1), 5)
    arrays["expert_device"] = np.array([0, 0, 1])
    arrays["expert_ids"] = np.array([[[0, 1], [0, 2], [0, 2], [2, 0], [2, 0], [2, 0]]])
    arrays["gate_weights"] = np.array(
        [[[0.6, 0.4], [0.7, 0.3], [0.7, 0.3], [0.7, 0.3], [0.7, 0.3], [0.7, 0.3]]]
    )
    arrays["compute_time"] = np.full(2, 1e-5)
    arrays["activation_time"] = np.array([1e-4, 1.0, 1e-4])
    problem = wo.Problem(wo.Instance.from_arrays(**arrays), min_retention=0.9)
    for method in METHODS:
        found = wo.solve(problem, method)
        assert found.evaluation.expert_load[0, 1] == 0, method
        assert found.feasible


def test_bookkeeping_of_moves_survives_undoing() -> None:
    """Proposing a batch and taking it back restores every count, load and share exactly."""
    inst = wo.load_instance("deepseek-v2-lite-summary", blocks=2, tokens=40)
    for dispatch in ("expert", "device"):
        problem = wo.Problem(inst, min_retention=0.8, dispatch=dispatch)
        search = Search(problem, slice(0, 2), problem.top_k_keep)
        before = (search.keep.copy(), search.count.copy(), search.load.copy(), search.sent.copy())
        assert search._propose(np.full(2, 3.0), 1.0) > 0
        assert (search.keep != before[0]).any()
        search._undo()
        after = (search.keep, search.count, search.load, search.sent)
        assert all((a == b).all() for a, b in zip(before, after, strict=True))


def test_auto_says_what_it_took() -> None:
    """What has a bound is certified, loads get bandwidth only, a short time limit turns to greedy."""
    control = wo.Control()
    tiny = wo.Problem(wo.load_instance("deepseek-v2-lite-law", blocks=1, tokens=4), allocation="per-block")
    large = wo.Problem(wo.load_instance("deepseek-v2-lite-law"))
    assert pick_method(tiny, control)[0] == pick_method(large, control)[0] == "certified"
    assert pick_method(large.replace(objective="wlr-block"), control)[0] == "certified"
    assert pick_method(large.replace(objective="wlr-device"), control)[0] == "alternating"
    assert pick_method(large, wo.Control(time_limit=1e-3))[0] == "greedy"
    loads = wo.Problem(wo.load_instance("mixtral-8x7b-mmlu-load", part="anatomy"))
    assert pick_method(loads, control)[0] == "certified"
    assert wo.solve(loads).termination.detail.startswith("auto took certified (only bandwidth is free)")


def test_local_search_improves_its_start() -> None:
    """Polishing another solver's point never makes it slower, and names where it began."""
    problem = wo.Problem(wo.load_instance("gpt-oss-20b-decode", blocks=4), min_retention=0.9)
    for start in ("topk", "greedy", "alternating"):
        begun = wo.solve(problem, start)
        found = wo.solve(problem, "local-search", start=start)
        assert found.latency <= begun.latency * (1 + 1e-12)
        assert start in found.termination.detail


@pytest.mark.parametrize("objective", ["latency", "wlr-token", "wlr-device", "wlr-block"])
@pytest.mark.parametrize("method", METHODS)
def test_nothing_uninitialised_reaches_a_decision(
    method: str, objective: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bits come out when fresh work arrays hold random numbers instead of old memory."""
    inst = wo.load_instance("deepseek-v2-lite-summary", blocks=3, tokens=24)
    problem = wo.Problem(inst, objective=objective, min_retention=0.9)
    first = wo.solve(problem, method)
    rng = np.random.default_rng(1)
    monkeypatch.setattr(np, "empty_like", lambda a, *_, **__: rng.random(np.shape(a)).astype(a.dtype))
    again = wo.solve(problem, method)
    assert (again.keep == first.keep).all()
    assert again.objective == first.objective


def test_local_search_refuses_a_start_that_cannot_be_had() -> None:
    """A start that refuses the problem is named with the methods that could, not run blindly."""
    problem = wo.Problem(wo.load_instance("gpt-oss-20b-decode", blocks=1), allocation="fixed")
    with pytest.raises(wo.UnsupportedError, match="method 'convex' cannot be used"):
        wo.solve(problem, "local-search", start="convex")
    with pytest.raises(wo.UnknownNameError, match="method = 'nowhere'"):
        wo.solve(problem, "local-search", start="nowhere")
