"""The stages of the paper: bandwidth alone, selection alone, both, and the certified optimum."""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING

from wdmoe_opt.benchmarks.report.frontiers import INSTANCE
from wdmoe_opt.benchmarks.report.relative import BASE_METHOD, with_ratio
from wdmoe_opt.benchmarks.report.results import ROUNDING, aggregate, main_rows, task_rows
from wdmoe_opt.benchmarks.report.spread import geometric_mean, quantile

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

SUITE = "paper"
#: Stage to the method that takes it.
STAGES = {
    "plain top-k, equal bandwidth": BASE_METHOD,
    "bandwidth alone": "topk",
    "selection alone": "wdmoe-selection",
    "both: the paper's policy": "wdmoe",
}
CERTIFIED = "certified, same retention"


def paper_stages(rows: pd.DataFrame) -> pd.DataFrame:
    """Relative latency of every stage, per group, with quartiles over cases and the mean retention.

    All stages of a group are on the same cases.

    "certified, same retention" is the certified point that keeps at least what the paper's policy keeps on
    the same case, and least more.
    """
    known = _joint(rows)
    found = []
    for group, part in known.groupby("group", sort=False):
        stages = {name: part[part["method"] == method] for name, method in STAGES.items()}
        stages = {name: stage.drop_duplicates(list(INSTANCE)) for name, stage in stages.items()}
        stages[CERTIFIED] = _same_retention(part)
        found += [_stage(str(group), name, stage) for name, stage in _paired(stages).items()]
    return aggregate(found, ["group", "stage", "cases", "mean", "q1", "q3", "retention"])


def _paired(stages: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Stages on the cases that all of them have; without any, the stage with the fewest cases goes."""
    known = {name: stage.set_index(list(INSTANCE)) for name, stage in stages.items() if len(stage)}
    while known:
        indices = [stage.index for stage in known.values()]
        cases = reduce(lambda shared, index: shared.intersection(index), indices)
        if len(cases):
            return {name: stage.loc[cases] for name, stage in known.items()}
        del known[min(known, key=lambda name: len(known[name]))]
    return {}


def _joint(rows: pd.DataFrame) -> pd.DataFrame:
    own = main_rows(task_rows(rows[rows["suite"] == SUITE], "joint"))
    return with_ratio(own[own["priced"]])


def _stage(group: str, name: str, rows: pd.DataFrame) -> dict[str, object]:
    ratio, kept = rows["ratio"], rows["retention"]
    return {
        "group": group, "stage": name, "cases": len(rows), "mean": geometric_mean(ratio),
        "q1": quantile(ratio, 0.25), "q3": quantile(ratio, 0.75), "retention": float(kept.mean()),
    }  # fmt: skip


def _same_retention(part: pd.DataFrame) -> pd.DataFrame:
    """Certified rows that keep at least what the paper's policy keeps, the nearest per case."""
    policy = part[part["method"] == STAGES["both: the paper's policy"]].drop_duplicates(list(INSTANCE))
    certified = part[part["method"] == "certified"]
    both = certified.merge(policy[[*INSTANCE, "retention"]], on=list(INSTANCE), suffixes=("", "_policy"))
    enough = both[both["answered"] & (both["retention"] >= both["retention_policy"] - ROUNDING)]
    return enough.sort_values("retention", kind="stable").drop_duplicates(list(INSTANCE))


def left_on_the_table(rows: pd.DataFrame) -> pd.DataFrame:
    """What the paper's policy leaves at its own retention, per group.

    Columns ``group``, ``cases``, ``saved`` (share of its latency that the certified point saves), ``most``
    (share that no point can exceed, by the certified bound).
    """
    found = []
    for group, part in _joint(rows).groupby("group", sort=False):
        policy = part[part["method"] == "wdmoe"].drop_duplicates(list(INSTANCE))
        nearest = _same_retention(part)
        both = nearest.merge(policy[[*INSTANCE, "latency_s"]], on=list(INSTANCE), suffixes=("", "_policy"))
        if len(both):
            saved = 1 - geometric_mean(both["latency_s"] / both["latency_s_policy"])
            # A bound for a floor above what the policy keeps says nothing about the policy.
            proved = both[both["min_retention"] <= both["retention_policy"] + ROUNDING]
            most = 1 - geometric_mean(proved["bound"] / proved["latency_s_policy"])
            found.append({"group": str(group), "cases": len(both), "saved": saved, "most": most})
    return aggregate(found, ["group", "cases", "saved", "most"])
