"""A million tokens in bounded memory, and with too little of it; prints one JSON object.

The limit is one on address space (RLIMIT_AS), counted from what the process has once every kernel is loaded:
the compiler cannot be stopped in the middle without ending the process.
"""

from __future__ import annotations

import gc
import json
import os
import resource
from pathlib import Path

import wdmoe_opt as wo
from wdmoe_opt.benchmarks.heuristics import synthetic

TOKENS = 1_000_000
#: MiB that building the instance and solving it may take together.
ENOUGH = 640
#: MiB beyond the instance with which solving is tried: from none to enough.
ALLOWED = (0, 2, 8, 24, 64, 128, 256, 384)
METHODS = ("greedy", "certified")
MIB = 2**20


def limited(more: float) -> None:
    """Allow so many MiB more than there are now."""
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * os.sysconf("SC_PAGE_SIZE") + int(more * MIB), hard))


def unlimited() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


def ending(instance: wo.Instance, method: str) -> str:
    """How a solve ends, in one word."""
    try:
        solution = wo.solve(instance, method, min_retention=0.95)
    except MemoryError:
        return "MemoryError"
    if solution.termination.limit == "memory":
        honest = not solution.has_point and solution.termination.reason == "no-solution"
        return "no-solution" if honest and solution.termination.detail else "dishonest"
    return "feasible" if solution.feasible else "broken"


def main() -> None:
    for method in METHODS:
        wo.solve(synthetic(1000), method, min_retention=0.95)
    limited(ENOUGH)
    instance = synthetic(TOKENS)
    before = {method: wo.solve(instance, method, min_retention=0.95).latency for method in METHODS}
    unlimited()
    tried: dict[str, list[str]] = {}
    for method in METHODS:
        tried[method] = []
        for more in ALLOWED:
            gc.collect()
            limited(more)
            end = ending(instance, method)
            unlimited()
            tried[method].append(end)
    after = {method: wo.solve(instance, method, min_retention=0.95).latency for method in METHODS}
    print(json.dumps({"tried": tried, "before": before, "after": after}))


if __name__ == "__main__":
    main()
