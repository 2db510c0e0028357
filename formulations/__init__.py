"""Formal models of the allocation problems, for CVXPY and Pyomo: each file states and builds one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wdmoe_opt.errors import UnsupportedError

if TYPE_CHECKING:
    from wdmoe_opt.formulations.bandwidth import BandwidthModel
    from wdmoe_opt.formulations.joint_latency import JointLatencyModel
    from wdmoe_opt.formulations.pyomo_parts import TimedModel
    from wdmoe_opt.problem import Problem


def cvxpy_model(problem: Problem) -> JointLatencyModel | BandwidthModel:
    """The convex model of a problem, see `wdmoe_opt.Problem.to_cvxpy`."""
    if problem.selectable:
        from wdmoe_opt.formulations.joint_latency import JointLatencyModel

        return JointLatencyModel(problem)
    from wdmoe_opt.formulations.bandwidth import BandwidthModel

    return BandwidthModel(problem)


def pyomo_model(problem: Problem) -> TimedModel:
    """The integer model of a problem, see `wdmoe_opt.Problem.to_pyomo`."""
    if not problem.selectable:
        raise UnsupportedError("there is nothing to select: the instance has loads only; use to_cvxpy()")
    if problem.objective == "retention":
        from wdmoe_opt.formulations.retention import RetentionModel

        return RetentionModel(problem)
    if problem.objective != "latency":
        from wdmoe_opt.formulations.joint_wlr import WlrModel

        return WlrModel(problem)
    if problem.allocation == "fixed":
        from wdmoe_opt.formulations.selection import SelectionModel

        return SelectionModel(problem)
    from wdmoe_opt.formulations.minlp import JointModel

    return JointModel(problem)
