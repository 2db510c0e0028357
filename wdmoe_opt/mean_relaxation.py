"""Linear program whose multipliers are the prices of a certificate of form "mean".

A block waits at least for every one of its devices. What makes this hard is the product of a device's
transfers and its time on air. Between two limits of its transfers a device is relaxed to a mix of two
modes, fewest and most transfers, each with bandwidth of its own (the convex hull, since at given prices
the time is concave in the transfers). The time on air of a mode is convex in its bandwidth and enters by
tangents, added where the solution asks for them. Limits that meet make a device exact, so branching on
transfers, on active experts and on pairs closes every gap.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wdmoe_opt.problem import FEASIBILITY_TOLERANCE
from wdmoe_opt.relaxation import Proof, Relaxation
from wdmoe_opt.solvers.deadline import Deadline
from wdmoe_opt.validation import IntArray, RealArray

#: Bandwidths of the first tangents, as parts of the total.
FIRST = np.geomspace(0.02, 1.0, 5)
#: Rounds of new tangents; a round that gains less than this part of what is missing is the last.
ROUNDS, PROGRESS = 12, 1e-3
#: Error of a mode's time, in units of the goal, that asks for a tangent; distance of a new one from others.
ERROR, APART = 1e-9, 1e-7
#: Least share of a mode that is looked at, and least bandwidth, as a part of the total.
PRESENT, LEAST = 1e-6, 1e-7
#: Costs of a transfer (or of a token's retention) that is missing or too many, in units of the goal.
PENALTIES = (10.0, 1e3, 1e6)
LAST_PENALTY = len(PENALTIES) - 1
#: Time that a program gets at least, s.
LEAST_SECONDS = 0.1
#: Penalised amounts that count as none.
NONE = 1e-9
#: How far weights stay below a sum of 1.
WITHIN = 1e-13
_OPTIONS = {"primal_feasibility_tolerance": 1e-9, "dual_feasibility_tolerance": 1e-9}


@dataclass(frozen=True, eq=False)
class Tangents:
    """Where tangents of the time on air are taken: block, device, and bandwidth as a part of the total."""

    block: IntArray
    device: IntArray
    point: RealArray

    def take(self, which: NDArray[Any]) -> Tangents:
        """Some of them."""
        return Tangents(self.block[which], self.device[which], self.point[which])

    def join(self, other: Tangents) -> Tangents:
        """Both together."""
        return Tangents(
            np.concatenate([self.block, other.block]),
            np.concatenate([self.device, other.device]),
            np.concatenate([self.point, other.point]),
        )


@dataclass(frozen=True, eq=False)
class Answer:
    """Solution of the relaxation.

    Attributes
    ----------
    proof : Proof
        Its multipliers; the bound is the program's own value, not yet checked.
    tangents : Tangents
        Those that matter here, for a start below.
    mean : float array (blocks, tokens, m)
    awake : float array (blocks, experts)
    load, fewest, largest : float array (blocks, devices)
        Transfers, and their limits.
    missing : float array (blocks, devices), s
        By how much the relaxed device time falls short of what load and bandwidth take, priced.
    """

    proof: Proof
    tangents: Tangents
    mean: RealArray
    awake: RealArray
    load: RealArray
    fewest: RealArray
    largest: RealArray
    missing: RealArray


class _Rows:
    """Rows of a linear program, collected as triplets."""

    def __init__(self) -> None:
        self.rows: list[IntArray] = []
        self.columns: list[IntArray] = []
        self.values: list[RealArray] = []
        self.rhs: list[RealArray] = []
        self.count = 0

    def add(self, rhs: Any, *terms: tuple[Any, Any, Any]) -> slice:
        """Append rows with these right sides; a term holds rows among them, columns, and values."""
        right = np.atleast_1d(np.asarray(rhs, dtype=np.float64))
        for rows, columns, values in terms:
            rows, columns, values = np.broadcast_arrays(rows, columns, values)
            self.rows.append(rows.ravel() + self.count)
            self.columns.append(columns.ravel())
            self.values.append(values.ravel().astype(np.float64))
        self.rhs.append(right)
        start, self.count = self.count, self.count + right.size
        return slice(start, self.count)

    def copy(self) -> _Rows:
        """Rows to which more can be added."""
        found = _Rows()
        found.rows, found.columns, found.values = list(self.rows), list(self.columns), list(self.values)
        found.rhs, found.count = list(self.rhs), self.count
        return found

    def matrix(self, columns: int) -> tuple[Any, RealArray]:
        """Sparse matrix and right sides."""
        from scipy.sparse import csc_array

        where = (np.concatenate(self.rows), np.concatenate(self.columns))
        return (
            csc_array((np.concatenate(self.values), where), shape=(self.count, columns)),
            np.concatenate(self.rhs),
        )


class MeanRelaxation:
    """The program of a group of blocks with free bandwidth.

    Parameters
    ----------
    relaxation : Relaxation
        Of the group, without restrictions.
    unit : float, s
        About the latency of the group.
    """

    def __init__(self, relaxation: Relaxation, unit: float) -> None:
        self.base, self.unit = relaxation, unit
        t = relaxation.problem.tables
        self.tables, self.by_device = t, bool(t.by_device)
        self.blocks, self.devices = relaxation.blocks, relaxation.devices
        self.block, self.token, self.column = np.nonzero(relaxation.ids >= 0)
        self.expert = relaxation.ids[self.block, self.token, self.column].astype(np.int64)
        self.device = t.expert_device[self.expert].astype(np.int64)
        self.share = relaxation.share[self.block, self.token, self.column]
        self.at = np.arange(self.blocks * self.devices)
        self.low, self.high = t.low / t.total, np.minimum(t.high / t.total, 1.0)
        self._columns()
        self._fixed_rows()

    @property
    def first_tangents(self) -> Tangents:
        """Tangents to start from, on devices that some token can be sent to."""
        able = np.unique(self.block * self.devices + self.device)
        block, device = np.divmod(np.repeat(able, FIRST.size), self.devices)
        return Tangents(block, device, np.tile(FIRST, able.size))

    def _columns(self) -> None:
        """Number the variables."""
        pairs, modes = self.block.size, self.at.size
        sizes = {"hertz": self.devices, "latency": self.blocks, "pair": pairs}
        if self.by_device:
            tokens = self.base.tokens
            key = (self.block * tokens + self.token) * self.devices + self.device
            self.visits, self.visit = np.unique(key, return_inverse=True)
            self.visit_mode = (
                self.visits // (tokens * self.devices) * self.devices + self.visits % self.devices
            )
            sizes["visit"] = self.visits.size
        key = self.block * self.base.experts + self.expert
        costly = self.tables.activation[self.expert] > 0
        self.wakers = np.flatnonzero(costly)
        self.woken, self.wakes = np.unique(key[costly], return_inverse=True)
        sizes["awake"] = self.woken.size
        sizes |= dict.fromkeys(("most", "hertz_most", "hertz_few", "air_most", "air_few"), modes)
        sizes |= {"over": modes, "under": modes, "short": self.blocks}
        self.of: dict[str, IntArray] = {}
        self.size = 0
        for name, size in sizes.items():
            self.of[name] = np.arange(self.size, self.size + size)
            self.size += size

    def _fixed_rows(self) -> None:
        """Rows that no restriction changes."""
        rows, of, base = _Rows(), self.of, self.base
        tokens = self.blocks * base.tokens
        token = self.block * base.tokens + self.token
        slack = 1 - FEASIBILITY_TOLERANCE
        pair = of["pair"]
        rows.add([1.0], (0, of["hertz"], 1.0))
        rows.add(-self._fewest_experts().ravel(), (token, pair, -1.0))
        if base.problem.expert_cap < base.columns:
            rows.add(np.full(tokens, float(base.problem.expert_cap)), (token, pair, 1.0))
        if (base.floors > 0).any():
            floors = np.repeat(base.floors * slack, base.tokens)
            rows.add(-floors, (token, pair, -self.share))
        block = np.arange(self.blocks)
        self.retention_rows = rows.add(
            -base.needed * slack, (self.block, pair, -self.share), (block, of["short"], -1.0)
        )
        number = np.arange(self.wakers.size)
        self.share_rows = rows.add(
            np.zeros(number.size),
            (number, pair[self.wakers], 1.0), (number, of["awake"][self.wakes], -1.0),
        )  # fmt: skip
        if self.by_device:
            number, visit = np.arange(pair.size), of["visit"]
            rows.add(np.zeros(number.size), (number, pair, 1.0), (number, visit[self.visit], -1.0))
            number = np.arange(visit.size)
            rows.add(np.zeros(number.size), (number, visit, 1.0), (self.visit, pair, -1.0))
        self._bandwidth_rows(rows)
        self.fixed = rows

    def _bandwidth_rows(self, rows: _Rows) -> None:
        of, at = self.of, self.at
        high, low = np.tile(self.high, self.blocks), np.tile(self.low, self.blocks)
        none = np.zeros(at.size)
        rows.add(none, (at, of["hertz_most"], 1.0), (at, of["most"], -high))
        rows.add(high, (at, of["hertz_few"], 1.0), (at, of["most"], high))
        if low.any():
            rows.add(none, (at, of["hertz_most"], -1.0), (at, of["most"], low))
            rows.add(-low, (at, of["hertz_few"], -1.0), (at, of["most"], -low))
        self.hertz_rows = rows.add(
            none,
            (at, of["hertz_most"], 1.0), (at, of["hertz_few"], 1.0),
            (at, np.tile(of["hertz"], self.blocks), -1.0),
        )  # fmt: skip

    def _fewest_experts(self) -> RealArray:
        """How many experts a token needs at least for its floor, (blocks, tokens)."""
        base = self.base
        richest = -np.sort(-np.where(base.ids >= 0, base.share, 0.0), axis=2)
        floors = base.floors[:, None] * (1 - 2 * FEASIBILITY_TOLERANCE)
        enough = np.cumsum(richest, axis=2) >= floors[:, :, None]
        fewest: RealArray = np.where(enough.any(axis=2), enough.argmax(axis=2) + 1.0, 1.0)
        return fewest

    # ------------------------------------------------------------------ one solution

    def solve(
        self, relaxation: Relaxation, tangents: Tangents, goal: float, deadline: Deadline
    ) -> Answer | None:
        """Solve under the restrictions of ``relaxation``, to the goal (s) or as far as tangents lead.

        None where the program itself has no solution, or none in time.
        """
        program = _Program(self, relaxation)
        target, before = goal / self.unit, -np.inf
        penalty = 0
        for left in reversed(range(ROUNDS)):
            found = program.optimum(tangents, PENALTIES[penalty], deadline)
            while (
                found is not None
                and program.penalised(found)
                and found.fun < target
                and penalty < LAST_PENALTY
            ):
                penalty += 1
                found = program.optimum(tangents, PENALTIES[penalty], deadline)
            if found is None:
                return None
            new = program.wanted(found, tangents)
            late = found.fun - before < PROGRESS * (target - found.fun)
            # The answer is read off the program that was solved: no tangents are added to the last one.
            if found.fun >= target or new.point.size == 0 or late or left == 0:
                break
            before, tangents = found.fun, tangents.join(new)
        return program.answer(found, tangents)

    def air(self, tangents: Tangents) -> tuple[RealArray, RealArray]:
        """Time on air at the tangents, and how it changes with bandwidth, in the program's units."""
        t = self.tables
        b = tangents.point * t.total
        c_down, c_up = (
            c[tangents.block, tangents.device] for c in (self.base.link.c_down, self.base.link.c_up)
        )
        time, slope = np.zeros(b.shape), np.zeros(b.shape)
        for bits, c in ((t.bits_down, c_down), (t.bits_up, c_up)):
            if bits > 0:
                x = np.maximum(c, 1e-300) / b
                log = np.log1p(x)
                seconds = bits * np.log(2.0) / (b * log)
                time += seconds
                slope -= seconds * (log - x / (1 + x)) / (b * log)
        return time / self.unit, slope * t.total / self.unit


class _Program:
    """The program under certain restrictions."""

    def __init__(self, whole: MeanRelaxation, relaxation: Relaxation) -> None:
        self.whole, self.relaxation = whole, relaxation
        of, t = whole.of, whole.tables
        limits = relaxation.limits
        forced = np.stack([
            part.forced if part.forced.size else np.zeros(relaxation.ids.shape[1:], dtype=np.bool_)
            for part in limits
        ])  # fmt: skip
        place = (whole.block, whole.token, whole.column)
        self.possible = relaxation.ids[place] >= 0
        mode = whole.block * whole.devices + whole.device
        if whole.by_device:
            visited = np.zeros(whole.visits.size, dtype=np.bool_)
            visited[whole.visit[self.possible]] = True
            most = np.bincount(whole.visit_mode[visited], minlength=whole.at.size)
        else:
            most = np.bincount(mode[self.possible], minlength=whole.at.size)
        held = np.concatenate([part.held for part in limits])
        must = np.bincount(mode[forced[place]], minlength=whole.at.size) > 0
        self.few = np.maximum(np.concatenate([part.fewest for part in limits]), 1.0 * (held | must))
        self.most = np.minimum(np.concatenate([part.largest for part in limits]), most)
        self.opened = np.stack([part.opened for part in limits]).ravel()[whole.woken]
        lower, upper = np.zeros(whole.size), np.full(whole.size, np.inf)
        lower[of["hertz"]], upper[of["hertz"]] = whole.low, whole.high
        lower[of["pair"]], upper[of["pair"]] = forced[place], self.possible
        usable = relaxation.usable_experts.ravel()[whole.woken]
        lower[of["awake"]], upper[of["awake"]] = self.opened & usable, usable
        met = self.few >= self.most
        lower[of["most"]], upper[of["most"]] = met & (self.most > 0), self.most > 0
        if whole.by_device:
            upper[of["visit"]] = 1.0
        self.bounds = np.column_stack([lower, upper])
        self._rows(t)

    def _rows(self, t: Any) -> None:
        """Latency and load rows, which depend on the limits."""
        whole, of, at = self.whole, self.whole.of, self.whole.at
        block, device = np.divmod(at, whole.devices)
        mode = whole.block * whole.devices + whole.device
        delay = t.link_delay[device] / whole.unit
        waits = self.few > 0
        self.rows = whole.fixed.copy()
        woken_block, woken = np.divmod(whole.woken, whole.base.experts)
        self.latency_rows = self.rows.add(
            np.where(waits, -delay, 0.0),
            (at, of["latency"][block], -1.0),
            (mode, of["pair"], t.compute[whole.expert] / whole.unit),
            (woken_block * whole.devices + t.expert_device[woken], of["awake"],
             t.activation[woken] / whole.unit),
            (at, of["air_most"], self.most), (at, of["air_few"], self.few),
            (at, of["most"], np.where(waits, 0.0, delay)),
        )  # fmt: skip
        self.loads = _Rows()
        sends = (whole.visit_mode, of["visit"], 1.0) if whole.by_device else (mode, of["pair"], 1.0)
        self.loads.add(
            self.few, sends, (at, of["most"], self.few - self.most),
            (at, of["under"], 1.0), (at, of["over"], -1.0),
        )  # fmt: skip

    def optimum(self, tangents: Tangents, penalty: float, deadline: Deadline) -> Any:
        """Solution with these tangents, by HiGHS; None where there is none."""
        from scipy.optimize import linprog

        whole, of = self.whole, self.whole.of
        rows = self.rows.copy()
        time, slope = whole.air(tangents)
        mode = tangents.block * whole.devices + tangents.device
        # air >= (time - slope point) share + slope hertz
        number, foot = np.arange(mode.size), time - slope * tangents.point
        self.most_rows = rows.add(
            np.zeros(mode.size), (number, of["air_most"][mode], -1.0),
            (number, of["most"][mode], foot), (number, of["hertz_most"][mode], slope),
        )  # fmt: skip
        self.few_rows = rows.add(
            -foot, (number, of["air_few"][mode], -1.0),
            (number, of["most"][mode], -foot), (number, of["hertz_few"][mode], slope),
        )  # fmt: skip
        cost = np.zeros(whole.size)
        cost[of["latency"]] = 1.0
        for name in ("over", "under", "short"):
            cost[of[name]] = penalty
        upper, right = rows.matrix(whole.size)
        equal, exactly = self.loads.matrix(whole.size)
        options = dict(_OPTIONS)
        if np.isfinite(deadline.left):
            options["time_limit"] = max(deadline.left, LEAST_SECONDS)
        found = linprog(cost, upper, right, equal, exactly, self.bounds, method="highs-ds", options=options)
        return found if found.status == 0 else None

    def penalised(self, found: Any) -> bool:
        """Whether the solution breaks a floor or a limit, for its price."""
        return any(found.x[self.whole.of[name]].sum() > NONE for name in ("over", "under", "short"))

    def wanted(self, found: Any, tangents: Tangents) -> Tangents:
        """Further tangents that the solution asks for."""
        whole, of, x = self.whole, self.whole.of, found.x
        new = []
        for share, hertz, air, count in (
            (x[of["most"]], "hertz_most", "air_most", self.most),
            (1 - x[of["most"]], "hertz_few", "air_few", self.few),
        ):
            here = np.flatnonzero((share > PRESENT) & (count > 0))
            block, device = np.divmod(here, whole.devices)
            point = np.clip(x[of[hertz][here]] / share[here], LEAST, 1.0)
            spot = Tangents(block, device, point)
            time, _ = whole.air(spot)
            error = count[here] * (time * share[here] - x[of[air][here]])
            near = (tangents.block == block[:, None]) & (tangents.device == device[:, None])
            near &= np.abs(tangents.point - point[:, None]) < APART * point[:, None]
            new.append(spot.take((error > ERROR) & ~near.any(axis=1)))
        return new[0].join(new[1])

    def answer(self, found: Any, tangents: Tangents) -> Answer:
        """Prices, means, and what the relaxation misses."""
        whole, of, x = self.whole, self.whole.of, found.x
        shape = (whole.blocks, whole.devices)
        dual = np.maximum(-found.ineqlin.marginals, 0.0)
        active = dual[self.most_rows] + dual[self.few_rows] > 0
        base = np.zeros(active.shape, dtype=np.bool_)
        base[: whole.first_tangents.point.size] = True
        weight = dual[self.latency_rows].reshape(shape)
        weight *= (1 - WITHIN) / np.maximum(weight.sum(axis=1, keepdims=True), 1.0)
        load = self._load(x)
        mean, awake = np.zeros(whole.base.ids.shape), np.zeros(whole.blocks * whole.base.experts)
        mean[whole.block, whole.token, whole.column] = x[of["pair"]]
        awake[whole.woken] = x[of["awake"]]
        # What load and bandwidth would take, less what their relaxation does.
        loaded = np.flatnonzero(self.few < self.most)
        block, device = np.divmod(loaded, whole.devices)
        hertz = np.maximum(x[of["hertz"][device]], LEAST)
        time, _ = whole.air(Tangents(block, device, hertz))
        relaxed = self.most * x[of["air_most"]] + self.few * x[of["air_few"]]
        delay = whole.tables.link_delay[device] / whole.unit
        waits = ((load > NONE) - x[of["most"]])[loaded] * (self.few == 0)[loaded]
        missing = np.zeros(load.shape)
        missing[loaded] = load[loaded] * time - relaxed[loaded] + delay * waits
        return Answer(
            self._proof(found, weight, dual), tangents.take(active | base), mean,
            awake.reshape(whole.blocks, -1), load.reshape(shape), self.few.reshape(shape),
            self.most.reshape(shape), missing.reshape(shape) * whole.unit,
        )  # fmt: skip

    def _load(self, x: RealArray) -> RealArray:
        """Transfers to every device, (modes,)."""
        whole = self.whole
        mode, name = whole.block * whole.devices + whole.device, "pair"
        if whole.by_device:
            mode, name = whole.visit_mode, "visit"
        load: RealArray = np.bincount(mode, x[whole.of[name]], whole.at.size).astype(np.float64)
        return load

    def _proof(self, found: Any, weight: RealArray, dual: RealArray) -> Proof:
        whole, unit = self.whole, self.whole.unit
        shape, total = weight.shape, whole.tables.total
        share = np.zeros(whole.base.ids.shape)
        paid = dual[whole.share_rows] * unit
        wakers = whole.wakers
        share[whole.block[wakers], whole.token[wakers], whole.column[wakers]] = paid
        share = np.where(self.relaxation.ids >= 0, share, 0.0)
        wake = np.zeros(whole.blocks * whole.base.experts)
        wake[whole.woken] = np.bincount(whole.wakes, paid, whole.woken.size)
        x, of = found.x, whole.of
        mix = np.maximum(x[of["most"]], PRESENT)
        point = np.where(x[of["most"]] > PRESENT, x[of["hertz_most"]] / mix, x[of["hertz_few"]])
        zero = np.zeros(whole.blocks)
        return Proof(
            bound=float(found.fun) * unit,
            send=-found.eqlin.marginals.reshape(shape) * unit,
            work=weight,
            wake=wake.reshape(whole.blocks, -1),
            share=share if share.any() else None,
            retention=dual[whole.retention_rows] * unit,
            bandwidth=dual[whole.hertz_rows].reshape(shape) * unit / total,
            points=np.maximum(point, LEAST).reshape(shape) * total,
            deadline=zero, offset=zero, grid=np.zeros((whole.blocks, 1)), horizon=zero, form="mean",
        )  # fmt: skip
