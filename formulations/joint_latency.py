"""P-LAT: expert selection and bandwidth together for least latency, as convex programs (facts 3 and 5).

Sets
    blocks i, tokens j, candidates e of a token, devices k; E_k the experts of device k.
Given
    w_ije   gate weight over the token's top-k weight, 1
    rho_i, gamma_i   floors on the mean retention of a block and on that of each token, 1
    L       payload of a transfer in each direction, bit
    c_k     compute time, s per token: the least of the device's usable experts
    a_k     link delay plus activation time, s: the least of the device's usable experts
    B       total bandwidth, Hz; low_k, high_k limits of a share, Hz
Variables
    b_k or b_ik >= 0    bandwidth, Hz, shared by all blocks or one vector per block
    r_ik >= 0           service rate, transfers per s
    s_i                 1 / T_i, inverse latency of a block, 1/s
    y_ije >= 0          s_i q_ije, throughput of a (token, expert) pair; q the selection
    x_ijk               throughput of a transfer, = y_ije per pair, or with dispatch "device" >= y_ije
                        for every expert of the token on the device
Throughput program (`JointLatencyModel`, fact 5)
    minimise    sum_i 1 / s_i
    subject to  sum_e y_ije >= s_i,  y_ije <= s_i,  sum_e y_ije <= max_experts s_i
                sum_e w_ije y_ije >= gamma_i s_i
                sum_je w_ije y_ije >= rho_i J s_i
                sum_j x_ijk <= (1 - a_k / H_i)^+ r_ik
                r_ik (L/R_down + L/R_up + c_k) <= 1      (second-order cones: r^2/R is convex)
                R <= b log2(1 + c / b) in each direction, sum_k b_k <= B, low_k <= b_k <= high_k
    H_i, s, is any latency that block i need not exceed. With a = 0 it plays no part.
Fixed-deadline program (`DeadlineModel`, fact 3)
    The same with s_i = 1, so that y = q, and the loads bounded by (T_i - a_k)^+ r_ik for given
    deadlines T_i; it minimises the bandwidth needed, over the bandwidth there is. The deadlines
    can be met, up to integrality, if and only if the value is at most 1.

How tight. Relaxed is the integrality of q. Nothing else is with dispatch "expert", equal compute times on
a device, and no activation (throughput), or activation on one expert per device (deadline). Elsewhere
the least compute and activation time of a device's experts make it a valid but looser relaxation, as
does counting a token's compute once per transfer with dispatch "device". The floor must be per block;
pooled over blocks the program is not convex.

A bound for any H: every solution of one block has T > H or T >= value, so T >= min(H, value). The
largest such bound is the fixed point value(H) = H, the least deadline of the fixed-deadline program.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.sparse import coo_array

from wdmoe_opt.errors import UnsupportedError
from wdmoe_opt.formulations.bandwidth import RadioPart, product_at_least
from wdmoe_opt.formulations.common import Data, Extract, check_structure, normalise, trivial_latency
from wdmoe_opt.problem import Problem
from wdmoe_opt.validation import IntArray, RealArray


class _Joint:
    """What both programs share: selection, service rates, bandwidth."""

    def __init__(self, data: Data, pace: Any, budget: Any) -> None:
        import cvxpy as cp

        self.data = data
        blocks, devices = data.shape
        group, where = data.groups
        self.load_unit = max(len(data.pairs) / (blocks * devices), 1.0)
        self.radio = RadioPart(data, budget)
        self.flow = cp.Variable(len(data.pairs), nonneg=True, name="flow")
        self.service = cp.Variable((blocks, devices), nonneg=True, name="service")
        self.room = cp.Parameter((blocks, devices), nonneg=True)
        self._retention = cp.Parameter(len(data.pairs), nonneg=True)
        self._floor = cp.Parameter(blocks, nonneg=True)
        self._token_floor = cp.Parameter(blocks * data.tokens, nonneg=True)
        self._root = {d: cp.Parameter((blocks, devices), nonneg=True) for d in data.directions}
        self._compute_root = cp.Parameter((blocks, devices), nonneg=True)
        sent, self.constraints = self.flow, list(self.radio.constraints)
        if data.problem.tables.by_device:
            sent = cp.Variable(len(where), nonneg=True)
            self.constraints.append(sent[group] >= self.flow)
        cells = where[:, 0] * devices + where[:, 2]
        loads = _sums(cells, blocks * devices) @ sent / self.load_unit
        self.constraints.append(
            cp.reshape(loads, (blocks, devices), order="C") <= cp.multiply(self.room, self.service)
        )
        self.constraints += [*self._selection(pace), *self._service()]

    def _selection(self, pace: Any) -> list[Any]:
        """Non-empty subsets that keep floors and cap, relaxed, at throughput ``pace`` (blocks,)."""
        import cvxpy as cp

        data = self.data
        block, token = data.pairs[:, 0], data.pairs[:, 0] * data.tokens + data.pairs[:, 1]
        blocks = data.shape[0]
        of_token = _sums(token, blocks * data.tokens)
        token_pace = np.repeat(np.eye(blocks), data.tokens, axis=0) @ pace
        count = of_token @ self.flow
        kept = cp.multiply(self._retention, self.flow)
        rules = [
            count >= token_pace,
            self.flow <= pace[block],
            of_token @ kept >= cp.multiply(self._token_floor, token_pace),
            _sums(block, blocks) @ kept >= data.tokens * cp.multiply(self._floor, pace),
        ]
        if data.problem.max_experts is not None:
            rules.append(count <= data.problem.max_experts * token_pace)
        return rules

    def _service(self) -> list[Any]:
        """Service rate r with sum of r^2 / (rate of each leg) <= r."""
        import cvxpy as cp

        rules, legs = [], [cp.square(cp.multiply(self._compute_root, self.service))]
        for d in self.data.directions:
            leg = cp.Variable(self.data.shape, nonneg=True)
            rate = self.radio.block_rate(d, self.data.shape[0])
            rules.append(product_at_least(leg, rate, cp.multiply(self._root[d], self.service)))
            legs.append(leg)
        return [*rules, sum(legs) <= self.service]

    def set(self, data: Data) -> None:
        """Put the numbers of ``data`` into the parameters."""
        check_structure(self.data, data)
        self.data = data
        self.radio.set(data)
        self._retention.value = data.pair_retention
        self._floor.value = np.asarray(data.problem.min_retention)
        self._token_floor.value = np.repeat(np.asarray(data.problem.min_token_retention), data.tokens)
        for d, root in self._root.items():
            root.value = np.sqrt(data.slow(d) * self.load_unit)
        self._compute_root.value = np.sqrt(data.cheapest(data.compute) * self.load_unit)

    def overhead(self) -> RealArray:
        """Least time of a loaded device before its first token, time units, (blocks, devices)."""
        return self.data.cheapest(self.data.activation) + self.data.delay

    def variables(self) -> dict[str, Any]:
        """The variables by name."""
        rates = {f"rate_{d}": v for d, v in self.radio.rate.items()}
        return {"flow": self.flow, "service": self.service, "share": self.radio.share, **rates}


class JointLatencyModel:
    """The throughput program as a CVXPY problem.

    Parameters
    ----------
    problem : Problem
        Objective "latency", allocation "shared" or "per-block", with tokens.
    horizon : float array (blocks,), s, optional
        H; default the latency of a trivial feasible point, which no optimum exceeds.

    Attributes
    ----------
    problem : cvxpy.Problem
        Minimises total latency over `data.time_unit`. Its value bounds the latency from below.
    variables : dict of str to cvxpy.Variable
        "pace" s (blocks,), "flow" y (pairs,) in the order of ``data.pairs``, "service" r, "share" b / B
        (rows, devices), "rate_down", "rate_up".

    Examples
    --------
    Extend the model: no device may hold more than half of the bandwidth.

    >>> import wdmoe_opt as wo
    >>> from wdmoe_opt.formulations.common import CLARABEL
    >>> inst = wo.load_instance("gpt-oss-20b-decode")
    >>> request = wo.Problem(inst, min_retention=0.9)
    >>> model = request.to_cvxpy()
    >>> import cvxpy as cp
    >>> share = model.variables["share"]
    >>> capped = cp.Problem(model.problem.objective, [*model.problem.constraints, share <= 0.5])
    >>> bool(capped.solve(**CLARABEL) >= model.problem.solve(**CLARABEL) * (1 - 1e-6))
    True
    >>> model.update(request.replace(min_retention=0.8))       # numbers only: nothing is rebuilt
    >>> value = model.problem.solve(**CLARABEL)
    >>> found = model.extract()
    >>> found.keep.shape == inst.expert_ids.shape, found.bandwidth.shape == (inst.devices,)
    (True, True)
    """

    def __init__(self, problem: Problem, horizon: RealArray | None = None) -> None:
        import cvxpy as cp

        data = _normalised(problem)
        self._pace = cp.Variable(data.shape[0], nonneg=True, name="pace")
        self._joint = _Joint(data, self._pace, 1.0)
        objective = cp.Minimize(cp.sum(cp.inv_pos(self._pace)))
        self.problem = cp.Problem(objective, self._joint.constraints)
        self.variables = {"pace": self._pace, **self._joint.variables()}
        self._set(data, horizon)

    @property
    def data(self) -> Data:
        """Normalised data of the present numbers."""
        return self._joint.data

    def update(self, problem: Problem, horizon: RealArray | None = None) -> None:
        """Take over the numbers of another problem of the same structure; nothing is rebuilt."""
        self._set(_normalised(problem), horizon)

    def set_horizon(self, horizon: RealArray) -> None:
        """Change H, s (blocks,), alone."""
        ratio = self._joint.overhead() * self.data.time_unit / horizon[:, None]
        self._joint.room.value = np.maximum(1.0 - ratio, 0.0)

    def extract(self) -> Extract:
        """Variables in SI units; the selection is fractional."""
        pace: RealArray = self._pace.value
        keep = self.data.keep(self._joint.flow.value / pace[self.data.pairs[:, 0]])
        latency = float((1.0 / pace).sum()) * self.data.time_unit
        return Extract(keep, self.data.bandwidth(self._joint.radio.share.value), latency)

    def _set(self, data: Data, horizon: RealArray | None) -> None:
        self._joint.set(data)
        self.set_horizon(
            np.full(data.shape[0], data.shape[0] * data.time_unit) if horizon is None else horizon
        )


class DeadlineModel:
    """The fixed-deadline program as a CVXPY problem.

    Parameters
    ----------
    problem : Problem
        Objective "latency", allocation "shared" or "per-block", with tokens.
    deadlines : float array (blocks,), s

    Attributes
    ----------
    problem : cvxpy.Problem
        Minimises the largest row sum of the shares; at most 1 if the deadlines can be met.
    variables : dict of str to cvxpy.Variable
        "need", and as in `JointLatencyModel`; "flow" is the selection.

    Examples
    --------
    >>> import numpy as np, wdmoe_opt as wo
    >>> from wdmoe_opt.formulations.common import CLARABEL
    >>> inst = wo.load_instance("gpt-oss-20b-decode")
    >>> request = wo.Problem(inst, min_retention=0.9, allocation="per-block")
    >>> enough = wo.solve(request, "topk").block_latency
    >>> model = DeadlineModel(request, enough)
    >>> bool(model.problem.solve(**CLARABEL) <= 1 + 1e-6)
    True
    """

    def __init__(self, problem: Problem, deadlines: RealArray) -> None:
        import cvxpy as cp

        data = _normalised(problem)
        need = cp.Variable(nonneg=True, name="need")
        self._joint = _Joint(data, np.ones(data.shape[0]), need)
        self.problem = cp.Problem(cp.Minimize(need), self._joint.constraints)
        self.variables = {"need": need, **self._joint.variables()}
        self._joint.set(data)
        self.set_deadlines(deadlines)

    @property
    def data(self) -> Data:
        """Normalised data of the present numbers."""
        return self._joint.data

    def update(self, problem: Problem, deadlines: RealArray) -> None:
        """Take over the numbers of another problem of the same structure; nothing is rebuilt."""
        self._joint.set(_normalised(problem))
        self.set_deadlines(deadlines)

    def set_deadlines(self, deadlines: RealArray) -> None:
        """Change the deadlines, s (blocks,), alone."""
        self._deadlines = np.asarray(deadlines, dtype=np.float64)
        left = self._deadlines[:, None] / self.data.time_unit - self._joint.overhead()
        self._joint.room.value = np.maximum(left, 0.0)

    def extract(self) -> Extract:
        """Variables in SI units; the selection is fractional."""
        keep = self.data.keep(self._joint.flow.value)
        share = self._joint.radio.share.value
        return Extract(keep, self.data.bandwidth(share), float(self._deadlines.sum()))


def _sums(cell: IntArray, cells: int) -> coo_array:
    """Matrix (cells, items) that adds items up by cell."""
    items = np.arange(len(cell))
    return coo_array((np.ones(len(cell)), (cell, items)), shape=(cells, len(cell))).tocsr()


def _normalised(problem: Problem) -> Data:
    """Data in units of the mean block latency of a trivial point; refuses what is not convex."""
    if not problem.selectable or problem.objective != "latency" or problem.allocation == "fixed":
        raise UnsupportedError(
            "the convex joint model needs gate weights, objective 'latency' and allocation 'shared' or "
            f"'per-block', got {problem!r}; use to_pyomo()"
        )
    return normalise(problem, trivial_latency(problem) / problem.instance.blocks)
