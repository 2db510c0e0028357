"""The same tasks on a dask.distributed cluster.

Each task runs in a process of its own beside the worker that got it, as on one machine. The package, and
every plugin under the same path, must be there. Start workers with one thread (``dask worker ADDRESS
--nthreads 1``), or the tasks of a worker run at the same time and disturb each other's times. A task whose
worker dies goes to another one.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

from wdmoe_opt.benchmarks.runner.isolated import isolated
from wdmoe_opt.benchmarks.runner.task import Task
from wdmoe_opt.errors import InputError, UnsupportedError

#: s to wait for the scheduler.
CONNECT = 10


def run_on_cluster(tasks: Sequence[Task], address: str) -> Generator[dict[str, Any]]:
    """Rows as they are finished, in whatever order.

    Parameters
    ----------
    tasks : sequence of Task
    address : str
        Of the scheduler, such as ``tcp://10.0.0.1:8786``.

    Raises
    ------
    UnsupportedError
        If dask.distributed is not installed.
    InputError
        If the scheduler does not answer.
    """
    try:
        from distributed import Client, as_completed
    except ImportError:
        raise UnsupportedError("--scheduler needs dask.distributed; install wdmoe_opt[cluster]") from None
    try:
        client = Client(address, timeout=CONNECT, set_as_default=False)
    except (OSError, ValueError) as error:
        rule = f"no scheduler answers there ({' '.join(str(error).split())[:200]})"
        raise InputError("scheduler", rule, value=address) from None
    with client:
        futures = {
            client.submit(isolated, task.to_json(), key=f"wdmoe-{task.key}", pure=False): task
            for task in tasks
        }
        for future in as_completed(list(futures), loop=client.loop):
            if future.status == "finished":
                yield future.result()
            else:
                lost = future.exception()
                why = f"the cluster gave it up: {type(lost).__name__}: {lost}"
                yield futures[future].row(state="failed", message=" ".join(why.split())[:500])
