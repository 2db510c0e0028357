"""Certified bounds against the enumerated optimum: ``python -m wdmoe_opt.benchmarks.tiny --count 2000``.

Random tiny problems as in `agreement`: 2 to 6 tokens, all allocations, floors and dispatch rules, with and
without activation. For every one: does the certified bound stay below the optimum, how loose is it, and
does `exact` close it to 1e-6 within the time limit? ``--write`` puts the result into docs/certified.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

import wdmoe_opt as wo
from wdmoe_opt.benchmarks.agreement import tiny_problem
from wdmoe_opt.benchmarks.certified import DOCUMENT

BEGIN, END = (
    "<!-- tiny: python -m wdmoe_opt.benchmarks.tiny --count 2000 --time-limit 60 --write -->",
    "<!-- end of tiny -->",
)
#: Gap to which `exact` is to close, and rounding of exact prices.
CLOSED, ROUNDING = 1e-6, 1e-9


@dataclass(frozen=True)
class Outcome:
    """One random tiny problem.

    Attributes
    ----------
    seed : int
    joint : bool
        Several blocks share bandwidth.
    loose : float
        How far the bound of `certified` is below the optimum, relatively.
    excess : float
        How far its selection is above.
    gap, seconds : float
        What `exact` leaves, and how long it took.
    wrong : str
        What contradicts the optimum; "" if nothing does.
    """

    seed: int
    joint: bool
    loose: float
    excess: float
    gap: float
    seconds: float
    wrong: str


def outcome(seed: int, time_limit: float) -> Outcome | None:
    """Compare on one problem; None where no selection keeps the floors."""
    problem = tiny_problem(seed)
    best = wo.solve(problem, "enumerate")
    if not best.feasible:
        return None
    first = wo.solve(problem, "certified", rel_gap=CLOSED)
    started = perf_counter()
    closed = wo.solve(problem, "exact", rel_gap=CLOSED, time_limit=time_limit)
    seconds = perf_counter() - started
    wrong = [
        f"{s.method}: {what}"
        for s in (first, closed)
        for what, bad in (
            ("bound above the optimum", s.lower_bound > best.latency * (1 + ROUNDING)),
            ("value below the optimum", s.latency < best.latency * (1 - ROUNDING)),
            ("not feasible", not s.feasible),
            ("fails its recheck", s.bound_kind == "certified" and not wo.certify(problem, s)),
        )
        if bad
    ]
    return Outcome(
        seed,
        problem.allocation == "shared" and problem.instance.blocks > 1,
        1 - first.lower_bound / best.latency,
        first.latency / best.latency - 1,
        closed.gap,
        seconds,
        "; ".join(wrong),
    )


def summary(found: Iterable[Outcome], time_limit: float) -> dict[str, Any]:
    """Figures of all outcomes, and apart for blocks that share bandwidth."""
    rows = list(found)
    parts = {"blocks on their own": [r for r in rows if not r.joint], "shared": [r for r in rows if r.joint]}
    report: dict[str, Any] = {
        "problems": len(rows),
        "time_limit_s": time_limit,
        "contradictions": [f"{r.seed}: {r.wrong}" for r in rows if r.wrong],
    }
    for name, part in parts.items():
        loose, excess = np.array([r.loose for r in part]), np.array([r.excess for r in part])
        gap, seconds = np.array([r.gap for r in part]), np.array([r.seconds for r in part])
        report[name] = {
            "problems": len(part),
            "bound_loose_median": float(np.median(loose)),
            "bound_loose_worst": float(loose.max()),
            "selection_optimal": float((excess < CLOSED).mean()),
            "exact_closed": float((gap <= CLOSED * 1.1).mean()),
            "exact_open": [r.seed for r in part if r.gap > CLOSED * 1.1],
            "exact_gap_worst": float(gap.max()),
            "exact_s_median": float(np.median(seconds)),
            "exact_s_worst": float(seconds.max()),
        }
    return report


def table(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    lines = [
        f"{report['problems']} random tiny problems that have a solution; "
        f"{len(report['contradictions'])} contradictions of the enumerated optimum. "
        f"`exact` had {report['time_limit_s']:g} s per problem.",
        "",
        "| blocks | problems | bound below optimum: median | worst | selection optimal "
        "| `exact` closes to 1e-6 | worst gap left | time: median | worst |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in ("blocks on their own", "shared"):
        part = report[name]
        lines.append(
            f"| {name} | {part['problems']} | {part['bound_loose_median']:.1%} "
            f"| {part['bound_loose_worst']:.0%} | {part['selection_optimal']:.1%} "
            f"| {part['exact_closed']:.1%} | {part['exact_gap_worst']:.1e} "
            f"| {part['exact_s_median']:.2g} s | {part['exact_s_worst']:.2g} s |"
        )
    return "\n".join(lines)


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description="Certified bounds on random tiny problems.")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--time-limit", type=float, default=5.0, help="seconds of exact per problem")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", action="store_true", help=f"put the result into {DOCUMENT}")
    arguments = parser.parse_args()
    seeds = range(arguments.first, arguments.first + arguments.count)
    quiet = Console(stderr=True)
    found = [outcome(s, arguments.time_limit) for s in track(seeds, "solving", console=quiet, transient=True)]
    report = summary((o for o in found if o is not None), arguments.time_limit)
    if arguments.write:
        page = DOCUMENT.read_text()
        head, rest = page.split(BEGIN)
        DOCUMENT.write_text(f"{head}{BEGIN}\n{table(report)}\n{END}{rest.split(END)[1]}")
    print(json.dumps(report, indent=1) if arguments.json else table(report))
    sys.exit(1 if report["contradictions"] else 0)


if __name__ == "__main__":
    main()
