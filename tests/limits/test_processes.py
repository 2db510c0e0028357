"""Processes: forked after their parent solved, spawned, and raced through a cold cache of kernels."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from profiles import PROFILE

import wdmoe_opt as wo
from wdmoe_opt.testing.problems import PROBLEMS

CASES = ("shared", "per-block", "one block")
METHODS = ("certified", "alternating")


def answers(_: int = 0) -> list[tuple]:
    found = []
    for method in METHODS:
        for case in CASES:
            solution = wo.solve(PROBLEMS[case](), method, threads=2)
            found.append(
                (
                    solution.latency,
                    solution.lower_bound,
                    solution.keep.tobytes(),
                    solution.bandwidth.tobytes(),
                )
            )
    return found


FORK = """
import sys
sys.path.insert(0, {folder!r})
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from test_processes import answers
want = answers()
with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as pool:
    assert list(pool.map(answers, range(4))) == [want] * 4
print("equal")
"""


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
def test_forked_after_the_parent_solved() -> None:
    """Threads and kernels of the parent do not hang its children. In a process without pytest's threads."""
    folder = Path(__file__).parent
    code = FORK.format(folder=str(folder))
    paths = os.pathsep.join([str(folder.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=900,
        env=os.environ | {"PYTHONPATH": paths},
    )  # fmt: skip
    assert done.stdout == "equal\n", done.stderr


def test_problems_sent_elsewhere_stay_read_only() -> None:
    """Kernels are compiled for read-only arrays: for writable ones every process compiles anew."""
    for make in PROBLEMS.values():
        problem = make()
        _ = problem.tables
        there = pickle.loads(pickle.dumps(problem))
        arrays = [*vars(there).values(), *vars(there.instance).values()]
        assert not any(a.flags.writeable for a in arrays if isinstance(a, np.ndarray))
        assert "tables" not in vars(there)  # derived anew, from what was checked


def test_spawned() -> None:
    """Problems and solutions cross process borders; the answers are the parent's."""
    problems = [PROBLEMS[case]() for case in CASES]
    want = [wo.solve(problem, "certified") for problem in problems]
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        found = list(pool.map(wo.solve, problems, ["certified"] * len(problems)))
    for one, two in zip(found, want, strict=True):
        assert (one.latency, one.lower_bound, one.termination) == (
            two.latency,
            two.lower_bound,
            two.termination,
        )
        assert one.keep.tobytes() == two.keep.tobytes()
        assert wo.certify(one.problem, one)


RACE = """
import json, sys
import wdmoe_opt as wo
from wdmoe_opt.testing.problems import PROBLEMS
print("ready", flush=True)
sys.stdin.readline()
found = []
for method in sys.argv[1:]:
    solution = wo.solve(PROBLEMS["per-block"](), method)
    found.append((solution.latency.hex(), float(solution.lower_bound).hex(), solution.keep.tolist()))
print(json.dumps(found))
"""
#: Processes, and methods whose kernels they compile: together about ten CPU minutes in the long profile.
RACERS, RACED = (8, ("certified", "greedy")) if PROFILE == "long" else (3, ("topk",))


def test_a_cold_cache_raced_by_processes(tmp_path: Path) -> None:
    """All compile the same kernels into the same empty folder at once; one more finds a cache in order."""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    line = [sys.executable, "-c", RACE, *RACED]

    def racer() -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        return subprocess.Popen(line, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment)

    racers = [racer() for _ in range(RACERS)]
    for process in racers:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in racers:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    ended = [process.communicate() for process in racers]
    assert [process.returncode for process in racers] == [0] * RACERS, ended
    assert [errors for _, errors in ended] == [""] * RACERS
    found = [json.loads(output) for output, _ in ended]
    assert found == [found[0]] * RACERS
    kernels = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.nbc")}
    assert kernels
    assert not list(tmp_path.rglob("*.tmp*"))
    late = racer()
    output, errors = late.communicate("\n")
    assert (late.returncode, errors) == (0, "")
    assert json.loads(output.removeprefix("ready\n")) == found[0]
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.nbc")} == kernels  # it compiled nothing


@pytest.mark.parametrize(
    "error",
    [
        wo.InputError("gain", "must be positive", index=(1, 2), value=-1.0),
        wo.InputError("problem", "must be a Problem", value=lambda: None),
        wo.UnknownNameError("method", "certifed", ["certified", "exact"]),
        wo.UnsupportedError("it does not"),
        wo.InstanceFileError("no file"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_come_back_from_other_processes_whole(error: wo.WdmoeError) -> None:
    found = pickle.loads(pickle.dumps(error))
    assert type(found) is type(error)
    assert str(found) == str(error)
    assert vars(found).keys() == vars(error).keys()
    assert getattr(found, "index", None) == getattr(error, "index", None)
