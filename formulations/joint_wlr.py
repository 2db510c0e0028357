"""P-WLR: selection and bandwidth for the largest weight-to-latency ratio, in each of its readings.

Sets, parameters, variables and rules as in `wdmoe_opt.formulations.minlp`; in addition
Given
    g_ijc   gate weight, 1
Variables
    v       ratio, 1/s: of each block, of each device and block, or of each token
    f_ie    rate of an expert, tokens per s (reading "wlr-token" only)
Model
    maximise    mean over blocks of the reading
    wlr-block   v_i,                      v_i T_i <= sum_jc g q
    wlr-device  sum_k v_ik,               v_ik t_ik <= sum over the device's pairs of g q,
                                          v_ik <= V_ik (number of the device's pairs)
    wlr-token   (1 / J) sum_j v_ij,       v_ij sum_c q_ijc <= sum_c g_ijc q_ijc f_ie,
                                          f_ie (L/R_down + L/R_up + c_e) <= 1
    with t_ik the device time and V_ik the largest gate weight over the least time per token.

Alone the token reading keeps one expert per token (a mean is at most its largest member): use floors.
Source: paper B (token reading), paper A; docs/mathematics.md, section 2.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np

from wdmoe_opt.errors import UnsupportedError
from wdmoe_opt.formulations.common import Data
from wdmoe_opt.formulations.pyomo_parts import TimedModel, fill
from wdmoe_opt.metrics import WLR_READINGS
from wdmoe_opt.problem import Problem


class WlrModel(TimedModel):
    """The weight-to-latency problem as a Pyomo model.

    Parameters
    ----------
    problem : Problem
        Objective "wlr-token", "wlr-device" or "wlr-block".

    Attributes
    ----------
    model : pyomo.environ.ConcreteModel
        The objective is in 1 / ``data.time_unit``.
    variables : dict of str to pyomo component
        As in `wdmoe_opt.formulations.minlp.JointModel`, and "ratio".

    Examples
    --------
    >>> import wdmoe_opt as wo
    >>> inst = wo.load_instance("gpt-oss-20b-decode")
    >>> request = wo.Problem(inst, objective="wlr-block", min_retention=0.8)
    >>> sorted(request.to_pyomo().variables)[:6]
    ['active', 'air_down', 'air_up', 'latency', 'loaded', 'rate_down']
    """

    #: A ratio presses latency down by itself; this only keeps solvers' bounds finite.
    latest = 1e3

    def time_unit(self, problem: Problem) -> float | None:
        """The default; refuses other objectives."""
        if problem.objective not in WLR_READINGS:
            raise UnsupportedError(f"the model needs a weight-to-latency objective, got {problem!r}")
        return None

    def add_objective(self) -> None:
        """Maximise the reading."""
        import pyomo.environ as pyo

        model = self.model
        model.gate_weight = pyo.Param(model.pairs, mutable=True, initialize=0.0)
        build = {"wlr-block": self._by_block, "wlr-device": self._by_device, "wlr-token": self._by_token}
        value = build[self.data.problem.objective]()
        self.variables["ratio"] = model.ratio
        model.objective = pyo.Objective(expr=value / self.data.shape[0], sense=pyo.maximize)

    def fill(self, data: Data) -> None:
        """Gate weights and largest ratios besides the link."""
        super().fill(data)
        weights = data.problem.tables.weights[tuple(data.pairs.T)]
        fill(self.model.gate_weight, weights)
        if data.problem.objective == "wlr-device":
            fill(self.model.largest, self._largest(data))

    def _largest(self, data: Data) -> Any:
        """Largest gate weight over least time per pair, (blocks, devices)."""
        heaviest = np.zeros(data.shape)
        weights = data.problem.tables.weights[tuple(data.pairs.T)]
        np.maximum.at(heaviest, (data.pairs[:, 0], data.pair_device), weights)
        quick = data.cheapest(data.compute)
        if data.problem.allocation == "fixed":
            from wdmoe_opt.formulations.common import link_time_parameter

            air = link_time_parameter(data.problem, data.time_unit)
        else:
            legs = [
                data.slow(d) * data.equal_rate(d) / np.log1p(np.maximum(data.snr(d), 1e-300))
                for d in data.directions
            ]
            air = np.sum(legs, axis=0)
        share = 1.0
        if data.problem.tables.by_device:
            share = 1.0 / data.problem.tables.ids.shape[2]
        return heaviest / np.maximum(share * air + quick, 1e-12)

    def _weight(self, pairs: list[tuple[int, int, int]]) -> Any:
        return sum(self.model.gate_weight[p] * self.model.select[p] for p in pairs)

    def _by_block(self) -> Any:
        import pyomo.environ as pyo

        model = self.model
        model.ratio = pyo.Var(model.blocks, within=pyo.NonNegativeReals)
        members = defaultdict(list)
        for p in model.pairs:
            members[p[0]].append(p)
        model.ratios = pyo.Constraint(
            model.blocks, rule=lambda m, i: m.ratio[i] * m.latency[i] <= self._weight(members[i])
        )
        return sum(model.ratio.values())

    def _by_device(self) -> Any:
        import pyomo.environ as pyo

        model = self.model
        members = defaultdict(list)
        for p, k in zip(model.pairs, self.data.pair_device, strict=True):
            members[p[0], int(k)].append(p)
        model.ratio = pyo.Var(list(members), within=pyo.NonNegativeReals)
        model.largest = pyo.Param(model.blocks, model.devices, mutable=True, initialize=1.0)
        model.ratios = pyo.Constraint(
            list(members),
            rule=lambda m, i, k: m.ratio[i, k] * m.device_time[i, k] <= self._weight(members[i, k]),
        )
        model.used = pyo.Constraint(
            list(members),
            rule=lambda m, i, k: m.ratio[i, k] <= m.largest[i, k] * sum(m.select[p] for p in members[i, k]),
        )
        return sum(model.ratio.values())

    def _by_token(self) -> Any:
        import pyomo.environ as pyo

        model, data = self.model, self.data
        expert = {p: int(e) for p, e in zip(model.pairs, data.pair_expert, strict=True)}
        hosts = data.problem.tables.expert_device
        model.expert_rate = pyo.Var(model.blocks, model.experts, within=pyo.NonNegativeReals)
        model.ratio = pyo.Var(model.blocks, model.tokens, within=pyo.NonNegativeReals)
        members = defaultdict(list)
        for p in model.pairs:
            members[p[:2]].append(p)
        model.ratios = pyo.Constraint(
            model.blocks,
            model.tokens,
            rule=lambda m, i, j: (
                m.ratio[i, j] * sum(m.select[p] for p in members[i, j])
                <= sum(m.gate_weight[p] * m.select[p] * m.expert_rate[i, expert[p]] for p in members[i, j])
            ),
        )
        every = (model.blocks, model.experts)
        if data.problem.allocation == "fixed":
            model.serves = pyo.Constraint(
                *every,
                rule=lambda m, i, e: (
                    m.expert_rate[i, e] * (m.link_time[i, int(hosts[e])] + m.compute[e]) <= 1
                ),
            )
        else:
            part = pyo.Var(*every, list(data.directions), bounds=(0, 1))
            model.leg = part
            model.legs = pyo.Constraint(
                *every,
                list(data.directions),
                rule=lambda m, i, e, d: (
                    m.leg[i, e, d] * m.find_component(f"rate_{d}")[i, int(hosts[e])]
                    >= m.find_component(f"slow_{d}")[i, int(hosts[e])] * m.expert_rate[i, e]
                ),
            )
            model.serves = pyo.Constraint(
                *every,
                rule=lambda m, i, e: (
                    sum(m.leg[i, e, d] for d in data.directions) + m.compute[e] * m.expert_rate[i, e] <= 1
                ),
            )
        return sum(model.ratio.values()) / data.tokens
