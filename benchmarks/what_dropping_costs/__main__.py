"""``python -m wdmoe_opt.benchmarks.what_dropping_costs [--weights DIR] [--out DIR] [--json] [--quick]``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from wdmoe_opt.benchmarks.what_dropping_costs import document, measure
from wdmoe_opt.benchmarks.what_dropping_costs.plan import Plan
from wdmoe_opt.benchmarks.what_dropping_costs.results import NAME, Results, read
from wdmoe_opt.errors import UnsupportedError, WdmoeError
from wdmoe_opt.instances.tiny_moe.model import libraries
from wdmoe_opt.instances.tiny_moe.weights import DATA


def experiment(
    plan: Plan, weights: Path, folder: Path, *, workers: int = 0, fresh: bool = False, progress: bool = False
) -> document.Findings:
    """Measure what is missing, write raw numbers, figures and page; returns what the page shows.

    Parameters
    ----------
    plan : Plan
    weights : Path
        Folder of the weights.
    folder : Path
        Where the page goes; raw numbers of the same model and plan there are used.
    workers : int
        Processes; 0 is none but this one.
    fresh : bool
        Measure everything again.
    progress : bool
        Show a progress bar.

    Raises
    ------
    UnsupportedError
        If an extra is missing.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    libraries()
    if find_spec("matplotlib") is None:
        raise UnsupportedError("the figures need matplotlib; install wdmoe_opt[plot]")
    path = folder / document.NAME / NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    results = Results(measure.about(plan, weights))
    if path.exists() and not fresh:
        results = _resumed(results, path)
    units = plan.units()
    columns = (TextColumn("measure"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not progress) as bar:
        done = sum(results.holds(*unit) for unit in units)
        task = bar.add_task("measure", total=len(units), completed=done)
        measure.run(
            results, plan, weights, workers=workers,
            save=lambda: results.save(path), advance=lambda: bar.advance(task),
        )  # fmt: skip
    results.order(units)
    results.save(path)
    return document.write(results, plan, folder)


def _resumed(results: Results, path: Path) -> Results:
    """What was measured before, where it was of the same model, texts and network."""
    before = read(path)
    same = {name: before.about.get(name) for name in ("weights", "plan", "texts")}
    return before if all(same[name] == results.about[name] for name in same) else results


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(
        prog="python -m wdmoe_opt.benchmarks.what_dropping_costs",
        description="Loss and accuracy against retention and latency, for every policy.",
    )
    parser.add_argument("--weights", type=Path, default=DATA, help="folder; default the shipped weights")
    parser.add_argument("--out", type=Path, default=Path("bench-results/what-dropping-costs"),
                        help="folder of the page; default %(default)s")  # fmt: skip
    parser.add_argument("--workers", type=int, default=2, help="processes; default %(default)s")
    parser.add_argument(
        "--quick", action="store_true", help="three passes, the ends of each curve: a try-out"
    )
    parser.add_argument("--fresh", action="store_true", help="measure again what was measured before")
    parser.add_argument("--json", action="store_true", help="print every number of the page as JSON")
    asked = parser.parse_args(arguments)
    plan = Plan().quick() if asked.quick else Plan()
    try:
        findings = experiment(
            plan, asked.weights, asked.out, workers=asked.workers, fresh=asked.fresh,
            progress=sys.stderr.isatty(),
        )  # fmt: skip
    except WdmoeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    if asked.json:
        print(json.dumps(findings.as_dict(), indent=1))
    else:
        print(asked.out / f"{document.NAME}.md")


if __name__ == "__main__":
    main()
