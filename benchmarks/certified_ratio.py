"""Bounds on the weight-to-latency ratio: ``python -m wdmoe_opt.benchmarks.certified_ratio [--write]``.

Tiny problems as in `agreement`, against the enumerated optimum where there is one, else the point found; and
blocks of captured and synthetic gates. ``--write`` puts the table into docs/certified.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from time import perf_counter

import numpy as np

import wdmoe_opt as wo
from wdmoe_opt.benchmarks.agreement import ALLOCATIONS, tiny_problem
from wdmoe_opt.benchmarks.certified import DOCUMENT
from wdmoe_opt.benchmarks.heuristics import synthetic
from wdmoe_opt.solvers.enumerate_ratio import restriction

BEGIN, END = (
    "<!-- ratios: python -m wdmoe_opt.benchmarks.certified_ratio --write -->",
    "<!-- end of ratios -->",
)
HEAD = (
    "| case | objective | allocation | n | bound above optimum or point: median | worst | point optimal "
    "| time: median |\n|---|---|---|---|---|---|---|---|"
)


def tiny_rows(count: int) -> Iterator[str]:
    """Seeds 0 to count - 1, by objective and allocation."""
    for objective in ("wlr-block", "wlr-token"):
        for allocation in ALLOCATIONS:
            problems = [tiny_problem(seed).replace(objective=objective) for seed in range(count)]
            yield row("tiny", [p for p in problems if p.allocation == allocation])


def block_rows() -> Iterator[str]:
    """One block of real and of synthetic gates at several floors."""
    cases = {
        "512 tokens, 64 experts on 8 boards": wo.load_instance("deepseek-v2-lite-law#0"),
        "24 tokens, 32 experts on 8 boards": wo.load_instance("gpt-oss-20b-decode#1"),
        "512 tokens, 8 devices, synthetic": synthetic(512),
    }
    for name, instance in cases.items():
        for floor in (0.95, 0.5, 0.0):
            for allocation in ("per-block", "fixed"):
                problem = wo.Problem(instance, "wlr-block", min_retention=floor, allocation=allocation)
                wo.solve(problem, "certified")  # compiles what is timed next
                yield row(f"{name}, floor {floor:g}", [problem])


def row(name: str, problems: list[wo.Problem]) -> str:
    """One line of the table."""
    loose, best, times = [], [], []
    for problem in problems:
        started = perf_counter()
        found = wo.solve(problem, "certified")
        times.append(perf_counter() - started)
        if not found.has_point:
            continue
        optimum = found.objective
        if name == "tiny" and not restriction(problem):
            optimum = wo.solve(problem, "enumerate").objective
            best.append(found.objective >= optimum * (1 - 1e-9))
        assert found.lower_bound >= optimum * (1 - 1e-12)
        loose.append(found.lower_bound / optimum - 1)
    part = f"{np.mean(best):.0%} of {len(best)}" if best else "-"
    return (
        f"| {name} | {problems[0].objective} | {problems[0].allocation} | {len(loose)} "
        f"| {np.median(loose):.2%} | {max(loose):.2%} | {part} | {np.median(times):.2g} s |"
    )


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description="Certified bounds on the weight-to-latency ratio.")
    parser.add_argument("--count", type=int, default=30, help="tiny problems")
    parser.add_argument("--write", action="store_true", help=f"put the table into {DOCUMENT}")
    arguments = parser.parse_args()
    lines = [HEAD]
    for line in (*block_rows(), *tiny_rows(arguments.count)):
        print(line, flush=True)
        lines.append(line)
    if arguments.write:
        page = DOCUMENT.read_text()
        head, rest = page.split(BEGIN)
        table = "\n".join(lines)
        DOCUMENT.write_text(f"{head}{BEGIN}\n{table}\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
