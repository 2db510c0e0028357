"""Ctrl-C during a solve, a session, a batch and the commands: heard, said, and nothing is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from profiles import PROFILE

import wdmoe_opt as wo
from wdmoe_opt.registry import Point, SolverInfo, find_solver
from wdmoe_opt.solving import run_solver
from wdmoe_opt.testing.arrays import Shape, random_arrays
from wdmoe_opt.testing.problems import PROBLEMS, larger_problem

pytestmark = pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")

NATIVE = ("certified", "certified:per-block:2", "alternating", "alternating:per-block:2", "local-search")
OTHERS = ("greedy", "slsqp", "enumerate", "convex")
BACKENDS = ("milp", "milp:per-block", "minlp", "minlp:per-block")
EXACT = ("exact", "exact:per-block")
GROUPS = (NATIVE, OTHERS, BACKENDS, EXACT) if PROFILE == "long" else (NATIVE[1::2], BACKENDS[1::2], EXACT[1:])


@pytest.mark.parametrize("requests", GROUPS, ids=lambda requests: requests[0])
def test_a_real_signal_ends_the_solve(requests: tuple[str, ...]) -> None:
    """`exact` returns what it has, all others raise; then the same process gives the same answers."""
    asked = [r for r in requests if find_solver(r.partition(":")[0]).availability()]
    if not asked:
        pytest.skip("needs the extras")
    script = Path(__file__).with_name("interrupted.py")
    done = subprocess.run([sys.executable, str(script), *asked], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    how = "feasible-at-limit, interrupt" if requests[0].startswith("exact") else "KeyboardInterrupt"
    assert rows == [{"request": r, "how": how, "same": True, "threads": 1} for r in asked]


def test_an_interrupted_start_is_not_polished(monkeypatch) -> None:
    """`local-search` after an interrupted `exact` hands out what that has."""
    begun = []

    def interrupted(problem, control):
        begun.append(problem)
        return Point(problem.top_k_keep, None, wo.Termination("feasible-at-limit", "interrupt", "so far"))

    monkeypatch.setitem(find_solver("exact").__dict__, "function", interrupted)
    problem = PROBLEMS["fixed"]()
    problem = problem.replace(min_retention=0.0)
    point = find_solver("local-search").run(problem, wo.Control(), {"start": "exact"})
    assert begun
    assert point.termination.limit == "interrupt"


@pytest.mark.parametrize("threads", [1, 2])
def test_a_batch_ends_with_its_interrupted_problem(monkeypatch, threads: int) -> None:
    """`solve_many` does not go on to the next problem where `exact` swallowed the Ctrl-C."""
    from wdmoe_opt.solvers.branching import BranchTree

    def split(tree, branch):
        raise KeyboardInterrupt

    monkeypatch.setattr(BranchTree, "_split", split)
    read = []

    def problems():
        for _ in range(50):
            read.append(1)
            yield larger_problem()

    with pytest.raises(KeyboardInterrupt):
        wo.solve_many(problems(), "exact", rel_gap=1e-9, threads=threads)
    assert len(read) <= 4 * threads + 1


@pytest.mark.parametrize("step", ["lead", "prove"])
def test_a_session_forgets_an_interrupted_call(monkeypatch, step: str) -> None:
    """Older results refuse to be read, the lock is free, and the next call is like a session's first."""
    from wdmoe_opt.single_block import Workspace

    shape = Shape(blocks=1, tokens=40, devices=4, columns=3)
    problem = wo.Problem(wo.Instance.from_arrays(**random_arrays(shape, 3)), min_retention=0.8)
    gain = problem.instance.gain_down
    session, fresh = wo.Session(problem), wo.Session(problem)
    older = session.solve()
    original = getattr(Workspace, step)

    def interrupted(space, *arguments):
        original(space, *arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Workspace, step, interrupted)
        with pytest.raises(KeyboardInterrupt):
            session.solve(gain_down=gain * 0.5)
    with pytest.raises(wo.WdmoeError, match="keep one with copy"):
        _ = older.keep
    one, two = session.solve(gain_down=gain * 0.7), fresh.solve(gain_down=gain * 0.7)
    assert not one.warm
    assert (one.latency, one.lower_bound) == (two.latency, two.lower_bound)
    assert (one.keep == two.keep).all()
    assert (one.bandwidth == two.bandwidth).all()


# ------------------------------------------------------------------ commands

#: Runs the command line in a process that sends itself SIGINT in its first call of a function.
COMMAND = """
import os, signal, sys
import {module} as home
owner = home.{owner}
original = owner.{function}
def hooked(*arguments):
    owner.{function} = original
    os.kill(os.getpid(), signal.SIGINT)
    return original(*arguments)
owner.{function} = hooked
from wdmoe_opt.__main__ import main
main()
"""


def command(hook: tuple[str, str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    code = COMMAND.format(module=hook[0], owner=hook[1], function=hook[2])
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)


SOLVE = ("solve", "deepseek-v2-lite-law@24#1", "--rel-gap", "1e-9")


def test_an_interrupted_command_is_one_line_and_no_file(tmp_path: Path) -> None:
    target = tmp_path / "answer.npz"
    hook = ("wdmoe_opt.search", "Search", "price")
    done = command(hook, *SOLVE, "--method", "greedy", "--save", str(target))
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "wdmoe-opt: interrupted\n")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_exact_command_shows_what_it_has(tmp_path: Path) -> None:
    """The best so far with its proof, saved whole; the status says that it is not all."""
    target = tmp_path / "answer.npz"
    hook = ("wdmoe_opt.solvers.branching", "BranchTree", "_split")
    done = command(hook, *SOLVE, "--method", "exact", "--save", str(target))
    assert (done.returncode, done.stderr) == (130, "wdmoe-opt: interrupted\n")
    assert "feasible-at-limit: interrupted after 1 branches" in done.stdout
    solution = wo.Solution.load(target)
    assert solution.termination.limit == "interrupt"
    assert wo.certify(solution.problem, solution)


BENCH = """
name = "mine"
[defaults]
time_limit = 5.0
kill_after = 600.0
[[contestants]]
method = "topk-uniform"
kind = "baseline"
[[cases]]
name = "{tokens} tokens"
group = "tokens"
generator = "synthetic"
parameters = { tokens = "{tokens}" }
request = { min_retention = 0.9 }
axis = "tokens"
axis_value = "{tokens}"
each = { tokens = [8, 16, 24, 32] }
"""


def test_an_interrupt_inside_a_kernel_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numba wraps what a signal raises while a compiled function returns."""

    def struck(problem: wo.Problem, control: wo.Control) -> Point:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            raise SystemError("returned a result with an exception set") from error

    def broken(problem: wo.Problem, control: wo.Control) -> Point:
        raise SystemError("of its own")

    problem = PROBLEMS["one block"]()
    with pytest.raises(KeyboardInterrupt):
        run_solver(SolverInfo("struck", "-", struck), problem, wo.Control(), {})
    with pytest.raises(SystemError, match="of its own"):
        run_solver(SolverInfo("broken", "-", broken), problem, wo.Control(), {})
    # `exact` returns what it has, whether its first stage or its branching was struck.
    for stage in ("wdmoe_opt.solvers.certified:Group.run", "wdmoe_opt.solvers.branching:BranchTree._branch"):
        module, _, name = stage.partition(":")
        with monkeypatch.context() as patch:
            patch.setattr(f"{module}.{name}", lambda self: struck(problem, wo.Control()))
            assert wo.solve(problem, "exact").termination.limit == "interrupt"


@pytest.mark.parametrize("workers", ["1", "2"])
def test_an_interrupted_benchmark_goes_on(tmp_path: Path, workers: str) -> None:
    """What is finished is in the table, nothing is half-written, and the same command does the rest."""
    pd = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    suite, out = tmp_path / "mine.toml", tmp_path / "out"
    suite.write_text(BENCH)
    line = [sys.executable, "-m", "wdmoe_opt", "bench", "run", str(suite), "--out", str(out), "--json"]
    process = subprocess.Popen([*line, "--workers", workers], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while not list(out.glob("parts/*.json")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate()
    assert (process.returncode, stdout, stderr.decode()) == (130, b"", "wdmoe-opt: interrupted\n")
    kept = pd.read_parquet(out / "results.parquet")
    assert 1 <= len(kept) < 4
    assert sorted(p.name for p in out.rglob("*")) == ["lock", "parts", "results.parquet"]
    found = json.loads(subprocess.run(line, capture_output=True, check=True).stdout)
    assert (found["skipped"], found["rows"], found["states"]) == (len(kept), 4 - len(kept), {"ok": 4})


def test_workers_do_not_outlive_an_interrupted_run(tmp_path: Path) -> None:
    """A run with several processes does not wait for the hanging ones; they are ended."""
    pytest.importorskip("pandas")
    from wdmoe_opt.benchmarks.runner.local import run_here
    from wdmoe_opt.benchmarks.runner.task import Task
    from wdmoe_opt.benchmarks.suites.suite import Case, Contestant

    note = tmp_path / "process"
    plugin = tmp_path / "sleeper.py"
    plugin.write_text(
        "import os, pathlib, time\n"
        "import wdmoe_opt as wo\n"
        "def sleeper(problem, control):\n"
        f"    pathlib.Path({str(note)!r}).write_text(str(os.getpid()))\n"
        "    time.sleep(1e6)\n"
        "wo.register_solver('sleeper', sleeper, summary='test: sleeps')\n"
    )
    case = Case("small", "synthetic", generator="synthetic", parameters={"tokens": 8})
    quick = Contestant("topk-uniform", "topk-uniform", kind="baseline")
    slow = Contestant("sleeper", "sleeper", kind="plugin", kill_after=3000.0)
    rows = run_here([Task("t", case, c, 0, (str(plugin),)) for c in (quick, slow)], workers=2)
    assert next(rows)["solver"] == "topk-uniform"
    while not note.exists() or not note.read_text():
        time.sleep(0.01)
    started = time.monotonic()
    rows.close()
    assert time.monotonic() - started < 1000
    with pytest.raises(ProcessLookupError):
        os.kill(int(note.read_text()), 0)
