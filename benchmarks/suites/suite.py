"""What a suite is: cases (problems to solve) and contestants (solver configurations to compare)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["ours", "baseline", "peer", "plugin"]
Job = Literal["joint", "bandwidth"]


@dataclass(frozen=True)
class Case:
    """One problem of a suite; with the seed it says everything needed to build the problem.

    Attributes
    ----------
    name : str
        Unique in the suite.
    group : str
        What its rows are tabulated under: a family, or the axis that varies.
    instance : str
        Name or file as in `wdmoe_opt.load_instance`, or ""; then ``generator``.
    selection : mapping
        Fields of a scenario to change, see `instances.scenario.Scenario`.
    generator : str
        A name of `generators.GENERATORS`, or "".
    parameters : mapping
        Of the generator.
    request : mapping
        Fields of the `Problem` besides the instance.
    axis, axis_value : str, float
        What varies over the cases of a group, and its value here; "" and NaN if nothing does.
    task : {"joint", "bandwidth"}
        "bandwidth": the selection is given, or plain top-k; only contestants of that task take part.
    """

    name: str
    group: str
    instance: str = ""
    selection: Mapping[str, Any] = field(default_factory=dict)
    generator: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    request: Mapping[str, Any] = field(default_factory=dict)
    axis: str = ""
    axis_value: float = float("nan")
    task: Job = "joint"


@dataclass(frozen=True)
class Contestant:
    """One solver configuration of a suite.

    Attributes
    ----------
    label : str
        As in the tables; unique in the suite.
    method : str
        A registered solver or a peer, see `peers.find_solver`.
    options : mapping
        The solver's own.
    kind : {"ours", "baseline", "peer", "plugin"}
    time_limit : float, s
        Told to the solver; `kill_after` is what the runner enforces.
    rel_gap : float
        Relative gap at which a solver with a bound may stop.
    kill_after : float, s
        When the runner ends the worker process, start-up and compilation included; repeats get as much
        again.
    tasks : tuple of str
        Which tasks it takes part in.
    groups : tuple of str
        Only in these groups; empty is all.
    most_pairs : float
        Only in problems with at most so many (token, candidate) pairs times blocks.
    at_retention_of : str
        Method whose block retentions become this contestant's floors, "" for the case's own.
    """

    label: str
    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    kind: Kind = "ours"
    time_limit: float = 60.0
    rel_gap: float = 1e-3
    kill_after: float = 420.0
    tasks: tuple[str, ...] = ("joint",)
    groups: tuple[str, ...] = ()
    most_pairs: float = float("inf")
    at_retention_of: str = ""

    def takes(self, case: Case) -> bool:
        """Whether it takes part in a case, as far as that can be said without building the problem."""
        return case.task in self.tasks and (not self.groups or case.group in self.groups)


@dataclass(frozen=True)
class Suite:
    """Cases and contestants under a name.

    Attributes
    ----------
    name, summary : str
    cases : tuple of Case
    contestants : tuple of Contestant
    seeds : int
        How many seeds, from 0, unless the user says otherwise.
    workers : int
        How many processes at the same time, unless the user says otherwise: 1 where times matter.
    """

    name: str
    summary: str
    cases: tuple[Case, ...]
    contestants: tuple[Contestant, ...]
    seeds: int = 1
    workers: int = 1

    @property
    def pairings(self) -> tuple[tuple[Case, Contestant], ...]:
        """Every case with every contestant that takes part, case by case."""
        return tuple((case, c) for case in self.cases for c in self.contestants if c.takes(case))
