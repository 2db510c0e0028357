"""Instances: what is refused and how, views and copies, constructors, input types."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given

import wdmoe_opt as wo
from wdmoe_opt import units
from wdmoe_opt.testing.arrays import Shape, loads_arrays, measured_arrays, random_arrays
from wdmoe_opt.testing.oracles import facts, price
from wdmoe_opt.testing.strategies import array_sets

NAN, INF = float("nan"), float("inf")


def good(**change: Any) -> dict[str, Any]:
    """Arrays of a small valid instance: 2 blocks, 2 tokens, 3 candidates, 4 experts on 3 devices."""
    return {
        "expert_ids": [[[0, 1, 2], [3, 0, -1]], [[2, 1, 0], [0, 2, 3]]],
        "gate_weights": [[[0.5, 0.3, 0.1], [0.6, 0.4, 0.0]], [[0.7, 0.2, 0.1], [0.4, 0.4, 0.2]]],
        "top_k": 2, "expert_device": [0, 1, 2, 0], "compute_time": [1e-4, 2e-4, 3e-4],
        "gain_down": [1e-9, 2e-9, 3e-9], "gain_up": [1e-9, 2e-9, 3e-9], "power_down": 1.0, "power_up": 0.2,
        "noise_density": 4e-21, "total_bandwidth": 3e6, "bits_down": 1e4, "bits_up": 1e4, **change,
    }  # fmt: skip


def loads(**change: Any) -> dict[str, Any]:
    routing = ("expert_ids", "gate_weights", "top_k", "expert_device")
    kept = {name: value for name, value in good().items() if name not in routing}
    return {**kept, "loads": [[1, 2, 3], [0, 5, 1]], **change}


def measured(**change: Any) -> dict[str, Any]:
    kept = {name: value for name, value in good().items() if name not in wo.Instance.RADIO_FIELDS}
    return {**kept, "token_time_link": [1e-3, 2e-3, INF], **change}


def weights(place: tuple[int, int, int], value: float) -> Any:
    array = np.array(good()["gate_weights"])
    array[place] = value
    return array


def ids(place: tuple[int, int, int], value: int) -> Any:
    array = np.array(good()["expert_ids"])
    array[place] = value
    return array


NOT_NUMBERS = "must hold real numbers, got dtype"
BAD: list[tuple[dict[str, Any], str]] = [
    # numbers that are none
    (good(compute_time=[1e-4, NAN, 1e-4]), "compute_time[1] = nan: must be finite"),
    (good(compute_time=[1e-4, 1e-4, INF]), "compute_time[2] = inf: must be finite"),
    (good(compute_time=[1e-4, -1.0, 1e-4]), "compute_time[1] = -1.0: must be at least 0"),
    (good(activation_time=[0.0, 0.0, -INF]), "activation_time[2] = -inf: must be finite"),
    (good(gain_down=[1e-9, NAN, 0.0]), "gain_down[1] = nan: must be finite"),
    (good(gain_up=[1e-9, -1e-9, 0.0]), "gain_up[1] = -1e-09: must be at least 0"),
    (good(noise_density=0.0), "noise_density = 0.0: must be greater than 0"),
    (good(noise_density=NAN), "noise_density = nan: must be finite"),
    (good(total_bandwidth=-1.0), "total_bandwidth = -1.0: must be greater than 0"),
    (good(power_down=[1.0, 0.0, 1.0]), "power_down[1] = 0.0: must be greater than 0"),
    (good(bits_down=-8.0), "bits_down = -8.0: must be at least 0"),
    (good(bits_down=0.0, bits_up=0.0), "bits_down = 0.0: bits_down and bits_up cannot both be 0"),
    (good(link_delay=-1e-3), "link_delay = -0.001: must be at least 0"),
    (good(noise_density=5e-324), "gain_down[0] = inf: must keep power x gain / noise_density finite"),
    # types
    (good(compute_time=["fast", "slow", "slow"]), f"compute_time: {NOT_NUMBERS} <U4"),
    (good(compute_time=np.array([1e-4, 1e-4, 1e-4], dtype=object)), f"compute_time: {NOT_NUMBERS} object"),
    (good(gain_down=[True, True, False]), f"gain_down: {NOT_NUMBERS} bool"),
    (good(gain_down=np.ones(3) + 0j), f"gain_down: {NOT_NUMBERS} complex128"),
    (good(compute_power="much"), f"compute_power: {NOT_NUMBERS} <U4"),
    (good(compute_power=["1", "2", "3"]), f"compute_power: {NOT_NUMBERS} <U1"),
    (good(compute_power=[1.0, -2.0, NAN]), "compute_power[1] = -2.0: must be finite and at least 0, or "
     "NaN for unknown"),
    (good(top_k=1.5), "top_k = 1.5: must be a whole number"),
    (good(top_k=True), "top_k = True: must be a whole number"),
    (good(name=7), "name = 7: must be a string"),
    (good(provenance="here"), "provenance = 'here': must be a mapping"),
    # shapes
    (good(gain_down=1e-9), "gain_down: must have shape (devices,) or (blocks, devices), got ()"),
    (good(gain_down=[]), "gain_down: must have shape (devices,) or (blocks, devices), got (0,)"),
    (good(gain_up=[1e-9, 1e-9]), "gain_up: must have 3 devices as gain_down has, got shape (2,)"),
    (good(gain_down=np.ones((3, 3))), "gain_down: must have 2 blocks as the routing has, got (3, 3)"),
    (good(compute_time=[1e-4] * 5),
     "compute_time: must have shape (3,) per device or (4,) per expert, got (5,)"),
    (good(link_delay=[0.0, 0.0]), "link_delay: must have shape (3,), (devices,) or a scalar; got (2,)"),
    (good(noise_density=[1e-20]), "noise_density: must have shape (), a scalar; got (1,)"),
    (good(compute_power=[1.0]), "compute_power: must have shape (3,), (devices,); got (1,)"),
    (good(gate_weights=[[[0.5, 0.3]]]),
     "gate_weights: must have shape (2, 2, 3), (blocks, tokens, m) as expert_ids; got (1, 1, 2)"),
    (good(expert_ids=np.zeros((2, 0, 3), dtype=int)),
     "expert_ids: must have shape (blocks, tokens, m), none 0, got (2, 0, 3)"),
    (good(expert_device=[[0, 1]]), "expert_device: must have shape (experts,), got (1, 2)"),
    # routing
    (good(gate_weights=weights((0, 1, 0), -0.1)), "gate_weights[0, 1, 0] = -0.1: must be at least 0"),
    (good(gate_weights=weights((1, 0, 1), NAN)), "gate_weights[1, 0, 1] = nan: must be finite"),
    (good(gate_weights=np.zeros((2, 2, 3))),
     "gate_weights[0, 0] = 0.0: a token's top-k weights must not all be zero"),
    (good(gate_weights=np.where(weights((0, 0, 0), 0.5) > 0, 1.7e308, 0.0)),
     "gate_weights[0, 0] = inf: a token's weights must have a finite sum"),
    (good(gate_weights=weights((1, 1, 2), 0.5)),
     "gate_weights[1, 1, 2] = 0.5: must not rise along a token's candidates"),
    (good(expert_ids=ids((0, 0, 1), 0)), "expert_ids[0, 0] = 0: a token must not list an expert twice"),
    (good(expert_ids=ids((1, 1, 2), 4)), "expert_ids[1, 1, 2] = 4: must name an expert, 0 to 3, or be -1"),
    (good(expert_ids=ids((1, 1, 2), -2)), "expert_ids[1, 1, 2] = -2: must name an expert, 0 to 3, or be -1"),
    (good(expert_ids=ids((0, 0, 1), -1)), "expert_ids[0, 0, 1] = -1: -1 may only trail a token's experts"),
    (good(expert_ids=ids((1, 1, 2), -1)), "gate_weights[1, 1, 2] = 0.2: must be 0 where expert_ids is -1"),
    (good(expert_ids=np.array(good()["expert_ids"]) + 0.5),
     "expert_ids[0, 0, 0] = 0.5: must be whole numbers"),
    (good(expert_ids=np.full((2, 2, 3), 1e300)), "expert_ids[0, 0, 0] = 1e+300: must lie within ±2^53"),
    (good(expert_ids=np.full((2, 2, 3), 2**63, dtype=np.uint64)),
     "expert_ids[0, 0, 0] = 9223372036854775808: must fit a 64-bit signed integer"),
    (good(expert_device=[0, 1, 3, 0]), "expert_device[2] = 3: must name a device, 0 to 2"),
    (good(top_k=0), "top_k = 0: must be at least 1 and at most m = 3"),
    (good(top_k=4), "top_k = 4: must be at least 1 and at most m = 3"),
    # bandwidth limits
    (good(bandwidth_min=2e6), "bandwidth_min = 6000000.0: must sum to at most total_bandwidth = 3000000.0"),
    (good(bandwidth_min=[0.0, 9e5, 0.0], bandwidth_max=5e5), "bandwidth_min[1] = 900000.0: must not exceed "
     "bandwidth_max"),
    (good(bandwidth_max=0.0), "bandwidth_max = 0.0: must be greater than 0"),
    # things that do not go together, or are missing
    (loads(loads=[[1, -2, 3]]), "loads[0, 1] = -2: must be at least 0"),
    (loads(loads=[[1.5, 2, 3]]), "loads[0, 0] = 1.5: must be whole numbers"),
    (loads(loads=[1, 2, 3]), "loads: must have shape (blocks, 3 devices), got (3,)"),
    (loads(top_k=2), "top_k: cannot stand beside loads, which replace the routing"),
    (good(loads=[[1, 2, 3]]), "expert_ids: cannot stand beside loads, which replace the routing"),
    (loads(compute_time=[1e-4] * 4), "compute_time: must have shape (3,) per device, got (4,)"),
    (measured(gain_down=[1e-9] * 3), "gain_down: cannot stand beside token_time_link, which has no bandwidth "
     "knob"),
    (measured(bandwidth_max=1e6),
     "bandwidth_max: cannot stand beside token_time_link, which has no bandwidth knob"),
    (measured(token_time_link=[1e-3, NAN, 1e-3]), "token_time_link[1] = nan: must be at least 0 (inf: "
     "unreachable)"),
    (measured(token_time_link=["1", "2", "3"]), f"token_time_link: {NOT_NUMBERS} <U1"),
    (measured(token_time_link=1e-3), "token_time_link: must have shape (devices,), got ()"),
    (good(gain_up=None), "gain_up: is missing (give all radio fields, or token_time_link alone)"),
    (good(gate_weights=None), "gate_weights: is missing (give expert_ids and gate_weights, or loads)"),
    (good(compute_time=None), "compute_time: is missing"),
]  # fmt: skip


@pytest.mark.parametrize(("arrays", "message"), BAD, ids=[message[:40] for _, message in BAD])
def test_bad_input_is_refused_with_the_whole_story(arrays: dict[str, Any], message: str) -> None:
    """Field, first bad index, value and rule, in an InputError (which is a ValueError)."""
    with pytest.raises(wo.InputError) as caught:
        wo.Instance.from_arrays(**arrays)
    assert str(caught.value) == message
    assert isinstance(caught.value, ValueError)


def test_ragged_arrays_are_refused() -> None:
    """Lists of unequal length, with NumPy's own words appended."""
    with pytest.raises(wo.InputError, match=r"^expert_ids: must be a rectangular array of numbers \("):
        wo.Instance.from_arrays(**good(expert_ids=[[[0, 1], [2]]]))


def test_unknown_key_names_near_ones() -> None:
    """A misspelt field is refused, with suggestions; it is a LookupError too."""
    with pytest.raises(wo.UnknownNameError) as caught:
        wo.Instance.from_arrays(**good(gain_dwn=[1.0]))
    assert str(caught.value).startswith("Instance = 'gain_dwn': unknown name; choose from gain_down, gain_up")
    assert isinstance(caught.value, LookupError)


def test_base_instances_of_this_file_are_valid() -> None:
    """What the table above changes is accepted when nothing is changed."""
    assert (wo.Instance.from_arrays(**good()).experts, wo.Instance.from_arrays(**loads()).tokens) == (4, 0)
    assert wo.Instance.from_arrays(**measured()).reachable.tolist() == [[True, True, False]] * 2


# ------------------------------------------------------------------ views, copies, variants


@given(array_sets())
def test_arrays_give_back_what_went_in(arrays: dict[str, Any]) -> None:
    """arrays() rebuilds an equal instance, key by key."""
    inst = wo.Instance.from_arrays(**arrays)
    again = wo.Instance.from_arrays(**inst.arrays())
    for name, value in inst.arrays().items():
        np.testing.assert_array_equal(again.arrays()[name], value)
    for name, value in arrays.items():
        got = np.asarray(inst.arrays()[name])
        np.testing.assert_array_equal(got, np.broadcast_to(value, got.shape))


def test_arrays_are_read_only_views_or_writable_copies() -> None:
    """Fields cannot be written; arrays(copy=True) is the caller's own, copy=False is the instance's."""
    inst = wo.Instance.from_arrays(**good())
    with pytest.raises(ValueError, match="read-only"):
        inst.gain_down[0] = 1.0
    assert inst.arrays(copy=False)["gain_down"] is inst.gain_down
    mine = inst.arrays()["gain_down"]
    mine[0] = 5.0
    assert inst.gain_down[0] == 1e-9
    for value in (inst.reachable, *inst.arrays(copy=False).values()):
        if isinstance(value, np.ndarray):
            assert not value.flags.writeable


def test_caller_keeps_own_arrays() -> None:
    """Writing to the arrays handed in does not reach the instance, nor are they frozen."""
    gain = np.array([1e-9, 2e-9, 3e-9])
    inst = wo.Instance.from_arrays(**good(gain_down=gain))
    gain[:] = 0.0
    assert inst.gain_down.tolist() == [1e-9, 2e-9, 3e-9]


def test_provenance_is_kept_apart_and_read_only() -> None:
    """The mapping is copied and cannot be written through the instance."""
    source = {"from": "here"}
    inst = wo.Instance.from_arrays(**good(provenance=source))
    source["from"] = "there"
    assert inst.provenance["from"] == "here"
    with pytest.raises(TypeError):
        inst.provenance["from"] = "nowhere"  # type: ignore[index]


def test_replace_changes_one_field_and_none_removes_it() -> None:
    """replace() validates anew, keeps the rest, and None takes a field away."""
    inst = wo.Instance.from_arrays(**good(compute_power=[1.0, 2.0, NAN], name="mine", provenance={"a": 1}))
    other = inst.replace(total_bandwidth=6e6, compute_power=None)
    assert (other.total_bandwidth, other.compute_power, other.name) == (6e6, None, "mine")
    assert dict(other.provenance) == {"a": 1}
    assert inst.total_bandwidth == 3e6
    with pytest.raises(wo.InputError, match=r"^noise_density = -1.0: must be greater than 0$"):
        inst.replace(noise_density=-1.0)
    with pytest.raises(wo.UnknownNameError, match="bandwidth_total"):
        inst.replace(bandwidth_total=1.0)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
@pytest.mark.parametrize("arrays", [good(provenance={"a": [1]}, name="n"), loads(), measured()])
def test_instances_travel_between_processes(duplicate: Any, arrays: dict[str, Any]) -> None:
    """Copied and pickled instances are equal and still read-only."""
    inst = wo.Instance.from_arrays(**arrays)
    again = duplicate(inst)
    assert (again.name, dict(again.provenance)) == (inst.name, dict(inst.provenance))
    for name, value in inst.arrays().items():
        np.testing.assert_array_equal(again.arrays(copy=False)[name], value)
    assert not again.compute_time.flags.writeable


def test_frozen() -> None:
    """Fields cannot be assigned."""
    with pytest.raises(AttributeError):
        wo.Instance.from_arrays(**good()).top_k = 1  # type: ignore[misc]


def test_defaults() -> None:
    """top_k is m, experts are devices, delays and activation are zero."""
    arrays = good(expert_device=None, top_k=None, expert_ids=np.array(good()["expert_ids"]) % 3)
    arrays["expert_ids"] = [[[0, 1, 2], [2, 0, -1]], [[2, 1, 0], [0, 2, 1]]]
    inst = wo.Instance.from_arrays(**arrays)
    assert inst.top_k == 3
    assert inst.expert_device.tolist() == [0, 1, 2]
    assert inst.link_delay.tolist() == inst.activation_time.tolist() == [0.0, 0.0, 0.0]


# ------------------------------------------------------------------ input types


class Foreign:
    """Speaks DLPack and nothing else, as some tensor libraries do."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()


class Elsewhere(Foreign):
    """A tensor that cannot be read from here."""

    def __dlpack__(self, **options: Any) -> Any:
        raise BufferError("lives on another device")


def strided(array: np.ndarray) -> np.ndarray:
    wide = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), dtype=array.dtype)
    wide[..., ::2] = array
    return wide[..., ::2]


FORMS = {
    "float16 and int32": lambda a: a.astype(np.float16 if a.dtype.kind == "f" else np.int32),
    "float32 and int16": lambda a: a.astype(np.float32 if a.dtype.kind == "f" else np.int16),
    "big-endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
    "non-contiguous": strided,
    "reversed twice": lambda a: a[..., ::-1].copy()[..., ::-1],
    "Fortran order": np.asfortranarray,
    "read-only": lambda a: (a.setflags(write=False), a)[1],
    "lists": lambda a: a.tolist(),
    "DLPack": Foreign,
    "whole floats as ids": lambda a: a.astype(np.float64),
}


@pytest.mark.parametrize("form", FORMS)
def test_all_input_forms_give_identical_results(form: str) -> None:
    """Widths, strides, byte orders and DLPack: the same answer to the last bit."""
    arrays = random_arrays(Shape(tokens=9, devices=4, per_device=2, top_k=2, columns=3), 17)
    # Values that every width holds exactly.
    arrays["gate_weights"] = np.sort(np.round(arrays["gate_weights"] * 64) / 64 + 1 / 64, axis=2)[:, :, ::-1]
    arrays["compute_time"] = np.full(4, 2.0**-10)
    convert = FORMS[form]
    other = {**arrays}
    for name in ("expert_ids", "gate_weights", "compute_time", "expert_device"):
        other[name] = convert(np.array(arrays[name]))
    one, two = (wo.solve(wo.Instance.from_arrays(**a), "wdmoe") for a in (arrays, other))
    assert one.latency == two.latency
    np.testing.assert_array_equal(one.keep, two.keep)
    np.testing.assert_array_equal(one.bandwidth, two.bandwidth)


def test_unreadable_tensor_is_refused_by_name() -> None:
    """A DLPack tensor on a device NumPy cannot read is an InputError, not whatever its library raises."""
    with pytest.raises(wo.InputError, match=r"^gain_down: .*lives on another device"):
        wo.Instance.from_arrays(**good(gain_down=Elsewhere(np.ones(3))))


# ------------------------------------------------------------------ other constructors


def test_from_gates_sorts_and_breaks_ties_by_index() -> None:
    """Full gates: falling weights, equal ones in order of expert, cut to the columns wanted."""
    gates = [[[0.1, 0.4, 0.4, 0.1], [0.7, 0.0, 0.3, 0.0]]]
    rest = {
        name: value for name, value in good().items() if name not in ("expert_ids", "gate_weights", "top_k")
    }
    inst = wo.Instance.from_gates(gates, 2, columns=3, **rest)
    assert inst.expert_ids.tolist() == [[[1, 2, 0], [0, 2, 1]]]
    assert inst.gate_weights.tolist() == [[[0.4, 0.4, 0.1], [0.7, 0.3, 0.0]]]
    assert wo.Instance.from_gates(gates, 2, **rest).columns == 4


@pytest.mark.parametrize(
    ("gates", "top_k", "columns", "message"),
    [
        ([[0.1]], 1, None, "gates: must have shape (blocks, tokens, experts), got (1, 1)"),
        ([[[0.5, NAN]]], 1, None, "gates[0, 0, 1] = nan: must be finite"),
        ([[[0.5, -0.5]]], 1, None, "gates[0, 0, 1] = -0.5: must be at least 0"),
        ([[[0.5, 0.5]]], 1, 3, "columns = 3: must be at least 1 and at most the 2 experts"),
        ([[[0.5, 0.5]]], 1, 0, "columns = 0: must be at least 1 and at most the 2 experts"),
        ([[[0.5, 0.5]]], 2, 1, "top_k = 2: must be at least 1 and at most m = 1"),
        ([[[0.0, 0.0]]], 1, None, "gate_weights[0, 0] = 0.0: a token's top-k weights must not all be zero"),
    ],
)
def test_from_gates_refuses(gates: Any, top_k: int, columns: int | None, message: str) -> None:
    """Bad gates, and columns that do not fit, by name."""
    rest = {n: v for n, v in good().items() if n not in ("expert_ids", "gate_weights", "top_k")}
    with pytest.raises(wo.InputError) as caught:
        wo.Instance.from_gates(gates, top_k, columns=columns, **{**rest, "expert_device": [0, 1]})
    assert str(caught.value) == message


COMMON: dict[str, Any] = {
    "path_loss_db": [80.0, 90.0, INF], "power_down_dbm": 40.0, "power_up_dbm": 23.0,
    "noise_dbm_per_hz": -174.0, "total_bandwidth_mhz": 100.0, "bits_per_value": 16,
    "width": 4096, "link_delay_ms": 2.0,
    "activation_ms": [1.0, 2.0, 3.0], "expert_ids": [[[0, 1]]], "gate_weights": [[[0.6, 0.4]]],
}  # fmt: skip


def test_from_common_units_converts_every_unit() -> None:
    """DB, dBm, MHz, ms and TFLOP/s to SI, by hand; an infinite path loss is out of reach."""
    inst = wo.Instance.from_common_units(**COMMON, flop_per_token=6e8, device_tflops=[1.0, 2.0, 4.0])
    np.testing.assert_allclose(inst.gain_down, [1e-8, 1e-9, 0.0], rtol=1e-12)
    np.testing.assert_array_equal(inst.gain_up, inst.gain_down)
    np.testing.assert_allclose(inst.power_down, 10.0, rtol=1e-12)
    np.testing.assert_allclose(inst.power_up, 10**-0.7, rtol=1e-12)
    assert inst.noise_density == pytest.approx(10**-20.4, rel=1e-12)
    assert (inst.total_bandwidth, inst.bits_down, inst.bits_up) == (1e8, 65536.0, 65536.0)
    np.testing.assert_allclose(inst.link_delay, 2e-3, rtol=1e-12)
    np.testing.assert_allclose(inst.activation_time, [1e-3, 2e-3, 3e-3], rtol=1e-12)
    np.testing.assert_allclose(inst.compute_time, [6e-4, 3e-4, 1.5e-4], rtol=1e-12)
    assert inst.reachable.tolist() == [[True, True, False]]


def test_from_common_units_pairs_experts_with_their_devices() -> None:
    """Work per expert over the rate of its device; also where there are as many experts as devices."""
    more = {**COMMON, "expert_device": [2, 0, 1], "path_loss_db": [80.0, 90.0, 85.0]}
    flop, tflops = [1e9, 2e9, 4e9], [1.0, 10.0, 100.0]
    inst = wo.Instance.from_common_units(**more, flop_per_token=flop, device_tflops=tflops)
    per_expert = [1e9 / 100e12, 2e9 / 1e12, 4e9 / 10e12]
    np.testing.assert_allclose(inst.per_expert(inst.compute_time), per_expert, rtol=1e-12)
    inst = wo.Instance.from_common_units(**more, flop_per_token=flop, device_tflops=1.0)
    np.testing.assert_allclose(inst.per_expert(inst.compute_time), [1e-3, 2e-3, 4e-3], rtol=1e-12)
    many = {**more, "expert_device": [2, 0, 1, 0]}
    inst = wo.Instance.from_common_units(**many, flop_per_token=[*flop, 8e9], device_tflops=tflops)
    np.testing.assert_allclose(inst.per_expert(inst.compute_time), [*per_expert, 8e9 / 1e12], rtol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path_loss_db": ["far"] * 3}, f"path_loss_db: {NOT_NUMBERS} <U3"),
        ({"path_loss_db": [NAN, 1.0, 1.0]}, "path_loss_db[0] = nan: must be a number or +inf"),
        ({"path_loss_db": [-INF, 1.0, 1.0]}, "path_loss_db[0] = -inf: must be a number or +inf"),
        ({"width": -1}, "width = -1: must be at least 1"),
        ({"width": "4k"}, "width = '4k': must be a whole number"),
        ({"power_up_dbm": NAN}, "power_up_dbm = nan: must be finite"),
        ({"device_tflops": 1.0}, "device_tflops: device_tflops and flop_per_token must be given together"),
        ({"device_tflops": 0.0, "flop_per_token": 1e9}, "device_tflops = 0.0: must be greater than 0"),
        (
            {"device_tflops": [1.0, 1.0], "flop_per_token": [1e9, 1e9, 1e9]},
            "device_tflops: must have shape (3,), (devices,) or a scalar; got (2,)",
        ),
        (
            {"device_tflops": 1.0, "flop_per_token": [1e9, 1e9]},
            "flop_per_token: must have shape (3,), (experts,) or a scalar; got (2,)",
        ),
        (
            {"device_tflops": 1.0, "flop_per_token": [1e9, 2e9, 1e9], "expert_device": [0, 0, 1]},
            "flop_per_token[0] = 1000000000.0: must be equal for experts of one device while there are as "
            "many experts as devices",
        ),
    ],
)
def test_from_common_units_refuses(change: dict[str, Any], message: str) -> None:
    """The constructor's own arguments are checked by their own names."""
    with pytest.raises(wo.InputError) as caught:
        wo.Instance.from_common_units(**{"compute_time": 1e-4, **COMMON, **change})
    assert str(caught.value) == message


def test_units_by_hand() -> None:
    """Conversions with numbers from a table."""
    assert float(units.dbm_to_watt(30.0)) == pytest.approx(1.0)
    assert float(units.db_to_ratio(3.0)) == pytest.approx(1.9952623)
    assert float(units.path_loss_db_to_gain(INF)) == 0.0
    assert float(units.free_space_path_loss_db(100.0, 3.5)) == pytest.approx(83.281, abs=1e-3)
    assert units.expert_flop_per_token(4096, 14336) == 352_321_536
    assert units.bits_per_token(16, 4096) == 65536


def test_times_per_expert_or_per_device() -> None:
    """As many numbers as devices are per device; as many as experts, per expert."""
    for times in ([1e-4, 2e-4, 3e-4], [1e-4, 2e-4, 3e-4, 4e-4]):
        arrays = good(compute_time=times)
        inst = wo.Instance.from_arrays(**arrays)
        assert inst.per_expert(inst.compute_time).tolist() == facts(arrays).compute


@pytest.mark.parametrize("make", [loads_arrays, measured_arrays, random_arrays])
def test_repr_is_short(make: Any) -> None:
    """One line with sizes."""
    text = repr(wo.Instance.from_arrays(**make(Shape(), 1)))
    assert text.startswith("<Instance unnamed: 2 blocks")
    assert "\n" not in text


def test_scalar_link_fields_apply_to_all_devices() -> None:
    """A scalar power or delay means the same for every device, down to the price."""
    scalar, spread = good(link_delay=1e-3), good(link_delay=[1e-3] * 3, power_down=[1.0] * 3)
    keep = np.array([[[1, 1, 0], [1, 1, 0]]] * 2)
    got = [
        wo.evaluate(wo.Problem(wo.Instance.from_arrays(**a)), keep, [1e6] * 3).latency
        for a in (scalar, spread)
    ]
    assert got[0] == got[1] == pytest.approx(price(scalar, keep, [1e6] * 3).latency, rel=1e-12)
