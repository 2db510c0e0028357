"""Routing families: captured routing by name, and the batches cut from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wdmoe_opt.errors import InputError, UnknownNameError
from wdmoe_opt.instances.routing_file import RoutingFile
from wdmoe_opt.validation import whole

DATA = Path(__file__).parent / "data" / "routing"


@dataclass(frozen=True)
class Family:
    """One named set of captured routing.

    Attributes
    ----------
    name, summary : str
    path : Path
        Its routing file.
    mode : {"prefill", "decode"}
        Whether a batch is a window of consecutive tokens, or one token of each of several users.
    batch : int
        Tokens of the default batch.
    """

    name: str
    summary: str
    path: Path
    mode: str
    batch: int

    def load(self) -> RoutingFile:
        """Read the whole family; kept in memory after the first time."""
        return _load(self.path)


@cache
def _load(path: Path) -> RoutingFile:
    return RoutingFile.load(path)


def _deepseek(task: str, summary: str) -> Family:
    path = DATA / "deepseek-v2-lite" / f"{task}.npz"
    return Family(f"deepseek-v2-lite-{task}", summary, path, mode="prefill", batch=512)


FAMILIES = {
    family.name: family
    for family in (
        _deepseek("intent", "DeepSeek-V2-Lite, 64 experts, top-6: Chinese sentences to JSON intents"),
        _deepseek("law", "DeepSeek-V2-Lite, 64 experts, top-6: Chinese court cases"),
        _deepseek("summary", "DeepSeek-V2-Lite, 64 experts, top-6: Chinese customer calls"),
        _deepseek("translation", "DeepSeek-V2-Lite, 64 experts, top-6: Cherokee to English"),
        Family(
            "gpt-oss-20b-decode",
            "gpt-oss-20b, 32 experts, top-4: 24 users, one generated token each",
            DATA / "gpt-oss-20b" / "sequences.npz",
            mode="decode",
            batch=24,
        ),
    )
}


def find_family(name: str) -> Family:
    """Return the family of that name.

    Raises
    ------
    UnknownNameError
        If there is none.
    """
    if name not in FAMILIES:
        raise UnknownNameError("instance", name, FAMILIES)
    return FAMILIES[name]


def batch_tokens(family: Family, tokens: int | str | None, start: int) -> NDArray[np.intp]:
    """Token indices of a batch.

    Parameters
    ----------
    family : Family
    tokens : int, "all" or None
        Batch size; None is the family's default. In prefill mode a window of consecutive tokens, in
        decode mode that many users.
    start : int
        Prefill: first token of the window. Decode: which token of each user's answer; users whose
        answer is shorter are left out.

    Raises
    ------
    InputError
        If the batch does not fit.
    """
    routing = family.load()
    cut: Callable[[RoutingFile, int | None, int], NDArray[np.intp]]
    cut = _decode_step if family.mode == "decode" else _prefill_window
    if isinstance(tokens, str) and tokens != "all":
        raise InputError("tokens", "must be a whole number or 'all'", value=tokens)
    count = None if tokens == "all" else family.batch if tokens is None else tokens
    return cut(routing, count, start)


def _prefill_window(routing: RoutingFile, count: Any, start: int) -> NDArray[np.intp]:
    start = whole("start", start, 0, routing.tokens - 1, f"must be at most {routing.tokens - 1}")
    left = routing.tokens - start
    size = (
        left if count is None else whole("tokens", count, 1, left, f"must be 1 to {left} from token {start}")
    )
    return np.arange(start, start + size)


def _decode_step(routing: RoutingFile, count: Any, step: int) -> NDArray[np.intp]:
    starts = np.flatnonzero(np.r_[True, routing.sequence[1:] != routing.sequence[:-1]])
    lengths = np.diff(np.r_[starts, routing.tokens])
    step = whole("start", step, 0, int(lengths.max()) - 1, f"must be at most {lengths.max() - 1}")
    users = starts[lengths > step] + step
    if count is None:
        return users
    return users[: whole("tokens", count, 1, users.size, f"must be 1 to {users.size} users at step {step}")]
