"""Speed and scaling of the compiled heuristics: ``python -m wdmoe_opt.benchmarks.heuristics [--json]``.

Synthetic gates, named so: Dirichlet draws over 8 experts, top-2, one expert per device, the paper's cell,
floor 0.95, one block; tokens from 512 to 1,000,000 with the exponent of a straight line through
(log tokens, log time). Then a captured model: 26 blocks of 512 tokens, 64 experts on 8 boards, with one
thread and with two, whose answers must be equal. Times are medians, warm.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
from time import perf_counter
from typing import Any

import numpy as np

import wdmoe_opt as wo
from wdmoe_opt.instances.channels import cell_states

SIZES = (512, 4_096, 32_768, 262_144, 1_000_000)
METHODS = ("greedy", "alternating", "local-search")
FLOOR = 0.95


def synthetic(tokens: int, devices: int = 8, top_k: int = 2, seed: int = 0) -> wo.Instance:
    """One block of synthetic gates on the cell of paper A, one expert per device, no activation."""
    gates = np.random.default_rng(seed).dirichlet(np.full(devices, 0.3), size=(1, tokens))
    distances = np.linspace(60.0, 300.0, devices)
    return wo.Instance.from_gates(
        gates,
        top_k,
        columns=top_k,
        compute_time=np.linspace(1e-5, 4e-5, devices),
        bits_down=65_536.0,
        bits_up=65_536.0,
        name=f"synthetic-{tokens}",
        **cell_states(1, seed=1, distances_m=distances)[0].arrays(),
    )


def median_time(problem: wo.Problem, method: str, threads: int = 1) -> float:
    """Median seconds of a warm solve, over enough repeats for half a second."""
    wo.solve(problem, method, threads=threads)
    found: list[float] = []
    while len(found) < 3 or (sum(found) < 0.5 and len(found) < 200):
        started = perf_counter()
        wo.solve(problem, method, threads=threads)
        found.append(perf_counter() - started)
    return statistics.median(found)


def scaling() -> list[dict[str, Any]]:
    """Times of every method over the sizes, with the fitted exponent."""
    times: dict[str, list[float]] = {method: [] for method in METHODS}
    for tokens in SIZES:
        problem = wo.Problem(synthetic(tokens), min_retention=FLOOR)
        for method in METHODS:
            times[method].append(median_time(problem, method))
    return [
        {
            "method": method,
            "tokens": list(SIZES),
            "seconds": seconds,
            "exponent": float(np.polyfit(np.log(SIZES), np.log(seconds), 1)[0]),
        }
        for method, seconds in times.items()
    ]


def captured() -> list[dict[str, Any]]:
    """A whole captured model with one thread and with two."""
    problem = wo.Problem(wo.load_instance("deepseek-v2-lite-law"), min_retention=FLOOR)
    rows = []
    for method in METHODS:
        one, two = (wo.solve(problem, method, threads=threads) for threads in (1, 2))
        assert one.keep is not None
        rows.append(
            {
                "method": method,
                "one_thread_s": median_time(problem, method),
                "two_threads_s": median_time(problem, method, threads=2),
                "identical": bool((one.keep == two.keep).all() and one.latency == two.latency),
            }
        )
    return rows


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description="Speed and scaling of the heuristics.")
    parser.add_argument("--json", action="store_true")
    as_json = parser.parse_args().json
    report: dict[str, Any] = {"scaling": scaling(), "captured": captured()}
    # ru_maxrss is in kilobytes on Linux.
    report["peak_memory_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    if as_json:
        print(json.dumps(report, indent=1))
        return
    print("tokens        " + "".join(f"{size:>12,}" for size in SIZES) + "    exponent")
    for row in report["scaling"]:
        times = "".join(f"{seconds * 1e3:>9.2f} ms" for seconds in row["seconds"])
        print(f"{row['method']:<14}{times}    {row['exponent']:.2f}")
    for row in report["captured"]:
        print(
            f"{row['method']:<14}26 blocks x 512 tokens: {row['one_thread_s'] * 1e3:.0f} ms, two threads "
            f"{row['two_threads_s'] * 1e3:.0f} ms, identical: {row['identical']}"
        )
    print(f"peak memory {report['peak_memory_gb']:.2f} GB")


if __name__ == "__main__":
    main()
