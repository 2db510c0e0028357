"""Part files of a capture in progress: what makes it resumable, and bounded in memory."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from wdmoe_opt.archive import ArchiveError, read_json, write_atomically, write_text
from wdmoe_opt.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

_NAME = re.compile(r"part-(\d{8})-(\d{8})\.npy")


@dataclass(frozen=True)
class PartStore:
    """Folder of part files, each the routing of a range of prompts.

    A part is one structured ``.npy`` array (blocks, tokens) with the fields ``ids`` and ``weights``, both
    (m,), so that it can be read block by block without loading it. It appears under its name only when it
    is complete.

    Parameters
    ----------
    folder : Path
    blocks, columns : int
    dtype : dtype
        Of expert ids.
    offsets : int array (prompts + 1,)
        Tokens before each prompt.
    """

    folder: Path
    blocks: int
    columns: int
    dtype: np.dtype[Any]
    offsets: NDArray[np.int64]

    @property
    def record(self) -> np.dtype[Any]:
        """Type of one token in one block."""
        m = (self.columns,)
        return np.dtype([("ids", self.dtype, m), ("weights", "<f4", m)])

    def open(self, settings: Mapping[str, Any]) -> None:
        """Create the folder, or check that what it holds was captured with the same settings.

        Raises
        ------
        InputError
            Naming the first setting that differs.
        InstanceFileError
            If the folder's settings cannot be read.
        """
        note = self.folder / "settings.json"
        wanted = json.loads(json.dumps(dict(settings)))
        if not note.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(note, json.dumps(wanted, indent=2))
            return
        found = read_json(note)
        if not isinstance(found, dict):
            raise ArchiveError(note, "must hold the settings of a capture; remove its folder to start afresh")
        for key in sorted({*wanted, *found}):
            if wanted.get(key) != found.get(key):
                rule = f"{self.folder} was begun with {found.get(key)!r}; remove that folder to start afresh"
                raise InputError(key, rule, value=wanted.get(key))

    def complete(self) -> list[tuple[int, int]]:
        """Prompt ranges [start, stop) of the complete parts, without a gap from prompt 0."""
        ranges = {}
        for path in self.folder.iterdir():
            if match := _NAME.fullmatch(path.name):
                ranges[int(match[1])] = int(match[2])
        done: list[tuple[int, int]] = []
        start = 0
        while start in ranges and self._readable(start, ranges[start]):
            done.append((start, ranges[start]))
            start = ranges[start]
        return done

    def write(
        self, start: int, ids: list[NDArray[Any]], weights: list[NDArray[np.float32]], stop: int
    ) -> None:
        """Write the routing of prompts [start, stop), given batch by batch as (blocks, tokens, m)."""
        part = np.empty((self.blocks, int(self.offsets[stop] - self.offsets[start])), dtype=self.record)
        part["ids"] = np.concatenate(ids, axis=1)
        part["weights"] = np.concatenate(weights, axis=1)
        write_atomically(self._path(start, stop), lambda stream: np.save(stream, part, allow_pickle=False))

    def pieces(self, field: str) -> Iterator[NDArray[Any]]:
        """Yield ``field`` of the whole capture in (blocks, tokens, m) order, a block of a part at a time."""
        ranges = self.complete()
        for block in range(self.blocks):
            for start, stop in ranges:
                yield self._open(start, stop)[field][block]

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder)

    def _path(self, start: int, stop: int) -> Path:
        return self.folder / f"part-{start:08d}-{stop:08d}.npy"

    def _open(self, start: int, stop: int) -> NDArray[Any]:
        part: NDArray[Any] = np.load(self._path(start, stop), mmap_mode="r", allow_pickle=False)
        return part

    def _readable(self, start: int, stop: int) -> bool:
        if not start < stop < self.offsets.size:
            return False
        try:
            part = self._open(start, stop)
        except (OSError, ValueError, EOFError):
            return False
        tokens = int(self.offsets[stop] - self.offsets[start])
        return part.dtype == self.record and part.shape == (self.blocks, tokens)
