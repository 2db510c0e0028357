"""Write the measured part of docs/benchmarks.md: ``python -m wdmoe_opt.benchmarks.document``.

Reports of the suites under docs/benchmarks/ are made anew from their rows, and the page's tables taken from
them. Rows come from ``wdmoe-opt bench run SUITE --out FOLDER`` and lie in docs/benchmarks/SUITE/; costs of
kernels are the output of ``python -m wdmoe_opt.benchmarks.micro --json``, in docs/benchmarks/micro.json.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from wdmoe_opt.archive import write_text
from wdmoe_opt.benchmarks.report.command import write
from wdmoe_opt.benchmarks.report.page import Page, make_page
from wdmoe_opt.benchmarks.report.render import markdown_table
from wdmoe_opt.benchmarks.report.results import read_results

DOCS = Path(__file__).parents[1] / "docs"
PAGE, FOLDER = DOCS / "benchmarks.md", DOCS / "benchmarks"
BEGIN, END = "<!-- measured: python -m wdmoe_opt.benchmarks.document -->", "<!-- end of measured -->"
#: Suites with committed rows, and which of their report's tables the page shows.
SHOWN = {
    "captured": ("promises", "relative-joint", "gap-joint", "success-joint", "time-joint", "time-bandwidth"),
    "paper": ("stage-table", "left-on-the-table", "time-bandwidth"),
}
#: Pictures of a report that the page shows.
PICTURES = {"captured": ("target-joint", "frontiers"), "paper": ("stages",)}
#: Which task a table is about, where its name says so.
TASKS = {"joint": "selection and bandwidth", "bandwidth": "bandwidth alone"}


def measured() -> list[str]:
    """Lines of the page's measured part; writes every suite's report on the way."""
    lines: list[str] = []
    for suite, names in SHOWN.items():
        page = make_page(read_results(FOLDER / suite / "results.parquet"))
        write(page, FOLDER / suite)
        lines += _suite(suite, page, names)
    return lines + _micro(json.loads((FOLDER / "micro.json").read_text()))


def _suite(suite: str, page: Page, names: Iterable[str]) -> list[str]:
    tables = {table.name: table for table in page.tables}
    lines = [
        f"### Suite `{suite}`",
        "",
        f"Whole report: [{suite}/report.md](benchmarks/{suite}/report.md).",
        "",
    ]
    for name in names:
        task = TASKS.get(name.rpartition("-")[2])
        title = tables[name].title + (f": {task}" if task else "")
        lines += [f"**{title}**", "", *markdown_table(tables[name])]
    for name in PICTURES[suite]:
        lines += [f"![{name}](benchmarks/{suite}/images/{name}.png)", ""]
    return lines


def _micro(costs: dict[str, Any]) -> list[str]:
    """Kernels and calls beside each other."""
    heads = ("problem", "pairs", "`wo.evaluate`", "its kernels", "`bincount`", "evaluate / bincount",
             "kernels / bincount")  # fmt: skip
    lines = [
        "### Kernels",
        "",
        "`python -m wdmoe_opt.benchmarks.micro`. Nanoseconds per (token, expert) pair:",
    ]
    lines += ["", f"| {' | '.join(heads)} |", "|---|---:|---:|---:|---:|---:|---:|"]
    for cost in costs["metric_ns_per_pair"]:
        call, kernels, plain = cost["evaluate"], cost["kernels"], cost["bincount"]
        lines.append(
            f"| {cost['name']} | {cost['pairs']:,} | {call:.3g} | {kernels:.3g} | {plain:.3g} "
            f"| {call / plain:.1f} | {kernels / plain:.1f} |"
        )
    lines += [
        "",
        "Solvers, in metric evaluations:",
        "",
        "| problem | solver | ms | evaluations |",
        "|---|---|---:|---:|",
    ]
    for row in costs["solvers"]:
        name, spent = row["problem"], row["seconds"] * 1e3
        lines.append(f"| {name} | `{row['method']}` | {spent:.3g} | {row['metrics']:.3g} |")
    lines += [
        "",
        "Best bandwidth for plain top-k:",
        "",
        "| problem | who | ms | allocations |",
        "|---|---|---:|---:|",
    ]
    for row in costs["bandwidth"]:
        name, spent = row["problem"], row["seconds"] * 1e3
        lines.append(f"| {name} | `{row['method']}` | {spent:.3g} | {row['allocations']:.3g} |")
    return [*lines, ""]


def main() -> None:
    """Command line of this module."""
    if len(sys.argv) > 1:
        sys.exit(f"takes no arguments, got {sys.argv[1]!r}")
    page = PAGE.read_text()
    head, rest = page.split(BEGIN)
    text = f"{head}{BEGIN}\n\n{chr(10).join(measured()).rstrip()}\n\n{END}{rest.split(END)[1]}"
    write_text(PAGE, text)


if __name__ == "__main__":
    main()
