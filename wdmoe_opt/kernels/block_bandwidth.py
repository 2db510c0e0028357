"""Exact bandwidth of one block: min over b of max_k t_k(b_k), a scalar root (fact 2)."""

from __future__ import annotations

from math import exp, inf, isfinite

import numpy as np

from wdmoe_opt.kernels.compiled import compiled
from wdmoe_opt.kernels.link import bandwidth_for_excess, excess, floor_time


@compiled
def block_bandwidth(
    sent: np.ndarray,
    busy: np.ndarray,
    bits_down: float,
    c_down: np.ndarray,
    bits_up: float,
    c_up: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    total: float,
    out: np.ndarray,
) -> tuple[float, float]:
    """Allocate ``total`` Hz so that the slowest device is as fast as possible.

    Parameters
    ----------
    sent : float array (devices,)
        Transfers to each device; 0 means the device needs no bandwidth.
    busy : float array (devices,), s
        Time of a loaded device that bandwidth cannot change (compute, activation, link delay).
    c_down, c_up : float array (devices,), Hz
        SNR bandwidths P g / N0.
    low, high : float array (devices,), Hz
        Limits of each share; sum(low) <= total.
    out : float array (devices,), Hz
        Receives the allocation, sum at most ``total``.

    Returns
    -------
    latency : float, s
    gap : float
        Relative KKT residual: latency minus the Lagrangian bound at ``out``, over latency. By
        convexity (fact 1) no allocation is faster than (1 - gap) * latency.

    Notes
    -----
    F(T) = sum_k b_k(T) - total is convex and decreasing, so Newton from the left is monotone. Newton
    on 1/sum b_k(T), nearly linear in T, takes fewer steps and is tried first inside the bracket.
    """
    devices = sent.size
    floors = np.empty(devices)
    below = -inf  # F >= 0 here
    slowest = -1
    latency = 0.0
    spare = total  # what the lower limits leave
    for k in range(devices):
        out[k] = low[k]
        spare -= low[k]
    for k in range(devices):
        if sent[k] <= 0.0:
            latency = max(latency, busy[k])
            continue
        floors[k] = busy[k] + sent[k] * floor_time(bits_down, c_down[k], bits_up, c_up[k])
        alone = min(high[k], low[k] + max(spare, 0.0))
        if not isfinite(floors[k]) or alone <= 0.0:
            return inf, inf  # a device that cannot be served at all
        e, _ = excess(alone, bits_down, c_down[k], bits_up, c_up[k])
        at_alone = floors[k] + sent[k] * e
        if at_alone > below:
            below = at_alone
            slowest = k
    if slowest < 0:
        return latency, 0.0  # nothing is sent
    spare = max(spare, 0.0)
    _root(sent, floors, bits_down, c_down, bits_up, c_up, low, high, spare, below, out)
    _fit_budget(sent, low, high, spare, out)
    return _priced(sent, floors, bits_down, c_down, bits_up, c_up, low, high, total, out, latency)


@compiled
def _demand(
    deadline: float,
    sent: np.ndarray,
    floors: np.ndarray,
    bits_down: float,
    c_down: np.ndarray,
    bits_up: float,
    c_up: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    free: np.ndarray,
) -> tuple[float, float]:
    """Bandwidth beyond the lower limits that ``deadline`` takes; its sum and the sum's slope.

    Counted from the limits, so that they may leave next to nothing without drowning it in rounding.
    ``free`` holds the unclipped bandwidths, both the start of the inner Newton and its result.
    """
    need = 0.0
    slope = 0.0
    for k in range(sent.size):
        if sent[k] <= 0.0:
            continue
        margin = deadline - floors[k]
        if margin <= 0.0:
            return inf, -inf
        b, bend = bandwidth_for_excess(margin / sent[k], free[k], bits_down, c_down[k], bits_up, c_up[k])
        free[k] = b
        if b >= high[k]:
            need += high[k] - low[k]
        elif b > low[k]:
            need += b - low[k]
            slope += b * bend / margin
    return need, slope


@compiled
def _root(
    sent: np.ndarray,
    floors: np.ndarray,
    bits_down: float,
    c_down: np.ndarray,
    bits_up: float,
    c_up: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    spare: float,
    below: float,
    out: np.ndarray,
) -> None:
    """Shares at the smallest deadline whose demand fits ``spare``, up to rounding."""
    devices = sent.size
    free = np.empty(devices)
    for k in range(devices):
        free[k] = min(high[k], low[k] + spare / devices)
    above = inf
    deadline = below
    for _ in range(200):
        need, slope = _demand(deadline, sent, floors, bits_down, c_down, bits_up, c_up, low, high, free)
        if need >= spare:
            below = deadline
        else:
            above = deadline
        if abs(need - spare) <= 1e-12 * spare:
            break
        # A flat demand (every share at a limit, or none affordable) leaves nothing but bisection.
        if slope < 0.0 and need < inf:
            deadline += need * (need / spare - 1.0) / -slope
        if not below < deadline < above:
            deadline = _safe_step(below, above, deadline)
        if not below < deadline < above:
            break  # the bracket holds no number in between
    if need > spare * (1.0 + 1e-12) and above < inf:
        # A saturated link needs wildly different shares one rounding apart: end on the affordable
        # side, where the remainder is handed out, instead of starving the other devices.
        _demand(above, sent, floors, bits_down, c_down, bits_up, c_up, low, high, free)
    for k in range(devices):
        if sent[k] > 0.0:
            out[k] = min(max(free[k], low[k]), high[k])


@compiled
def _safe_step(below: float, above: float, deadline: float) -> float:
    """Bisect a finite bracket; without an upper end double the distance."""
    if above < inf:
        return below + 0.5 * (above - below)
    return max(deadline, 2.0 * below)


@compiled
def _fit_budget(sent: np.ndarray, low: np.ndarray, high: np.ndarray, spare: float, out: np.ndarray) -> None:
    """Scale what loaded devices have beyond their lower limits so that it meets ``spare`` or all caps.

    Scaling a share by 1 - e slows its device by at most the factor 1 / (1 - e), so rounding left by
    the root costs no more than itself; handing out a remainder can only help.
    """
    for _ in range(out.size + 2):
        extra = 0.0
        moving = 0.0
        number = 0
        for k in range(out.size):
            if sent[k] > 0.0:
                extra += out[k] - low[k]
                if out[k] < high[k]:
                    moving += out[k] - low[k]
                    number += 1
        rest = spare - extra
        if abs(rest) <= 1e-15 * spare or (rest > 0.0 and number == 0):
            return
        for k in range(out.size):
            if sent[k] <= 0.0:
                continue
            own = out[k] - low[k]
            if rest < 0.0:
                out[k] = low[k] + own * (spare / extra)
            elif out[k] < high[k]:
                out[k] = min(out[k] + (rest * own / moving if moving > 0.0 else rest / number), high[k])
        if rest < 0.0:
            return


@compiled
def _priced(
    sent: np.ndarray,
    floors: np.ndarray,
    bits_down: float,
    c_down: np.ndarray,
    bits_up: float,
    c_up: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    total: float,
    out: np.ndarray,
    latency: float,
) -> tuple[float, float]:
    """Latency at ``out`` and the relative gap to the Lagrangian bound there.

    Multipliers lambda_k in proportion to 1 / |t_k'| make all slopes equal, over the slowest devices or
    over those off their lower limits: either is a bound. Where limits rule, so is the best that any one
    device could do with all they leave it.
    """
    best = latency
    alone = latency
    spare = total
    for k in range(out.size):
        spare -= low[k]
    times = np.empty(out.size)
    falls = np.empty(out.size)
    for k in range(out.size):
        if sent[k] <= 0.0:
            continue
        e, fall = excess(out[k], bits_down, c_down[k], bits_up, c_up[k])
        times[k] = floors[k] + sent[k] * e
        falls[k] = sent[k] * fall / out[k]
        best = max(best, times[k])
        more = max(min(high[k], low[k] + max(spare, 0.0)) - out[k], 0.0)
        alone = max(alone, times[k] - falls[k] * more)
    if best <= 0.0:
        return best, 0.0
    bound = alone
    for chosen in range(2):
        weight = 0.0
        mean = 0.0
        room = max(spare, 0.0)  # what the chosen devices could gain together
        for k in range(out.size):
            if sent[k] > 0.0 and (out[k] > low[k] if chosen else times[k] > best * (1.0 - 1e-7)):
                weight += 1.0 / falls[k]
                mean += times[k] / falls[k]
                room -= out[k] - low[k]
        if weight > 0.0:
            bound = max(bound, (mean - max(room, 0.0)) / weight)
    return best, max(best - bound, 0.0) / best


@compiled
def block_multipliers(
    sent: np.ndarray,
    device_time: np.ndarray,
    bits_down: float,
    c_down: np.ndarray,
    bits_up: float,
    c_up: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    bandwidth: np.ndarray,
    lam: np.ndarray,
) -> None:
    """Fill the multipliers of an optimal allocation: d latency / d (time of device k), summing to 1.

    Devices off their limits share them as 1 / |t_k'(b_k)|, which makes all slopes equal; a device at
    its upper limit that is the slowest has them alone.
    """
    slowest = 0
    for k in range(sent.size):
        lam[k] = 0.0
        if device_time[k] > device_time[slowest]:
            slowest = k
    total = 0.0
    if bandwidth[slowest] < high[slowest]:
        for k in range(sent.size):
            if sent[k] > 0.0 and low[k] < bandwidth[k] < high[k]:
                _, fall = excess(bandwidth[k], bits_down, c_down[k], bits_up, c_up[k])
                lam[k] = bandwidth[k] / (sent[k] * fall)
                total += lam[k]
    if total <= 0.0:
        lam[slowest] = 1.0
        return
    for k in range(sent.size):
        lam[k] /= total


@compiled
def soft_multipliers(device_time: np.ndarray, sharpness: float, lam: np.ndarray) -> None:
    """Fill multipliers for a fixed bandwidth: the slowest devices', smoothed over near ties, sum 1."""
    slowest = 0.0
    for k in range(device_time.size):
        slowest = max(slowest, device_time[k])
    total = 0.0
    for k in range(device_time.size):
        lam[k] = exp(sharpness * (device_time[k] / slowest - 1.0)) if slowest > 0.0 else 1.0
        total += lam[k]
    for k in range(device_time.size):
        lam[k] /= total
