"""A solver of one's own, in the benchmarks: keep each token's heaviest expert, share bandwidth by load.

Run it against everything else, on any suite::

    wdmoe-opt bench run smoke --plugin examples/toy_solver.py
    wdmoe-opt bench report

Importing this file registers the solver. It is then also there for ``wo.solve(problem, "toy")`` in the same
process. Its answers are priced by the package's metric and its claims are checked, whatever it believes of
them.

An installed package announces its solvers instead, and needs no ``--plugin``: they then take part in every
suite, and in `wdmoe-opt solve --method toy`. In its pyproject.toml::

    [project.entry-points."wdmoe_opt.solvers"]
    toy = "my_package.toy_solver:TOY"

where ``TOY`` is the `SolverInfo` below.
"""

from __future__ import annotations

import numpy as np

import wdmoe_opt as wo
from wdmoe_opt.bandwidth import demands


def toy(problem: wo.Problem, control: wo.Control, extra: int = 0) -> wo.Point:
    """Keep the heaviest reachable expert of each token, and more of them until the block's floor holds.

    Parameters
    ----------
    problem : Problem
    control : Control
        Time limit, gap, seed and threads; this solver needs none of them.
    extra : int
        An option, just to show one: keep so many experts more.
    """
    floor = np.asarray(problem.min_retention)
    keep = np.zeros(problem.allowed.shape, dtype=bool)
    # Columns fall in gate weight, so the first allowed ones are the heaviest.
    order = np.cumsum(problem.allowed, axis=2)
    for block in range(keep.shape[0]):
        experts = 1 + extra
        while True:
            keep[block] = problem.allowed[block] & (order[block] <= experts)
            kept = (problem.shares[block] * keep[block]).sum(axis=1).mean()
            if kept >= floor[block] or experts >= keep.shape[2]:
                break
            experts += 1
    transfers, _ = demands(problem, keep)
    load = transfers.sum(axis=0)
    bandwidth = problem.instance.total_bandwidth * load / load.sum()
    return wo.Point(
        keep, bandwidth, wo.Termination("heuristic", detail="heaviest experts, bandwidth by load")
    )


TOY = wo.SolverInfo(
    "toy",
    "heaviest experts until the floor holds, bandwidth in proportion to load",
    toy,
    objectives=("latency",),
    allocations=("shared",),
)


if "toy" not in {info.name for info in wo.list_solvers()}:
    wo.register_solver(
        "toy", toy, summary=TOY.summary, objectives=TOY.objectives, allocations=TOY.allocations
    )
