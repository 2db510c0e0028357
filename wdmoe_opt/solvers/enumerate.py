"""Exact oracle for tiny instances: every distinct load vector, priced exactly.

The latency of a block depends on its selection only through the tokens per expert and the transfers per
device. Tokens are added one after the other; of all partial selections with the same loads only the one
that keeps most is carried on, which loses nothing: floors per token and caps are settled when a token's
options are listed, and the mean floor only asks for as much as possible.

With bandwidth per block (or fixed) the blocks are independent. With shared bandwidth the price of a
combination is at least the sum of its blocks' own best prices, so combinations are priced in the order
of that bound until it passes the best price found.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from wdmoe_opt.bandwidth import allocate
from wdmoe_opt.floors import fixed_link_times, floor_conflict, usable
from wdmoe_opt.kernels.block_bandwidth import block_bandwidth
from wdmoe_opt.kernels.link import link_times
from wdmoe_opt.kernels.pricing import busy_times
from wdmoe_opt.problem import FEASIBILITY_TOLERANCE, Problem
from wdmoe_opt.registry import Control, Point, Termination
from wdmoe_opt.solvers.deadline import Deadline, OutOfTimeError
from wdmoe_opt.solvers.enumerate_ratio import best_ratio
from wdmoe_opt.solvers.token_options import token_options, too_many
from wdmoe_opt.validation import IntArray, RealArray

#: Largest number of load vectors of one block, and of combinations of blocks, that is listed.
MAX_STATES = 2_000_000
#: Rounding of exact prices: what is claimed lies this much, relatively, beyond the value.
ROUNDING = 1e-9


@dataclass(frozen=True, eq=False)
class Loads:
    """Distinct load vectors of one block and what each costs and keeps.

    Attributes
    ----------
    block : int
    sent, busy : float arrays (states, devices)
        Transfers, and seconds that bandwidth cannot change.
    latency : float array (states,), s
        With the bandwidth given to this block alone, or with the fixed one.
    retention : float array (states,)
        Largest mean token retention of any selection with these loads.
    path : int array (states, tokens)
        Which of a token's options leads there.
    options : tuple of bool array (options, m)
        Of every token.
    """

    block: int
    sent: RealArray
    busy: RealArray
    latency: RealArray
    retention: RealArray
    path: IntArray
    options: tuple[NDArray[np.bool_], ...]

    def keep(self, state: int) -> NDArray[np.bool_]:
        """The selection behind a state, bool (tokens, m)."""
        return np.array([option[o] for option, o in zip(self.options, self.path[state], strict=True)])

    def take(self, states: NDArray[np.intp]) -> Loads:
        """Some of the states."""
        return replace(
            self,
            sent=self.sent[states],
            busy=self.busy[states],
            latency=self.latency[states],
            retention=self.retention[states],
            path=self.path[states],
        )


def enumerate_loads(problem: Problem, control: Control, max_states: int = MAX_STATES) -> Point:
    """Find the optimum by listing every distinct load vector.

    Parameters
    ----------
    problem : Problem
        Tiny: the number of load vectors grows like tokens to the power of experts.
    control : Control
        Its time limit is honoured; its gap is not used, the result is exact.
    max_states : int
        Largest number of load vectors of a block and of combinations of blocks.

    Returns
    -------
    Point
        Bound claimed: the value itself, less rounding.

    Raises
    ------
    UnsupportedError
        If there are more than ``max_states``, or with a weight-to-latency objective more selections.
    """
    conflict = floor_conflict(problem)
    if conflict:
        return Point.nothing("infeasible", detail=conflict)
    deadline = Deadline.of(control)
    try:
        deadline.check()
        if problem.objective.startswith("wlr"):
            return best_ratio(problem, deadline, max_states)
        blocks = [block_loads(problem, i, deadline, max_states) for i in range(problem.instance.blocks)]
    except OutOfTimeError:
        return Point.nothing("no-solution", "time", "the time limit passed while loads were listed")
    search = _most_retention if problem.objective == "retention" else _least_latency
    return search(problem, blocks, deadline, max_states)


def option_loads(problem: Problem, options: NDArray[np.bool_], i: int, j: int) -> tuple[IntArray, IntArray]:
    """What each option of a token adds to experts and devices, two int arrays (options, ...)."""
    t = problem.tables
    experts = np.zeros((len(options), t.expert_device.size), dtype=np.int64)
    devices = np.zeros((len(options), t.c_down.shape[1]), dtype=np.int64)
    for o, option in enumerate(options):
        chosen = t.ids[i, j, option]
        experts[o, chosen] = 1
        np.add.at(devices[o], t.expert_device[chosen], 1)
    return experts, np.minimum(devices, 1) if t.by_device else devices


def block_loads(problem: Problem, i: int, deadline: Deadline, max_states: int) -> Loads:
    """List and price the distinct load vectors of block ``i`` that can keep its mean floor."""
    t = problem.tables
    able = usable(problem)
    tokens = t.ids.shape[1]
    vectors = np.zeros((1, t.expert_device.size + t.c_down.shape[1]), dtype=np.int64)
    kept = np.zeros(1)
    path = np.zeros((1, 0), dtype=np.int64)
    listed = []
    for j in range(tokens):
        deadline.check()
        options = token_options(problem, able, i, j)
        listed.append(options)
        if len(vectors) * len(options) > max_states:
            raise too_many(f"block {i} has more than {max_states} load vectors")
        added = np.hstack(option_loads(problem, options, i, j))
        gain = np.where(options, t.weights[i, j], 0.0).sum(axis=1) / t.mass[i, j]
        grown = (vectors[:, None, :] + added).reshape(-1, vectors.shape[1])
        total = (kept[:, None] + gain).ravel()
        vectors, best = _richest_of_each(grown, total)
        parent, choice = np.divmod(best, len(options))
        kept = total[best]
        path = np.column_stack([path[parent], choice])
    reached = kept / tokens >= float(np.asarray(problem.min_retention)[i]) * (1 - FEASIBILITY_TOLERANCE)
    experts = t.expert_device.size
    return priced_loads(
        problem, i, vectors[reached, :experts], vectors[reached, experts:].astype(np.float64),
        kept[reached] / tokens, path[reached], tuple(listed), deadline,
    )  # fmt: skip


def priced_loads(
    problem: Problem,
    i: int,
    expert_load: IntArray,
    sent: RealArray,
    retention: RealArray,
    path: IntArray,
    options: tuple[NDArray[np.bool_], ...],
    deadline: Deadline,
) -> Loads:
    """Price load vectors of block ``i`` exactly, each with all the bandwidth, or with the fixed one."""
    t = problem.tables
    busy = np.empty(sent.shape)
    busy_times(expert_load, sent, t.expert_device, t.compute, t.activation, t.link_delay, busy)
    if problem.allocation == "fixed":
        link = fixed_link_times(problem)
        air = np.multiply(sent, link[i], out=np.zeros_like(sent), where=sent > 0)
        return Loads(i, sent, busy, (busy + air).max(axis=1), retention, path, options)
    latency = np.empty(len(sent))
    out = np.empty(t.low.size)
    link_args = (t.bits_down, t.c_down[i], t.bits_up, t.c_up[i], t.low, t.high, t.total)
    for s in range(len(sent)):
        if s % 256 == 0:
            deadline.check()
        latency[s], _ = block_bandwidth(sent[s], busy[s], *link_args, out)
    return Loads(i, sent, busy, latency, retention, path, options)


def _richest_of_each(vectors: IntArray, kept: RealArray) -> tuple[IntArray, NDArray[np.intp]]:
    """Distinct rows, and for each the index of the one that keeps most."""
    distinct, group = np.unique(vectors, axis=0, return_inverse=True)
    group = group.reshape(-1)
    order = np.lexsort((-kept, group))
    first = np.flatnonzero(np.r_[True, np.diff(group[order]) > 0])
    return distinct, order[first]


# ---------------------------------------------------------------------- latency


def _least_latency(problem: Problem, blocks: list[Loads], deadline: Deadline, max_states: int) -> Point:
    if problem.allocation != "shared" or len(blocks) == 1:
        chosen = [int(b.latency.argmin()) for b in blocks]
        least = float(sum(b.latency.min() for b in blocks))
        return _within_cap(problem, _answer(problem, blocks, chosen, least), least)
    blocks = [b.take(_undominated(np.hstack([b.sent, b.busy]))) for b in blocks]
    start = [int(b.latency.argmin()) for b in blocks]
    best, chosen = _shared_price(problem, blocks, start), start
    bound, combos = _combinations([b.latency for b in blocks], best * (1 + ROUNDING), max_states)
    for low, combo in zip(bound, combos, strict=True):
        if low >= best:
            break
        if deadline.left == 0.0:
            return _answer(problem, blocks, chosen, low, limit="time")
        price = _shared_price(problem, blocks, combo)
        if price < best:
            best, chosen = price, list(combo)
    return _within_cap(problem, _answer(problem, blocks, chosen, best), best)


def _undominated(costs: RealArray) -> NDArray[np.intp]:
    """Rows that no other row undercuts or equals in every column."""
    order = np.lexsort((*costs.T, costs.sum(axis=1)))
    kept: list[int] = []
    for row in order:
        if not (kept and (costs[kept] <= costs[row]).all(axis=1).any()):
            kept.append(int(row))
    return np.array(kept, dtype=np.intp)


def _combinations(costs: list[RealArray], cap: float, max_states: int) -> tuple[RealArray, IntArray]:
    """Sums of one cost per block that stay at most ``cap``, ascending, and the states (sums, blocks)."""
    sums = np.zeros(1)
    states = np.zeros((1, 0), dtype=np.int64)
    least = np.array([cost.min() for cost in costs])
    for i, cost in enumerate(costs):
        able = np.flatnonzero(cost + least.sum() - least[i] <= cap)
        if len(sums) * len(able) > max_states:
            raise too_many(f"there are more than {max_states} combinations of its blocks' loads")
        total = (sums[:, None] + cost[able]).ravel()
        left = np.flatnonzero(total + least[i + 1 :].sum() <= cap)
        parent, state = np.divmod(left, len(able))
        sums, states = total[left], np.column_stack([states[parent], able[state]])
    order = np.argsort(sums, kind="stable")
    return sums[order], states[order]


def _shared_price(problem: Problem, blocks: list[Loads], states: IntArray | list[int]) -> float:
    """Exact latency of one state per block under shared bandwidth, s."""
    sent, busy, bandwidth = _shared(problem, blocks, states)
    t = problem.tables
    link = link_times(bandwidth[None, :], t.bits_down, t.c_down, t.bits_up, t.c_up)
    air = np.multiply(sent, link, out=np.zeros_like(sent), where=sent > 0)
    return float((busy + air).max(axis=1).sum())


def _shared(
    problem: Problem, blocks: list[Loads], states: IntArray | list[int]
) -> tuple[RealArray, RealArray, RealArray]:
    sent = np.array([b.sent[s] for b, s in zip(blocks, states, strict=True)])
    busy = np.array([b.busy[s] for b, s in zip(blocks, states, strict=True)])
    bandwidth = allocate(problem, sent, busy).bandwidth
    assert bandwidth is not None
    return sent, busy, bandwidth


# ---------------------------------------------------------------------- retention under a latency cap


def _most_retention(problem: Problem, blocks: list[Loads], deadline: Deadline, max_states: int) -> Point:
    assert problem.max_latency is not None
    cap = problem.max_latency * (1 + FEASIBILITY_TOLERANCE)
    if sum(b.latency.min() for b in blocks) > cap:
        return _beyond_cap(problem, float(sum(b.latency.min() for b in blocks)))
    coupled = problem.allocation == "shared" and len(blocks) > 1
    costs = [np.hstack([b.sent, b.busy]) if coupled else b.latency[:, None] for b in blocks]
    blocks = [
        b.take(_undominated(np.column_stack([cost, -b.retention])))
        for b, cost in zip(blocks, costs, strict=True)
    ]
    _, combos = _combinations([b.latency for b in blocks], cap, max_states)
    kept = sum(b.retention[combos[:, i]] for i, b in enumerate(blocks))
    assert isinstance(kept, np.ndarray)
    order = np.argsort(-kept, kind="stable")
    for n in order:
        if deadline.left == 0.0:
            return Point.nothing("no-solution", "time", "no combination within max_latency met in time")
        if not coupled or _shared_price(problem, blocks, combos[n]) <= cap:
            value = float(kept[n]) / len(blocks)
            return _answer(problem, blocks, list(combos[n]), value)
    return _beyond_cap(problem, float(min(_shared_price(problem, blocks, c) for c in combos)))


def _beyond_cap(problem: Problem, least: float) -> Point:
    detail = f"max_latency = {problem.max_latency!r} s is below the least possible latency, {least:.9g} s"
    return Point.nothing("infeasible", detail=detail)


def _within_cap(problem: Problem, point: Point, latency: float) -> Point:
    """The point of least latency, unless even that is beyond a cap."""
    cap = problem.max_latency
    if cap is not None and latency > cap * (1 + FEASIBILITY_TOLERANCE):
        return _beyond_cap(problem, latency)
    return point


def _answer(problem: Problem, blocks: list[Loads], states: list[int], bound: float, limit: str = "") -> Point:
    """The point of one state per block, with its bound rounded outward."""
    keep = np.array([b.keep(int(s)) for b, s in zip(blocks, states, strict=True)])
    sent = np.array([b.sent[s] for b, s in zip(blocks, states, strict=True)])
    busy = np.array([b.busy[s] for b, s in zip(blocks, states, strict=True)])
    best = allocate(problem, sent, busy)
    sign = -1.0 if problem.objective == "latency" else 1.0
    counts = ", ".join(str(b.latency.size) for b in blocks)
    end = Termination(
        "feasible-at-limit" if limit else "optimal", limit, f"load vectors considered per block: {counts}"
    )
    return Point(
        keep,
        best.bandwidth,
        end,
        lower_bound=bound * (1 + sign * ROUNDING),
        bound_kind="claimed",
        kkt_residual=best.kkt_residual,
    )
