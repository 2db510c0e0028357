"""Problems: what is refused and how, candidates, equal shares, variants."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import wdmoe_opt as wo
from wdmoe_opt.testing.arrays import Shape, loads_arrays, measured_arrays, random_arrays
from wdmoe_opt.testing.oracles import facts
from wdmoe_opt.testing.strategies import array_sets

NAN, INF = float("nan"), float("inf")


def tokens(**change: Any) -> wo.Instance:
    """Two blocks, two tokens, three candidates, top-2, three devices."""
    arrays = {
        "expert_ids": [[[0, 1, 2], [1, 0, -1]], [[2, 1, 0], [0, 2, 1]]],
        "gate_weights": [[[0.5, 0.3, 0.1], [0.6, 0.4, 0.0]], [[0.7, 0.2, 0.1], [0.4, 0.4, 0.2]]],
        "top_k": 2, "compute_time": 1e-4, "gain_down": 3 * [1e-9], "gain_up": 3 * [1e-9], "power_down": 1.0,
        "power_up": 0.2, "noise_density": 4e-21, "total_bandwidth": 3e6, "bits_down": 1e4, "bits_up": 1e4,
        **change,
    }  # fmt: skip
    return wo.Instance.from_arrays(**arrays)


def loads() -> wo.Instance:
    return wo.Instance.from_arrays(**loads_arrays(Shape(), 1))


def measured() -> wo.Instance:
    return wo.Instance.from_arrays(**measured_arrays(Shape(), 1))


CHOOSE = "unknown name; choose from"
OBJECTIVES = "latency, retention, wlr-block, wlr-device, wlr-token"
BAD: list[tuple[Any, dict[str, Any], str]] = [
    (lambda: 5, {}, "instance: must be an Instance, got int"),
    (tokens, {"objective": "speed"}, f"objective = 'speed': {CHOOSE} {OBJECTIVES}"),
    (tokens, {"objective": "latancy"}, f"objective = 'latancy': {CHOOSE} {OBJECTIVES}"),
    (tokens, {"objective": 5}, f"objective = 5: {CHOOSE} {OBJECTIVES}"),
    (tokens, {"allocation": "per_block"}, f"allocation = 'per_block': {CHOOSE} per-block, fixed, shared"),
    (tokens, {"dispatch": ["expert"]}, f"dispatch = ['expert']: {CHOOSE} expert, device"),
    (tokens, {"min_retention": -0.1}, "min_retention = -0.1: must be at least 0"),
    (tokens, {"min_retention": 1.5}, "min_retention = 1.5: must be at most 1"),
    (tokens, {"min_retention": [0.5, NAN]}, "min_retention[1] = nan: must be finite"),
    (tokens, {"min_retention": [0.5] * 3},
     "min_retention: must have shape (2,), (blocks,) or a scalar; got (3,)"),
    (tokens, {"min_token_retention": [0.5, 2.0]}, "min_token_retention[1] = 2.0: must be at most 1"),
    (tokens, {"min_token_retention": "all"}, "min_token_retention: must hold real numbers, got dtype <U3"),
    (tokens, {"max_experts": 0}, "max_experts = 0: must be 1 to 2147483647"),
    (tokens, {"max_experts": 1.0}, "max_experts = 1.0: must be a whole number"),
    (tokens, {"candidates": 1}, "candidates = 1: must be at least top_k = 2 and at most m = 3"),
    (tokens, {"candidates": 4}, "candidates = 4: must be at least top_k = 2 and at most m = 3"),
    (tokens, {"candidates": "all"}, "candidates = 'all': must be 'top-k' or a whole number"),
    (tokens, {"candidates": 2.5}, "candidates = 2.5: must be a whole number"),
    (tokens, {"bandwidth": [1e6] * 3},
     "bandwidth: can only be given with allocation 'fixed' on a radio link"),
    (tokens, {"allocation": "fixed", "bandwidth": [1e6] * 2},
     "bandwidth: must have shape (3,) or (2, 3); got (2,)"),
    (tokens, {"allocation": "fixed", "bandwidth": [1e6, NAN, 1e6]}, "bandwidth[1] = nan: must be finite"),
    (tokens, {"allocation": "fixed", "bandwidth": [1e6, -1e6, 1e6]}, "bandwidth[1] = -1000000.0: must be at "
     "least 0"),
    (tokens, {"allocation": "fixed", "bandwidth": [2e6] * 3},
     "bandwidth = 6000000.0: must sum to at most total_bandwidth = 3000000.0"),
    (tokens, {"max_latency": 0.0}, "max_latency = 0.0: must be greater than 0"),
    (tokens, {"objective": "retention"}, "max_latency: is required with objective 'retention'"),
    (loads, {"objective": "wlr-token"},
     "objective = 'wlr-token': must be 'latency': the instance has loads only, no gate weights"),
    (loads, {"candidates": 2}, "candidates: cannot be set: the instance has loads only, no selection"),
    (loads, {"max_experts": 2}, "candidates: cannot be set: the instance has loads only, no selection"),
    (loads, {"dispatch": "device"}, "dispatch: cannot be 'device': the instance has loads only"),
    (measured, {},
     "allocation = 'shared': must be 'fixed': the instance's measured link has no bandwidth knob"),
    (measured, {"allocation": "fixed", "bandwidth": [1.0] * 3},
     "bandwidth: can only be given with allocation 'fixed' on a radio link"),
    (lambda: tokens(gain_up=[1e-9, 0.0, 1e-9], gain_down=[0.0, 1e-9, 1e-9]), {},
     "expert_ids[0, 0] = [0, 1]: none of the token's experts is on a device that can be reached"),
    (lambda: loads().replace(loads=[[5, 1, 1]], gain_up=[0.0] * 3), {},
     "loads[0, 0] = 5: must be 0 on a device that cannot be reached"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "request_", "message"), BAD, ids=[message[:40] for *_, message in BAD])
def test_bad_requests_are_refused_with_the_whole_story(
    make: Any, request_: dict[str, Any], message: str
) -> None:
    """Field, first bad index, value and rule, in an InputError."""
    with pytest.raises(wo.InputError) as caught:
        wo.Problem(make(), **request_)
    assert str(caught.value) == message


KEEP_SHAPE = "keep: must have shape (2, 2, 3), (blocks, tokens, m) as expert_ids; got"


@pytest.mark.parametrize(
    ("keep", "bandwidth", "message"),
    [
        (None, None, "keep: is missing: the instance has tokens to select for"),
        (np.ones((2, 2, 3)), [1e6] * 3, "keep: must be boolean, got dtype float64"),
        (np.full((2, 2, 3), 2), [1e6] * 3, "keep[0, 0, 0] = 2: must be 0 or 1"),
        (np.ones((2, 2), dtype=bool), [1e6] * 3, f"{KEEP_SHAPE} (2, 2)"),
        ("all", [1e6] * 3, f"{KEEP_SHAPE} ()"),
        (np.full((2, 2, 3), None), [1e6] * 3, "keep: must be boolean, got dtype object"),
        (np.ones((2, 2, 3), dtype=bool), None, "bandwidth: is missing: allocation is 'shared'"),
        (np.ones((2, 2, 3), dtype=bool), [1e6, INF, 0.0], "bandwidth[1] = inf: must be finite"),
        (np.ones((2, 2, 3), dtype=bool), np.ones((2, 3)), "bandwidth: must have shape (3,); got (2, 3)"),
        (np.ones((2, 2, 3), dtype=bool), "half", "bandwidth: must hold real numbers, got dtype <U4"),
    ],
)
def test_bad_points_are_refused(keep: Any, bandwidth: Any, message: str) -> None:
    """evaluate() and Solution.from_arrays() check shapes and types the same way."""
    problem = wo.Problem(tokens())
    for price in (wo.evaluate, lambda p, k, b: wo.Solution.from_arrays(p, keep=k, bandwidth=b)):
        with pytest.raises(wo.InputError) as caught:
            price(problem, keep, bandwidth)
        assert str(caught.value) == message


def test_ragged_selection_is_refused() -> None:
    """Lists of unequal length are an InputError, with NumPy's words appended."""
    with pytest.raises(wo.InputError, match=r"^keep: must be a rectangular array \("):
        wo.evaluate(wo.Problem(tokens()), [[[1, 0, 0]], [[1], [0, 1]]], [1e6] * 3)


def test_points_of_loads_and_measured_links() -> None:
    """A selection for loads, and a bandwidth for a measured link, have nothing to act on."""
    with pytest.raises(
        wo.InputError, match=r"^keep: must be None: the instance has loads only, no selection$"
    ):
        wo.evaluate(wo.Problem(loads()), np.ones((2, 3, 2), dtype=bool), [1.0] * 3)
    problem = wo.Problem(measured(), allocation="fixed")
    rule = r"^bandwidth: cannot be given: the instance's measured link has no such knob$"
    with pytest.raises(wo.InputError, match=rule):
        wo.evaluate(problem, problem.top_k_keep, [1.0] * 3)


@given(array_sets(), st.booleans())
def test_allowed_candidates_and_plain_top_k(arrays: dict[str, Any], widen: bool) -> None:
    """Allowed: listed, within the candidates, reachable. Top-k keeps the allowed ones among the first k."""
    inst = wo.Instance.from_arrays(**arrays)
    problem = wo.Problem(inst, candidates=inst.columns if widen else "top-k")
    f = facts(arrays)
    for (i, j, c), allowed in np.ndenumerate(problem.allowed):
        e = f.ids[i][j][c]
        k = f.hosts[e]
        reach = (f.gain_down[i][k] > 0 or f.bits_down == 0) and (f.gain_up[i][k] > 0 or f.bits_up == 0)
        assert allowed == (e >= 0 and reach and (widen or c < f.top_k))
        assert problem.top_k_keep[i, j, c] == (allowed and c < f.top_k)


def test_token_out_of_reach_falls_back_to_its_heaviest_candidate() -> None:
    """With re-routing a token whose whole top-k is out of reach uses the first candidate that is not."""
    inst = tokens(gain_down=[0.0, 0.0, 1e-9], expert_ids=[[[0, 1, 2], [1, 0, 2]], [[2, 1, 0], [0, 2, 1]]])
    problem = wo.Problem(inst, candidates=3)
    assert problem.top_k_keep.astype(int).tolist() == [[[0, 0, 1], [0, 0, 1]], [[1, 0, 0], [0, 1, 0]]]


@given(st.integers(0, 2**20), st.integers(1, 6))
def test_equal_shares_within_limits_are_one_clipped_level(seed: int, devices: int) -> None:
    """Uniform bandwidth: one level for all, clipped to the limits, that uses the budget or every cap."""
    arrays = random_arrays(Shape(devices=devices, limits=True, top_k=1, columns=1), seed)
    if seed % 4 == 0:
        arrays["bandwidth_min"] = arrays["bandwidth_min"] / 2
        arrays["bandwidth_max"] = np.where(seed % 8 == 0, np.inf, 1) * arrays["bandwidth_max"]
        arrays["bandwidth_max"] = np.minimum(arrays["bandwidth_max"], 1e300)
    share = wo.Problem(wo.Instance.from_arrays(**arrays)).uniform_bandwidth
    low, high, total = arrays["bandwidth_min"], arrays["bandwidth_max"], arrays["total_bandwidth"]
    assert share.sum() == pytest.approx(min(total, high.sum()), rel=1e-12)
    assert ((share >= low * (1 - 1e-15)) & (share <= high * (1 + 1e-15))).all()
    # Whoever is above another has a minimum that says so, or the other a maximum.
    for a in range(devices):
        for b in range(devices):
            if share[a] > share[b] * (1 + 1e-9):
                assert share[a] == low[a] or share[b] == high[b]


def test_equal_shares_by_hand() -> None:
    """A minimum of 8 and a cap of 1 out of 12 leave 3 for the third device."""
    inst = tokens(total_bandwidth=12.0, bandwidth_min=[8.0, 0.0, 0.0], bandwidth_max=[12.0, 1.0, 12.0])
    assert wo.Problem(inst).uniform_bandwidth.tolist() == [8.0, 1.0, 3.0]
    inst = inst.replace(total_bandwidth=20.0, bandwidth_max=[20.0, 1.0, 20.0])
    assert wo.Problem(inst).uniform_bandwidth.tolist() == [9.5, 1.0, 9.5]


def test_replace_and_floors_per_block() -> None:
    """replace() keeps the rest; one floor for all blocks survives an instance with other blocks."""
    problem = wo.Problem(tokens(), min_retention=0.9, dispatch="device")
    assert problem.min_retention.tolist() == [0.9, 0.9]
    other = problem.replace(min_retention=[0.5, 0.6])
    assert (other.dispatch, other.min_retention.tolist()) == ("device", [0.5, 0.6])
    longer = wo.Instance.from_arrays(**random_arrays(Shape(blocks=3), 1))
    assert problem.replace(instance=longer).min_retention.tolist() == [0.9] * 3
    with pytest.raises(wo.InputError, match="min_retention"):
        other.replace(instance=longer)
    with pytest.raises(wo.UnknownNameError) as caught:
        problem.replace(min_retension=0.5)
    assert str(caught.value).startswith("Problem = 'min_retension': unknown name; choose from min_retention")


def test_request_arrays_are_read_only_copies() -> None:
    """Floors and fixed bandwidth are the problem's own; derived arrays cannot be written either."""
    floor, width = np.array([0.5, 0.6]), np.full(3, 1e6)
    problem = wo.Problem(tokens(), min_retention=floor, allocation="fixed", bandwidth=width)
    floor[:], width[:] = 0.0, 0.0
    assert problem.min_retention.tolist() == [0.5, 0.6]
    assert problem.fixed_bandwidth.tolist() == [1e6] * 3
    for array in (
        problem.min_retention, problem.bandwidth, problem.allowed, problem.top_k_keep,
        problem.uniform_bandwidth, problem.tables.c_down, problem.tables.mass,
    ):  # fmt: skip
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0


def test_repr_names_the_request() -> None:
    """Objective, allocation, dispatch and floors in one line."""
    text = repr(wo.Problem(tokens(), min_retention=[0.5, 0.9]))
    assert "latency, shared bandwidth, dispatch by expert, retention >= 0.5 to 0.9" in text
