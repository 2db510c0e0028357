"""Expert selection and bandwidth allocation for mixture-of-experts models on wireless devices."""

from __future__ import annotations

from importlib import import_module as _import_module
from importlib.util import find_spec as _find_spec
from pathlib import Path as _Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wdmoe_opt.bandwidth import BandwidthAllocation, allocate_bandwidth
    from wdmoe_opt.certificates.certificate import Certificate
    from wdmoe_opt.certificates.certify import certify, gap
    from wdmoe_opt.errors import (
        InputError,
        InstanceFileError,
        UnknownNameError,
        UnsupportedError,
        WdmoeError,
    )
    from wdmoe_opt.instance import Instance
    from wdmoe_opt.library import list_instances, load_instance
    from wdmoe_opt.many import solve_many
    from wdmoe_opt.metrics import WLR_READINGS, Evaluation, Violation, evaluate
    from wdmoe_opt.pareto import Frontier, frontier
    from wdmoe_opt.problem import FEASIBILITY_TOLERANCE, Problem
    from wdmoe_opt.registry import (
        Control,
        Point,
        SolverInfo,
        Termination,
        list_solvers,
        register_solver,
    )
    from wdmoe_opt.session import Session, SessionResult
    from wdmoe_opt.solution import Solution
    from wdmoe_opt.solving import solve

__version__ = "0.1.0"

__all__ = [
    "FEASIBILITY_TOLERANCE",
    "WLR_READINGS",
    "BandwidthAllocation",
    "Certificate",
    "Control",
    "Evaluation",
    "Frontier",
    "InputError",
    "Instance",
    "InstanceFileError",
    "Point",
    "Problem",
    "Session",
    "SessionResult",
    "Solution",
    "SolverInfo",
    "Termination",
    "UnknownNameError",
    "UnsupportedError",
    "Violation",
    "WdmoeError",
    "allocate_bandwidth",
    "certify",
    "evaluate",
    "frontier",
    "gap",
    "list_instances",
    "list_solvers",
    "load_instance",
    "register_solver",
    "solve",
    "solve_many",
]

#: Where each public name lives. They are imported on first use: loading Numba takes most of the import
#: time, and neither a help text nor a Ctrl-C should wait for it.
_HOMES = {
    "bandwidth": ("BandwidthAllocation", "allocate_bandwidth"),
    "certificates.certificate": ("Certificate",),
    "certificates.certify": ("certify", "gap"),
    "errors": ("InputError", "InstanceFileError", "UnknownNameError", "UnsupportedError", "WdmoeError"),
    "instance": ("Instance",),
    "library": ("list_instances", "load_instance"),
    "many": ("solve_many",),
    "metrics": ("WLR_READINGS", "Evaluation", "Violation", "evaluate"),
    "pareto": ("Frontier", "frontier"),
    "problem": ("FEASIBILITY_TOLERANCE", "Problem"),
    "registry": ("Control", "Point", "SolverInfo", "Termination", "list_solvers", "register_solver"),
    "session": ("Session", "SessionResult"),
    "solution": ("Solution",),
    "solving": ("solve",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        value = getattr(_import_module(f"{__name__}.{_HOME_OF[name]}"), name)
        globals()[name] = value
        return value
    if not name.startswith("_") and _find_spec(f"{__name__}.{name}") is not None:
        return _import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


_here = _Path(__file__).parent
if not (_here / "instances").is_dir() and (_here.parent / "pyproject.toml").is_file():
    # A checkout: the sibling rooms stand beside this folder, not inside it as in a wheel.
    __path__.append(str(_here.parent))
