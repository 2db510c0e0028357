"""Tasks one after the other on this machine, each in a fresh process."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
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
        times.
    """
    if workers == 1:
        for task in tasks:
            yield isolated(task.to_json())
        return
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(isolated, task.to_json()) for task in tasks]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            for future in futures:
                future.cancel()
