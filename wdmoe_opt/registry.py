"""Solvers by name: what each can do, whether it is there, and how a third party adds one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from wdmoe_opt.errors import InputError, UnknownNameError, UnsupportedError
from wdmoe_opt.problem import Allocation, Dispatch, Objective, Problem
from wdmoe_opt.validation import RealArray

if TYPE_CHECKING:
    from wdmoe_opt.certificates.certificate import Certificate

BoundKind = Literal["none", "claimed", "certified"]
Reason = Literal["optimal", "heuristic", "feasible-at-limit", "infeasible", "no-solution"]

#: The readings of the weight-to-latency ratio as objectives.
WLR = ("wlr-token", "wlr-device", "wlr-block")

#: Entry point group under which installed packages announce `SolverInfo` objects.
ENTRY_POINT_GROUP = "wdmoe_opt.solvers"


@dataclass(frozen=True)
class Control:
    """What every solver is told besides the problem.

    Attributes
    ----------
    time_limit : float or None
        Wall-clock seconds.
    rel_gap : float
        Relative gap at which a solver with a bound may stop.
    seed : int
    threads : int
    """

    time_limit: float | None = None
    rel_gap: float = 1e-3
    seed: int = 0
    threads: int = 1


@dataclass(frozen=True)
class Termination:
    """Why a solver stopped; a default-made one is the worst case.

    Attributes
    ----------
    reason : {"optimal", "heuristic", "feasible-at-limit", "infeasible", "no-solution"}
        "heuristic" ends by its own rule without any claim about the optimum.
    limit : str
        Which limit stopped it ("time", "iterations", ...), or "".
    detail : str
        The solver's own words.
    """

    reason: Reason = "no-solution"
    limit: str = ""
    detail: str = ""


@dataclass(frozen=True, eq=False)
class Point:
    """What a solver returns; `solve` prices it, whatever the solver believes.

    A solver with nothing to return gives `Point.nothing`.

    Attributes
    ----------
    keep : bool array (blocks, tokens, m) or None where only loads are known
    bandwidth : float array (devices,) or (blocks, devices), Hz, or None on a measured link
    lower_bound : float
        On the objective's best value, if ``bound_kind`` is not "none": from below where it is
        minimised, from above where it is maximised.
    kkt_residual : float
        Relative gap of the bandwidth for the selection, NaN if not optimised.
    trace : tuple of dict
        One record per step, for plots.
    certificate : Certificate, optional
        Prices that prove a bound. `solve` recomputes it: what it proves, not what the solver believes,
        becomes the solution's bound, and only then is a bound called "certified".
    """

    keep: NDArray[np.bool_] | None
    bandwidth: RealArray | None
    termination: Termination = field(default_factory=Termination)
    lower_bound: float = float("-inf")
    bound_kind: BoundKind = "none"
    kkt_residual: float = float("nan")
    trace: tuple[Mapping[str, Any], ...] = ()
    certificate: Certificate | None = None

    @classmethod
    def nothing(
        cls, reason: Literal["infeasible", "no-solution"], limit: str = "", detail: str = ""
    ) -> Point:
        """No point: none exists ("infeasible"), or none was found ("no-solution")."""
        return cls(None, None, Termination(reason, limit, detail))

    @property
    def empty(self) -> bool:
        """Whether there is nothing to price."""
        absent = self.keep is None and self.bandwidth is None
        return absent and self.termination.reason in ("infeasible", "no-solution")


SolverFunction = Callable[..., Point]


@dataclass(frozen=True)
class Availability:
    """Whether a solver can run here; truthy if so, with the reason if not."""

    available: bool
    reason: str = ""

    def __bool__(self) -> bool:
        return self.available


@dataclass(frozen=True)
class SolverInfo:
    """A solver's name and declared abilities.

    Parameters
    ----------
    name, summary : str
    target : str or callable
        ``"module:function"``, loaded on first use, or the function itself. It is called as
        ``function(problem, control, **options)`` and returns a `Point`.
    options_class : str or type, optional
        A dataclass of options, ``"module:Class"`` or itself; the function is then called as
        ``function(problem, control, options_class(**options))``.
    needs_tokens : bool
        Whether it needs gate weights (refuses instances with loads only).
    honours_floors : bool
        Whether its points keep the retention floors, where that is possible.
    bound : {"none", "claimed", "certified"}
    objectives, allocations, dispatches : tuple of str
        What it accepts.
    requires : tuple of str
        Modules that must be importable.
    extra : str
        The extra that installs them.
    capped : tuple of str
        Readings of the weight-to-latency ratio with which its points keep ``max_latency``; if it honours
        floors, it refuses a cap with the others. Least latency needs no such care: where it is above the
        cap, nothing is below.
    activation : bool
        Whether activation times and link delays are taken into account.
    restriction : str or callable, optional
        ``"module:function"`` or itself, called with the problem: in words why this problem is out of
        reach for a reason the other fields cannot express, "" if it is not. Must be cheap.
    probe : str or callable, optional
        ``"module:function"`` or itself: in words what is missing beyond ``requires``, "" if nothing.
    """

    name: str
    summary: str
    target: str | SolverFunction
    options_class: str | type | None = None
    needs_tokens: bool = True
    honours_floors: bool = False
    bound: BoundKind = "none"
    objectives: tuple[str, ...] = get_args(Objective)
    allocations: tuple[str, ...] = get_args(Allocation)
    dispatches: tuple[str, ...] = get_args(Dispatch)
    requires: tuple[str, ...] = ()
    extra: str = ""
    capped: tuple[str, ...] = ()
    activation: bool = True
    restriction: str | Callable[[Problem], str] | None = None
    probe: str | Callable[[], str] | None = None

    @cached_property
    def function(self) -> SolverFunction:
        """The solver itself."""
        function: SolverFunction = _load(self.target)
        return function

    @cached_property
    def options(self) -> dict[str, Any]:
        """Option names and defaults, read from the options' dataclass or the solver's signature."""
        if self.options_class is not None:
            return {f.name: f.default for f in fields(_load(self.options_class))}
        parameters = list(inspect.signature(self.function).parameters.values())[2:]
        return {p.name: p.default for p in parameters if p.kind is not p.VAR_KEYWORD}

    @cached_property
    def takes_any_option(self) -> bool:
        """Whether the solver's signature ends in ``**options``, which no list can check."""
        parameters = inspect.signature(self.function).parameters.values()
        return self.options_class is None and any(p.kind is p.VAR_KEYWORD for p in parameters)

    def run(self, problem: Problem, control: Control, options: Mapping[str, Any]) -> Point:
        """Call the solver, without any checks."""
        if self.options_class is not None:
            return self.function(problem, control, _load(self.options_class)(**options))
        return self.function(problem, control, **options)

    def availability(self) -> Availability:
        """Whether the modules it needs are installed."""
        missing = [name for name in self.requires if not _importable(name)]
        hint = f"; install wdmoe_opt[{self.extra}]" if self.extra else ""
        if missing:
            return Availability(False, f"{', '.join(missing)} not installed{hint}")
        lacking = "" if self.probe is None else str(_load(self.probe)())
        return Availability(not lacking, lacking)

    def refusal(self, problem: Problem) -> str:
        """Why this solver does not take the problem, in words; "" if it does."""
        if self.needs_tokens and not problem.selectable:
            return "it selects experts by gate weight, and the instance has loads only"
        asked = {
            "objective": (problem.objective, self.objectives),
            "allocation": (problem.allocation, self.allocations),
            "dispatch": (problem.dispatch, self.dispatches),
        }
        for what, (value, able) in asked.items():
            if value not in able:
                return f"it does not do {what} {value!r}"
        ratio = problem.objective in WLR and problem.objective not in self.capped
        if ratio and self.honours_floors and problem.max_latency is not None:
            return f"it does not keep max_latency with objective {problem.objective!r}"
        if not self.activation and (problem.tables.activation.any() or problem.tables.link_delay.any()):
            return "it does not take activation times or link delays into account"
        return "" if self.restriction is None else str(_load(self.restriction)(problem))


def _importable(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except (ImportError, ValueError):  # a parent package is missing, or was stubbed out
        return False


def _load(target: Any) -> Any:
    """An object itself, or what "module:name" stands for."""
    if not isinstance(target, str):
        return target
    module, _, name = target.partition(":")
    return getattr(import_module(module), name)


#: Arguments of `solve` that every solver is given.
COMMON_ARGUMENTS = tuple(f.name for f in fields(Control))
_SOLVERS: dict[str, SolverInfo] = {}
_entry_points_read = False


def register_solver(
    name: str, target: str | SolverFunction, *, summary: str, replace: bool = False, **abilities: Any
) -> SolverInfo:
    """Add a solver to `solve`, the command line and the benchmarks.

    Parameters
    ----------
    name : str
        Lower-case name; compared as it is.
    target, summary, **abilities
        See `SolverInfo`.
    replace : bool
        Whether an existing solver of that name may be replaced.

    Raises
    ------
    InputError
        If the name is taken or not lower case.
    """
    return add_solver(SolverInfo(name, summary, target, **abilities), replace=replace)


def add_solver(info: SolverInfo, *, replace: bool = False) -> SolverInfo:
    """Register a ready-made `SolverInfo`; see `register_solver`. The same one twice is one."""
    if not isinstance(info.name, str) or not info.name or info.name != info.name.strip().lower():
        raise InputError("name", "must be non-empty, lower case, without outer blanks", value=info.name)
    present = _SOLVERS.get(info.name)
    # A module that registers on import and is an entry point as well announces the same solver twice.
    if info.name == "auto" or (present not in (None, info) and not replace):
        raise InputError("name", "is taken by another solver", value=info.name)
    _SOLVERS[info.name] = info
    return info


def list_solvers() -> tuple[SolverInfo, ...]:
    """Every registered solver, entry points of installed packages included, by name."""
    _read_entry_points()
    return tuple(_SOLVERS[name] for name in sorted(_SOLVERS))


def find_solver(name: str) -> SolverInfo:
    """Return the solver of that name.

    Raises
    ------
    UnknownNameError
        If there is none.
    """
    if not isinstance(name, str):
        raise UnknownNameError("method", name, [*_SOLVERS, "auto"])
    if name not in _SOLVERS:
        _read_entry_points()
    if name not in _SOLVERS:
        raise UnknownNameError("method", name, [*_SOLVERS, "auto"])
    return _SOLVERS[name]


def check_request(info: SolverInfo, problem: Problem, options: Iterable[str]) -> None:
    """Raise unless the solver is there, takes the problem, and knows the options.

    Raises
    ------
    UnsupportedError
        Naming the methods that could.
    UnknownNameError
        If an option does not exist.
    """
    reason = info.refusal(problem)
    if reason:
        able = [s.name for s in list_solvers() if not s.refusal(problem) and s.availability()]
        raise UnsupportedError(
            f"method {info.name!r} cannot be used: {reason}; use {', '.join(able) or 'none'}"
        )
    available = info.availability()
    if not available:
        raise UnsupportedError(f"method {info.name!r} is not available: {available.reason}")
    for name in options:
        if name not in info.options and not info.takes_any_option:
            raise UnknownNameError(f"option of {info.name!r}", name, {*info.options, *COMMON_ARGUMENTS})


def _read_entry_points() -> None:
    global _entry_points_read
    if _entry_points_read:
        return
    _entry_points_read = True
    for point in entry_points(group=ENTRY_POINT_GROUP):
        try:
            info = point.load()
        except Exception as error:  # whatever an installed package raises when imported
            rule = f"cannot be imported: {type(error).__name__}: {error}"
            raise InputError(f"entry point {point.name}", rule) from error
        if not isinstance(info, SolverInfo):
            raise InputError(f"entry point {point.name}", "must be a SolverInfo", value=type(info).__name__)
        add_solver(info)


for _info in (
    SolverInfo(
        "topk-uniform",
        "plain top-k, equal bandwidth: the papers' baseline",
        "wdmoe_opt.solvers.topk:top_k_uniform",
        needs_tokens=False,
    ),
    SolverInfo(
        "topk",
        "plain top-k, exactly optimal bandwidth",
        "wdmoe_opt.solvers.topk:top_k",
        needs_tokens=False,
    ),
    SolverInfo(
        "wdmoe-selection",
        "Algorithm 1 of WDMoE at equal bandwidth (paper B)",
        "wdmoe_opt.solvers.wdmoe:wdmoe_selection",
        options_class="wdmoe_opt.solvers.wdmoe:Algorithm1",
    ),
    SolverInfo(
        "wdmoe",
        "Algorithm 1 of WDMoE, then exactly optimal bandwidth (paper A)",
        "wdmoe_opt.solvers.wdmoe:wdmoe",
        options_class="wdmoe_opt.solvers.wdmoe:Wdmoe",
    ),
    SolverInfo(
        "wdmoe-testbed",
        "Algorithm 2 of WDMoE: drops on the device predicted to finish last (paper A's testbed)",
        "wdmoe_opt.solvers.testbed:wdmoe_testbed",
        options_class="wdmoe_opt.solvers.testbed:Algorithm2",
    ),
    SolverInfo(
        "greedy",
        "price-directed drops, re-routes and expert emptying from plain top-k",
        "wdmoe_opt.solvers.greedy:greedy",
        honours_floors=True,
        objectives=("latency", *WLR),
    ),
    SolverInfo(
        "alternating",
        "selection at given bandwidth and exact bandwidth in turn, several starts, polished",
        "wdmoe_opt.solvers.alternating:alternating",
        honours_floors=True,
        objectives=("latency", *WLR),
    ),
    SolverInfo(
        "local-search",
        "trades, swaps and expert emptying after any solver",
        "wdmoe_opt.solvers.local_search:local_search",
        honours_floors=True,
        objectives=("latency", *WLR),
    ),
    SolverInfo(
        "certified",
        "near-optimal selection and bandwidth with a checked bound, by a dual Newton method",
        "wdmoe_opt.solvers.certified:certified",
        needs_tokens=False,
        honours_floors=True,
        bound="certified",
        objectives=("latency", *WLR),
        restriction="wdmoe_opt.solvers.certified:restriction",
    ),
    SolverInfo(
        "exact",
        "branch and bound over the relaxations of certified, with a checked bound at any time",
        "wdmoe_opt.solvers.exact:exact",
        needs_tokens=False,
        honours_floors=True,
        bound="certified",
        objectives=("latency",),
    ),
    SolverInfo(
        "enumerate",
        "exact oracle for tiny instances: every distinct load vector",
        "wdmoe_opt.solvers.enumerate:enumerate_loads",
        honours_floors=True,
        bound="claimed",
        restriction="wdmoe_opt.solvers.enumerate_ratio:restriction",
    ),
    SolverInfo(
        "slsqp",
        "plain top-k, bandwidth by SciPy's SLSQP: the textbook route",
        "wdmoe_opt.solvers.slsqp:slsqp",
        needs_tokens=False,
        allocations=("shared", "per-block"),
    ),
    SolverInfo(
        "convex",
        "the convex relaxation by CVXPY and Clarabel, rounded and repaired",
        "wdmoe_opt.solvers.convex:convex",
        honours_floors=True,
        bound="claimed",
        objectives=("latency",),
        allocations=("shared", "per-block"),
        requires=("cvxpy", "clarabel"),
        extra="models",
        restriction="wdmoe_opt.solvers.convex:restriction",
    ),
    SolverInfo(
        "milp",
        "mixed-integer linear programs by HiGHS, with tangents to the link time where bandwidth is free",
        "wdmoe_opt.solvers.milp:milp",
        honours_floors=True,
        bound="claimed",
        objectives=("latency", "retention"),
        requires=("pyomo", "highspy"),
        extra="models",
    ),
    SolverInfo(
        "minlp",
        "the joint mixed-integer nonlinear program by an installed global solver (SCIP, Gurobi, ...)",
        "wdmoe_opt.solvers.minlp:minlp",
        honours_floors=True,
        bound="claimed",
        capped=WLR,
        requires=("pyomo",),
        extra="models",
        probe="wdmoe_opt.solvers.minlp:probe",
    ),
):
    add_solver(_info)
