"""Tasks on this machine, each in a fresh process."""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from threading import Event
from typing import Any

from wdmoe_opt.benchmarks.runner.isolated import isolated
from wdmoe_opt.benchmarks.runner.task import Task


def run_here(tasks: Sequence[Task], workers: int = 1) -> Generator[dict[str, Any]]:
    """Rows as they are finished.

    Parameters
    ----------
    tasks : sequence of Task
    workers : int
        Processes at the same time. More than one share caches and memory bandwidth: do not compare their
        times; the rows say so in ``machine``. The first tasks of all solvers then come first, in the suite's
        reverse order of our own, and all others wait for them, so that kernels are compiled once.
    """
    if workers == 1:
        for task in tasks:
            yield isolated(task.to_json())
        return
    first: dict[str, Task] = {}
    for task in tasks:
        first.setdefault(task.contestant.label, task)
    rest = [task for task in tasks if task is not first[task.contestant.label]]
    # Suites name the one of ours that compiles most last; nothing should wait for it at the end.
    leading = list(first.values())
    slowest = [task for task in leading if task.contestant.kind == "ours"][-1:]
    leading = slowest + [task for task in leading if task not in slowest]
    for part in (leading, rest):
        yield from _at_once(part, workers)


def _at_once(tasks: Sequence[Task], workers: int) -> Generator[dict[str, Any]]:
    stop = Event()
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(isolated, task.to_json(), stop) for task in tasks]
        try:
            for future in as_completed(futures):
                row = future.result()
                if row["machine"]:
                    row["machine"] = json.dumps({**json.loads(row["machine"]), "workers": workers})
                yield row
        finally:
            # After Ctrl-C nobody should wait for what is running either.
            stop.set()
            for future in futures:
                future.cancel()
