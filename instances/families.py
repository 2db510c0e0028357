"""Routing families: captured routing by name, and the batches cut from it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wdmoe_opt.errors import InputError, UnknownNameError
from wdmoe_opt.instances.load_file import LoadFile
from wdmoe_opt.instances.routing_file import RoutingFile, expert_counts
from wdmoe_opt.instances.token_types import TokenTypes
from wdmoe_opt.validation import IntArray, whole

DATA = Path(__file__).parent / "data" / "routing"
SourceFile = RoutingFile | LoadFile | TokenTypes
BlockChoice = int | str | Sequence[int] | NDArray[np.integer[Any]] | None


@dataclass(frozen=True)
class Family:
    """One named set of captured routing.

    Attributes
    ----------
    name, summary : str
    path : Path
        Its file.
    mode : {"prefill", "decode", "loads", "types"}
        What a batch is: a window of consecutive tokens; one token of each of several users; the loads of
        whole prompts; a window of token types with averaged choices.
    batch : int or None
        Tokens of the default batch; None is all.
    start : int
        Where the default batch starts. Of gpt-oss 32: every answer begins with the same few format
        tokens, which all users would route alike.
    fleet : str
        Default fleet of its instances.
    version : int
        Counts up whenever the numbers of the family change.
    """

    name: str
    summary: str
    path: Path
    mode: str
    batch: int | None
    start: int = 0
    fleet: str = "orin-mix-8"
    version: int = 1

    def load(self) -> SourceFile:
        """Read the whole family; kept in memory after the first time.

        Raises
        ------
        ArchiveError
            If the file is damaged.
        """
        return _load(self.path, self.mode)

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of its parts (subjects, domains); empty where it has none."""
        source = self.load()
        return () if isinstance(source, RoutingFile) else source.parts


_READERS: dict[str, Callable[[Path], SourceFile]] = {
    "prefill": RoutingFile.load,
    "decode": RoutingFile.load,
    "loads": LoadFile.load,
    "types": TokenTypes.load,
}


@cache
def _load(path: Path, mode: str) -> SourceFile:
    return _READERS[mode](path)


def _deepseek(task: str, prompts: str) -> Family:
    path = DATA / "deepseek-v2-lite" / f"{task}.npz"
    return Family(
        f"deepseek-v2-lite-{task}", f"DeepSeek-V2-Lite, 64 experts, top-6: {prompts}", path, "prefill", 512
    )


def _tiny_moe(text: str, prompts: str) -> Family:
    path = DATA / "tiny-moe" / f"{text}.npz"
    return Family(f"tiny-moe-{text}", f"tiny MoE (ours), 8 experts, top-2: {prompts}", path, "prefill", 512)


FAMILIES = {
    family.name: family
    for family in (
        _deepseek("intent", "Chinese sentences to JSON intents"),
        _deepseek("law", "Chinese court cases"),
        _deepseek("summary", "Chinese customer calls"),
        _deepseek("translation", "Cherokee to English"),
        Family(
            "gpt-oss-20b-decode",
            "gpt-oss-20b, 32 experts, top-4: 24 users, one generated token each",
            DATA / "gpt-oss-20b" / "sequences.npz",
            "decode",
            24,
            start=32,
        ),
        Family(
            "mixtral-8x7b-mmlu-load",
            "Mixtral-8x7B, 8 experts, top-2: loads of 57 MMLU subjects, 20 questions each",
            DATA / "mixtral-8x7b" / "mmlu-loads.npz",
            "loads",
            None,
            fleet="agx-mix-8",
        ),
        Family(
            "olmoe-domains",
            "OLMoE-1B-7B, 64 experts, top-8: loads of six domains and two fine-tuned variants, three layers",
            DATA / "olmoe" / "domain-loads.npz",
            "loads",
            None,
        ),
        Family(
            "olmoe-token-types-averaged",
            "OLMoE-1B-7B, 64 experts: averages per token type of four domains, first layer",
            DATA / "olmoe" / "token-types.npz",
            "types",
            512,
        ),
        _tiny_moe("gsm8k", "held-out problems of GSM8K, full gate"),
        _tiny_moe("humaneval", "HumanEval, unlike anything it was trained on, full gate"),
        _tiny_moe("shakespeare", "held-out tinyshakespeare, full gate"),
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


@dataclass(frozen=True)
class Batch:
    """What a batch of a family routes.

    Attributes
    ----------
    experts, top_k : int
    routing : mapping
        ``expert_ids``, ``gate_weights``, ``top_k`` as in an `Instance`; empty where only loads are known.
    expert_loads : int array (blocks, experts)
        Tokens of each expert under plain top-k.
    outside_load : int array (blocks, experts)
        Choices of each expert by what is not in the batch: the tokens of the family outside it, or its
        other prompts. All zero if nothing is left.
    manifest : mapping
        Of the source file.
    record : mapping
        What was cut, for provenance; of a window with "sequence_starts", the tokens at which another
        sequence begins than the one before.
    """

    experts: int
    top_k: int
    routing: Mapping[str, Any]
    expert_loads: IntArray
    outside_load: IntArray
    manifest: Mapping[str, Any]
    record: Mapping[str, Any] = field(default_factory=dict)


def cut_batch(
    source: SourceFile,
    mode: str,
    *,
    part: str | None = None,
    tokens: int | str | None = None,
    start: int = 0,
    blocks: BlockChoice = None,
    default: int | None = None,
) -> Batch:
    """Cut a batch from a source file.

    Parameters
    ----------
    source : RoutingFile, LoadFile or TokenTypes
    mode : str
        As in `Family`.
    part : str, optional
        Subject or domain, for loads also ``"part.prompt"``; default the first part, all its prompts.
    tokens : int, "all" or None
        Batch size; None is ``default``. In prefill mode a window of consecutive tokens, in decode mode
        that many users, for token types the most frequent ones from ``start``.
    start : int
        Prefill and types: first of the window. Decode: which token of each user's answer; users whose
        answer is shorter are left out.
    blocks : int, str or sequence of int, optional
        See `block_indices`.
    default : int, optional
        None is all.

    Raises
    ------
    UnknownNameError
        If there is no such part.
    InputError
        If the batch does not fit.
    """
    record: dict[str, Any] = {"mode": mode}
    if isinstance(source, LoadFile):
        return _cut_loads(source, part, tokens, start, blocks, record)
    if isinstance(source, TokenTypes):
        record["part"] = part or source.parts[0]
        source = source.routing(part)
    elif part is not None:
        raise InputError("part", "cannot be set: the family has no parts", value=part)
    if isinstance(tokens, str) and tokens != "all":
        raise InputError("tokens", "must be a whole number or 'all'", value=tokens)
    cut = _decode_step if mode == "decode" else _window
    chosen = cut(source, None if tokens == "all" else default if tokens is None else tokens, start)
    rows = block_indices(blocks, source.blocks)
    ids = source.expert_ids[rows][:, chosen]
    record |= {"tokens": int(chosen.size), "start": start, "blocks": rows.tolist()}
    if mode == "prefill":
        sequence = source.sequence[chosen]
        record["sequence_starts"] = (np.flatnonzero(sequence[1:] != sequence[:-1]) + 1).tolist()
    loads = expert_counts(ids[:, :, : source.top_k], source.experts)
    everything = expert_counts(source.expert_ids[rows][:, :, : source.top_k], source.experts)
    return Batch(
        experts=source.experts,
        top_k=source.top_k,
        routing={
            "expert_ids": ids.astype(np.int64),
            "gate_weights": source.gate_weights[rows][:, chosen].astype(np.float64),
            "top_k": source.top_k,
        },
        expert_loads=loads,
        outside_load=everything - loads,
        manifest=source.manifest,
        record=record,
    )


def block_indices(blocks: BlockChoice, count: int) -> NDArray[np.intp]:
    """Indices of blocks: the first so many (int), a list of indices, or a text such as "3", "0-4", "0,7,15".

    Raises
    ------
    InputError
        If a block does not exist or is named twice.
    """
    if blocks is None:
        return np.arange(count)
    if isinstance(blocks, str):
        chosen = [index for piece in blocks.split(",") for index in _span(piece, blocks, count)]
    elif isinstance(blocks, Iterable):
        chosen = list(blocks)
    else:
        rule = (
            f"must be 1 to {count}: a number keeps the first so many blocks (as a text it is a block's index)"
        )
        return np.arange(whole("blocks", blocks, 1, count, rule))
    if not chosen:
        raise InputError("blocks", "must name at least one block")
    for index in chosen:
        whole("blocks", index, 0, count - 1, f"must name a block, 0 to {count - 1}")
    if len(set(chosen)) < len(chosen):
        raise InputError("blocks", "must name each block once", value=[int(index) for index in chosen])
    return np.array(chosen, dtype=np.intp)


def _span(piece: str, whole_text: str, count: int) -> range:
    first, dash, last = piece.strip().partition("-")
    ends = [first, last] if dash else [first]
    if not all(is_number(end) for end in ends):
        rule = "must be a number of blocks, or indices such as '3-3', '0-4' or '0,7,15'"
        raise InputError("blocks", rule, value=whole_text[:40])
    # Checked before a range is expanded, which may be as long as the user likes.
    for end in ends:
        if len(end) > _DIGITS:
            raise InputError("blocks", f"must name a block, 0 to {count - 1}", value=f"{end[:_DIGITS]}...")
        whole("blocks", int(end), 0, count - 1, f"must name a block, 0 to {count - 1}")
    return range(int(first), int(ends[-1]) + 1)


#: More digits than any number of a name needs; Python refuses to read some thousand.
_DIGITS = 18


def is_number(text: str) -> bool:
    """Whether a text is a whole number in ASCII digits (`str.isdigit` also takes superscripts)."""
    return text.isascii() and text.isdecimal()


def _cut_loads(
    source: LoadFile, part: str | None, tokens: Any, start: int, blocks: BlockChoice, record: dict[str, Any]
) -> Batch:
    if tokens not in (None, "all"):
        raise InputError("tokens", "cannot be set: only the loads of whole prompts are known", value=tokens)
    if start != 0:
        raise InputError("start", "cannot be set: choose a prompt as 'part.prompt'", value=start)
    index, prompts = source.find(part)
    rows = block_indices(blocks, source.blocks)
    inside = source.loads[index, prompts].sum(axis=0, dtype=np.int64)
    everything: IntArray = source.loads.sum(axis=(0, 1), dtype=np.int64)
    count = int(inside[0].sum()) // source.top_k
    record |= {"part": part or source.parts[0], "tokens": count, "start": 0, "blocks": rows.tolist()}
    return Batch(
        experts=source.experts,
        top_k=source.top_k,
        routing={},
        expert_loads=inside[rows],
        outside_load=(everything - inside)[rows],
        manifest=source.manifest,
        record=record,
    )


def _window(routing: RoutingFile, count: Any, start: int) -> NDArray[np.intp]:
    start = whole("start", start, 0, routing.tokens - 1, f"must be 0 to {routing.tokens - 1}")
    left = routing.tokens - start
    size = left
    if count is not None:
        size = whole("tokens", count, 1, left, f"must be 1 to {left} from token {start}")
    return np.arange(start, start + size)


def _decode_step(routing: RoutingFile, count: Any, step: int) -> NDArray[np.intp]:
    starts = np.flatnonzero(np.r_[True, routing.sequence[1:] != routing.sequence[:-1]])
    lengths = np.diff(np.r_[starts, routing.tokens])
    step = whole("start", step, 0, int(lengths.max()) - 1, f"must be 0 to {lengths.max() - 1}")
    users: NDArray[np.intp] = (starts + step)[lengths > step]
    if count is None:
        return users
    size = whole("tokens", count, 1, users.size, f"must be 1 to {users.size} users at step {step}")
    return users[:size]
