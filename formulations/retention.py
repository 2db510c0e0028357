"""Retention under a latency cap: keep as much gate weight as a deadline allows.

Sets, parameters, variables and rules as in `wdmoe_opt.formulations.minlp`; the cap max_latency, s, is
given.
Model
    maximise    (1 / I) sum_i (1 / J) sum_jc w_ijc q_ijc
    subject to  the rules of the joint problem
                sum_i T_i <= max_latency

Source: docs/mathematics.md, section 2 (floors and objective exchanged; at fixed bandwidth fact 9).
"""

from __future__ import annotations

from wdmoe_opt.errors import UnsupportedError
from wdmoe_opt.formulations.pyomo_parts import TimedModel
from wdmoe_opt.problem import Problem


class RetentionModel(TimedModel):
    """Largest retention under a latency cap as a Pyomo model.

    Parameters
    ----------
    problem : Problem
        Objective "retention". With allocation "fixed" the model is linear.

    Attributes
    ----------
    model : pyomo.environ.ConcreteModel
    variables : dict of str to pyomo component
        As in `wdmoe_opt.formulations.minlp.JointModel`.

    Examples
    --------
    >>> import pyomo.environ as pyo, wdmoe_opt as wo
    >>> inst = wo.load_instance("gpt-oss-20b-decode")
    >>> part = inst.replace(expert_ids=inst.expert_ids[:1], gate_weights=inst.gate_weights[:1])
    >>> cap = 0.9 * wo.solve(part, "topk-uniform", allocation="fixed").latency
    >>> request = wo.Problem(part, objective="retention", max_latency=cap, allocation="fixed")
    >>> model = request.to_pyomo()
    >>> status = pyo.SolverFactory("appsi_highs").solve(model.model)
    >>> point = wo.Solution.from_arrays(request, keep=model.extract().keep > 0.5)
    >>> bool(point.latency <= cap * (1 + 1e-6) and 0.5 < point.retention < 1)
    True
    """

    def time_unit(self, problem: Problem) -> float | None:
        """The cap on latency, s."""
        if problem.objective != "retention":
            raise UnsupportedError(f"the retention model needs objective 'retention', got {problem!r}")
        return problem.max_latency

    def add_objective(self) -> None:
        """Maximise the mean retention."""
        import pyomo.environ as pyo

        pairs = self.data.shape[0] * self.data.tokens
        kept = sum(self.model.kept.values())
        self.model.objective = pyo.Objective(expr=kept / pairs, sense=pyo.maximize)
