"""frontier(): the least latency at every retention floor, between an achieved and a certified curve.

The module is not called after its function: importing a module sets its name in the package.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from wdmoe_opt.errors import InputError, UnsupportedError, WdmoeError
from wdmoe_opt.floors import richest_keep, token_retention, usable
from wdmoe_opt.instance import Instance
from wdmoe_opt.problem import FEASIBILITY_TOLERANCE, Problem
from wdmoe_opt.solving import solve
from wdmoe_opt.validation import freeze, real_array, real_scalar, refuse_where, whole

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    import pandas as pd
    from numpy.typing import ArrayLike

    from wdmoe_opt.solution import Solution
    from wdmoe_opt.validation import RealArray

#: Marked by default: the papers' baseline, the same with optimal bandwidth, and paper A's policy.
POLICIES = ("topk-uniform", "topk", "wdmoe")
#: Where the default grid starts, if selections can keep as little as that.
LOWEST = 0.5
POINTS = 11


@dataclass(frozen=True, eq=False)
class Mark:
    """Another policy beside the frontier, at the retention that it keeps itself.

    Attributes
    ----------
    solution : Solution
    known : float
        Least latency known of a point that keeps as much, s.
    lower_bound : float
        Certified: no point that keeps as much is faster, s. Like ``known`` NaN where ``conflict`` says why.
    conflict : str
        What else the policy breaks, so that it cannot be compared with the frontier; else "".
    """

    solution: Solution
    known: float
    lower_bound: float
    conflict: str = ""

    @property
    def method(self) -> str:
        """The policy's name."""
        return self.solution.method

    @property
    def latency(self) -> float:
        """Total latency, s."""
        return self.solution.latency

    @property
    def retention(self) -> float:
        """Kept gate weight of the block that keeps least."""
        return _kept(self.solution)

    @property
    def saving(self) -> float:
        """Part of the policy's latency that a known point saves."""
        return _part(self.latency, self.known)

    @property
    def gap(self) -> float:
        """Part of the policy's latency that lies above the certified curve: no point saves more."""
        return _part(self.latency, self.lower_bound)


@dataclass(frozen=True, eq=False)
class Frontier:
    """What every retention floor costs: points that achieve a latency, and certified bounds below them.

    Both curves hold between the floors as well. A point for a floor serves every lower floor, so the
    achieved curve steps up right *after* a floor (`latency_at`). A bound for a floor holds for every
    higher floor, so the certified curve steps up *at* a floor: for any retention from ``floors[i]`` up to
    ``floors[i + 1]`` the bound of ``floors[i]`` holds (`bound_at`). Both never fall, and the least possible
    latency lies between them at every retention.

    Attributes
    ----------
    problem : Problem
        Its ``min_retention`` is replaced by each floor in turn, for all blocks; all else is kept.
    floors : float array (n,)
        Floors on the mean kept gate weight of every block, rising.
    lower_bound : float array (n,)
        Certified bound on the latency at each floor or above, s; 0, which always holds, where nothing is
        proved.
    solutions : tuple of Solution
        The fastest point known for each floor. It may have been found for a higher one, or by a policy.
    marks : tuple of Mark
        Other policies.
    unreachable : float array (u,)
        Floors that were asked for and that no selection keeps.
    """

    problem: Problem
    floors: RealArray
    lower_bound: RealArray
    solutions: tuple[Solution, ...]
    marks: tuple[Mark, ...]
    unreachable: RealArray

    @cached_property
    def latency(self) -> RealArray:
        """Latency of each solution, s (n,)."""
        return _frozen(solution.latency for solution in self.solutions)

    @cached_property
    def retention(self) -> RealArray:
        """Kept gate weight of each solution in the block that keeps least, (n,)."""
        return _frozen(_kept(solution) for solution in self.solutions)

    @cached_property
    def gap(self) -> RealArray:
        """Distance of latency and bound over the latency at each floor, (n,)."""
        return _frozen(map(_part, self.latency.tolist(), self.lower_bound.tolist()))

    def latency_at(self, retention: float) -> float:
        """Least latency known that keeps ``retention`` in every block, s; inf above all points.

        Raises
        ------
        InputError
            If ``retention`` is no number of 0 to 1, or with re-routing to the number of candidates.
        """
        retention = _kept_part(self.problem, retention)
        kept = self.retention >= retention * (1 - FEASIBILITY_TOLERANCE)
        return float(self.latency[kept].min(initial=np.inf))

    def bound_at(self, retention: float) -> float:
        """Certified bound on the latency of what keeps ``retention`` in every block, s; 0 below floors.

        Raises
        ------
        InputError
            If ``retention`` is no number of 0 to 1, or with re-routing to the number of candidates.
        """
        retention = _kept_part(self.problem, retention)
        held = self.floors * (1 - FEASIBILITY_TOLERANCE) <= retention
        return float(self.lower_bound[held].max(initial=0.0))

    def rows(self) -> list[dict[str, Any]]:
        """One row per floor, then one per policy at the retention that it keeps; SI units in the keys."""
        own = zip(
            self.floors.tolist(), self.solutions, self.lower_bound.tolist(), self.gap.tolist(), strict=True
        )
        rows = [_row("floor", *values) for values in own]
        return rows + [_row("policy", m.retention, m.solution, m.lower_bound, m.gap) for m in self.marks]

    def to_frame(self) -> pd.DataFrame:
        """`rows` as a pandas frame (extra ``frames``)."""
        try:
            import pandas as pd
        except ImportError:
            raise UnsupportedError("to_frame needs pandas; install wdmoe_opt[frames]") from None
        return pd.DataFrame(self.rows())

    def plot(self, target: str | Path | Any) -> Any:
        """Draw both curves and the policies (extra ``plot``).

        Parameters
        ----------
        target : str, Path or matplotlib Axes
            A file to write, of a kind by its ending such as ``.png``, or axes to draw into.

        Returns
        -------
        matplotlib Axes

        Raises
        ------
        UnsupportedError
            If matplotlib is missing.
        InputError
            If the file's ending is none that can be written.
        """
        from wdmoe_opt.pareto_plot import plot_frontier

        return plot_frontier(self, target)

    def __str__(self) -> str:
        lines = [f"{'floor':>8}  {'kept':>8}  {'latency':>11}  {'at least':>11}  {'gap':>7}"]
        curves = zip(self.floors, self.retention, self.latency, self.lower_bound, self.gap, strict=True)
        for floor, kept, latency, bound, gap in curves:
            lines.append(f"{floor:8.4f}  {kept:8.4f}  {_ms(latency)}  {_ms(bound)}  {gap:7.2%}")
        lines += [
            f"{mark.method} keeps {mark.retention:.4f} in {mark.latency * 1e3:.2f} ms: {mark_words(mark)}"
            for mark in self.marks
        ]
        if self.unreachable.size:
            lines.append(f"out of reach: {', '.join(f'{floor:g}' for floor in self.unreachable)}")
        return "\n".join(lines)


def _kept_part(problem: Problem, retention: float) -> float:
    """A retention that could be: re-routing can keep more than the weight of plain top-k."""
    columns = problem.candidate_columns
    most = 1 if columns <= (problem.instance.top_k or columns) else columns
    value = real_scalar("retention", retention, minimum=0)
    if value > most * (1 + FEASIBILITY_TOLERANCE):
        raise InputError("retention", f"must be 0 to {most}", value=value)
    return value


def frontier(
    problem: Problem | Instance,
    retentions: ArrayLike | None = None,
    *,
    points: int = POINTS,
    policies: Sequence[str] = POLICIES,
    rel_gap: float = 1e-3,
    time_limit: float | None = None,
    threads: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Frontier:
    """Find what every retention floor costs, with a proof of what it must cost.

    Method "certified" solves the latency problem at every floor; the fastest point known for a floor is
    then taken from all that keep it, and the largest bound from all floors up to it.

    Parameters
    ----------
    problem : Problem or Instance
        Objective "latency", with gate weights. Its ``min_retention`` is only used by policies that know it.
    retentions : float array (n,), optional
        Floors on the mean kept gate weight of every block, 0 to 1, in any order. Default: an even grid
        from 0.5, or the least that a selection can keep, to 1, or the most.
    points : int
        Size of the default grid.
    policies : sequence of str
        Methods to mark, see `list_solvers`. What each of them keeps becomes one more floor, so that it is
        held against a bound, and a point, for exactly its retention.
    rel_gap : float
        Relative gap at which the solver may stop at a floor.
    time_limit : float, s, optional
        For each floor.
    threads : int
        Floors solved at the same time; without a time limit results do not depend on it.
    progress : callable, optional
        Called as ``progress(done, floors)`` after every floor.

    Returns
    -------
    Frontier

    Raises
    ------
    InputError
        If the objective is not latency, the latency is capped, only loads are known, a floor is not
        from 0 to 1, or none is within reach.
    UnknownNameError
        If there is no such policy.

    Notes
    -----
    Source: docs/mathematics.md, facts 6 and 9.

    Examples
    --------
    >>> import wdmoe_opt as wo
    >>> problem = wo.Problem(wo.load_instance("deepseek-v2-lite-intent", tokens=64, blocks=1))
    >>> front = wo.frontier(problem, [0.7, 0.8, 0.9, 0.8], policies=["topk"])
    >>> front.floors.tolist()
    [0.7, 0.8, 0.9, 1.0]
    >>> bool((front.lower_bound <= front.latency).all())
    True
    >>> float(front.lower_bound[1]) == front.bound_at(0.85) < front.latency_at(0.85)
    True
    """
    problem = _checked(problem)
    threads = whole("threads", threads, 1, 4096, "must be 1 to 4096")
    grid = _grid(problem, points) if retentions is None else _asked(retentions)
    marked = _policies(problem, policies)
    fit = [solution for solution in marked if not _conflict(solution)]
    floors = _with_policies(grid, fit)

    def at(floor: float) -> Solution:
        asked = problem.replace(min_retention=floor)
        return solve(asked, "certified", rel_gap=rel_gap, time_limit=time_limit)

    found: list[Solution] = []
    with ThreadPoolExecutor(threads) as pool:
        for solution in pool.map(at, floors.tolist()) if threads > 1 else map(at, floors.tolist()):
            found.append(solution)
            if progress is not None:
                progress(len(found), floors.size)
    return _assemble(problem, floors, found, marked, fit)


def mark_words(mark: Mark) -> str:
    """How much a policy leaves on the table, in words."""
    if mark.conflict:
        return f"not comparable, it breaks {mark.conflict}"
    if mark.lower_bound == 0 < mark.latency:
        part = "nothing known" if mark.saving < 5e-4 else f"at least {_percent(mark.saving)}"
    elif mark.saving < 5e-4:
        part = f"at most {_percent(mark.gap)}"
    elif mark.gap - mark.saving < 1e-3:
        part = _percent(mark.saving)
    else:
        part = f"{_percent(mark.saving)} to {_percent(mark.gap)}"
    return f"leaves {part} on the table"


def _percent(part: float) -> str:
    return f"{part:.1%}" if part >= 0.01 else f"{part:.2%}"


def _assemble(
    problem: Problem, floors: RealArray, found: list[Solution], marked: list[Solution], fit: list[Solution]
) -> Frontier:
    """Both curves from all that is known: every point and every bound, each wherever it holds."""
    reached = np.array([solution.has_point for solution in found])
    if not reached.any():
        raise InputError("retentions", f"no floor is within reach: {found[0].termination.detail}")
    points = [solution for solution in found if solution.has_point and not _conflict(solution)] + fit
    kept = np.array([_kept(point) for point in points])
    latency = np.array([point.latency for point in points])
    best = []
    for floor in floors[reached].tolist():
        able = np.where(kept >= floor * (1 - FEASIBILITY_TOLERANCE), latency, np.inf)
        if not np.isfinite(able).any():
            raise WdmoeError(f"method 'certified' returned no point that keeps the floor {floor!r}")
        best.append(points[int(able.argmin())])
    proved = [_proved(solution) for solution in found if solution.has_point]
    curve = Frontier(
        problem,
        _frozen(floors[reached]),
        _frozen(np.maximum.accumulate(proved)),
        tuple(best),
        (),
        _frozen(floors[~reached]),
    )
    marks = tuple(_mark(curve, solution) for solution in marked)
    return Frontier(problem, curve.floors, curve.lower_bound, curve.solutions, marks, curve.unreachable)


def _mark(curve: Frontier, solution: Solution) -> Mark:
    conflict = _conflict(solution)
    if conflict:
        return Mark(solution, np.nan, np.nan, conflict)
    retention = _kept(solution)
    # A policy that keeps more than any floor asks is at least a point of its own.
    known = min(curve.latency_at(retention), solution.latency)
    return Mark(solution, known, curve.bound_at(retention))


def _checked(problem: Problem | Instance) -> Problem:
    if isinstance(problem, Instance):
        problem = Problem(problem)
    elif not isinstance(problem, Problem):
        raise InputError("problem", f"must be a Problem or an Instance, got {type(problem).__name__}")
    if not problem.selectable:
        raise InputError(
            "problem", "has loads only, no gate weights: there is no retention to trade for latency"
        )
    if problem.objective != "latency":
        raise InputError("objective", "must be 'latency' for a frontier", value=problem.objective)
    if problem.max_latency is not None:
        rule = "must not be set for a frontier, which shows what every cap leaves possible"
        raise InputError("max_latency", rule, value=problem.max_latency)
    return problem


def _asked(retentions: ArrayLike) -> RealArray:
    """Floors as asked for, rising and each once."""
    floors = real_array("retentions", retentions, minimum=0)
    refuse_where("retentions", floors > 1, floors, "must be at most 1")
    if floors.ndim != 1 or floors.size == 0:
        raise InputError("retentions", f"must have shape (n,) with n >= 1; got {floors.shape}")
    return np.unique(floors)


def _grid(problem: Problem, points: int) -> RealArray:
    """Even floors over what selections can keep, from `LOWEST` up."""
    points = whole("points", points, 2, 10_000, "must be 2 to 10000")
    most = token_retention(problem, richest_keep(problem)).mean(axis=1).min()
    high = 1.0 if most >= 1 - FEASIBILITY_TOLERANCE else float(most)
    least = np.where(usable(problem), problem.shares, np.inf).min(axis=2)
    least = np.maximum(least, np.asarray(problem.min_token_retention)[:, None])
    low = min(max(LOWEST, float(least.mean(axis=1).min())), high)
    return np.unique(np.linspace(low, high, points))


def _policies(problem: Problem, policies: Sequence[str]) -> list[Solution]:
    try:
        if isinstance(policies, str):
            raise TypeError
        names = iter(policies)
    except TypeError:
        raise InputError("policies", "must be a sequence of method names", value=policies) from None
    found = []
    for name in names:
        found.append(solve(problem, name))
        if not found[-1].has_point:
            raise InputError("policies", f"found no point: {found[-1].termination.detail}", value=name)
    return found


def _with_policies(grid: RealArray, fit: list[Solution]) -> RealArray:
    """Add what policies keep, where no floor is as good as there already."""
    floors = grid
    for solution in fit:
        kept = min(_kept(solution), 1.0)
        if (np.abs(floors - kept) > FEASIBILITY_TOLERANCE * kept).all():
            floors = np.append(floors, kept)
    return np.sort(floors)


def _conflict(solution: Solution) -> str:
    """What a point breaks besides the mean floor, in words."""
    return "; ".join(str(v) for v in solution.violations if v.constraint != "min_retention")


def _kept(solution: Solution) -> float:
    return float(solution.block_retention.min())


def _proved(solution: Solution) -> float:
    """A certified bound, else 0: no latency is negative."""
    return max(solution.lower_bound, 0.0) if solution.bound_kind == "certified" else 0.0


def _part(value: float, below: float) -> float:
    """Distance over the value."""
    return 0.0 if value == below else 1.0 - below / value


def _row(kind: str, floor: float, solution: Solution, bound: float, gap: float) -> dict[str, Any]:
    return {
        "kind": kind,
        "method": solution.method,
        "floor": floor,
        "least_block_retention": _kept(solution),
        "mean_retention": solution.retention,
        "latency_s": solution.latency,
        "lower_bound_s": bound,
        "gap": gap,
    }


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:8.2f} ms"


def _frozen(values: Iterable[float] | RealArray) -> RealArray:
    array: RealArray = freeze(np.array(list(values), dtype=np.float64))
    return array
