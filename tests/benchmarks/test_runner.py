"""The runner loses no row, whatever solvers, or whoever runs it, do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import wdmoe_opt as wo
from wdmoe_opt import registry
from wdmoe_opt.benchmarks.runner import plugins as loader
from wdmoe_opt.benchmarks.runner.claims import check_claims
from wdmoe_opt.benchmarks.runner.command import run
from wdmoe_opt.benchmarks.runner.isolated import isolated
from wdmoe_opt.benchmarks.runner.rows import COLUMNS, frame
from wdmoe_opt.benchmarks.runner.store import Store
from wdmoe_opt.benchmarks.runner.task import Task
from wdmoe_opt.benchmarks.suites.suite import Case, Contestant

pd = pytest.importorskip("pandas")
pytest.importorskip("pyarrow")

ODD = str(Path(__file__).with_name("odd_solvers.py"))
CASE = Case(
    "small", "synthetic", generator="synthetic", parameters={"tokens": 32}, request={"min_retention": 0.9}
)
SUITE = """
name = "mine"
[defaults]
time_limit = 5.0
kill_after = 200.0
[[contestants]]
method = "topk-uniform"
kind = "baseline"
[[contestants]]
method = "greedy"
[[cases]]
name = "{tokens} tokens"
group = "tokens"
generator = "synthetic"
parameters = { tokens = "{tokens}" }
request = { min_retention = 0.9 }
axis = "tokens"
axis_value = "{tokens}"
each = { tokens = [8, 16, 32] }
"""


@pytest.fixture(autouse=True)
def registry_as_before(monkeypatch):
    """Plugins of these tests are nobody else's solvers."""
    monkeypatch.setattr(registry, "_SOLVERS", dict(registry._SOLVERS))
    monkeypatch.setattr(loader, "_loaded", {})


def test_rows_have_the_schema_the_report_reads():
    table = frame([{"solver": "x"}])
    assert list(table.columns) == list(COLUMNS)
    assert table["value"].isna().all()
    assert table["message"].tolist() == [""]
    assert {str(t) for t in table.dtypes} <= {"object", "float64", "int64", "bool", "str"}


def outcome(method, *, kill_after=120.0, **changes):
    contestant = Contestant(method, method, kind="plugin", time_limit=1.0, kill_after=kill_after, **changes)
    return isolated(Task("test", CASE, contestant, 0, (ODD,)).to_json())


@pytest.mark.parametrize(
    ("method", "state", "words"),
    [
        ("failing", "failed", "RuntimeError: no idea what to do"),
        ("dying", "failed", "the worker ended with status 7"),
        ("malformed", "failed", "returned a malformed point"),
        ("empty", "no-point", "no-solution: ran out of time"),
        ("no-such-solver", "failed", "unknown name"),
    ],
)
def test_what_goes_wrong_is_in_the_row(method, state, words):
    row = outcome(method)
    assert row["state"] == state
    assert words in row["message"]
    assert row["solver"] == method
    assert json.loads(row["versions"])["wdmoe_opt"] == wo.__version__
    assert row["tokens"] == 32


def test_a_hanging_solver_is_killed():
    started = time.monotonic()
    row = outcome("hanging", kill_after=8.0)
    assert time.monotonic() - started < 40
    assert row["state"] == "timeout"
    assert row["message"] == "killed after 8 s; its time limit was 1 s"


def test_a_chatty_solver_does_not_block():
    row = outcome("chatty")
    assert row["state"] == "ok"
    assert row["repeats"] == 5
    assert row["warm_best_s"] <= row["warm_q1_s"] <= row["warm_s"] <= row["warm_q3_s"]
    assert row["metric_s"] > 0
    assert row["cold_s"] > row["warm_s"]
    assert row["device_time"].startswith("[")


def test_too_large_is_refused_before_it_is_tried():
    row = outcome("hanging", most_pairs=10)
    assert row["state"] == "refused"
    assert row["message"].startswith("64 token-expert pairs")


def test_a_case_that_cannot_be_built_is_a_row():
    broken = Case("broken", "x", instance="no-such-family")
    row = isolated(Task("test", broken, Contestant("topk", "topk"), 0).to_json())
    assert row["state"] == "failed"
    assert "the problem cannot be built: UnknownNameError" in row["message"]


def test_lies_are_found_out(tmp_path):
    """A false optimum, a bound too high, an infeasible optimum, against what the others reach."""
    path = tmp_path / "lies.toml"
    path.write_text(
        SUITE.replace("[8, 16, 32]", "[32]").replace(
            'method = "greedy"', 'method = "certified"\nrel_gap = 0.05'
        )
    )
    names = ("certified", "lying", "overbound", "infeasible")
    found = run(path, solvers=names, plugins=[ODD], out=tmp_path / "out")
    rows = pd.read_parquet(found["table"]).set_index("solver")
    assert set(rows.index) == set(names)
    assert rows["claim_holds"].to_dict() == {
        "certified": "yes", "lying": "no", "overbound": "no", "infeasible": "no",
    }  # fmt: skip
    assert rows.loc["lying", "kind"] == "plugin"
    assert not rows.loc["infeasible", "feasible"]
    assert "total_bandwidth" in rows.loc["infeasible", "violations"]
    assert [s["claims_wrong"] for s in found["solvers"]] == [0, 1, 1, 1]


def row(solver, value, *, optimal=False, bound=None, kind="none", holds="", feasible=True, gap=1e-3):
    return {
        "suite": "s", "case": "c", "seed": 0, "task": "joint", "min_retention": 0.9, "solver": solver,
        "method": solver, "options": "{}", "objective": "latency", "value": value, "feasible": feasible,
        "claims_optimal": optimal, "bound_kind": kind, "claim_holds": holds, "rel_gap": gap,
        "lower_bound": float("nan") if bound is None else bound,
    }  # fmt: skip


def verdicts(*rows):
    return check_claims(frame(rows)).set_index("solver")["claim_holds"].to_dict()


def test_claims_against_each_other():
    proof = row("certified", 1.001, bound=0.9995, kind="certified", holds="yes")
    assert verdicts(row("a", 1.0), row("b", 1.0, optimal=True)) == {"a": "", "b": "unchecked"}
    assert verdicts(proof, row("a", 1.0, optimal=True)) == {"certified": "yes", "a": "yes"}
    assert verdicts(row("a", 1.0, optimal=True), row("b", 1.0005, optimal=True)) == {"a": "yes", "b": "yes"}
    assert verdicts(row("a", 1.0), row("b", 1.002, optimal=True))["b"] == "no"
    assert verdicts(row("a", 1.0, feasible=False), row("b", 1.002, optimal=True))["b"] == "unchecked"
    assert verdicts(row("a", 1.0), row("b", 1.1, bound=1.01, kind="claimed"))["b"] == "no"
    assert verdicts(proof, row("b", 1.1, bound=0.98, kind="claimed"))["b"] == "yes"
    other_floor = row("a", 0.5) | {"min_retention": 0.5}
    assert verdicts(other_floor, row("b", 1.0, optimal=True))["b"] == "unchecked"


def test_finished_rows_are_not_run_again(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(SUITE.replace("[8, 16, 32]", "[16, 8]"))
    out = tmp_path / "out"
    first = run(path, solvers=["topk-uniform"], out=out)
    assert (first["rows"], first["skipped"], first["states"]) == (2, 0, {"ok": 2})
    second = run(path, out=out)
    assert (second["rows"], second["skipped"], second["states"]) == (2, 2, {"ok": 4})
    before = pd.read_parquet(second["table"])
    assert not before["task_key"].duplicated().any()
    assert before["axis_value"].tolist() == [16.0, 16.0, 8.0, 8.0]
    assert (before["group"] == "tokens").all()
    assert json.loads(before["machine"][0])["cores"] >= 1
    path.write_text(path.read_text().replace("min_retention = 0.9", "min_retention = 0.8"))
    third = run(path, solvers=["greedy"], out=out)
    assert (third["rows"], third["skipped"]) == (2, 0)
    assert len(pd.read_parquet(third["table"])) == 6
    fresh = run(path, solvers=["greedy"], out=out, fresh=True)
    assert (fresh["rows"], len(pd.read_parquet(fresh["table"]))) == (2, 6)


@pytest.mark.skipif(os.name != "posix", reason="kill -9")
def test_a_killed_run_goes_on_without_loss(tmp_path):
    path, out = tmp_path / "mine.toml", tmp_path / "out"
    path.write_text(SUITE)
    command = [sys.executable, "-m", "wdmoe_opt", "bench", "run", str(path), "--out", str(out), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list((out / "parts").glob("*.json"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    saved = {p.stem: json.loads(p.read_text())["cold_s"] for p in (out / "parts").glob("*.json")}
    assert 2 <= len(saved) < 6
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["skipped"] == len(saved)
    assert found["rows"] == 6 - len(saved)
    table = pd.read_parquet(found["table"]).set_index("task_key")
    assert len(table) == 6
    assert not table.index.duplicated().any()
    assert all(table.loc[key, "cold_s"] == cold for key, cold in saved.items())
    assert not list((out / "parts").iterdir())


def test_a_crash_between_table_and_parts_doubles_nothing(tmp_path):
    store = Store(tmp_path)
    rows = [row("a", 1.0) | {"task_key": "k1"}, row("b", 2.0) | {"task_key": "k2"}]
    for entry in rows:
        store.add(entry)
    assert len(store.merge()) == 2
    store.add(rows[0])  # as if the part had not been deleted
    assert len(store.merge()) == 2
    assert store.finished() == {"k1", "k2"}
    store.add(rows[1] | {"state": "unavailable"})
    assert store.finished() == {"k1"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "is not the row that its name says"),
        ('{"task_key": "k2", "state": "ok"}', "is not the row that its name says"),
        ('{"task_key": "k1", "colour": "red"}', "is not the row that its name says"),
        ('{"task_key": "k1", "latency_s": "fast"}', "is not the row that its name says"),
        ('{"task_key": "k1", "state": ["ok"]}', "is not the row that its name says"),
    ],
)
def test_rows_that_are_none_are_named(tmp_path, content, words):
    store = Store(tmp_path)
    store.add(row("a", 1.0) | {"task_key": "k1"})
    assert set(store.rows()) == {"k1"}
    (store.parts / "k1.json").write_text(content)
    with pytest.raises(wo.WdmoeError, match=rf"k1\.json: {words}"):
        store.rows()


def test_two_runs_do_not_share_a_folder(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(SUITE)
    with Store(tmp_path / "out").locked(), pytest.raises(wo.InputError, match="another run writes there"):
        run(path, out=tmp_path / "out")


def test_floors_at_another_methods_retention():
    case = Case("c", "g", instance="gpt-oss-20b-decode#3", request={"min_retention": 0.5})
    rows = {
        label: isolated(Task("t", case, contestant, 0).to_json())
        for label, contestant in {
            "wdmoe": Contestant("wdmoe", "wdmoe"),
            "greedy": Contestant("greedy at", "greedy", at_retention_of="wdmoe"),
        }.items()
    }
    assert rows["greedy"]["min_retention"] == pytest.approx(rows["wdmoe"]["retention"])
    assert rows["greedy"]["retention"] >= rows["wdmoe"]["retention"] - 1e-9
    assert rows["greedy"]["latency_s"] < rows["wdmoe"]["latency_s"]


@pytest.mark.compiled
def test_compilation_is_measured_apart(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    task = Task("test", CASE, Contestant("topk-uniform", "topk-uniform"), 0).to_json()
    first, second = isolated(task), isolated(task)
    assert first["compile_s"] > 0.2
    assert first["cold_s"] < first["compile_s"] + first["cold_s"]
    assert second["compile_s"] != second["compile_s"]
