"""`wdmoe-opt bench`: what it prints, and one line for every slip."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from wdmoe_opt.cli import main

pytest.importorskip("pandas")
pytest.importorskip("pyarrow")

TOY = str(Path(__file__).parents[2] / "examples" / "toy_solver.py")


def bench(*arguments):
    command = [sys.executable, "-m", "wdmoe_opt", "bench", *arguments]
    environment = os.environ | {"COLUMNS": "200"}  # no column is wrapped
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=environment)


def test_suites():
    found = json.loads(bench("suites", "--json").stdout)
    assert [s["name"] for s in found] == ["captured", "paper", "radio", "scaling", "smoke", "tiny"]
    assert all(s["rows_per_seed"] > 0 for s in found)
    table = bench("suites").stdout
    assert "smoke" in table
    assert "does everything work here" in table


def test_help_names_the_commands():
    text = bench().stdout
    assert all(word in text for word in ("run", "suites", "report"))
    assert "--scheduler" in bench("run", "--help").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["smok"], "suite = 'smok': unknown name; choose from smoke"),
        (["none.toml"], "none.toml: cannot be read"),
        (["smoke", "--solver", "certifed"], "solver = 'certifed': unknown name; choose from certified"),
        (["smoke", "--seeds", "0"], "seeds = 0: must be at least 1"),
        (["smoke", "--workers", "0"], "workers = 0: must be at least 1"),
        (["smoke", "--plugin", "none.py"], "plugin = 'none.py': there is no such file"),
        (["smoke", "--plugin", "no_such_module"], "plugin = 'no_such_module': cannot be imported"),
        (["smoke", "--plugin", "json"], "plugin = 'json': registers no solver"),
        (["smoke", "--plugin", "json:dumps_"], "plugin = 'json:dumps_': cannot be imported"),
        (["smoke", "--out", __file__], "cannot be used as a folder"),
    ],
)
def test_slips_are_one_line(tmp_path, arguments, message, monkeypatch, capsys):
    given = arguments if "--out" in arguments else [*arguments, "--out", str(tmp_path)]
    (line,) = refused(monkeypatch, capsys, *given)
    assert message in line


def refused(monkeypatch, capsys, *arguments):
    """Lines on standard error of a run that ends with status 2, in this process."""
    monkeypatch.setattr(sys, "argv", ["wdmoe-opt", "bench", "run", *arguments])
    monkeypatch.setattr(sys, "stdout", sys.__stdout__)
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    return capsys.readouterr().err.splitlines()


def test_a_damaged_table_is_named(tmp_path, monkeypatch, capsys):
    (tmp_path / "results.parquet").write_bytes(b"PAR1 not")
    (line,) = refused(monkeypatch, capsys, "smoke", "--out", str(tmp_path))
    assert "results.parquet: cannot be read" in line


def test_the_toy_solver_of_the_example(tmp_path):
    """A third party's solver joins a suite by --plugin, and only it is run; the table names it."""
    done = bench("run", "smoke", "--plugin", TOY, "--solver", "toy", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split()[:3] == ["solver", "kind", "rows"]
    assert [line.split()[:2] for line in lines[1:-1]] == [["toy", "plugin"]]
    again = bench(
        "run", "smoke", "--plugin", f"{TOY}:TOY", "--solver", "toy", "--out", str(tmp_path), "--json"
    )
    found = json.loads(again.stdout)
    assert found["rows"] == 0
    assert found["skipped"] == 4
    assert found["states"]["ok"] == 3
    assert found["states"]["refused"] == 1  # loads alone: it selects by gate weight


def test_an_announced_solver_joins_every_suite(tmp_path):
    """An installed package with the entry point takes part without --plugin."""
    package = tmp_path / "site"
    info = package / "toy_package-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[wdmoe_opt.solvers]\nannounced = toy_package:ANNOUNCED\n")
    (package / "toy_package.py").write_text(
        "import wdmoe_opt as wo\n"
        "from wdmoe_opt.solvers.topk import top_k_uniform\n"
        "ANNOUNCED = wo.SolverInfo('announced', 'by entry point', top_k_uniform, needs_tokens=False)\n"
    )
    code = (
        "from wdmoe_opt.benchmarks.runner.command import with_solvers\n"
        "from wdmoe_opt.benchmarks.suites.load import load_suite\n"
        "found = with_solvers(load_suite('smoke'), (), ())\n"
        "print([(c.label, c.kind) for c in found.contestants][-1])"
    )
    paths = os.pathsep.join([str(package), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths}
    )
    assert done.stdout.strip() == "('announced', 'plugin')", done.stderr


def test_the_example_as_an_installed_package_is_in_the_tables(tmp_path):
    """Its module registers on import and is an entry point as well."""
    package, out = tmp_path / "site", tmp_path / "out"
    info = package / "toy_package-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[wdmoe_opt.solvers]\ntoy = toy_package:TOY\n")
    shutil.copy(TOY, package / "toy_package.py")
    paths = os.pathsep.join([str(package), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = (sys.executable, "-m", "wdmoe_opt", "bench")
    for arguments in (
        ("run", "smoke", "--solver", "toy", "--solver", "topk-uniform", "--out", str(out)),
        ("report", str(out)),
    ):
        done = subprocess.run(
            [*command, *arguments], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths}
        )
        assert done.returncode == 0, done.stderr
    assert "| toy | plugin |" in (out / "report" / "report.md").read_text("utf-8")


def test_kernels_are_timed_against_bincount():
    from wdmoe_opt.benchmarks import micro

    name, problem = next(iter(micro.problems()))
    cost = micro.metric_cost(name, problem)
    assert cost.pairs == 1024
    assert 0 < cost.count_kernel < cost.kernels < cost.evaluate
    assert cost.bincount > 0
