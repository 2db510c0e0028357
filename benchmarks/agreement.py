"""Do independent exact methods agree, and does any heuristic beat them? Random tiny problems.

Usage: ``python -m wdmoe_opt.benchmarks.agreement --count 500``
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from wdmoe_opt import Instance, Problem, Solution, solve
from wdmoe_opt.problem import Allocation
from wdmoe_opt.registry import find_solver

ALLOCATIONS: tuple[Allocation, ...] = ("per-block", "shared", "fixed")


def tiny_problem(seed: int, *, blocks: int | None = None) -> Problem:
    """A random problem that can be enumerated: 2 to 6 tokens, 2 to 4 devices, 1 or 2 experts on each.

    Parameters
    ----------
    seed : int
        Allocation mode and activation cycle through all combinations with it; the rest is drawn.
    blocks : int, optional
        Default 1 or 2, drawn.
    """
    rng = np.random.default_rng([20260101, seed])
    allocation = ALLOCATIONS[seed % 3]
    active = seed // 3 % 2 == 1
    tokens, devices = int(rng.integers(2, 7)), int(rng.integers(2, 5))
    hosts = np.repeat(np.arange(devices), rng.integers(1, 3, devices))
    experts = hosts.size
    if blocks is None:
        blocks = int(rng.integers(1, 3))
    top_k = int(rng.integers(2, min(experts, 3) + 1))
    columns = min(experts, top_k + int(rng.integers(0, 2)))
    order = rng.random((blocks, tokens, experts)).argsort(axis=2)[:, :, :columns]
    weights = -np.sort(-rng.dirichlet(np.ones(columns), (blocks, tokens)), axis=2)
    radio: dict[str, Any] = {
        "gain_down": 10.0 ** rng.uniform(-12, -9, devices),
        "gain_up": 10.0 ** rng.uniform(-11.5, -9, devices),
        "power_down": 10.0,
        "power_up": 0.2,
        "noise_density": 4e-21,
        "total_bandwidth": 10.0 ** rng.uniform(7, 8),
        "bits_down": 65536.0,
        "bits_up": float(rng.choice([0.0, 65536.0], p=[0.2, 0.8])),
    }
    scale = 65536.0 / radio["total_bandwidth"]
    per = experts if rng.random() < 0.5 else devices
    instance = Instance(
        expert_ids=order,
        gate_weights=weights,
        top_k=top_k,
        expert_device=hosts,
        compute_time=scale * rng.uniform(0, 1, per),
        activation_time=scale * rng.uniform(0, 3, per) if active else np.zeros(per),
        link_delay=scale * rng.uniform(0, 1, devices) if rng.random() < 0.3 else np.zeros(devices),
        **radio,
        name=f"tiny-{seed}",
    )
    shares = rng.dirichlet(np.ones(devices)) * radio["total_bandwidth"]
    return Problem(
        instance,
        min_retention=float(rng.choice([0.0, 0.6, 0.8, 0.95])),
        min_token_retention=float(rng.choice([0.0, 0.0, 0.5])),
        max_experts=2 if rng.random() < 0.2 else None,
        candidates=columns if rng.random() < 0.5 else "top-k",
        allocation=allocation,
        bandwidth=shares if allocation == "fixed" else None,
        dispatch="device" if rng.random() < 0.3 else "expert",
    )


#: Methods that may claim optimality, the oracle first.
EXACT = ("enumerate", "milp", "minlp")
HEURISTICS = ("greedy", "alternating", "local-search")
#: Largest relative difference of two optima that agree.
TOLERANCE = 1e-6


@dataclass(frozen=True)
class Comparison:
    """What the methods said of one problem.

    Attributes
    ----------
    seed : int
    problem : Problem
    solutions : mapping of str to Solution
        By method; only those available here.
    faults : tuple of str
        Disagreements; empty if all is well.
    """

    seed: int
    problem: Problem
    solutions: Mapping[str, Solution]
    faults: tuple[str, ...]


def compare(
    seed: int, *, methods: Iterable[str] = (*EXACT, "convex", *HEURISTICS), time_limit: float = 60.0
) -> Comparison:
    """Solve one random tiny problem by several methods and list what does not fit.

    Parameters
    ----------
    seed : int
        Of `tiny_problem`.
    methods : iterable of str
        Those that refuse the problem, or are not installed, are left out.
    time_limit : float, s
        Per method.
    """
    problem = tiny_problem(seed)
    solutions = answers(problem, methods, time_limit)
    return Comparison(seed, problem, solutions, tuple(faults(solutions)))


def answers(problem: Problem, methods: Iterable[str], time_limit: float = 60.0) -> dict[str, Solution]:
    """Solutions by method; those that refuse the problem, or are not installed, are left out."""
    able = [m for m in methods if find_solver(m).availability() and not find_solver(m).refusal(problem)]
    return {m: solve(problem, m, rel_gap=TOLERANCE / 2, time_limit=time_limit) for m in able}


def faults(solutions: Mapping[str, Solution]) -> Iterator[str]:
    """Every disagreement with the oracle, method "enumerate"."""
    oracle = solutions["enumerate"]
    if not oracle.feasible:
        for name, s in solutions.items():
            if s.feasible or s.termination.reason != "infeasible":
                yield f"{name} says {s.termination.reason}, enumerate says infeasible"
        return
    for name, s in solutions.items():
        off = s.latency / oracle.latency - 1.0
        if not s.feasible:
            yield f"{name} found no point: {s.termination.reason} {s.termination.detail}"
        elif off < -TOLERANCE:
            yield f"{name} beats enumerate by {-off:.2e}"
        elif s.termination.reason == "optimal" and off > TOLERANCE:
            yield f"{name} claims optimality {off:.2e} above enumerate"
        if "contradicted" in s.termination.detail:
            yield f"{name}: {s.termination.detail}"
        if s.bound_kind != "none" and s.lower_bound > oracle.latency * (1 + TOLERANCE):
            yield f"{name} claims a bound {s.lower_bound / oracle.latency - 1:.2e} above the optimum"


def report(comparisons: Sequence[Comparison], seconds: float) -> str:
    """The dated page on agreement, in Markdown."""
    from importlib.metadata import PackageNotFoundError, version

    def installed(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:
            return "not installed"

    feasible = [c for c in comparisons if c.solutions["enumerate"].feasible]
    lines = [
        "# Agreement of the exact methods",
        "",
        "Generated by `python -m wdmoe_opt.benchmarks.agreement"
        f" --count {len(comparisons)}` on {date.today().isoformat()}; do not edit.",
        "",
        f"{len(comparisons)} random problems (seeds 0 to {len(comparisons) - 1}): 2 to 6 tokens, 2 to 4"
        " devices, 1 or 2 experts per device, 1 or 2 blocks; bandwidth shared, per block and fixed; with and"
        " without activation times and link delays; both dispatch rules; floors of both kinds, caps on"
        " experts, re-routing."
        f" {len(comparisons) - len(feasible)} have floors that nothing can meet and count as agreed if every"
        " method says so. A value agrees if it is within 1e-6, relatively, of the enumerated optimum.",
        "",
        "| method | solved | reaches the optimum | worst above it | claims optimality | agree where claimed "
        "| bound over optimum, median | lowest | median time, ms | longest, s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    names = dict.fromkeys(m for c in feasible for m in c.solutions)
    lines += [_row(name, [c for c in feasible if name in c.solutions]) for name in names]
    faults = [f"- seed {c.seed}: {fault}" for c in comparisons for fault in c.faults]
    lines += ["", f"Disagreements: {len(faults)}.", *faults, ""]
    packages = ("numpy", "scipy", "cvxpy", "clarabel", "pyomo", "highspy", "pyscipopt")
    lines.append("Versions: " + ", ".join(f"{p} {installed(p)}" for p in packages) + ".")
    lines.append(f"Wall clock {seconds:.0f} s.")
    return "\n".join(lines) + "\n"


def _row(name: str, comparisons: Sequence[Comparison]) -> str:
    solved = [c.solutions[name] for c in comparisons]
    claimed = [c for c in comparisons if c.solutions[name].termination.reason == "optimal"]
    agree = sum(
        abs(c.solutions[name].latency / c.solutions["enumerate"].latency - 1) <= TOLERANCE for c in claimed
    )
    bounds = [
        c.solutions[name].lower_bound / c.solutions["enumerate"].latency
        for c in comparisons
        if c.solutions[name].bound_kind != "none"
    ]
    proved = f"{np.median(bounds):.4f} | {np.min(bounds):.4f}" if bounds else "– | –"
    off = [c.solutions[name].latency / c.solutions["enumerate"].latency - 1 for c in comparisons]
    reached = sum(value <= TOLERANCE for value in off)
    times = [s.timings["solve"] for s in solved]
    cells = (
        name,
        f"{len(solved)}",
        f"{reached} ({reached / len(solved):.1%})",
        f"{max(0.0, *off):.2%}",
        f"{len(claimed)} ({len(claimed) / len(solved):.1%})",
        f"{agree}",
        proved,
        f"{1e3 * np.median(times):.1f}",
        f"{np.max(times):.1f}",
    )
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--count", type=int, default=40, help="how many problems, seeds 0 to count - 1")
    parser.add_argument("--output", type=Path, help="write the page here as well")
    options = parser.parse_args()
    compare(0)  # compiles what is timed below
    started = perf_counter()
    comparisons = []
    # The bar shows on a terminal only, so that redirected output stays the page.
    for seed in track(range(options.count), console=Console(stderr=True), disable=not sys.stderr.isatty()):
        comparisons.append(compare(seed))
        for fault in comparisons[-1].faults:
            print(f"seed {seed}: {fault}", flush=True)
    page = report(comparisons, perf_counter() - started)
    print(page)
    if options.output is not None:
        options.output.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
