"""Scenarios: routing x fleet x channel x payload x placement, from a name or a small TOML or JSON file.

A name reads ``FAMILY[:PART][/FLEET[/CHANNEL]][@TOKENS[+START]][#BLOCKS]``. A fleet may be followed by
``:PRECISION`` and ``:LEVEL``, a channel by ``:STATE`` and ``:per-block``. BLOCKS are indices: ``#3`` is
block 3 alone, ``#0-2`` the first three. What is missing takes its default. Examples::

    deepseek-v2-lite-law
    deepseek-v2-lite-law/orin-mix-8/cell-100mhz@64
    deepseek-v2-lite-law/orin-mix-64:int4:high/umi-100mhz:3@512+1000#0-4
    gpt-oss-20b-decode@all+100
    mixtral-8x7b-mmlu-load:anatomy.3

A file has these tables and keys, all optional but the source of the routing. Units are SI; paths are
relative to the file::

    name = "my-scenario"

    [routing]
    family = "deepseek-v2-lite-law"   # or: file = "captured.npz", a routing file of one's own
    part = "anatomy"                  # families with parts
    tokens = 64                       # or "all"
    start = 0
    blocks = 4                        # the first four; or [0, 7], or "0-4"
    width = 2048                      # of the model, where the routing file does not say
    expert_width = 1408

    [fleet]
    name = "orin-mix-8"               # or: boards = ["agx-orin-maxn", "my-board.json"]
    precision = "fp16"
    level = "centre"                  # or "low", "high": of the measured spread, as a time

    [channel]
    name = "cell-100mhz"
    state = 0                         # which state of the sequence, at most 99999
    seed = 1
    per_block = false                 # true: block i sees state + i
    distances_m = [60, 90]            # and carrier_ghz, total_bandwidth_mhz, power_down, power_up,
                                      # noise_dbm_per_hz: of the drawn channels
    link_delay = 0.002                # and bandwidth_min, bandwidth_max: as in an Instance
    # or, instead of all that: the radio fields of an Instance (gain_down, gain_up, power_down, power_up,
    # noise_density, total_bandwidth), or token_time_link

    [payload]
    bits_per_value = 16

    [placement]
    rule = "contiguous"               # or "one-per-device", "balanced"; or: expert_device = [0, 0, 1, 1]
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from wdmoe_opt import units
from wdmoe_opt.archive import as_path, read_json, read_toml
from wdmoe_opt.errors import InputError, InstanceFileError, UnknownNameError
from wdmoe_opt.instance import Instance
from wdmoe_opt.instances.channels import CELL_PARAMETERS, CHANNEL_SEED, CHANNELS, ChannelState, channel_states
from wdmoe_opt.instances.families import Batch, BlockChoice, Family, cut_batch, find_family, is_number
from wdmoe_opt.instances.fleets import FLEETS, fleet_profiles, fleet_times
from wdmoe_opt.instances.placement import place
from wdmoe_opt.instances.routing_file import RoutingFile
from wdmoe_opt.validation import IntArray, int_array, real_scalar, require_shape, whole

LINK_FIELDS = (*ChannelState.FIELDS, "bandwidth_min", "bandwidth_max")
OWN_FLEET = "orin-mix-8"
BITS_PER_VALUE = 16.0
#: States of a channel a scenario may look at: all states before the chosen one are drawn too.
STATE_LIMIT = 100_000
PRECISIONS, LEVELS = ("fp16", "int4"), ("low", "centre", "high")


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """What an instance is composed of; `build` makes it.

    Parameters
    ----------
    family : str, optional
        A name of `families.FAMILIES`; or ``routing_file``.
    routing_file : Path, optional
        A user's own routing file.
    part, tokens, start, blocks
        See `families.cut_batch`; ``tokens`` and ``start`` default to the family's batch, to all of a
        user's file.
    width, expert_width : int, optional
        Of the model, where the manifest does not say.
    fleet : str or tuple of str, optional
        A name of `fleets.FLEETS`, or boards; default the family's.
    precision : {"fp16", "int4"} or another precision of one's own profiles
    level : {"low", "centre", "high"}
        Of the measured spread of the devices, as a time.
    channel : str
        A name of `channels.CHANNELS`.
    state : int
        Which state of the channel's sequence, 0 to 99999.
    seed : int
    per_block : bool
        Block i sees state ``state + i``.
    cell : mapping
        Numbers of the cell to change, see `channels.CELL_PARAMETERS`.
    link : mapping
        Link fields of an `Instance`: with gains or ``token_time_link`` among them instead of the named
        channel, else beside it.
    bits_per_value : float, bit
        Of the activations sent, in both directions.
    placement : str
        A name of `placement.PLACEMENTS`.
    expert_device : int array (experts,), optional
        Host of every expert, instead of a rule.
    name : str
        Of the instance.
    """

    family: str | None = None
    routing_file: Path | None = None
    part: str | None = None
    tokens: int | str | None = None
    start: int | None = None
    blocks: BlockChoice = None
    width: int | None = None
    expert_width: int | None = None
    fleet: str | tuple[str | Path, ...] | None = None
    precision: str = "fp16"
    level: str = "centre"
    channel: str = "cell-100mhz"
    state: int = 0
    seed: int = CHANNEL_SEED
    per_block: bool = False
    cell: Mapping[str, Any] = field(default_factory=dict)
    link: Mapping[str, Any] = field(default_factory=dict)
    bits_per_value: float = BITS_PER_VALUE
    placement: str = "contiguous"
    expert_device: Any = None
    name: str = ""

    def build(self) -> Instance:
        """Compose the instance.

        Raises
        ------
        UnknownNameError
            If a name does not exist.
        InputError
            If the parts do not fit together.
        """
        family = self._family()
        batch = self._batch(family)
        fleet = self.fleet or (family.fleet if family else OWN_FLEET)
        profiles = fleet_profiles(fleet, self.precision)
        width, expert_width = (self._size(batch, key) for key in ("width", "expert_width"))
        bits = units.bits_per_token(
            real_scalar("bits_per_value", self.bits_per_value, minimum=0, above=True), width
        )
        hosts = self._hosts(batch, len(profiles))
        times = fleet_times(profiles, width, expert_width, self.level)
        link, channel_record = self._link(len(profiles), batch, bits)
        return Instance.from_arrays(
            **_routing_fields(batch, hosts, times),
            **link,
            bits_down=bits,
            bits_up=bits,
            name=self.name or self.family or "",
            provenance={
                **({"family": family.name, "family_version": family.version} if family else {}),
                "routing": {key: value for key, value in batch.manifest.items() if key not in _LONG_KEYS},
                "batch": dict(batch.record),
                "fleet": {
                    "name": fleet if isinstance(fleet, str) else None,
                    "boards": [profile.name for profile in profiles],
                    "precision": self.precision,
                    "level": self.level,
                },
                "channel": channel_record,
                "payload": {"bits_per_value": self.bits_per_value},
                "placement": "explicit" if self.expert_device is not None else self.placement,
                **({} if batch.routing else {"expert_device": hosts.tolist()}),
            },
        )

    def _family(self) -> Family | None:
        if (self.family is None) == (self.routing_file is None):
            raise InputError("routing", "needs either 'family' or 'file'")
        return find_family(self.family) if self.family is not None else None

    def _batch(self, family: Family | None) -> Batch:
        if family is not None:
            source, mode, default, start = family.load(), family.mode, family.batch, family.start
        else:
            assert self.routing_file is not None
            own = RoutingFile.load(self.routing_file)
            source, mode, default, start = own, own.manifest.get("mode", "prefill"), None, 0
        return cut_batch(
            source,
            mode,
            part=self.part,
            tokens=self.tokens,
            start=start if self.start is None else self.start,
            blocks=self.blocks,
            default=default,
        )

    def _size(self, batch: Batch, key: str) -> int:
        given = getattr(self, key)
        value: Any = batch.manifest.get(key) if given is None else given
        if value is None:
            raise InputError(key, "is missing: neither the routing file nor the scenario says it")
        return whole(key, value, 1, 2**31, "must be at least 1")

    def _hosts(self, batch: Batch, devices: int) -> IntArray:
        if self.expert_device is None:
            return place(self.placement, batch.experts, devices, batch.outside_load)
        hosts = int_array("expert_device", self.expert_device)
        require_shape("expert_device", hosts, (batch.experts,), "(experts,)")
        for expert, host in enumerate(hosts.tolist()):
            if not 0 <= host < devices:
                rule = f"must name a device, 0 to {devices - 1}"
                raise InputError("expert_device", rule, index=(expert,), value=host)
        return hosts

    def _link(self, devices: int, batch: Batch, bits: float) -> tuple[dict[str, Any], dict[str, Any]]:
        """Link fields of the instance, and their record."""
        for key in self.link:
            if key not in LINK_FIELDS:
                raise UnknownNameError("channel", key, LINK_FIELDS)
        if _REPLACING & self.link.keys():
            return dict(self.link), {"source": "explicit numbers"}
        last = STATE_LIMIT - 1
        state = whole("state", self.state, 0, last, f"must be 0 to {last}")
        blocks = len(batch.expert_loads)
        states = state + (blocks if self.per_block else 1)
        sequence = channel_states(
            self.channel, devices, states, self.seed, bits=(bits, bits), **dict(self.cell)
        )
        chosen = sequence.per_block(blocks, state) if self.per_block else sequence[state]
        record = {**sequence.provenance, "name": self.channel, "state": state, "per_block": self.per_block}
        if self.link:
            record["explicit"] = sorted(self.link)
        return {**chosen.arrays(), **self.link}, record


_LONG_KEYS = ("sequences", "parts")
#: Link fields that replace the named channel; the others stand beside it.
_REPLACING = {"gain_down", "gain_up", "token_time_link"}


def _routing_fields(batch: Batch, hosts: IntArray, times: dict[str, Any]) -> dict[str, Any]:
    """Routing and times of the instance: per token where gate weights are known, else loads per device."""
    if batch.routing:
        return {**batch.routing, "expert_device": hosts, **times}
    devices = times["compute_time"].size
    loads = np.zeros((len(batch.expert_loads), devices), dtype=np.int64)
    for expert, host in enumerate(hosts):
        loads[:, host] += batch.expert_loads[:, expert]
    # Every expert of a device counts as active: batches of whole prompts leave hardly one without a token.
    hosted = np.bincount(hosts, minlength=devices)
    return {
        "loads": loads,
        "compute_time": times["compute_time"],
        "activation_time": times["activation_time"] * hosted,
    }


# ---------------------------------------------------------------------- names

_BATCH = re.compile(r"(?P<tokens>[0-9]{1,18}|all)(\+(?P<start>[0-9]{1,18}))?")


def parse_name(name: str) -> Scenario:
    """Scenario of a name; see the module for the grammar.

    Raises
    ------
    UnknownNameError
        If a family, fleet or channel does not exist.
    InputError
        If the name does not follow the grammar.
    """
    rest, hash_sign, blocks = name.partition("#")
    rest, at_sign, batch = rest.partition("@")
    pieces = rest.split("/")
    if len(pieces) > 3 or not all(pieces) or (hash_sign and not blocks):
        raise InputError("name", "must be FAMILY[/FLEET[/CHANNEL]][@TOKENS][#BLOCKS]", value=name)
    family, colon, part = pieces[0].partition(":")
    if colon and not part:
        raise InputError("name", "after ':' must stand a part of the family", value=name)
    found: dict[str, Any] = {"family": find_family(family).name, "name": name}
    if colon:
        found["part"] = part
    if at_sign:
        found |= _parse_batch(batch, name)
    if hash_sign:
        found["blocks"] = blocks
    if len(pieces) > 1:
        found |= _parse_fleet(pieces[1])
    if len(pieces) > 2:
        found |= _parse_channel(pieces[2])
    return Scenario(**found)


def _short(text: str) -> str:
    """Text for a message, cut where it is longer than any name."""
    return text if len(text) <= 200 else f"{text[:200]}..."


def _parse_batch(text: str, name: str) -> dict[str, Any]:
    match = _BATCH.fullmatch(text)
    if match is None:
        raise InputError(
            "name",
            "after '@' must stand TOKENS or TOKENS+START, TOKENS a number or 'all'",
            value=_short(name),
        )
    tokens, start = match["tokens"], match["start"]
    found: dict[str, Any] = {"tokens": tokens if tokens == "all" else int(tokens)}
    return found if start is None else found | {"start": int(start)}


def _parse_fleet(text: str) -> dict[str, Any]:
    fleet, *qualifiers = text.split(":")
    if fleet not in FLEETS:
        raise UnknownNameError("fleet", fleet, FLEETS)
    found: dict[str, Any] = {"fleet": fleet}
    for qualifier in qualifiers:
        if qualifier in PRECISIONS:
            found["precision"] = qualifier
        elif qualifier in LEVELS:
            found["level"] = qualifier
        else:
            raise UnknownNameError("precision or level", qualifier, (*PRECISIONS, *LEVELS))
    return found


def _parse_channel(text: str) -> dict[str, Any]:
    channel, *qualifiers = text.split(":")
    if channel not in CHANNELS:
        raise UnknownNameError("channel", channel, CHANNELS)
    found: dict[str, Any] = {"channel": channel}
    for qualifier in qualifiers:
        if is_number(qualifier) and len(qualifier) <= 18:
            found["state"] = int(qualifier)
        elif qualifier == "per-block":
            found["per_block"] = True
        else:
            raise InputError(
                "channel", "after ':' must stand a state number or 'per-block'", value=_short(text)
            )
    return found


def vary(scenario: Scenario, changes: Mapping[str, Any]) -> Scenario:
    """Scenario with some fields changed.

    Raises
    ------
    UnknownNameError
        If there is no such field.
    """
    known = [entry.name for entry in fields(Scenario)]
    for key in changes:
        if key not in known:
            raise UnknownNameError("selection", key, known)
    return replace(scenario, **changes)


# ---------------------------------------------------------------------- files

_TABLES: dict[str, tuple[str, ...]] = {
    "routing": ("family", "file", "part", "tokens", "start", "blocks", "width", "expert_width"),
    "fleet": ("name", "boards", "precision", "level"),
    "channel": ("name", "state", "seed", "per_block", *CELL_PARAMETERS, *LINK_FIELDS),
    "payload": ("bits_per_value",),
    "placement": ("rule", "expert_device"),
}
#: Keys of a scenario whose name differs in a file.
_RENAMED = {("fleet", "name"): "fleet", ("channel", "name"): "channel", ("placement", "rule"): "placement"}
SCENARIO_LIMIT = 64 * 2**20
ENDINGS = (".toml", ".json")


def read_scenario(path: str | Path) -> Scenario:
    """Scenario of a TOML or JSON file; see the module for the schema.

    Raises
    ------
    InstanceFileError
        Naming file, table, key and rule.
    """
    path = as_path(path)
    content = _read_content(path)
    try:
        return _scenario_of(content, path)
    except InputError as error:
        raise InstanceFileError(f"{path}: {error}") from error


def build_scenario(path: str | Path, **changes: Any) -> Instance:
    """Compose the instance of a scenario file.

    Parameters
    ----------
    path : str or Path
    **changes
        Fields of `Scenario` to change.

    Raises
    ------
    InstanceFileError
        Naming file and rule.
    """
    scenario = vary(read_scenario(path), changes)
    try:
        return scenario.build()
    except InputError as error:
        raise InstanceFileError(f"{path}: {error}") from error


def _read_content(path: Path) -> Any:
    if path.name in ENDINGS:
        raise InstanceFileError(f"{path}: must have a name before its ending")
    if path.suffix not in ENDINGS:
        raise InstanceFileError(f"{path}: the name of a scenario must end in .toml or .json")
    return read_toml(path) if path.suffix == ".toml" else read_json(path, SCENARIO_LIMIT)


def _scenario_of(content: Any, path: Path) -> Scenario:
    if not isinstance(content, dict):
        raise InputError("scenario", "must be an object with the table 'routing'")
    found: dict[str, Any] = {"name": content.get("name", path.stem)}
    for table, keys in content.items():
        if table == "name":
            continue
        if table not in _TABLES:
            raise UnknownNameError("scenario", table, ("name", *_TABLES))
        if not isinstance(keys, dict):
            raise InputError(table, "must be a table", value=keys)
        for key in keys:
            if key not in _TABLES[table]:
                raise UnknownNameError(table, key, _TABLES[table])
        found |= _entries(table, keys, path.parent)
    _check_types(found)
    return Scenario(**found)


def _entries(table: str, keys: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Fields of a scenario that one table of a file sets."""
    found = {_RENAMED.get((table, key), key): value for key, value in keys.items()}
    if table == "routing" and "file" in found:
        found["routing_file"] = folder / _text("routing.file", found.pop("file"))
    if table == "fleet" and "boards" in found:
        if "fleet" in found:
            raise InputError("fleet", "must give 'name' or 'boards', not both")
        found["fleet"] = _boards(found.pop("boards"), folder)
    if table == "placement" and {"placement", "expert_device"} <= found.keys():
        raise InputError("placement", "must give 'rule' or 'expert_device', not both")
    return _channel_entries(found) if table == "channel" else found


def _channel_entries(found: dict[str, Any]) -> dict[str, Any]:
    """Split the table "channel" into what is drawn and what is given as a field of an instance."""
    if _REPLACING & found.keys():
        for key in found:
            if key not in LINK_FIELDS:
                rule = "cannot stand beside gain_down, gain_up or token_time_link, which replace the channel"
                raise InputError(f"channel.{'name' if key == 'channel' else key}", rule, value=found[key])
        return {"link": found}
    cell = {key: found.pop(key) for key in CELL_PARAMETERS if key in found}
    link = {key: found.pop(key) for key in LINK_FIELDS if key in found}
    return {**found, "cell": cell, "link": link}


def _boards(boards: Any, folder: Path) -> tuple[str | Path, ...]:
    if not isinstance(boards, list) or not boards:
        raise InputError("fleet.boards", "must be a list of profile names or profile files", value=boards)
    names = [_text(f"fleet.boards[{index}]", board) for index, board in enumerate(boards)]
    return tuple(folder / name if name.endswith(".json") else name for name in names)


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise InputError(name, "must be a text", value=value)
    return value


def _check_types(found: dict[str, Any]) -> None:
    """Raise for a text or truth value that is something else; numbers are checked where they are used."""
    for key in ("name", "family", "part", "precision", "level", "channel", "placement"):
        if key in found:
            _text(key, found[key])
    if not isinstance(found.get("fleet", ()), (str, tuple)):
        raise InputError("fleet.name", "must be a text", value=found["fleet"])
    if not isinstance(found.get("per_block", False), bool):
        raise InputError("per_block", "must be true or false", value=found["per_block"])
