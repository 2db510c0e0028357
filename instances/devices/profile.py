"""A device profile: what one expert call costs on a board, for any expert size.

The model has three numbers, each with a centre, a low and a high value::

    time(P weights, M tokens) = launch_time + P bytes_per_weight / weight_bandwidth + M 2 P / compute_rate

for M >= 1 tokens, and 0 for none. The first two terms are the ``activation_time`` of a
:class:`wdmoe_opt.Instance`, the last one, per token, is its ``compute_time``.

A profile file is JSON with these keys::

    schema_version    1
    name              text
    precision         one of PRECISIONS
    bytes_per_weight  byte, > 0, scales of quantisation groups included
    launch_time       s per expert call   {"centre", "low", "high", "evidence", "source"}
    weight_bandwidth  byte/s              the same five keys
    compute_rate      FLOP/s              the same five keys
    memory            byte or null, optional
    power_budget      W or null, optional
    provenance        object of JSON values, optional

``low <= centre <= high`` always compares the numbers themselves; ``evidence`` is one of EVIDENCE;
``source`` is a sentence; a value may also list the measured ``rows`` it was derived from.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from wdmoe_opt.archive import as_path, read_json, write_text
from wdmoe_opt.errors import InputError, UnknownNameError
from wdmoe_opt.validation import real_scalar

SCHEMA_VERSION = 1
PRECISIONS = ("fp32", "bf16", "fp16", "fp8", "int8", "int4")
EVIDENCE = ("measured", "scaled", "bound", "assumed")
LEVELS = ("low", "centre", "high")
PROFILES_FILE = Path(__file__).with_name("profiles.json")

_RANGE_KEYS = ("centre", "low", "high", "evidence", "source")
_RANGES = ("launch_time", "weight_bandwidth", "compute_rate")
_REQUIRED = ("schema_version", "name", "precision", "bytes_per_weight", *_RANGES)
_OPTIONAL = ("memory", "power_budget", "provenance")


@dataclass(frozen=True, kw_only=True)
class Range:
    """A value with its spread and where it comes from.

    Parameters
    ----------
    centre, low, high : float
        In the unit of the field that holds it; ``low <= centre <= high``.
    evidence : {"measured", "scaled", "bound", "assumed"}
        What the centre rests on: rows of this board; rows of another board or mode times a ratio;
        a memory read-out that a real layer cannot beat; or a decision.
    source : str
        One sentence that says how centre, low and high were found.
    rows : tuple of str
        The measured rows behind the three values, as ``file:line`` or ``file:line#part``.
    """

    centre: float
    low: float
    high: float
    evidence: str
    source: str
    rows: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {key: getattr(self, key) for key in _RANGE_KEYS} | (
            {"rows": list(self.rows)} if self.rows else {}
        )

    @classmethod
    def from_dict(cls, name: str, data: Any) -> Self:
        """Check and make a range; ``name`` is the field that error messages name.

        Raises
        ------
        InputError
            Naming field, value and rule.
        """
        _check_keys(name, data, _RANGE_KEYS, ("rows",))
        rows = data.get("rows", [])
        if not isinstance(rows, (list, tuple)) or not all(isinstance(row, str) for row in rows):
            raise InputError(f"{name}.rows", "must be a list of texts", value=rows)
        made = cls(**{key: data[key] for key in _RANGE_KEYS}, rows=tuple(rows))
        made.check(name)
        return made

    def check(self, name: str) -> None:
        """Raise ``InputError`` where a value breaks a rule; ``name`` is the field that messages name."""
        for key in LEVELS:
            _positive(f"{name}.{key}", getattr(self, key), zero_allowed=name == "launch_time")
        _choice(f"{name}.evidence", self.evidence, EVIDENCE)
        _text(f"{name}.source", self.source)
        if self.low > self.centre:
            raise InputError(f"{name}.low", f"must not exceed the centre {self.centre:g}", value=self.low)
        if self.high < self.centre:
            raise InputError(f"{name}.high", f"must not be below the centre {self.centre:g}", value=self.high)


@dataclass(frozen=True, kw_only=True)
class DeviceProfile:
    """Launch cost, weight bandwidth and compute rate of one board in one precision.

    Parameters
    ----------
    name : str
    precision : str
        One of ``PRECISIONS``; the shipped profiles have "fp16" and "int4".
    bytes_per_weight : float, byte
        Stored size of a weight, group scales included (the shipped INT4: 0.53125, on AGX Thor 0.5625).
    launch_time : Range, s per expert call
    weight_bandwidth : Range, byte/s
    compute_rate : Range, FLOP/s, two FLOP per weight and token
    memory : float, byte, optional
        Memory of the board, shared by CPU and GPU.
    power_budget : float, W, optional
        Where the power mode states one.
    provenance : mapping
        JSON values about the profile as a whole.

    Raises
    ------
    InputError
        Naming field, value and rule.

    Notes
    -----
    ``level`` of the methods speaks of the *time*: "low" is the optimistic, short time (low launch cost, high
    bandwidth, high rate), "high" the pessimistic, long one, "centre" the expected one.
    """

    name: str
    precision: str
    bytes_per_weight: float
    launch_time: Range
    weight_bandwidth: Range
    compute_rate: Range
    memory: float | None = None
    power_budget: float | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        _text("name", self.name)
        _choice("precision", self.precision, PRECISIONS)
        _positive("bytes_per_weight", self.bytes_per_weight)
        for key in _RANGES:
            if not isinstance(getattr(self, key), Range):
                raise InputError(key, "must be a Range", value=getattr(self, key))
            getattr(self, key).check(key)
        for key in ("memory", "power_budget"):
            if getattr(self, key) is not None:
                _positive(key, getattr(self, key))
        if not isinstance(self.provenance, Mapping):
            raise InputError("provenance", "must be an object", value=self.provenance)
        object.__setattr__(self, "provenance", MappingProxyType(dict(self.provenance)))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).from_dict, (self.to_dict(),)

    def costs(self, level: str = "centre") -> tuple[float, float, float]:
        """Launch in s, time per byte read in s and time per operation in s, at a level of the time."""
        launch, bandwidth, rate = self.launch_time, self.weight_bandwidth, self.compute_rate
        chosen = {
            "low": (launch.low, bandwidth.high, rate.high),
            "centre": (launch.centre, bandwidth.centre, rate.centre),
            "high": (launch.high, bandwidth.low, rate.low),
        }[_choice("level", level, LEVELS)]
        return chosen[0], 1.0 / chosen[1], 1.0 / chosen[2]

    def activation_time(self, weights: float, level: str = "centre") -> float:
        """Seconds paid once per active expert: launch plus streaming ``weights`` weights from memory."""
        launch, per_byte, _ = self.costs(level)
        return launch + _positive("weights", weights) * self.bytes_per_weight * per_byte

    def compute_time(self, weights: float, level: str = "centre") -> float:
        """Marginal seconds per token of an expert of ``weights`` weights."""
        return 2.0 * _positive("weights", weights) * self.costs(level)[2]

    def time(self, weights: float, tokens: float, level: str = "centre") -> float:
        """Seconds of one expert call over ``tokens`` tokens; 0 for no token."""
        count = _positive("tokens", tokens, zero_allowed=True)
        busy = self.activation_time(weights, level) + count * self.compute_time(weights, level)
        return busy if count else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, in the schema of this module."""
        ranges = {key: getattr(self, key).to_dict() for key in _RANGES}
        plain = {key: getattr(self, key) for key in ("name", "precision", "bytes_per_weight")}
        more = {"memory": self.memory, "power_budget": self.power_budget, "provenance": dict(self.provenance)}
        return {"schema_version": SCHEMA_VERSION} | plain | ranges | more

    @classmethod
    def from_dict(cls, data: Any) -> Self:
        """Check and make a profile from the values of a profile file.

        Raises
        ------
        InputError
            Naming field, value and rule.
        """
        _check_keys("profile", data, _REQUIRED, _OPTIONAL)
        if data["schema_version"] != SCHEMA_VERSION:
            raise InputError("schema_version", f"must be {SCHEMA_VERSION}", value=data["schema_version"])
        ranges: dict[str, Any] = {key: Range.from_dict(key, data[key]) for key in _RANGES}
        plain = {key: data[key] for key in ("name", "precision", "bytes_per_weight")}
        return cls(**plain, **ranges, **{key: data[key] for key in _OPTIONAL if key in data})

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Self:
        """Profile from a JSON file.

        Raises
        ------
        InstanceFileError
            If the file cannot be read or is not JSON.
        InputError
            If its content breaks a rule of the schema.
        """
        return cls.from_dict(read_json(path))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the profile as JSON; the file appears whole or not at all."""
        write_text(as_path(path), json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n")


def expert_weights(width: int, expert_width: int) -> int:
    """Weights of a gated feed-forward expert: gate, up and down matrices of ``width`` x ``expert_width``."""
    return 3 * int(_positive("width", width)) * int(_positive("expert_width", expert_width))


def list_profiles() -> tuple[str, ...]:
    """Names of the shipped profiles; each exists in "fp16" and in "int4"."""
    return tuple(dict.fromkeys(profile.name for profile in _shipped()))


def load_profile(name: str, precision: str = "fp16") -> DeviceProfile:
    """Return a shipped profile by name and precision.

    Raises
    ------
    UnknownNameError
        If no shipped profile has this name or this precision.
    """
    found = {profile.precision: profile for profile in _shipped() if profile.name == name}
    if not found:
        raise UnknownNameError("name", name, list_profiles())
    if precision not in found:
        raise UnknownNameError("precision", precision, found)
    return found[precision]


@cache
def _shipped() -> tuple[DeviceProfile, ...]:
    return tuple(DeviceProfile.from_dict(entry) for entry in read_json(PROFILES_FILE)["profiles"])


def _check_keys(name: str, data: Any, required: tuple[str, ...], optional: tuple[str, ...]) -> None:
    if not isinstance(data, Mapping):
        raise InputError(name, "must be an object", value=data)
    for key in required:
        if key not in data:
            raise InputError(f"{name}.{key}", "is missing")
    for key in data:
        if key not in required and key not in optional:
            raise UnknownNameError(f"{name} key", str(key), (*required, *optional))


def _positive(name: str, value: Any, *, zero_allowed: bool = False) -> float:
    if isinstance(value, (bool, str)) or value is None:
        raise InputError(name, "must be a number", value=value)
    number = real_scalar(name, value)
    if number < 0 or (number == 0 and not zero_allowed):
        raise InputError(
            name, "must be at least 0" if zero_allowed else "must be greater than 0", value=number
        )
    return number


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InputError(name, "must be a text that is not empty", value=value)
    return value


def _choice(name: str, value: Any, known: tuple[str, ...]) -> str:
    if value not in known:
        raise InputError(name, f"must be one of {', '.join(known)}", value=value)
    return str(value)
