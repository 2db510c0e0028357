"""Expert selection and bandwidth allocation for mixture-of-experts models on wireless devices."""

from __future__ import annotations

from pathlib import Path as _Path

from wdmoe_opt.bandwidth import BandwidthAllocation, allocate_bandwidth
from wdmoe_opt.errors import (
    InputError,
    InstanceFileError,
    UnknownNameError,
    UnsupportedError,
    WdmoeError,
)
from wdmoe_opt.instance import Instance
from wdmoe_opt.library import list_instances, load_instance
from wdmoe_opt.metrics import WLR_READINGS, Evaluation, Violation, evaluate
from wdmoe_opt.problem import FEASIBILITY_TOLERANCE, Problem
from wdmoe_opt.registry import (
    Control,
    Point,
    SolverInfo,
    Termination,
    list_solvers,
    register_solver,
)
from wdmoe_opt.solution import Solution
from wdmoe_opt.solving import solve

__version__ = "0.1.0"

__all__ = [
    "FEASIBILITY_TOLERANCE",
    "WLR_READINGS",
    "BandwidthAllocation",
    "Control",
    "Evaluation",
    "InputError",
    "Instance",
    "InstanceFileError",
    "Point",
    "Problem",
    "Solution",
    "SolverInfo",
    "Termination",
    "UnknownNameError",
    "UnsupportedError",
    "Violation",
    "WdmoeError",
    "allocate_bandwidth",
    "evaluate",
    "list_instances",
    "list_solvers",
    "load_instance",
    "register_solver",
    "solve",
]

_here = _Path(__file__).parent
if not (_here / "instances").is_dir() and (_here.parent / "pyproject.toml").is_file():
    # A checkout: the sibling rooms stand beside this folder, not inside it as in a wheel.
    __path__.append(str(_here.parent))
