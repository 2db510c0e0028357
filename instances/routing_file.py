"""Routing files: which experts every token of a prompt set used, with their gate weights.

A routing file is a zip archive of four ``.npy`` members, written without pickle, and ``manifest.json``:

``expert_ids``
    uint8 (up to 256 experts) or uint16 (blocks, tokens, m): candidates by falling gate weight, among
    equal weights the lower expert first.
``gate_weights``
    float32 (blocks, tokens, m).
``sequence``, ``position``
    int32 (tokens,): which prompt a token belongs to, and its place in it.
``manifest.json``
    Sizes, source, licence, meaning of the weights, versions, and a hash of everything else.

The full gate is known where m equals the number of experts. Equal content gives equal bytes.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.lib import format as npy

from wdmoe_opt.errors import InputError, InstanceFileError
from wdmoe_opt.validation import freeze, int_array, refuse_where, require_shape, whole

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
ARRAYS = ("expert_ids", "gate_weights", "position", "sequence")
#: What a writer must say about the source; None where something is not known.
SOURCE_KEYS = (
    "model", "revision", "model_licence", "weights_meaning", "prompts", "prompt_hash", "capture",
)  # fmt: skip
#: What is derived from the arrays and filled in here.
DERIVED_KEYS = ("schema_version", "kind", "tokens", "blocks", "experts", "top_k", "content_hash")
SIZE_LIMIT = 4 * 1024**3
MANIFEST_LIMIT = 16 * 1024**2
MAX_EXPERTS = 65_536
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA)
_TIMESTAMP = (1980, 1, 1, 0, 0, 0)


class RoutingFileError(InstanceFileError):
    """A routing file cannot be read, or breaks a rule of the format.

    Parameters
    ----------
    path : str or Path
        The file.
    rule : str
        What is wrong, in words.
    """

    def __init__(self, path: str | Path, rule: str) -> None:
        self.path, self.rule = Path(path), rule
        super().__init__(f"{path}: {rule}")


@dataclass(frozen=True, eq=False)
class RoutingFile:
    """Routing of a prompt set through one model, validated and read-only.

    Parameters
    ----------
    expert_ids : int array (blocks, tokens, m)
        Candidates by falling gate weight, among equal weights the lower expert first.
    gate_weights : float array (blocks, tokens, m)
        Gate weight of each candidate, finite and >= 0; held as float32.
    top_k : int
        Experts the model itself uses per token, 1 <= top_k <= m.
    experts : int
        Routed experts per block, m <= experts <= 65536.
    sequence, position : int array (tokens,)
        Prompt a token belongs to, and its place in that prompt, both from 0.
    manifest : mapping
        Source of the data, JSON values only; must have the keys of `SOURCE_KEYS`. The keys of
        `DERIVED_KEYS` are filled in when saved.

    Raises
    ------
    InputError
        Naming field, first bad index, value and rule.
    """

    expert_ids: NDArray[Any]
    gate_weights: NDArray[np.float32]
    top_k: int
    experts: int
    sequence: NDArray[np.int32]
    position: NDArray[np.int32]
    manifest: Mapping[str, Any]

    KIND: ClassVar[str] = "routing"

    def __post_init__(self) -> None:
        experts = whole("experts", self.experts, 1, MAX_EXPERTS, f"must be 1 to {MAX_EXPERTS}")
        ids = np.asarray(self.expert_ids)
        if ids.dtype.kind not in "iu":
            raise InputError("expert_ids", f"must hold whole numbers, got dtype {ids.dtype}")
        if ids.ndim != 3 or ids.size == 0:
            raise InputError("expert_ids", f"must have shape (blocks, tokens, m), none 0, got {ids.shape}")
        weights = np.asarray(self.gate_weights)
        if weights.dtype.kind != "f":
            raise InputError("gate_weights", f"must hold real numbers, got dtype {weights.dtype}")
        top_k = whole("top_k", self.top_k, 1, ids.shape[2], f"must be 1 to m = {ids.shape[2]}")
        # Rounded to the stored precision first: a tie in float32 must obey the tie rule.
        weights = weights.astype(np.float32)
        check_routing(ids, weights, experts, top_k)
        self._put("expert_ids", freeze(np.array(ids, dtype=id_dtype(experts), order="C")))
        self._put("gate_weights", freeze(np.ascontiguousarray(weights)))
        for name in ("sequence", "position"):
            self._put(name, freeze(_token_labels(name, getattr(self, name), ids.shape[1])))
        self._put("manifest", MappingProxyType(_checked_manifest(self.manifest)))

    def _put(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    @property
    def blocks(self) -> int:
        """Number of MoE blocks."""
        return int(self.expert_ids.shape[0])

    @property
    def tokens(self) -> int:
        """Number of tokens, the same in every block."""
        return int(self.expert_ids.shape[1])

    @property
    def columns(self) -> int:
        """Candidates stored per token, m."""
        return int(self.expert_ids.shape[2])

    @property
    def full(self) -> bool:
        """Whether the gate weight of every expert is stored."""
        return self.columns == self.experts

    def save(self, path: str | Path, *, compression: int = zipfile.ZIP_DEFLATED) -> str:
        """Write the file and return its content hash; an older file is replaced only when all is written."""
        written = write_routing(
            path,
            shape=self.expert_ids.shape,
            experts=self.experts,
            top_k=self.top_k,
            expert_ids=self.expert_ids,
            gate_weights=self.gate_weights,
            sequence=self.sequence,
            position=self.position,
            manifest=self.manifest,
            compression=compression,
        )
        return str(written["content_hash"])

    @classmethod
    def load(cls, path: str | Path, *, limit: int = SIZE_LIMIT) -> Self:
        """Read a routing file and check it against its hash.

        Parameters
        ----------
        path : str or Path
        limit : int, byte
            Refuse a file whose content is larger than this when unpacked.

        Raises
        ------
        RoutingFileError
            If the file cannot be read, is too large, breaks the format or does not match its hash.
        """
        try:
            with zipfile.ZipFile(path) as archive:
                _check_members(path, archive, limit)
                manifest = _read_manifest(path, archive)
                arrays = {name: _read_array(path, archive, name) for name in ARRAYS}
        except (
            OSError,
            zipfile.BadZipFile,
            zlib.error,
            lzma.LZMAError,
            EOFError,
            ValueError,
            RuntimeError,
        ) as error:
            raise RoutingFileError(path, f"cannot be read as a routing file ({error})") from None
        stored = manifest.get("content_hash")
        if stored != _hash_arrays(arrays, manifest):
            raise RoutingFileError(path, f"content does not match its content_hash {stored!r}")
        return cls._from_members(path, arrays, manifest)

    @classmethod
    def _from_members(
        cls, path: str | Path, arrays: dict[str, NDArray[Any]], manifest: dict[str, Any]
    ) -> Self:
        for key in (*DERIVED_KEYS, *SOURCE_KEYS):
            if key not in manifest:
                raise RoutingFileError(path, f"manifest has no {key!r}")
        try:
            routing = cls(
                **arrays, top_k=manifest["top_k"], experts=manifest["experts"], manifest=manifest
            )  # fmt: skip
        except InputError as error:
            raise RoutingFileError(path, str(error)) from None
        sizes = {"blocks": routing.blocks, "tokens": routing.tokens}
        for key, size in sizes.items():
            if manifest[key] != size:
                raise RoutingFileError(path, f"manifest says {manifest[key]!r} {key}, the arrays hold {size}")
        return routing

    def __repr__(self) -> str:
        gate = "full gate" if self.full else f"top-{self.columns} of {self.experts}"
        return f"<RoutingFile {self.manifest['model']}: {self.blocks} blocks, {self.tokens} tokens, {gate}>"


def id_dtype(experts: int) -> np.dtype[Any]:
    """Smallest unsigned type that holds expert numbers below ``experts``."""
    return np.dtype(np.uint8 if experts <= 256 else np.uint16)


def rank_candidates(
    expert_ids: ArrayLike, gate_weights: ArrayLike
) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Order candidates by falling float32 gate weight, among equal weights by expert.

    Parameters
    ----------
    expert_ids : int array (..., m)
    gate_weights : float array (..., m)

    Returns
    -------
    tuple of arrays
        Both in the order a routing file demands; weights as float32.
    """
    ids, weights = np.asarray(expert_ids), np.asarray(gate_weights, dtype=np.float32)
    order = np.lexsort((ids, -weights), axis=-1)
    return np.take_along_axis(ids, order, axis=-1), np.take_along_axis(weights, order, axis=-1)


def check_routing(ids: NDArray[Any], weights: NDArray[np.float32], experts: int, top_k: int) -> None:
    """Check the rules of ``expert_ids`` and ``gate_weights``, both (blocks, tokens, m).

    Raises
    ------
    InputError
        Naming field, first bad index, value and rule.
    """
    require_shape("gate_weights", weights, ids.shape, "(blocks, tokens, m) as expert_ids")
    rule = f"must name an expert, 0 to {experts - 1}"
    refuse_where("expert_ids", (ids < 0) | (ids >= experts), ids, rule)
    refuse_where("gate_weights", ~np.isfinite(weights), weights, "must be finite")
    refuse_where("gate_weights", weights < 0, weights, "must be at least 0")
    bad = np.zeros(ids.shape, dtype=bool)
    bad[:, :, 1:] = weights[:, :, 1:] > weights[:, :, :-1]
    refuse_where("gate_weights", bad, weights, "must not rise along a token's candidates")
    bad[:, :, 1:] = (weights[:, :, 1:] == weights[:, :, :-1]) & (ids[:, :, 1:] < ids[:, :, :-1])
    refuse_where("expert_ids", bad, ids, "must rise among candidates of equal gate weight")
    order = np.sort(ids, axis=2)
    bad[:, :, 1:] = order[:, :, 1:] == order[:, :, :-1]
    bad[:, :, 0] = False
    twice = np.asarray(bad.any(axis=2))
    refuse_where("expert_ids", twice, ids[:, :, 0], "a token must not list an expert twice")
    mass = weights[:, :, :top_k].sum(axis=2)
    refuse_where("gate_weights", ~(mass > 0), mass, "a token's top-k weights must not all be zero")


def write_routing(
    path: str | Path,
    *,
    shape: tuple[int, ...],
    experts: int,
    top_k: int,
    expert_ids: Iterable[NDArray[Any]],
    gate_weights: Iterable[NDArray[Any]],
    sequence: NDArray[Any],
    position: NDArray[Any],
    manifest: Mapping[str, Any],
    compression: int = zipfile.ZIP_DEFLATED,
) -> dict[str, Any]:
    """Stream a routing file to disk; whoever calls has checked the arrays (see `check_routing`).

    Parameters
    ----------
    path : str or Path
        Replaced in one step once the new file is complete.
    shape : tuple (blocks, tokens, m)
    experts, top_k : int
    expert_ids, gate_weights : iterable of arrays
        Consecutive pieces, in C order, that together hold prod(shape) values.
    sequence, position : int array (tokens,)
    manifest : mapping
        See `RoutingFile`.
    compression : int
        ``zipfile.ZIP_DEFLATED``, or ``ZIP_LZMA`` for a fifth less at ten times the effort.

    Returns
    -------
    dict
        The manifest as written.
    """
    full = {
        **_checked_manifest(manifest),
        "schema_version": SCHEMA_VERSION, "kind": RoutingFile.KIND, "experts": int(experts),
        "blocks": int(shape[0]), "tokens": int(shape[1]), "top_k": int(top_k),
    }  # fmt: skip
    labels = (shape[1],)
    members: dict[str, tuple[np.dtype[Any], tuple[int, ...], Iterable[NDArray[Any]]]] = {
        "expert_ids": (id_dtype(experts), shape, expert_ids),
        "gate_weights": (np.dtype("<f4"), shape, gate_weights),
        "position": (np.dtype("<i4"), labels, (position,)),
        "sequence": (np.dtype("<i4"), labels, (sequence,)),
    }
    path = Path(path)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
            digest = hashlib.sha256()
            for name in ARRAYS:
                _write_array(archive, name, compression, *members[name], digest)
            full["content_hash"] = _finish_hash(digest, full)
            archive.writestr(_member(MANIFEST), _dump(full, indent=2))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return full


def _token_labels(name: str, value: ArrayLike, tokens: int) -> NDArray[np.int32]:
    labels = int_array(name, value)
    require_shape(name, labels, (tokens,), "(tokens,)")
    high = np.iinfo(np.int32).max
    refuse_where(name, (labels < 0) | (labels > high), labels, f"must be 0 to {high}")
    return labels.astype(np.int32)


def _checked_manifest(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return a deep copy of a manifest as JSON sees it, if it names its source."""
    if not isinstance(manifest, Mapping):
        raise InputError("manifest", "must be a mapping", value=manifest)
    for key in SOURCE_KEYS:
        if key not in manifest:
            raise InputError("manifest", f"has no {key!r} (None where it is not known)")
    try:
        copy: dict[str, Any] = json.loads(_dump(manifest))
    except (TypeError, ValueError) as error:
        raise InputError("manifest", f"must hold JSON values only ({error})") from None
    return copy


def _dump(value: Mapping[str, Any], indent: int | None = None) -> str:
    return json.dumps(dict(value), sort_keys=True, ensure_ascii=False, allow_nan=False, indent=indent)


def _member(name: str, compression: int = zipfile.ZIP_DEFLATED) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, _TIMESTAMP)
    info.compress_type = compression
    info.create_system = 3
    info.external_attr = 0o644 << 16
    return info


def _hash_header(digest: Any, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    digest.update(f"{name} {npy.dtype_to_descr(dtype)} {tuple(map(int, shape))}\n".encode())


def _finish_hash(digest: Any, manifest: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in manifest.items() if key != "content_hash"}
    digest.update(_dump(rest).encode())
    return f"sha256:{digest.hexdigest()}"


def _hash_arrays(arrays: Mapping[str, NDArray[Any]], manifest: Mapping[str, Any]) -> str:
    digest = hashlib.sha256()
    for name in ARRAYS:
        _hash_header(digest, name, arrays[name].dtype, arrays[name].shape)
        digest.update(arrays[name].data)
    return _finish_hash(digest, manifest)


def _write_array(
    archive: zipfile.ZipFile,
    name: str,
    compression: int,
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
    pieces: Iterable[NDArray[Any]],
    digest: Any,
) -> None:
    shape = tuple(map(int, shape))
    _hash_header(digest, name, dtype, shape)
    header = {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    with archive.open(_member(f"{name}.npy", compression), "w", force_zip64=True) as stream:
        npy.write_array_header_1_0(stream, header)
        written = 0
        for data in _as_bytes(pieces, dtype):
            digest.update(data)
            written += stream.write(data)
    expected = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
    if written != expected:
        raise InputError(name, f"pieces must hold {expected} bytes for shape {shape}", value=written)


def _as_bytes(pieces: Iterable[NDArray[Any]], dtype: np.dtype[Any]) -> Iterator[bytes]:
    for piece in pieces:
        yield np.ascontiguousarray(piece, dtype=dtype).tobytes()


def _check_members(path: str | Path, archive: zipfile.ZipFile, limit: int) -> None:
    """Refuse wrong names, encryption, odd compression and sizes, before anything is unpacked."""
    members = archive.infolist()
    names = sorted(member.filename for member in members)
    expected = sorted([MANIFEST, *(f"{name}.npy" for name in ARRAYS)])
    if names != expected:
        raise RoutingFileError(
            path, f"must hold exactly {', '.join(expected)}; holds {', '.join(names)[:300]}"
        )
    for member in members:
        if member.flag_bits & 1 or member.compress_type not in _COMPRESSIONS:
            raise RoutingFileError(
                path, f"{member.filename}: must be stored, deflated or LZMA, not encrypted"
            )
    size = sum(member.file_size for member in members)
    if size > limit:
        raise RoutingFileError(path, f"unpacks to {size} bytes, over the limit of {limit}")
    if archive.getinfo(MANIFEST).file_size > MANIFEST_LIMIT:
        raise RoutingFileError(path, f"{MANIFEST}: over the limit of {MANIFEST_LIMIT} bytes")


def _read_manifest(path: str | Path, archive: zipfile.ZipFile) -> dict[str, Any]:
    manifest = json.loads(archive.read(MANIFEST).decode("utf-8"))
    if not isinstance(manifest, dict) or manifest.get("kind") != RoutingFile.KIND:
        raise RoutingFileError(path, f"{MANIFEST}: kind must be {RoutingFile.KIND!r}")
    version = manifest.get("schema_version")
    if version != SCHEMA_VERSION:
        raise RoutingFileError(path, f"schema_version {version!r}: this version reads {SCHEMA_VERSION}")
    return manifest


def _read_array(path: str | Path, archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    member = archive.getinfo(f"{name}.npy")
    with archive.open(member) as stream:
        if npy.read_magic(stream) != (1, 0):
            raise RoutingFileError(path, f"{member.filename}: must be npy format 1.0")
        shape, fortran, dtype = npy.read_array_header_1_0(stream)
        if dtype.str not in _TYPES[name] or fortran or len(shape) != (3 if name in ARRAYS[:2] else 1):
            raise RoutingFileError(
                path, f"{member.filename}: has no valid type or shape ({dtype.str}, {shape})"
            )
        count = 1
        for length in shape:
            count *= length
        if stream.tell() + count * dtype.itemsize != member.file_size:
            raise RoutingFileError(path, f"{member.filename}: size does not match its shape {shape}")
        return np.frombuffer(stream.read(), dtype=dtype).reshape(shape)


_TYPES = {
    "expert_ids": ("|u1", "<u2"),
    "gate_weights": ("<f4",),
    "position": ("<i4",),
    "sequence": ("<i4",),
}
