"""Hostile values and what is said of them, shared by the tables of this folder."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import wdmoe_opt as wo

NAN, INF = float("nan"), float("inf")


class Converts:
    """An array type of a library that fails in its own way."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        raise KeyError("elsewhere")


class Nameless:
    """An object that cannot even be printed."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


def nested(depth: int) -> Any:
    value: Any = 1.0
    for _ in range(depth):
        value = [value]
    return value


def circular() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


DTYPE = "must hold real numbers, got dtype"
#: What is no array of numbers: for every field that takes one, the message is ``FIELD: `` and this (a regex).
NOT_NUMBERS: dict[str, tuple[Any, str]] = {
    "text": ("fast", rf"{DTYPE} <U4"),
    "bytes": (b"fast", rf"{DTYPE} \|S4"),
    "texts of numbers": (["1", "2", "3"], rf"{DTYPE} <U1"),
    "object array": (np.array([1.0, 2.0, 3.0], dtype=object), rf"{DTYPE} object"),
    "None inside": ([None, 1.0], rf"{DTYPE} object"),
    "truth values": ([True, False, True], rf"{DTYPE} bool"),
    "complex": (np.ones(3) + 0j, rf"{DTYPE} complex128"),
    "dates": (np.array(["2020-01-01"] * 3, dtype="M8[D]"), rf"{DTYPE} datetime64\[D\]"),
    "durations": (np.ones(3, dtype="m8[s]"), rf"{DTYPE} timedelta64\[s\]"),
    "records": (np.zeros(3, dtype=[("a", "<f8")]), rf"{DTYPE} \[\('a', '<f8'\)\]"),
    "a mapping": ({"a": 1.0}, rf"{DTYPE} object"),
    "a set": ({1.0}, rf"{DTYPE} object"),
    "a class": (int, rf"{DTYPE} object"),
    "a generator": ((i for i in range(3)), rf"{DTYPE} object"),
    "an unprintable object": (Nameless(), rf"{DTYPE} object"),
    "400 digits": ([10**400], rf"{DTYPE} object"),
    "ragged": ([[1.0], [1.0, 2.0]], r"must be a rectangular array of numbers \(.+\)"),
    "circular": (circular(), r"must (be a rectangular array of numbers \(.+\)|hold real numbers, got dtype object)"),
    "nested 10000 deep": (nested(10_000), r"must (be a rectangular array of numbers \(.+\)|hold .* object)"),
    "a failing conversion": (Converts(), r"must be a rectangular array of numbers \('elsewhere'\)"),
    "masked": (np.ma.array([1.0, 2.0, 3.0], mask=[0, 1, 0]), "must not be masked: every value counts"),
    "8 PiB": (np.broadcast_to(1.0, (2**50,)), r"must fit into memory, has shape \(1125899906842624,\)"),
}  # fmt: skip
#: What is no finite number, with the value as messages spell it.
NOT_FINITE: dict[str, tuple[Any, str]] = {
    "NaN": (NAN, "nan"),
    "infinity": (INF, "inf"),
    "negative infinity": (-INF, "-inf"),
    "beyond a double": (np.longdouble("1e4000"), "inf"),
}
#: What is no whole number.
NOT_WHOLE: list[tuple[Any, str]] = [
    (1.0, "1.0"), (True, "True"), (np.True_, "np.True_"), ("1", "'1'"), (b"1", "b'1'"), (NAN, "nan"),
    ([1], "[1]"), (1j, "1j"), (np.ones(2), "array([1., 1.])"),
    ({}, "{}"), (Nameless(), "<Nameless>"), (nested(10_000), "<list>"), ("1" * 500, "'" + "1" * 199 + "..."),
]  # fmt: skip


def refused(call: Callable[[], Any], message: str, kind: type[Exception] = wo.InputError) -> None:
    """The call raises exactly this class with one line that is, whole, this regular expression."""
    with pytest.raises(kind) as caught:
        call()
    text = str(caught.value)
    assert caught.type is kind, caught.type
    assert re.fullmatch(message, text), text
    assert len(text.splitlines()) == 1
    assert len(text) < 1000


def rows(*tables: dict[str, Any]) -> Any:
    """Parameters of pytest, named by their keys."""
    return [pytest.param(*value, id=key) for table in tables for key, value in table.items()]
