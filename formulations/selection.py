"""P-SEL: the best selection at a given bandwidth (paper A's upper level; fact 9), in integers.

Sets, selection variables and rules as in `wdmoe_opt.formulations.pyomo_parts`; in addition
Given
    t_ik    time of one transfer to device k in block i at the given bandwidth, s
Variables
    T_i     latency of block i, s
Model
    minimise    sum_i T_i
    subject to  busy_ik + t_ik sent_ik <= T_i

Source: docs/mathematics.md, sections 1 and 2. Without activation per expert on shared devices the
caps on the loads make it a transportation problem (fact 9); in general it contains facility location.
"""

from __future__ import annotations

from wdmoe_opt.errors import UnsupportedError
from wdmoe_opt.formulations.pyomo_parts import TimedModel
from wdmoe_opt.problem import Problem


class SelectionModel(TimedModel):
    """P-SEL as a Pyomo model.

    Parameters
    ----------
    problem : Problem
        Allocation "fixed".

    Attributes
    ----------
    model : pyomo.environ.ConcreteModel
    variables : dict of str to pyomo component
        "select", "active", "loaded", "latency" T_i over ``data.time_unit``.

    Examples
    --------
    >>> import pyomo.environ as pyo, wdmoe_opt as wo
    >>> inst = wo.load_instance("gpt-oss-20b-decode")
    >>> request = wo.Problem(inst.replace(expert_ids=inst.expert_ids[:1], gate_weights=inst.gate_weights[:1]),
    ...                      min_retention=0.8, allocation="fixed")
    >>> model = request.to_pyomo()
    >>> status = pyo.SolverFactory("appsi_highs").solve(model.model)
    >>> found = model.extract()
    >>> price = wo.evaluate(request, found.keep > 0.5)
    >>> price.feasible, bool(abs(price.latency - found.latency) < 1e-6 * price.latency)
    (True, True)
    """

    def time_unit(self, problem: Problem) -> float | None:
        """The default; refuses other allocations."""
        if problem.allocation != "fixed":
            raise UnsupportedError(f"the model of P-SEL needs allocation 'fixed', got {problem!r}")
        return None
