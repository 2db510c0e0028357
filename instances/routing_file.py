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

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from wdmoe_opt.archive import (
    DEFLATED,
    SIZE_LIMIT,
    ArchiveError,
    ArrayRule,
    Layout,
    Stream,
    json_copy,
    read_archive,
    write_archive,
)
from wdmoe_opt.errors import InputError
from wdmoe_opt.validation import IntArray, freeze, int_array, refuse_where, require_shape, whole

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

LAYOUT = Layout(
    "routing",
    1,
    {
        "expert_ids": ArrayRule(("|u1", "<u2"), (3,)),
        "gate_weights": ArrayRule(("<f4",), (3,)),
        "position": ArrayRule(("<i4",), (1,)),
        "sequence": ArrayRule(("<i4",), (1,)),
    },
)
ARRAYS = tuple(LAYOUT.arrays)
#: What a writer must say about the source; None where something is not known.
SOURCE_KEYS = (
    "model", "revision", "model_licence", "weights_meaning", "prompts", "prompt_hash", "capture",
)  # fmt: skip
#: What is derived from the arrays and filled in here.
DERIVED_KEYS = ("schema_version", "kind", "tokens", "blocks", "experts", "top_k", "content_hash")
MAX_EXPERTS = 65_536

#: A routing file cannot be read, or breaks a rule of the format.
RoutingFileError = ArchiveError


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

    KIND: ClassVar[str] = LAYOUT.kind

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
        self._put("manifest", MappingProxyType(checked_source(self.manifest)))

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

    def save(self, path: str | Path, *, compression: int = DEFLATED) -> str:
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
        arrays, manifest = read_archive(path, LAYOUT, limit=limit)
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


def expert_counts(ids: NDArray[Any], experts: int) -> IntArray:
    """Tokens of each expert, (blocks, experts), from ids (blocks, tokens, top_k); -1 counts for none."""
    counts = [np.bincount(block[block >= 0], minlength=experts) for block in ids]
    return np.array(counts, dtype=np.int64)


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
    compression: int = DEFLATED,
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
        `archive.DEFLATED`, or `archive.LZMA` for a fifth less at ten times the effort.

    Returns
    -------
    dict
        The manifest as written.
    """
    sizes = {"experts": experts, "blocks": shape[0], "tokens": shape[1], "top_k": top_k}
    full = {**checked_source(manifest), **{key: int(size) for key, size in sizes.items()}}
    labels, integer = (shape[1],), np.dtype("<i4")
    streams = {
        "expert_ids": Stream(id_dtype(experts).newbyteorder("<"), shape, expert_ids),
        "gate_weights": Stream(np.dtype("<f4"), shape, gate_weights),
        "position": Stream(integer, labels, (position,)),
        "sequence": Stream(integer, labels, (sequence,)),
    }
    return write_archive(path, LAYOUT, streams, full, compression=compression)


def _token_labels(name: str, value: ArrayLike, tokens: int) -> NDArray[np.int32]:
    labels = int_array(name, value)
    require_shape(name, labels, (tokens,), "(tokens,)")
    high = np.iinfo(np.int32).max
    refuse_where(name, (labels < 0) | (labels > high), labels, f"must be 0 to {high}")
    return labels.astype(np.int32)


def checked_source(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return a deep copy of a manifest as JSON sees it, if it names its source.

    Raises
    ------
    InputError
        If a key of `SOURCE_KEYS` is missing, or a value is not JSON.
    """
    if not isinstance(manifest, Mapping):
        raise InputError("manifest", "must be a mapping", value=manifest)
    for key in SOURCE_KEYS:
        if key not in manifest:
            raise InputError("manifest", f"has no {key!r} (None where it is not known)")
    return json_copy(manifest)


def check_list(manifest: Mapping[str, Any], key: str, count: int, array: str) -> None:
    """Raise unless a key of a manifest is a list of so many, as an array has."""
    if not isinstance(manifest.get(key), list) or len(manifest[key]) != count:
        raise InputError(f"manifest.{key}", f"must name {count} as {array} has")


def check_parts(manifest: Mapping[str, Any]) -> None:
    """Raise unless ``parts`` of a manifest are texts, each once."""
    parts = manifest.get("parts")
    if not isinstance(parts, list) or not all(isinstance(part, str) and part for part in parts):
        raise InputError("manifest.parts", "must be a list of texts", value=parts)
    if len(set(parts)) < len(parts):
        raise InputError("manifest.parts", "must name each part once", value=parts)
