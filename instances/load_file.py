"""Load files: how many tokens of each prompt every expert got; no gate weights.

An archive of one array and its manifest:

``loads``
    uint16 or uint32 (parts, prompts, blocks, experts): tokens routed to each expert. Every block of a
    prompt holds the same total, ``top_k`` times the tokens of the prompt.
``manifest.json``
    Source as in a routing file, ``parts`` (names, one per first index), ``layers`` (the model's layer
    of each block), ``top_k``, ``width``, ``expert_width``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from wdmoe_opt.archive import LZMA, ArchiveError, ArrayRule, Layout, read_archive, write_archive
from wdmoe_opt.errors import InputError, UnknownNameError
from wdmoe_opt.instances.routing_file import check_list, check_parts, checked_source
from wdmoe_opt.validation import IntArray, freeze, refuse_where, whole

if TYPE_CHECKING:
    from numpy.typing import NDArray

LAYOUT = Layout("loads", 1, {"loads": ArrayRule(("<u2", "<u4"), (4,))})


@dataclass(frozen=True, eq=False)
class LoadFile:
    """Loads of several prompt sets through one model, validated and read-only.

    Parameters
    ----------
    loads : unsigned int array (parts, prompts, blocks, experts)
        Tokens of each expert.
    manifest : mapping
        See the module.

    Raises
    ------
    InputError
        Naming field, first bad index, value and rule.
    """

    loads: NDArray[Any]
    manifest: Mapping[str, Any]

    def __post_init__(self) -> None:
        loads = np.asarray(self.loads)
        if loads.dtype.kind != "u" or loads.ndim != 4 or loads.size == 0:
            rule = f"must be unsigned (parts, prompts, blocks, experts), got {loads.dtype} {loads.shape}"
            raise InputError("loads", rule)
        totals = loads.sum(axis=3, dtype=np.int64)
        refuse_where("loads", totals != totals[:, :, :1], totals, "blocks of a prompt must have equal totals")
        manifest = checked_source(self.manifest)
        for key, axis in (("parts", 0), ("layers", 2)):
            check_list(manifest, key, loads.shape[axis], "loads")
        check_parts(manifest)
        top_k = whole("manifest.top_k", manifest.get("top_k"), 1, loads.shape[3], "must be 1 to experts")
        refuse_where("loads", totals % top_k != 0, totals, f"totals must be multiples of top_k = {top_k}")
        object.__setattr__(self, "loads", freeze(np.array(loads, order="C")))
        object.__setattr__(self, "manifest", MappingProxyType(manifest))

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the prompt sets."""
        return tuple(self.manifest["parts"])

    @property
    def prompts(self) -> int:
        """Prompts of each part."""
        return int(self.loads.shape[1])

    @property
    def blocks(self) -> int:
        """Number of MoE blocks."""
        return int(self.loads.shape[2])

    @property
    def experts(self) -> int:
        """Routed experts per block."""
        return int(self.loads.shape[3])

    @property
    def top_k(self) -> int:
        """Experts the model uses per token."""
        return int(self.manifest["top_k"])

    @property
    def tokens(self) -> int:
        """Tokens of all prompts together."""
        return int(self.loads[:, :, 0].sum(dtype=np.int64)) // self.top_k

    def find(self, part: str | None) -> tuple[int, slice]:
        """Index of a part and of its prompts, from ``"part"`` or ``"part.prompt"``; None is the first part.

        Raises
        ------
        UnknownNameError
            If there is no such part.
        InputError
            If there is no such prompt.
        """
        name, dot, number = (part or self.parts[0]).partition(".")
        if name not in self.parts:
            raise UnknownNameError("part", name, self.parts)
        index = self.parts.index(name)
        if not dot:
            return index, slice(None)
        if not re.fullmatch("[0-9]{1,18}", number) or int(number) >= self.prompts:
            raise InputError("part", f"prompt must be 0 to {self.prompts - 1}", value=part)
        return index, slice(int(number), int(number) + 1)

    def save(self, path: str | Path, *, compression: int = LZMA) -> str:
        """Write the file and return its content hash."""
        written = write_archive(path, LAYOUT, {"loads": self.loads}, self.manifest, compression=compression)
        return str(written["content_hash"])

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a load file and check it against its hash.

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
        size = f"{len(self.parts)} parts, {self.prompts} prompts each, {self.blocks} blocks"
        return f"<LoadFile {self.manifest['model']}: {size}, {self.experts} experts>"


def exact_loads(shares: NDArray[np.floating[Any]], top_k: int, *, most_tokens: int = 4096) -> IntArray:
    """Whole loads behind rounded shares, by the smallest number of tokens that makes all of them whole.

    Parameters
    ----------
    shares : float array (prompts, blocks, experts)
        Rows sum to 1: the share of ``top_k`` times the prompt's tokens that each expert got.
    top_k : int
    most_tokens : int
        Where the search ends.

    Returns
    -------
    int array (prompts, blocks, experts)

    Raises
    ------
    InputError
        If no number of tokens fits a prompt.
    """
    loads = np.zeros(shares.shape, dtype=np.int64)
    slots = top_k * np.arange(1, most_tokens + 1, dtype=np.float64)
    for prompt, row in enumerate(np.asarray(shares, dtype=np.float64)):
        fits = np.ones(slots.size, dtype=bool)
        for values in np.array_split(row.ravel(), 16):
            scaled = slots[fits, None] * values
            fits[fits] = (np.abs(scaled - np.round(scaled)) < 2e-3).all(axis=1)
        if not fits.any():
            raise InputError("shares", f"no number of tokens up to {most_tokens} fits", index=(prompt,))
        loads[prompt] = np.round(row * slots[fits.argmax()]).astype(np.int64)
        total = loads[prompt].sum(axis=1)
        refuse_where("shares", total != slots[fits.argmax()], total, "a block's shares must sum to 1")
    return loads
