"""evaluate() against loops in plain Python, its properties, and the shipped instances recomputed."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import wdmoe_opt as wo
from wdmoe_opt.metrics import unpriced
from wdmoe_opt.testing.arrays import Shape, loads_arrays, measured_arrays, random_arrays, random_keep
from wdmoe_opt.testing.oracles import facts, price
from wdmoe_opt.testing.strategies import array_sets, shapes

DISPATCH = st.sampled_from(["expert", "device"])
ALLOCATION = st.sampled_from(["shared", "per-block", "fixed"])
SEED = st.integers(0, 2**20)


def problem_of(arrays: dict[str, Any], **request: Any) -> wo.Problem:
    return wo.Problem(wo.Instance.from_arrays(**arrays), **request)


def random_bandwidth(arrays: dict[str, Any], seed: int, *, rows: bool) -> np.ndarray:
    """Positive shares that sum to the budget, one row or one per block."""
    f = facts(arrays)
    size = f.blocks if rows else None
    shares = np.random.default_rng(seed).dirichlet(np.full(f.devices, 2.0), size)
    return (shares + 1e-6) / (1 + 1e-6 * f.devices) * f.total


def assert_same(got: wo.Evaluation, want: SimpleNamespace, *, rel: float = 1e-9) -> None:
    """Every number of an evaluation equals the plain recomputation."""
    assert got.latency == pytest.approx(want.latency, rel=rel)
    assert got.retention == pytest.approx(want.retention, rel=rel)
    names = ("block_latency", "device_time", "link_time", "transfers", "expert_load", "block_retention")
    for name in names:
        np.testing.assert_allclose(getattr(got, name), getattr(want, name), rtol=rel, err_msg=name)
    if want.token_retention:
        np.testing.assert_allclose(got.token_retention, want.token_retention, rtol=rel)
        assert set(got.wlr) == set(wo.WLR_READINGS)
        for name, values in want.wlr.items():
            np.testing.assert_allclose(got.block_wlr[name], values, rtol=rel, err_msg=name)
            assert got.wlr[name] == pytest.approx(sum(values) / len(values), rel=rel)
    else:
        assert got.wlr == {}
    assert got.transmit_energy.sum() == pytest.approx(sum(want.transmit_energy), rel=rel, nan_ok=True)


@given(array_sets(), SEED, DISPATCH, ALLOCATION)
def test_random_points_match_plain_python(
    arrays: dict[str, Any], seed: int, dispatch: str, allocation: str
) -> None:
    """Latency, times, loads, retention, WLR readings and transmit energy of random selections and shares."""
    bandwidth = random_bandwidth(arrays, seed, rows=allocation == "per-block")
    request = {"bandwidth": bandwidth} if allocation == "fixed" else {}
    columns = np.shape(arrays["expert_ids"])[2]
    problem = problem_of(arrays, dispatch=dispatch, allocation=allocation, candidates=columns, **request)
    keep = random_keep(problem, seed)
    got = wo.evaluate(problem, keep, None if allocation == "fixed" else bandwidth)
    assert_same(got, price(arrays, keep, bandwidth, dispatch=dispatch))
    if allocation != "fixed" and "bandwidth_min" not in arrays:
        assert got.feasible, got.violations


@given(shapes(unreachable=False), SEED, ALLOCATION)
def test_loads_only_match_plain_python(shape: Shape, seed: int, allocation: str) -> None:
    """Instances with loads alone: times and latency; retention is one, there is no WLR."""
    arrays = loads_arrays(shape, seed)
    bandwidth = random_bandwidth(arrays, seed, rows=allocation == "per-block")
    request = {"bandwidth": bandwidth} if allocation == "fixed" else {}
    got = wo.evaluate(
        problem_of(arrays, allocation=allocation, **request),
        bandwidth=None if allocation == "fixed" else bandwidth,
    )
    assert_same(got, price(arrays, None, bandwidth))
    assert got.retention == 1.0


@given(shapes(), SEED, DISPATCH)
def test_measured_link_matches_plain_python(shape: Shape, seed: int, dispatch: str) -> None:
    """Instances with a measured link: no bandwidth enters, and transmit energy is unknown."""
    arrays = measured_arrays(shape, seed)
    problem = problem_of(arrays, allocation="fixed", dispatch=dispatch)
    keep = random_keep(problem, seed)
    got = wo.evaluate(problem, keep)
    want = price(arrays, keep, None, dispatch=dispatch)
    want.transmit_energy = [math.nan]
    assert_same(got, want)
    assert got.bandwidth is None


@given(array_sets(), SEED, st.booleans())
def test_energy_adds_transmission_and_known_compute_power(
    arrays: dict[str, Any], seed: int, everyone: bool
) -> None:
    """Compute energy is watts times activation and compute seconds; unknown watts count for nothing."""
    rng = np.random.default_rng(seed)
    devices = facts(arrays).devices
    watts = rng.uniform(1, 40, devices)
    if not everyone:
        watts[rng.integers(devices)] = np.nan
    arrays = {**arrays, "compute_power": watts}
    problem = problem_of(arrays)
    keep = random_keep(problem, seed)
    bandwidth = random_bandwidth(arrays, seed, rows=False)
    got, want = wo.evaluate(problem, keep, bandwidth), price(arrays, keep, bandwidth)
    known = [e for e in want.compute_energy if not math.isnan(e)]
    np.testing.assert_allclose(got.compute_energy.ravel(), want.compute_energy, rtol=1e-9)
    assert got.energy == pytest.approx(sum(want.transmit_energy) + sum(known), rel=1e-9)


def test_compute_energy_survives_a_long_link_delay() -> None:
    """A link delay of an hour does not swallow microseconds of computing."""
    arrays = {**random_arrays(Shape(), 1), "link_delay": 3600.0, "compute_power": np.full(3, 10.0)}
    arrays["compute_time"] = np.full(3, 1e-6)
    problem = problem_of(arrays)
    keep = random_keep(problem, 0)
    bandwidth = random_bandwidth(arrays, 0, rows=False)
    want = price(arrays, keep, bandwidth)
    np.testing.assert_allclose(
        wo.evaluate(problem, keep, bandwidth).compute_energy.ravel(), want.compute_energy, rtol=1e-12
    )


@pytest.mark.compiled
def test_energy_of_a_point_without_service_is_infinite_and_silent() -> None:
    """A loaded device with no bandwidth or no channel costs infinite energy, without a warning."""
    arrays = random_arrays(Shape(), 2)
    problem = problem_of(arrays)
    point = wo.evaluate(problem, problem.top_k_keep, np.zeros(3))
    assert point.latency == math.inf
    assert point.energy == math.inf
    assert [v.constraint for v in point.violations] == ["device_time"]


# ------------------------------------------------------------------ violations


def small(**more: Any) -> dict[str, Any]:
    """Two blocks, two tokens, three experts on three devices, the last one only in the third column."""
    return {
        "expert_ids": [[[0, 1, 2], [1, 0, -1]], [[2, 1, 0], [0, 2, 1]]],
        "gate_weights": [[[0.5, 0.3, 0.1], [0.6, 0.4, 0.0]], [[0.7, 0.2, 0.1], [0.4, 0.4, 0.2]]],
        "top_k": 2, "compute_time": [1e-4, 2e-4, 3e-4], "gain_down": 3 * [1e-9], "gain_up": 3 * [1e-9],
        "power_down": 1.0, "power_up": 0.2, "noise_density": 4e-21, "total_bandwidth": 3e6,
        "bits_down": 1e4, "bits_up": 1e4, **more,
    }  # fmt: skip


EQUAL = np.full(3, 1e6)
TOP_2 = np.array([[[1, 1, 0], [1, 1, 0]], [[1, 1, 0], [1, 1, 0]]])


def violations(
    arrays: dict[str, Any], keep: Any, bandwidth: Any, **request: Any
) -> list[tuple[str, tuple[int, ...], float, float, int]]:
    found = wo.evaluate(problem_of(arrays, **request), keep, bandwidth).violations
    return [(v.constraint, v.index, v.value, v.limit, v.count) for v in found]


def test_plain_point_violates_nothing() -> None:
    """Top-2 at equal shares keeps every rule, even floors of one."""
    assert violations(small(), TOP_2, EQUAL, min_retention=1.0, min_token_retention=1.0) == []


@pytest.mark.parametrize(
    ("change", "request_", "want"),
    [
        ({(0, 1): [0, 0, 0]}, {}, ("experts per token", (0, 1), 0.0, 1.0, 1)),
        ({(1, 0): [0, 0, 0], (1, 1): [0, 0, 0]}, {}, ("experts per token", (1, 0), 0.0, 1.0, 2)),
        ({(0, 0): [0, 0, 1]}, {}, ("keep outside candidates", (0, 0), 1.0, 0.0, 1)),
        ({(0, 1): [1, 0, 1]}, {"candidates": 3}, ("keep outside candidates", (0, 1), 1.0, 0.0, 1)),
        ({}, {"max_experts": 1}, ("max_experts", (0, 0), 2.0, 1.0, 4)),
        ({(1, 0): [1, 1, 1]}, {"max_experts": 1, "candidates": 3}, ("max_experts", (1, 0), 3.0, 1.0, 4)),
        ({(1, 1): [1, 0, 0]}, {"min_retention": [0.1, 0.8]}, ("min_retention", (1,), 0.75, 0.8, 1)),
        (
            {(1, 1): [1, 0, 0], (0, 0): [1, 0, 0], (0, 1): [1, 0, 0]},
            {"min_token_retention": 0.7},
            ("min_token_retention", (1, 1), 0.5, 0.7, 3),
        ),
    ],
)
def test_selection_violations(
    change: dict[tuple[int, int], list[int]], request_: dict[str, Any], want: tuple[Any, ...]
) -> None:
    """Each selection rule, broken alone, is reported once with place, value, limit and count."""
    keep = TOP_2.copy()
    for place, row in change.items():
        keep[place] = row
    (found,) = violations(small(), keep, EQUAL, **request_)
    assert found == (*want[:2], pytest.approx(want[2]), *want[3:])


@pytest.mark.parametrize(
    ("bandwidth", "fields", "want"),
    [
        ([1e6, 1e6, 1.1e6], {}, ("total_bandwidth", (), 3.1e6, 3e6, 1)),
        ([1e6, 1e6, 0.5e6], {"bandwidth_min": 0.9e6}, ("bandwidth_min", (2,), 0.5e6, 0.9e6, 1)),
        ([1.4e6, 1.2e6, 0.4e6], {"bandwidth_max": 1.1e6}, ("bandwidth_max", (0,), 1.4e6, 1.1e6, 2)),
        ([1e6, 1e6, 0.0], {}, ("device_time", (1, 2), math.inf, math.inf, 1)),
    ],
)
def test_bandwidth_violations(bandwidth: list[float], fields: dict[str, Any], want: tuple[Any, ...]) -> None:
    """Each bandwidth rule, broken alone, is reported once with place, value, limit and count."""
    (found,) = violations(small(**fields), TOP_2, bandwidth)
    assert found == (*want[:2], pytest.approx(want[2]), *want[3:])


def test_what_is_kept_outside_candidates_is_priced_all_the_same() -> None:
    """A stray pair loads its expert, also the first one."""
    keep = TOP_2.copy()
    keep[1, 0] = [1, 0, 1]
    found = wo.evaluate(problem_of(small()), keep, EQUAL)
    np.testing.assert_array_equal(found.expert_load, [[2, 2, 0], [2, 0, 2]])
    assert found.token_retention[1, 0] == pytest.approx(0.8 / 0.9)


def test_a_block_without_any_load_takes_no_time_and_has_no_ratio() -> None:
    """Nothing over nothing is nothing here."""
    keep = TOP_2.copy()
    keep[1] = 0
    found = wo.evaluate(problem_of(small()), keep, EQUAL)
    assert found.block_latency[1] == 0.0
    assert [ratios[1] for ratios in found.block_wlr.values()] == [0.0, 0.0, 0.0]
    assert found.token_retention[1].tolist() == [0.0, 0.0]


def test_known_loads_have_no_tokens() -> None:
    """Blocks without tokens: nothing per token, and all of the weight."""
    found = wo.evaluate(problem_of(loads_arrays(Shape(blocks=2, devices=3), 0)), None, EQUAL)
    assert found.token_retention.shape == (2, 0)
    assert found.block_retention.tolist() == [1.0, 1.0]


def test_devices_without_service_are_counted_and_the_first_is_named() -> None:
    """Two blocks, two starved devices."""
    found = violations(small(), TOP_2, [0.0, 1e6, 0.0])
    assert found == [("device_time", (0, 0), math.inf, math.inf, 3)]


def test_negative_bandwidth_is_reported() -> None:
    """A negative share is a violation of its own, and its device never answers."""
    found = violations(small(), TOP_2, [1e6, -2e6, 1e6])
    assert found[0][0] == "device_time"
    assert found[1:] == [(name, (1,), -2e6, 0.0, 1) for name in ("bandwidth", "bandwidth_min")]
    only_first = np.array([[[1, 0, 0], [0, 1, 0]], [[0, 0, 1], [1, 0, 0]]])
    least = violations(small(), only_first, [1e6, 0.0, -1e-3], candidates=3)
    assert least == [("bandwidth", (2,), -1e-3, 0.0, 1)]


def test_other_bandwidth_than_the_fixed_one_is_reported() -> None:
    """With allocation "fixed" every other bandwidth is a violation."""
    (found,) = violations(small(), TOP_2, [1e6, 1.5e6, 0.5e6], allocation="fixed")
    assert found == ("bandwidth (fixed)", (1,), 1.5e6, 1e6, 2)
    assert violations(small(), TOP_2, EQUAL.copy(), allocation="fixed") == []


def test_latency_cap_is_reported() -> None:
    """A total latency above max_latency is a violation; the objective "retention" needs the cap."""
    got = wo.evaluate(problem_of(small(), objective="retention", max_latency=1e-4), TOP_2, EQUAL)
    (violation,) = got.violations
    assert (violation.constraint, violation.index, violation.limit) == ("max_latency", (), 1e-4)
    assert violation.value == got.latency
    assert got.objective == got.retention == 1.0
    for part, broken in ((1.0, 0), (1 - 0.9e-9, 0), (1 - 2e-9, 1)):
        cap = part * got.latency
        again = wo.evaluate(problem_of(small(), objective="retention", max_latency=cap), TOP_2, EQUAL)
        assert len(again.violations) == broken


def test_words_of_a_violation() -> None:
    """One line: family, place, value, limit, and how many more there are."""
    assert str(wo.Violation("total_bandwidth", (), 3.1e6, 3e6)) == "total_bandwidth = 3.1e+06, limit 3e+06"
    assert wo.Violation("total_bandwidth", (), 3.1e6, 3e6).count == 1
    worst = wo.Violation("min_retention", (1, 0), 0.75, 0.8, 3)
    assert str(worst) == "min_retention[1, 0] = 0.75, limit 0.8 (worst of 3)"


def test_prices_cannot_be_edited() -> None:
    """Neither an evaluation nor what it found broken, and no array of them."""
    found = wo.evaluate(problem_of(small()), TOP_2, EQUAL * 2)
    for thing, name in ((found, "latency"), (found.violations[0], "limit")):
        with pytest.raises(FrozenInstanceError):
            setattr(thing, name, 0.0)
    arrays = [value for value in vars(found).values() if isinstance(value, np.ndarray)]
    assert len(arrays) >= 7
    assert not any(value.flags.writeable for value in arrays if value is not found.bandwidth)


def test_no_point_has_no_price() -> None:
    """What was not found is infeasible, and says so."""
    nothing = unpriced(problem_of(small()))
    assert nothing.latency == math.inf
    assert math.isnan(nothing.retention)
    assert not nothing.feasible
    assert str(nothing.violations[0]) == "points found = 0, limit 1"


def test_tolerance_is_relative_1e_9() -> None:
    """A billionth over the budget is forgiven, two are not."""
    for factor, broken in ((1 + 0.9e-9, 0), (1 + 2e-9, 1)):
        assert len(violations(small(), TOP_2, EQUAL * factor)) == broken


# ------------------------------------------------------------------ properties


@given(array_sets(gains_per_block=False), SEED, DISPATCH)
def test_token_order_does_not_matter(arrays: dict[str, Any], seed: int, dispatch: str) -> None:
    """Permuting the tokens leaves every device time as it is."""
    keep = random_keep(problem_of(arrays), seed)
    order = np.random.default_rng(seed).permutation(keep.shape[1])
    turned = {**arrays, **{n: arrays[n][:, order] for n in ("expert_ids", "gate_weights")}}
    bandwidth = random_bandwidth(arrays, seed, rows=False)
    one = wo.evaluate(problem_of(arrays, dispatch=dispatch), keep, bandwidth)
    two = wo.evaluate(problem_of(turned, dispatch=dispatch), keep[:, order], bandwidth)
    np.testing.assert_allclose(two.device_time, one.device_time, rtol=1e-12)
    np.testing.assert_array_equal(two.token_retention, one.token_retention[:, order])
    for name in wo.WLR_READINGS:
        assert two.wlr[name] == pytest.approx(one.wlr[name], rel=1e-12)


@given(array_sets(hosts=False, per_device=1, times_per_expert=False), SEED)
def test_renaming_devices_with_their_experts_permutes_the_times(arrays: dict[str, Any], seed: int) -> None:
    """Devices and the experts they host may be numbered in any order."""
    f = facts(arrays)
    order = np.random.default_rng(seed).permutation(f.devices)
    new_name = np.argsort(order)
    keep = random_keep(problem_of(arrays), seed)
    bandwidth = random_bandwidth(arrays, seed, rows=False)
    turned = {n: v for n, v in arrays.items() if n != "expert_device"}
    for name, value in turned.items():
        if np.ndim(value) in (1, 2):
            turned[name] = np.asarray(value)[..., order]
    ids = arrays["expert_ids"]
    turned["expert_ids"] = np.where(ids >= 0, new_name[ids], -1)
    one = wo.evaluate(problem_of(arrays), keep, bandwidth)
    two = wo.evaluate(problem_of(turned), keep, bandwidth[order])
    np.testing.assert_allclose(two.device_time, one.device_time[:, order], rtol=1e-12)
    assert two.latency == pytest.approx(one.latency, rel=1e-12)


@given(array_sets(), SEED, st.floats(1e-3, 1e3))
def test_latency_scales_with_all_times(arrays: dict[str, Any], seed: int, factor: float) -> None:
    """Payload, compute, activation and delay times x: latency times x, WLR over x, retention as before."""
    problem = problem_of(arrays)
    keep = random_keep(problem, seed)
    bandwidth = random_bandwidth(arrays, seed, rows=False)
    scaled = dict(arrays)
    for name in ("bits_down", "bits_up", "compute_time", "activation_time", "link_delay"):
        if name in arrays:
            scaled[name] = arrays[name] * factor
    one, two = wo.evaluate(problem, keep, bandwidth), wo.evaluate(problem_of(scaled), keep, bandwidth)
    assert two.latency == pytest.approx(one.latency * factor, rel=1e-12)
    assert two.retention == one.retention
    for name in wo.WLR_READINGS:
        assert two.wlr[name] == pytest.approx(one.wlr[name] / factor, rel=1e-12)


@given(array_sets(), SEED, st.floats(0.1, 10))
def test_gate_scale_cancels_in_retention(arrays: dict[str, Any], seed: int, factor: float) -> None:
    """Unnormalised gates: retention ignores their scale, WLR is proportional to it."""
    keep = random_keep(problem_of(arrays), seed)
    bandwidth = random_bandwidth(arrays, seed, rows=False)
    scaled = {**arrays, "gate_weights": arrays["gate_weights"] * factor}
    one, two = (wo.evaluate(problem_of(a), keep, bandwidth) for a in (arrays, scaled))
    np.testing.assert_allclose(two.token_retention, one.token_retention, rtol=1e-12)
    for name in wo.WLR_READINGS:
        assert two.wlr[name] == pytest.approx(one.wlr[name] * factor, rel=1e-12)


@given(array_sets(), SEED)
def test_dispatch_by_device_never_sends_more(arrays: dict[str, Any], seed: int) -> None:
    """Sending a token once per device saves transfers exactly where experts of a token share a device."""
    problem = problem_of(arrays)
    keep = random_keep(problem, seed)
    bandwidth = random_bandwidth(arrays, seed, rows=False)
    by_expert = wo.evaluate(problem, keep, bandwidth)
    by_device = wo.evaluate(problem.replace(dispatch="device"), keep, bandwidth)
    assert (by_device.transfers <= by_expert.transfers).all()
    assert by_device.latency <= by_expert.latency * (1 + 1e-12)
    np.testing.assert_array_equal(by_device.expert_load, by_expert.expert_load)
    assert by_device.transfers.sum() <= keep.sum() == by_expert.transfers.sum()


def test_wlr_token_alone_prefers_a_single_expert() -> None:
    """The documented fact: the mean ratio over a token's experts never beats its best single expert."""
    arrays = small()
    best = np.zeros(TOP_2.shape, dtype=bool)
    best[:, :, 0] = True
    single = [wo.evaluate(problem_of(arrays), best, EQUAL).block_wlr["wlr-token"].sum()]
    assert wo.evaluate(problem_of(arrays), TOP_2, EQUAL).block_wlr["wlr-token"].sum() <= single[0]


# ------------------------------------------------------------------ shipped instances


@pytest.mark.compiled
@pytest.mark.parametrize("name", ["deepseek-v2-lite-intent", "gpt-oss-20b-decode"])
@pytest.mark.parametrize("method", ["topk-uniform", "topk", "wdmoe"])
def test_shipped_instances_are_priced_as_plain_python_does(name: str, method: str) -> None:
    """Latency, times, retention and WLR of three methods on two shipped instances, recomputed by loops."""
    inst = wo.load_instance(name)
    solution = wo.solve(inst, method=method)
    want = price(inst.arrays(), solution.keep, solution.bandwidth)
    assert_same(solution.evaluation, want)
    assert solution.feasible
    if method == "topk-uniform":
        np.testing.assert_allclose(solution.bandwidth, inst.total_bandwidth / inst.devices, rtol=1e-12)
        assert solution.retention == pytest.approx(1.0, rel=1e-12)
