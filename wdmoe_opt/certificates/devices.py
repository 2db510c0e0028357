"""The device part of the check: the most that one device's load and bandwidth can be worth, rounded up.

A device with the active experts S, n transfers, w seconds of compute and bandwidth b needs
``n tau(b) + w <= M`` with ``M = T - delay - a(S)``, and ``light n <= w <= heavy n``. At prices p, q, nu
and sigma its load is worth ``p n + q w + sigma(S) - nu b``. For given b and S the most is reached on one of
the rays ``w = c n``, c = light or heavy: ``(p + q c) M / (tau(b) + c)``. The rate ``1 / (tau(b) + c)`` is
concave in b (fact 1), so any of its tangents bounds it, and what is left is linear in b: the ends of its
range decide.

Over S, for given b, the value is linear in a(S) and sigma(S): the best S is a prefix of the experts by
falling ``sigma_e / a_e``, or a single expert where none is worth its activation. Where the best prefix does
not fit the deadline, the prefix that is cut where it fills the time left bounds all that do.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from wdmoe_opt.certificates.facts import EPS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from wdmoe_opt.certificates.facts import BoolArray, Facts
    from wdmoe_opt.validation import IntArray, RealArray

LN2 = float(np.log(2.0))
#: Most Newton steps towards a better tangent point; a bound holds at any point.
STEPS = 24


@dataclass(frozen=True, eq=False)
class DevicePrices:
    """Prices as the device part uses them, all (blocks, devices), and ``wake`` (blocks, experts)."""

    send: RealArray
    work: RealArray
    bandwidth: RealArray
    points: RealArray
    wake: RealArray


# ---------------------------------------------------------------------- rates


def link(facts: Facts, b: RealArray) -> tuple[RealArray, RealArray, RealArray]:
    """Seconds on air per transfer at bandwidth ``b`` (..., blocks, devices, terms), and two derivatives.

    numpy's log1p is taken to be good to 4 ulps; then the time is good to 16 and its first derivative to
    40 ulps of ``time / b``. On a measured link both derivatives are 0.
    """
    if facts.link_time is not None:
        fixed = np.broadcast_to(facts.link_time[:, :, None], b.shape)
        return fixed, np.zeros(b.shape), np.zeros(b.shape)
    time, first, second = np.zeros(b.shape), np.zeros(b.shape), np.zeros(b.shape)
    for bits, snr in ((facts.bits_down, facts.snr_down), (facts.bits_up, facts.snr_up)):
        if bits > 0:
            x = snr[:, :, None] / b
            log = np.log1p(x)
            part = x / (1 + x)
            with np.errstate(divide="ignore", invalid="ignore"):
                seconds = bits * LN2 / (b * log)
                slope = (log - part) / (b * log)
                bend = part * part / (b * b * log)
                time += seconds
                first -= seconds * slope
                second += seconds * (2 * slope * slope + bend)
    return time, first, second


@dataclass(frozen=True, eq=False)
class Tangent:
    """Tangents of ``1 / (tau(b) + c)`` at ``point``: height and slope there."""

    point: RealArray
    height: RealArray
    slope: RealArray

    @classmethod
    def at(cls, point: RealArray, time: RealArray, first: RealArray, compute: RealArray) -> Tangent:
        """From the link time and its derivative at ``point``; 0 where the device cannot be reached."""
        with np.errstate(divide="ignore", invalid="ignore"):
            height = 1 / (time + compute)
            slope = -first * height * height
        slope = np.where((height > 0) & np.isfinite(slope), slope, 0.0)
        return cls(point, height, slope)

    def over(self, b: RealArray) -> RealArray:
        """Upper bound on the rate at ``b``."""
        step = b - self.point
        wide: RealArray = (
            self.height + self.slope * step + 128 * EPS * self.height * (1 + np.abs(step) / self.point)
        )
        return wide


def best_points(
    facts: Facts, start: RealArray, low: RealArray, high: RealArray, compute: RealArray, wanted: RealArray
) -> RealArray:
    """Bandwidths where the rate's slope is about ``wanted``, by Newton in logarithms from ``start``."""
    b = start
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        goal = np.log(wanted)
        for _ in range(STEPS):
            time, first, second = link(facts, b)
            rate = 1 / (time + compute)
            slope = -first * rate * rate
            bend = (2 * first * first * rate - second) * rate * rate
            step = (goal - np.log(slope)) * slope / (b * bend)
            step = np.where(np.isnan(step), 0.0, np.clip(step, -3.0, 3.0))
            new = np.clip(b * np.exp(step), low, high)
            moved = np.abs(new - b) > 1e-4 * b
            b = new
            if not moved.any():
                break
    return b


# ---------------------------------------------------------------------- active experts


@dataclass(frozen=True, eq=False)
class ActiveSets:
    """Sets of active experts that can be best, as activation and price, (blocks, devices, sets).

    Attributes
    ----------
    activation, wake : float array (blocks, devices, sets)
        Rounded down and up; infinite and -infinite where there is no such set.
    prefix_activation, prefix_wake : float array (blocks, devices, experts of a device + 1) or None
        Of the nested sets, from the experts that must be active; None where no choice takes time.
    length : int array (blocks, devices)
        How many experts the longest prefix adds.
    """

    activation: RealArray
    wake: RealArray
    prefix_activation: RealArray | None = None
    prefix_wake: RealArray | None = None
    length: IntArray | None = None

    def cut(self, room: RealArray) -> tuple[RealArray, RealArray]:
        """Activation and price of the longest prefix, its last expert cut so that ``room`` is full.

        Where all experts fit, or not even those that must be active, there is no such set.
        """
        assert self.prefix_activation is not None
        assert self.prefix_wake is not None
        assert self.length is not None
        fits = (self.prefix_activation <= room[..., None]).sum(axis=-1)
        last = self.prefix_wake.shape[-1] - 1
        here = np.clip(fits - 1, 0, last)
        after = np.clip(fits, 0, last)
        shape = (*room.shape, last + 1)
        activation = np.broadcast_to(self.prefix_activation, shape)
        wake = np.broadcast_to(self.prefix_wake, shape)

        def take(array: RealArray, at: IntArray) -> RealArray:
            return np.take_along_axis(array, at[..., None], axis=-1)[..., 0]

        with np.errstate(invalid="ignore", divide="ignore"):
            part = (room - take(activation, here)) / (take(activation, after) - take(activation, here))
            part = np.where(np.isfinite(part), np.clip(part * (1 + 8 * EPS), 0.0, 1.0), 1.0)
        grown = take(wake, here) + part * np.maximum(take(wake, after) - take(wake, here), 0.0)
        none = (fits == 0) | (fits > self.length)
        return np.where(none, np.inf, room), np.where(none, -np.inf, grown * (1 + 8 * EPS))


def active_sets(facts: Facts, wake: RealArray) -> ActiveSets:
    """Sets of active experts per device, by prices ``wake`` (blocks, experts)."""
    blocks, devices = facts.light.shape
    activation = np.where(facts.usable, facts.activation, 0.0)
    optional = facts.usable & ~facts.awake
    if not (activation * optional).any():
        return _one_set(facts, wake, activation)
    members = _members(facts.hosts, devices)
    pad = np.zeros((blocks, 1))

    def per_device(array: NDArray[Any]) -> NDArray[Any]:
        return np.concatenate([array, pad], axis=1)[:, members]

    free = per_device(optional * 1.0) > 0
    a, s = per_device(np.where(optional, activation, 0.0)), per_device(np.where(optional, wake, 0.0))
    base_a = per_device(np.where(facts.awake, activation, 0.0)).sum(axis=2)
    base_s = per_device(np.where(facts.awake, wake, 0.0)).sum(axis=2)
    held: BoolArray = np.any(per_device(facts.awake * 1.0), axis=2)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(a > 0, s / a, np.inf)
    order = np.argsort(-np.where(free, ratio, -np.inf), axis=2, kind="stable")
    a, s, free = (np.take_along_axis(array, order, axis=2) for array in (a, s, free))
    zero = np.zeros((blocks, devices, 1))
    empty = np.ones(zero.shape, dtype=np.bool_)
    width = members.shape[1]
    prefix_a = (base_a[:, :, None] + np.concatenate([zero, np.cumsum(a, axis=2)], axis=2)) * (1 - width * EPS)
    prefix_s = (base_s[:, :, None] + np.concatenate([zero, np.cumsum(s, axis=2)], axis=2)) * (1 + width * EPS)
    there = np.concatenate([held[:, :, None], free], axis=2)
    alone = free[:, :, 1:] & ~held[:, :, None]
    exists = np.concatenate([there, alone], axis=2)
    return ActiveSets(
        activation=np.where(exists, np.concatenate([prefix_a, a[:, :, 1:]], axis=2), np.inf),
        wake=np.where(exists, np.concatenate([prefix_s, s[:, :, 1:]], axis=2), -np.inf),
        prefix_activation=np.where(np.concatenate([empty, free], axis=2), prefix_a, np.inf),
        prefix_wake=prefix_s,
        length=free.sum(axis=2),
    )


def _one_set(facts: Facts, wake: RealArray, activation: RealArray) -> ActiveSets:
    """Where no choice takes time, every expert that may be active is."""
    size = facts.light.shape
    total_s, total_a, any_usable = np.zeros(size), np.zeros(size), np.zeros(size, dtype=np.bool_)
    np.logical_or.at(any_usable.T, facts.hosts, facts.usable.T)
    if wake.any():
        np.add.at(total_s.T, facts.hosts, np.where(facts.usable, wake, 0.0).T)
    if activation.any():
        np.add.at(total_a.T, facts.hosts, np.where(facts.awake, activation, 0.0).T)
    wide = facts.experts * EPS
    return ActiveSets(
        activation=np.where(any_usable, total_a * (1 - wide), np.inf)[:, :, None],
        wake=np.where(any_usable, total_s * (1 + wide), -np.inf)[:, :, None],
    )


def _members(hosts: IntArray, devices: int) -> IntArray:
    """Experts of every device, (devices, width), filled up by the number of experts."""
    order = np.argsort(hosts, kind="stable")
    sizes = np.bincount(hosts, minlength=devices)
    start = np.cumsum(sizes) - sizes
    place = np.arange(hosts.size) - np.repeat(start, sizes)
    table = np.full((devices, int(sizes.max())), hosts.size)
    table[hosts[order], place] = order
    return table


# ---------------------------------------------------------------------- the most a device is worth


@dataclass(frozen=True, eq=False)
class Terms:
    """The terms of one evaluation, arrays (..., blocks, devices, sets).

    Attributes
    ----------
    activation, wake : float array
        Of the sets that fit; infinite and -infinite elsewhere.
    """

    activation: RealArray
    wake: RealArray


def fitting_terms(facts: Facts, sets: ActiveSets, latest: RealArray) -> Terms:
    """Sets that leave time for one transfer at least within latencies ``latest`` (..., blocks)."""
    least = np.maximum(facts.least, 1.0)
    top = facts.high[:, :, None] if facts.link_time is None else np.ones((*facts.light.shape, 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        time, _, _ = link(facts, top)
        transfer = (time[:, :, 0] + facts.light) * least * (1 - 32 * EPS)
        room = latest[..., None] * (1 + 8 * EPS) + 8 * EPS * facts.delay - facts.delay - transfer
    # No latency is late enough for a device that cannot be reached.
    room = np.where(np.isnan(room), -np.inf, room)
    # A device that may not get the transfers it has to get, or none at all, has no set.
    room = np.where(facts.most >= least, room, -np.inf)
    fits = sets.activation <= room[..., None]
    activation = np.where(fits, sets.activation, np.inf)
    wake = np.where(fits, sets.wake, -np.inf)
    if sets.prefix_activation is None:
        return Terms(activation, wake)
    # No set fits where no single expert does.
    cut_activation, cut_wake = sets.cut(np.where(fits.any(axis=-1), room, -np.inf))
    return Terms(
        np.concatenate([activation, cut_activation[..., None]], axis=-1),
        np.concatenate([wake, cut_wake[..., None]], axis=-1),
    )


def device_bound(
    facts: Facts,
    prices: DevicePrices,
    terms: Terms,
    time: RealArray,
    scale: RealArray,
    *,
    limits: bool,
    refine: bool,
    lump: RealArray | None = None,
) -> RealArray:
    """Upper bound on a device's worth, (..., blocks, devices).

    Parameters
    ----------
    terms : Terms
    time, scale : float array (..., blocks)
        The latency times the scale, and the scale by which all prices but ``bandwidth`` are multiplied.
    limits : bool
        Whether the limits on transfers are used. The bound is then no longer convex in the scale.
    refine : bool
        Whether to look for the best tangent points from the stored ones, for every set of its own.
    lump : float array (blocks, devices), optional
        What every loaded device earns besides, see `tolled`.
    """
    fits = np.isfinite(terms.activation)
    factor = scale[..., None, None]
    spent = factor * (facts.delay[:, None] + np.where(fits, terms.activation, 0.0))
    total = time[..., None, None]
    room = total - spent
    room = np.where(fits, np.maximum(room + 8 * EPS * (np.abs(total) + spent), 0.0), 0.0)
    extra = 0.0 if lump is None else lump[:, :, None]
    wake = np.where(fits, (np.where(fits, terms.wake, 0.0) + extra) * factor, -np.inf)
    rays = [facts.light] if np.array_equal(facts.light, facts.heavy) else [facts.light, facts.heavy]
    best = np.full(room.shape[:-1], -np.inf)
    for compute in rays:
        ray = _Ray(facts, prices, compute, room, wake, factor, refine=refine)
        best = np.maximum(best, ray.bound(limits=limits))
    idle = np.where(must_serve(facts), -np.inf, -prices.bandwidth * facts.low * (1 - 4 * EPS))
    most: RealArray = np.maximum(best, idle)
    return most


def tolled(facts: Facts, prices: DevicePrices, toll: RealArray | None) -> tuple[DevicePrices, RealArray]:
    """Prices less a toll on every transfer, and the most that all its tolls are worth to a loaded device.

    ``toll n <= toll most`` where the toll is above 0, ``toll n <= toll least`` where it is below.
    """
    if toll is None:
        return prices, np.zeros(facts.light.shape)
    send = prices.send - toll
    # What was really taken off; the difference is rounded once, its product once more.
    taken = prices.send - send
    lump = taken * np.where(taken > 0, facts.most, np.maximum(facts.least, 1.0))
    return replace(prices, send=send), lump + 4 * EPS * np.abs(lump)


def must_serve(facts: Facts) -> BoolArray:
    """Devices that cannot idle: they must get transfers, or host an expert that must be active."""
    serving: BoolArray = facts.least > 0
    if facts.awake.any():
        np.logical_or.at(serving.T, facts.hosts, facts.awake.T)
    return serving


class _Ray:
    """One ray ``w = c n`` of a device: its worth over all sets, tangents and ends of the bandwidth range."""

    def __init__(
        self,
        facts: Facts,
        prices: DevicePrices,
        compute: RealArray,
        room: RealArray,
        wake: RealArray,
        scale: RealArray,
        *,
        refine: bool,
    ) -> None:
        self.facts, self.room, self.wake, self.scale = facts, room, wake, scale
        send, work, per_transfer = (a[:, :, None] for a in (prices.send, prices.work, compute))
        self.nu = prices.bandwidth[:, :, None]
        self.low, self.high = facts.low[:, :, None], facts.high[:, :, None]
        worth = send + work * per_transfer + 4 * EPS * (np.abs(send) + work * per_transfer)
        heavy = facts.heavy[:, :, None]
        most_worth = send + work * heavy + 4 * EPS * (np.abs(send) + work * heavy)
        self.worth = np.maximum(worth, 0.0)
        self.least = np.maximum(facts.least, 1.0)[:, :, None]
        #: What is lost by the one transfer a loaded device has, where transfers cost.
        self.base = wake + np.minimum(most_worth, 0.0) * self.least * scale * (1 - 4 * EPS)
        self.capped = np.maximum(most_worth, 0.0) * facts.most[:, :, None] * scale
        self._tangents(prices, compute, refine)

    def _tangents(self, prices: DevicePrices, compute: RealArray, refine: bool) -> None:
        facts = self.facts
        points = np.broadcast_to(prices.points[:, :, None], self.room.shape)
        if facts.link_time is None:
            low = np.maximum(self.low, self.high * 1e-12)
            points = np.clip(points, low, self.high)
            if refine:
                with np.errstate(divide="ignore", invalid="ignore"):
                    wanted = self.nu / (self.worth * self.room)
                points = best_points(facts, points, low, self.high, compute[:, :, None], wanted)
        time, first, _ = link(facts, points)
        self.tangent = self.lightest = Tangent.at(points, time, first, compute[:, :, None])
        if compute is not facts.light:
            self.lightest = Tangent.at(points, time, first, facts.light[:, :, None])

    def bound(self, *, limits: bool) -> RealArray:
        """Upper bound over all sets, (..., blocks, devices)."""
        with np.errstate(invalid="ignore"):
            ends = [(b, self.worth * self.room * self.tangent.over(b)) for b in (self.low, self.high)]
            # Nothing times an infinite rate: no price, or no time.
            ends = [(b, np.where((self.worth > 0) & (self.room > 0), load, 0.0)) for b, load in ends]
        values = np.maximum(*(self._value(load, b) for b, load in ends))
        bound: RealArray = values.max(axis=-1)
        if limits:
            top = values.argmax(axis=-1)[..., None]
            if (ends[1][1].max(axis=-1) > self.capped[..., 0]).any():
                bound = np.minimum(bound, self._capped(ends, top))
            if (self.room * self.lightest.over(self.low) < self.least * self.scale).any():
                bound = np.minimum(bound, self._at_least(ends, top))
        return bound

    def _value(self, load: RealArray, b: RealArray, extra: RealArray | float = 0.0) -> RealArray:
        paid = self.nu * b
        size = np.abs(load) + np.abs(np.where(np.isfinite(self.base), self.base, 0.0)) + paid + np.abs(extra)
        value: RealArray = self.base + load + extra - paid + 32 * EPS * size
        return value

    def _capped(self, ends: list[tuple[RealArray, RealArray]], top: NDArray[np.intp]) -> RealArray:
        """With a mix of the load and its limit: ``min(load, limit) <= s load + (1 - s) limit``."""
        gain = self.worth * np.take_along_axis(self.room * self.tangent.slope, top, axis=-1)
        with np.errstate(divide="ignore", invalid="ignore"):
            mix = np.clip(self.nu / gain, 0.0, 1.0)
        mix = np.where(np.isnan(mix), 1.0, mix)
        best = np.full(self.room.shape[:-1], np.inf)
        for s in (mix, np.zeros(mix.shape)):
            rest = (1 - s) * self.capped
            with np.errstate(invalid="ignore"):
                parts = [(b, np.where(s > 0, s * load, 0.0) + rest) for b, load in ends]
            worst = np.maximum(*(self._value(load, b) for b, load in parts)).max(axis=-1)
            best = np.minimum(best, worst)
        return best

    def _at_least(self, ends: list[tuple[RealArray, RealArray]], top: NDArray[np.intp]) -> RealArray:
        """With a price on the transfers that a loaded device has at least: they need bandwidth."""
        slope = np.take_along_axis(self.room * self.lightest.slope, top, axis=-1)
        with np.errstate(divide="ignore", invalid="ignore"):
            price = np.maximum(self.nu / slope - self.worth, 0.0)
        price = np.where(np.isfinite(price), price, 0.0)
        worst = np.full(self.room.shape[:-1], -np.inf)
        for b, load in ends:
            with np.errstate(invalid="ignore"):
                surplus = price * self.room * self.lightest.over(b)
            surplus = np.where(price * self.room > 0, surplus, 0.0)
            short = price * self.least * self.scale
            value = self._value(load + surplus, b, -short * (1 - 4 * EPS))
            worst = np.maximum(worst, value.max(axis=-1))
        return worst
