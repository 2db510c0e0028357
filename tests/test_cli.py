"""The command line: tables, JSON, exit statuses, and one line per error."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import wdmoe_opt as wo
from wdmoe_opt.cli import main

NAME = "gpt-oss-20b-decode"
LOADS = "mixtral-8x7b-mmlu-load"


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a user's shell would."""
    environment = os.environ | {"PYTHONIOENCODING": "utf-8", "COLUMNS": "160"} | variables
    return subprocess.run(
        [sys.executable, "-m", "wdmoe_opt", *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=environment,
    )


def as_json(*arguments: str) -> dict:
    """Run with --json and parse what comes, strictly."""
    done = run(*arguments, "--json")
    assert done.returncode == 0, done.stderr

    def refuse(word: str) -> float:
        raise AssertionError(f"{word} is not JSON")

    return json.loads(done.stdout, parse_constant=refuse)


def test_solve_json_is_the_solution() -> None:
    """--json carries the same numbers as solve() in Python, and strict JSON."""
    found = as_json("solve", NAME, "--method", "wdmoe", "--min-retention", "0.5", "--with-selection")
    problem = wo.Problem(wo.load_instance(NAME), min_retention=0.5)
    expected = wo.solve(problem, "wdmoe")
    assert found["latency_s"] == expected.latency
    assert found["bandwidth_hz"] == expected.bandwidth.tolist()
    assert found["wlr_per_s"] == expected.wlr
    assert found["feasible"] is True
    assert found["violations"] == []
    assert found["lower_bound"] is None
    assert found["request"]["min_retention"] == 0.5
    ids, keep = problem.instance.expert_ids, expected.keep
    assert found["selection"][3][5] == ids[3, 5][keep[3, 5]].tolist()
    base = wo.solve(problem, "topk-uniform")
    assert found["baseline"]["latency_s"] == base.latency
    assert math.isclose(found["latency_change"], expected.latency / base.latency - 1)


def test_solve_table_names_what_it_costs() -> None:
    """The table shows both methods, every device with its board, and the retention."""
    done = run("solve", NAME, "--method", "topk")
    assert done.returncode == 0
    for word in ("topk-uniform", "topk ", "retention", "agx-orin-maxn", "orin-nx", "waiting", "feasible"):
        assert word in done.stdout


def test_default_floor_is_95_percent_and_infeasible_exits_3() -> None:
    """Without --min-retention the floor is 0.95; a point that breaks it exits with 3 and says where."""
    done = run("solve", NAME, "--method", "wdmoe", "-o", "gamma=2")
    assert done.returncode == 3
    assert "violates min_retention" in done.stdout
    assert "limit 0.95" in done.stdout


def test_options_reach_the_solver() -> None:
    """Solver options are typed like their defaults."""
    found = as_json(
        "solve", NAME, "--method", "wdmoe", "--min-retention", "0",
        "-o", "alpha=0.9", "-o", "scope=all-blocks", "-o", "rounds=2", "-o", "strict=true",
    )  # fmt: skip
    assert {step["block"] for step in found["trace"]} == {-1}
    assert {step["round"] for step in found["trace"]} == {0, 1}
    assert min(step["theta"] for step in found["trace"]) == 0.9


@pytest.mark.parametrize("ending", ["npz", "json"])
def test_export_then_solve(tmp_path: Path, ending: str) -> None:
    """An exported file solves to the same latency as the shipped name."""
    path = tmp_path / f"one.{ending}"
    done = run("instances", "export", NAME, str(path), "--blocks", "2")
    assert done.returncode == 0, done.stderr
    from_file = as_json("solve", str(path), "--method", "topk")
    by_name = as_json("solve", NAME, "--blocks", "2", "--method", "topk")
    assert from_file["latency_s"] == by_name["latency_s"]


def test_batch_selection() -> None:
    """--tokens, --start and --blocks cut the batch that Python cuts."""
    found = as_json(
        "instances", "show", "deepseek-v2-lite-law", "--tokens", "16", "--start", "3", "--blocks", "1"
    )
    assert (found["instance"]["tokens"], found["instance"]["blocks"]) == (16, 1)
    assert found["provenance"]["batch"]["start"] == 3


def test_stats_and_validate(tmp_path: Path) -> None:
    """The statistics and the check of a file agree with the library's functions."""
    from wdmoe_opt.instances.statistics import stats

    found = as_json("instances", "stats", NAME, "--tokens", "8")
    expected = stats(wo.load_instance(NAME, tokens=8))
    assert found["expert_load_skew"]["worst"] == expected["expert_load_skew"]["worst"]
    path = tmp_path / "x.npz"
    wo.load_instance(NAME, blocks=1).save(path)
    assert as_json("instances", "validate", str(path))["kind"] == "instance"
    path.write_bytes(b"PK not really a zip")
    done = run("instances", "validate", str(path))
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)


def test_scenario_by_name_and_measured_link() -> None:
    """A scenario name works wherever a family does; the measured Wi-Fi link has a fixed allocation."""
    found = as_json("solve", "deepseek-v2-lite-law/orin-mix-4/feup-wifi@16#2", "--method", "topk")
    assert found["request"]["allocation"] == "fixed"
    assert found["bandwidth_hz"] is None
    assert found["instance"]["blocks"] == 1


def test_profile_device_reports_what_is_missing(tmp_path: Path) -> None:
    """Without sizes or a measurement there is nothing to profile, and capture says what it needs."""
    done = run("profile-device", str(tmp_path / "p.json"))
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    done = run("capture", "no-such-model", str(tmp_path / "none.txt"), str(tmp_path / "r.npz"))
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert not list(tmp_path.iterdir())


def test_lists() -> None:
    """The lists and the info agree with the Python functions."""
    listed = json.loads(run("instances", "list", "--json").stdout)
    assert [row["name"] for row in listed["families"]] == wo.list_instances()
    solvers = json.loads(run("solvers", "--json").stdout)
    assert [row["name"] for row in solvers] == sorted(["auto", *(info.name for info in wo.list_solvers())])
    assert "of its pick" in run("solvers").stdout
    assert json.loads(run("info", "--json").stdout)["wdmoe_opt"] == wo.__version__
    for command in (("instances", "list"), ("solvers",), ("info",), ("instances", "show", NAME), ()):
        done = run(*command)
        assert done.returncode == 0
        assert len(done.stdout.splitlines()) > 3


ERRORS = [
    (("solve", "nothing-like-it"), "instance = 'nothing-like-it': unknown name"),
    (("solve", NAME, "--method", "magic"), "method = 'magic': unknown name"),
    (("solve", NAME, "--min-retention", "1.5"), "min_retention = 1.5: must be at most 1"),
    (("solve", NAME, "--min-retention", "nan"), "min_retention = nan: must be finite"),
    (("solve", NAME, "--min-retention", "many"), "--min-retention"),
    (("solve", NAME, "--objective", "speed"), "objective = 'speed': unknown name"),
    (("solve", NAME, "--objective", "retention"), "max_latency: is required"),
    (("solve", NAME, "--allocation", "free"), "allocation = 'free': unknown name"),
    (("solve", NAME, "--dispatch", "bulk"), "dispatch = 'bulk': unknown name"),
    (("solve", NAME, "--candidates", "9"), "candidates = 9: must be at least top_k"),
    (("solve", NAME, "--candidates", "few"), "candidates = 'few': must be a whole number"),
    (("solve", NAME, "--max-experts", "0"), "max_experts = 0: must be 1 to"),
    (("solve", NAME, "--tokens", "0"), "tokens = 0: must be 1 to"),
    (("solve", NAME, "--tokens", "some"), "tokens = 'some': must be a whole number"),
    (("solve", NAME, "--blocks", "99"), "blocks = 99: must be 1 to"),
    (("solve", NAME, "--start", "9999"), "start = 9999"),
    (("solve", NAME, "--seed", "-1"), "seed = -1: must be at least 0"),
    (("solve", NAME, "--threads", "0"), "threads = 0: must be 1 to 4096"),
    (("solve", NAME, "--time-limit", "-1"), "time_limit = -1.0: must be at least 0"),
    (("solve", NAME, "-o", "alpha"), "option = 'alpha': must read NAME=VALUE"),
    (("solve", NAME, "-o", "rel_gap=0.5"), "option = 'rel_gap': has an argument of its own, --rel-gap"),
    (("solve", NAME, "-o", "problem=1"), "option = 'problem': is no option of a solver"),
    (("solve", NAME, "-o", "bandwidth=1"), "option = 'bandwidth': is no option of a solver"),
    (("solve", NAME, "--method", "wdmoe", "-o", "alfa=1"), "unknown name; choose from alpha"),
    (("solve", NAME, "--method", "wdmoe", "-o", "alpha=x"), "option alpha = 'x': must be a number"),
    (("solve", NAME, "--method", "wdmoe", "-o", "strict=1"), "option strict = '1': must be true or false"),
    (("solve", NAME, "--method", "wdmoe", "-o", "delta=0"), "delta = 0.0: must be greater than 0"),
    (("solve", NAME, "--method", "wdmoe", "-o", "tie=none"), "tie = 'none': unknown name"),
    (("solve", NAME, "--blocks", "²"), "blocks = '²': must be a number of blocks"),
    (("solve", NAME, "--blocks", "1" * 5000), "blocks = '111111111111111111...': must name a block, 0 to 23"),
    (("solve", NAME, "--tokens", "٣"), "tokens = '٣': must be a whole number"),
    (("solve", f"{NAME}#٣"), "blocks = '٣': must be a number of blocks"),
    (("solve", f"{NAME}#0-999999999999"), "blocks = 999999999999: must name a block, 0 to 23"),
    (("solve", f"{NAME}@{'1' * 5000}"), "after '@' must stand TOKENS"),
    (("solve", f"{NAME}/orin-mix-8/cell-100mhz:9999999"), "state = 9999999: must be 0 to 99999"),
    (("solve", f"{NAME}/orin-mix-8/cell-100mhz:{'1' * 5000}"), "after ':' must stand a state number"),
    (("solve", f"{NAME}/orin-mix-8/cell-100mhz:٣"), "after ':' must stand a state number"),
    (("solve", NAME, "--start", "-1"), "start = -1: must be 0 to "),
    (
        ("solve", "deepseek-v2-lite-law/orin-mix-4/feup-wifi@16#2", "--allocation", "shared"),
        "allocation = 'shared': must be 'fixed'",
    ),
    (("solve", LOADS, "--objective", "wlr-token"), "objective = 'wlr-token': must be 'latency'"),
    (("solve", LOADS, "--objective", "speed"), "objective = 'speed': unknown name"),
    (
        ("solve", LOADS, "--min-retention", "0.9"),
        "min_retention = 0.9: cannot be set: the instance has loads only",
    ),
    (("solve", LOADS, "--min-retention", "0.95"), "min_retention = 0.95: cannot be set"),
    (("solve", LOADS, "--min-token-retention", "0.5"), "min_token_retention = 0.5: cannot be set"),
    (("solve", LOADS, "--max-experts", "2"), "cannot be set: the instance has loads only"),
    (("solve", LOADS, "--candidates", "3"), "candidates: cannot be set: the instance has loads only"),
    (("solve", LOADS, "--dispatch", "device"), "dispatch: cannot be 'device'"),
    (("solve", NAME, "--with-selection"), "--with-selection: needs --json"),
    (("solve", ""), "name = '': must not be empty"),
    (("solve", "./x"), "./x: the name of a file must end in .npz, .json or .toml"),
    (("solve", ".npz"), ".npz: must have a name before its ending"),
    (("solve", "no-such-file.npz"), "no-such-file.npz"),
    (("solve", "no-such-file.npz", "--tokens", "3"), "can only be set for shipped instances"),
    (("solve",), "Missing argument"),
    (("solve", NAME, "--colour"), "--colour"),
    (("frobnicate",), "frobnicate"),
    (("instances", "export", NAME, "file.txt"), "must end in .npz or .json"),
    (("instances", "export", NAME, "no/such/folder/x.npz"), "cannot be written"),
]


@pytest.mark.parametrize(
    ("arguments", "message"), ERRORS, ids=[" ".join(arguments)[:60] for arguments, _ in ERRORS]
)
def test_errors_are_one_line(
    arguments: tuple[str, ...],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A wrong call exits with 2 and one line on standard error, nothing on standard output."""
    monkeypatch.setattr(sys, "argv", ["wdmoe-opt", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    out, err = capsys.readouterr()
    assert stop.value.code == 2
    assert out == ""
    assert len(err.splitlines()) == 1
    assert err.startswith("wdmoe-opt: ")
    assert message in err


def test_error_of_a_real_process() -> None:
    """What a shell sees of a wrong call: status 2, one line, no traceback."""
    done = run("solve", "nothing-like-it")
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)


def test_damaged_file_is_refused(tmp_path: Path) -> None:
    """A truncated and a hand-edited file give one line that names the file."""
    path = tmp_path / "x.npz"
    wo.load_instance(NAME, blocks=1).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    done = run("solve", str(path))
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "x.npz" in done.stderr
    text = tmp_path / "x.json"
    wo.load_instance(NAME, blocks=1).save(text)
    text.write_text(text.read_text().replace('"top_k": 4', '"top_k": 3'))
    done = run("solve", str(text))
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "hash" in done.stderr


def test_loads_alone_take_what_they_can() -> None:
    """The default floor does not apply to loads alone; and what says nothing new is taken."""
    found = as_json("solve", LOADS, "--method", "topk", "--objective", "latency", "--min-retention", "0")
    assert found["request"]["min_retention"] == 0
    done = run("solve", LOADS, "--method", "topk", "--max-latency", "1e-9")
    assert done.returncode == 3
    assert "violates max_latency" in done.stdout


def test_loads_only_instance_solves_and_refuses_selection(tmp_path: Path) -> None:
    """Bandwidth problems apply to loads alone; a selection method names those that can."""
    path = tmp_path / "loads.npz"
    source = wo.load_instance(NAME, blocks=1).arrays()
    for name in ("expert_ids", "gate_weights", "top_k", "expert_device"):
        del source[name]
    wo.Instance.from_arrays(**source, loads=np.array([[3, 0, 5, 1, 2, 2, 0, 9]])).save(path)
    assert as_json("solve", str(path), "--method", "topk")["feasible"]
    done = run("solve", str(path), "--method", "wdmoe")
    assert done.returncode == 2
    assert "use certified, exact, slsqp, topk, topk-uniform" in done.stderr


# ---------------------------------------------------------------------- output


STRANGE = "[/red] [bold]x\x1b[31m\u202e\r\nend"


@pytest.mark.parametrize(
    "provenance",
    [
        {"fleet": 3},
        {"fleet": {"boards": 3}},
        {"fleet": {"boards": [1] * 8}},
        {"fleet": {"boards": [STRANGE] * 9}},
        {"fleet": {"boards": {"a": 1}}, "batch": 7, "routing": [], STRANGE: STRANGE},
    ],
)
def test_names_and_provenance_of_others_are_only_text(
    provenance: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Markup is printed as it is, control characters are not, and a provenance of any type is no error."""
    path = tmp_path / "x.npz"
    replace(wo.load_instance(NAME, blocks=1), name=STRANGE, provenance=provenance).save(path)
    for command in (["solve", "--method", "topk"], ["instances", "show"], ["instances", "stats"]):
        monkeypatch.setattr(sys, "argv", ["wdmoe-opt", *command, str(path)])
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        assert (stop.value.code, err) == (0, "")
        assert "[/red] [bold]x[31m end" in out
        assert not set("\x1b\u202e\r") & set(out)


def test_output_in_ascii_and_without_trailing_blanks() -> None:
    """Where the encoding has no blocks, bars are drawn with ASCII; no line ends in blanks."""
    arguments = ("solve", NAME, "--method", "topk", "--blocks", "1")
    plain, blocks = run(*arguments, PYTHONIOENCODING="ascii"), run(*arguments)
    assert plain.returncode == 0, plain.stderr
    assert plain.stdout == blocks.stdout.replace("█", "#").replace("·", ".")
    assert "####" in plain.stdout
    for text in (plain.stdout, run("solvers").stdout, run("instances", "list").stdout):
        assert all(line == line.rstrip() for line in text.splitlines())


def test_narrow_terminals_lose_columns_but_no_digits() -> None:
    """At 60 columns the most important columns are whole; wider, more of them."""
    arguments = ("solve", NAME, "--method", "topk", "--blocks", "1")
    narrow, wide = run(*arguments, COLUMNS="60").stdout, run(*arguments, COLUMNS="160").stdout
    assert "…" not in narrow
    tables = [line for line in narrow.splitlines() if "latency" in line or "bandwidth " in line]
    assert all(word in tables[0] for word in ("latency", "change", "retention"))
    assert all(word in tables[1] for word in ("device", "bandwidth", "time per block"))
    assert "waiting" in wide
    assert "waiting" not in narrow
    known = set(wide.split())
    assert all(word in known for line in narrow.splitlines()[1:-1] for word in line.split())
    assert max(map(len, narrow.splitlines())) <= 60


def test_numbers_of_stats_have_six_digits() -> None:
    """Tables round; JSON does not."""
    printed = run("instances", "stats", NAME, "--blocks", "3").stdout
    assert max(len(digits) for digits in re.findall(r"0\.0*([1-9][0-9]*)", printed)) <= 6


def test_version() -> None:
    """--version prints name and version, nothing else."""
    assert run("--version").stdout == f"wdmoe-opt {wo.__version__}\n"


def test_help_tells_counts_from_indices() -> None:
    """--blocks 3 and #3 are different things, and the help says so."""
    for command in (["solve"], ["instances", "show"]):
        text = " ".join(run(*command, "--help", COLUMNS="200").stdout.split())
        assert "3 is blocks 0, 1 and 2" in text
        assert "where #3 is block 3 alone" in text


@pytest.mark.skipif(os.name != "posix", reason="needs a POSIX shell")
@pytest.mark.parametrize("arguments", ["solvers", "solvers --json", "--help", "--version"])
def test_closed_and_full_outputs_are_one_line(arguments: str) -> None:
    """A closed standard output and a full disk end in one line and a status that is not 0."""
    targets = {">&-": "standard output: is closed"}
    if Path("/dev/full").exists():
        targets[">/dev/full"] = "standard output: cannot be written (No space left on device)"
    for target, message in targets.items():
        line = f'"{sys.executable}" -m wdmoe_opt {arguments} {target}'
        done = subprocess.run(["sh", "-c", line], capture_output=True, text=True)
        assert done.returncode == 2
        assert done.stderr == f"wdmoe-opt: {message}\n"


def test_interrupt_while_importing() -> None:
    """Ctrl-C before the command line is there ends in one line and 130."""
    code = """
import sys
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == "wdmoe_opt.cli":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupt())
from wdmoe_opt.__main__ import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "wdmoe-opt: interrupted\n")


def test_impossible_floors_are_explained() -> None:
    """Where no selection meets the floors there is no table of nothing, but the tokens that cannot."""
    done = run(
        "solve",
        NAME,
        "--blocks",
        "1",
        "--method",
        "greedy",
        "--min-token-retention",
        "1",
        "--max-experts",
        "1",
    )
    assert done.returncode == 3
    assert "no point" in done.stdout
    assert "infeasible: min_token_retention cannot be met by token [0, 0]" in done.stdout
    assert "nan" not in done.stdout
    assert done.stderr == ""
