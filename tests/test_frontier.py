"""The frontier: both curves, what lies between them, policies above, picture, table and command."""

from __future__ import annotations

import csv
import doctest
import json
import re
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import wdmoe_opt as wo
from wdmoe_opt import pareto, pareto_plot
from wdmoe_opt.cli import main
from wdmoe_opt.testing.arrays import Shape, loads_arrays, measured_arrays, random_arrays
from wdmoe_opt.testing.strategies import shapes

NAME = "deepseek-v2-lite-intent"
TINY = Shape(blocks=1, tokens=5, devices=3, top_k=2, columns=2)


def small(**request: Any) -> wo.Problem:
    """A captured block that solves in milliseconds."""
    return wo.Problem(wo.load_instance(NAME, tokens=64, blocks=2), **{"allocation": "per-block"} | request)


@pytest.fixture(scope="module")
def front() -> wo.Frontier:
    """Frontier of the captured blocks."""
    return wo.frontier(small())


def check(front: wo.Frontier) -> None:
    """What must hold of every frontier."""
    tolerance = 1 - wo.FEASIBILITY_TOLERANCE
    assert (np.diff(front.floors) > 0).all()
    assert (np.diff(front.latency) >= 0).all()
    assert (np.diff(front.lower_bound) >= 0).all()
    assert (front.lower_bound >= 0).all()
    # Certificates are rounded outward, prices to the nearest.
    assert (front.lower_bound <= front.latency * (1 + 1e-12)).all()
    assert ((front.gap >= -1e-12) & (front.gap <= 1)).all()
    for floor, solution in zip(front.floors, front.solutions, strict=True):
        asked = front.problem.replace(min_retention=floor)
        assert wo.evaluate(asked, solution.keep, solution.bandwidth).feasible
        assert solution.block_retention.min() >= floor * tolerance
    for mark in front.marks:
        if not mark.conflict:
            assert front.bound_at(mark.retention) == mark.lower_bound <= mark.latency * (1 + 1e-12)
            assert mark.known <= mark.latency
            assert -1e-12 <= mark.saving <= mark.gap + 1e-12
            assert np.abs(front.floors - min(mark.retention, 1)).min() <= 1e-9


# ------------------------------------------------------------------ properties


@settings(max_examples=40, deadline=None)
@given(shapes(tokens=3, top_k=2, columns=3), st.integers(0, 2**20), st.sampled_from([0.0, 0.4]))
def test_any_points_and_bounds_make_a_frontier(shape: Shape, seed: int, token_floor: float) -> None:
    """Whatever points and valid bounds a solver returns, both curves rise around the optimum."""
    inst = wo.Instance.from_arrays(**random_arrays(replace(shape, blocks=1), seed))
    problem = wo.Problem(inst, min_token_retention=token_floor)
    rng = np.random.default_rng(seed)

    def some(asked: wo.Problem, method: str, **_: Any) -> wo.Solution:
        best = wo.solve(asked, "enumerate")
        if method != "certified":
            return wo.solve(asked, method)
        poor = wo.solve(asked.replace(min_retention=rng.uniform(asked.min_retention[0], 1)), "enumerate")
        found = poor if poor.has_point else best
        bound = best.latency * rng.uniform(0, 1 - 1e-9)
        return replace(found, method=method, lower_bound=bound, bound_kind="certified")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pareto, "solve", some)
        front = wo.frontier(problem, points=6)
    check(front)
    for retention in rng.uniform(front.floors[0], front.floors[-1], 5):
        best = wo.solve(problem.replace(min_retention=retention), "enumerate").latency
        assert front.bound_at(retention) <= best <= front.latency_at(retention) * (1 + 1e-9)


@pytest.mark.compiled
@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(
    "request_fields", [{}, {"max_experts": 1}, {"candidates": 3}, {"dispatch": "device"}]
)
def test_enumerated_optimum_lies_between_the_curves(seed: int, request_fields: dict[str, Any]) -> None:
    """At the floors and between them the true least latency is neither below the one nor above the other."""
    shape = Shape(
        tokens=4, blocks=1, devices=3, per_device=1 + seed % 2, top_k=2, columns=3, activation=seed % 3 == 0
    )
    problem = wo.Problem(wo.Instance.from_arrays(**random_arrays(shape, seed)), **request_fields)
    front = wo.frontier(problem, points=5)
    check(front)
    for retention in (*front.floors, *(0.7 * front.floors[1:] + 0.3 * front.floors[:-1])):
        best = wo.solve(problem.replace(min_retention=retention), "enumerate").latency
        assert front.bound_at(retention) <= best * (1 + 1e-9)
        assert front.latency_at(retention) >= best * (1 - 1e-9)


@pytest.mark.parametrize("seed", range(6))
def test_enumerated_optimum_of_blocks_that_share_bandwidth(seed: int) -> None:
    """The floor holds for every block, and the curves enclose the least total latency."""
    shape = Shape(tokens=3, blocks=2, devices=3, top_k=2, columns=2)
    problem = wo.Problem(wo.Instance.from_arrays(**random_arrays(shape, seed)))
    front = wo.frontier(problem, points=4)
    check(front)
    for retention in (*front.floors, *(0.5 * front.floors[1:] + 0.5 * front.floors[:-1])):
        best = wo.solve(problem.replace(min_retention=retention), "enumerate").latency
        assert front.bound_at(retention) <= best * (1 + 1e-9)
        assert front.latency_at(retention) >= best * (1 - 1e-9)


@pytest.mark.compiled
def test_captured_blocks(front: wo.Frontier) -> None:
    """On captured routing the curves are close, and the papers' baseline leaves much on the table."""
    check(front)
    assert front.floors[0] == 0.5
    assert front.floors[-1] == 1
    assert np.median(front.gap) < 0.1
    uniform, topk, wdmoe = front.marks
    assert [uniform.method, topk.method, wdmoe.method] == list(pareto.POLICIES)
    assert uniform.saving > 0.1
    assert topk.saving < 1e-3
    assert wdmoe.retention < 1
    assert wdmoe.lower_bound < wdmoe.latency


@pytest.mark.compiled
def test_bounds_are_certified(front: wo.Frontier) -> None:
    """Every step of the lower curve is the certified bound of one floor, which the checker confirms."""
    proved = []
    for floor in front.floors:
        own = wo.solve(front.problem.replace(min_retention=floor), "certified")
        if own.bound_kind == "certified":
            proved.append(own.lower_bound)
            assert wo.certify(own.problem, own)
    assert proved
    assert set(front.lower_bound) <= {0.0, *proved}


def test_claimed_bounds_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bound without a certificate is none: the lower curve stays at zero."""
    real = pareto.solve
    monkeypatch.setattr(pareto, "solve", lambda *a, **k: replace(real(*a, **k), bound_kind="claimed"))
    front = wo.frontier(small(), [0.8, 0.9], policies=["topk-uniform", "topk"])
    assert (front.lower_bound == 0).all()
    assert (front.gap == 1).all()
    assert pareto.mark_words(front.marks[0]).startswith("leaves at least ")
    assert pareto.mark_words(front.marks[1]) == "leaves nothing known on the table"


def test_points_and_bounds_serve_wherever_they_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow point gives way to a faster one of a higher floor, a weak bound to that of a lower floor."""
    real = pareto.solve

    def poor(problem: wo.Problem, method: str, **options: Any) -> wo.Solution:
        solution = real(problem, method, **options)
        floor = problem.min_retention[0]
        if method == "certified" and floor == 0.7:
            slow = wo.solve(problem, "topk-uniform")
            return replace(solution, keep=slow.keep, bandwidth=slow.bandwidth, evaluation=slow.evaluation)
        return replace(solution, lower_bound=0.0) if floor == 0.9 else solution

    monkeypatch.setattr(pareto, "solve", poor)
    front = wo.frontier(small(), [0.7, 0.8, 0.9, 0.95], policies=())
    check(front)
    assert front.solutions[0] is front.solutions[1]
    assert front.lower_bound[2] == front.lower_bound[1] > 0


def test_policies_add_their_floors_and_points() -> None:
    """What a policy keeps is one more floor; a policy's own point may be the best one known there."""
    problem = small(min_retention=0.83)
    front = wo.frontier(problem, [0.6, 0.9], policies=["greedy", "wdmoe"])
    check(front)
    greedy, wdmoe = (mark.retention for mark in front.marks)
    assert front.floors.tolist() == sorted([0.6, 0.9, greedy, wdmoe])
    assert wo.frontier(problem, [greedy, wdmoe], policies=["greedy", "wdmoe"]).floors.size == 2
    # `greedy` knows the floor of the problem itself.
    assert front.marks[0].retention == pytest.approx(0.83, abs=5e-3)
    assert wo.frontier(problem, [0.9, 0.6, 0.9], policies=()).floors.tolist() == [0.6, 0.9]


def test_policy_that_breaks_a_cap_is_marked_as_such() -> None:
    """No distance is named for a point that the curves say nothing about."""
    front = wo.frontier(small(max_experts=3), policies=["topk"])
    check(front)
    (mark,) = front.marks
    assert "max_experts" in mark.conflict
    assert np.isnan(mark.gap)
    assert "not comparable" in str(front)
    assert front.floors[-1] < 1


def test_floors_out_of_reach_are_listed() -> None:
    """They are left out of the curve; if all are, there is no curve."""
    problem = small(max_experts=1)
    front = wo.frontier(problem, [0.1, 0.99, 1.0], policies=())
    assert front.floors.tolist() == [0.1]
    assert front.unreachable.tolist() == [0.99, 1.0]
    assert "out of reach: 0.99, 1" in str(front)
    with pytest.raises(wo.InputError, match="no floor is within reach: min_retention cannot be met"):
        wo.frontier(problem, [0.99], policies=())


@pytest.mark.compiled
def test_threads_and_progress_change_nothing(front: wo.Frontier) -> None:
    """Two threads give the same bits, and the bar is told of every floor."""
    seen: list[tuple[int, int]] = []
    two = wo.frontier(small(), threads=2, progress=lambda done, total: seen.append((done, total)))
    assert two.latency.tolist() == front.latency.tolist()
    assert two.lower_bound.tolist() == front.lower_bound.tolist()
    assert seen == [(i + 1, front.floors.size) for i in range(front.floors.size)]


def test_measured_link() -> None:
    """Without bandwidth to allocate there is a frontier as well."""
    arrays = measured_arrays(Shape(blocks=1, tokens=6, devices=3, top_k=2, columns=2), 4)
    check(wo.frontier(wo.Problem(wo.Instance.from_arrays(**arrays), allocation="fixed"), points=3))


# ------------------------------------------------------------------ wrong input


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: wo.frontier(small(), [0.5, 1.5]), r"retentions\[1\] = 1.5: must be at most 1"),
        (lambda: wo.frontier(small(), [0.5, -0.1]), r"retentions\[1\] = -0.1: must be at least 0"),
        (lambda: wo.frontier(small(), [np.nan]), r"retentions\[0\] = nan: must be finite"),
        (lambda: wo.frontier(small(), []), r"retentions: must have shape \(n,\)"),
        (lambda: wo.frontier(small(), 0.9), r"retentions: must have shape \(n,\)"),
        (lambda: wo.frontier(small(), points=1), "points = 1: must be 2 to"),
        (lambda: wo.frontier(small(), threads=0), "threads = 0: must be 1 to"),
        (lambda: wo.frontier(small(), policies="topk"), "policies = 'topk': must be a sequence"),
        (lambda: wo.frontier(small(), policies=["tops"]), "method = 'tops': unknown name"),
        (lambda: wo.frontier(small(), rel_gap=-1, policies=()), "rel_gap = -1.0: must be at least 0"),
        (lambda: wo.frontier(small(max_latency=1.0)), "max_latency = 1.0: must not be set"),
        (lambda: wo.frontier(small(objective="wlr-token")), "objective = 'wlr-token': must be 'latency'"),
        (lambda: wo.frontier(3), "problem: must be a Problem or an Instance, got int"),
        (
            lambda: wo.frontier(wo.Instance.from_arrays(**loads_arrays(TINY, 1))),
            "problem: has loads only, no gate weights",
        ),
    ],
)
def test_wrong_input(call: Any, message: str) -> None:
    """Errors name the field, the index, the value and the rule."""
    with pytest.raises(wo.InputError, match=message):
        call()


# ------------------------------------------------------------------ outputs


def test_names_do_not_hide_each_other() -> None:
    """The function stays a function, whichever name is asked for first."""
    assert callable(wo.frontier)
    assert wo.Frontier.__module__ == wo.frontier.__module__


@pytest.mark.compiled
def test_examples() -> None:
    """The examples in the docstrings run."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert doctest.testmod(pareto).failed == 0


def test_documented_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example of docs/frontier.md runs, and its pictures are there."""
    pytest.importorskip("matplotlib")
    page = (Path(__file__).parents[1] / "docs/frontier.md").read_text("utf-8")
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", page):
        assert (Path(__file__).parents[1] / "docs" / picture).stat().st_size < 100_000
    code = re.search(r"```python\n(.*?)```", page, re.S)
    assert code
    monkeypatch.chdir(tmp_path)
    exec(code[1], {})
    assert (tmp_path / "frontier.svg").exists()


@pytest.mark.compiled
def test_frame_and_text(front: wo.Frontier) -> None:
    """One row per floor and per policy, and the same in words."""
    frame = front.to_frame()
    assert (frame.kind == "floor").sum() == front.floors.size
    assert frame.lower_bound_s[: front.floors.size].tolist() == front.lower_bound.tolist()
    assert frame.method[-3:].tolist() == list(pareto.POLICIES)
    assert len(str(front).splitlines()) == 1 + front.floors.size + 3


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_plot_file(front: wo.Frontier, tmp_path: Path, ending: str) -> None:
    """A picture is written, and twice the same one."""
    pytest.importorskip("matplotlib")
    path = tmp_path / f"x.{ending}"
    front.plot(path)
    first = path.read_bytes()
    assert len(first) > 5_000
    if ending == "png":
        front.plot(str(path))
        assert path.read_bytes() == first


def test_plot_into_axes(front: wo.Frontier) -> None:
    """Given axes are drawn into; labels overlap neither each other nor the achieved curve."""
    figure = pytest.importorskip("matplotlib.figure").Figure(figsize=(8, 4.5))
    axes = front.plot(figure.subplots())
    figure.canvas.draw()
    # Without the lines to the markers, which belong to an annotation's own extent.
    extent = type(axes.title).get_window_extent
    boxes = [extent(text).translated(*axes.transData.transform(text.xy)) for text in axes.texts]
    assert len(boxes) == 3
    for box in boxes:
        (left, low), (right, _) = axes.transData.inverted().transform([(box.x0, box.y0), (box.x1, box.y0)])
        assert left > 50
        assert low > 1e3 * front.latency_at(min(right / 100, 1.0))
    for i, box in enumerate(boxes):
        assert box.y1 <= axes.get_window_extent().y1
        assert not any(box.overlaps(other) for other in boxes[:i])


def test_plot_of_one_floor_and_of_policies_on_the_left(tmp_path: Path) -> None:
    """A single floor and a policy at the left edge are drawn too."""
    pytest.importorskip("matplotlib")
    wo.frontier(small(), [0.8], policies=()).plot(tmp_path / "one.png")
    wo.frontier(small(), [1.0], policies=["topk-uniform"]).plot(tmp_path / "full.png")
    wo.frontier(small(min_retention=0.52), policies=["greedy"]).plot(tmp_path / "left.png")
    assert len(list(tmp_path.iterdir())) == 3


def test_plot_refuses_what_it_cannot_write(front: wo.Frontier, tmp_path: Path) -> None:
    """Unknown endings, missing folders and things that are no axes."""
    pytest.importorskip("matplotlib")
    with pytest.raises(wo.InputError, match="must end in one of"):
        front.plot(tmp_path / "x.doc")
    with pytest.raises(wo.InputError, match="its folder does not exist"):
        front.plot(tmp_path / "none" / "x.png")
    with pytest.raises(wo.InputError, match="must be a path or axes, got int"):
        front.plot(3)


@pytest.mark.parametrize("retention", [93, -0.1, float("nan"), "all"])
def test_retentions_are_parts(front: wo.Frontier, retention: object) -> None:
    """Percent are not taken for parts."""
    for curve in (front.bound_at, front.latency_at):
        with pytest.raises(wo.InputError, match=r"retention.*: must"):
            curve(retention)


def test_plot_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is missing is named."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(wo.UnsupportedError, match=r"install wdmoe_opt\[plot\]"):
        pareto_plot.check_target("x.png")


# ------------------------------------------------------------------ command


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run the command in this process; returns its status."""
    monkeypatch.setattr(sys, "argv", ["wdmoe-opt", "frontier", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


def test_command_json_is_the_frontier(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], front: wo.Frontier, tmp_path: Path
) -> None:
    """--json carries the numbers of Python, --csv the rows, --plot the picture."""
    pytest.importorskip("matplotlib")
    size = ("--tokens", "64", "--blocks", "2", "--allocation", "per-block")
    files = ("--csv", str(tmp_path / "x.csv"), "--plot", str(tmp_path / "x.png"))
    assert command(monkeypatch, NAME, *size, "--json", *files) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["latency_s"] == front.latency.tolist()
    assert found["lower_bound_s"] == front.lower_bound.tolist()
    assert found["floors"] == front.floors.tolist()
    assert [row["method"] for row in found["policies"]] == list(pareto.POLICIES)
    assert found["request"]["allocation"] == "per-block"
    with (tmp_path / "x.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["latency_s"]) for row in rows if row["kind"] == "floor"] == front.latency.tolist()
    assert (tmp_path / "x.png").stat().st_size > 5_000


def test_command_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The table shows floors, bounds, the policies asked for, and floors out of reach."""
    size = ("--tokens", "16", "--blocks", "1", "--max-experts", "5")
    assert command(monkeypatch, NAME, *size, "--floors", "0.7,0.8,1", "--policy", "wdmoe") == 0
    out = capsys.readouterr().out
    for word in ("0.7000", "at least", "wdmoe", "out of reach: 1", "certified"):
        assert word in out
    assert "topk" not in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((NAME, "--floors", "0.5,many"), "floors = 'many': must be a number"),
        ((NAME, "--floors", ""), "floors = '': must be a number"),
        ((NAME, "--floors", "0.5,2", "--blocks", "1"), "retentions[1] = 2.0: must be at most 1"),
        ((NAME, "--floors", "0.5", "--points", "3"), "--points: cannot be given together with --floors"),
        ((NAME, "--points", "1", "--blocks", "1"), "points = 1: must be 2 to"),
        ((NAME, "--plot", "x.doc"), "plot = 'x.doc': must end in one of"),
        ((NAME, "--plot", "no/such/x.png"), "its folder does not exist"),
        ((NAME, "--csv", "no/such/x.csv"), "its folder does not exist"),
        ((NAME, "--policy", "magic", "--blocks", "1"), "method = 'magic': unknown name"),
        ((NAME, "--candidates", "few"), "candidates = 'few': must be a whole number"),
        (("mixtral-8x7b-mmlu-load",), "problem: has loads only"),
        (("nothing-like-it",), "instance = 'nothing-like-it': unknown name"),
    ],
)
def test_command_errors(
    arguments: tuple[str, ...],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A wrong call exits with 2 and one line on standard error, before any solving where possible."""
    if "--plot" in arguments:
        pytest.importorskip("matplotlib")
    assert command(monkeypatch, *arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert message in err
