"""Rows of benchmark results: read, checked, made complete, and tied to the best certified bound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wdmoe_opt.errors import InputError, UnsupportedError

if TYPE_CHECKING:
    import pandas as pd

TEXT = (
    "suite", "case", "group", "axis", "solver", "method", "options", "kind", "objective", "allocation",
    "dispatch", "candidates", "task", "state", "message", "reason", "limit", "detail", "violations",
    "bound_kind", "claim_holds", "device_time", "machine", "versions", "started",
)  # fmt: skip
NUMBERS = (
    "axis_value", "seed", "time_limit_s", "rel_gap", "blocks", "tokens", "devices", "experts", "columns",
    "pairs", "min_retention", "value", "latency_s", "retention", "lower_bound", "gap", "cold_s", "compile_s",
    "warm_s", "warm_q1_s", "warm_q3_s", "warm_best_s", "repeats", "metric_s",
)  # fmt: skip
FLAGS = ("feasible", "claims_optimal")
REQUIRED = ("suite", "case", "task", "solver", "state")
#: Columns of aggregated frames that are texts.
AGGREGATE_TEXT = ("solver", "kind", "band", "axis", "group", "stage")
TASKS = ("joint", "bandwidth")
STATES = ("ok", "no-point", "refused", "unavailable", "failed", "timeout")
#: Rows that share these columns solve the same problem; the seed may change the instance.
PROBLEM = (
    "suite", "case", "seed", "task", "objective", "allocation", "dispatch", "candidates", "min_retention",
)  # fmt: skip
#: Rows that share these as well are the same measurement; the later one counts.
MEASUREMENT = (*PROBLEM, "solver", "method", "options", "time_limit_s", "rel_gap")
#: Violations of floors, as `Violation` writes them, joined by semicolons.
_FLOOR = r"min_(?:token_)?retention"
#: A mean of rounded weights may miss a band's edge by this much.
ROUNDING = 1e-6


def read_results(path: Path) -> pd.DataFrame:
    """Rows of a Parquet file, or of all in a folder, tidied.

    Raises
    ------
    UnsupportedError
        If pandas or pyarrow is missing.
    InputError
        If there is no such file, it cannot be read, or a required column is missing.
    """
    try:
        import pandas as pd
        import pyarrow as pa
    except ImportError:
        raise UnsupportedError("the report needs pandas and pyarrow; install wdmoe_opt[bench]") from None
    path = Path(path)
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise InputError("results", "must be a Parquet file or a folder with *.parquet", value=str(path))
    frames = []
    for file in files:
        try:
            frames.append(pd.read_parquet(file))
        except (pa.ArrowException, OSError, ValueError) as error:
            raise InputError("results", f"cannot be read as Parquet: {error}", value=str(file)) from None
    for file, frame in zip(files, frames, strict=True):
        _check(frame, str(file))
    filled = [frame for frame in frames if len(frame)]
    return tidy(pd.concat(filled, ignore_index=True) if filled else frames[0])


def _check(frame: pd.DataFrame, source: str) -> None:
    for name in REQUIRED:
        if name not in frame:
            raise InputError("results", f"column {name!r} is missing", value=source)
    for name, allowed in (("task", TASKS), ("state", STATES)):
        wrong = ~frame[name].isin(allowed).to_numpy()
        if wrong.any():
            at = int(np.argmax(wrong))
            rule = f"must be one of {', '.join(allowed)}"
            raise InputError(name, rule, index=(at,), value=frame[name].iloc[at])


def tidy(frame: pd.DataFrame) -> pd.DataFrame:
    """Complete rows, one per measurement, with what the report derives from them.

    Parameters
    ----------
    frame : DataFrame
        Columns as in the row schema; missing ones count as unknown.

    Returns
    -------
    DataFrame
        Also with ``problem`` (its number), ``answered`` (a feasible point was returned), ``priced`` (a point
        was returned that breaks nothing but the floor on retention, if that), ``time_s`` (warm time, else
        cold), ``bound`` (best certified bound of the problem; in the bandwidth task, which is convex, the
        best value found where nothing is certified), ``certified_bound`` (whether it is certified),
        ``bound_gap`` (distance to it, over the value; inf without an answer, NaN without a bound) and
        ``family`` (one label for all configurations of a method with the same options in a task).
    """
    _check(frame, "the frame")
    rows = _typed(frame)
    order = rows["started"].argsort(kind="stable")
    rows = rows.iloc[order].drop_duplicates(list(MEASUREMENT), keep="last").sort_index()
    rows = rows.reset_index(drop=True)
    rows["problem"] = rows.groupby(list(PROBLEM), dropna=False, sort=False).ngroup() if len(rows) else 0
    rows["answered"] = (rows["state"] == "ok") & rows["feasible"] & np.isfinite(rows["value"])
    rows["priced"] = rows["answered"] | _short_of_floor(rows)
    rows["family"] = _families(rows)
    rows["time_s"] = rows["warm_s"].fillna(rows["cold_s"])
    rows["bound"] = _best_bound(rows)
    rows["certified_bound"] = rows["bound"].notna()
    rows["bound"] = rows["bound"].fillna(_best_value(rows))
    rows["bound_gap"] = _bound_gap(rows)
    return rows


def _typed(frame: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    columns: dict[str, Any] = {}
    for name in TEXT:
        columns[name] = frame[name].fillna("").astype(str) if name in frame else ""
    for name in NUMBERS:
        columns[name] = pd.to_numeric(frame[name], errors="coerce").astype(float) if name in frame else np.nan
    for name in FLAGS:
        columns[name] = frame[name].map(_true).astype(bool) if name in frame else False
    rows = pd.DataFrame(columns, index=frame.index).reset_index(drop=True)
    # Without a seed column there was one seed.
    rows["seed"] = rows["seed"].fillna(0.0)
    return rows


def _true(value: Any) -> bool:
    return value is not None and value == value and bool(value)


def _short_of_floor(rows: pd.DataFrame) -> pd.Series:
    known = np.isfinite(rows["latency_s"]) & np.isfinite(rows["retention"])
    point = rows["state"].isin(("ok", "no-point"))
    only = rows["violations"].str.fullmatch(rf"{_FLOOR}[^;]*(; {_FLOOR}[^;]*)*").astype(bool)
    return point & known & only


def _families(rows: pd.DataFrame) -> pd.Series:
    """Shortest label of every method and options in a task; without a method the label itself."""
    key = ["task", "method", "options"]
    labels = rows[[*key, "solver"]].drop_duplicates()
    labels = labels.assign(length=labels["solver"].str.len()).sort_values(["length", "solver"])
    first = labels.drop_duplicates(key).set_index(key)["solver"].to_dict()
    names = [first[tuple(values)] for values in rows[key].itertuples(index=False)]
    return rows["solver"].where(rows["method"] == "", names).astype(str)


def maximised(rows: pd.DataFrame) -> pd.Series:
    """Whether more is better."""
    return ~rows["objective"].isin(("latency", ""))


def _best_bound(rows: pd.DataFrame) -> pd.Series:
    """Tightest certified bound of each problem; bounds that failed their recheck do not count."""
    proved = (rows["bound_kind"] == "certified") & (rows["claim_holds"] != "no")
    proved &= np.isfinite(rows["lower_bound"])
    sign = np.where(maximised(rows), -1.0, 1.0)
    bounds = (sign * rows["lower_bound"]).where(proved)
    return sign * bounds.groupby(rows["problem"]).transform("max")


def _best_value(rows: pd.DataFrame) -> pd.Series:
    """Best value that any solver found for a problem of the bandwidth task."""
    sign = np.where(maximised(rows), -1.0, 1.0)
    values = (sign * rows["value"]).where(rows["answered"] & (rows["task"] == "bandwidth"))
    return sign * values.groupby(rows["problem"]).transform("min")


def _bound_gap(rows: pd.DataFrame) -> pd.Series:
    sign = np.where(maximised(rows), -1.0, 1.0)
    value = rows["value"].where(rows["value"] != 0)
    gap = sign * (rows["value"] - rows["bound"]) / value.abs()
    gap = gap.mask(rows["value"] == rows["bound"], 0.0)
    gap = gap.mask(~rows["answered"], np.inf)
    return gap.where(rows["bound"].notna())


def aggregate(records: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> pd.DataFrame:
    """Aggregated records as a frame whose columns keep their type where there is no record."""
    import pandas as pd

    table = pd.DataFrame(list(records), columns=list(columns))
    return table.astype({name: object if name in AGGREGATE_TEXT else float for name in columns})


def task_rows(rows: pd.DataFrame, task: str) -> pd.DataFrame:
    """Rows of a task, of the solvers that took part in it at all.

    A solver that is unavailable, or refuses every problem of the task, is not compared; one that refuses
    some is, and its refusals count as problems without an answer.
    """
    own = rows[(rows["task"] == task) & (rows["state"] != "unavailable")]
    took_part = own.groupby("solver")["state"].transform(lambda states: (states != "refused").any())
    return own[took_part.astype(bool)] if len(own) else own


def main_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per problem and solver: that with the longest time limit, then the smallest gap asked."""
    limit = rows["time_limit_s"].fillna(np.inf)
    asked = rows["rel_gap"].fillna(np.inf)
    order = np.lexsort((np.arange(len(rows)), asked, -limit))
    return rows.iloc[order].drop_duplicates(["problem", "solver"]).sort_index()


def first_of_family(rows: pd.DataFrame, family: str) -> pd.DataFrame:
    """One row per problem of a family: of the configuration that gave it its name, where that took part."""
    own = rows[rows["family"] == family]
    named = (own["solver"] == own["family"]).to_numpy()
    return own.iloc[np.argsort(~named, kind="stable")].drop_duplicates("problem")


def present(rows: pd.DataFrame, kinds: tuple[str, ...] = ("ours", "baseline", "plugin", "peer")) -> list[str]:
    """Solvers in the order of their kinds, then by name."""
    known = rows.drop_duplicates("solver")[["solver", "kind"]]
    rank = {kind: i for i, kind in enumerate(kinds)}
    pairs = sorted((rank.get(kind, len(rank)), solver) for solver, kind in known.itertuples(index=False))
    return [solver for _, solver in pairs]
