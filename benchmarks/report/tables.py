"""Tables of the report: aggregated numbers, and how each column reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wdmoe_opt.benchmarks.report import figures
from wdmoe_opt.benchmarks.report.expectations import Expectation
from wdmoe_opt.benchmarks.report.times import TimeTable

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Column:
    """A column: key in the frame, heading, and how its values read; without that they are text."""

    key: str
    heading: str
    read: Callable[[float], str] | None = None


@dataclass(frozen=True)
class Table:
    """A table as text.

    Attributes
    ----------
    name, title, note : str
        ``name`` identifies it in the page and in JSON; the note says how to read it.
    columns : tuple of Column
    lines : tuple of tuple of str
    records : tuple of dict
        The numbers behind it.
    grouped : bool
        Rows that share the first cell belong together.
    """

    name: str
    title: str
    note: str
    columns: tuple[Column, ...]
    lines: tuple[tuple[str, ...], ...]
    records: tuple[dict[str, Any], ...]
    grouped: bool = False


def make_table(
    name: str, title: str, note: str, columns: Sequence[Column], frame: pd.DataFrame, *, grouped: bool = False
) -> Table:
    """Read every value of a frame as its column says."""
    lines = []
    for record in frame.to_dict("records"):
        cells = [
            str(record[column.key]) if column.read is None else column.read(float(record[column.key]))
            for column in columns
        ]
        lines.append(tuple(cells))
    records = tuple({str(key): value for key, value in line.items()} for line in frame.to_dict("records"))
    return Table(name, title, note, tuple(columns), tuple(lines), records, grouped)


SOLVER = (Column("solver", "solver"), Column("kind", "kind"))
QUARTILES = (Column("q1", "Q1", figures.ratio), Column("median", "median", figures.ratio),
             Column("q3", "Q3", figures.ratio))  # fmt: skip


def relative_table(frame: pd.DataFrame, task: str, reference: str) -> Table:
    """Table of `relative.relative_latency`."""
    beyond = f" “Over {reference}” compares on the problems that both ran." if reference else ""
    return make_table(
        f"relative-{task}",
        "Latency relative to topk-uniform, by the retention reached",
        "Latency of the answer over that of plain top-k with equal bandwidth on the same case: "
        "geometric mean and quartiles over problems, lower is better. A point below its floor counts in "
        "the band that it reaches; a problem without a point counts as 1, in the band of its floor: "
        f"without an answer a user runs plain top-k.{beyond}",
        (
            Column("band", "retention"), *SOLVER, Column("problems", "problems", figures.count),
            Column("pointless", "no point", figures.count), Column("below", "below floor", figures.count),
            Column("retention", "mean retention", figures.ratio), Column("mean", "latency", figures.ratio),
            *QUARTILES, Column("worst", "worst", figures.ratio),
            *((Column("paired", f"over {reference}", figures.ratio),) if reference else ()),
        ),
        frame,
        grouped=True,
    )  # fmt: skip


def gap_table(frame: pd.DataFrame, task: str) -> Table:
    """Table of `gaps.gap_table`."""
    stand_in = (
        " Where no row proves one, the best value that any row reaches stands in: the task is convex."
        if task == "bandwidth"
        else ""
    )
    return make_table(
        f"gap-{task}",
        "Gap to the best certified bound, or the best value known"
        if task == "bandwidth"
        else "Gap to the best certified bound",
        "Distance of the value to the best certified bound that any row proves for the same problem, over "
        f"the value. A problem without an answer has an infinite gap and stays in every column.{stand_in}",
        (
            *SOLVER, Column("problems", "problems", figures.count),
            Column("unanswered", "unanswered", figures.count), Column("q1", "Q1", figures.percent),
            Column("median", "median", figures.percent), Column("q3", "Q3", figures.percent),
            Column("worst", "worst", figures.percent), Column("within_1", "within 1 %", figures.share),
            Column("within_01", "within 0.1 %", figures.share),
        ),
        frame,
    )  # fmt: skip


def success_table(frame: pd.DataFrame, task: str) -> Table:
    """Table of `success.success_table`."""
    return make_table(
        f"success-{task}",
        "Success, claimed and true",
        "Shares of all rows: a feasible point was returned, optimality was claimed, and the claim was "
        "confirmed (rechecked certificate, or no better value and no contradicting bound in the same "
        "case). A refusal of some problems counts as no answer.",
        (
            *SOLVER, Column("rows", "rows", figures.count),
            Column("answered", "feasible point", figures.share),
            Column("claimed", "claims optimality", figures.share),
            Column("holds", "claims and holds", figures.share),
            Column("broken", "does not hold", figures.count),
            Column("unchecked", "unchecked", figures.count),
        ),
        frame,
    )  # fmt: skip


def time_table(times: TimeTable, task: str) -> Table:
    """Table of `times.time_table`."""
    over = f"over {times.reference}"
    return make_table(
        f"time-{task}",
        "Time to the answer",
        "Warm times: shifted geometric mean over the problems that a solver was tried on (shift "
        f"{figures.seconds(times.shift)}, the power of ten nearest to the median) and quartiles. A "
        "problem without an answer is charged the time limit, or the time it took where that is longer; "
        f"without either, the slowest time on the problem. “{over}” is the geometric mean of the ratio "
        "of times on the problems that both were tried on, so that nobody gains by skipping hard ones.",
        (
            *SOLVER, Column("problems", "problems", figures.count),
            Column("unanswered", "unanswered", figures.count), Column("mean", "mean", figures.seconds),
            Column("q1", "Q1", figures.seconds), Column("median", "median", figures.seconds),
            Column("q3", "Q3", figures.seconds),
            *((Column("ratio", over, figures.times), Column("shared", "shared problems", figures.count))
              if times.reference else ()),
        ),
        times.table,
    )  # fmt: skip


def start_table(times: TimeTable, task: str) -> Table:
    """Cold and compile times, and times in metric evaluations."""
    return make_table(
        f"start-{task}",
        "First call, and time in metric evaluations",
        "Cold: median of the first call in a fresh process. Compilation: what it added to the very "
        "first call of the solver in this run, where kernels had to be compiled (machine code is cached "
        "afterwards). Metric evaluations: warm time over one evaluation of the metric on the answer, "
        "answered problems only; every solver must at least price its answer.",
        (
            *SOLVER, Column("cold", "cold", figures.seconds),
            Column("compile", "compilation", figures.seconds),
            Column("metric_q1", "evaluations, Q1", figures.digits),
            Column("metric", "median", figures.digits), Column("metric_q3", "Q3", figures.digits),
        ),
        times.table.sort_values(["metric", "solver"]),
    )  # fmt: skip


def exponent_table(frame: pd.DataFrame, task: str) -> Table:
    """Table of `scaling.exponents`."""
    return make_table(
        f"growth-{task}",
        "Growth of time",
        "Least squares of log time over log size: time grows like size to the exponent. R² says how straight "
        "the line is. Fixed costs dominate small sizes, so exponents understate the growth at the end.",
        (
            Column("axis", "axis"), Column("solver", "solver"), Column("sizes", "sizes", figures.count),
            Column("smallest", "from", figures.count), Column("largest", "to", figures.count),
            Column("exponent", "exponent", figures.digits), Column("r2", "R²", figures.digits),
            Column("time_s", "time at the largest", figures.seconds),
        ),
        frame,
        grouped=True,
    )  # fmt: skip


def stage_table(frame: pd.DataFrame) -> Table:
    """Table of `stages.paper_stages`."""
    return make_table(
        "stage-table",
        "The paper's stages",
        "Geometric mean of the latency over that of plain top-k with equal bandwidth; quartiles over cases.",
        (
            Column("group", "group"), Column("stage", "stage"), Column("cases", "cases", figures.count),
            Column("mean", "latency", figures.ratio), Column("q1", "Q1", figures.ratio),
            Column("q3", "Q3", figures.ratio), Column("reduction", "reduction", figures.percent),
            Column("retention", "mean retention", figures.ratio),
        ),
        frame.assign(reduction=1 - frame["mean"].astype(float)),
        grouped=True,
    )  # fmt: skip


def leftover_table(frame: pd.DataFrame) -> Table:
    """Table of `stages.left_on_the_table`."""
    return make_table(
        "left-on-the-table",
        "What the paper's policy leaves on the table at its own retention",
        "Share of the policy's latency that the certified point saves, and what no point can exceed.",
        (
            Column("group", "group"), Column("cases", "cases", figures.count),
            Column("saved", "saved at least", figures.percent), Column("most", "at most", figures.percent),
        ),
        frame,
    )  # fmt: skip


def expectation_table(found: Sequence[Expectation]) -> Table:
    """Promises beside measurements."""
    import pandas as pd

    frame = pd.DataFrame(
        [
            {
                "what": item.what, "limit": f"{'at most' if item.at_most else 'at least'} {item.limit:g}",
                "problems": len(item.values), "measured": item.measured, "share": item.share_kept,
                "verdict": item.verdict,
            }
            for item in found
        ]
    )  # fmt: skip
    return make_table(
        "promises",
        "Promised figures",
        "The median over the problems decides; “kept on” is the share of problems on which it holds.",
        (
            Column("what", "promise"), Column("limit", "expected"),
            Column("measured", "measured, median", figures.digits),
            Column("problems", "problems", figures.count), Column("share", "kept on", figures.share),
            Column("verdict", "verdict"),
        ),
        frame,
    )  # fmt: skip
