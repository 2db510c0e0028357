"""P-BW: the best bandwidth for a given selection (paper A's lower level; facts 1 and 2).

Sets
    blocks i, devices k.
Given
    s_ik    transfers to device k in block i, 1
    u_ik    time of device k that bandwidth cannot change (compute, activation, link delay), s
    L       payload of a transfer in each direction, bit
    c_ik    SNR bandwidth P g / N0 in each direction, Hz
    B       total bandwidth, Hz; low_k, high_k limits of a share, Hz
Variables
    b_k or b_ik >= 0    bandwidth, Hz, shared by all blocks or one vector per block
    R_ik    rates in each direction, bit/s
    a_ik    air time in each direction, s
    T_i     latency of block i, s
Model
    minimise    sum_i T_i
    subject to  u_ik + a_ik^down + a_ik^up <= T_i           for loaded devices
                a_ik R_ik >= L s_ik                          (a rotated second-order cone)
                R_ik <= b_k log2(1 + c_ik / b_k)             (concave: an exponential cone)
                sum_k b_k <= B,  low_k <= b_k <= high_k

The air time is a variable of its own, so that a device without load may have no bandwidth at all.
Source: docs/mathematics.md, sections 1 and 2; convexity is fact 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from wdmoe_opt.bandwidth import demands
from wdmoe_opt.formulations.common import Data, Extract, check_structure, normalise
from wdmoe_opt.problem import Problem
from wdmoe_opt.validation import RealArray


class RadioPart:
    """Shares of the bandwidth and the rates they give: the part all convex models have in common.

    Parameters
    ----------
    data : Data
    budget : float or cvxpy expression
        What the shares of a row may sum to.

    Attributes
    ----------
    share : cvxpy.Variable (rows, devices)
        Share of the total bandwidth; one row if shared by all blocks.
    rate : dict of str to cvxpy.Variable (blocks or 1, devices)
        Rate in each direction with a payload, over the rate at an equal share.
    constraints : list
    """

    def __init__(self, data: Data, budget: Any = 1.0) -> None:
        import cvxpy as cp

        devices, rows = data.shape[1], data.rate_rows
        self.share = cp.Variable((data.rows, devices), nonneg=True, name="share")
        self.rate = {d: cp.Variable((rows, devices), nonneg=True, name=f"rate_{d}") for d in data.directions}
        self._logs, self._noise, self._signal, self._scale = (
            {d: cp.Parameter((rows, devices), nonneg=True) for d in data.directions} for _ in range(4)
        )
        self._low = cp.Parameter(devices, nonneg=True)
        self._high = cp.Parameter(devices, nonneg=True)
        every = self.share if data.rows == rows else np.ones((rows, 1)) @ self.share
        self.constraints: list[Any] = [cp.sum(self.share, axis=1) <= budget]
        for row in range(data.rows):
            self.constraints += [self.share[row] >= self._low, self.share[row] <= self._high]
        for d in data.directions:
            # Variables in between: parameter times parametrised expression would need a rebuild.
            spectral, part = (cp.Variable((rows, devices), nonneg=True) for _ in range(2))
            mixed = cp.multiply(self._noise[d], every) + self._signal[d]
            self.constraints += [
                part <= -cp.rel_entr(every, mixed),
                spectral == part + cp.multiply(self._logs[d], every),
                self.rate[d] == cp.multiply(self._scale[d], spectral),
            ]
        self.set(data)

    def block_rate(self, direction: str, blocks: int) -> Any:
        """Rate in one direction as an expression (blocks, devices)."""
        rate = self.rate[direction]
        return rate if rate.shape[0] == blocks else np.ones((blocks, 1)) @ rate

    def set(self, data: Data) -> None:
        """Put the numbers of ``data`` into the parameters.

        With C = max(c, 1) and c the SNR at full bandwidth, b ln(1 + c / b) = b ln C - b ln(b C / (b + c)):
        the cone's entries stay near 1 however large c is.
        """
        rows = slice(0, data.rate_rows)
        for d in data.directions:
            snr = data.snr(d)[rows]
            large = np.maximum(snr, 1.0)
            self._logs[d].value = np.log(large)
            self._noise[d].value, self._signal[d].value = 1.0 / large, snr / large
            self._scale[d].value = 1.0 / data.equal_rate(d)[rows]
        self._low.value, self._high.value = data.low, data.high


def product_at_least(first: Any, second: Any, root: Any) -> Any:
    """The constraint ``first * second >= root ** 2`` for non-negative factors, elementwise."""
    import cvxpy as cp

    size = int(np.prod(first.shape))
    rows = [2 * cp.reshape(root, (1, size), order="C"), cp.reshape(first - second, (1, size), order="C")]
    return cp.SOC(cp.reshape(first + second, (size,), order="C"), cp.vstack(rows), axis=0)


class BandwidthModel:
    """P-BW as a CVXPY problem.

    Parameters
    ----------
    problem : Problem
        Allocation "shared" or "per-block"; objective and floors play no part.
    keep : bool array (blocks, tokens, m), optional
        The selection; default plain top-k, or the instance's loads.

    Attributes
    ----------
    problem : cvxpy.Problem
    variables : dict of str to cvxpy.Variable
        "share" (rows, devices), "latency" (blocks,), "rate_down", "rate_up" (blocks, devices).

    Examples
    --------
    >>> import wdmoe_opt as wo
    >>> from wdmoe_opt.formulations.common import CLARABEL
    >>> inst = wo.load_instance("gpt-oss-20b-decode")
    >>> request = wo.Problem(inst, allocation="per-block")
    >>> model = BandwidthModel(request)
    >>> value = model.problem.solve(**CLARABEL)
    >>> found = model.extract()
    >>> exact = wo.solve(request, "topk").latency
    >>> abs(wo.evaluate(request, request.top_k_keep, found.bandwidth).latency / exact - 1) < 1e-4
    True
    """

    def __init__(self, problem: Problem, keep: NDArray[np.bool_] | None = None) -> None:
        import cvxpy as cp

        self.data = normalise(problem)
        blocks, devices = self.data.shape
        self._radio = RadioPart(self.data)
        latency = cp.Variable(blocks, nonneg=True, name="latency")
        self._busy = cp.Parameter((blocks, devices), nonneg=True)
        air = {d: cp.Variable((blocks, devices), nonneg=True) for d in self.data.directions}
        self._root = {d: cp.Parameter((blocks, devices), nonneg=True) for d in self.data.directions}
        constraints = list(self._radio.constraints)
        for d, a in air.items():
            constraints.append(product_at_least(a, self._radio.block_rate(d, blocks), self._root[d]))
        every = cp.reshape(latency, (blocks, 1), order="C") @ np.ones((1, devices))
        constraints.append(self._busy + sum(air.values()) <= every)
        self.problem = cp.Problem(cp.Minimize(cp.sum(latency)), constraints)
        self.variables = {"share": self._radio.share, "latency": latency}
        self.variables |= {f"rate_{d}": v for d, v in self._radio.rate.items()}
        self._set(self.data, keep)

    def update(self, problem: Problem, keep: NDArray[np.bool_] | None = None) -> None:
        """Take over the numbers of another problem of the same structure; nothing is rebuilt."""
        data = normalise(problem)
        check_structure(self.data, data)
        self._set(data, keep)

    def extract(self) -> Extract:
        """Variables in SI units."""
        share: RealArray = self.variables["share"].value
        latency = float(self.variables["latency"].value.sum()) * self.data.time_unit
        return Extract(None, self.data.bandwidth(share), latency)

    def _set(self, data: Data, keep: NDArray[np.bool_] | None) -> None:
        problem = data.problem
        self.data = data
        selection = problem.top_k_keep if keep is None and problem.selectable else keep
        sent, busy = demands(problem, selection)
        self._radio.set(data)
        self._busy.value = busy / data.time_unit
        for d in data.directions:
            self._root[d].value = np.sqrt(sent * data.slow(d))
