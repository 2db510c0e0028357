"""Does any feasible answer lie below a certified bound? ``python -m wdmoe_opt.benchmarks.contradictions``.

On every captured family as a whole model, and on every one of its blocks, each registered method solves
the same problem, and every certified bound is held against every feasible value. Methods of other
packages, and branching, are stopped at the time limit, and on single blocks take every eighth only.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, get_args

from rich.console import Console
from rich.progress import track

import wdmoe_opt as wo
from wdmoe_opt.instances.catalogue import list_families
from wdmoe_opt.problem import Allocation
from wdmoe_opt.registry import SolverInfo

FLOOR = 0.95
#: Methods that may run to the time limit, and the part of the blocks that they take.
SLOW, EVERY = frozenset({"exact", "convex", "milp", "minlp", "slsqp"}), 8
#: Rounding of values that a certified bound may meet exactly.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Meeting:
    """Values and certified bounds of all methods on one problem.

    Attributes
    ----------
    instance, allocation : str
    values, bounds : dict of str to float
        By method, s: latencies of feasible answers, and certified bounds.
    wrong : tuple of str
        Values below a bound, in words.
    """

    instance: str
    allocation: str
    values: dict[str, float]
    bounds: dict[str, float]
    wrong: tuple[str, ...]


def names() -> Iterator[tuple[str, bool]]:
    """Instances, whole models and single blocks, and whether slow methods take them, too."""
    for family in list_families():
        yield family.name, True
        blocks = wo.load_instance(family.name).blocks
        if blocks > 1:
            yield from ((f"{family.name}#{i}", i % EVERY == 0) for i in range(blocks))


def meeting(instance: str, allocation: Allocation, methods: Iterable[SolverInfo], limit: float) -> Meeting:
    """Solve one problem by all methods that take it."""
    loaded = wo.load_instance(instance)
    floors: dict[str, Any] = {} if loaded.loads is not None else {"min_retention": FLOOR}
    problem = wo.Problem(loaded, allocation=allocation, **floors)
    values, bounds = {}, {}
    for info in methods:
        if info.refusal(problem) or not info.availability():
            continue
        try:
            found = wo.solve(problem, info.name, time_limit=limit)
        except wo.UnsupportedError:
            continue  # enumerate counts states before it refuses
        if found.feasible:
            values[info.name] = found.latency
        if found.bound_kind == "certified":
            bounds[info.name] = found.lower_bound
    wrong = tuple(
        f"{method} {value!r} below the bound {bound!r} of {prover}"
        for prover, bound in bounds.items()
        for method, value in values.items()
        if value < bound * (1 - ROUNDING)
    )
    return Meeting(instance, allocation, values, bounds, wrong)


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description="Feasible values against certified bounds.")
    parser.add_argument("--time-limit", type=float, default=5.0, help="seconds per method and problem")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    methods = wo.list_solvers()
    quick = [info for info in methods if info.name not in SLOW]
    tasks = [(name, slow, how) for name, slow in names() for how in get_args(Allocation)]
    quiet = Console(stderr=True)
    found = [
        meeting(name, how, methods if slow else quick, arguments.time_limit)
        for name, slow, how in track(tasks, "solving", console=quiet, transient=True)
    ]
    if arguments.json:
        print(json.dumps([asdict(one) for one in found], indent=1))
    else:
        print(summary(found))
    sys.exit(1 if any(one.wrong for one in found) else 0)


def summary(found: list[Meeting]) -> str:
    """Counts and contradictions as text."""
    values, bounds = sum(len(one.values) for one in found), sum(len(one.bounds) for one in found)
    methods = sorted({method for one in found for method in one.values})
    pairs = sum(len(one.values) * len(one.bounds) for one in found)
    wrong = [f"{one.instance}, {one.allocation}: {words}" for one in found for words in one.wrong]
    head = (
        f"{len(found)} problems, {len(methods)} methods ({', '.join(methods)}): {values} feasible answers "
        f"and {bounds} certified bounds, {pairs} comparisons, {len(wrong)} contradictions"
    )
    return "\n".join([head, *wrong])


if __name__ == "__main__":
    main()
