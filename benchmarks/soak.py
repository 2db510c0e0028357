"""Does a session keep its memory: ``python -m wdmoe_opt.benchmarks.soak [--solves 100000] [--json]``.

One `Session` solves again and again, every call with new gains (1 dB of standard deviation around the
template's), new gates and another number of tokens, 8 to 32, on 8 devices. The command prints the resident
memory after every power of ten of calls and ends with status 1 if it grew by more than `TOLERANCE` after
the first thousand. Linux: memory is read from /proc/self/statm.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

import wdmoe_opt as wo
from wdmoe_opt.benchmarks.heuristics import FLOOR, synthetic

#: Bytes by which resident memory may grow after `SETTLED` calls: some pages of the allocator's own. A single
#: kept gate table of a call would be a hundred times as much over 100,000 calls.
TOLERANCE = 2_000_000
#: Calls after which every buffer has been made and every kernel been loaded.
SETTLED = 1_000
SOLVES = 100_000
#: Different batches, and the most tokens of one.
BATCHES, TOKENS = 64, 32
#: A gap that few tokens can reach, so that calls start from the last prices and mostly end there.
REL_GAP = 0.05


def resident_memory() -> int:
    """Bytes of this process that are in memory."""
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def soak(solves: int = SOLVES) -> dict[str, Any]:
    """Solve so many times.

    Returns
    -------
    dict
        "solves", "seconds", "resident" (bytes after so many calls, by number of calls; `SETTLED`, the powers
        of ten after it and the last), "growth" (bytes, from `SETTLED` to the largest seen after it), "warm"
        (calls that started from the last prices), "worst_gap".
    """
    problem = wo.Problem(synthetic(TOKENS), min_retention=FLOOR)
    inst = problem.instance
    assert inst.gain_down is not None
    assert inst.gain_up is not None
    rng = np.random.default_rng(0)
    batches = [
        synthetic(int(tokens), seed=seed) for seed, tokens in enumerate(rng.integers(8, TOKENS + 1, BATCHES))
    ]
    # The searches that follow the compiled stages are those of method "certified", no part of the session.
    session = wo.Session(problem, rel_gap=REL_GAP, time_limit=0)
    marks = {SETTLED * 10**power for power in range(10)} | {solves}
    resident: dict[int, int] = {}
    warm, worst = 0, 0.0
    started = perf_counter()
    for call in range(1, solves + 1):
        batch = batches[int(rng.integers(BATCHES))]
        assert batch.expert_ids is not None
        assert batch.gate_weights is not None
        factor = 10 ** (rng.normal(0.0, 1.0, inst.devices) / 10)
        result = session.solve(
            expert_ids=batch.expert_ids[0],
            gate_weights=batch.gate_weights[0],
            gain_down=inst.gain_down * factor,
            gain_up=inst.gain_up * factor,
        )
        warm += result.warm
        worst = max(worst, result.gap)
        if call in marks:
            gc.collect()
            resident[call] = resident_memory()
    seconds = perf_counter() - started
    growth = max(resident.values()) - resident.get(SETTLED, min(resident.values()))
    return {
        "solves": solves, "seconds": seconds, "resident": resident, "growth": growth, "warm": warm,
        "worst_gap": worst,
    }  # fmt: skip


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description="Does a session keep its memory?")
    parser.add_argument("--solves", type=int, default=SOLVES)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = soak(arguments.solves)
    if arguments.json:
        print(json.dumps(found, indent=1))
    else:
        for calls, resident in found["resident"].items():
            print(f"{calls:>9,} solves  {resident / 2**20:8.2f} MiB resident")
        each = found["seconds"] / found["solves"] * 1e3
        print(
            f"{found['seconds']:.1f} s, {each:.3f} ms a solve, {found['warm']:,} warm, "
            f"largest gap {found['worst_gap']:.1%}; grew by {found['growth'] / 1e3:.0f} kB after "
            f"{SETTLED:,}, allowed {TOLERANCE / 1e3:.0f} kB"
        )
    sys.exit(found["growth"] > TOLERANCE)


if __name__ == "__main__":
    main()
