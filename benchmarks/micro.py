"""What kernels cost: ``python -m wdmoe_opt.benchmarks.micro [--json]``.

The metric, in nanoseconds per (token, expert) pair, beside plain `numpy.bincount` over the same pairs, which
does nothing but count; `wdmoe_opt.evaluate` as called, and the compiled kernels inside it apart. Then every
native solver on 512 tokens and 8 devices, in calls of the metric on the same problem: whatever answers must
at least price its answer. Last the best bandwidth for plain top-k, beside peers that are installed. Warm,
one thread, medians of batches long enough for the clock.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np

import wdmoe_opt as wo
from wdmoe_opt.bandwidth import allocate, demands
from wdmoe_opt.benchmarks.peers import find_solver
from wdmoe_opt.benchmarks.suites.generators import synthetic
from wdmoe_opt.kernels.link import link_times
from wdmoe_opt.kernels.pricing import (
    block_ratios,
    busy_times,
    count_loads,
    device_times,
    inverse_token_times,
    price_tokens,
)
from wdmoe_opt.problem import Problem
from wdmoe_opt.registry import Control

SOLVERS = (
    "topk-uniform", "topk", "wdmoe-selection", "wdmoe", "greedy", "alternating", "local-search", "certified",
)  # fmt: skip
FLOOR = 0.95
#: Batches, and the least s a batch takes.
BATCHES, BATCH = 9, 0.02
#: Who else allocates bandwidth.
BANDWIDTH_PEERS = ("slsqp", "trust-constr", "cvxpy-clarabel-bandwidth")
#: How many times a bincount the metric may take.
PROMISE = 5.0


@dataclass(frozen=True)
class MetricCost:
    """Nanoseconds per pair on one problem.

    Attributes
    ----------
    name : str
    pairs : int
        (Token, candidate) pairs of the instance, kept or not: what the metric looks at.
    evaluate, kernels, count_kernel, bincount, weighted_bincount : float, ns per pair
        The call; its compiled kernels alone; of those the one that only counts loads, which solvers use;
        `numpy.bincount` of the device of every pair; the same with gate weights.
    """

    name: str
    pairs: int
    evaluate: float
    kernels: float
    count_kernel: float
    bincount: float
    weighted_bincount: float


def seconds(call: Callable[[], Any]) -> float:
    """Median seconds of a call over batches."""
    call()
    count = 1
    while True:
        started = perf_counter()
        for _ in range(count):
            call()
        spent = perf_counter() - started
        if spent >= BATCH:
            break
        count = max(2 * count, int(count * BATCH / max(spent, 1e-9)))
    found = []
    for _ in range(BATCHES):
        started = perf_counter()
        for _ in range(count):
            call()
        found.append((perf_counter() - started) / count)
    return statistics.median(found)


def problems() -> Iterator[tuple[str, Problem]]:
    """What the metric is measured on."""
    for tokens in (512, 16_384, 262_144):
        instance = synthetic(tokens=tokens)
        yield f"synthetic, {tokens} tokens, top-2, 8 devices", wo.Problem(instance, min_retention=FLOOR)
    for name in ("deepseek-v2-lite-law#3", "deepseek-v2-lite-law"):
        yield name, wo.Problem(wo.load_instance(name), min_retention=FLOOR)


def metric_cost(name: str, problem: Problem) -> MetricCost:
    """Price plain top-k at equal bandwidth, and count the same pairs."""
    keep, bandwidth = problem.top_k_keep, problem.uniform_bandwidth
    t = problem.tables
    hosts = t.expert_device[t.ids[keep]].astype(np.intp)
    weights = t.weights[keep]
    devices = problem.instance.devices
    pairs = keep.size
    each = 1e9 / pairs
    transfers = np.empty(t.c_down.shape)
    loads = np.empty((keep.shape[0], t.expert_device.size), dtype=np.int64)
    return MetricCost(
        name,
        pairs,
        evaluate=each * seconds(lambda: wo.evaluate(problem, keep, bandwidth)),
        kernels=each * seconds(pricing_kernels(problem)),
        count_kernel=each
        * seconds(lambda: count_loads(t.ids, keep, t.expert_device, t.by_device, loads, transfers)),
        bincount=each * seconds(lambda: np.bincount(hosts, minlength=devices)),
        weighted_bincount=each * seconds(lambda: np.bincount(hosts, weights=weights, minlength=devices)),
    )


def pricing_kernels(problem: Problem) -> Callable[[], None]:
    """The compiled kernels that `wdmoe_opt.evaluate` runs, on arrays made beforehand."""
    t, keep = problem.tables, problem.top_k_keep
    blocks, devices, experts = keep.shape[0], t.c_down.shape[1], t.expert_device.size
    assert problem.uniform_bandwidth is not None
    bandwidth, rate = problem.uniform_bandwidth[None, :], np.empty((blocks, experts))
    load, sent = np.empty((blocks, experts), dtype=np.int64), np.empty((blocks, devices))
    weight, kept = np.empty((blocks, devices)), np.empty(keep.shape[:2])
    per_token, per_device, per_block = np.empty(blocks), np.empty(blocks), np.empty(blocks)
    busy, times, latency = np.empty((blocks, devices)), np.empty((blocks, devices)), np.empty(blocks)
    broken = np.zeros((3, 3), dtype=np.int64)

    def run() -> None:
        link = link_times(bandwidth, t.bits_down, t.c_down, t.bits_up, t.c_up)
        inverse_token_times(link, t.compute, t.expert_device, rate)
        price_tokens(
            t.ids, t.weights, t.mass, keep, problem.candidate_columns, problem.expert_cap, t.expert_device,
            t.by_device, rate, load, sent, weight, kept, per_token, broken,
        )  # fmt: skip
        busy_times(load, sent, t.expert_device, t.compute, t.activation, t.link_delay, busy)
        device_times(sent, busy, link, times, latency)
        block_ratios(weight, times, latency, per_device, per_block)

    return run


def solver_costs() -> list[dict[str, Any]]:
    """Every native solver on 512 tokens and 8 devices, in metric evaluations."""
    found = []
    for name, problem in (
        ("synthetic, 512 tokens, top-2, 8 devices", wo.Problem(synthetic(tokens=512), min_retention=FLOOR)),
        (
            "deepseek-v2-lite-law#3",
            wo.Problem(wo.load_instance("deepseek-v2-lite-law#3"), min_retention=FLOOR),
        ),
    ):
        plain = wo.solve(problem, "topk-uniform")
        metric = seconds(partial(wo.evaluate, problem, plain.keep, plain.bandwidth))
        for method in SOLVERS:
            spent = seconds(partial(wo.solve, problem, method))
            found.append(
                {
                    "problem": name,
                    "method": method,
                    "seconds": spent,
                    "metric_s": metric,
                    "metrics": spent / metric,
                }
            )
    return found


def bandwidth_costs() -> list[dict[str, Any]]:
    """Best bandwidth for plain top-k: the bare allocation, the whole call, and peers that are here, s."""
    found = []
    for name in ("deepseek-v2-lite-law#3", "mixtral-8x7b-mmlu-load:anatomy.3"):
        problem = wo.Problem(wo.load_instance(name))
        loads = demands(problem, problem.top_k_keep if problem.selectable else None)
        rows = {"allocate": seconds(partial(allocate, problem, *loads))}
        rows["solve(method='topk')"] = seconds(partial(wo.solve, problem, "topk"))
        for method in BANDWIDTH_PEERS:
            info = find_solver(method)
            if info.availability():
                run = partial(info.run, problem, Control(), {})
                run()
                rows[method] = seconds(run)
        found += [
            {"problem": name, "method": method, "seconds": spent, "allocations": spent / rows["allocate"]}
            for method, spent in rows.items()
        ]
    return found


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(
        description="Nanoseconds of the metric, and solvers in metric evaluations."
    )
    parser.add_argument("--json", action="store_true")
    as_json = parser.parse_args().json
    costs = [metric_cost(name, problem) for name, problem in problems()]
    solvers, bandwidth = solver_costs(), bandwidth_costs()
    if as_json:
        parts = {"metric_ns_per_pair": [asdict(c) for c in costs], "solvers": solvers, "bandwidth": bandwidth}
        print(json.dumps(parts, indent=1))
        return
    print(f"{'ns per (token, expert) pair':<44}{'pairs':>9}{'evaluate':>10}{'kernels':>9}{'count':>8}"
          f"{'bincount':>10}{'weighted':>10}{'ratio':>7}")  # fmt: skip
    for c in costs:
        print(
            f"{c.name:<44}{c.pairs:>9}{c.evaluate:>10.2f}{c.kernels:>9.2f}{c.count_kernel:>8.2f}"
            f"{c.bincount:>10.2f}{c.weighted_bincount:>10.2f}{c.evaluate / c.bincount:>7.1f}"
        )
    print(f"ratio: evaluate over bincount; promised is {PROMISE:g}\n")
    for row in solvers:
        spent = f"{row['seconds'] * 1e3:>9.3f} ms{row['metrics']:>9.1f} metrics"
        print(f"{row['problem']:<42}{row['method']:<18}{spent}")
    print()
    for row in bandwidth:
        spent = f"{row['seconds'] * 1e3:>9.3f} ms{row['allocations']:>9.1f} allocations"
        print(f"{row['problem']:<42}{row['method']:<26}{spent}")


if __name__ == "__main__":
    main()
