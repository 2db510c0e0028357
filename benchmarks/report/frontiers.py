"""Latency against retention, and against devices, case by case."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import numpy as np

from wdmoe_opt.benchmarks.report.relative import is_base, with_ratio
from wdmoe_opt.benchmarks.report.results import main_rows, task_rows

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

#: Cases at several floors are on the same instance if they share these, plain top-k's latency among them.
INSTANCE = ("suite", "group", "seed", "dispatch", "blocks", "tokens", "devices", "base_s")
#: Most cases that a picture shows.
SHOWN = 4
#: Devices of a cell in most of the literature.
TYPICAL = 8


@dataclass(frozen=True)
class Frontier:
    """Points and bounds of a case.

    Attributes
    ----------
    case : str
    points : DataFrame
        ``solver`` (the family), ``retention``, ``latency_s``, ``answered`` (keeps its floor), once per
        different point.
    bounds : DataFrame
        ``min_retention``, ``bound`` (s), rising; certified.
    """

    case: str
    points: pd.DataFrame
    bounds: pd.DataFrame


def frontiers(rows: pd.DataFrame, most: int = SHOWN) -> list[Frontier]:
    """Instances with points at two retentions or more: of different groups first, then by points."""
    found: list[tuple[Frontier, str]] = []
    for part in _instances(rows):
        front = _frontier(part)
        if front.points["retention"].round(4).nunique() > 1:
            found.append((front, str(part["group"].iloc[0])))
    return _varied(found, [len(front.points) for front, _ in found], most)


def _instances(rows: pd.DataFrame) -> list[pd.DataFrame]:
    """Priced rows of every instance that has plain top-k."""
    own = main_rows(task_rows(rows, "joint"))
    own = with_ratio(own[own["priced"]])
    return [part for _, part in own.groupby(list(INSTANCE), sort=False, dropna=False)]


def _frontier(part: pd.DataFrame) -> Frontier:
    points = part[["family", "retention", "latency_s", "answered"]].rename(columns={"family": "solver"})
    points = points.round({"retention": 6}).drop_duplicates(["solver", "retention", "latency_s"])
    proved = part[(part["objective"].isin(("latency", ""))) & part["bound"].notna()]
    bounds = proved.groupby("min_retention", as_index=False)["bound"].max()
    # A bound for a floor holds for every higher floor.
    bounds["bound"] = bounds["bound"].cummax()
    return Frontier(common_name(part["case"].unique()), points, bounds)


def common_name(names: Iterable[str]) -> str:
    """What the names of one instance at several floors share, whole words of it."""
    known = list(names)
    same = takewhile(lambda letters: len(set(letters)) == 1, zip(*known, strict=False))
    shared = "".join(letters[0] for letters in same)
    if all(name == shared for name in known):
        return shared
    words = shared.rpartition(" ")[0].removesuffix(" at").removesuffix(" floor").rstrip(" ,")
    return words or shared or known[0]


def _varied(items: list[tuple[Any, str]], weights: list[int], most: int) -> list[Any]:
    """The heaviest of every group first, then the second heaviest."""
    order = sorted(range(len(items)), key=lambda i: -weights[i])
    rank: dict[str, int] = {}
    keyed = []
    for i in order:
        group = items[i][1]
        rank[group] = rank.get(group, -1) + 1
        keyed.append((rank[group], -weights[i], i))
    return [items[i][0] for *_, i in sorted(keyed)[:most]]


@dataclass(frozen=True)
class DeviceTimes:
    """Time per device of plain top-k and of the fastest answer of a case.

    Attributes
    ----------
    case, best : str
        ``best`` names the solver.
    retention : float
        That the fastest answer reaches.
    plain, fast : float array (devices,)
        s.
    """

    case: str
    best: str
    retention: float
    plain: NDArray[np.float64]
    fast: NDArray[np.float64]


def device_times(rows: pd.DataFrame, most: int = SHOWN) -> list[DeviceTimes]:
    """Cases where plain top-k and another answer have times per device, of different groups first."""
    found: list[tuple[DeviceTimes, str]] = []
    for whole in _instances(rows):
        part = whole[whole["device_time"] != ""]
        plain = part[is_base(part)]
        others = part[~is_base(part) & part["answered"]]
        if not len(plain) or not len(others):
            continue
        best = others.loc[others["latency_s"].idxmin()]
        times = [_vector(row) for row in (plain.iloc[0]["device_time"], best["device_time"])]
        if times[0].size and times[0].shape == times[1].shape:
            found.append(
                (DeviceTimes(str(best["case"]), str(best["solver"]), float(best["retention"]), *times),
                 str(best["group"]))
            )  # fmt: skip
    # Neither a handful of bars nor a forest.
    return _varied(found, [-abs(item.plain.size - TYPICAL) for item, _ in found], most)


def _vector(text: str) -> NDArray[np.float64]:
    """Times from a JSON list; empty where it is no list of numbers."""
    try:
        times = np.array(json.loads(text), float)
    except (ValueError, TypeError):
        return np.empty(0)
    return times if times.ndim == 1 else np.empty(0)
