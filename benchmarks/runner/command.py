"""`wdmoe-opt bench run` and `wdmoe-opt bench suites`."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, get_args

from wdmoe_opt.benchmarks.peers import PEERS
from wdmoe_opt.benchmarks.runner.cluster import run_on_cluster
from wdmoe_opt.benchmarks.runner.local import run_here
from wdmoe_opt.benchmarks.runner.plugins import entry_point_solvers, load_plugins, resolved
from wdmoe_opt.benchmarks.runner.store import DEFAULT_FOLDER, Store
from wdmoe_opt.benchmarks.runner.task import tasks_of
from wdmoe_opt.benchmarks.suites.load import load_suite, suite_names
from wdmoe_opt.benchmarks.suites.suite import Job, Kind, Suite
from wdmoe_opt.errors import UnknownNameError
from wdmoe_opt.registry import list_solvers

if TYPE_CHECKING:
    import pandas as pd

#: s between two lines of progress where there is no terminal.
TOLD = 30.0


def list_suites() -> list[dict[str, Any]]:
    """One line about each shipped suite."""
    found = []
    for name in suite_names():
        suite = load_suite(name)
        found.append(
            {
                "name": suite.name,
                "summary": suite.summary,
                "cases": len(suite.cases),
                "contestants": [c.label for c in suite.contestants],
                "rows_per_seed": len(suite.pairings),
                "seeds": suite.seeds,
            }
        )
    return found


def run(
    suite: str | Path,
    *,
    solvers: Sequence[str] = (),
    seeds: int | None = None,
    out: Path = DEFAULT_FOLDER,
    plugins: Sequence[str] = (),
    scheduler: str | None = None,
    workers: int | None = None,
    fresh: bool = False,
) -> dict[str, Any]:
    """Run a suite; what is finished already is not run again.

    Parameters
    ----------
    suite : str or Path
        Name of a shipped suite, or the path of a TOML file.
    solvers : sequence of str
        Only these, by label or method; a registered solver or peer that the suite does not have joins it.
    seeds : int, optional
        0 to seeds - 1; default the suite's.
    out : Path
        Folder of results; other suites' rows in it stay.
    plugins : sequence of str
        See `plugins.load_plugins`; their solvers join every suite as kind "plugin".
    scheduler : str, optional
        Address of a dask.distributed scheduler; default processes of this machine.
    workers : int, optional
        Processes at the same time on this machine; default the suite's.
    fresh : bool
        Run everything again, and replace the rows.

    Returns
    -------
    dict
        "suite", "rows" (of this call), "skipped", "table" (path of the Parquet file), "states", "solvers":
        per solver its rows, states, and median times.
    """
    chosen = load_suite(suite)
    paths = tuple(resolved(plugin) for plugin in plugins)
    chosen = with_solvers(chosen, load_plugins(paths), solvers)
    store = Store(out)
    rows: Generator[dict[str, Any]]
    with store.locked():
        tasks = tasks_of(chosen.name, chosen.pairings, seeds or chosen.seeds, paths)
        done = set() if fresh else store.finished()
        left = [task for task in tasks if task.key not in done]
        rows = run_on_cluster(left, scheduler) if scheduler else run_here(left, workers or chosen.workers)
        try:
            with closing(rows), _progress(chosen.name, len(left)) as advance:
                for row in rows:
                    store.add(row)
                    advance(row)
        finally:
            table = store.merge()
    keys = {task.key for task in tasks}
    mine = table[table["task_key"].isin(keys)]
    return {
        "suite": chosen.name,
        "rows": len(left),
        "skipped": len(tasks) - len(left),
        "table": str(store.table),
        "states": _counts(mine["state"]),
        "solvers": _summaries(mine, [c.label for c in chosen.contestants]),
    }


def with_solvers(suite: Suite, added: Iterable[Any], names: Sequence[str]) -> Suite:
    """The suite with solvers of third parties, cut down to the named ones.

    Raises
    ------
    UnknownNameError
        If a name is neither in the suite nor a solver.
    """
    contestants = list(suite.contestants)
    first = contestants[0]
    model = replace(
        first, options={}, groups=(), most_pairs=math.inf, at_retention_of="", tasks=get_args(Job)
    )
    taken = {c.label for c in contestants} | {c.method for c in contestants}
    for info in (*added, *entry_point_solvers()):
        if info.name not in taken:
            contestants.append(replace(model, label=info.name, method=info.name, kind="plugin"))
            taken.add(info.name)
    if not names:
        return replace(suite, contestants=tuple(contestants))
    solvers = {info.name for info in list_solvers()}
    for name in dict.fromkeys(names):
        if name in taken:
            continue
        if name not in solvers and name not in PEERS:
            raise UnknownNameError("solver", name, {*taken, *solvers, *PEERS})
        kind: Kind = "ours" if name in solvers else "peer"
        contestants.append(replace(model, label=name, method=name, kind=kind))
    kept = tuple(c for c in contestants if c.label in names or c.method in names)
    return replace(suite, contestants=kept)


def _counts(states: pd.Series[str]) -> dict[str, int]:
    return {str(state): int(count) for state, count in states.value_counts().items()}


def _summaries(table: pd.DataFrame, labels: Sequence[str]) -> list[dict[str, Any]]:
    """Per solver what came of it, in the order of the suite."""
    found = []
    for label in labels:
        rows = table[table["solver"] == label]
        if rows.empty:
            continue
        times = {name: rows[name].median() for name in ("cold_s", "compile_s", "warm_s")}
        found.append(
            {
                "solver": label,
                "kind": str(rows["kind"].iloc[0]),
                "rows": len(rows),
                "states": _counts(rows["state"]),
                "feasible": int(rows["feasible"].sum()),
                "claims_wrong": int((rows["claim_holds"] == "no").sum()),
                "median_gap": _number(rows["gap"].median()),
                **{name: _number(value) for name, value in times.items()},
            }
        )
    return found


def _number(value: float) -> float | None:
    return None if value != value else float(value)


@contextmanager
def _progress(what: str, count: int) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A bar with the time left on standard error; now and then a line where that is no terminal."""
    if sys.stderr is None or count == 0:
        yield lambda row: None
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
        from rich.progress import TimeRemainingColumn as Left

        columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("left"), Left(),
        )  # fmt: skip
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            number = bar.add_task(what, total=count)
            yield lambda row: bar.update(number, advance=1, description=f"{what}: {row['solver']}")
    else:
        yield _Teller(what, count)


class _Teller:
    """Prints a line of progress every so often."""

    def __init__(self, what: str, count: int) -> None:
        self.what, self.count, self.done = what, count, 0
        self.started = self.told = monotonic()

    def __call__(self, row: dict[str, Any]) -> None:
        self.done += 1
        now = monotonic()
        if now - self.told < TOLD:
            return
        self.told = now
        left = (now - self.started) / self.done * (self.count - self.done)
        print(
            f"{self.what}: {self.done} of {self.count} rows, about {left / 60:.1f} min left", file=sys.stderr
        )
