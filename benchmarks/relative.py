"""Latency of every native method relative to plain top-k at equal bandwidth, on the captured instances.

``python -m wdmoe_opt.benchmarks.relative [--json]`` prints a Markdown table. Rows are grouped by the
retention reached: first at the retention that the paper's policy (`wdmoe`) happens to reach, block by
block, then at floors. Everything is deterministic.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np

import wdmoe_opt as wo
from wdmoe_opt.instances.catalogue import list_families

METHODS = ("topk", "wdmoe", "greedy", "alternating", "local-search")
FLOORS = (0.98, 0.95, 0.9)


def captured() -> list[str]:
    """Names of the instances with gate weights captured per token; not those of our own small model."""
    kinds = {family.name: family.kind for family in list_families()}
    return [
        name for name, kind in kinds.items() if kind == "gate weights" and not name.startswith("tiny-moe")
    ]


def rows() -> list[dict[str, Any]]:
    """One row per retention and instance: latency over that of plain top-k at equal bandwidth."""
    found = []
    for name in captured():
        instance = wo.load_instance(name)
        base = wo.solve(instance, "topk-uniform").latency
        paper = wo.solve(instance, "wdmoe")
        floors: list[tuple[str, Any]] = [("that of wdmoe", paper.block_retention)]
        floors += [(f"{floor:g}", floor) for floor in FLOORS]
        for label, floor in floors:
            problem = wo.Problem(instance, min_retention=np.minimum(floor, 1.0))
            row: dict[str, Any] = {"floor": label, "instance": name, "topk-uniform": 1.0}
            for method in METHODS:
                solution = wo.solve(problem, method)
                row[method] = solution.latency / base if solution.feasible else None
                row["retention"] = paper.retention if label.startswith("that") else floor
            found.append(row)
    order = ["that of wdmoe", *(f"{floor:g}" for floor in FLOORS)]
    return sorted(found, key=lambda row: order.index(row["floor"]))


def markdown(found: list[dict[str, Any]]) -> str:
    """The table, one line per row; a dash where a method breaks the floor."""
    lines = [
        "| retention per block at least | instance | topk-uniform | " + " | ".join(METHODS) + " |",
        "| --- | --- | " + " | ".join(["---:"] * (len(METHODS) + 1)) + " |",
    ]
    for row in found:
        label = (
            f"{row['floor']} ({row['retention']:.3f})" if row["floor"].startswith("that") else row["floor"]
        )
        cells = ["–" if row[method] is None else f"{row[method]:.3f}" for method in METHODS]
        lines.append(f"| {label} | {row['instance']} | 1 | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description="Relative latencies on the captured instances.")
    parser.add_argument("--json", action="store_true")
    found = rows()
    print(json.dumps(found, indent=1) if parser.parse_args().json else markdown(found))


if __name__ == "__main__":
    main()
