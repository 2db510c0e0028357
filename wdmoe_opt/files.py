"""Instance files: an .npz of arrays with a JSON manifest, or JSON with the same keys; never pickle."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from wdmoe_opt.errors import InputError, InstanceFileError
from wdmoe_opt.instance import Instance

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
#: Largest declared size of all members together, in bytes: a guard against archives that explode.
SIZE_LIMIT = 4 * 2**30
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


def content_hash(arrays: dict[str, Any]) -> str:
    """SHA-256 over names, dtypes, shapes and little-endian bytes of all arrays, in order of name."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
        digest.update(f"{name}|{array.dtype.str}|{array.shape}|".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def save_instance(instance: Instance, path: str | Path) -> None:
    """Write an instance to ``path``: ``.npz`` or ``.json`` by its ending, complete or not at all.

    Raises
    ------
    InstanceFileError
        If the ending is neither, or the file cannot be written.
    """
    path = Path(path)
    arrays = {name: np.asarray(value) for name, value in instance.arrays(copy=False).items()}
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "kind": "instance",
        "name": instance.name,
        "units": {name: UNITS[name] for name in arrays if name in UNITS},
        "content_hash": content_hash(arrays),
        "provenance": dict(instance.provenance),
    }
    if path.suffix == ".npz":
        write_atomically(path, lambda stream: _write_npz(stream, arrays, manifest))
    elif path.suffix == ".json":
        text = json.dumps({**manifest, "arrays": {n: _json_value(a) for n, a in arrays.items()}}, indent=1)
        write_atomically(path, lambda stream: stream.write(text.encode()))
    else:
        raise InstanceFileError(f"{path}: the name must end in .npz or .json")


def load_instance_file(path: str | Path) -> Instance:
    """Read and check an instance file; see `Instance.load`."""
    path = Path(path)
    if path.suffix == ".npz":
        arrays, manifest = read_npz(path)
    elif path.suffix == ".json":
        arrays, manifest = _read_json(path)
    else:
        raise InstanceFileError(f"{path}: the name must end in .npz or .json")
    check_manifest(path, manifest, "instance")
    if content_hash(arrays) != manifest.get("content_hash"):
        raise InstanceFileError(
            f"{path}: content_hash does not match the arrays: the file was changed or damaged"
        )
    name, provenance = manifest.get("name", ""), manifest.get("provenance", {})
    scalars = {key: value.item() if value.ndim == 0 else value for key, value in arrays.items()}
    try:
        return Instance.from_arrays(**scalars, name=name, provenance=provenance)
    except InputError as error:
        raise InstanceFileError(f"{path}: {error}") from error


def check_manifest(path: Path, manifest: Any, kind: str) -> None:
    """Raise unless the manifest is one of ours and of a version we read."""
    if not isinstance(manifest, dict) or manifest.get("kind") != kind:
        raise InstanceFileError(f"{path}: not a file of kind {kind!r} (manifest key 'kind')")
    version = manifest.get("schema_version")
    if version != SCHEMA_VERSION:
        raise InstanceFileError(f"{path}: schema_version {version!r}, this release reads {SCHEMA_VERSION}")


def write_atomically(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Write a temporary file beside ``path`` and rename it, so that readers see all or nothing."""
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise InstanceFileError(f"{path}: cannot be written ({error.strerror})") from error
    try:
        with os.fdopen(handle, "wb") as stream:
            write(stream)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException as error:
        os.unlink(temporary)
        if isinstance(error, OSError):
            raise InstanceFileError(f"{path}: cannot be written ({error.strerror})") from error
        raise


def _write_npz(stream: IO[bytes], arrays: dict[str, NDArray[Any]], manifest: dict[str, Any]) -> None:
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(_member(MANIFEST), json.dumps(manifest, indent=1))
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, array, allow_pickle=False)
            archive.writestr(_member(f"{name}.npy"), buffer.getvalue())


def _member(name: str) -> zipfile.ZipInfo:
    """A zip member with a fixed time stamp: equal content gives equal bytes."""
    info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    info.compress_type = zipfile.ZIP_DEFLATED
    return info


def read_npz(path: Path, *, size_limit: int = SIZE_LIMIT) -> tuple[dict[str, NDArray[Any]], Any]:
    """Arrays and manifest of an archive, refusing anything that is not plainly that.

    Raises
    ------
    InstanceFileError
        If the file is missing, cut short, too large, or has a member that is not an array.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            declared = sum(info.file_size for info in archive.infolist())
            if declared > size_limit:
                raise InstanceFileError(f"{path}: unpacks to {declared} bytes, limit {size_limit}")
            names = [info.filename for info in archive.infolist()]
            if MANIFEST not in names:
                raise InstanceFileError(f"{path}: has no {MANIFEST}")
            manifest = json.loads(archive.read(MANIFEST))
            return {n[:-4]: _read_array(path, archive, n) for n in names if n != MANIFEST}, manifest
    except OSError as error:
        raise InstanceFileError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise InstanceFileError(f"{path}: not a readable .npz archive ({error})") from error
    except (ValueError, RecursionError) as error:
        raise InstanceFileError(f"{path}: damaged content ({error})") from error


def _read_array(path: Path, archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    if not name.endswith(".npy") or "/" in name or "\\" in name:
        raise InstanceFileError(f"{path}: unexpected member {name!r}")
    with archive.open(name) as member:
        array: NDArray[Any] = np.lib.format.read_array(member, allow_pickle=False)
    return array


def _json_value(array: NDArray[Any]) -> Any:
    """Nested lists; infinities and NaN, which JSON has not, as strings."""
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        return [_json_value(row) for row in array] if array.ndim else str(array.item())
    return array.tolist()


def _read_json(path: Path) -> tuple[dict[str, NDArray[Any]], Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InstanceFileError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise InstanceFileError(f"{path}: not UTF-8 text ({error.reason})") from error
    try:
        content = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise InstanceFileError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(content, dict) or not isinstance(content.get("arrays"), dict):
        raise InstanceFileError(f"{path}: must be an object with a key 'arrays'")
    arrays = {name: _json_array(path, name, value) for name, value in content.pop("arrays").items()}
    return arrays, content


def _json_array(path: Path, name: str, value: Any) -> NDArray[Any]:
    integers = name in ("expert_ids", "top_k", "loads", "expert_device")
    try:
        array = np.asarray(_numbers(value), dtype=np.int64 if integers else np.float64)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InstanceFileError(f"{path}: arrays.{name} must be rectangular and numeric ({error})") from error
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
