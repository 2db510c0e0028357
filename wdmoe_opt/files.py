"""Instance files: an archive of arrays (``.npz``), or JSON with the same keys, manifest and hash."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wdmoe_opt.archive import (
    ArchiveError,
    ArrayRule,
    Layout,
    as_path,
    check_hash,
    check_manifest,
    content_hash,
    dump_json,
    encode_json,
    json_copy,
    read_archive,
    read_json,
    write_archive,
    write_text,
)
from wdmoe_opt.errors import InputError, InstanceFileError
from wdmoe_opt.instance import Instance

_INTEGERS = ("expert_ids", "top_k", "loads", "expert_device")
LAYOUT = Layout(
    "instance",
    1,
    {
        name: ArrayRule(("<i8",) if name in _INTEGERS else ("<f8",), (0, 1, 2, 3))
        for name in Instance.ARRAY_FIELDS
    },
    optional=True,
)
UNITS = {
    "gate_weights": "1",
    "compute_time": "s/token",
    "activation_time": "s",
    "gain_down": "1",
    "gain_up": "1",
    "power_down": "W",
    "power_up": "W",
    "noise_density": "W/Hz",
    "total_bandwidth": "Hz",
    "bits_down": "bit/token",
    "bits_up": "bit/token",
    "link_delay": "s",
    "bandwidth_min": "Hz",
    "bandwidth_max": "Hz",
    "token_time_link": "s/token",
    "compute_power": "W",
}


def save_instance(instance: Instance, path: str | Path) -> str:
    """Write an instance to ``path``, ``.npz`` or ``.json`` by its ending, and return its content hash.

    The file appears complete or not at all.

    Raises
    ------
    InstanceFileError
        If the ending is neither, or the file cannot be written.
    InputError
        If the provenance holds anything but JSON values.
    """
    path = _checked_ending(path)
    arrays = {name: np.asarray(value) for name, value in instance.arrays(copy=False).items()}
    manifest = {
        "name": instance.name,
        "units": {name: UNITS[name] for name in arrays if name in UNITS},
        "provenance": plain_values(instance.provenance),
    }
    if path.suffix == ".npz":
        return str(write_archive(path, LAYOUT, arrays, manifest)["content_hash"])
    full = {**json_copy(manifest), **LAYOUT.header()}
    full["content_hash"] = content_hash(arrays, full)
    text = dump_json({**full, "arrays": {n: _json_value(a) for n, a in arrays.items()}}, indent=1)
    write_text(path, text)
    return str(full["content_hash"])


def load_instance_file(path: str | Path) -> Instance:
    """Read and check an instance file; see `Instance.load`."""
    path = _checked_ending(path)
    arrays, manifest = read_archive(path, LAYOUT) if path.suffix == ".npz" else _read_json(path)
    scalars = {key: value.item() if value.ndim == 0 else value for key, value in arrays.items()}
    try:
        return Instance.from_arrays(
            **scalars, name=manifest.get("name", ""), provenance=manifest.get("provenance", {})
        )
    except InputError as error:
        raise InstanceFileError(f"{path}: {error}") from error


def _checked_ending(path: str | Path) -> Path:
    path = as_path(path)
    if path.name in (".npz", ".json"):
        raise ArchiveError(path, "must have a name before its ending")
    if path.suffix not in (".npz", ".json"):
        raise ArchiveError(path, "the name must end in .npz or .json")
    return path


def plain_values(value: Any) -> Any:
    """Nested mappings, read-only ones too, as dicts."""
    if isinstance(value, Mapping):
        return {key: plain_values(item) for key, item in value.items()}
    return [plain_values(item) for item in value] if isinstance(value, (list, tuple)) else value


def _read_json(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    content = read_json(path)
    check_manifest(path, content, LAYOUT)
    given = content.pop("arrays", None)
    if not isinstance(given, dict):
        raise ArchiveError(path, "must be an object with a key 'arrays'")
    for name in given:
        if name not in LAYOUT.arrays:
            raise ArchiveError(path, f"arrays must hold only {', '.join(LAYOUT.arrays)}; holds {name!r}")
    arrays = {name: _json_array(path, name, value) for name, value in given.items()}
    try:
        encode_json(content)
    except (ValueError, RecursionError) as error:
        raise ArchiveError(path, f"not valid JSON ({error})") from None
    check_hash(path, arrays, content)
    return arrays, content


def _json_value(array: NDArray[Any]) -> Any:
    """Nested lists; infinities and NaN, which JSON has not, as strings."""
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        return [_json_value(row) for row in array] if array.ndim else str(array.item())
    return array.tolist()


def _json_array(path: Path, name: str, value: Any) -> NDArray[Any]:
    try:
        array = np.asarray(_numbers(value), dtype=LAYOUT.arrays[name].dtypes[0])
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ArchiveError(path, f"arrays.{name} must be rectangular and numeric ({error})") from error
    return array


def _numbers(value: Any) -> Any:
    """Nested lists with the strings of `_json_value` turned back into floats; anything else is refused."""
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    if isinstance(value, str):
        if value not in ("inf", "-inf", "nan"):
            raise ValueError(f"{value!r} is not a number")
        return math.inf if value == "inf" else -math.inf if value == "-inf" else math.nan
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{value!r} is not a number")
    return value
