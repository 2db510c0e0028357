"""Peers: what one would use without this package, each with the formulation that suits it.

All get normalised units. A peer is a `SolverInfo` like any solver, so that the runner treats all alike, but
it stands here and not in `wdmoe_opt.list_solvers()`. Solvers that are registered anyway (``slsqp``,
``convex``, ``milp``, ``minlp``) take part under their own names. Every peer obeys the time limit it is told,
as far as its interface lets it.
"""

from __future__ import annotations

from wdmoe_opt.errors import UnknownNameError
from wdmoe_opt.registry import WLR, SolverInfo, list_solvers
from wdmoe_opt.registry import find_solver as find_registered

_BANDWIDTH = ("shared", "per-block")

PEERS: dict[str, SolverInfo] = {
    info.name: info
    for info in (
        SolverInfo(
            "cvxpy-clarabel-bandwidth",
            "P-BW as a parametrised CVXPY model, re-solved by Clarabel without a rebuild",
            "wdmoe_opt.benchmarks.peers.cvxpy_bandwidth:clarabel",
            needs_tokens=False,
            objectives=("latency",),
            allocations=_BANDWIDTH,
            requires=("cvxpy", "clarabel"),
            extra="models",
        ),
        SolverInfo(
            "cvxpy-scs-bandwidth",
            "P-BW as a parametrised CVXPY model, re-solved by SCS without a rebuild",
            "wdmoe_opt.benchmarks.peers.cvxpy_bandwidth:scs",
            needs_tokens=False,
            objectives=("latency",),
            allocations=_BANDWIDTH,
            requires=("cvxpy", "scs"),
            extra="peers",
        ),
        SolverInfo(
            "trust-constr",
            "P-BW on the epigraph form by SciPy's trust-constr",
            "wdmoe_opt.benchmarks.peers.trust_constr:trust_constr",
            needs_tokens=False,
            objectives=("latency",),
            allocations=_BANDWIDTH,
        ),
        SolverInfo(
            "cvxpy-scs",
            "the convex relaxation by CVXPY and SCS, rounded and repaired",
            "wdmoe_opt.benchmarks.peers.cvxpy_joint:scs",
            honours_floors=True,
            objectives=("latency",),
            allocations=_BANDWIDTH,
            requires=("cvxpy", "scs"),
            extra="peers",
            restriction="wdmoe_opt.benchmarks.peers.reduced:restriction",
        ),
        SolverInfo(
            "maingo",
            "the joint program in reduced space by MAiNGO, a global solver",
            "wdmoe_opt.benchmarks.peers.maingo:maingo",
            honours_floors=True,
            bound="claimed",
            objectives=("latency",),
            requires=("maingopy",),
            extra="peers",
            restriction="wdmoe_opt.benchmarks.peers.reduced:restriction",
        ),
        SolverInfo(
            "bonmin",
            "the joint program in reduced space by Bonmin through CasADi; no bound, as it is not convex",
            "wdmoe_opt.benchmarks.peers.bonmin:bonmin",
            honours_floors=True,
            objectives=("latency",),
            requires=("casadi",),
            extra="peers",
            restriction="wdmoe_opt.benchmarks.peers.reduced:restriction",
            probe="wdmoe_opt.benchmarks.peers.bonmin:probe",
        ),
        SolverInfo(
            "gurobi",
            "the joint program by Gurobi; its pip licence ends at 200 variables with nonlinear constraints",
            "wdmoe_opt.benchmarks.peers.gurobi:gurobi",
            honours_floors=True,
            bound="claimed",
            capped=WLR,
            requires=("pyomo", "gurobipy"),
            extra="peers",
        ),
    )
}  # fmt: skip


def find_solver(name: str) -> SolverInfo:
    """A peer or a registered solver by name.

    Raises
    ------
    UnknownNameError
        If there is neither.
    """
    if name in PEERS:
        return PEERS[name]
    if name in {info.name for info in list_solvers()}:
        return find_registered(name)
    raise UnknownNameError("method", name, [*PEERS, *(info.name for info in list_solvers())])
