"""Hostile values for every field of Instance, Problem, Certificate and the other constructors.

What breaks a single field's own rule stands in tests/test_instance.py and tests/test_problem.py.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from test_instance import COMMON, FORMS, good, loads, measured

import wdmoe_opt as wo
from hostile.table import NOT_FINITE, NOT_NUMBERS, NOT_WHOLE, Nameless, nested, refused, rows

MADE = {"loads": loads, "token_time_link": measured}
FIELDS = [name for name in wo.Instance.ARRAY_FIELDS if name != "top_k"]
#: Fields where NaN or an infinity says something.
OPEN = {"token_time_link", "compute_power"}
REQUEST_FIELDS = ("min_retention", "min_token_retention", "max_latency", "bandwidth")
PRICES = (
    "send",
    "work",
    "wake",
    "share",
    "retention",
    "bandwidth",
    "points",
    "deadline",
    "offset",
    "grid",
    "toll",
)


def instance(**change: Any) -> wo.Instance:
    made = MADE.get(next(iter(change), ""), good)
    return wo.Instance.from_arrays(**made(**change))


def problem(**change: Any) -> wo.Problem:
    return wo.Problem(wo.Instance.from_arrays(**good()), **change)


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize(("value", "message"), rows(NOT_NUMBERS))
def test_instance_fields_refuse_what_is_no_number(field: str, value: Any, message: str) -> None:
    refused(lambda: instance(**{field: value}), f"{field}: {message}")


@pytest.mark.parametrize("field", [name for name in FIELDS if name not in OPEN])
@pytest.mark.parametrize(("value", "spelt"), rows(NOT_FINITE))
def test_instance_fields_refuse_what_is_not_finite(field: str, value: Any, spelt: str) -> None:
    refused(lambda: instance(**{field: value}), f"{field} = {spelt}: must be finite")


@pytest.mark.parametrize(("value", "spelt"), NOT_WHOLE)
@pytest.mark.parametrize("field", ["top_k", "max_experts", "candidates"])
def test_counts_refuse_what_is_not_whole(field: str, value: Any, spelt: str) -> None:
    make = instance if field == "top_k" else problem
    rule = "must be a whole number"
    if field == "candidates" and isinstance(value, str):
        rule = "must be 'top-k' or a whole number"
    refused(lambda: make(**{field: value}), re.escape(f"{field} = {spelt}: {rule}"))


@pytest.mark.parametrize("value", [0, -1, 2**63, -(2**63), 10**400, np.int64(-5), np.uint64(2**64 - 1)])
def test_counts_refuse_what_is_out_of_range(value: Any) -> None:
    digits = str(int(value))
    spelt = digits if len(digits) <= 200 else rf"{digits[:200]}\.\.\."
    refused(lambda: instance(top_k=value), f"top_k = {spelt}: must be at least 1 and at most m = 3")
    refused(lambda: problem(max_experts=value), f"max_experts = {spelt}: must be 1 to 2147483647")
    refused(
        lambda: problem(candidates=value),
        f"candidates = {spelt}: must be at least top_k = 2 and at most m = 3",
    )


@pytest.mark.parametrize("field", REQUEST_FIELDS)
@pytest.mark.parametrize(("value", "message"), rows(NOT_NUMBERS))
def test_request_fields_refuse_what_is_no_number(field: str, value: Any, message: str) -> None:
    refused(lambda: problem(**{"allocation": "fixed", field: value}), f"{field}: {message}")


@pytest.mark.parametrize("field", REQUEST_FIELDS)
@pytest.mark.parametrize(("value", "spelt"), rows(NOT_FINITE))
def test_request_fields_refuse_what_is_not_finite(field: str, value: Any, spelt: str) -> None:
    refused(lambda: problem(**{"allocation": "fixed", field: value}), f"{field} = {spelt}: must be finite")


@pytest.mark.parametrize(
    ("value", "spelt"), [*NOT_WHOLE, ("\0", r"'\x00'"), ("\ud800", r"'\ud800'"), ("", "''")]
)
@pytest.mark.parametrize("field", ["objective", "allocation", "dispatch"])
def test_choices_refuse_everything_else(field: str, value: Any, spelt: str) -> None:
    start = re.escape(f"{field} = {spelt}: unknown name; choose from ")
    refused(lambda: problem(**{field: value}), f"{start}[a-z, -]+", wo.UnknownNameError)


@pytest.mark.parametrize("value", [None, 5, "x", [], np.ones(3), Nameless(), nested(10_000), int])
def test_problems_take_instances_only(value: Any) -> None:
    refused(lambda: wo.Problem(value), f"instance: must be an Instance, got {type(value).__name__}")


@pytest.mark.parametrize("name", [7, b"x", None, ["x"], Nameless()])
def test_names_are_texts_and_provenance_a_mapping(name: Any) -> None:
    spelt = "<Nameless>" if isinstance(name, Nameless) else re.escape(repr(name))
    if name is not None:
        refused(lambda: instance(name=name), f"name = {spelt}: must be a string")
        refused(lambda: instance(provenance=name), f"provenance = {spelt}: must be a mapping")


@pytest.mark.parametrize("field", sorted(COMMON))
@pytest.mark.parametrize(("value", "message"), rows(NOT_NUMBERS))
def test_common_units_refuse_what_is_no_number(field: str, value: Any, message: str) -> None:
    if field == "width":
        message, field_message = ".+", "width.*: must be a whole number"
    else:
        field_message = f"{field}: {message}"
    refused(
        lambda: wo.Instance.from_common_units(**{"compute_time": 1e-4, **COMMON, field: value}), field_message
    )


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("power_down_dbm", "power_down = inf: must be finite"),
        ("power_up_dbm", "power_up = inf: must be finite"),
        ("noise_dbm_per_hz", "noise_density = inf: must be finite"),
        ("total_bandwidth_mhz", "total_bandwidth = inf: must be finite"),
        ("bits_per_value", "bits_down = inf: must be finite"),
    ],
)
def test_common_units_beyond_a_double(field: str, message: str) -> None:
    refused(lambda: wo.Instance.from_common_units(**{"compute_time": 1e-4, **COMMON, field: 1e308}), message)


@pytest.fixture(scope="module")
def certificate() -> wo.Certificate:
    found = wo.solve(problem(min_retention=0.9), "certified").certificate
    assert found is not None
    return found


@pytest.mark.parametrize("field", PRICES)
@pytest.mark.parametrize(("value", "message"), rows(NOT_NUMBERS))
def test_certificates_refuse_what_is_no_number(
    certificate: wo.Certificate, field: str, value: Any, message: str
) -> None:
    refused(lambda: replace(certificate, **{field: value}), f"{field}: {message}")


@pytest.mark.parametrize("field", PRICES)
@pytest.mark.parametrize(("value", "spelt"), rows(NOT_FINITE))
def test_certificates_refuse_what_is_not_finite(
    certificate: wo.Certificate, field: str, value: Any, spelt: str
) -> None:
    refused(lambda: replace(certificate, **{field: value}), f"{field} = {spelt}: must be finite")


@pytest.mark.parametrize(
    ("change", "message", "kind"),
    [
        ({"bound": "x"}, "bound: must hold real numbers, got dtype <U1", wo.InputError),
        ({"bound": float("nan")}, "bound = nan: must be a number", wo.InputError),
        ({"bound": [1.0]}, r"bound = \[1.0\]: must be a number", wo.InputError),
        ({"bound": 10**400}, "bound: must hold real numbers, got dtype object", wo.InputError),
        ({"digest": 5}, "digest = 5: must be a text", wo.InputError),
        (
            {"form": np.ones(3)},
            r"form = array\(\[1., 1., 1.\]\): unknown name; choose from .+",
            wo.UnknownNameError,
        ),
        ({"form": "x"}, "form = 'x': unknown name; choose from .+", wo.UnknownNameError),
        ({"floor": 5}, "floor: must be a Certificate of form 'deadline'", wo.InputError),
        ({"tree": 5}, "tree: must be a Tree, got int", wo.InputError),
    ],
)
def test_other_fields_of_certificates(
    certificate: wo.Certificate, change: dict[str, Any], message: str, kind: type[Exception]
) -> None:
    refused(lambda: replace(certificate, **change), message, kind)


# ------------------------------------------------------------------ accepted, and the same answer


TINY = np.finfo(float).smallest_subnormal


@pytest.mark.parametrize(
    ("clean", "odd"),
    [
        ({"activation_time": [0.0] * 3}, {"activation_time": [-0.0] * 3}),
        ({"link_delay": 0.0}, {"link_delay": -0.0}),
        ({"gain_down": [1e-9, 0.0, 1e-9]}, {"gain_down": [1e-9, -0.0, 1e-9]}),
        ({"link_delay": 0.0}, {"link_delay": TINY}),
        ({"activation_time": 0.0}, {"activation_time": TINY}),
    ],
)
def test_signed_zeros_and_subnormal_times_change_nothing(clean: dict[str, Any], odd: dict[str, Any]) -> None:
    """Negative zero is zero, and a delay of 5e-324 s is lost beside any other: the same bits."""
    one, two = (wo.solve(instance(**change), "wdmoe") for change in (clean, odd))
    assert one.latency == two.latency
    np.testing.assert_array_equal(one.keep, two.keep)
    np.testing.assert_array_equal(one.bandwidth, two.bandwidth)


@pytest.mark.parametrize(
    "form", ["non-contiguous", "reversed twice", "Fortran order", "read-only", "big-endian"]
)
def test_request_arrays_of_any_form(form: str) -> None:
    floor, width = np.array([0.5, 0.9]), np.full((2, 3), 1e6)
    plain = problem(min_retention=floor, allocation="fixed", bandwidth=width)
    odd = problem(
        min_retention=FORMS[form](floor.copy()), allocation="fixed", bandwidth=FORMS[form](width.copy())
    )
    assert odd.digest == plain.digest


def test_one_of_everything() -> None:
    """One block, token, candidate, expert and device is a problem as any other."""
    one = wo.Instance.from_arrays(
        **good(
            expert_ids=[[[0]]], gate_weights=[[[1.0]]], top_k=1, expert_device=[0], compute_time=[1e-4],
            gain_down=[1e-9], gain_up=[1e-9],
        )
    )  # fmt: skip
    for method in ("topk", "greedy", "certified", "exact"):
        answer = wo.solve(one, method)
        assert answer.feasible
        assert answer.bandwidth.tolist() == [3e6]
