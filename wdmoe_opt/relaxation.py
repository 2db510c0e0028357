"""The relaxed joint problem of a group of blocks: its prices, the bounds they prove, and roundings.

Relaxed are only the integrality of the selection and, where experts share a device and cost activation,
which of them are active together (facts 3 to 8). Prices are found by `kernels.price_newton` at ever
narrower smoothing; any prices prove a bound, the best ones met are kept.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wdmoe_opt.bandwidth import demands
from wdmoe_opt.floors import fixed_link_times, usable
from wdmoe_opt.kernels.ascent import MOVE, RECENT, ascend, share_step
from wdmoe_opt.kernels.block_bandwidth import block_bandwidth, block_multipliers, soft_multipliers
from wdmoe_opt.kernels.bounds import Limits, block_deadline, order_members, token_bound
from wdmoe_opt.kernels.link import link_times
from wdmoe_opt.kernels.price_newton import Link, Prices, first_retention_price, newton
from wdmoe_opt.kernels.pricing import device_times
from wdmoe_opt.kernels.response import Items
from wdmoe_opt.kernels.rounding import round_block
from wdmoe_opt.kernels.share_bound import ROUNDS, share_bound
from wdmoe_opt.kernels.shared_bandwidth import shared_bandwidth
from wdmoe_opt.kernels.single_block import Block, fleet_work
from wdmoe_opt.problem import FEASIBILITY_TOLERANCE, Problem
from wdmoe_opt.validation import RealArray, freeze

#: Values of x = 1 / (T - offset) around the present one at which device terms are taken.
GRID = np.array([0.0, 0.4, 0.6, 0.75, 0.85, 0.92, 0.97, 1.0, 1.03, 1.08, 1.15, 1.25, 1.4])
#: Further values, in equal ratios, up to the largest that the block's own bound leaves possible.
FAR = np.linspace(0.0, 1.0, 9)[1:]
#: First product of price and slack, as a part of the deadline, and least multiplier to start from.
FIRST_BARRIER, LEAST_MULTIPLIER = 0.1, 0.05
#: Floors of a selection are met up to this part, well within the feasibility tolerance.
FLOOR_SLACK = 1e-12
#: Relative precision of the deadline that prices rule out.
PRECISION = 4e-12
#: Sharpness that singles out the slowest device.
SLOWEST = 1e9
#: Ascent steps on blocks that share bandwidth between two changes of offset and grid; patience on the way.
JOINT_STEPS, JOINT_PATIENCE = 12, 3
#: Part of an equal share at which devices without tokens are priced.
IDLE_SHARE = 0.01
#: Multiplier that ascent starts from on devices that wait.
TRACE_MULTIPLIER = 1e-3
#: How close to a limit bandwidth is at it.
AT_LIMIT = 1e-6
#: Smoothing of the slowest device where bandwidth is fixed.
SHARPNESS = 20.0


#: Residual at which a stage of the Newton iteration is given up.
ASTRAY = 3.0
#: Tokens up to which the number of candidates of a device is worth knowing.
FEW_TOKENS = 64


class Stage(NamedTuple):
    """One stage of the Newton iteration.

    Attributes
    ----------
    width : float
        Half width of the smoothing, relative to prices.
    barrier : float
        Sum over devices of price times slack, as a part of the deadline.
    steps : int
    tolerance : float
        Relative residual at which the stage ends.
    """

    width: float
    barrier: float
    steps: int
    tolerance: float


#: Ever narrower smoothing; the first stages only lead to the bounds of the later ones.
LEAD = (Stage(0.5, 0.1, 8, 0.1), Stage(0.5, 0.03, 6, 0.1), Stage(0.5, 0.01, 6, 0.05))
PROVE = (Stage(0.2, 1e-3, 6, 0.02), Stage(0.07, 1e-4, 6, 0.01), Stage(0.03, 1e-5, 6, 0.01))


@dataclass(eq=False)
class Proof:
    """Prices of a group of blocks and the bound they prove; see `certificates.Certificate`."""

    bound: float
    send: RealArray
    work: RealArray
    wake: RealArray
    share: RealArray | None
    retention: RealArray
    bandwidth: RealArray
    points: RealArray
    deadline: RealArray
    offset: RealArray
    grid: RealArray
    horizon: RealArray
    form: Literal["deadline", "shared", "mean"] = "deadline"
    floor: Proof | None = None
    toll: RealArray | None = None

    def quote(self, horizon: RealArray) -> Quote:
        """The prices of a proof of form "deadline"."""
        return Quote(self.send, self.work, self.retention, self.bandwidth, self.points, horizon)


def join(proofs: list[Proof]) -> Proof:
    """Proofs of form "deadline" of single groups as one of all."""
    parts: dict[str, Any] = {
        name: np.concatenate([getattr(proof, name) for proof in proofs])
        for name in (
            "send",
            "work",
            "wake",
            "retention",
            "bandwidth",
            "points",
            "deadline",
            "offset",
            "grid",
            "horizon",
        )
    }
    share = None
    sizes = [proof.share.shape for proof in proofs if proof.share is not None]
    if sizes:
        share = np.concatenate(
            [np.zeros((1, *sizes[0][1:])) if proof.share is None else proof.share for proof in proofs]
        )
    return Proof(bound=float(parts["deadline"].sum()), share=share, **parts)


@dataclass(frozen=True, eq=False)
class Quote:
    """Prices of a group of blocks, in seconds of block latency.

    Attributes
    ----------
    send, second : float arrays (blocks, devices)
        Price of a transfer and of a device second.
    retention : float array (blocks,)
    bandwidth : float array (blocks, devices)
        Price of a hertz.
    points : float array (blocks, devices), Hz
        About the bandwidth that devices choose at these prices.
    horizon : float array (blocks,), s
        About the latency of the blocks.
    """

    send: RealArray
    second: RealArray
    retention: RealArray
    bandwidth: RealArray
    points: RealArray
    horizon: RealArray

    @property
    def sound(self) -> bool:
        """Whether all prices are finite and every block has some."""
        numbers = (self.send, self.second, self.retention, self.bandwidth, self.points)
        finite = all(np.isfinite(array).all() for array in numbers)
        return finite and bool((self.second.sum(axis=1) > 0).all() and (self.points > 0).all())


@dataclass(frozen=True, eq=False)
class Restriction:
    """What a block's selections are restricted to in a branch.

    Attributes
    ----------
    state : int8 array (tokens, m)
        1 for pairs that are kept, -1 for those that are not.
    experts : int8 array (experts,)
        1 for experts that are active, -1 for those that are not.
    fewest, largest : float arrays (devices,)
        Limits of the transfers to a device.
    """

    state: NDArray[np.int8]
    experts: NDArray[np.int8]
    fewest: RealArray
    largest: RealArray


class TokenPart(NamedTuple):
    """What the tokens of a block pay, their surpluses, the experts' values, and the experts by device."""

    paid: float
    surplus: RealArray
    value: RealArray
    order: tuple[NDArray[np.int64], NDArray[np.int64]]


@dataclass
class _Climb:
    """How far an ascent has come: its steps, and their length."""

    steps: int = 0
    length: float = 1.0

    @property
    def weight(self) -> float:
        """Weight of the next step in the mean selection."""
        return max(1.0 / (self.steps + 1.0), RECENT)


class Relaxation:
    """State of the relaxed problem.

    Parameters
    ----------
    problem : Problem
        Objective "latency", with tokens.
    rows : slice
        Blocks that share bandwidth, or a single block.
    """

    def __init__(self, problem: Problem, rows: slice) -> None:
        t = problem.tables
        self.problem, self.rows = problem, rows
        self.free = problem.allocation != "fixed"
        self.ids, self.share = self._routing()
        self.blocks, self.tokens, self.columns = self.ids.shape
        self.devices, self.experts = t.low.size, t.expert_device.size
        c_down, c_up = t.c_down[rows], t.c_up[rows]
        self.link = Link(t.bits_down, c_down, t.bits_up, c_up, t.low, t.high, t.total, t.link_delay)
        # A bound must hold for whatever counts as feasible, so its limits are the tolerance wider.
        slack = FEASIBILITY_TOLERANCE * t.total
        self.bound_link = Link(
            t.bits_down, c_down, t.bits_up, c_up, np.maximum(t.low - slack, 0.0), t.high + slack,
            t.total + slack, t.link_delay,
        )  # fmt: skip
        self.needed = np.asarray(problem.min_retention)[rows] * self.tokens
        self.floors = np.asarray(problem.min_token_retention)[rows]
        self.link_time = (
            np.zeros((self.blocks, self.devices)) if self.free else fixed_link_times(problem)[rows]
        )
        self.link_time = np.ascontiguousarray(np.broadcast_to(self.link_time, (self.blocks, self.devices)))
        #: Seconds per transfer of bounds: bandwidth may exceed what is fixed by the tolerance.
        self.quickest = self.link_time
        if not self.free and t.fixed_link_time is None:
            given = np.atleast_2d(np.asarray(problem.fixed_bandwidth)) + slack
            rows_given = given[rows] if given.shape[0] > 1 else given
            self.quickest = link_times(rows_given, t.bits_down, c_down, t.bits_up, c_up)
        self.loads = np.empty((self.blocks, self.devices))
        self.best: Proof | None = None
        #: About the relaxed solution, after an ascent.
        self.mean = np.zeros(self.ids.shape)
        self.awake = np.zeros((self.blocks, self.experts))

    # ------------------------------------------------------------------ facts

    def _routing(self) -> tuple[NDArray[np.int32], RealArray]:
        """Candidates that can be used, and their shares, two arrays (blocks, tokens, m)."""
        problem, rows = self.problem, self.rows
        allowed = problem.allowed_ids[rows]
        ids = allowed if self.free else np.where(usable(problem)[rows], allowed, np.int32(-1))
        return _frozen(ids), problem.shares[rows]

    @cached_property
    def alike(self) -> bool:
        """Whether all experts of a device take equal compute time."""
        t = self.problem.tables
        most = np.zeros(self.devices)
        np.maximum.at(most, t.expert_device, t.compute)
        return bool((most[t.expert_device] == t.compute).all())

    @cached_property
    def wakes(self) -> NDArray[np.bool_]:
        """Experts whose activation, or their device's delay, costs time, (blocks, experts)."""
        t = self.problem.tables
        costly = (t.activation > 0) | (t.link_delay[t.expert_device] > 0)
        return _frozen(np.broadcast_to(costly, (self.blocks, self.experts)))

    @cached_property
    def dependent(self) -> bool:
        """Whether activation or delays make device terms depend on the latency, whoever pays for them."""
        t = self.problem.tables
        return bool(((t.activation > 0) | (t.link_delay[t.expert_device] > 0)).any())

    @cached_property
    def limits(self) -> list[Limits]:
        """Restrictions of every block; here, only what follows from the number of candidates."""
        return [
            Limits(
                np.zeros((0, 0), dtype=np.bool_), np.zeros(self.experts, dtype=np.bool_),
                np.zeros(self.devices), np.zeros(self.devices, dtype=np.bool_), np.zeros(self.devices),
                self._possible(i),
            )
            for i in range(self.blocks)
        ]  # fmt: skip

    def _possible(self, i: int) -> RealArray:
        """Most transfers to every device; inf where tokens are many, or where experts are to be chosen."""
        if self.tokens > FEW_TOKENS:
            return np.full(self.devices, np.inf)
        t = self.problem.tables
        there = self.ids[i] >= 0
        device = np.where(there, t.expert_device[np.maximum(self.ids[i], 0)], -1)
        choice = np.bincount(t.expert_device, t.activation > 0, self.devices) > 1
        most = np.full(self.devices, np.inf)
        for k in np.flatnonzero(~choice):
            here = device == k
            most[k] = here.any(axis=1).sum() if t.by_device else here.sum()
        return most

    @cached_property
    def items(self) -> Items:
        """What tokens can take, for the Newton iteration."""
        t = self.problem.tables
        if not t.by_device:
            work = np.zeros((1, 1, 1)) if self.alike else t.compute[np.maximum(self.ids, 0)]
            activation = np.broadcast_to(t.activation, (self.blocks, self.experts))
            return Items(
                self.ids, self.share, work, t.expert_device, np.ascontiguousarray(activation), self.alike
            )
        return self._device_items()

    def as_block(self) -> Block:
        """The single block of a group with free bandwidth and dispatch "expert", for its own kernel."""
        t = self.problem.tables
        alike, mean_work = fleet_work(t.expert_device, t.compute, self.devices)
        work = np.zeros((1, 1, 1)) if alike else t.compute[np.maximum(self.ids, 0)]
        return Block(
            self.ids, self.share, freeze(work), t.expert_device, t.compute, t.activation, t.link_delay,
            freeze(mean_work), alike, float(self.needed[0]), float(self.floors[0]), self.problem.expert_cap,
        )  # fmt: skip

    def _device_items(self) -> Items:
        """A token's candidates on one device merged into one item, which takes all of them."""
        t = self.problem.tables
        there = self.ids >= 0
        device = np.where(there, t.expert_device[np.maximum(self.ids, 0)], -1)
        same = (device[..., :, None] == device[..., None, :]) & there[..., :, None] & there[..., None, :]
        first = there & (np.argmax(same, axis=-1) == np.arange(self.columns))
        share = np.where(first, (same * self.share[..., None, :]).sum(axis=-1), 0.0)
        compute = np.where(there, t.compute[np.maximum(self.ids, 0)], 0.0)
        work = np.where(first, (same * compute[..., None, :]).sum(axis=-1), 0.0)
        # Which experts of a device will be active is left to the bound; here, all that are wanted.
        activation = np.zeros((self.blocks, self.devices))
        for i in range(self.blocks):
            wanted = np.unique(self.ids[i][there[i]])
            np.add.at(activation[i], t.expert_device[wanted], t.activation[wanted])
        ids = np.where(first, device, -1).astype(np.int32)
        hosts = np.arange(self.devices, dtype=np.int32)
        return Items(ids, share, work, hosts, activation, False)

    @cached_property
    def compute_range(self) -> tuple[RealArray, RealArray]:
        """Least and largest compute time of a transfer, s, two arrays (blocks, devices)."""
        t = self.problem.tables
        least, most = np.full((self.blocks, self.devices), np.inf), np.zeros((self.blocks, self.devices))
        for i in range(self.blocks):
            able = np.flatnonzero(self.usable_experts[i])
            np.minimum.at(least[i], t.expert_device[able], t.compute[able])
            np.maximum.at(most[i], t.expert_device[able], t.compute[able])
        least[~np.isfinite(least)] = 0.0
        if t.by_device:
            most = self._most_work()
        for i, limits in enumerate(self.limits):
            if limits.forced.size:
                self._settled(i, limits, least[i], most[i])
        return least, most

    def _settled(self, i: int, limits: Limits, least: RealArray, most: RealArray) -> None:
        """Set the compute time of devices whose load is decided: all that is possible is forced."""
        t = self.problem.tables
        there = self.ids[i] >= 0
        device = np.where(there, t.expert_device[np.maximum(self.ids[i], 0)], -1)
        for k in range(self.devices):
            here = device == k
            if not here.any() or (here & ~limits.forced).any():
                continue
            transfers = here.any(axis=1).sum() if t.by_device else here.sum()
            work = t.compute[self.ids[i][here]].sum() / transfers
            least[k], most[k] = work, work

    def _most_work(self) -> RealArray:
        """Largest compute time that one token can bring to a device, s (blocks, devices)."""
        t = self.problem.tables
        there = self.ids >= 0
        device = np.where(there, t.expert_device[np.maximum(self.ids, 0)], -1)
        work = np.where(there, t.compute[np.maximum(self.ids, 0)], 0.0)
        most = np.empty((self.blocks, self.devices))
        for k in range(self.devices):
            most[:, k] = np.where(device == k, work, 0.0).sum(axis=2).max(axis=1) * (1 + 1e-12)
        return most

    @cached_property
    def usable_experts(self) -> NDArray[np.bool_]:
        """Experts that are a candidate of some token, (blocks, experts)."""
        found = np.zeros((self.blocks, self.experts), dtype=np.bool_)
        for i in range(self.blocks):
            found[i, self.ids[i][self.ids[i] >= 0]] = True
        return found

    @cached_property
    def choosable(self) -> NDArray[np.bool_]:
        """Usable experts that need not be active, (blocks, experts)."""
        able: NDArray[np.bool_] = self.usable_experts & ~np.stack([limits.opened for limits in self.limits])
        return able

    def restricted(self, parts: list[Restriction]) -> Relaxation:
        """The relaxation under further restrictions, one per block; prices are not carried over."""
        t = self.problem.tables
        copy = object.__new__(Relaxation)
        copy.__dict__.update(self.__dict__)
        for name in ("compute_range", "usable_experts", "choosable", "items"):
            copy.__dict__.pop(name, None)
        ids, limits, wakes = self.ids.copy(), [], self.wakes.copy()
        for i, part in enumerate(parts):
            gone = (part.state < 0) | (part.experts[np.maximum(ids[i], 0)] < 0)
            ids[i][gone] = -1
            forced = part.state > 0
            opened = part.experts > 0
            opened[ids[i][forced & (ids[i] >= 0)]] = True
            base = np.bincount(t.expert_device, t.activation * opened, self.devices)
            held = np.bincount(t.expert_device, opened, self.devices) > 0
            wakes[i] &= ~opened
            limits.append(Limits(forced, opened, base, held, part.fewest, part.largest))
        copy.ids, copy.best = _frozen(ids), None
        limits = [
            own._replace(largest=np.minimum(own.largest, copy._possible(i))) for i, own in enumerate(limits)
        ]
        copy.__dict__["limits"], copy.__dict__["wakes"] = limits, _frozen(wakes)
        copy.mean, copy.awake = np.zeros(ids.shape), np.zeros((self.blocks, self.experts))
        return copy

    # ------------------------------------------------------------------ prices

    def start(self, keep: NDArray[np.bool_]) -> None:
        """Take first prices from the best bandwidth for a selection of the whole problem."""
        t = self.problem.tables
        sent, busy = demands(self.problem, keep)
        sent, busy = sent[self.rows], busy[self.rows]
        bandwidth = np.full(self.devices, max(t.total, 1.0) / self.devices)
        multipliers = np.empty(sent.shape)
        times, latency = np.empty(sent.shape), np.empty(self.blocks)
        radio = (t.bits_down, self.link.c_down, t.bits_up, self.link.c_up)
        if self.free and self.blocks > 1:
            shared_bandwidth(sent, busy, *radio, t.low, t.high, t.total, bandwidth, multipliers)
        elif self.free:
            down, up = self.link.c_down[0], self.link.c_up[0]
            block_bandwidth(
                sent[0], busy[0], t.bits_down, down, t.bits_up, up, t.low, t.high, t.total, bandwidth
            )
        link = link_times(bandwidth[None, :], *radio) if self.free else self.link_time
        device_times(sent, busy, link, times, latency)
        if not self.free:
            for i in range(self.blocks):
                soft_multipliers(times[i], SHARPNESS, multipliers[i])
        elif self.blocks == 1:
            block_multipliers(
                sent[0], times[0], t.bits_down, down, t.bits_up, up, t.low, t.high, bandwidth, multipliers[0]
            )
        self.loads[:] = sent  # what bandwidth prices are taken from if every stage goes astray
        self.mean_work = self._mean_work(sent, busy)
        multipliers = np.maximum(multipliers, LEAST_MULTIPLIER)
        multipliers /= multipliers.sum(axis=1, keepdims=True)
        seconds = np.where(np.isfinite(link), link, 1.0) + self.mean_work
        transfer = multipliers * seconds
        bandwidth = np.maximum(bandwidth, 1e-6 * max(t.total, 1.0))
        # The envelope theorem: what a hertz is worth, were all devices served at this bandwidth.
        hertz = 0.5 * latency.sum() / max(t.total, 1.0)
        pairs = (self.ids >= 0).sum(axis=(1, 2))
        retention = 4.0 * transfer.mean(axis=1) * pairs / self.tokens
        slack = FIRST_BARRIER * latency[:, None] / self.devices / transfer
        self.prices = Prices(
            transfer,
            slack,
            retention,
            latency.copy(),
            np.log(bandwidth)[None, :],
            np.array([hertz]),
            np.ones((self.blocks, self.items.hosts.size)),
            np.zeros((self.blocks, self.tokens)),
        )

    def _mean_work(self, sent: RealArray, busy: RealArray) -> RealArray:
        """Compute time of a mean transfer, s (blocks, devices)."""
        t = self.problem.tables
        least, most = np.full(self.devices, np.inf), np.zeros(self.devices)
        np.minimum.at(least, t.expert_device, t.compute)
        np.maximum.at(most, t.expert_device, t.compute)
        mean = np.where(np.isfinite(least), 0.5 * (least + most), 0.0)
        return np.tile(mean, (self.blocks, 1))

    def first_retention_price(self, width: float, steps: int = 8) -> None:
        """Find a start for the price of retention."""
        first_retention_price(
            self.items, self.link, self.link_time, self.free, self.needed, self.floors, self.mean_work, width,
            steps, self.prices,
        )  # fmt: skip

    def settle(self, stage: Stage) -> float:
        """Newton steps of one stage; returns the residual. A stage that goes astray is taken back."""
        before = self._copy()
        _, residual = newton(
            self.items, self.link, self.link_time, self.free, self.needed, self.floors, self.mean_work,
            stage.width, stage.barrier / self.devices, stage.steps, stage.tolerance, self.prices, self.loads,
        )  # fmt: skip
        if not residual < ASTRAY:
            self._restore(before)
        return float(residual)

    def _copy(self) -> list[RealArray]:
        return [array.copy() for array in (*self.prices, self.loads)]

    def _restore(self, state: list[RealArray]) -> None:
        for array, old in zip((*self.prices, self.loads), state, strict=True):
            array[...] = old

    def lead(self, keep: NDArray[np.bool_]) -> None:
        """Prices at wide smoothing, from a selection of the whole problem; ascent starts from them, too."""
        self.start(keep)
        self.first_retention_price(LEAD[0].width)
        for stage in LEAD:
            self.settle(stage)
        self.held = self._copy()

    # ------------------------------------------------------------------ bounds

    def _links(self) -> tuple[RealArray, RealArray]:
        """Seconds per transfer at the present bandwidth, and price of a device second."""
        t = self.problem.tables
        link = self.link_time
        if self.free:
            bandwidth = np.exp(self.prices.log_bandwidth)
            link = link_times(bandwidth, t.bits_down, self.link.c_down, t.bits_up, self.link.c_up)
        reached = np.isfinite(link)
        second = np.where(reached, self.prices.transfer / np.where(reached, link + self.mean_work, 1.0), 0.0)
        return np.where(reached, link, 0.0), second

    def quote(self) -> Quote:
        """The present prices."""
        link, second = self._links()
        nu = self._bandwidth_prices(second * self.loads) if self.free else np.zeros(second.shape)
        points = np.exp(np.broadcast_to(self.prices.log_bandwidth, nu.shape))
        return Quote(
            link * second, second, self.prices.retention.copy(), nu, points, self.prices.deadline.copy()
        )

    def bound(self) -> float:
        """Bound that the present prices prove; kept with them if it is the best so far."""
        quote = self.quote()
        if not quote.sound:
            return 0.0
        return self._keep(self.prove(quote))

    def _keep(self, proof: Proof) -> float:
        if np.isfinite(proof.bound) and (self.best is None or proof.bound > self.best.bound):
            self.best = proof
        return proof.bound

    def prove(self, quote: Quote, alone: Proof | None = None) -> Proof:
        """The bound that prices prove.

        Parameters
        ----------
        quote : Quote
        alone : Proof, optional
            What is known of every block alone, where blocks share bandwidth; default from the same prices.
        """
        together = self.blocks > 1 and self.free
        tokens = [self._tokens(i, quote) for i in range(self.blocks)]
        if alone is None:
            alone = self._alone(quote, tokens)
        return self._together(quote, tokens, alone) if together else alone

    def _tokens(self, i: int, quote: Quote) -> TokenPart:
        """What the tokens of block ``i`` pay, and what every expert is worth to them."""
        t = self.problem.tables
        hosts, price = t.expert_device, float(quote.retention[i])
        surplus, value = np.empty((self.tokens, self.columns)), np.empty(self.experts)
        paid = token_bound(
            self.ids[i], self.share[i], hosts, quote.send[i], quote.second[i, hosts] * t.compute, t.by_device,
            price, float(self.floors[i]) * (1 - FEASIBILITY_TOLERANCE), self.problem.expert_cap,
            self.wakes[i], self.limits[i].forced, surplus, value, np.empty((2, self.experts)),
            np.empty((2, self.experts)), np.empty(self.ids.shape[1:], dtype=np.int8),
        )  # fmt: skip
        paid += price * float(self.needed[i]) * (1 - FEASIBILITY_TOLERANCE)
        order = order_members(hosts, t.activation, value, self.choosable[i], self.devices)
        return TokenPart(paid, surplus, value, order)

    def _stack(self, quote: Quote, tokens: list[TokenPart], nu: RealArray, points: RealArray) -> Proof:
        """A proof without a bound yet."""
        share = np.stack([part.surplus for part in tokens]) if self.wakes.any() else None
        return Proof(
            0.0, quote.send, quote.second, np.stack([part.value for part in tokens]),
            share if share is not None and share.any() else None, quote.retention, nu, points,
            np.zeros(self.blocks), np.zeros(self.blocks), np.zeros((self.blocks, 1)), quote.horizon,
        )  # fmt: skip

    def _alone(self, quote: Quote, tokens: list[TokenPart]) -> Proof:
        """Deadlines that every block misses even if it has all the bandwidth."""
        t = self.problem.tables
        least, most = self.compute_range
        single = (quote.bandwidth * quote.points).sum(axis=1) / max(self.link.total, 1e-300)
        points = np.log(quote.points)
        proof = self._stack(quote, tokens, np.repeat(single[:, None], self.devices, axis=1), quote.points)
        for i, part in enumerate(tokens):
            proof.deadline[i] = block_deadline(
                i, part.paid, quote.horizon[i], quote.send[i], quote.second[i], single[i], self.bound_link,
                self.quickest, self.free, *part.order, t.activation, part.value, least[i], most[i],
                self.limits[i], PRECISION, points[i],
            )  # fmt: skip
        proof.points = np.exp(points)
        proof.bound = float(proof.deadline.sum())
        return proof

    def _together(self, quote: Quote, tokens: list[TokenPart], alone: Proof) -> Proof:
        """Bound on the sum of latencies under shared bandwidth, from what is known of every block alone."""
        t = self.problem.tables
        least, most = self.compute_range
        if self.dependent and not (alone.deadline > 0).all():
            return alone
        proof = self._stack(quote, tokens, quote.bandwidth, quote.points)
        proof.form = "shared"
        if self.dependent:
            proof.offset, proof.grid = self.axis(quote, alone.deadline)
            # Room for the values of x that turn out to decide.
            proof.grid = np.hstack([proof.grid, np.repeat(proof.grid[:, -1:], ROUNDS, axis=1)])
            proof.floor = alone
        # Prices of the shared form grow like 1 / (T - offset).
        proof.horizon = np.maximum(quote.horizon, alone.deadline)
        scale = proof.horizon - proof.offset
        proof.send, proof.work = proof.send * scale[:, None], proof.work * scale[:, None]
        proof.wake, proof.retention = proof.wake * scale[:, None], proof.retention * scale
        if proof.share is not None:
            proof.share = proof.share * scale[:, None, None]
        points, proof.toll = np.log(quote.points), np.zeros(quote.send.shape)
        for i, part in enumerate(tokens):
            proof.bound += share_bound(
                i, part.paid * scale[i], proof.offset[i], proof.grid[i], proof.send[i], proof.work[i],
                proof.bandwidth[i], self.bound_link, *part.order, t.activation, proof.wake[i], least[i],
                most[i], self.limits[i], 1.0 / scale[i], points[i], proof.toll[i],
            )  # fmt: skip
        proof.points = np.exp(points)
        proof.bound -= dearest(proof.bandwidth.sum(axis=0), self.bound_link)
        return proof if proof.bound > alone.bound else alone

    def axis(self, quote: Quote, alone: RealArray) -> tuple[RealArray, RealArray]:
        """Offsets and grids of the shared form: the mean time that devices do not serve tokens, by price."""
        horizon = np.maximum(quote.horizon, alone)
        weight = np.maximum(quote.second.sum(axis=1), 1e-300)
        offset = np.minimum((quote.second * self.idle()).sum(axis=1) / weight, 0.9 * alone)
        return offset, _grid(1.0 / (horizon - offset), 1.0 / (alone - offset) * (1 + 1e-9))

    def idle(self) -> RealArray:
        """About the seconds that devices do not serve tokens (blocks, devices)."""
        t = self.problem.tables
        idle = np.tile(self.link.delay, (self.blocks, 1))
        for i in range(self.blocks):
            active = self.prices.on[i] * self.items.activation[i]
            able = t.activation * self.usable_experts[i]
            whole = np.bincount(t.expert_device, able, self.devices)
            likely = np.bincount(self.items.hosts, active, self.devices)
            # Where it is decided which experts are active, exactly their time.
            idle[i] += np.minimum(np.maximum(likely, self.limits[i].base), whole)
        return idle

    def _bandwidth_prices(self, work: RealArray) -> RealArray:
        """What a hertz of every device is worth to every block, by its priced loads; sums made equal."""
        t = self.problem.tables
        bandwidth = np.exp(self.prices.log_bandwidth[0])
        return hertz_prices(work, bandwidth, t.bits_down, t.bits_up, self.link)

    # ------------------------------------------------------------------ ascent

    def improve(self, keep: NDArray[np.bool_], steps: int) -> float:
        """Raise the best bound by ascent on single blocks, aiming at a selection of the group; returns it.

        Parameters
        ----------
        keep : bool array (blocks of the group, tokens, m)
            A feasible selection; its latencies cannot be exceeded, and where blocks share bandwidth its
            multipliers price it.
        steps : int
            At most so many on each block.
        """
        latency = self.latency(keep)
        start, held = self.multipliers(keep), self._held_quote()
        if self.blocks == 1 or not self.free:
            best_quote = None if self.best is None else self.best.quote(latency)
            guess = start.second.sum(axis=1) * latency / np.maximum(self.needed, 1.0)
            priced = replace(start, retention=guess if best_quote is None else best_quote.retention)
            quotes = [quote for quote in (best_quote, held, priced, start) if quote is not None]
            first = [self.ascend(quote, latency, max(steps // 4, 1)) for quote in quotes]
            best = max(first, key=lambda quote: self._keep(self.prove(quote)))
            if self._keep(self.prove(self.ascend(best, latency, steps))) == 0.0:
                self._keep(self.prove(self.ascend(self.even_quote(latency), latency, steps)))
            return 0.0 if self.best is None else self.best.bound
        known = self.each_alone(keep, latency, steps)
        self._keep(known)
        if self.dependent and not (known.deadline > 0).all():
            return known.bound
        price = known.retention
        for quote in (held, replace(start, retention=price)):
            if quote is not None:
                self.ascend_jointly(quote, known, float(latency.sum()), steps)
        return known.bound if self.best is None else self.best.bound

    def nothing(self) -> Proof:
        """A proof that claims nothing."""
        shape = (self.blocks, self.devices)
        none = Quote(
            np.zeros(shape), np.zeros(shape), np.zeros(self.blocks), np.zeros(shape), np.ones(shape),
            np.ones(self.blocks),
        )  # fmt: skip
        return self._stack(
            none, [self._tokens(i, none) for i in range(self.blocks)], none.bandwidth, none.points
        )

    def ascend_jointly(
        self, quote: Quote, known: Proof | None, goal: float, steps: int
    ) -> tuple[Quote, Proof]:
        """Ascent on every block's part and on what a hertz is worth to it, where blocks share bandwidth.

        Parameters
        ----------
        quote : Quote
        known : Proof or None
            Of every block alone; needed where activation or delays make device terms depend on the latency.
        goal : float, s
            Bound at which to stop.
        steps : int
            Of every block in all.

        Returns
        -------
        The prices of the best bound met, and its proof; also kept if it is the best of all.
        """
        best, proof = quote, self.prove(quote, known)
        climb = _Climb()
        for _ in range(max(steps // JOINT_STEPS, 1)):
            if proof.bound >= goal:
                break
            quote = self._climb(quote, known, goal, climb)
            found = self.prove(quote, known)
            if found.bound > proof.bound:
                best, proof = quote, found
        self._keep(proof)
        return best, proof

    def _climb(self, quote: Quote, known: Proof | None, goal: float, climb: _Climb) -> Quote:
        """Ascent on all prices of blocks that share bandwidth, at fixed offsets and grids."""
        offset, grid = np.zeros(self.blocks), np.zeros((self.blocks, 1))
        if known is not None and self.dependent:
            offset, grid = self.axis(quote, known.deadline)
        scale = quote.horizon - offset
        seconds = np.divide(quote.send, quote.second, out=np.zeros_like(quote.send), where=quote.second > 0)
        second, retention, nu = quote.second * scale[:, None], quote.retention * scale, quote.bandwidth.copy()
        points, here = np.log(quote.points), 1.0 / scale
        best: tuple[RealArray, ...] = (second, retention, nu, points, here)
        bound, stale = -np.inf, 0
        for _ in range(JOINT_STEPS):
            value, slope, spent = self._share_steps(
                seconds * second, second, retention, nu, points, here, offset, grid, climb.weight
            )
            climb.steps += 1
            if value > bound:
                bound, stale = value, 0
                best = tuple(array.copy() for array in (second, retention, nu, points, here))
            else:
                stale += 1
                if stale > JOINT_PATIENCE:
                    climb.length, stale = 0.5 * climb.length, 0
                    second, retention, nu, points, here = (array.copy() for array in best)
                    continue
            if bound >= goal:
                break
            # A hertz costs the same on all devices: only how blocks share its price, and the level, move.
            paid = nu * spent
            whole = nu.sum(axis=0)
            part = np.divide(nu, whole, out=np.zeros_like(nu), where=whole > 0)
            tilt = paid - part * paid.sum(axis=0)
            level = float(paid.sum()) - dearest(whole, self.bound_link)
            with np.errstate(over="ignore"):
                norm = float((slope**2).sum() + (tilt**2).sum() + level**2)
            if not 0 < norm < np.inf:
                break
            size = climb.length * max(goal - value, 1e-6 * goal) / norm
            second = second * np.exp(np.clip(size * slope[:, : self.devices], -MOVE, MOVE))
            retention = retention * np.exp(np.clip(size * slope[:, self.devices], -MOVE, MOVE))
            nu = nu * np.exp(np.clip(size * (tilt + level), -MOVE, MOVE))
            whole = nu.sum(axis=0)
            nu *= np.divide(whole.mean(), whole, out=np.zeros_like(whole), where=whole > 0)
        second, retention, nu, points, here = best
        horizon = offset + 1.0 / here
        scale = (1.0 / here)[:, None]
        return Quote(seconds * second / scale, second / scale, retention * here, nu, np.exp(points), horizon)

    def _share_steps(
        self, send: RealArray, second: RealArray, retention: RealArray, nu: RealArray, points: RealArray,
        here: RealArray, offset: RealArray, grid: RealArray, weight: float,
    ) -> tuple[float, RealArray, RealArray]:  # fmt: skip
        """Bound on all blocks at prices per unit of x, its slopes by their logarithms, and bandwidths."""
        t = self.problem.tables
        least, most = self.compute_range
        slope, spent = np.zeros((self.blocks, self.devices + 2)), np.zeros(nu.shape)
        value = -dearest(nu.sum(axis=0), self.bound_link)
        for i in range(self.blocks):
            value += share_step(
                self.ids[i], self.share[i], t.expert_device, t.compute, t.activation, self.wakes[i],
                self.choosable[i], t.by_device, float(self.floors[i]) * (1 - FEASIBILITY_TOLERANCE),
                self.problem.expert_cap, float(self.needed[i]) * (1 - FEASIBILITY_TOLERANCE),
                self.bound_link, i, float(offset[i]), grid[i], least[i], most[i], self.limits[i], send[i],
                second[i], float(retention[i]), nu[i], here[i : i + 1], points[i], weight, slope[i], spent[i],
                self.mean[i], self.awake[i],
            )  # fmt: skip
        return value, slope, spent

    def _held_quote(self) -> Quote | None:
        """Prices at the end of the leading stages."""
        present = self._copy()
        self._restore(self.held)
        quote = self.quote()
        self._restore(present)
        return quote if quote.sound else None

    def demands(self, keep: NDArray[np.bool_]) -> tuple[RealArray, RealArray]:
        """Transfers and seconds of work of a selection of the group, two arrays (blocks, devices)."""
        whole = np.zeros(self.problem.tables.ids.shape, dtype=np.bool_)
        whole[self.rows] = keep
        sent, busy = demands(self.problem, whole)
        return sent[self.rows], busy[self.rows]

    def multipliers(self, keep: NDArray[np.bool_], least: float = TRACE_MULTIPLIER) -> Quote:
        """Prices at which the best bandwidth for a selection of the group is best; retention is free.

        ``least`` is the price of a second of devices that wait, from where ascent can raise it.
        """
        t = self.problem.tables
        sent, busy = self.demands(keep)
        times, latency = np.empty(sent.shape), np.empty(self.blocks)
        multipliers, bandwidth = np.zeros(sent.shape), np.ones(self.devices)
        link, nu = self.link_time, np.zeros(sent.shape)
        radio = (t.bits_down, self.link.c_down, t.bits_up, self.link.c_up)
        if self.free:
            shared_bandwidth(sent, busy, *radio, t.low, t.high, t.total, bandwidth, multipliers)
            link = link_times(bandwidth[None, :], *radio)
        device_times(sent, busy, link, times, latency)
        if not self.free:
            for i in range(self.blocks):
                soft_multipliers(times[i], SLOWEST, multipliers[i])
        else:
            nu = hertz_prices(multipliers * sent, bandwidth, t.bits_down, t.bits_up, self.link)
            # A device without tokens needs a price all the same, or all would go there.
            bandwidth = np.maximum(bandwidth, IDLE_SHARE * t.total / self.devices)
            link = link_times(bandwidth[None, :], *radio)
        seconds = np.where(np.isfinite(link), link, 0.0)
        points = np.tile(bandwidth, (self.blocks, 1))
        second = np.where(np.isfinite(link), np.maximum(multipliers, least), 0.0)
        return Quote(seconds * second, second, np.zeros(self.blocks), nu, points, latency)

    def even_quote(self, latency: RealArray) -> Quote:
        """Prices where nothing is known: a second is worth the same on all devices in reach."""
        t = self.problem.tables
        bandwidth = np.full(self.devices, max(t.total, 1.0) / self.devices)
        radio = (t.bits_down, self.link.c_down, t.bits_up, self.link.c_up)
        link = link_times(bandwidth[None, :], *radio) if self.free else self.link_time
        near = np.isfinite(link)
        second = near / np.maximum(near.sum(axis=1, keepdims=True), 1)
        seconds = np.where(near, link, 0.0)
        nu = np.zeros(second.shape)
        if self.free:
            served = latency[:, None] / np.maximum(seconds + self.compute_range[0], 1e-300)
            nu = hertz_prices(second * served, bandwidth, t.bits_down, t.bits_up, self.link)
        points = np.tile(bandwidth, (self.blocks, 1))
        return Quote(seconds * second, second, np.zeros(self.blocks), nu, points, latency)

    def each_alone(self, keep: NDArray[np.bool_], latency: RealArray, steps: int) -> Proof:
        """What is known of every block if it has all the bandwidth."""
        whole = np.zeros(self.problem.tables.ids.shape, dtype=np.bool_)
        whole[self.rows] = keep
        proofs = []
        for i in range(self.blocks):
            row = self.rows.start + i
            single = Relaxation(self.problem, slice(row, row + 1))
            single.lead(whole)
            single.bound()
            single.settle(PROVE[0])
            single.bound()
            single.improve(keep[i : i + 1], steps)
            proofs.append(single.best or single.nothing())
        return join(proofs)

    def latency(self, keep: NDArray[np.bool_]) -> RealArray:
        """Block latencies of a selection at its best bandwidth, s (blocks,)."""
        sent, busy = self.demands(keep)
        link = self.link_time
        if self.free:
            t = self.problem.tables
            radio = (t.bits_down, self.link.c_down, t.bits_up, self.link.c_up)
            bandwidth = np.empty(self.devices)
            shared_bandwidth(sent, busy, *radio, t.low, t.high, t.total, bandwidth)
            link = link_times(bandwidth[None, :], *radio)
        latency = np.empty(self.blocks)
        device_times(sent, busy, link, np.empty(sent.shape), latency)
        return latency

    def ascend(
        self,
        base: Quote,
        target: RealArray,
        steps: int,
        axis: tuple[RealArray, RealArray] | None = None,
        only: int | None = None,
    ) -> Quote:
        """Ascent on every block, or ``only`` one: alone, or with an axis its part of the shared form."""
        t = self.problem.tables
        least, most = self.compute_range
        second, nu = base.second.copy(), base.bandwidth
        seconds = np.divide(base.send, second, out=np.zeros_like(second), where=second > 0)
        retention, single = base.retention.copy(), np.zeros(self.blocks)
        points = np.log(base.points)
        for i in range(self.blocks) if only is None else (only,):
            offset, grid, scale = 0.0, np.empty(0), 1.0
            if axis is not None:
                offset, grid = float(axis[0][i]), axis[1][i]
                scale = float(target[i] - nu[i] @ base.points[i]) - offset
            prices = np.array([retention[i] * scale, nu[i, 0]])
            row = second[i] * scale
            ascend(
                self.ids[i], self.share[i], t.expert_device, t.compute, t.activation, self.wakes[i],
                self.choosable[i], t.by_device, float(self.floors[i]) * (1 - FEASIBILITY_TOLERANCE),
                self.problem.expert_cap, float(self.needed[i]) * (1 - FEASIBILITY_TOLERANCE),
                self.bound_link, self.quickest, self.free, i, offset, grid, least[i], most[i],
                self.limits[i], float(target[i]), steps, seconds[i], row, prices, nu[i], points[i],
                self.mean[i], self.awake[i],
            )  # fmt: skip
            second[i], retention[i] = row / scale, prices[0] / scale
            single[i] = prices[1]
        horizon = target if axis is None else target - (nu * base.points).sum(axis=1)
        bandwidth = np.repeat(single[:, None], self.devices, axis=1) if axis is None else nu
        where = np.exp(points)
        if axis is None and self.free:
            # `_alone` takes the mean price at the points; they must spend the whole budget.
            where *= self.link.total / where.sum(axis=1, keepdims=True)
        return Quote(seconds * second, second, retention, bandwidth, where, horizon)

    # ------------------------------------------------------------------ selections

    @property
    def bandwidth(self) -> RealArray:
        """Present bandwidth, Hz (devices,), within limits and budget."""
        return self.within_limits(np.exp(self.prices.log_bandwidth[0]))

    def within_limits(self, bandwidth: RealArray) -> RealArray:
        """Scale what is above the lower limits so that the budget is used as far as limits allow."""
        link = self.link
        share = np.clip(bandwidth, link.low, link.high)
        over = share - link.low
        spare = link.total - float(link.low.sum())
        scaled: RealArray = np.minimum(link.low + over * (spare / max(float(over.sum()), 1e-300)), link.high)
        return scaled

    def round(self) -> NDArray[np.bool_]:
        """Selection of the group at the present prices, (blocks, tokens, m); may miss a floor."""
        t = self.problem.tables
        link, second = self._links()
        keep = np.empty(self.ids.shape, dtype=np.bool_)
        for i in range(self.blocks):
            price = second[i, t.expert_device] * (link[i, t.expert_device] + t.compute)
            opened = np.ones(self.experts, dtype=np.bool_) if t.by_device else self.prices.on[i] > 0.5
            round_block(
                self.ids[i], self.share[i], price, opened, float(self.prices.retention[i]),
                float(self.needed[i]) - FLOOR_SLACK * self.tokens, float(self.floors[i]),
                self.problem.expert_cap, keep[i],
            )  # fmt: skip
        return keep


def _frozen(array: NDArray[Any]) -> NDArray[Any]:
    """The array in C order and read-only: kernels are compiled for that, once."""
    whole = np.ascontiguousarray(array)
    if whole.flags.writeable:
        whole = whole.view()
        whole.flags.writeable = False
    return whole


def hertz_prices(
    work: RealArray, bandwidth: RealArray, bits_down: float, bits_up: float, link: Link
) -> RealArray:
    """What a hertz of each device is worth to each block, from priced transfers (blocks, devices).

    The sums over blocks are made equal over devices that are not at a limit, as they are at the best
    bandwidth.
    """
    nearby = bandwidth * 1.0001
    now = link_times(bandwidth[None, :], bits_down, link.c_down, bits_up, link.c_up)
    later = link_times(nearby[None, :], bits_down, link.c_down, bits_up, link.c_up)
    with np.errstate(invalid="ignore"):
        fall = np.where(np.isfinite(now), (now - later) / (nearby - bandwidth), 0.0)
    nu = work * fall
    total = nu.sum(axis=0)
    inside = (total > 0) & (bandwidth > link.low * (1 + AT_LIMIT)) & (bandwidth < link.high * (1 - AT_LIMIT))
    if not inside.any():
        return nu
    mean = float(total[inside] @ bandwidth[inside]) / bandwidth[inside].sum()
    scaled: RealArray = nu * np.divide(mean, total, out=np.ones_like(total), where=inside)
    return scaled


def _grid(present: RealArray, last: RealArray) -> RealArray:
    """Values of x for every block, from 0 to ``last``, dense around the present one, (blocks, g)."""
    near = np.minimum(GRID * present[:, None], last[:, None])
    grid: RealArray = np.hstack([near, near[:, -1:] * (last / near[:, -1])[:, None] ** FAR])
    return grid


def dearest(price: RealArray, link: Link) -> float:
    """Largest cost of any allowed bandwidth at these prices: a fractional knapsack."""
    left = link.total - float(link.low.sum())
    cost = float(price @ link.low)
    for k in np.argsort(-price, kind="stable"):
        more = min(left, float(link.high[k] - link.low[k]))
        cost += float(price[k]) * max(more, 0.0)
        left -= max(more, 0.0)
    return cost
