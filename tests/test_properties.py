"""Laws that optima, bounds and answers obey on whatever instance; optima are enumerated.

Every test counts what it compared: a law that no example reached fails.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from profiles import examples

import wdmoe_opt as wo
from wdmoe_opt import Instance, Problem
from wdmoe_opt.testing import oracles
from wdmoe_opt.testing.arrays import random_keep
from wdmoe_opt.testing.strategies import SEEDS, instances, problems

#: Two ways of adding up the same price.
SAME = 1e-12
#: Optima with bandwidth that is computed to a relative residual.
ROUNDING = 1e-10
#: Sizes that are enumerated in milliseconds.
TINY: dict[str, Any] = {
    "blocks": st.integers(1, 2),
    "tokens": st.integers(1, 4),
    "devices": st.integers(1, 3),
    "per_device": st.integers(1, 2),
    "top_k": st.integers(1, 2),
    "columns": st.integers(1, 3),
}
HEURISTICS = ("topk", "topk-uniform", "wdmoe", "greedy", "alternating", "local-search")
#: Comparisons made, by test; see `compared`.
_compared: Counter[str] = Counter()


@pytest.fixture(autouse=True, scope="module")
def _warm() -> None:
    """Compile before anything is counted."""
    optimum(Problem(Instance.from_arrays(**_line()), allocation="per-block"))


@pytest.fixture(autouse=True)
def compared(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail where nothing was compared."""
    _compared.clear()
    yield
    assert _compared["times"] > 0, f"{request.node.name} compared nothing"


def _line() -> dict[str, Any]:
    """One token, one device."""
    radio = {"gain_down": [1e-9], "gain_up": [1e-9], "power_down": 1.0, "power_up": 0.1}
    return {
        **radio, "expert_ids": [[[0]]], "gate_weights": [[[1.0]]], "compute_time": [1e-4],
        "noise_density": 4e-21, "total_bandwidth": 1e7, "bits_down": 1e4, "bits_up": 1e4,
    }  # fmt: skip


@st.composite
def tiny(draw: st.DrawFn, **fixed: Any) -> Problem:
    """Problems that can be enumerated in a moment; feasible ones."""
    sizes = {name: draw(size) for name, size in TINY.items()}
    options = {name: fixed.pop(name) for name in ("kinds", "allocations", "request") if name in fixed}
    options.setdefault("kinds", ("radio", "radio", "radio", "measured"))
    problem = draw(problems(**options, **{**sizes, **fixed}))
    assume(wo.solve(problem, "enumerate").feasible)
    return problem


def optimum(problem: Problem) -> float:
    """Enumerated least latency; infinite where no selection keeps the floors."""
    return wo.solve(problem, "enumerate").latency


def same(first: float, second: float, tolerance: float = SAME) -> None:
    """Hold two values against each other."""
    _compared["times"] += 1
    assert second == pytest.approx(first, rel=tolerance, abs=0)


def at_most(first: float, second: float, tolerance: float = ROUNDING) -> None:
    """The first value is not above the second."""
    _compared["times"] += 1
    assert first <= second * (1 + tolerance)


def changed(problem: Problem, **fields: Any) -> Problem:
    """The problem with other instance fields."""
    return problem.replace(instance=problem.instance.replace(**fields))


# ---------------------------------------------------------------------- bound, optimum, heuristic


@examples(40)
@given(tiny())
def test_bound_optimum_heuristic(problem: Problem) -> None:
    """A certified bound is at most the enumerated optimum, and that is at most any feasible answer."""
    best = optimum(problem)
    certified = wo.solve(problem, "certified", time_limit=0.25)
    assert certified.bound_kind == "certified"
    assert wo.certify(problem, certified)
    at_most(certified.lower_bound, best)
    at_most(best, certified.latency)
    for method in HEURISTICS:
        found = wo.solve(problem, method)
        if found.feasible:
            at_most(best, found.latency)
        else:
            assert method in ("topk", "topk-uniform", "wdmoe")


@examples(15)
@given(tiny(blocks=1))
def test_branching_reaches_the_optimum(problem: Problem) -> None:
    """What `exact` proves to 1e-6 is the enumerated optimum, to 1e-6."""
    found = wo.solve(problem, "exact", rel_gap=1e-6, time_limit=5.0)
    at_most(found.lower_bound, optimum(problem))
    if found.termination.reason == "optimal":
        same(optimum(problem), found.latency, 1.1e-6)


# ---------------------------------------------------------------------- permutations


@examples(40)
@given(tiny(), SEEDS)
def test_order_of_tokens_does_not_matter(problem: Problem, seed: int) -> None:
    """Permuting the tokens leaves the optimum as it is."""
    inst = problem.instance
    order = np.random.default_rng(seed).permutation(inst.tokens)
    other = changed(problem, expert_ids=inst.expert_ids[:, order], gate_weights=inst.gate_weights[:, order])
    same(optimum(problem), optimum(other))


@examples(40)
@given(tiny(), SEEDS)
def test_names_of_experts_and_devices_do_not_matter(problem: Problem, seed: int) -> None:
    """Renaming the experts, and the devices with everything on them, leaves the optimum as it is."""
    rng = np.random.default_rng(seed)
    inst = problem.instance
    experts, devices = rng.permutation(inst.experts), rng.permutation(inst.devices)
    new_name, new_host = np.argsort(experts), np.argsort(devices)
    ids = np.asarray(inst.expert_ids)
    fields: dict[str, Any] = {
        "expert_ids": np.where(ids >= 0, new_name[np.maximum(ids, 0)], -1),
        "expert_device": new_host[np.asarray(inst.expert_device)[experts]],
    }
    for name, value in inst.arrays(copy=False).items():
        if name in ("expert_ids", "gate_weights", "expert_device") or np.ndim(value) == 0:
            continue
        # Times of as many numbers as devices are read as the devices'.
        order = devices if value.shape[-1] == inst.devices else experts
        fields[name] = value[..., order]
    request = {} if problem.bandwidth is None else {"bandwidth": np.asarray(problem.bandwidth)[..., devices]}
    same(optimum(problem), optimum(problem.replace(instance=inst.replace(**fields), **request)))


@examples(30)
@given(tiny(blocks=2))
def test_order_of_blocks_does_not_matter(problem: Problem) -> None:
    """Permuting the blocks, with their gains, leaves the optimum as it is."""
    inst = problem.instance
    fields = {name: getattr(inst, name)[::-1] for name in ("expert_ids", "gate_weights")}
    for name in ("gain_down", "gain_up"):
        gain = getattr(inst, name)
        if gain is not None and gain.ndim == 2:
            fields[name] = gain[::-1]
    same(optimum(problem), optimum(changed(problem, **fields)))


# ---------------------------------------------------------------------- scales


#: Powers of two: products with them are exact.
SCALES = st.sampled_from((2.0**-20, 2.0**-3, 2.0, 2.0**10, 2.0**30))
RADIO = ("radio",)


def both(problem: Problem, other: Problem, seed: int, factor: float, bandwidth: float) -> None:
    """Hold the prices of a random point, bit by bit, and the optima against each other."""
    keep = random_keep(problem, seed)
    width = problem.fixed_bandwidth if problem.allocation == "fixed" else problem.uniform_bandwidth
    width = None if problem.instance.token_time_link is not None else np.asarray(width)
    here = wo.evaluate(problem, keep, width).latency
    there = wo.evaluate(other, keep, None if width is None else width * bandwidth).latency
    assert there == here * factor
    same(optimum(problem) * factor, optimum(other))


@examples(40)
@given(tiny(kinds=RADIO), SCALES, SEEDS)
def test_more_bits_over_more_bandwidth(problem: Problem, c: float, seed: int) -> None:
    """Bits, bandwidth and gains times c: the same latency, to the bit for a given point."""
    inst = problem.instance
    fields = {
        name: getattr(inst, name) * c
        for name in ("bits_down", "bits_up", "total_bandwidth", "gain_down", "gain_up")
    }
    for name in ("bandwidth_min", "bandwidth_max"):
        if getattr(inst, name) is not None:
            fields[name] = getattr(inst, name) * c
    given_width = {} if problem.bandwidth is None else {"bandwidth": np.asarray(problem.bandwidth) * c}
    other = problem.replace(instance=inst.replace(**fields), **given_width)
    both(problem, other, seed, 1.0, c)


@examples(40)
@given(tiny(kinds=RADIO), SCALES, SEEDS)
def test_more_gain_over_more_noise(problem: Problem, c: float, seed: int) -> None:
    """Gains and noise times c: the same latency, to the bit for a given point."""
    inst = problem.instance
    other = changed(
        problem,
        gain_down=inst.gain_down * c,
        gain_up=inst.gain_up * c,
        noise_density=inst.noise_density * c,
    )
    both(problem, other, seed, 1.0, 1.0)


@examples(40)
@given(tiny(), SCALES, SEEDS)
def test_other_units_of_time(problem: Problem, c: float, seed: int) -> None:
    """Bits and every time times c: c times the latency, to the bit for a given point."""
    inst = problem.instance
    names = ("bits_down", "bits_up", "compute_time", "activation_time", "link_delay", "token_time_link")
    fields = {name: getattr(inst, name) * c for name in names if getattr(inst, name) is not None}
    both(problem, changed(problem, **fields), seed, c, 1.0)


# ---------------------------------------------------------------------- more never hurts

FACTOR = st.floats(1.0, 10.0)


@examples(40)
@given(tiny(kinds=RADIO, limits=False), FACTOR)
def test_more_bandwidth_never_hurts(problem: Problem, factor: float) -> None:
    """A larger total, and with it every given share, does not raise the optimum."""
    request = {} if problem.bandwidth is None else {"bandwidth": np.asarray(problem.bandwidth) * factor}
    total = problem.instance.total_bandwidth * factor
    other = problem.replace(instance=problem.instance.replace(total_bandwidth=total), **request)
    at_most(optimum(other), optimum(problem))


@examples(40)
@given(tiny(kinds=RADIO), st.lists(FACTOR, min_size=3, max_size=3))
def test_better_gains_never_hurt(problem: Problem, factors: list[float]) -> None:
    """Larger gains of some devices, both ways, do not raise the optimum."""
    inst = problem.instance
    factor = np.array(factors[: inst.devices])
    other = changed(problem, gain_down=inst.gain_down * factor, gain_up=inst.gain_up * factor)
    at_most(optimum(other), optimum(problem))


@examples(40)
@given(tiny(), FACTOR, FACTOR)
def test_faster_compute_never_hurts(problem: Problem, compute: float, activation: float) -> None:
    """Shorter compute and activation times do not raise the optimum."""
    inst = problem.instance
    other = changed(
        problem, compute_time=inst.compute_time / compute, activation_time=inst.activation_time / activation
    )
    at_most(optimum(other), optimum(problem))


@examples(40)
@given(tiny(), st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_lower_floors_never_hurt(problem: Problem, mean: float, token: float) -> None:
    """Floors scaled down, and no cap on experts, do not raise the optimum."""
    other = problem.replace(
        min_retention=np.asarray(problem.min_retention) * mean,
        min_token_retention=np.asarray(problem.min_token_retention) * token,
        max_experts=None,
    )
    at_most(optimum(other), optimum(problem))


@examples(40)
@given(tiny(request={"candidates": "top-k"}, columns=3, top_k=1, per_device=2))
def test_more_candidates_never_hurt(problem: Problem) -> None:
    """Every further column that may be used does not raise the optimum."""
    allowed = ["top-k", *range(problem.instance.top_k, problem.instance.columns + 1)]
    values = [optimum(problem.replace(candidates=columns)) for columns in allowed]
    for fewer, more in pairwise(values):
        at_most(more, fewer)


# ---------------------------------------------------------------------- another device


def twin_fields(problem: Problem, device: int, moved: np.ndarray) -> dict[str, Any]:
    """Instance fields with a copy of a device at the end, to which some of its experts move."""
    inst = problem.instance
    hosts = np.array(inst.expert_device)
    hosts[moved] = inst.devices
    fields: dict[str, Any] = {"expert_device": hosts}
    fields["compute_time"] = inst.per_expert(inst.compute_time)
    fields["activation_time"] = inst.per_expert(inst.activation_time)
    for name in ("gain_down", "gain_up", "power_down", "power_up", "link_delay", "token_time_link"):
        value = getattr(inst, name)
        if value is not None and value.ndim:
            fields[name] = np.concatenate([value, value[..., device : device + 1]], axis=-1)
    if inst.experts == inst.devices + 1:
        # As many experts as devices would be read as the devices' times: one more expert, never used.
        fields["expert_device"] = np.append(hosts, device)
        for name in ("compute_time", "activation_time"):
            fields[name] = np.append(fields[name], 0.0)
    return fields


@examples(40)
@given(tiny(allocations=("shared", "per-block"), limits=False), SEEDS)
def test_an_idle_twin_changes_nothing(problem: Problem, seed: int) -> None:
    """A copy of a device that hosts nothing leaves the optimum as it is."""
    device = int(np.random.default_rng(seed).integers(problem.instance.devices))
    other = changed(problem, **twin_fields(problem, device, np.zeros(0, dtype=np.int64)))
    same(optimum(problem), optimum(other), ROUNDING)


@examples(40)
@given(tiny(allocations=("per-block",), limits=False, per_device=2, request={"dispatch": "expert"}), SEEDS)
def test_a_twin_that_takes_over_experts_never_hurts(problem: Problem, seed: int) -> None:
    """Moving some of a device's experts to a copy of it does not raise the optimum.

    Both share the device's old bandwidth by transfers: rates are concave, so each is served in no more time
    than the device took for both. With dispatch by device, or one vector for several blocks, it may hurt.
    """
    rng = np.random.default_rng(seed)
    device = int(rng.integers(problem.instance.devices))
    there = np.flatnonzero(np.asarray(problem.instance.expert_device) == device)
    moved = there[rng.random(there.size) < 0.5]
    other = changed(problem, **twin_fields(problem, device, moved))
    at_most(optimum(other), optimum(problem))


# ---------------------------------------------------------------------- blocks and allocations


@examples(50)
@given(tiny(blocks=1, tokens=4, gains_per_block=False))
def test_splitting_a_block_never_helps(problem: Problem) -> None:
    """Tokens that pass in two blocks, one after the other, take at least as long as in one."""
    inst = problem.instance
    fields = {
        name: getattr(inst, name).reshape(2, 2, inst.columns) for name in ("expert_ids", "gate_weights")
    }
    at_most(optimum(problem), optimum(changed(problem, **fields)))


@examples(50)
@given(tiny(blocks=2, allocations=("shared",)))
def test_one_bandwidth_for_all_blocks_never_beats_one_per_block(problem: Problem) -> None:
    """Allocation "shared" is at best as good as "per-block", and both at least as good as equal shares."""
    assume(problem.allocation == "shared")
    shared = optimum(problem)
    at_most(optimum(problem.replace(allocation="per-block")), shared)
    at_most(shared, optimum(problem.replace(allocation="fixed")))


# ---------------------------------------------------------------------- special cases


@examples(50)
@given(
    tiny(
        zero_weights=False,
        unreachable=False,
        request={
            "min_retention": 1.0, "min_token_retention": 0.0, "max_experts": None, "candidates": "top-k",
        },
    )
)  # fmt: skip
def test_full_retention_leaves_only_bandwidth(problem: Problem) -> None:
    """At floor 1 with positive weights the best selection is plain top-k: P-LAT is P-BW."""
    weights = np.asarray(problem.instance.gate_weights)
    assume(weights[problem.allowed].min() > 1e-6)
    same(wo.solve(problem, "topk").latency, optimum(problem), ROUNDING)


@examples(30)
@given(tiny(blocks=2, devices=2, allocations=("shared",), limits=False, kinds=RADIO))
def test_bandwidth_of_plain_top_k_is_the_best_one(problem: Problem) -> None:
    """P-BW agrees with a golden section over the shares in plain Python."""
    found = wo.solve(problem, "topk")
    arrays = problem.instance.arrays()
    least = oracles.least_latency(arrays, problem.top_k_keep, dispatch=problem.dispatch, steps=100)
    same(least, found.latency, 1e-9)


@examples(50)
@given(instances(devices=1, unreachable=False, blocks=2), st.sampled_from(("shared", "per-block", "fixed")))
def test_one_device_is_closed_form(instance: Instance, allocation: str) -> None:
    """With one device: activation, delay, and tokens times one transfer at all the bandwidth, and compute."""
    problem = Problem(instance, allocation=allocation)
    found = wo.solve(problem, "topk")
    f = oracles.facts(instance.arrays())
    width = min(f.total, f.high[0])
    expected = 0.0
    for i in range(f.blocks):
        used = [e for token in f.ids[i] for e in token[: f.top_k] if e >= 0]
        work = sum(f.activation[e] for e in set(used)) + sum(f.compute[e] for e in used)
        expected += f.link_delay[0] + len(used) * oracles.link_seconds(f, i, 0, width) + work
    same(expected, found.latency, ROUNDING)
    if problem.instance.tokens <= 5:
        at_most(optimum(problem), found.latency)


# ---------------------------------------------------------------------- answers


@examples(50)
@given(tiny())
def test_alternating_is_never_worse_than_its_starts(problem: Problem) -> None:
    """Neither than plain top-k at its best bandwidth nor than greedy, where those keep the floors."""
    found = wo.solve(problem, "alternating")
    assert found.feasible
    for start in ("topk", "topk-uniform", "greedy"):
        begun = wo.solve(problem, start)
        if begun.feasible:
            at_most(found.latency, begun.latency)
    values: dict[int, list[float]] = {}
    for record in found.trace:
        values.setdefault(record["block"], []).append(record["objective"])
    for path in values.values():
        for before, after in pairwise(path):
            at_most(after, before, SAME)


@examples(40)
@given(tiny(blocks=1, tokens=4))
def test_a_session_equals_a_cold_solve(problem: Problem) -> None:
    """A session's answers, first and warm, enclose the optimum; to the bit where it calls `certified`."""
    session = wo.Session(problem)
    best, cold = optimum(problem), wo.solve(problem, "certified")
    for _ in range(2):
        found = session.solve().to_solution()
        assert found.feasible
        at_most(found.lower_bound, best)
        at_most(best, found.latency)
        if problem.allocation == "fixed" or problem.dispatch == "device":
            assert found.latency == cold.latency
            assert np.array_equal(found.keep, cold.keep)
        else:
            at_most(found.latency, cold.latency, max(cold.gap, 1e-3))
            at_most(cold.latency, found.latency, max(found.gap, 1e-3))


@examples(40)
@given(problems(), st.sampled_from((".npz", ".json")))
def test_files_give_back_what_they_were_given(problem: Problem, ending: str) -> None:
    """Saving and loading an instance or a solution is the identity."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"instance{ending}"
        problem.instance.save(path)
        again = Instance.load(path)
        _compared["times"] += 1
        assert again.digest == problem.instance.digest
        for name, value in problem.instance.arrays().items():
            assert np.array_equal(value, again.arrays()[name])
        solution = wo.solve(problem, "topk")
        solution.save(Path(folder) / "solution.npz")
        loaded = wo.Solution.load(Path(folder) / "solution.npz")
    assert loaded.problem.digest == problem.digest
    assert loaded.latency == solution.latency
    assert np.array_equal(loaded.keep, solution.keep)
    assert np.array_equal(loaded.bandwidth, solution.bandwidth)
    assert loaded.termination == solution.termination
