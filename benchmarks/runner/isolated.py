"""One task in a process of its own, killed when it hangs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import CancelledError
from pathlib import Path
from threading import Event
from time import monotonic, sleep
from typing import Any

from wdmoe_opt.benchmarks.runner.task import Task, provenance

#: s between two looks at a worker: short at first, so that fast tasks do not wait.
_FIRST_LOOK, _LOOK = 0.01, 0.1


def isolated(text: str, stop: Event | None = None) -> dict[str, Any]:
    """Row of a task given as JSON, in whatever way it ends.

    If kernels had to be compiled, another process measures, and ``compile_s`` is what the first calls that
    compiled took beyond the one that did not. Once ``stop`` is set it ends the process and raises
    `CancelledError`.
    """
    task = Task.from_json(text)
    spent: list[float] = []
    row, compiled = _run(task, stop, final=False)
    while compiled:
        spent.append(row["first_s"])
        row, compiled = _run(task, stop, final=len(spent) == COMPILING)
    if spent and row["state"] in ("ok", "no-point"):
        row["compile_s"] = max(sum(spent) - row["first_s"], 0.0)
    row.pop("first_s", None)
    return row


#: Most processes that only compile. More than one: with its time limit spent on compilation, a solver may
#: stop before it has come to all its kernels.
COMPILING = 3


def _run(task: Task, stop: Event | None, *, final: bool) -> tuple[dict[str, Any], bool]:
    """Row of a fresh process, and whether it compiled and has no warm times; ``final`` has them anyway."""
    with tempfile.TemporaryDirectory(prefix="wdmoe-bench-") as folder:
        output, errors = Path(folder) / "rows.jsonl", Path(folder) / "errors.txt"
        with open(errors, "wb") as complaints:
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "wdmoe_opt.benchmarks.runner.worker",
                    str(output),
                    *(["final"] if final else []),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=complaints,
                env=os.environ | _SINGLE_THREAD,
                start_new_session=True,
            )
            try:
                ended = _wait(process, task, output, stop)
            finally:
                _kill(process)
        message = _last(output)
        if message and message["stage"] == "done":
            return message["row"], message["compiled"]
        row = message["row"] if message else task.row(**provenance())
        if ended:
            words = _tail(errors)
            why = f"the worker ended with status {process.returncode}{f': {words}' if words else ''}"
            return row | {"state": "failed", "message": why}, False
        limit = f"{task.contestant.kill_after:g} s"
        why = f"killed after {limit}; its time limit was {task.contestant.time_limit:g} s"
        if message and message["stage"] == "called":
            why = f"the first call ended; killed after {limit} of repeats and checks"
        return row | {"state": "timeout", "message": why}, False


#: Solvers are told one thread; what they call should not take more behind their backs.
_SINGLE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def _wait(process: subprocess.Popen[bytes], task: Task, output: Path, stop: Event | None) -> bool:
    """Whether the worker ended by itself; the clock starts anew once the first call is over."""
    assert process.stdin is not None
    try:
        process.stdin.write(task.to_json().encode())
        process.stdin.close()
    except BrokenPipeError:  # it died at once; its status tells
        pass
    started, look, repeating = monotonic(), _FIRST_LOOK, False
    while process.poll() is None:
        if stop is not None and stop.is_set():
            raise CancelledError
        if not repeating:
            message = _last(output)
            if message and message["stage"] == "called":
                started, repeating = monotonic(), True
        if monotonic() - started > task.contestant.kill_after:
            return False
        sleep(look)
        look = min(2 * look, _LOOK)
    return True


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a worker and whatever it started."""
    if process.poll() is None:
        if os.name == "posix":
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                process.kill()
        else:
            process.kill()
    process.wait()


def _last(output: Path) -> dict[str, Any] | None:
    """The last complete message, None if there is none."""
    try:
        lines = output.read_text("utf-8").split("\n")[:-1]
    except OSError:
        return None
    return json.loads(lines[-1]) if lines else None


def _tail(errors: Path) -> str:
    """Last line of what a worker complained."""
    lines = errors.read_text("utf-8", errors="replace").strip().splitlines()
    return " ".join(lines[-1].split())[:300] if lines else ""
