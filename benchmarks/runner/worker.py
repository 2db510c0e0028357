"""A worker process: reads one task from standard input, writes JSON lines to the file it is given.

Usage: ``python -m wdmoe_opt.benchmarks.runner.worker OUTPUT [final] < task.json``; the last complete line
counts. What solvers print goes nowhere.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from contextlib import suppress
from typing import Any


def _die_with_parent() -> None:
    """Ask Linux to end this process when the runner ends, however that happens."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Perform the task."""
    _die_with_parent()
    text = sys.stdin.read()
    # Solvers write to the descriptors themselves, and a full pipe would stop them for good.
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    with open(sys.argv[1], "w", encoding="utf-8") as output:

        def report(message: dict[str, Any]) -> None:
            output.write(json.dumps(message) + "\n")
            output.flush()

        from wdmoe_opt.benchmarks.runner.task import Task, perform

        perform(Task.from_json(text), report, final="final" in sys.argv[2:])


if __name__ == "__main__":
    main()
