"""From a measurement to a device profile: launch cost, weight bandwidth and compute rate.

The model is ``time(P weights, M tokens) = t0 + P q / B + M 2 P / C`` with q bytes per weight. Launch t0 is
that of a tiny expert. 1/B and 1/C follow from the other rows by non-negative least squares of the relative
errors, once for the medians and once for each quartile, which gives centre and spread. Source: the affine
latency model of the shipped Jetson profiles.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.optimize import nnls

from wdmoe_opt.archive import as_path, read_json, write_text
from wdmoe_opt.errors import InputError, InstanceFileError, WdmoeError
from wdmoe_opt.instances.profiling.measure import KIND, SCHEMA_VERSION
from wdmoe_opt.validation import RealArray, real_scalar

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

#: A term of the model that is nowhere this share of the time cannot be told from noise.
VISIBLE_SHARE = 0.02
_STATISTICS = ("median", "q1", "q3")


class ProfilingError(WdmoeError):
    """A machine was measured, but the numbers do not determine a profile."""


def load_measurement(path: str | Path) -> dict[str, Any]:
    """Read a file written by ``measure.py --json``.

    Raises
    ------
    InstanceFileError
        If it cannot be read or is no such file.
    """
    found = read_json(path)
    if not isinstance(found, dict) or found.get("kind") != KIND:
        raise InstanceFileError(f"{path}: kind must be {KIND!r}")
    if found.get("schema_version") != SCHEMA_VERSION:
        version = found.get("schema_version")
        raise InstanceFileError(f"{path}: schema_version {version!r}: this version reads {SCHEMA_VERSION}")
    return found


def fit_profile(measurement: Mapping[str, Any], name: str | None = None) -> dict[str, Any]:
    """Device profile, as JSON values, that explains a measurement.

    Parameters
    ----------
    measurement : mapping
        What `measure.measure` returns.
    name : str, optional
        Name of the profile; default device and precision.

    Returns
    -------
    dict
        Keys of a device profile file; launch_time in s, weight_bandwidth in byte/s, compute_rate in FLOP/s,
        each with centre, low <= centre <= high, evidence and source.

    Raises
    ------
    ProfilingError
        If launch hides the expert so that bandwidth or rate cannot be told.
    InputError
        If the measurement lacks a number or holds one that cannot be.
    """
    launch, rows, size = _checked(measurement)
    fits = {word: _fit(launch[word], rows[:, :2], rows[:, 2 + i], size) for i, word in enumerate(_STATISTICS)}
    where = measurement["environment"]
    precision = str(measurement["precision"])
    counts = sorted({int(count) for count in rows[:, 1]})
    how = f"{where['device']}, torch {where['torch']}, SwiGLU expert at {counts} tokens"
    spread = "centre from the medians, low and high from the quartiles"
    return {
        "schema_version": 1,
        "name": name or f"{where['device']} {precision}",
        "precision": precision,
        "bytes_per_weight": size,
        "launch_time": _range(
            [launch[word] for word in _STATISTICS],
            f"Expert of negligible size on {how}; median and quartiles.",
        ),
        "weight_bandwidth": _range(
            [fits[word][0] for word in _STATISTICS], f"Affine fit to {how}; {spread}."
        ),
        "compute_rate": _range([fits[word][1] for word in _STATISTICS], f"Affine fit to {how}; {spread}."),
        "memory": where["memory"],
        "power_budget": None,
        "provenance": {
            "measurement": dict(measurement),
            "fit": _residuals(launch["median"], rows, fits["median"], size),
        },
    }


def write_profile(path: str | Path, profile: Mapping[str, Any]) -> None:
    """Write a device profile file, replacing an older one only when all is written."""
    text = json.dumps(dict(profile), indent=2, allow_nan=False) + "\n"
    write_text(as_path(path), text)


def model_time(launch: float, bandwidth: float, rate: float, size: float, weights: Any, tokens: Any) -> Any:
    """Seconds of an expert call: launch, streaming the weights, and two FLOP per weight and token."""
    return launch + weights * size / bandwidth + 2.0 * weights * tokens / rate


def _checked(measurement: Mapping[str, Any]) -> tuple[dict[str, float], RealArray, float]:
    """Launch times, rows (rows, 5) of weights, tokens, median, q1, q3, and bytes per weight."""
    for key in ("launch", "expert", "bytes_per_weight", "precision", "environment"):
        if key not in measurement:
            raise InputError("measurement", f"has no {key!r}")
    for key in ("device", "torch", "memory"):
        if key not in measurement["environment"]:
            raise InputError("environment", f"has no {key!r}")
    launch = {word: _positive("launch", measurement["launch"], word) for word in _STATISTICS}
    keys = ("weights", "tokens", *_STATISTICS)
    rows = np.array(
        [[_positive(f"expert[{i}]", row, key) for key in keys] for i, row in enumerate(measurement["expert"])]
    )
    if len(rows) < 2:
        raise InputError("expert", "must have at least two rows", value=len(rows))
    return launch, rows, _positive("measurement", measurement, "bytes_per_weight")


def _positive(field: str, row: Mapping[str, Any], key: str) -> float:
    if key not in row:
        raise InputError(field, f"has no {key!r}")
    return real_scalar(f"{field}.{key}", row[key], minimum=0, above=True)


def _fit(launch: float, sizes: RealArray, times: RealArray, size: float) -> tuple[float, float]:
    """Bandwidth in byte/s and rate in FLOP/s that fit ``times`` with the least relative squares."""
    weights, tokens = sizes.T
    columns = np.stack([weights * size, 2.0 * weights * tokens], axis=1)
    scale = columns.max(axis=0)
    shares = columns / scale / times[:, None]
    found, _ = nnls(shares, (times - launch) / times)
    seen = (shares * found).max(axis=0)
    for value, what, advice in (
        (seen[0], "weight bandwidth", "a wider expert"),
        (seen[1], "compute rate", "larger token counts"),
    ):
        if value < VISIBLE_SHARE:
            raise ProfilingError(f"the {what} cannot be told from the launch time: measure {advice}")
    return float(scale[0] / found[0]), float(scale[1] / found[1])


def _range(values: list[float], source: str) -> dict[str, Any]:
    low, high = min(values), max(values)
    return {"centre": values[0], "low": low, "high": high, "evidence": "measured", "source": source}


def _residuals(
    launch: float, rows: RealArray, fit: tuple[float, float], size: float
) -> list[dict[str, float]]:
    """Measured and modelled seconds of every row, with the relative error."""
    modelled = model_time(launch, *fit, size, rows[:, 0], rows[:, 1])
    return [
        {
            "weights": int(row[0]),
            "tokens": int(row[1]),
            "measured": float(row[2]),
            "modelled": float(time),
            "relative_error": float(time / row[2] - 1),
        }
        for row, time in zip(rows, modelled, strict=True)
    ]
