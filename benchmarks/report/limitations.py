"""What a reader must know before any figure, from the rows themselves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

from wdmoe_opt.benchmarks.report.relative import is_base
from wdmoe_opt.benchmarks.report.spread import median

if TYPE_CHECKING:
    import pandas as pd

#: Fewer seeds than this say little about the spread between instances.
FEW_SEEDS = 5
#: Interquartile range over median of repeats that counts as noisy.
NOISY = 0.2
#: Share of its time limit after which a row counts as stopped by it.
AT_LIMIT = 0.98
#: Suites whose cases are drawn throughout, without saying so in every name.
SYNTHETIC_SUITES = ("scaling", "tiny")
#: Most names in a sentence.
NAMES = 8


def limitations(rows: pd.DataFrame) -> list[str]:
    """Sentences, the gravest first."""
    if not len(rows):
        return ["There are no rows: nothing was measured."]
    parts = (
        _broken_claims, _unchecked_claims, _lost, _unavailable, _refused, _at_limit, _invalid, _below_floor,
        _unbounded, _without_base, _uneven, _few_seeds, _noisy, _cold_only, _machines, _synthetic,
    )  # fmt: skip
    return [sentence for part in parts for sentence in part(rows)]


def _names(values: pd.Series, numbers: bool = True) -> str:
    """Names with how often each occurs, the most frequent first."""
    counts = values.value_counts()
    shown = [f"{name} ({count})" if numbers else str(name) for name, count in counts.head(NAMES).items()]
    more = len(counts) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _were(number: int) -> str:
    return "was" if number == 1 else "were"


def _have(number: int) -> str:
    return "has" if number == 1 else "have"


def _broken_claims(rows: pd.DataFrame) -> Iterator[str]:
    broken = rows[rows["claim_holds"] == "no"]
    if len(broken):
        yield (
            f"{_count(len(broken), 'claim')} did not hold when rechecked: {_names(broken['solver'])}. "
            "Bounds of these rows are not used."
        )


def _unchecked_claims(rows: pd.DataFrame) -> Iterator[str]:
    open_ = rows[rows["claims_optimal"] & ~rows["claim_holds"].isin(("yes", "no"))]
    if len(open_):
        yield f"{_count(len(open_), 'claim')} of optimality could not be checked: {_names(open_['solver'])}."


def _lost(rows: pd.DataFrame) -> Iterator[str]:
    words = {
        "failed": "ended in an error",
        "timeout": "had to be ended by the runner",
        "no-point": "returned no feasible point",
    }
    for state, what in words.items():
        part = rows[(rows["state"] == state) & ~rows["priced"]]
        if len(part):
            reason = _reason(part)
            yield f"{_count(len(part), 'row')} {what}: {_names(part['solver'])}.{reason}"


def _reason(part: pd.DataFrame) -> str:
    messages = part["message"][part["message"] != ""]
    if not len(messages):
        return ""
    most = " ".join(str(messages.value_counts().index[0]).split())
    return f" Most often: “{most[:160]}{'…' if len(most) > 160 else ''}”."


def _unavailable(rows: pd.DataFrame) -> Iterator[str]:
    for solver, part in rows[rows["state"] == "unavailable"].groupby("solver"):
        yield f"{solver} was not available and is compared nowhere.{_reason(part)}"


def _refused(rows: pd.DataFrame) -> Iterator[str]:
    part = rows[rows["state"] == "refused"]
    if len(part):
        yield (
            f"{_count(len(part), 'row')} {_were(len(part))} refused by the solver as too large or of a "
            f"kind that it does not take: {_names(part['solver'])}.{_reason(part)}"
        )


def _at_limit(rows: pd.DataFrame) -> Iterator[str]:
    stopped = (rows["limit"] == "time") | (rows["time_s"] >= AT_LIMIT * rows["time_limit_s"])
    part = rows[stopped & (rows["state"] != "unavailable")]
    if len(part):
        limits = sorted(part["time_limit_s"].dropna().unique())
        shown = ", ".join(f"{limit:g}" for limit in limits)
        yield (
            f"{_count(len(part), 'row')} stopped at the time limit{f' ({shown} s)' if shown else ''}: "
            f"{_names(part['solver'])}. With more time they might do better."
        )


def _invalid(rows: pd.DataFrame) -> Iterator[str]:
    part = rows[(rows["state"] == "ok") & ~rows["priced"]]
    if len(part):
        broken = part["violations"].replace("", "no value").str.split(r"[\[ ;]", regex=True).str[0]
        yield (
            f"{_count(len(part), 'row')} returned a point that breaks a constraint other than the floor on "
            f"retention ({_names(broken)}) and count as unanswered: {_names(part['solver'])}."
        )


def _below_floor(rows: pd.DataFrame) -> Iterator[str]:
    part = rows[rows["priced"] & ~rows["answered"]]
    if len(part):
        yield (
            f"{_count(len(part), 'row')} returned a point below the floor on retention: "
            f"{_names(part['solver'])}. They count as unanswered, save in relative latency, which goes by "
            "the retention reached."
        )


def _unbounded(rows: pd.DataFrame) -> Iterator[str]:
    problems = rows["problem"].nunique()
    without = rows["problem"][rows["bound"].isna()].nunique()
    if without:
        yield (
            f"{without} of {_count(problems, 'problem')} {_have(without)} no certified bound and "
            f"{_were(without)} left out of gaps, profiles and times to a gap."
        )
    stand_in = rows["problem"][rows["bound"].notna() & ~rows["certified_bound"]].nunique()
    if stand_in:
        yield (
            f"In {_count(stand_in, 'problem')} of the bandwidth task, which is convex, the best value that "
            "any solver found stands in for a certified bound: the best of them has gap 0 by construction."
        )


def _without_base(rows: pd.DataFrame) -> Iterator[str]:
    based = rows["case"][is_base(rows) & rows["priced"]].unique()
    without = [case for case in rows["case"].unique() if case not in set(based)]
    if without:
        yield (
            f"{_count(len(without), 'case')} without topk-uniform are in no table of relative latency "
            f"(first: {without[0]})."
        )


def _uneven(rows: pd.DataFrame) -> Iterator[str]:
    for task, part in rows[rows["state"] != "unavailable"].groupby("task"):
        counts = part.groupby("solver")["problem"].nunique()
        fewer = counts[counts < counts.max()]
        if len(fewer):
            shown = ", ".join(f"{solver} ({count})" for solver, count in fewer.head(NAMES).items())
            more = f" and {len(fewer) - NAMES} more" if len(fewer) > NAMES else ""
            yield (
                f"Task {task}: not every solver was tried on all {counts.max()} problems: {shown}{more}. "
                "Compare them by the columns of paired figures."
            )


def _few_seeds(rows: pd.DataFrame) -> Iterator[str]:
    seeds = rows.groupby(["suite", "case"])["seed"].nunique()
    few = int((seeds < FEW_SEEDS).sum())
    if few:
        least = int(seeds.min())
        yield (
            f"{few} of {_count(len(seeds), 'case')} ran with fewer than {FEW_SEEDS} seeds "
            f"(the least: {least}); their spread over channels and routings is not measured."
        )


def _noisy(rows: pd.DataFrame) -> Iterator[str]:
    timed = rows[(rows["repeats"] > 1) & (rows["warm_s"] > 0)]
    spread = (timed["warm_q3_s"] - timed["warm_q1_s"]) / timed["warm_s"]
    noisy = timed[spread > NOISY]
    if len(noisy):
        yield (
            f"Times are noisy in {len(noisy)} of {_count(len(timed), 'repeatedly timed row')}: interquartile "
            f"range over {NOISY:.0%} of the median, in the middle {median(spread):.0%}, at worst "
            f"{spread.max():.0%} ({noisy['solver'][spread.loc[noisy.index].idxmax()]})."
        )


def _cold_only(rows: pd.DataFrame) -> Iterator[str]:
    part = rows[rows["answered"] & rows["warm_s"].isna() & rows["cold_s"].notna()]
    if len(part):
        yield (
            f"{_count(len(part), 'row')} {_have(len(part))} a cold time only, which stands for the warm one: "
            f"{_names(part['solver'])}."
        )


def _machines(rows: pd.DataFrame) -> Iterator[str]:
    known = [text for text in rows["machine"].unique() if text]
    if len(known) == 1:
        yield f"One machine only: {describe_json(known[0])}. Ratios of times differ on others."
    elif known:
        shown = "; ".join(describe_json(text) for text in known[:NAMES])
        yield f"Rows of {len(known)} machines are mixed; their times do not compare: {shown}."
    else:
        yield "The rows do not say on which machine they were measured."


def describe_json(text: str) -> str:
    """A JSON object as words, anything else as it is."""
    try:
        content = json.loads(text)
    except ValueError:
        return text
    if not isinstance(content, dict):
        return str(content)
    return ", ".join(f"{key} {value}" for key, value in content.items())


def _synthetic(rows: pd.DataFrame) -> Iterator[str]:
    words = rows["suite"].isin(SYNTHETIC_SUITES)
    for column in ("group", "case"):
        words |= rows[column].str.contains("synthetic", case=False)
    cases = rows["case"].nunique()
    made = rows[words]
    if len(made):
        groups = ", ".join(sorted(name or "no group" for name in made["group"].unique())[:NAMES])
        yield (
            f"{made['case'].nunique()} of {_count(cases, 'case')} are synthetic: gates drawn from a "
            f"generator, not captured from a model (groups: {groups})."
        )
    averaged = rows[rows["group"].str.contains("averaged") | rows["case"].str.contains("averaged")]
    if len(averaged):
        yield f"{_count(averaged['case'].nunique(), 'case')} use gate weights averaged per token type."
