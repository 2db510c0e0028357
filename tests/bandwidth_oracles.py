"""The bandwidth problem in high precision, and as a program for general solvers; kernels are not used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mpmath as mp
import numpy as np
from scipy.optimize import linprog

DIGITS = 60
mp.mp.dps = DIGITS


@dataclass
class Case:
    """A bandwidth problem in SI numbers: (blocks, devices) unless said otherwise."""

    sent: np.ndarray
    busy: np.ndarray
    bits: tuple[float, float]
    snr_hz: tuple[np.ndarray, np.ndarray]
    low: np.ndarray
    high: np.ndarray
    total: float

    def time(self, i: int, k: int, b: mp.mpf) -> mp.mpf:
        """Time of a device in high precision."""
        time = mp.mpf(self.busy[i, k])
        if self.sent[i, k] > 0:
            time += mp.mpf(self.sent[i, k]) * link(self, i, k, b)[0]
        return time

    def latency(self, bandwidth: np.ndarray) -> mp.mpf:
        """Sum of block latencies in high precision."""
        blocks, devices = self.sent.shape
        b = [mp.mpf(float(x)) for x in bandwidth]
        return mp.fsum(max(self.time(i, k, b[k]) for k in range(devices)) for i in range(blocks))

    def block(self, i: int) -> Case:
        """One block on its own."""
        rows = slice(i, i + 1)
        return Case(
            self.sent[rows], self.busy[rows], self.bits, (self.snr_hz[0][rows], self.snr_hz[1][rows]),
            self.low, self.high, self.total,
        )  # fmt: skip


def link(case: Case, i: int, k: int, b: mp.mpf) -> tuple[mp.mpf, mp.mpf]:
    """Seconds per transfer, and minus its derivative in b."""
    time = slope = mp.mpf(0)
    for bits, c in zip(case.bits, case.snr_hz, strict=True):
        if bits > 0:
            x = mp.mpf(c[i, k]) / b
            logarithm = mp.log1p(x) / mp.log(2)
            value = mp.mpf(bits) / (b * logarithm)
            time += value
            slope += value / b * (1 - x / ((1 + x) * mp.log1p(x)))
    return time, slope


def one_block_optimum(case: Case) -> mp.mpf:
    """Least latency of a single block: bisection on the deadline, exact inverse by bisection within."""
    loaded = [k for k in range(case.sent.shape[1]) if case.sent[0, k] > 0]
    if not loaded:
        return mp.mpf(0)
    total = mp.mpf(case.total)

    def need(deadline: mp.mpf) -> mp.mpf:
        demand = mp.fsum(mp.mpf(x) for k, x in enumerate(case.low) if k not in loaded)
        for k in loaded:
            demand += least_share(case, k, deadline)
        return demand

    # Everything to one device is a bound from below; equal spare shares, within limits, from above.
    spare = total - mp.fsum(mp.mpf(x) for x in case.low)
    under, over = mp.mpf(0), mp.mpf(0)
    for k in loaded:
        low, high = mp.mpf(case.low[k]), mp.mpf(min(case.high[k], case.total))
        under = max(under, case.time(0, k, min(high, low + spare)))
        over = max(over, case.time(0, k, min(high, low + spare / len(loaded))))
    while over - under > mp.mpf(10) ** -14 * under:
        middle = mp.sqrt(under * over)
        if need(middle) <= total:
            over = middle
        else:
            under = middle
    return over


def least_share(case: Case, k: int, deadline: mp.mpf) -> mp.mpf:
    """Least bandwidth with which device k meets the deadline, inf if none does."""
    low, high = mp.mpf(case.low[k]), min(mp.mpf(case.high[k]), mp.mpf(case.total))
    if low > 0 and case.time(0, k, low) <= deadline:
        return low
    if case.time(0, k, high) > deadline:
        return mp.inf
    # ln time is convex and falling in ln b: bisection to start, then safeguarded regula falsi.
    under, over = mp.log(max(low, high * mp.mpf(10) ** -60)), mp.log(high)
    f_under = mp.log(case.time(0, k, mp.exp(under)) / deadline)
    f_over = mp.log(case.time(0, k, mp.exp(over)) / deadline)
    for step in range(400):
        if over - under < mp.mpf(10) ** -18 or f_over == 0:
            break
        middle = (under + over) / 2
        if step % 3 and f_under > f_over:
            middle = over + (under - over) * f_over / (f_over - f_under)
        value = mp.log(case.time(0, k, mp.exp(middle)) / deadline)
        if value > 0:
            under, f_under = middle, value
        else:
            over, f_over = middle, value
    return mp.exp(over)


def two_device_optimum(case: Case) -> mp.mpf:
    """Least total latency of several blocks and two devices: golden section on ln of the first share.

    The first device's share alone decides (the second takes the rest up to its cap), the latency is
    convex in it, hence unimodal in its logarithm too. Both ends of the range are searched from.
    """
    total = mp.mpf(case.total)
    low = [mp.mpf(x) for x in case.low]
    high = [min(mp.mpf(x), total) for x in case.high]
    tiny = total * mp.mpf(10) ** -45
    least, most = max(low[0], tiny), min(high[0], total - max(low[1], tiny))

    def latency(z: mp.mpf) -> mp.mpf:
        # logit coordinates keep digits where either share is tiny
        ratio = mp.exp(z)
        first = total * ratio / (1 + ratio)
        second = min(total / (1 + ratio), high[1])
        blocks = range(case.sent.shape[0])
        return mp.fsum(max(case.time(i, 0, first), case.time(i, 1, second)) for i in blocks)

    a, d = mp.log(least / (total - least)), mp.log(most / (total - most))
    golden = (mp.sqrt(5) - 1) / 2
    b, c = d - golden * (d - a), a + golden * (d - a)
    f_b, f_c = latency(b), latency(c)
    while d - a > mp.mpf(10) ** -15:
        if f_b <= f_c:
            d, c, f_c = c, b, f_b
            b = d - golden * (d - a)
            f_b = latency(b)
        else:
            a, b, f_b = b, c, f_c
            c = a + golden * (d - a)
            f_c = latency(c)
    return min(f_b, f_c)


def certified_bound(case: Case, bandwidth: np.ndarray) -> mp.mpf:
    """Rigorous lower bound on the least total latency, from weak duality at ``bandwidth``.

    t_ik is convex in b, so for any weights w_ik >= 0 that sum to one over k in each block
    sum_i max_k t_ik(b') >= sum_ik w_ik (t_ik(b) + t_ik'(b) (b'_k - b_k)), whose least value over the
    limits and the budget is a fractional knapsack. The weights come from a linear program in doubles;
    that they are good is luck, that the bound holds is not.
    """
    blocks, devices = case.sent.shape
    b = [mp.mpf(float(x)) for x in bandwidth]
    used = [k for k in range(devices) if case.sent[:, k].any()]
    time = [[case.time(i, k, b[k]) if b[k] > 0 else mp.mpf(0) for k in range(devices)] for i in range(blocks)]
    slope = [[mp.mpf(0)] * devices for _ in range(blocks)]
    for i in range(blocks):
        for k in used:
            if case.sent[i, k] > 0:
                slope[i][k] = mp.mpf(case.sent[i, k]) * link(case, i, k, b[k])[1]
    weights = best_weights(case, used, time, slope, b)
    bound = mp.mpf(0)
    pull = [mp.mpf(0)] * devices
    for i in range(blocks):
        row = [max(mp.mpf(float(w)), mp.mpf(0)) for w in weights[i]]
        size = mp.fsum(row)
        if size == 0:
            continue
        for k in range(devices):
            bound += row[k] / size * time[i][k]
            pull[k] += row[k] / size * slope[i][k]
    room = mp.mpf(case.total) - mp.fsum(mp.mpf(x) for x in case.low)
    for k in range(devices):
        bound -= pull[k] * (mp.mpf(case.low[k]) - b[k])
    for k in sorted(range(devices), key=lambda k: -pull[k]):
        part = min(max(room, mp.mpf(0)), mp.mpf(min(case.high[k], case.total)) - mp.mpf(case.low[k]))
        bound -= pull[k] * part
        room -= part
    return bound


def best_weights(
    case: Case, used: list[int], time: list[Any], slope: list[Any], b: list[mp.mpf]
) -> np.ndarray:
    """Weights that make the bound largest, by a linear program and one least-squares polish."""
    blocks, devices = case.sent.shape
    weights = np.zeros((blocks, devices))
    pairs = [(i, k) for i in range(blocks) for k in used if case.sent[i, k] > 0]
    rows = sorted({i for i, _ in pairs})
    unit = mp.fsum(max(time[i]) for i in rows) if rows else mp.mpf(1)
    # Variables: w (pairs), price nu, cap prices (used), floor prices (used); all in units of each b_k.
    n, m = len(pairs), len(used)
    fall = {(i, k): float(slope[i][k] * b[k] / unit) for i, k in pairs}
    share = {k: float(b[k] / case.total) for k in used}
    spare = case.total - sum(x for k, x in enumerate(case.low) if k not in used)
    gain = [float(time[i][k] / unit) + fall[i, k] for i, k in pairs]
    gain += [-spare / case.total]
    gain += [-min(case.high[k] / float(b[k]), 1e6) for k in used] + [case.low[k] / float(b[k]) for k in used]
    equal = np.zeros((len(rows) + m, n + 1 + 2 * m))
    for column, (i, k) in enumerate(pairs):
        equal[rows.index(i), column] = 1.0
        equal[len(rows) + used.index(k), column] = fall[i, k]
    for q, k in enumerate(used):
        equal[len(rows) + q, n] = -share[k]
        equal[len(rows) + q, n + 1 + q] = -1.0
        equal[len(rows) + q, n + 1 + m + q] = 1.0
    right = np.concatenate([np.ones(len(rows)), np.zeros(m)])
    # Equations of nearly idle devices are scaled up, or the solver's tolerance would swallow them.
    size = np.abs(equal).max(axis=1)
    found = linprog(-np.array(gain), A_eq=equal / size[:, None], b_eq=right / size, method="highs")
    if found.x is None:
        return np.where(case.sent > 0, 1.0, 0.0)
    x = found.x
    active = x > 1e-9
    wrong = (right - equal @ x) / size
    x[active] += np.linalg.lstsq((equal / size[:, None])[:, active], wrong, rcond=None)[0]
    for column, (i, k) in enumerate(pairs):
        weights[i, k] = max(x[column], 0.0)
    return weights
