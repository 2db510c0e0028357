"""Speed of single blocks, cold and in a session: ``python -m wdmoe_opt.benchmarks.session [--json]``.

One block of synthetic gates (named so) on the cell of paper A, 8 devices, top-2, floor 0.95. Cold is
`solve` with method "certified", whole and the solver alone; a session solves again after a change of every
gain by 1 dB (standard deviation), and with new gates of the same statistics. Times are medians in one
process, warm; gaps are the largest.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np

import wdmoe_opt as wo
from wdmoe_opt.benchmarks.heuristics import FLOOR, synthetic

#: Tokens, and the gap asked for.
SIZES = ((512, 2e-4), (128, 1e-3), (32, 1e-3))
REPEATS = 200
ROUTINGS = 20


def measured(call: Callable[[dict[str, Any]], Any], inputs: Iterator[dict[str, Any]]) -> tuple[float, float]:
    """Median seconds of a call over its inputs, and the largest gap."""
    times, gaps = [], []
    for change in inputs:
        started = perf_counter()
        result = call(change)
        times.append(perf_counter() - started)
        gaps.append(float(result.gap))
    return statistics.median(times), max(gaps)


def changes(problem: wo.Problem, what: str) -> Iterator[dict[str, Any]]:
    """Inputs of a session's calls, the same for every run."""
    rng = np.random.default_rng(0)
    inst = problem.instance
    others = [synthetic(inst.tokens, seed=seed) for seed in range(1, ROUTINGS + 1)]
    for i in range(REPEATS):
        if what == "gains":
            factor = 10 ** (rng.normal(0.0, 1.0, inst.devices) / 10)
            assert inst.gain_down is not None
            assert inst.gain_up is not None
            yield {"gain_down": inst.gain_down * factor, "gain_up": inst.gain_up * factor}
        elif what == "gates":
            other = others[i % ROUTINGS]
            assert other.expert_ids is not None
            assert other.gate_weights is not None
            yield {"expert_ids": other.expert_ids[0], "gate_weights": other.gate_weights[0]}
        else:
            yield {}


def single_block(tokens: int, rel_gap: float) -> dict[str, Any]:
    """Figures of one size, times in ms."""
    problem = wo.Problem(synthetic(tokens), min_retention=FLOOR)
    wo.solve(problem, "certified", rel_gap=rel_gap)
    parts: list[float] = []

    def cold(_: dict[str, Any]) -> wo.Solution:
        solution = wo.solve(problem, "certified", rel_gap=rel_gap)
        parts.append(solution.timings["solve"])
        return solution

    row: dict[str, Any] = {"tokens": tokens, "rel_gap": rel_gap}
    whole, gap = measured(cold, changes(problem, "nothing"))
    row |= {"cold_ms": whole * 1e3, "cold_gap": gap, "solver_ms": statistics.median(parts) * 1e3}
    for name, what, certify in (
        ("gains", "gains", False), ("gates", "gates", False), ("certify", "gains", True),
    ):  # fmt: skip
        session = wo.Session(problem, rel_gap=rel_gap, certify=certify)
        session.solve()
        time, gap = measured(partial(_update, session), changes(problem, what))
        row |= {f"{name}_ms": time * 1e3, f"{name}_gap": gap, f"{name}_part": time / whole}
    return row


def _update(session: wo.Session, change: dict[str, Any]) -> wo.SessionResult:
    return session.solve(**change)


def forward_pass() -> dict[str, Any]:
    """A captured model block by block, first and second pass, ms per block."""
    inst = wo.load_instance("deepseek-v2-lite-intent")
    session = wo.Session(wo.Problem(inst, min_retention=FLOOR, allocation="per-block"))
    session.solve(block=0)
    row: dict[str, Any] = {"blocks": inst.blocks, "tokens": inst.tokens}
    for name in ("first", "second", "third"):
        inputs = ({"block": i} for i in range(inst.blocks))
        time, gap = measured(lambda change: session.solve(**change), inputs)
        row |= {f"{name}_ms": time * 1e3, f"{name}_gap": gap}
    return row


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description="Speed of single blocks, cold and in a session.")
    parser.add_argument("--json", action="store_true")
    as_json = parser.parse_args().json
    report = {"single_block": [single_block(*size) for size in SIZES], "forward_pass": forward_pass()}
    if as_json:
        print(json.dumps(report, indent=1))
        return
    print(
        "tokens  cold, ms  solver alone  session: gains  gates  gains, certified  (parts of cold)"
        "   largest gap"
    )
    for row in report["single_block"]:
        assert isinstance(row, dict)
        print(
            f"{row['tokens']:>6}{row['cold_ms']:>10.3f}{row['solver_ms']:>14.3f}{row['gains_ms']:>16.3f}"
            f"{row['gates_ms']:>7.3f}{row['certify_ms']:>18.3f}  ({row['gains_part']:.2f}, "
            f"{row['gates_part']:.2f}, {row['certify_part']:.2f})"
            f"{max(row['gains_gap'], row['gates_gap']):>13.2e}"
            f" (cold {row['cold_gap']:.2e})"
        )
    f = report["forward_pass"]
    assert isinstance(f, dict)
    print(
        f"deepseek-v2-lite, {f['blocks']} blocks of {f['tokens']} tokens, ms a block: first pass "
        f"{f['first_ms']:.3f}, second {f['second_ms']:.3f}, third {f['third_ms']:.3f}; "
        f"largest gap {f['third_gap']:.2e}"
    )


if __name__ == "__main__":
    main()
