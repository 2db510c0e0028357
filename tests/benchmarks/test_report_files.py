"""The report as files: complete, self-contained, the same every time, and whole on odd inputs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pandas")
pytest.importorskip("pyarrow")
pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

from fake_results import frame

import wdmoe_opt as wo
from wdmoe_opt.benchmarks.report import figures
from wdmoe_opt.benchmarks.report.command import report, write
from wdmoe_opt.benchmarks.report.limitations import limitations
from wdmoe_opt.benchmarks.report.page import Page, make_page
from wdmoe_opt.benchmarks.report.render import dump, html, markdown
from wdmoe_opt.benchmarks.report.results import tidy

LOST = {"state": "failed", "feasible": False, "value": np.nan, "latency_s": np.nan, "retention": np.nan,
        "warm_s": np.nan, "cold_s": np.nan, "message": "it broke"}  # fmt: skip


class _Sources(HTMLParser):
    """Tags, and everything that a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]


def test_the_page_needs_nothing_but_itself(page: Page) -> None:
    text = html(page)
    found = _Sources()
    found.feed(text)
    assert "script" not in found.tags
    assert all(source.startswith(("data:", "#")) for source in found.sources)
    assert "@import" not in text
    assert "url(" not in text
    identities = re.findall(r' id="([^"]+)"', text)
    assert len(identities) == len(set(identities))


def test_limitations_come_first(page: Page) -> None:
    for text in (html(page), markdown(page)):
        first = "<h2 id=" if "<html" in text else "## "
        assert "Limitations" in text[text.index(first) :][:40]
        places = [text.index(word) for word in (first, "What was measured", "Success, claimed and true")]
        assert places == sorted(places)


def test_every_picture_of_complete_rows_is_drawn(page: Page) -> None:
    assert {picture.name for picture in page.pictures} == {
        "stages", "profile-joint", "budget-joint", "target-joint", "scaling-joint", "radio-joint",
        "profile-bandwidth", "budget-bandwidth", "target-bandwidth", "frontiers", "devices",
    }  # fmt: skip


def test_files(page: Page, tmp_path: Path) -> None:
    write(page, tmp_path)
    text = (tmp_path / "report.md").read_text("utf-8")
    linked = re.findall(r"\]\((images/[^)]+)\)", text)
    assert len(linked) == len(page.pictures)
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in linked)
    assert len(list((tmp_path / "images").glob("*.svg"))) == len(page.pictures)
    assert not list(tmp_path.glob(".*"))
    # A later report without pictures removes those of this one.
    write(make_page(tidy(frame(LOST))), tmp_path)
    assert not {path.stem for path in (tmp_path / "images").iterdir()} & {
        "frontiers",
        "devices",
        "budget-joint",
    }


def test_equal_rows_give_equal_pages() -> None:
    rows = frame({"lower_bound": 1.0, "bound_kind": "certified"}, {"solver": "greedy"})
    first, again = (make_page(tidy(rows)) for _ in range(2))
    assert len(first.pictures) == 3
    assert html(again) == html(first)
    assert [picture.png for picture in again.pictures] == [picture.png for picture in first.pictures]


ODD: dict[str, list[dict[str, Any]]] = {
    "one solver": [{}],
    "all failed": [LOST, {**LOST, "solver": "greedy"}],
    "unavailable": [{"state": "unavailable", **{k: v for k, v in LOST.items() if k != "state"}}],
    "refused": [{**LOST, "state": "refused"}],
    "no numbers": [{"value": np.nan, "lower_bound": np.nan, "retention": np.nan, "latency_s": np.nan}],
    "zero times": [{"warm_s": 0.0, "metric_s": 0.0}, {"solver": "greedy", "warm_s": 0.0}],
    "ties": [{"solver": name, "lower_bound": 1.0, "bound_kind": "certified"} for name in ("a", "b", "c")],
    "a maximum": [{"objective": "retention", "value": 0.9, "latency_s": 1.0}],
    "one bandwidth row": [{"task": "bandwidth"}],
    "an axis of one value": [{"axis": "tokens", "axis_value": 8.0}],
    "paper without top-k": [{"suite": "paper"}],
}


@pytest.mark.parametrize("name", ODD)
def test_odd_rows_make_a_page(name: str) -> None:
    page = make_page(tidy(frame(*ODD[name])))
    assert len(html(page)) > 1000
    assert "nan" not in re.sub(r"<[^>]*>", "", html(page).split("</style>")[1]).lower().split()
    json.loads(dump(page))
    markdown(page)


def test_no_rows_make_a_page_that_says_so() -> None:
    page = make_page(tidy(frame({}).iloc[:0]))
    assert page.limitations == ("There are no rows: nothing was measured.",)
    assert "nothing was measured" in html(page)
    assert page.sections == ()


def test_pictures_without_data_say_why() -> None:
    text = html(make_page(tidy(frame({}))))
    assert "No picture: no problem of this task has a certified bound." in text
    assert "No picture: no case has times per device" in text


def test_names_of_others_are_no_markup() -> None:
    evil = {"solver": "<script>alert(1)</script>|`x`", "message": "<img src=x>", "case": "a|b *c*"}
    page = make_page(tidy(frame({**evil}, {**evil, "case": "b", "state": "failed", "feasible": False})))
    assert "<script" not in html(page)
    assert "<img src=x" not in html(page)
    assert "\\<script>" in markdown(page)
    (header,) = {
        line.count(" | ") for line in markdown(page).splitlines() if line.startswith("| solver | kind | rows")
    }
    rows = [line for line in markdown(page).splitlines() if "alert" in line and line.count(" | ") == header]
    assert rows


def test_the_command_writes_and_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame({}, {"solver": "topk-uniform", "value": 2.0}).to_parquet(tmp_path / "rows.parquet")
    report(tmp_path, None, True)
    found = json.loads(capsys.readouterr().out)
    assert found["limitations"]
    assert {line["solver"]: line["mean"] for line in found["tables"]["relative-joint"]} == {
        "certified": 0.5, "topk-uniform": 1.0,
    }  # fmt: skip
    assert (tmp_path / "report" / "report.html").is_file()
    report(tmp_path / "rows.parquet", tmp_path / "elsewhere", False)
    assert str(tmp_path / "elsewhere" / "report.html") in capsys.readouterr().out


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    frame({}).to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(wo.InputError, match=r"out = .*taken.*cannot be written"):
        report(tmp_path / "rows.parquet", tmp_path / "taken")


def test_the_module_runs_and_errors_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "wdmoe_opt.benchmarks.report", str(tmp_path / "none.parquet")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: results = ")
    assert done.stderr.count("\n") == 1


def test_limitations_by_hand() -> None:
    found = limitations(
        tidy(
            frame(
                {"claims_optimal": True, "claim_holds": "no"},
                {"solver": "scip", "limit": "time", "warm_s": 60.0},
                {"solver": "maingo", "state": "unavailable", "message": "no maingopy"},
                {"solver": "slsqp", **LOST},
                {"solver": "noisy", "warm_q1_s": 0.005, "warm_q3_s": 0.02},
                {"solver": "short", "feasible": False, "violations": "min_retention[0] = 0.1, limit 0.9"},
                {"solver": "broken", "feasible": False, "violations": "bandwidth[0] = 2, limit 1"},
                {"solver": "cold", "warm_s": np.nan, "cold_s": 3.0},
                {"case": "synthetic 1", "started": "2001"},
            )
        )
    )
    starts = [
        "1 claim did not hold when rechecked: certified (1)",
        "1 row ended in an error: slsqp (1). Most often: “it broke”",
        "maingo was not available and is compared nowhere. Most often: “no maingopy”",
        "1 row stopped at the time limit (60 s): scip (1)",
        "1 row returned a point that breaks a constraint other than the floor on retention (bandwidth (1))",
        "1 row returned a point below the floor on retention: short (1)",
        "2 of 2 problems have no certified bound and were left out",
        "2 cases without topk-uniform",
        "Task joint: not every solver was tried on all 2 problems",
        "2 of 2 cases ran with fewer than 5 seeds",
        "Times are noisy in 1 of 7 repeatedly timed rows",
        "1 row has a cold time only",
        "One machine only: cpu FAKE CPU, cores 2",
        "1 of 2 cases are synthetic",
    ]
    for start, sentence in zip(starts, found, strict=True):
        assert sentence.startswith(start)


@pytest.mark.parametrize(
    ("fields", "synthetic"),
    [({"suite": "scaling"}, True), ({"group": "synthetic gates, real loads"}, True), ({}, False)],
)
def test_synthetic_cases_are_named(fields: dict[str, Any], synthetic: bool) -> None:
    found = limitations(tidy(frame(fields)))
    assert any("synthetic" in sentence for sentence in found) is synthetic


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (figures.seconds(0.0009996), "1.00 ms"), (figures.seconds(3.21e-5), "32.1 µs"),
        (figures.seconds(4e-10), "0.400 ns"), (figures.seconds(1234.0), "1\u202f230 s"),
        (figures.seconds(np.inf), "∞"), (figures.digits(np.nan), "–"), (figures.digits(0.0), "0"),
        (figures.digits(9.996), "10.0"), (figures.digits(1.5e-7), "1.50e-07"),
        (figures.percent(1e-12), "0 %"), (figures.percent(0.1234), "12.3 %"),
        (figures.share(0.999), "> 99 %"), (figures.share(1.0), "100 %"),
        (figures.count(8192.0), "8\u202f192"),
    ],
)  # fmt: skip
def test_figures(text: str, shown: str) -> None:
    assert text == shown
