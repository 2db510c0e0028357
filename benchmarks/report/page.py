"""The report as sections of tables and pictures, in the order in which they are read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wdmoe_opt.benchmarks.report import tables
from wdmoe_opt.benchmarks.report.drawing import Picture, make_picture
from wdmoe_opt.benchmarks.report.expectations import expectations
from wdmoe_opt.benchmarks.report.gaps import gap_table
from wdmoe_opt.benchmarks.report.limitations import describe_json, limitations
from wdmoe_opt.benchmarks.report.pictures import (
    budget,
    devices,
    frontier,
    profile,
    scaling,
    target,
    waterfall,
)
from wdmoe_opt.benchmarks.report.pictures.style import Look, looks
from wdmoe_opt.benchmarks.report.relative import relative_latency
from wdmoe_opt.benchmarks.report.results import TASKS, task_rows
from wdmoe_opt.benchmarks.report.scaling import SIZE_AXES, exponents
from wdmoe_opt.benchmarks.report.stages import SUITE, left_on_the_table, paper_stages
from wdmoe_opt.benchmarks.report.success import success_table
from wdmoe_opt.benchmarks.report.times import time_table

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

HEADINGS = {
    "joint": ("Joint task: selection and bandwidth", "Which experts each token keeps, and the bandwidth."),
    "bandwidth": ("Bandwidth task: the selection is given", "Only the bandwidth is allocated."),
}


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes
    ----------
    name, heading, intro : str
    items : tuple of Table or Picture
    """

    name: str
    heading: str
    intro: str
    items: tuple[tables.Table | Picture, ...]


@dataclass(frozen=True)
class Page:
    """The whole report.

    Attributes
    ----------
    title : str
    facts : tuple of (str, str)
        What was measured, when and where.
    limitations : tuple of str
    sections : tuple of Section
    """

    title: str
    facts: tuple[tuple[str, str], ...]
    limitations: tuple[str, ...]
    sections: tuple[Section, ...]

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """Those that were drawn."""
        items = [item for section in self.sections for item in section.items]
        return tuple(item for item in items if isinstance(item, Picture) and not item.reason)

    @property
    def tables(self) -> tuple[tables.Table, ...]:
        """All tables."""
        items = [item for section in self.sections for item in section.items]
        return tuple(item for item in items if isinstance(item, tables.Table))


def make_page(rows: pd.DataFrame) -> Page:
    """Everything that tidy rows say."""
    suites = ", ".join(dict.fromkeys(rows["suite"]))
    styles = looks(rows)
    sections = [_expected(rows)] if len(rows) else []
    sections += [_paper(rows)] if (rows["suite"] == SUITE).any() else []
    for task in TASKS:
        if len(task_rows(rows, task)):
            sections.append(_task(rows, task, styles))
    if (rows["task"] == "joint").any():
        sections.append(_cases(rows, styles))
    title = f"Benchmark report: {suites}" if suites else "Benchmark report"
    return Page(title, tuple(_facts(rows)), tuple(limitations(rows)), tuple(sections))


def _facts(rows: pd.DataFrame) -> list[tuple[str, str]]:
    days = sorted({started[:10] for started in rows["started"] if started})
    facts = [
        ("rows", str(len(rows))),
        ("problems", str(rows["problem"].nunique())),
        ("cases", str(rows["case"].nunique())),
        ("solvers", " · ".join(dict.fromkeys(rows["solver"]))),
        ("seeds", str(rows["seed"].nunique())),
        ("measured", " to ".join(dict.fromkeys([days[0], days[-1]])) if days else "unknown"),
    ]
    facts += [("machine", describe_json(text)) for text in rows["machine"].unique() if text]
    facts += [("versions", text) for text in _versions(rows)]
    return [fact for fact in facts if fact[1]]


def _versions(rows: pd.DataFrame) -> list[str]:
    """Versions of all rows; several where they differ."""
    found: dict[str, set[str]] = {}
    for text in rows["versions"].unique():
        try:
            content = json.loads(text) if text else {}
        except ValueError:
            content = {}
        for name, version in content.items() if isinstance(content, dict) else ():
            found.setdefault(str(name), set()).add(str(version))
    words = [f"{name} {' / '.join(sorted(versions))}" for name, versions in sorted(found.items())]
    return [", ".join(words)] if words else []


def _expected(rows: pd.DataFrame) -> Section:
    return Section(
        "expected", "Expected and measured",
        "The figures this project promised itself, as far as these rows speak to them.",
        (tables.expectation_table(expectations(rows)),),
    )  # fmt: skip


def _paper(rows: pd.DataFrame) -> Section:
    picture = make_picture(
        "stages", "What each stage of the paper's method saves",
        "Geometric mean over cases of the latency over that of plain top-k with equal bandwidth, and "
        "what is saved above it; whiskers are quartiles over cases. The certified answer keeps at least "
        "as much gate weight as the paper's policy does on the same case.",
        lambda: waterfall.draw(rows),
    )  # fmt: skip
    return Section(
        "paper", "The setting of the paper",
        "Baselines and ablations of the paper, and the certified optimum at the retention of its policy.",
        (picture, tables.stage_table(paper_stages(rows)), tables.leftover_table(left_on_the_table(rows))),
    )  # fmt: skip


def _task(rows: pd.DataFrame, task: str, styles: Mapping[str, Look]) -> Section:
    heading, intro = HEADINGS[task]
    times = time_table(rows, task)
    beaten = times.reference
    items: list[tables.Table | Picture] = [
        tables.relative_table(relative_latency(rows, task, beaten), task, beaten),
        tables.gap_table(gap_table(rows, task), task),
        tables.success_table(success_table(rows, task), task),
        tables.time_table(times, task),
        tables.start_table(times, task),
        *_time_pictures(rows, task, styles),
    ]
    growth = exponents(rows, task)
    if len(growth):
        items.append(tables.exponent_table(growth, task))
    if (~task_rows(rows, task)["axis"].isin(("", *SIZE_AXES))).any():
        items.append(
            make_picture(
                f"radio-{task}", "Relative latency along the other axes",
                "Geometric mean over cases of the latency over that of topk-uniform; answers keep what their "
                "floors ask.",
                lambda: scaling.draw_radio(rows, task, styles),
            )
        )  # fmt: skip
    return Section(task, heading, intro, tuple(items))


def _time_pictures(rows: pd.DataFrame, task: str, styles: Mapping[str, Look]) -> list[Picture]:
    return [
        make_picture(
            f"profile-{task}", "Performance profiles",
            "Share of the problems with a bound on which a solver has a feasible point within "
            "the given gap of that bound, within a multiple of the time of the fastest solver (Dolan "
            "and Moré). Counted are the problems that more than half of the solvers were tried on; who "
            "fails, or was not tried, does not solve a problem, and who solves none has no curve. "
            "Solid: this package; dotted: baselines; dashed: peers; dash-dotted: plugins.",
            lambda: profile.draw(rows, task, styles),
        ),
        make_picture(
            f"budget-{task}", "Gap at a fixed time budget",
            "Median over problems of the best gap among all configurations of a solver that end within "
            "the budget; bands are quartiles. In brackets: on how many of the problems a solver was "
            "tried, where not on all. A curve starts (marker) where half of the problems have an "
            "answer, and stays where more time does not help. Smaller gaps are drawn at 0.00001 %.",
            lambda: budget.draw(rows, task, styles),
        ),
        make_picture(
            f"target-{task}", "Time to a given gap",
            "Left: median time of the fastest configuration of a solver that reaches the gap, drawn "
            "where at least half of the problems that it was tried on (brackets) reach it. Right: share "
            "of the problems that reach it at all.",
            lambda: target.draw(rows, task, styles),
        ),
        make_picture(
            f"scaling-{task}", "Growth of time with the size",
            "Median warm time of the answered problems; the exponent is the slope of a straight line fitted "
            "to the logarithms.",
            lambda: scaling.draw(rows, task, styles),
        ),
    ]  # fmt: skip


def _cases(rows: pd.DataFrame, styles: Mapping[str, Look]) -> Section:
    return Section(
        "cases", "Case by case",
        "A few cases of different groups, those with most points or devices first.",
        (
            make_picture(
                "frontiers", "Latency against retention",
                "Every point that a solver returned on the instance, over all floors; hollow: below its "
                "floor. Black steps: certified bounds; no answer whose every block keeps the floor lies "
                "below them.",
                lambda: frontier.draw(rows, styles),
            ),
            make_picture(
                "devices", "Time per device",
                "The slowest device decides: plain top-k with equal bandwidth, and the fastest answer that "
                "any solver found on the instance at any floor. Dashed: the slowest device of each.",
                lambda: devices.draw(rows, styles),
            ),
        ),
    )  # fmt: skip
