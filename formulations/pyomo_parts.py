"""Pieces that the integer models share, and the base of their classes.

Sets
    blocks i, tokens j, columns c (the candidate in column c of token j is expert e(i, j, c)),
    devices k, experts e hosted on device h(e).
Given
    w_ijc   gate weight over the token's top-k weight, 1
    c_e, a_e    compute and activation time of an expert, s;  l_k   link delay, s
    rho_i, gamma_i   floors on the mean retention of a block and on that of each token, 1
Variables
    q_ijc in {0,1}  selection
    x_ijk           transfers with dispatch "device", >= q of every expert of the token on k
    y_ie            whether an expert is active, >= q of its tokens
    z_ik            whether a device is loaded, >= q of its tokens
Rules
    1 <= sum_c q_ijc <= max_experts
    sum_c w_ijc q_ijc >= gamma_i,   sum_jc w_ijc q_ijc >= rho_i J
    sent_ik = sum of q (dispatch "expert") or of x (dispatch "device")
    busy_ik = l_k z_ik + sum over e on k of ( a_e y_ie + c_e sum of q )

x, y and z are continuous: they only appear as costs, so a minimum has them at 0 or 1.
Source: docs/mathematics.md, sections 1 and 2.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np

from wdmoe_opt.formulations.common import (
    Data,
    Extract,
    check_structure,
    link_time_parameter,
    normalise,
)
from wdmoe_opt.problem import Problem
from wdmoe_opt.validation import RealArray

if TYPE_CHECKING:
    import pyomo.environ as pyo


def fill(parameter: Any, values: RealArray) -> None:
    """Put an array into a mutable parameter with the same index, in its order."""
    for index, value in zip(parameter, np.asarray(values, dtype=np.float64).ravel(), strict=True):
        parameter[index] = float(value)


class IntegerModel:
    """Selection variables, floors and loads; subclasses add times and an objective.

    Parameters
    ----------
    problem : Problem

    Attributes
    ----------
    model : pyomo.environ.ConcreteModel
    variables : dict of str to pyomo component
        "select" q by (block, token, column), and what the model adds.
    """

    model: pyo.ConcreteModel

    def __init__(self, problem: Problem) -> None:
        import pyomo.environ as pyo

        self.data = normalise(problem, self.time_unit(problem))
        self.model = model = pyo.ConcreteModel(type(self).__name__)
        blocks, devices = self.data.shape
        model.blocks, model.devices = pyo.RangeSet(0, blocks - 1), pyo.RangeSet(0, devices - 1)
        model.experts = pyo.RangeSet(0, problem.instance.experts - 1)
        model.tokens = pyo.RangeSet(0, self.data.tokens - 1)
        model.pairs = pyo.Set(initialize=[tuple(map(int, p)) for p in self.data.pairs], dimen=3)
        self.variables: dict[str, Any] = {}
        self._add_selection()
        self._add_loads()
        self.build()
        self._set(self.data)

    def time_unit(self, problem: Problem) -> float | None:
        """Time unit of the model, s; None for the default of `normalise`."""
        return None

    def build(self) -> None:
        """Add times and objective to ``model``, with mutable parameters for their numbers."""
        raise NotImplementedError

    def fill(self, data: Data) -> None:
        """Put the numbers that `build` needs into their parameters."""

    def update(self, problem: Problem) -> None:
        """Take over the numbers of another problem of the same structure; nothing is rebuilt."""
        data = normalise(problem, self.time_unit(problem))
        check_structure(self.data, data)
        self._set(data)

    def extract(self) -> Extract:
        """Variables in SI units; raises if the model holds no values yet."""
        import pyomo.environ as pyo

        select = np.array([pyo.value(self.model.select[p]) for p in self.model.pairs])
        latency = sum(pyo.value(t) for t in self.model.latency.values()) * self.data.time_unit
        return Extract(self.data.keep(select), self._bandwidth(), float(latency))

    def _bandwidth(self) -> RealArray | None:
        import pyomo.environ as pyo

        if "share" not in self.variables:
            return None
        share = np.array([pyo.value(b) for b in self.model.share.values()])
        return self.data.bandwidth(share.reshape(self.data.rows, -1))

    def _set(self, data: Data) -> None:
        self.data = data
        model = self.model
        fill(model.retention, data.pair_retention)
        fill(model.floor, np.asarray(data.problem.min_retention))
        fill(model.token_floor, np.asarray(data.problem.min_token_retention))
        fill(model.compute, data.compute)
        fill(model.activation, data.activation)
        fill(model.delay, data.delay)
        self.fill(data)

    def _add_selection(self) -> None:
        import pyomo.environ as pyo

        model, tokens = self.model, defaultdict(list)
        for p in model.pairs:
            tokens[p[:2]].append(p)
        model.select = pyo.Var(model.pairs, within=pyo.Binary)
        self.variables["select"] = model.select
        model.retention = pyo.Param(model.pairs, mutable=True, initialize=0.0)
        model.floor = pyo.Param(model.blocks, mutable=True, initialize=0.0)
        model.token_floor = pyo.Param(model.blocks, mutable=True, initialize=0.0)

        def count(i: int, j: int) -> Any:
            return sum(model.select[p] for p in tokens[i, j])

        def kept(i: int, j: int) -> Any:
            return sum(model.retention[p] * model.select[p] for p in tokens[i, j])

        every = (model.blocks, model.tokens)
        model.served = pyo.Constraint(*every, rule=lambda _, i, j: count(i, j) >= 1)
        cap = self.data.problem.max_experts
        if cap is not None:
            model.capped = pyo.Constraint(*every, rule=lambda _, i, j: count(i, j) <= cap)
        model.token_kept = pyo.Constraint(*every, rule=lambda _, i, j: kept(i, j) >= model.token_floor[i])
        model.kept = pyo.Expression(model.blocks, rule=lambda _, i: sum(kept(i, j) for j in model.tokens))
        least = self.data.tokens
        model.block_kept = pyo.Constraint(
            model.blocks, rule=lambda _, i: model.kept[i] >= least * model.floor[i]
        )

    def _add_loads(self) -> None:
        import pyomo.environ as pyo

        model, data = self.model, self.data
        group, where = data.groups
        experts, devices, members = defaultdict(list), defaultdict(list), defaultdict(list)
        for p, e, k in zip(model.pairs, data.pair_expert, data.pair_device, strict=True):
            experts[p[0], int(e)].append(p)
            devices[p[0], int(k)].append(p)
        model.compute = pyo.Param(model.experts, mutable=True, initialize=0.0)
        model.activation = pyo.Param(model.experts, mutable=True, initialize=0.0)
        model.delay = pyo.Param(model.devices, mutable=True, initialize=0.0)
        fleet = (model.blocks, model.devices)
        sent: Any = model.select
        if data.problem.tables.by_device:
            for p, g in zip(model.pairs, group, strict=True):
                members[int(g)].append(p)
            model.send = sent = pyo.Var(range(len(where)), bounds=(0, 1))
            links = [(g, *p) for g, group_pairs in members.items() for p in group_pairs]
            model.sends = pyo.Constraint(links, rule=lambda _, g, *p: model.send[g] >= model.select[p])
            cells = defaultdict(list)
            for g, (i, _, k) in enumerate(where):
                cells[int(i), int(k)].append(g)
        else:
            cells = devices
        #: Variables of the transfers, in the order of ``data.groups``.
        self.transfers = [sent[x] for x in (range(len(where)) if sent is not model.select else model.pairs)]
        model.sent = pyo.Expression(*fleet, rule=lambda _, i, k: sum(sent[x] for x in cells[i, k]))
        model.running = pyo.Var(model.blocks, model.experts, bounds=(0, 1))
        model.loaded = pyo.Var(*fleet, bounds=(0, 1))
        active = [(e, p) for (_, e), users in experts.items() if data.activation[e] > 0 for p in users]
        loaded = [(k, p) for (_, k), users in devices.items() if data.delay[k] > 0 for p in users]
        model.activates = pyo.ConstraintList()
        for e, p in active:
            model.activates.add(model.running[p[0], e] >= model.select[p])
        for k, p in loaded:
            model.activates.add(model.loaded[p[0], k] >= model.select[p])
        hosts = data.problem.tables.expert_device

        def busy(_: Any, i: int, k: int) -> Any:
            time = model.delay[k] * model.loaded[i, k] if data.delay[k] > 0 else 0.0
            for e in map(int, np.flatnonzero(hosts == k)):
                time += model.compute[e] * sum(model.select[p] for p in experts[i, e])
                if data.activation[e] > 0:
                    time += model.activation[e] * model.running[i, e]
            return time

        model.busy = pyo.Expression(*fleet, rule=busy)
        self.variables |= {"active": model.running, "loaded": model.loaded}


class TimedModel(IntegerModel):
    """Adds block latencies, at the fixed bandwidth or with the bandwidth as a variable.

    Notes
    -----
    With bandwidth b as a variable, per block or shared, each direction has a rate R and an air time a:

        a_ik R_ik >= L sent_ik,   R_ik <= b log2(1 + c_ik / b),   sum_k b_k <= B,   low <= b <= high
        busy_ik + a_ik^down + a_ik^up <= T_i

    The rate is written b ln c + b ln(1 + b / c) - b ln b: the last is an entropy term, which global
    solvers know and which is defined at b = 0, and no term is large where c is. The air time lets a
    device without load have no bandwidth.
    """

    #: Largest latency of a block in time units that a solution worth finding can have: that of the trivial
    #: point, which is the best one at times, and room for rounding in the backend.
    latest = 1.0 + 1e-6

    def build(self) -> None:
        """Add T_i, the link, the cap on latency and the objective."""
        import pyomo.environ as pyo

        model = self.model
        model.latency = pyo.Var(model.blocks, bounds=(0, self.latest))
        self.variables["latency"] = model.latency
        fleet = (model.blocks, model.devices)
        if self.data.problem.allocation == "fixed":
            model.link_time = pyo.Param(*fleet, mutable=True, initialize=0.0)
            model.air_time = pyo.Expression(*fleet, rule=lambda m, i, k: m.link_time[i, k] * m.sent[i, k])
        else:
            self.add_radio()
        model.device_time = pyo.Expression(*fleet, rule=lambda m, i, k: m.busy[i, k] + m.air_time[i, k])
        model.waits = pyo.Constraint(*fleet, rule=lambda m, i, k: m.device_time[i, k] <= m.latency[i])
        if self.data.problem.max_latency is not None:
            model.max_latency = pyo.Param(mutable=True, initialize=1.0)
            model.in_time = pyo.Constraint(expr=sum(model.latency.values()) <= model.max_latency)
        self.add_objective()

    def add_objective(self) -> None:
        """Minimise total latency."""
        import pyomo.environ as pyo

        self.model.objective = pyo.Objective(expr=sum(self.model.latency.values()))

    def fill(self, data: Data) -> None:
        """Numbers of the link and of the cap on latency."""
        model, problem = self.model, data.problem
        if problem.max_latency is not None:
            model.max_latency.set_value(problem.max_latency / data.time_unit)
        if problem.allocation == "fixed":
            fill(model.link_time, link_time_parameter(problem, data.time_unit))
            return
        self.fill_shares(data)
        self.fill_radio(data)

    def add_shares(self) -> None:
        """Add the shares of the bandwidth and their budget."""
        import pyomo.environ as pyo

        model = self.model
        model.rows = pyo.RangeSet(0, self.data.rows - 1)
        model.share = pyo.Var(model.rows, model.devices, bounds=(0, 1))
        self.variables["share"] = model.share
        model.budget = pyo.Constraint(
            model.rows, rule=lambda m, row: sum(m.share[row, k] for k in m.devices) <= 1
        )

    def fill_shares(self, data: Data) -> None:
        """Limits of the shares."""
        for (_, k), share in self.model.share.items():
            share.setlb(float(data.low[k]))
            share.setub(float(data.high[k]))

    def fill_radio(self, data: Data) -> None:
        """Numbers of the rates."""
        model = self.model
        for d in data.directions:
            snr = np.where(data.snr(d) > 0, data.snr(d), 1.0)  # an unreachable device has no pairs
            fill(model.find_component(f"log_snr_{d}"), np.log(snr))
            fill(model.find_component(f"noise_{d}"), 1.0 / snr)
            fill(model.find_component(f"equal_rate_{d}"), data.equal_rate(d))
            fill(model.find_component(f"slow_{d}"), data.slow(d))

    def add_radio(self) -> None:
        """Add shares, rates and air times."""
        import pyomo.environ as pyo

        self.add_shares()
        model, rows = self.model, self.data.rows
        fleet = (model.blocks, model.devices)

        def rate_limit(m: Any, i: int, k: int, d: str) -> Any:
            b = m.share[i if rows > 1 else 0, k]
            log_c, inverse = m.find_component(f"log_snr_{d}")[i, k], m.find_component(f"noise_{d}")[i, k]
            scale = m.find_component(f"equal_rate_{d}")[i, k]
            spectral = b * log_c + b * pyo.log(1 + b * inverse) - b * pyo.log(b)
            return scale * m.find_component(f"rate_{d}")[i, k] <= spectral

        def carries(m: Any, i: int, k: int, d: str) -> Any:
            air, rate = m.find_component(f"air_{d}")[i, k], m.find_component(f"rate_{d}")[i, k]
            return air * rate >= m.find_component(f"slow_{d}")[i, k] * m.sent[i, k]

        airs = []
        for d in self.data.directions:
            for name in ("log_snr", "noise", "equal_rate", "slow"):
                model.add_component(f"{name}_{d}", pyo.Param(*fleet, mutable=True, initialize=1.0))
            rate = pyo.Var(*fleet, bounds=(0, None))
            air = pyo.Var(*fleet, bounds=(0, self.latest))
            model.add_component(f"rate_{d}", rate)
            model.add_component(f"air_{d}", air)
            model.add_component(
                f"rate_limit_{d}", pyo.Constraint(*fleet, rule=lambda m, i, k, d=d: rate_limit(m, i, k, d))
            )
            model.add_component(
                f"carries_{d}", pyo.Constraint(*fleet, rule=lambda m, i, k, d=d: carries(m, i, k, d))
            )
            airs.append(air)
            self.variables |= {f"rate_{d}": rate, f"air_{d}": air}
        model.air_time = pyo.Expression(*fleet, rule=lambda _, i, k: sum(a[i, k] for a in airs))
