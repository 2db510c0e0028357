"""Standard instances by name, and what can be said about them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wdmoe_opt.instance import Instance
from wdmoe_opt.instances import scenario as scenarios
from wdmoe_opt.instances.channels import CHANNELS
from wdmoe_opt.instances.devices import expert_weights, load_profile
from wdmoe_opt.instances.families import FAMILIES, BlockChoice, Family, find_family
from wdmoe_opt.instances.fleets import FLEETS
from wdmoe_opt.instances.placement import PLACEMENTS
from wdmoe_opt.instances.statistics import routing_statistics, stats
from wdmoe_opt.instances.token_types import TokenTypes
from wdmoe_opt.instances.validate import validate_file

__all__ = [
    "FamilySummary",
    "build_instance",
    "describe",
    "expert_memory",
    "export_instance",
    "instance_names",
    "instance_stats",
    "list_families",
    "list_parts",
    "validate_file",
]

#: Keys of a manifest that `describe` leaves out: long lists.
_LONG_KEYS = ("sequences", "parts", "layers")


@dataclass(frozen=True)
class FamilySummary:
    """One line about a family.

    Attributes
    ----------
    name, summary : str
    kind : {"gate weights", "loads", "averages"}
        What is known: per token, per expert, or per token type.
    blocks, experts, top_k, tokens : int
        Tokens of the whole family; of token types, their number.
    default_batch : int or None
        None where a batch is all of a part.
    parts : int
        Subjects or domains; 0 where it has none.
    version : int
    licence : str
        Of the data.
    """

    name: str
    summary: str
    kind: str
    blocks: int
    experts: int
    top_k: int
    tokens: int
    default_batch: int | None
    parts: int
    version: int
    licence: str


_KINDS = {"prefill": "gate weights", "decode": "gate weights", "loads": "loads", "types": "averages"}


def instance_names() -> list[str]:
    """Names of the families, each of which is an instance with everything else at its default."""
    return list(FAMILIES)


def list_families() -> list[FamilySummary]:
    """One line about each family."""
    return [_summary(family) for family in FAMILIES.values()]


def _summary(family: Family) -> FamilySummary:
    source = family.load()
    return FamilySummary(
        name=family.name,
        summary=family.summary,
        kind=_KINDS[family.mode],
        blocks=1 if isinstance(source, TokenTypes) else source.blocks,
        experts=source.experts,
        top_k=source.top_k,
        tokens=source.tokens,
        default_batch=family.batch,
        parts=len(family.parts),
        version=family.version,
        licence=str(source.manifest["data_licence"]),
    )


def list_parts() -> dict[str, list[str]]:
    """Names that a scenario may use: fleets, channels and placements."""
    return {"fleets": list(FLEETS), "channels": list(CHANNELS), "placements": list(PLACEMENTS)}


def build_instance(
    name: str,
    *,
    tokens: int | str | None = None,
    start: int | None = None,
    blocks: BlockChoice = None,
    part: str | None = None,
    **changes: Any,
) -> Instance:
    """Compose a standard instance.

    With defaults: experts placed contiguously on eight Jetson boards (`fleets.FLEETS`) in FP16, in the
    100 MHz cell of paper A with one draw of Rayleigh fading; a token is 16 bit per value each way.

    Parameters
    ----------
    name : str
        A family of `instance_names`, or a scenario such as
        ``"deepseek-v2-lite-law/orin-mix-8/cell-100mhz@64"``; the grammar is in `scenario`.
    tokens : int, "all" or None
        Batch size; default 512 prefill tokens, or 24 users.
    start : int, optional
        First token of the window, or the decode step.
    blocks : int, str or sequence of int, optional
        The first so many blocks; or block indices, also as a text such as "3" or "0-4".
    part : str, optional
        Subject or domain of a family that has them.
    **changes
        Other fields of `scenario.Scenario`: fleet, precision, level, channel, state, seed, per_block,
        cell, link, bits_per_value, placement, expert_device.

    Raises
    ------
    UnknownNameError
        If a name does not exist.
    InputError
        If the parts do not fit together.
    """
    given = {"tokens": tokens, "start": start, "blocks": blocks, "part": part, **changes}
    return scenarios.vary(
        scenarios.parse_name(name), {key: value for key, value in given.items() if value is not None}
    ).build()


def describe(name: str) -> dict[str, Any]:
    """Everything about the family of a name: manifest, licence, sizes, version, hash, parts, memory.

    Raises
    ------
    UnknownNameError
        If there is no such family.
    """
    scenario = scenarios.parse_name(name)
    assert scenario.family is not None
    family = find_family(scenario.family)
    source = family.load()
    summary = _summary(family)
    return {
        **{key: getattr(summary, key) for key in summary.__dataclass_fields__ if key != "parts"},
        "parts": list(family.parts),
        "content_hash": source.manifest["content_hash"],
        "file_bytes": family.path.stat().st_size,
        "default_fleet": family.fleet,
        "manifest": {key: value for key, value in source.manifest.items() if key not in _LONG_KEYS},
        "statistics": routing_statistics(source),
        "memory": expert_memory(family),
    }


def expert_memory(family: Family, precision: str = "fp16") -> dict[str, Any]:
    """Memory that the experts of all captured blocks need on the default fleet, placed in equal numbers.

    Returns
    -------
    dict
        ``bytes_per_board`` of the board with most experts, ``fits``: whether every board has so much.
        Attention, cache and system are not counted.
    """
    source = family.load()
    weights = expert_weights(source.manifest["width"], source.manifest["expert_width"])
    boards = [load_profile(board, precision=precision) for board in FLEETS[family.fleet]]
    hosted = -(-source.experts // len(boards)) * source.blocks
    needed = [hosted * weights * board.bytes_per_weight for board in boards]
    fits = all(
        board.memory is None or need <= board.memory for board, need in zip(boards, needed, strict=True)
    )
    return {"precision": precision, "bytes_per_board": max(needed), "fits": fits}


def instance_stats(name: str | Path, **selection: Any) -> dict[str, Any]:
    """Statistics of an instance by name or file, see `statistics.stats`; selection as in `load_instance`."""
    from wdmoe_opt.library import load_instance

    return stats(load_instance(name, **selection))


def export_instance(name: str, path: str | Path, **selection: Any) -> str:
    """Write a named instance to a file (``.npz`` or ``.json``) and return its content hash."""
    from wdmoe_opt.files import save_instance
    from wdmoe_opt.library import load_instance

    return save_instance(load_instance(name, **selection), path)
