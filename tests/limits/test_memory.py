"""Large instances in bounded memory, and constant memory over many calls."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from profiles import PROFILE

import wdmoe_opt as wo
from wdmoe_opt import solving

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and limits address space")


@linux
def test_a_million_tokens_in_bounded_memory() -> None:
    """Enough memory: both methods answer. Too little: they say so, nothing crashes, and then they answer."""
    script = Path(__file__).with_name("bounded.py")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    for ends in found["tried"].values():
        assert set(ends) <= {"feasible", "no-solution", "MemoryError"}
        assert ends[0] != "feasible"
        assert ends[-1] == "feasible"
    assert found["before"] == found["after"]


def test_memory_that_runs_out_after_the_solver(monkeypatch) -> None:
    """Pricing a point takes memory as well: the answer is then the same honest none."""
    original = solving.evaluate

    def full(*arguments):
        raise MemoryError("Unable to allocate 47.5 GiB")

    monkeypatch.setattr(solving, "evaluate", full)
    solution = wo.solve(wo.load_instance("deepseek-v2-lite-law@8#1"), "topk")
    monkeypatch.setattr(solving, "evaluate", original)
    assert not solution.has_point
    assert solution.termination == wo.Termination("no-solution", "memory", "Unable to allocate 47.5 GiB")


def test_a_command_without_memory_is_one_line(monkeypatch, capsys) -> None:
    """Where not even the problem fits, the command says so."""
    from wdmoe_opt import cli

    def full(*arguments, **request):
        raise MemoryError("Unable to allocate 47.5 GiB")

    monkeypatch.setattr(cli, "Problem", full)
    monkeypatch.setattr(sys, "argv", ["wdmoe-opt", "solve", "deepseek-v2-lite-law@8#1"])
    monkeypatch.setattr(sys, "stdout", sys.__stdout__)
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    assert capsys.readouterr().err == "wdmoe-opt: out of memory (Unable to allocate 47.5 GiB)\n"


@linux
def test_a_soak_of_sessions_keeps_its_memory() -> None:
    """Every call with other gains, gates and number of tokens; 100,000 of them in the long profile."""
    solves = 100_000 if PROFILE == "long" else 5_000
    line = [sys.executable, "-m", "wdmoe_opt.benchmarks.soak", "--solves", str(solves), "--json"]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["solves"] == solves == max(map(int, found["resident"]))
    assert found["growth"] <= 2_000_000
    assert found["warm"] > solves / 2
