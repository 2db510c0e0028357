"""Tasks on this machine, each in a fresh process."""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed, wait
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
        times; the rows say so in ``machine``. The first tasks of all solvers then come first, the one of
        ours that the suite names last before all, and further tasks of a solver wait for its first, so that
        kernels are compiled once.
    """
    if workers == 1:
        for task in tasks:
            yield isolated(task.to_json())
        return
    first: dict[str, Task] = {}
    for task in tasks:
        first.setdefault(task.contestant.label, task)
    # Suites name the one of ours that compiles most last; nothing should wait for it at the end.
    slowest = next((c.label for t in reversed(first.values()) if (c := t.contestant).kind == "ours"), "")
    leading = sorted(first.values(), key=lambda task: task.contestant.label != slowest)
    rest = [task for task in tasks if task is not first[task.contestant.label]]
    rest.sort(key=lambda task: task.contestant.label == slowest)
    yield from _at_once([*leading, *rest], workers)


def _at_once(tasks: Sequence[Task], workers: int) -> Generator[dict[str, Any]]:
    """Rows of tasks begun in this order; further tasks of a solver wait for its first."""
    stop = Event()
    first: dict[str, Future[dict[str, Any]]] = {}
    with ThreadPoolExecutor(workers) as pool:
        futures = []
        for task in tasks:
            label = task.contestant.label
            futures.append(pool.submit(_after, first.get(label), task, stop))
            first.setdefault(label, futures[-1])
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


def _after(first: Future[dict[str, Any]] | None, task: Task, stop: Event) -> dict[str, Any]:
    """Row of a task, begun when another one is done, which comes earlier in the queue."""
    if first is not None:
        wait([first])
    return isolated(task.to_json(), stop)
