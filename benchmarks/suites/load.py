"""Suites from TOML files.

The file, with everything optional but name, cases and contestants; times in s::

    name = "mine"                    # lower case, digits, dashes
    summary = "one line"
    seeds = 1
    workers = 1                      # processes at the same time; above 1 times are not comparable

    [defaults]                       # of every contestant: time_limit, rel_gap, kill_after
    time_limit = 20.0

    [request]                        # of every case: fields of Problem
    min_retention = 0.95

    [[contestants]]
    label = "certified"              # default the method
    method = "certified"
    kind = "ours"                    # or baseline, peer
    options = { }                    # of the solver
    tasks = ["joint"]                # or ["bandwidth"], or both
    groups = ["law"]                 # only there; default everywhere
    most_pairs = 1e5                 # only problems with at most so many (token, candidate) pairs
    at_retention_of = "wdmoe"        # floors: what that method keeps in each block

    [[cases]]
    name = "law#{block} at {floor}"
    group = "law"
    instance = "deepseek-v2-lite-law#{block}"   # or: generator = "synthetic", parameters = { tokens = 512 }
    selection = { state = "{seed}" } # fields of a scenario to change, beside instance
    request = { min_retention = "{floor}" }
    axis = "block"                   # what varies, with
    axis_value = "{block}"
    task = "joint"                   # or "bandwidth": the selection is given
    each = { block = [0, 5], floor = [0.8, 0.9] }   # one case for every combination

A text that is nothing but ``"{key}"`` becomes the value itself, ``{key}`` inside a text its spelling.
``{seed}`` stays until the problem is built: with it, every seed is a problem of its own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from itertools import product
from pathlib import Path
from typing import Any, get_args

from wdmoe_opt.archive import as_path, read_toml
from wdmoe_opt.benchmarks.suites.generators import GENERATORS
from wdmoe_opt.benchmarks.suites.suite import Case, Contestant, Job, Kind, Suite
from wdmoe_opt.errors import InputError, InstanceFileError, UnknownNameError
from wdmoe_opt.problem import Problem
from wdmoe_opt.validation import real_scalar, whole

FOLDER = Path(__file__).parent
_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")
_PLACE = re.compile(r"\{([a-z_]+)\}")
_TOP = ("name", "summary", "seeds", "workers", "defaults", "request", "contestants", "cases")
_DEFAULTS = ("time_limit", "rel_gap", "kill_after")
_CONTESTANT = tuple(f.name for f in fields(Contestant))
_CASE = (*(f.name for f in fields(Case)), "each")
_REQUEST = tuple(f.name for f in fields(Problem) if f.name not in ("instance", "bandwidth"))
#: More cases than anyone means to run; a slip of the pen in ``each``.
MOST_CASES = 100_000


def suite_names() -> list[str]:
    """Names of the shipped suites."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load_suite(name: str | Path) -> Suite:
    """Load a shipped suite by name, or one's own by the path of its TOML file.

    Raises
    ------
    UnknownNameError
        If there is no shipped suite of that name.
    InstanceFileError
        If the file cannot be read or breaks a rule; the message names file, entry, value and rule.
    """
    if isinstance(name, (str, Path)) and str(name).endswith(".toml"):
        return read_suite(as_path(name))
    if not isinstance(name, str) or name not in suite_names():
        given = str(name) if isinstance(name, Path) else name
        raise UnknownNameError("suite", given, [*suite_names(), "PATH.toml"])
    return read_suite(FOLDER / f"{name}.toml")


def read_suite(path: Path) -> Suite:
    """Read and check one TOML file."""
    content = read_toml(path)
    try:
        return _suite(content)
    except InputError as error:
        raise InstanceFileError(f"{path}: {error}") from error


def _suite(content: Mapping[str, Any]) -> Suite:
    _refuse_unknown("suite", content, _TOP)
    name = _text("name", content.get("name"))
    if _NAME.fullmatch(name) is None:
        raise InputError("name", "must be lower-case letters, digits and dashes", value=name)
    defaults = _table("defaults", content.get("defaults", {}))
    _refuse_unknown("defaults", defaults, _DEFAULTS)
    request = _table("request", content.get("request", {}))
    contestants = tuple(
        _contestant(f"contestants[{n}]", entry, defaults)
        for n, entry in enumerate(_entries("contestants", content))
    )
    cases: list[Case] = []
    for n, entry in enumerate(_entries("cases", content)):
        cases += _cases(f"cases[{n}]", entry, request, MOST_CASES - len(cases))
    _refuse_twins("contestants", [c.label for c in contestants])
    _refuse_twins("cases", [c.name for c in cases])
    _refuse_strangers(contestants, tuple(cases))
    seeds = whole("seeds", content.get("seeds", 1), 1, 10_000, "must be 1 to 10000")
    workers = whole("workers", content.get("workers", 1), 1, 1024, "must be 1 to 1024")
    return Suite(
        name, _text("summary", content.get("summary", name)), tuple(cases), contestants, seeds, workers
    )


def _contestant(where: str, entry: Mapping[str, Any], defaults: Mapping[str, Any]) -> Contestant:
    _refuse_unknown(where, entry, _CONTESTANT)
    found = {**defaults, **entry}
    found["method"] = _text(f"{where}.method", found.get("method"))
    found["label"] = _text(f"{where}.label", found.get("label", found["method"]))
    for key in ("time_limit", "kill_after"):
        if key in found:
            found[key] = real_scalar(f"{where}.{key}", found[key], minimum=0, above=True)
    # Room for start-up, compilation and a solver that overruns its limit by as much again.
    found.setdefault("kill_after", 300.0 + 2 * found.get("time_limit", Contestant.time_limit))
    if "rel_gap" in found:
        found["rel_gap"] = real_scalar(f"{where}.rel_gap", found["rel_gap"], minimum=0)
    if "most_pairs" in found:
        found["most_pairs"] = real_scalar(f"{where}.most_pairs", found["most_pairs"], minimum=1)
    _choice(f"{where}.kind", found.get("kind", "ours"), get_args(Kind))
    found["options"] = _table(f"{where}.options", found.get("options", {}))
    for key in ("tasks", "groups"):
        if key in found:
            found[key] = _texts(f"{where}.{key}", found[key])
    for task in found.get("tasks", ()):
        _choice(f"{where}.tasks", task, get_args(Job))
    if "at_retention_of" in found:
        _text(f"{where}.at_retention_of", found["at_retention_of"])
    return Contestant(**found)


def _cases(where: str, entry: Mapping[str, Any], request: Mapping[str, Any], most: int) -> Iterator[Case]:
    """All cases of one entry, one for every combination of ``each``."""
    _refuse_unknown(where, entry, _CASE)
    each = _table(f"{where}.each", entry.get("each", {}))
    for key, values in each.items():
        if key == "seed" or not isinstance(values, list) or not values:
            raise InputError(
                f"{where}.each.{key}", "must be a list of values, not named 'seed'", value=values
            )
    if math.prod(len(values) for values in each.values()) > most:
        raise InputError(f"{where}.each", f"makes more than {MOST_CASES} cases")
    bare = {key: value for key, value in entry.items() if key != "each"}
    for combination in product(*each.values()):
        values = dict(zip(each, combination, strict=True))
        yield _case(where, fill(bare, values, where=where), request)


def _case(where: str, entry: Mapping[str, Any], request: Mapping[str, Any]) -> Case:
    found = dict(entry)
    if ("instance" in found) == ("generator" in found):
        raise InputError(where, "needs either 'instance' or 'generator'")
    source = "instance" if "instance" in found else "generator"
    found[source] = _text(f"{where}.{source}", found[source])
    if source == "generator" and found["generator"] not in GENERATORS:
        raise UnknownNameError(f"{where}.generator", found["generator"], GENERATORS)
    if source == "generator" and "selection" in found:
        raise InputError(f"{where}.selection", "needs 'instance'; a generator takes 'parameters'")
    if source == "instance" and "parameters" in found:
        raise InputError(f"{where}.parameters", "needs 'generator'; an instance takes 'selection'")
    found["name"] = _text(f"{where}.name", found.get("name", found[source]))
    found["group"] = _text(f"{where}.group", found.get("group", found["name"]))
    for key in ("selection", "parameters", "request"):
        found[key] = _table(f"{where}.{key}", found.get(key, {}))
    found["request"] = {**request, **found["request"]}
    _refuse_unknown(f"{where}.request", found["request"], _REQUEST)
    if "axis_value" in found:
        found["axis_value"] = real_scalar(f"{where}.axis_value", found["axis_value"])
    if "axis" in found:
        _text(f"{where}.axis", found["axis"])
    _choice(f"{where}.task", found.get("task", "joint"), get_args(Job))
    return Case(**found)


def fill(value: Any, values: Mapping[str, Any], *, where: str = "case") -> Any:
    """Put values into the places of texts, in nested tables and lists; see the module.

    Raises
    ------
    InputError
        If a text names a place without a value; "seed" may stay open.
    """
    if isinstance(value, Mapping):
        return {key: fill(inner, values, where=f"{where}.{key}") for key, inner in value.items()}
    if isinstance(value, list):
        return [fill(inner, values, where=where) for inner in value]
    if not isinstance(value, str):
        return value
    for key in _PLACE.findall(value):
        if key not in values and key != "seed":
            raise InputError(where, f"{{{key}}} is not listed in 'each'", value=value)
    alone = _PLACE.fullmatch(value)
    if alone is not None and alone[1] in values:
        return values[alone[1]]
    return _PLACE.sub(lambda place: str(values.get(place[1], place[0])), value)


# ---------------------------------------------------------------------- checks


def _entries(name: str, content: Mapping[str, Any]) -> list[dict[str, Any]]:
    entries = content.get(name)
    if not isinstance(entries, list) or not entries or not all(isinstance(e, dict) for e in entries):
        raise InputError(name, f"must be given as at least one table [[{name}]]")
    return entries


def _table(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(name, "must be a table", value=value)
    return value


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise InputError(name, "must be a text", value=value)
    return value


def _texts(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise InputError(name, "must be a list of texts", value=value)
    return tuple(_text(name, entry) for entry in value)


def _choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UnknownNameError(name, value, choices)


def _refuse_unknown(name: str, table: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for key in table:
        if key not in known:
            raise UnknownNameError(name, key, known)


def _refuse_twins(name: str, labels: list[str]) -> None:
    seen: set[str] = set()
    for label in labels:
        if label in seen:
            raise InputError(name, "two of them have the same name", value=label)
        seen.add(label)


def _refuse_strangers(contestants: tuple[Contestant, ...], cases: tuple[Case, ...]) -> None:
    """Raise for a group that no case is in."""
    groups = {case.group for case in cases}
    for n, contestant in enumerate(contestants):
        for group in contestant.groups:
            if group not in groups:
                raise UnknownNameError(f"contestants[{n}].groups", group, groups)
