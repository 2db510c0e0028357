"""MAiNGO: global optimisation by McCormick relaxations, which favour few variables: the reduced program."""

from __future__ import annotations

from typing import Any

import numpy as np

from wdmoe_opt.benchmarks.peers.reduced import ReducedProgram
from wdmoe_opt.problem import Problem
from wdmoe_opt.registry import Control, Point
from wdmoe_opt.solvers.deadline import Deadline
from wdmoe_opt.solvers.reference import conclude, solve_apart


def maingo(problem: Problem, control: Control) -> Point:
    """Solve the joint program globally; bound claimed."""
    return solve_apart(problem, control, _solve)


def _solve(problem: Problem, control: Control) -> Point:
    import maingopy as mp

    deadline = Deadline.of(control)
    program = ReducedProgram(problem)
    model = _model(program)  # a name of its own: MAiNGO does not keep it alive
    engine = mp.MAiNGO(model)
    engine.set_option("loggingDestination", mp.LOGGING_NONE)
    engine.set_option("writeResultFile", False)
    engine.set_option("BAB_verbosity", mp.VERB_NONE)
    engine.set_option("LBP_verbosity", mp.VERB_NONE)
    engine.set_option("UBP_verbosity", mp.VERB_NONE)
    engine.set_option("epsilonR", max(control.rel_gap / 2, 1e-9))
    engine.set_option("epsilonA", 1e-9)
    engine.set_option("deltaIneq", 1e-9)
    if control.time_limit is not None:
        engine.set_option("maxTime", max(control.time_limit, 1e-3))
    engine.solve()
    status = engine.get_status()
    bound = program.bound(float(engine.get_final_LBD()))
    late = "time" if deadline.left == 0.0 else ""
    detail = f"MAiNGO: {str(status).rpartition('.')[2].lower()}"
    if status not in (mp.GLOBALLY_OPTIMAL, mp.FEASIBLE_POINT):
        return conclude(problem, None, control, limit=late, detail=detail)
    keep = program.keep(np.array(engine.get_solution_point()))
    return conclude(problem, keep, control, bound=bound, limit=late, detail=detail)


def _model(program: ReducedProgram) -> Any:
    import maingopy as mp

    bounds = program.variables

    class Model(mp.MAiNGOmodel):  # type: ignore[misc]
        """The reduced program in MAiNGO's interface."""

        def get_variables(self) -> list[Any]:
            """Variables with their bounds."""
            return [
                mp.OptimizationVariable(
                    mp.Bounds(low, high), mp.VT_BINARY if whole else mp.VT_CONTINUOUS, f"x{n}"
                )
                for n, (low, high, whole) in enumerate(
                    zip(bounds.low, bounds.high, bounds.binary, strict=True)
                )
            ]

        def get_initial_point(self) -> list[float]:
            """Plain top-k at equal shares."""
            return [float(value) for value in bounds.start]

        def evaluate(self, x: list[Any]) -> Any:
            """Objective and inequalities."""
            objective, rules = program.build(x, mp.log)
            found = mp.EvaluationContainer()
            found.objective = objective
            found.inequalities = rules
            return found

    return Model()
