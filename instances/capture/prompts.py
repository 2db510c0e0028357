"""Prompts: reading them from a file, turning them into token ids, and naming them by a hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wdmoe_opt.archive import ArchiveError, parse_json, regular_file
from wdmoe_opt.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

Prompt = str | Sequence[int]
_JSON_LINES = (".jsonl", ".ndjson")
_FIELDS = ("prompt", "text")


@dataclass(frozen=True)
class Encoded:
    """Token ids of every prompt, with what identifies them.

    Parameters
    ----------
    ids : list of int32 arrays (length,)
        One array per prompt, none empty.
    prompt_hash : str
        Hash of the prompts as given.
    token_hash : str
        Hash of ``ids``.
    truncated : int
        Prompts cut to the longest length allowed.
    """

    ids: list[NDArray[np.int32]]
    prompt_hash: str
    token_hash: str
    truncated: int


def read_prompts(path: str | Path) -> list[str]:
    """Read prompts: one per line, or one JSON object per line with a "prompt" or "text" field.

    JSON lines are recognised by the ending ``.jsonl`` or ``.ndjson``. Blank lines are skipped.

    Raises
    ------
    InputError
        If the file cannot be read, is no regular one, or holds no prompt; a bad line is named by its number,
        from 1.
    """
    try:
        path = regular_file(path)
        lines = path.read_bytes().split(b"\n")
    except ArchiveError as error:
        raise InputError("prompts", error.rule, value=str(path)) from None
    except (OSError, MemoryError) as error:
        reason = getattr(error, "strerror", "out of memory")
        raise InputError("prompts", f"cannot be read ({reason})", value=str(path)) from None
    parse = _json_prompt if path.suffix.lower() in _JSON_LINES else None
    prompts = []
    for number, line in enumerate(lines, start=1):
        where = f"{path.name} line {number}"
        text = _decoded(where, line)
        if text.strip():
            prompts.append(parse(where, text) if parse else text)
    if not prompts:
        raise InputError("prompts", "holds no prompt", value=str(path))
    return prompts


def encode(
    prompts: Sequence[Prompt], tokenizer: Callable[[str], Any] | None, max_length: int, vocabulary: int
) -> Encoded:
    """Token ids of prompts that are texts (through ``tokenizer``) or sequences of token ids.

    Parameters
    ----------
    prompts : sequence of str or of int sequences
    tokenizer : callable, optional
        Maps a text to a mapping with ``input_ids``; needed where a prompt is a text.
    max_length : int
        Tokens kept of each prompt.
    vocabulary : int
        Token ids must be below this.

    Raises
    ------
    InputError
        Naming the prompt, from 0, and the rule.
    """
    if not prompts:
        raise InputError("prompts", "must hold at least one prompt")
    named, ids, truncated = hashlib.sha256(), [], 0
    for number, prompt in enumerate(prompts):
        tokens = _token_ids(number, prompt, tokenizer, vocabulary)
        named.update(_named(prompt, tokens))
        truncated += tokens.size > max_length
        ids.append(tokens[:max_length])
    return Encoded(ids, f"sha256:{named.hexdigest()}", _hash_ids(ids), truncated)


def _decoded(where: str, line: bytes) -> str:
    try:
        return line.decode("utf-8-sig").rstrip("\r")
    except UnicodeDecodeError as error:
        raise InputError(
            "prompts", f"{where}: must be UTF-8 ({error.reason} at byte {error.start})"
        ) from None


def _json_prompt(where: str, text: str) -> str:
    try:
        record = parse_json(text)
    except json.JSONDecodeError as error:
        raise InputError("prompts", f"{where}: must be JSON ({error.msg}, column {error.colno})") from None
    except (ValueError, RecursionError) as error:
        raise InputError("prompts", f"{where}: must be JSON ({error})") from None
    found = [record[name] for name in _FIELDS if name in record] if isinstance(record, dict) else []
    if len(found) != 1:
        raise InputError("prompts", f'{where}: must be an object with a "prompt" or a "text" field')
    if not isinstance(found[0], str) or not found[0].strip():
        raise InputError("prompts", f"{where}: must be a text that is not empty", value=found[0])
    try:
        found[0].encode()
    except UnicodeEncodeError as error:
        raise InputError("prompts", f"{where}: must be Unicode ({error.reason})") from None
    return found[0]


def _token_ids(
    number: int, prompt: Prompt, tokenizer: Callable[[str], Any] | None, vocabulary: int
) -> NDArray[np.int32]:
    field = f"prompts[{number}]"
    if isinstance(prompt, str):
        if tokenizer is None:
            raise InputError(field, "is a text, which needs a tokenizer")
        prompt = tokenizer(prompt)["input_ids"]
    tokens = np.asarray(prompt)
    if tokens.ndim != 1 or tokens.size == 0 or tokens.dtype.kind not in "iu":
        raise InputError(field, "must be at least one token, as a flat sequence of whole numbers")
    if tokens.min() < 0 or tokens.max() >= vocabulary:
        raise InputError(field, f"token ids must be 0 to {vocabulary - 1}", value=int(tokens.max()))
    return tokens.astype(np.int32)


def _named(prompt: Prompt, tokens: NDArray[np.int32]) -> bytes:
    """Bytes that stand for one prompt, self-delimiting."""
    data = prompt.encode() if isinstance(prompt, str) else tokens.astype("<i4").tobytes()
    kind = "text" if isinstance(prompt, str) else "ids"
    return f"{kind} {len(data)}\n".encode() + data


def _hash_ids(ids: list[NDArray[np.int32]]) -> str:
    digest = hashlib.sha256()
    for tokens in ids:
        digest.update(_named([], tokens))
    return f"sha256:{digest.hexdigest()}"
