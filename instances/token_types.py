"""Token-type files: how often each vocabulary token chose each expert. Averages, not gates of single tokens.

An archive of three arrays and its manifest:

``counts``
    uint16 (blocks, types, experts): among all occurrences of a token type in a domain, how many chose
    that expert (each occurrence chooses ``top_k``).
``token_id``
    uint32 (types,): number of the token in the model's vocabulary.
``domain``
    uint8 (types,): index into the manifest's ``parts``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from wdmoe_opt.archive import LZMA, ArchiveError, ArrayRule, Layout, read_archive, write_archive
from wdmoe_opt.errors import InputError, UnknownNameError
from wdmoe_opt.instances.routing_file import (
    RoutingFile,
    check_list,
    check_parts,
    checked_source,
    rank_candidates,
)
from wdmoe_opt.validation import IntArray, RealArray, freeze, refuse_where, require_shape, whole

if TYPE_CHECKING:
    from numpy.typing import NDArray

LAYOUT = Layout(
    "token-types",
    1,
    {
        "counts": ArrayRule(("<u2",), (3,)),
        "domain": ArrayRule(("|u1",), (1,)),
        "token_id": ArrayRule(("<u4",), (1,)),
    },
)


@dataclass(frozen=True, eq=False)
class TokenTypes:
    """Choices per token type in several domains, validated and read-only.

    Parameters
    ----------
    counts : uint16 array (blocks, types, experts)
    domain : uint8 array (types,)
    token_id : uint32 array (types,)
    manifest : mapping
        Source as in a routing file, ``parts`` (domains), ``layers``, ``top_k``.
    """

    counts: NDArray[np.uint16]
    domain: NDArray[np.uint8]
    token_id: NDArray[np.uint32]
    manifest: Mapping[str, Any]

    def __post_init__(self) -> None:
        counts = np.asarray(self.counts)
        if counts.ndim != 3 or counts.size == 0 or counts.dtype != np.uint16:
            rule = f"must be uint16 (blocks, types, experts), got {counts.dtype} {counts.shape}"
            raise InputError("counts", rule)
        manifest = checked_source(self.manifest)
        top_k = whole("manifest.top_k", manifest.get("top_k"), 1, counts.shape[2], "must be 1 to experts")
        totals = counts.sum(axis=2, dtype=np.int64)
        refuse_where("counts", totals != totals[:1], totals, "blocks of a token type must have equal totals")
        refuse_where("counts", totals % top_k != 0, totals, f"totals must be multiples of top_k = {top_k}")
        over = counts > (totals // top_k)[:, :, None]
        refuse_where("counts", over, counts, "an expert is chosen at most once per occurrence")
        for name in ("domain", "token_id"):
            require_shape(name, np.asarray(getattr(self, name)), counts.shape[1:2], "(types,)")
        check_parts(manifest)
        parts = len(manifest["parts"])
        refuse_where("domain", np.asarray(self.domain) >= parts, self.domain, f"must be below {parts} parts")
        check_list(manifest, "layers", counts.shape[0], "counts")
        for name in LAYOUT.arrays:
            object.__setattr__(self, name, freeze(np.array(getattr(self, name), order="C")))
        object.__setattr__(self, "manifest", MappingProxyType(manifest))

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the domains."""
        return tuple(self.manifest["parts"])

    @property
    def blocks(self) -> int:
        """Number of MoE blocks that were counted."""
        return int(self.counts.shape[0])

    @property
    def experts(self) -> int:
        """Routed experts per block."""
        return int(self.counts.shape[2])

    @property
    def top_k(self) -> int:
        """Experts the model uses per token."""
        return int(self.manifest["top_k"])

    @property
    def tokens(self) -> int:
        """Token types of all domains together."""
        return int(self.counts.shape[1])

    def rows(self, part: str | None = None) -> NDArray[np.intp]:
        """Types of a domain by falling occurrence, as indices; None is the first domain.

        Raises
        ------
        UnknownNameError
            If there is no such domain.
        """
        name = part or self.parts[0]
        if name not in self.parts:
            raise UnknownNameError("part", name, self.parts)
        found = np.flatnonzero(self.domain == self.parts.index(name))
        return found[np.argsort(-self.occurrences[found], kind="stable")]

    @property
    def occurrences(self) -> IntArray:
        """How often each token type occurred, int (types,)."""
        found: IntArray = self.counts[0].sum(axis=1, dtype=np.int64) // self.top_k
        return found

    def distribution(self, part: str | None = None) -> RealArray:
        """Share of each type's choices that went to each expert, (blocks, types, experts); rows sum to 1.

        An average over the occurrences of a token type in its contexts, types as `rows` orders them.
        """
        rows = self.rows(part)
        shares: RealArray = self.counts[:, rows] / (self.top_k * self.occurrences[rows])[:, None]
        return shares

    def routing(self, part: str | None = None) -> RoutingFile:
        """Averaged distributions of the first block as full-gate routing, one token per token type.

        Not a capture: no single token was routed like this.
        """
        full = self.distribution(part)[:1]
        ids, weights = rank_candidates(np.broadcast_to(np.arange(self.experts), full.shape), full)
        types = np.arange(full.shape[1], dtype=np.int32)
        return RoutingFile(
            ids,
            weights,
            top_k=self.top_k,
            experts=self.experts,
            sequence=np.zeros_like(types),
            position=types,
            manifest={**self.manifest, "layers": self.manifest["layers"][:1], "part": part or self.parts[0]},
        )

    def save(self, path: str | Path, *, compression: int = LZMA) -> str:
        """Write the file and return its content hash."""
        arrays = {name: getattr(self, name) for name in LAYOUT.arrays}
        return str(
            write_archive(path, LAYOUT, arrays, self.manifest, compression=compression)["content_hash"]
        )

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a token-type file and check it against its hash.

        Raises
        ------
        ArchiveError
            If the file cannot be read, breaks the format or does not match its hash.
        """
        arrays, manifest = read_archive(path, LAYOUT)
        try:
            return cls(**arrays, manifest=manifest)
        except InputError as error:
            raise ArchiveError(path, str(error)) from None

    def __repr__(self) -> str:
        size = f"{len(self.parts)} domains, {self.tokens} token types, {self.blocks} blocks"
        return f"<TokenTypes {self.manifest['model']}: {size}, {self.experts} experts>"
