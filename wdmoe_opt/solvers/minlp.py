"""The literature's mixed-integer nonlinear program, handed to whichever global solver is installed."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

from wdmoe_opt.errors import UnknownNameError
from wdmoe_opt.problem import Problem
from wdmoe_opt.registry import Control, Point
from wdmoe_opt.solvers.deadline import Deadline
from wdmoe_opt.solvers.reference import conclude, one_at_a_time, solve_apart


@dataclass(frozen=True)
class Outcome:
    """What a backend says of a model; its values are in the model's variables if ``found``.

    Attributes
    ----------
    found : bool
    bound : float or None
        On the model's objective.
    status : str
        The backend's own words.
    """

    found: bool
    bound: float | None
    status: str


@dataclass(frozen=True)
class Backend:
    """A solver of nonconvex mixed-integer programs that Pyomo can drive.

    Parameters
    ----------
    name : str
        As in the option ``backend``.
    missing : callable -> str
        What it lacks here, "" if nothing.
    run : callable (model, time_limit, rel_gap, threads, seed) -> Outcome
    """

    name: str
    missing: Callable[[], str]
    run: Callable[..., Outcome]

    def solve(
        self, model: Any, *, time_limit: float | None, rel_gap: float, threads: int = 1, seed: int = 0
    ) -> Outcome:
        """Solve a Pyomo model; its variables hold the point if one was found."""
        return self.run(model, time_limit, rel_gap, threads, seed)


def backends() -> list[Backend]:
    """Backends installed here, in order of preference."""
    return [b for b in BACKENDS if not b.missing()]


def probe() -> str:
    """Why no backend can be used, "" if one can."""
    if backends():
        return ""
    return "no global solver found: " + "; ".join(f"{b.name}: {b.missing()}" for b in BACKENDS)


def minlp(problem: Problem, control: Control, backend: str = "any") -> Point:
    """Solve the joint problem globally.

    Parameters
    ----------
    problem : Problem
        All objectives, allocations and dispatch rules, with tokens. Practical only for tiny instances.
    control : Control
    backend : {"any", "scip", "gurobi", "maingo", "bonmin"}
        Which solver; "any" takes the first installed. The answer says which it was.

    Returns
    -------
    Point
        Bound claimed, except by Bonmin, whose bound is none on a nonconvex model.

    Raises
    ------
    UnknownNameError
        If the backend is not installed.
    """
    here = {b.name: b for b in backends()}
    if backend != "any" and backend not in here:
        raise UnknownNameError("backend", backend, [*here, "any"])
    chosen = here[backend] if backend != "any" else next(iter(here.values()))
    return solve_apart(problem, control, one_at_a_time(lambda part, limits: _solve(part, limits, chosen)))


def _solve(problem: Problem, control: Control, backend: Backend) -> Point:
    from wdmoe_opt.formulations import pyomo_model

    deadline = Deadline.of(control)
    model = pyomo_model(problem)
    gap = max(control.rel_gap / 2, 1e-9)  # half for the backend, half for its tolerances
    outcome = backend.solve(
        model.model, time_limit=control.time_limit, rel_gap=gap, threads=control.threads, seed=control.seed
    )
    if outcome.status.endswith("interrupted"):
        # The backend heard Ctrl-C in Python's place.
        raise KeyboardInterrupt
    unit = model.data.time_unit
    scale = {"latency": unit, "retention": 1.0}.get(problem.objective, 1.0 / unit)
    bound = None if outcome.bound is None else outcome.bound * scale
    detail = f"{backend.name}: {outcome.status}"
    if not outcome.found:
        return conclude(problem, None, control, limit="time" if deadline.left == 0.0 else "", detail=detail)
    point = model.extract()
    assert point.keep is not None
    return conclude(
        problem, np.asarray(point.keep) > 0.5, control, bandwidth=point.bandwidth, bound=bound, detail=detail
    )


# ---------------------------------------------------------------------- backends


def _direct(name: str, options: Callable[[float, int, int], dict[str, Any]]) -> Callable[..., Outcome]:
    """Run one of Pyomo's direct interfaces."""

    def run(model: Any, time_limit: float | None, rel_gap: float, threads: int, seed: int) -> Outcome:
        from pyomo.contrib.solver.common.factory import SolverFactory

        result = SolverFactory(name).solve(
            model,
            time_limit=time_limit,
            load_solutions=False,
            raise_exception_on_nonoptimal_result=False,
            solver_options=options(rel_gap, threads, seed),
        )
        found = result.incumbent_objective is not None
        if found:
            result.solution_loader.load_vars()
        status = str(result.termination_condition).rpartition(".")[2]
        return Outcome(found, _finite(result.objective_bound), status)

    return run


def _scip_options(rel_gap: float, threads: int, seed: int) -> dict[str, Any]:
    # Silent: SCIP holds the interpreter's lock, so that a log longer than the pipe in which Pyomo catches
    # it would stop both for good.
    return {
        "display/verblevel": 0,
        "limits/gap": rel_gap,
        "numerics/feastol": 1e-9,
        "randomization/randomseedshift": seed % 2**31,
    }


def _gurobi_options(rel_gap: float, threads: int, seed: int) -> dict[str, Any]:
    return {"MIPGap": rel_gap, "FeasibilityTol": 1e-9, "Threads": threads, "Seed": seed % 2_000_000_000}


def _maingo(model: Any, time_limit: float | None, rel_gap: float, threads: int, seed: int) -> Outcome:
    from maingopy import MAiNGOException
    from pyomo.contrib.appsi.solvers.maingo import MAiNGO

    _spell_out(model)
    solver = MAiNGO()
    solver.config.load_solution = False
    solver.config.mip_gap = rel_gap
    solver.config.time_limit = time_limit
    solver.maingo_options = {"writeResultFile": False}
    try:
        result = solver.solve(model)
    except MAiNGOException as error:
        # Free bandwidth: it finds the rates' logarithms undefined somewhere, and gives up.
        return Outcome(False, None, f"failed: {' '.join(str(error).split())}")
    found = result.best_feasible_objective is not None
    if found:
        result.solution_loader.load_vars()
    return Outcome(found, _finite(result.best_objective_bound), str(result.termination_condition))


def _spell_out(model: Any) -> None:
    """Replace named expressions by what they stand for: Pyomo's interface to MAiNGO does not know them."""
    import pyomo.environ as pyo
    from pyomo.core.expr.visitor import replace_expressions

    for part in model.component_data_objects((pyo.Constraint, pyo.Objective), active=True):
        part.set_value(replace_expressions(part.expr, {}, remove_named_expressions=True))


def _bonmin(model: Any, time_limit: float | None, rel_gap: float, threads: int, seed: int) -> Outcome:
    import pyomo.environ as pyo

    solver = pyo.SolverFactory("bonmin")
    solver.options["bonmin.allowable_fraction_gap"] = rel_gap
    if time_limit is not None:
        solver.options["bonmin.time_limit"] = time_limit
    result = solver.solve(model, load_solutions=False)
    found = len(result.solution) > 0
    if found:
        model.solutions.load_from(result)
    return Outcome(found, None, str(result.solver.termination_condition))


def _finite(bound: float | None) -> float | None:
    return None if bound is None or not math.isfinite(bound) else float(bound)


def _module(name: str, extra: str = "") -> Callable[[], str]:
    hint = f" (install wdmoe_opt[{extra}])" if extra else ""
    return lambda: "" if find_spec(name) is not None else f"module {name} not installed{hint}"


def _program(name: str) -> Callable[[], str]:
    return lambda: "" if shutil.which(name) else f"program {name} not on the path"


BACKENDS = (
    Backend("scip", _module("pyscipopt", "scip"), _direct("scip_direct", _scip_options)),
    Backend("gurobi", _module("gurobipy"), _direct("gurobi_direct_minlp", _gurobi_options)),
    Backend("maingo", _module("maingopy"), _maingo),
    Backend("bonmin", _program("bonmin"), _bonmin),
)
