"""Solves until a real Ctrl-C comes: ``python interrupted.py METHOD[:ALLOCATION[:THREADS]] ...``.

One JSON line per method: how the interrupted call ended, and whether the package answers as before.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from time import sleep

import wdmoe_opt as wo
from wdmoe_opt.testing.arrays import Shape, random_arrays
from wdmoe_opt.testing.problems import PROBLEMS, larger_problem

#: s after which a solve returns that did not hear the signal.
DEAF = 60.0
#: Methods that take more than a second on the suite's larger problem.
SLOW = ("exact", "milp", "minlp", "enumerate")


def hard(method: str, allocation: str) -> wo.Problem:
    """A problem that keeps the method busy for longer than the signal takes."""
    if method in SLOW:
        return larger_problem().replace(allocation=allocation)
    arrays = random_arrays(Shape(blocks=8, tokens=200, devices=6, columns=4), 1)
    return wo.Problem(wo.Instance.from_arrays(**arrays), min_retention=0.9, allocation=allocation)


def interrupted(problem: wo.Problem, method: str, threads: int) -> str:
    """What the call that heard SIGINT did: the name of its exception, or the limit it names."""
    kill = subprocess.Popen(["sh", "-c", f"sleep 0.5; kill -INT {os.getpid()}"])
    try:
        while True:  # methods that take milliseconds are caught at some call
            end = wo.solve(problem, method, rel_gap=1e-9, threads=threads, time_limit=DEAF).termination
            if end.limit == "interrupt" or kill.poll() is not None:
                return f"{end.reason}, {end.limit}"
    except KeyboardInterrupt:
        return "KeyboardInterrupt"
    finally:
        kill.wait()


def main() -> None:
    for request in sys.argv[1:]:
        method, allocation, threads = (request.split(":") + ["shared", "1"][request.count(":") :])[:3]
        small = PROBLEMS["shared"]()
        before = wo.solve(small, method)
        problem = hard(method, allocation)
        if method not in SLOW:
            wo.solve(problem, method)  # compiles: Ctrl-C in a pool thread's compilation waits for its end
        how = interrupted(problem, method, int(threads))
        after = wo.solve(small, method)
        same = (after.latency, after.lower_bound) == (before.latency, before.lower_bound)
        same = same and bool((after.keep == before.keep).all())
        for _ in range(3000):  # a pool's thread that was interrupted in its waiting ends by itself
            if threading.active_count() == 1:
                break
            sleep(0.01)
        row = {"request": request, "how": how, "same": same, "threads": threading.active_count()}
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
