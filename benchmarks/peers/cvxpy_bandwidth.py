"""P-BW by CVXPY, the way a user in a loop would have it: built once, then new numbers in the parameters.

The model of the last problem is kept: a problem of the same structure only updates it. Both solvers start
cold every time, as repeats of a benchmark ask the same question again.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from wdmoe_opt.errors import InputError
from wdmoe_opt.problem import Problem
from wdmoe_opt.registry import Control, Point, Termination
from wdmoe_opt.validation import RealArray

#: Accuracy asked of SCS, absolute and relative, on numbers near 1; its default of 1e-4 is too coarse here.
SCS_ACCURACY = 1e-6
#: What a user would try when Clarabel reports insufficient progress, as it does on 32 blocks that share
#: bandwidth: its own scaling at a coarser accuracy, then shorter steps.
MILDER: tuple[dict[str, Any], ...] = (
    {"solver": "CLARABEL", "tol_gap_abs": 1e-6, "tol_gap_rel": 1e-6, "tol_feas": 1e-6},
    {"solver": "CLARABEL", "equilibrate_enable": False, "max_step_fraction": 0.9},
)
_kept: dict[str, Any] = {}


def clarabel(problem: Problem, control: Control) -> Point:
    """Plain top-k or given loads, bandwidth by Clarabel; where it fails, again with milder settings."""
    from wdmoe_opt.formulations.common import CLARABEL

    limit = {} if control.time_limit is None else {"time_limit": max(control.time_limit, 1e-3)}
    return _solve(problem, "clarabel", *({**settings, **limit} for settings in (CLARABEL, *MILDER)))


def scs(problem: Problem, control: Control, accuracy: float = SCS_ACCURACY) -> Point:
    """Plain top-k or given loads, bandwidth by SCS."""
    return _solve(problem, "scs", scs_options(control, accuracy))


def scs_options(control: Control, accuracy: float) -> dict[str, Any]:
    """Keywords of `cvxpy.Problem.solve` for SCS."""
    limit = {} if control.time_limit is None else {"time_limit_secs": max(control.time_limit, 1e-3)}
    return {
        "solver": "SCS",
        "eps_abs": accuracy,
        "eps_rel": accuracy,
        "max_iters": 1_000_000,
        "warm_start": False,
        **limit,
    }


def solve_quietly(model: Any, options: dict[str, Any]) -> str:
    """Solve a model of this package's formulations; its status, or the solver's complaint."""
    import cvxpy as cp

    # Statuses are read, not printed; at a limit CVXPY prices whatever is there.
    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
        warnings.simplefilter("ignore")
        try:
            model.problem.solve(**options)
        except cp.error.SolverError as error:
            return " ".join(str(error).split())[:200]
    return str(model.problem.status)


def _solve(problem: Problem, engine: str, *attempts: dict[str, Any]) -> Point:
    """Solve with the first options that give a point."""
    model = _model(problem, engine)
    share, status = None, ""
    for options in attempts:
        status = solve_quietly(model, options)
        share = model.variables["share"].value
        if share is not None and np.isfinite(share).all() and "failed" not in status:
            break
        share = None
    if share is None:
        limit = "time" if "limit" in status else ""
        return Point.nothing("no-solution", limit, f"{engine}: {status}")
    keep = problem.top_k_keep if problem.selectable else None
    end = Termination("optimal" if status == "optimal" else "feasible-at-limit", "", f"{engine}: {status}")
    return Point(keep, within_limits(problem, model.extract().bandwidth), end)


def _model(problem: Problem, engine: str) -> Any:
    """The engine's last model with this problem's numbers, or a new one."""
    from wdmoe_opt.formulations.bandwidth import BandwidthModel

    old = _kept.get(engine)
    if old is not None:
        try:
            old.update(problem)
        except InputError:
            pass
        else:
            return old
    _kept[engine] = BandwidthModel(problem)
    return _kept[engine]


def within_limits(problem: Problem, bandwidth: RealArray) -> RealArray:
    """Bandwidth without the solver's small infeasibilities, scaled down to the budget if above it, Hz."""
    t = problem.tables
    clipped = np.clip(bandwidth, t.low, t.high)
    used = clipped.sum(axis=-1, keepdims=True)
    # Stopped early a solver may have given nothing yet.
    fits = np.divide(t.total, used, out=np.ones_like(used), where=used > t.total)
    scaled: RealArray = np.maximum(clipped * fits, t.low)
    return scaled
