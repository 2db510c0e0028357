"""The joint problem as a sequence of mixed-integer linear programs, by tangents to the link time.

Sets, selection variables and rules as in `wdmoe_opt.formulations.pyomo_parts`; in addition
Given
    tau_ik(b)   time of one transfer at bandwidth b, s: convex and falling (fact 1)
    b0          points of tangency, Hz
Variables
    b_k or b_ik >= 0    bandwidth, Hz, shared by all blocks or one vector per block
    alpha_ijk >= 0      air time of a transfer, s; q_ijk the transfer
    T_i                 latency of block i, s
Model
    minimise    sum_i T_i          (or maximise retention with sum_i T_i <= max_latency)
    subject to  busy_ik + sum_j alpha_ijk <= T_i
                alpha_ijk >= (tau(b0) - b0 tau'(b0)) q_ijk + tau'(b0) b_k      for every b0
                sum_k b_k <= B,  low_k <= b_k <= high_k

A transfer that takes place costs at least what the tangent says, by convexity; one that does not costs
nothing, and the right side is then negative, because tau' < 0. So every such program is a valid
relaxation, whatever the points, for shared bandwidth and for one vector per block, with activation
and both dispatch rules: no bilinear term and no large constant is left. With tangents at the best
bandwidth of a selection the program prices that selection exactly, so that adding them in turn for
every selection the program proposes ends at the optimum (Duran and Grossmann 1986).
"""

from __future__ import annotations

import numpy as np

from wdmoe_opt.errors import UnsupportedError
from wdmoe_opt.formulations.common import Data
from wdmoe_opt.formulations.pyomo_parts import TimedModel
from wdmoe_opt.kernels.link import log_time_terms
from wdmoe_opt.problem import Problem
from wdmoe_opt.validation import RealArray

#: Shares at which the first tangents lie.
FIRST_SHARES = np.geomspace(1e-3, 1.0, 13)


class TangentModel(TimedModel):
    """The mixed-integer linear relaxation as a Pyomo model that grows by `add_tangents`.

    Parameters
    ----------
    problem : Problem
        Objective "latency" or "retention". With allocation "fixed" there are no tangents and the model
        is exact.

    Attributes
    ----------
    model : pyomo.environ.ConcreteModel
    variables : dict of str to pyomo component
        "select", "active", "loaded", "share" b / B by (row, device), "air" alpha by transfer, "latency"
        T_i over ``data.time_unit``.

    Examples
    --------
    >>> import pyomo.environ as pyo, wdmoe_opt as wo
    >>> inst = wo.load_instance("gpt-oss-20b-decode")
    >>> part = inst.replace(expert_ids=inst.expert_ids[:1, :4], gate_weights=inst.gate_weights[:1, :4])
    >>> request = wo.Problem(part, min_retention=0.8)
    >>> model = TangentModel(request)
    >>> status = pyo.SolverFactory("appsi_highs").solve(model.model)
    >>> keep = model.extract().keep > 0.5
    >>> best = wo.allocate_bandwidth(request, keep)
    >>> wo.evaluate(request, keep, best.bandwidth).latency >= model.extract().latency * (1 - 1e-6)
    True
    >>> model.add_tangents(best.bandwidth)      # the next solve prices this selection exactly
    """

    def time_unit(self, problem: Problem) -> float | None:
        """The cap on latency where retention is maximised, else the default."""
        if problem.objective not in ("latency", "retention"):
            raise UnsupportedError(f"the linear model has no weight-to-latency ratio, got {problem!r}")
        return problem.max_latency if problem.objective == "retention" else None

    def add_objective(self) -> None:
        """Minimise latency, or maximise retention."""
        import pyomo.environ as pyo

        if self.data.problem.objective == "latency":
            super().add_objective()
            return
        kept = sum(self.model.kept.values()) / (self.data.shape[0] * self.data.tokens)
        self.model.objective = pyo.Objective(expr=kept, sense=pyo.maximize)

    def add_radio(self) -> None:
        """Add shares and air times per transfer; tangents follow with the numbers."""
        import pyomo.environ as pyo

        self.add_shares()
        model = self.model
        _, where = self.data.groups
        model.air = pyo.Var(range(len(where)), within=pyo.NonNegativeReals)
        self.variables["air"] = model.air
        self._cells: dict[tuple[int, int], list[int]] = {}
        for g, (i, _, k) in enumerate(where):
            self._cells.setdefault((int(i), int(k)), []).append(g)
        model.air_time = pyo.Expression(
            model.blocks,
            model.devices,
            rule=lambda m, i, k: sum(m.air[g] for g in self._cells.get((i, k), [])),
        )
        model.tangents = pyo.ConstraintList()

    def fill_radio(self, data: Data) -> None:
        """Start again from the first tangents."""
        self.model.tangents.clear()
        total = data.problem.tables.total
        for share in FIRST_SHARES:
            self._add_tangents(np.full(data.shape, share * total))

    def add_tangents(self, bandwidth: RealArray) -> None:
        """Add the tangents at a bandwidth, Hz (devices,) or (blocks, devices); shares of 0 are skipped."""
        self._add_tangents(np.broadcast_to(bandwidth, self.data.shape))

    def _add_tangents(self, bandwidth: RealArray) -> None:
        t, unit = self.data.problem.tables, self.data.time_unit
        model = self.model
        for (i, k), members in self._cells.items():
            b = float(bandwidth[i, k])
            if b <= 0:
                continue
            time, first, _ = log_time_terms(b, t.bits_down, t.c_down[i, k], t.bits_up, t.c_up[i, k])
            # Further than this no latency of interest goes, and the coefficients only grow.
            if time > 4 * self.latest * unit:
                continue
            at_zero, slope = (time - first) / unit, first / unit / (b / t.total)
            share = model.share[i if self.data.rows > 1 else 0, k]
            for g in members:
                model.tangents.add(model.air[g] >= at_zero * self.transfers[g] + slope * share)
