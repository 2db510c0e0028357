"""Exact bandwidth shared by several blocks: min over b of sum_i max_k t_ik(b_k).

A primal-dual interior point in logarithms. With u = ln b and tau_i = ln T_i the problem

    min sum_i exp(tau_i)   s.t.   ln t_ik(exp(u_k)) <= tau_i,   ln sum_k exp(u_k) <= ln B,   box on u

is convex, because ln R is concave in ln b (so 1/R is log-convex there) and sums of log-convex
functions and constants are log-convex. In logarithms gains 20 orders of magnitude apart are only
tens of units apart, so no scaling is needed. Each step eliminates the block deadlines and solves a
dense system of one row per loaded device.

What is reported is never the interior point's own accuracy: every late iterate is priced in the
original variables and bounded by Lagrangian duality there (`_bound`).
"""

from __future__ import annotations

from math import exp, inf, isfinite, log, sqrt

import numpy as np

from wdmoe_opt.kernels.block_bandwidth import block_bandwidth, block_multipliers
from wdmoe_opt.kernels.compiled import compiled
from wdmoe_opt.kernels.link import link_times, log_time_terms
from wdmoe_opt.kernels.pricing import device_times

TARGET_GAP = 3e-12
MAX_STEPS = 100
START_MU = 0.1
MAX_MOVE = 3.0
ROUNDING = 1e-14
# Limits that leave less than this part of the budget are beyond the logarithms' resolution: the rest is
# then split as for one block with the summed loads, and the residual says what that may cost.
NO_ROOM = 1e-8


def shared_bandwidth(
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
    multipliers: np.ndarray | None = None,
) -> tuple[float, float]:
    """Allocate ``total`` Hz once for all blocks so that the sum of block latencies is least.

    Parameters
    ----------
    sent, busy : float arrays (blocks, devices)
        Transfers and bandwidth-free seconds, as in `block_bandwidth`.
    c_down, c_up : float arrays (blocks, devices), Hz
        SNR bandwidths P g / N0.
    low, high : float arrays (devices,), Hz
        Limits of each share; sum(low) <= total.
    out : float array (devices,), Hz
        Receives the allocation.
    multipliers : float array (blocks, devices), optional
        Receives d latency / d (time of a device in a block), rows summing to 1 (0 without load).

    Returns
    -------
    latency : float, s
        Sum of block latencies at ``out``.
    gap : float
        Relative KKT residual (Lagrangian gap); no allocation is faster than (1 - gap) * latency.
    """
    # Plain Python: a compiled shell around the interior point would double its compile time.
    loaded = sent > 0.0
    rows, columns = np.flatnonzero(loaded.any(axis=1)), np.flatnonzero(loaded.any(axis=0))
    idle = float(busy[~loaded.any(axis=1)].max(axis=1, initial=0.0).sum())
    out[:] = low
    if multipliers is not None:
        multipliers[:] = 0.0
    if rows.size == 0:
        return idle, 0.0
    if rows.size == 1:
        i = rows[0]
        latency, gap = block_bandwidth(
            sent[i], busy[i], bits_down, c_down[i], bits_up, c_up[i], low, high, total, out
        )
        if multipliers is not None:
            times = np.empty((1, out.size))
            link = link_times(out[None, :], bits_down, c_down[i : i + 1], bits_up, c_up[i : i + 1])
            device_times(sent[i : i + 1], busy[i : i + 1], link, times, np.empty(1))
            block_multipliers(
                sent[i], times[0], bits_down, c_down[i], bits_up, c_up[i], low, high, out, multipliers[i]
            )
        return latency + idle, gap
    spare = max(total - low.sum(), 0.0)
    budget = spare + low[columns].sum()
    part = np.ix_(rows, columns)
    lows = low[columns] / budget
    highs = np.maximum(np.minimum(high[columns] / budget, 1.0), lows)
    tables = (
        sent[part],
        busy[part],
        bits_down / budget,
        c_down[part] / budget,
        bits_up / budget,
        c_up[part] / budget,
        lows,
        highs,
    )
    if min(spare / budget, (highs - lows).sum()) > NO_ROOM:
        b, lam, latency, gap = _interior_point(*tables)
    else:
        b, lam, latency, gap = _no_room(spare / budget, *tables)
    # The interior point widens empty boxes a little.
    out[columns] = np.clip(b * budget, low[columns], high[columns])
    if multipliers is not None:
        multipliers[part] = lam / lam.sum(axis=1, keepdims=True)
    return latency + idle, gap


@compiled
def _interior_point(
    sent: np.ndarray,
    busy: np.ndarray,
    bits_down: float,
    c_down: np.ndarray,
    bits_up: float,
    c_up: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, float, float]:
    """Best shares of a unit budget, the multipliers, the latency in s, and the relative gap.

    low, high, c_down and c_up are in units of the budget, and so are the payloads, which keeps
    times in seconds. Slacks are variables of their own: the curved constraints (deadlines, budget)
    may be off by a residual that Newton removes, where staying strictly inside would cut every step
    short.
    """
    blocks, devices = sent.shape
    u = np.empty(devices)
    _interior_start(low, high, u)
    times = np.empty((3, blocks, devices))  # t, dt/du, d2t/du2
    trial = np.empty((3, blocks, devices))
    _link_terms(u, sent, busy, bits_down, c_down, bits_up, c_up, times)
    best = np.empty(devices)
    for k in range(devices):
        best[k] = exp(u[k])
    best_latency = _latency(times)
    if not isfinite(best_latency):
        return best, np.ones((blocks, devices)), inf, inf
    best_bound = 0.0
    scale = best_latency / blocks
    tau = np.empty(blocks)
    slack = np.zeros((blocks, devices))
    lam = np.zeros((blocks, devices))
    _centred_deadlines(times, sent, scale, tau, slack, lam)
    # Row 0 belongs to u <= ln high, row 1 to u >= ln low, the last element to the budget.
    edge = np.empty(2 * devices + 1)
    edge_lam = np.empty(2 * devices + 1)
    _edges(u, low, high, edge)
    edge[2 * devices] = START_MU
    for r in range(edge.size):
        edge_lam[r] = START_MU / edge[r]
    residual = np.zeros((blocks, devices))
    step_u = np.empty(devices)
    step_tau = np.empty(blocks)
    steps = np.zeros((2, blocks, devices))  # of slack and multiplier
    edge_steps = np.zeros((2, edge.size))
    shares = np.empty(devices)
    retracted = np.empty(devices)
    stale = 0
    for _ in range(MAX_STEPS):
        total = 0.0
        for k in range(devices):
            shares[k] = exp(u[k])
            total += shares[k]
        bound = _bound(shares, times, sent, lam, low, high)
        latency = _latency(times)
        if total > 1.0:
            _retract(shares, total, low)
            for k in range(devices):
                retracted[k] = log(shares[k])
            _link_terms(retracted, sent, busy, bits_down, c_down, bits_up, c_up, trial)
            latency = _latency(trial)
        # Take the better of what each iterate proves on either side.
        stale += 1
        if latency < best_latency:
            stale = 0 if latency < best_latency * (1.0 - 1e-13) else stale
            best_latency = latency
            for k in range(devices):
                best[k] = shares[k]
        if bound > best_bound:
            stale = 0 if bound > best_bound * (1.0 + 1e-13) else stale
            best_bound = bound
        mu = _mean_product(slack, lam, sent, edge, edge_lam, low)
        # Where bandwidth hardly matters both sides stand still long before mu says they may.
        done = mu < 1e-14 and stale >= 12
        if best_latency - best_bound <= TARGET_GAP * best_latency or done:
            break
        target = 0.1 * mu
        overdrawn = log(total) + edge[2 * devices]
        _violation(tau, times, sent, scale, slack, residual)
        if not _newton_step(
            u, tau, times, sent, lam, slack, residual, edge, edge_lam, overdrawn, target, step_u, step_tau
        ):
            break
        alpha = _multiplier_steps(
            u,
            total,
            times,
            sent,
            lam,
            slack,
            residual,
            edge,
            edge_lam,
            overdrawn,
            target,
            step_u,
            step_tau,
            steps,
            edge_steps,
        )
        if not isfinite(alpha):
            break
        for k in range(devices):
            u[k] += alpha * step_u[k]
        for i in range(blocks):
            tau[i] += alpha * step_tau[i]
        for r in range(edge.size):
            edge[r] += alpha * edge_steps[0, r]
            edge_lam[r] += alpha * edge_steps[1, r]
        for i in range(blocks):
            for k in range(devices):
                slack[i, k] += alpha * steps[0, i, k]
                lam[i, k] += alpha * steps[1, i, k]
        _link_terms(u, sent, busy, bits_down, c_down, bits_up, c_up, times)
    for k in range(devices):
        best[k] = min(max(best[k], low[k]), high[k])
    return best, lam, best_latency, max(best_latency - best_bound, 0.0) / best_latency


def _no_room(
    spare: float,
    sent: np.ndarray,
    busy: np.ndarray,
    bits_down: float,
    c_down: np.ndarray,
    bits_up: float,
    c_up: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, float, float]:
    """Shares where the limits leave (next to) nothing to choose; returns as `_interior_point` does."""
    shares = np.minimum(low + spare / low.size, high)
    lam = np.ones(sent.shape)
    if not (shares > 0.0).all():
        return shares, lam, inf, inf
    total = float(low.sum()) + spare
    c_d, c_u = c_down.mean(axis=0), c_up.mean(axis=0)
    found = np.empty_like(shares)
    latency, _ = block_bandwidth(
        sent.sum(axis=0), busy.sum(axis=0), bits_down, c_d, bits_up, c_u, low, high, total, found
    )
    if isfinite(latency) and (found > 0.0).all():
        shares = found
    times = np.empty((3, *sent.shape))
    _link_terms(np.log(shares), sent, busy, bits_down, c_down, bits_up, c_up, times)
    latency = _latency(times)
    if not isfinite(latency):
        return shares, lam, inf, inf
    lam = (times[0] >= times[0].max(axis=1, keepdims=True)).astype(np.float64)
    bound = _bound(shares, times, sent, lam, low, high)
    return shares, lam, latency, max(latency - bound, 0.0) / latency


@compiled
def _retract(shares: np.ndarray, total: float, low: np.ndarray) -> None:
    """Pull an overdrawn point back to the budget along the line to the lower limits."""
    reserved = 0.0
    for k in range(low.size):
        reserved += low[k]
    part = (1.0 - reserved) / (total - reserved)
    for k in range(low.size):
        shares[k] = low[k] + (shares[k] - low[k]) * part


@compiled
def _mean_product(
    slack: np.ndarray,
    lam: np.ndarray,
    sent: np.ndarray,
    edge: np.ndarray,
    edge_lam: np.ndarray,
    low: np.ndarray,
) -> float:
    """Mean of slack times multiplier over the constraints that exist."""
    products = 0.0
    count = 0
    for i in range(sent.shape[0]):
        for k in range(sent.shape[1]):
            if sent[i, k] > 0.0:
                products += slack[i, k] * lam[i, k]
                count += 1
    for r in range(edge.size):
        if not (low.size <= r < 2 * low.size and low[r - low.size] <= 0.0):
            products += edge[r] * edge_lam[r]
            count += 1
    return products / count


@compiled
def _multiplier_steps(
    u: np.ndarray,
    total: float,
    times: np.ndarray,
    sent: np.ndarray,
    lam: np.ndarray,
    slack: np.ndarray,
    residual: np.ndarray,
    edge: np.ndarray,
    edge_lam: np.ndarray,
    overdrawn: float,
    target: float,
    step_u: np.ndarray,
    step_tau: np.ndarray,
    steps: np.ndarray,
    edge_steps: np.ndarray,
) -> float:
    """Fill the steps of slacks and multipliers that belong to (step_u, step_tau); return the damping."""
    blocks, devices = sent.shape
    alpha = 1.0
    for k in range(devices):
        alpha = min(alpha, MAX_MOVE / max(abs(step_u[k]), 1e-300))
    for i in range(blocks):
        alpha = min(alpha, MAX_MOVE / max(abs(step_tau[i]), 1e-300))
        for k in range(devices):
            if sent[i, k] > 0.0:
                slope = times[1, i, k] / times[0, i, k]
                rise = residual[i, k] + slope * step_u[k] - step_tau[i]
                weight = lam[i, k] / slack[i, k]
                steps[0, i, k] = -rise
                steps[1, i, k] = target / slack[i, k] - lam[i, k] + weight * rise
                alpha = _damp(_damp(alpha, slack[i, k], -rise), lam[i, k], steps[1, i, k])
    growth = overdrawn
    for k in range(devices):
        growth += exp(u[k]) / total * step_u[k]
    for r in range(edge.size):
        rise = growth
        if r < devices:
            rise = step_u[r]
        elif r < 2 * devices:
            rise = -step_u[r - devices]
        edge_steps[0, r] = -rise
        edge_steps[1, r] = target / edge[r] - edge_lam[r] + edge_lam[r] / edge[r] * rise
        alpha = _damp(_damp(alpha, edge[r], -rise), edge_lam[r], edge_steps[1, r])
    return alpha


@compiled
def _interior_start(low: np.ndarray, high: np.ndarray, u: np.ndarray) -> None:
    """Point strictly inside box and budget; empty interiors are widened by 1e-10 (clipped at the end)."""
    room = 0.0
    reserved = 0.0
    for k in range(low.size):
        high[k] = max(high[k], low[k] * (1.0 + 1e-10))
        room += high[k] - low[k]
        reserved += low[k]
    part = min(0.5, 0.9 * max(1.0 - reserved, NO_ROOM) / room)
    for k in range(low.size):
        u[k] = log(low[k] + part * (high[k] - low[k]))


@compiled
def _centred_deadlines(
    times: np.ndarray,
    sent: np.ndarray,
    scale: float,
    tau: np.ndarray,
    slack: np.ndarray,
    lam: np.ndarray,
) -> None:
    """Log deadlines on the central path of START_MU: exp(tau_i) = sum_k START_MU / slack_ik.

    Blocks much faster than the mean would otherwise start far off the path and throw Newton out.
    """
    for i in range(tau.size):
        slowest = 0.0
        for k in range(sent.shape[1]):
            slowest = max(slowest, times[0, i, k])
        down = log(slowest / scale)
        up = max(down, 0.0) + 40.0
        for _ in range(30):
            tau[i] = 0.5 * (down + up)
            pressure = 0.0
            for k in range(sent.shape[1]):
                if sent[i, k] > 0.0:
                    pressure += START_MU / (tau[i] - log(times[0, i, k] / scale))
            if pressure > exp(tau[i]):
                down = tau[i]
            else:
                up = tau[i]
        tau[i] = up
        for k in range(sent.shape[1]):
            if sent[i, k] > 0.0:
                slack[i, k] = tau[i] - log(times[0, i, k] / scale)
                lam[i, k] = START_MU / slack[i, k]


@compiled
def _link_terms(
    u: np.ndarray,
    sent: np.ndarray,
    busy: np.ndarray,
    bits_down: float,
    c_down: np.ndarray,
    bits_up: float,
    c_up: np.ndarray,
    times: np.ndarray,
) -> None:
    """Time of every device in every block and its derivatives in ln b."""
    for k in range(u.size):
        b = exp(u[k])
        known = False
        c_d = c_u = t = first = second = 0.0
        for i in range(sent.shape[0]):
            if sent[i, k] <= 0.0:
                for r in range(3):
                    times[r, i, k] = 0.0
                continue
            if not (known and c_down[i, k] == c_d and c_up[i, k] == c_u):
                # With a static channel one pair of logarithms serves all blocks.
                c_d, c_u, known = c_down[i, k], c_up[i, k], True
                t, first, second = log_time_terms(b, bits_down, c_d, bits_up, c_u)
            times[0, i, k] = busy[i, k] + sent[i, k] * t
            times[1, i, k] = sent[i, k] * first
            times[2, i, k] = sent[i, k] * second


@compiled
def _violation(
    tau: np.ndarray, times: np.ndarray, sent: np.ndarray, scale: float, slack: np.ndarray, out: np.ndarray
) -> None:
    """Residual ln t_ik - tau_i + slack_ik of the deadline constraints."""
    for i in range(sent.shape[0]):
        for k in range(sent.shape[1]):
            if sent[i, k] > 0.0:
                value = log(times[0, i, k] / scale) - tau[i] + slack[i, k]
                # Rounding of the logarithm, divided by a tiny slack, would be noise on the multiplier.
                out[i, k] = value if abs(value) > ROUNDING * (1.0 + abs(tau[i])) else 0.0


@compiled
def _edges(u: np.ndarray, low: np.ndarray, high: np.ndarray, edge: np.ndarray) -> None:
    """Distances of u from its upper and lower limit; a lower limit of 0 is infinitely far."""
    for k in range(u.size):
        edge[k] = log(high[k]) - u[k]
        edge[u.size + k] = u[k] - log(low[k]) if low[k] > 0.0 else 1e9


@compiled
def _damp(alpha: float, value: float, step: float) -> float:
    """Largest step up to ``alpha`` that keeps a hundredth of a multiplier."""
    if step < 0.0:
        return min(alpha, -0.99 * value / step)
    return alpha


@compiled
def _newton_step(
    u: np.ndarray,
    tau: np.ndarray,
    times: np.ndarray,
    sent: np.ndarray,
    lam: np.ndarray,
    slack: np.ndarray,
    residual: np.ndarray,
    edge: np.ndarray,
    edge_lam: np.ndarray,
    overdrawn: float,
    target: float,
    step_u: np.ndarray,
    step_tau: np.ndarray,
) -> bool:
    """Solve the Newton system for (u, tau) by eliminating tau; False if it is not positive definite."""
    blocks, devices = sent.shape
    top = edge[2 * devices]
    top_lam = edge_lam[2 * devices]
    share = np.empty(devices)
    total = 0.0
    for k in range(devices):
        share[k] = exp(u[k])
        total += share[k]
    matrix = np.empty((devices, devices))
    right = step_u
    for k in range(devices):
        share[k] /= total
        right[k] = -(target + top_lam * overdrawn) / top * share[k]
        right[k] += target / edge[devices + k] - target / edge[k]
    for k in range(devices):
        for q in range(devices):
            matrix[k, q] = (top_lam / top - top_lam) * share[k] * share[q]
        matrix[k, k] += top_lam * share[k]
        matrix[k, k] += edge_lam[k] / edge[k] + edge_lam[devices + k] / edge[devices + k]
    slope = np.zeros(devices)
    weight = np.zeros(devices)
    pivots = np.empty(blocks)
    sides = np.empty(blocks)
    for i in range(blocks):
        ahead = 0.0
        side = -exp(tau[i])
        for k in range(devices):
            weight[k] = 0.0
            if sent[i, k] > 0.0:
                slope[k] = times[1, i, k] / times[0, i, k]
                weight[k] = lam[i, k] / slack[i, k]
                ahead += weight[k]
                push = (target + lam[i, k] * residual[i, k]) / slack[i, k]
                side += push
                right[k] -= push * slope[k]
                matrix[k, k] += lam[i, k] * (times[2, i, k] / times[0, i, k] - slope[k] * slope[k])
        pivot = exp(tau[i]) + ahead
        pivots[i] = pivot
        sides[i] = side
        for k in range(devices):
            if weight[k] <= 0.0:
                continue
            scaled = weight[k] * slope[k] / pivot
            right[k] += scaled * side
            # The diagonal is weight slope^2 (1 - weight / pivot); summing the others instead of
            # subtracting keeps its digits when one weight dominates.
            others = exp(tau[i])
            for q in range(devices):
                if q != k and weight[q] > 0.0:
                    others += weight[q]
                    matrix[k, q] -= scaled * weight[q] * slope[q]
            matrix[k, k] += scaled * slope[k] * others
    if not _solve_in_place(matrix, right):
        return False
    for i in range(blocks):
        value = sides[i]
        for k in range(devices):
            if sent[i, k] > 0.0:
                value += lam[i, k] / slack[i, k] * times[1, i, k] / times[0, i, k] * step_u[k]
        step_tau[i] = value / pivots[i]
    return True


@compiled
def _solve_in_place(matrix: np.ndarray, right: np.ndarray) -> bool:
    """Cholesky solve of a symmetric positive definite system after symmetric diagonal scaling.

    Written out because LAPACK's wrapper allocates and would be loaded for systems this small.
    """
    n = right.size
    norm = np.empty(n)
    for k in range(n):
        if not matrix[k, k] > 0.0:
            return False
        norm[k] = 1.0 / sqrt(matrix[k, k])
    for k in range(n):
        right[k] *= norm[k]
        for q in range(n):
            matrix[k, q] *= norm[k] * norm[q]
    for k in range(n):
        value = matrix[k, k]
        for r in range(k):
            value -= matrix[k, r] * matrix[k, r]
        # Rounding can leave a pivot of a nearly dependent device at or below zero.
        matrix[k, k] = sqrt(max(value, 1e-14))
        for q in range(k + 1, n):
            value = matrix[q, k]
            for r in range(k):
                value -= matrix[q, r] * matrix[k, r]
            matrix[q, k] = value / matrix[k, k]
    for k in range(n):
        for r in range(k):
            right[k] -= matrix[k, r] * right[r]
        right[k] /= matrix[k, k]
    for k in range(n - 1, -1, -1):
        for r in range(k + 1, n):
            right[k] -= matrix[r, k] * right[r]
        right[k] /= matrix[k, k]
    for k in range(n):
        right[k] *= norm[k]
    return True


@compiled
def _bound(
    shares: np.ndarray,
    times: np.ndarray,
    sent: np.ndarray,
    lam: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
) -> float:
    """Lower bound on the latency that the multipliers prove at ``shares``.

    t_ik is convex in b, so sum_i max_k t_ik(b') >= sum_ik w_ik (t_ik(b) + t_ik'(b) (b' - b)) for any
    weights w on the simplex of each block; the minimum of the right side over the box and the budget
    is a fractional knapsack: lower limits first, then the steepest devices.
    """
    blocks, devices = sent.shape
    pull = np.zeros(devices)
    bound = 0.0
    for i in range(blocks):
        total = 0.0
        for k in range(devices):
            total += lam[i, k]
        for k in range(devices):
            if sent[i, k] > 0.0:
                w = lam[i, k] / total
                bound += w * times[0, i, k]
                pull[k] -= w * times[1, i, k] / shares[k]
    room = 1.0
    for k in range(devices):
        room -= low[k]
        bound -= pull[k] * (low[k] - shares[k])
    for _ in range(devices):
        steepest = 0
        for k in range(devices):
            if pull[k] > pull[steepest]:
                steepest = k
        part = min(max(room, 0.0), high[steepest] - low[steepest])
        bound -= pull[steepest] * part
        pull[steepest] = 0.0
        room -= part
        if room <= 0.0:
            break
    return bound


@compiled
def _latency(times: np.ndarray) -> float:
    """Sum over blocks of the slowest device."""
    latency = 0.0
    for i in range(times.shape[1]):
        slowest = 0.0
        for k in range(times.shape[2]):
            slowest = max(slowest, times[0, i, k])
        latency += slowest
    return latency
