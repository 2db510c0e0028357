"""Prices of the relaxed joint problem by Newton's method on its smoothed optimality conditions.

Relaxed, block i has loads n_i(p_i, mu_i) that answer to prices (`response.respond`), a deadline T_i and
the bandwidth b. At the optimum, with rho_k(b) the transfers per second of a device,

    n_ik + rho_ik A_ik <= (T_i - l_k) rho_ik(b_k)     every device is ready by the deadline, and
                                                      has a price p_ik > 0 only if it just so is
    retention_i = rho J                               the floor is used up; left out
                                                      where it binds nobody
    sum_k p_ik rho_ik = 1                             a second of the block is worth a second
    sum_i p_ik M_ik rho'_ik = nu                      a hertz is worth the same everywhere
    sum_k b_k = B

with M = T - l - A the seconds left for tokens. Every block is eliminated on its own (K + 2 unknowns);
what remains are the bandwidths and their price. At fixed bandwidth the last two lines fall away.
Slacks of the first line are kept positive and driven to zero against their prices, as interior point
methods do: where blocks share bandwidth, most devices wait in most blocks.
"""

from __future__ import annotations

from math import exp, inf, log
from typing import NamedTuple

import numpy as np

from wdmoe_opt.kernels.compiled import compiled
from wdmoe_opt.kernels.link import log_time_terms
from wdmoe_opt.kernels.response import Items, respond

#: Largest step of the logarithm of bandwidth, and of prices and deadlines relative to themselves.
LOG_MOVE, PART_MOVE = 1.0, 0.9
#: Price of retention, as a part of the mean price of a transfer, that no longer moves anybody.
WORTHLESS = 1e-3
#: Least slope of retention in the logarithm of its price that is believed, as a part of what is needed.
PROXIMAL = 0.02
#: Relative residual up to which a block moves along with the bandwidth; beyond, it settles first.
SETTLED = 0.3


class Link(NamedTuple):
    """Radio of a group of blocks; see `problem.Tables`."""

    bits_down: float
    c_down: np.ndarray
    bits_up: float
    c_up: np.ndarray
    low: np.ndarray
    high: np.ndarray
    total: float
    delay: np.ndarray


class Prices(NamedTuple):
    """State of the Newton iteration, updated in place.

    Attributes
    ----------
    transfer : float array (blocks, devices)
        p, seconds of block latency per transfer.
    slack : float array (blocks, devices)
        Transfers that a device could still serve by the deadline.
    retention : float array (blocks,)
        mu, seconds per retention.
    deadline : float array (blocks,), s
    log_bandwidth : float array (rows, devices)
        ln Hz; one row for all blocks, or fixed ones.
    hertz : float array (1,)
        nu, seconds per Hz.
    on : float array (blocks, switches)
    bids : float array (blocks, tokens)
    """

    transfer: np.ndarray
    slack: np.ndarray
    retention: np.ndarray
    deadline: np.ndarray
    log_bandwidth: np.ndarray
    hertz: np.ndarray
    on: np.ndarray
    bids: np.ndarray


class Work(NamedTuple):
    """Scratch of one block's equations."""

    matrix: np.ndarray
    right: np.ndarray
    terms: np.ndarray
    slopes: np.ndarray
    active: np.ndarray


@compiled
def make_work(devices: int) -> Work:
    """Scratch for so many devices."""
    return Work(
        np.empty((devices + 2, devices + 2)),
        np.empty((devices + 2, devices + 1)),
        np.empty((4, devices)),
        np.empty((devices + 1, devices + 1)),
        np.empty(devices),
    )


@compiled
def service(
    link: Link,
    link_time: np.ndarray,
    i: int,
    log_bandwidth: np.ndarray,
    mean_work: np.ndarray,
    free: bool,
    out: np.ndarray,
) -> None:
    """Fill rows 0 to 2 with transfers per second and its two derivatives in ln b, row 3 with seconds."""
    for k in range(mean_work.size):
        if free and _unreachable(link, i, k):
            time, first, second = inf, 0.0, 0.0
        elif free:
            time, first, second = log_time_terms(
                exp(log_bandwidth[k]), link.bits_down, link.c_down[i, k], link.bits_up, link.c_up[i, k]
            )
        else:
            time, first, second = link_time[i, k], 0.0, 0.0
        seconds = time + mean_work[k]
        if not seconds < inf:  # out of reach: nobody is sent there
            out[0, k], out[1, k], out[2, k], out[3, k] = 0.0, 0.0, 0.0, inf
            continue
        out[0, k] = 1.0 / seconds
        out[1, k] = -first / seconds**2
        out[2, k] = -second / seconds**2 + 2.0 * first * first / seconds**3
        out[3, k] = seconds


@compiled
def _unreachable(link: Link, i: int, k: int) -> bool:
    down, up = link.bits_down > 0.0, link.bits_up > 0.0
    return (down and link.c_down[i, k] <= 0.0) or (up and link.c_up[i, k] <= 0.0)


@compiled
def solve_dense(matrix: np.ndarray, right: np.ndarray) -> bool:
    """Gaussian elimination with partial pivoting in place; ``right`` (n, columns) becomes the solution."""
    n, columns = right.shape
    for c in range(n):
        pivot = c
        for r in range(c + 1, n):
            if abs(matrix[r, c]) > abs(matrix[pivot, c]):
                pivot = r
        if not abs(matrix[pivot, c]) > 0.0:
            return False
        if pivot != c:
            for q in range(n):
                matrix[c, q], matrix[pivot, q] = matrix[pivot, q], matrix[c, q]
            for q in range(columns):
                right[c, q], right[pivot, q] = right[pivot, q], right[c, q]
        inverse = 1.0 / matrix[c, c]
        for r in range(c + 1, n):
            factor = matrix[r, c] * inverse
            if factor == 0.0:
                continue
            for q in range(c + 1, n):
                matrix[r, q] -= factor * matrix[c, q]
            for q in range(columns):
                right[r, q] -= factor * right[c, q]
    for c in range(n - 1, -1, -1):
        for r in range(c + 1, n):
            factor = matrix[c, r]
            for q in range(columns):
                right[c, q] -= factor * right[r, q]
        inverse = 1.0 / matrix[c, c]
        for q in range(columns):
            right[c, q] *= inverse
    return True


@compiled
def first_retention_price(
    items: Items,
    link: Link,
    link_time: np.ndarray,
    free: bool,
    needed: np.ndarray,
    floors: np.ndarray,
    mean_work: np.ndarray,
    width: float,
    steps: int,
    prices: Prices,
) -> None:
    """Start value of every block's mu: Newton on retention alone, other prices held."""
    blocks, devices = prices.transfer.shape
    terms, slopes = np.empty((4, devices)), np.empty((devices + 1, devices + 1))
    load, active = np.empty(devices), np.empty(devices)
    for i in range(blocks):
        row = i if prices.log_bandwidth.shape[0] > 1 else 0
        service(link, link_time, i, prices.log_bandwidth[row], mean_work[i], free, terms)
        for _ in range(steps):
            kept = respond(
                items, i, prices.transfer[i], prices.retention[i], terms[3], mean_work[i], width, floors[i],
                prices.on[i], prices.bids[i], load, active, slopes,
            )  # fmt: skip
            slope = max(slopes[devices, devices] * prices.retention[i], 1e-3 * needed[i])
            step = min(max((needed[i] - kept) / slope, -1.0), 1.0)
            prices.retention[i] *= exp(step)
            if abs(step) < 0.02:
                break


@compiled
def block_system(
    items: Items,
    link: Link,
    link_time: np.ndarray,
    free: bool,
    needed: np.ndarray,
    floors: np.ndarray,
    mean_work: np.ndarray,
    width: float,
    target: float,
    prices: Prices,
    i: int,
    loads: np.ndarray,
    work: Work,
) -> float:
    """Newton equations of block ``i`` in (p, mu, T); further right sides for the logarithms of bandwidth.

    Fills ``work.matrix``, ``work.right`` (column 0, and 1 + k for the bandwidth of device k),
    ``work.active`` and ``work.terms``; returns the largest relative residual.
    """
    devices = prices.transfer.shape[1]
    matrix, right, terms, slopes, active = work.matrix, work.right, work.terms, work.slopes, work.active
    row = i if prices.log_bandwidth.shape[0] > 1 else 0
    service(link, link_time, i, prices.log_bandwidth[row], mean_work[i], free, terms)
    p, mu, deadline = prices.transfer[i], prices.retention[i], prices.deadline[i]
    kept = respond(
        items, i, p, mu, terms[3], mean_work[i], width, floors[i], prices.on[i], prices.bids[i], loads[i],
        active, slopes,
    )  # fmt: skip
    matrix[:, :] = 0.0
    right[:, :] = 0.0
    paid = 0.0
    residual = 0.0
    for k in range(devices):
        room = deadline - link.delay[k] - active[k]
        rate = terms[0, k]
        excess = loads[i, k] - room * rate + prices.slack[i, k]
        lacking = target * deadline / p[k] - prices.slack[i, k]
        for q in range(devices):
            matrix[k, q] = slopes[k, q]
        matrix[k, k] += prices.slack[i, k] / p[k]
        matrix[k, devices] = -slopes[k, devices]
        matrix[devices, k] = -slopes[k, devices]
        matrix[k, devices + 1] = rate
        matrix[devices + 1, k] = rate
        right[k, 0] = excess + lacking
        right[k, 1 + k] = -room * terms[1, k]
        right[devices + 1, 1 + k] = -p[k] * terms[1, k]
        paid += p[k] * rate
        residual = max(residual, abs(excess) / (1.0 + loads[i, k]), p[k] * abs(lacking) / deadline)
    # Proximal term: where no token doubts, retention does not say how far mu should go.
    matrix[devices, devices] = slopes[devices, devices] + PROXIMAL * max(needed[i], 1e-3) / mu
    right[devices, 0] = needed[i] - kept
    right[devices + 1, 0] = 1.0 - paid
    missed = abs(needed[i] - kept) / max(needed[i], 1.0)
    if kept > needed[i] and mu < WORTHLESS * p.mean():
        # More is kept than asked for though it is worth nothing: the floor is no constraint here.
        missed = 0.0
        matrix[devices, :] = 0.0
        matrix[:, devices] = 0.0
        matrix[devices, devices] = 1.0
        right[devices, :] = 0.0
    return float(max(residual, missed, abs(1.0 - paid)))


@compiled
def move_block(prices: Prices, i: int, target: float, step: np.ndarray, longest: float) -> float:
    """Move prices, slacks and deadline of block ``i`` as far as they stay positive; return the length."""
    devices = prices.transfer.shape[1]
    length = longest
    mu = prices.retention[i]
    step[devices] = min(max(step[devices], -0.6 * mu), 1.5 * mu)
    for r in range(devices + 2):
        size = prices.deadline[i]
        if r < devices:
            size = prices.transfer[i, r]
            rest = prices.slack[i, r]
            # The slack's step follows from its product with the price.
            move = target * prices.deadline[i] / size - rest - rest / size * step[r]
            length = min(length, PART_MOVE * rest / max(-move, 1e-300))
        elif r == devices:
            size = prices.retention[i]
        length = min(length, PART_MOVE * size / max(-step[r], 0.3 * step[r], 1e-300))
    for k in range(devices):
        p, rest = prices.transfer[i, k], prices.slack[i, k]
        prices.slack[i, k] += length * (target * prices.deadline[i] / p - rest - rest / p * step[k])
        prices.transfer[i, k] += length * step[k]
    prices.retention[i] += length * step[devices]
    prices.deadline[i] += length * step[devices + 1]
    return length


@compiled
def newton(
    items: Items,
    link: Link,
    link_time: np.ndarray,
    free: bool,
    needed: np.ndarray,
    floors: np.ndarray,
    mean_work: np.ndarray,
    width: float,
    target: float,
    steps: int,
    tolerance: float,
    prices: Prices,
    loads: np.ndarray,
) -> tuple[int, float]:
    """Take up to ``steps`` Newton steps at one smoothing width and one barrier.

    Parameters
    ----------
    items, link : Items, Link
    link_time : float array (blocks, devices), s
        Used unless bandwidth is ``free``.
    needed : float array (blocks,)
        Retention each block must keep, summed over tokens.
    floors : float array (blocks,)
        Retention each token must keep.
    mean_work : float array (blocks, devices), s
        Compute time of a mean transfer.
    width : float
        Half width of the smoothing, relative to prices.
    target : float
        Product of price and slack over deadline to aim for.
    tolerance : float
        Largest relative residual that ends the iteration.
    prices : Prices
        Start, updated.
    loads : float array (blocks, devices), filled
        Transfers in units of the mean one, at the last prices but one.

    Returns
    -------
    passes, residual : int, float
        Passes over the tokens of all blocks, and the largest relative residual before the last step.
    """
    blocks, devices = prices.transfer.shape
    work = make_work(devices)
    answers = np.empty((blocks, devices + 2, devices + 1))
    outer, outer_right = np.empty((devices + 1, devices + 1)), np.empty((devices + 1, 1))
    step = np.empty(devices + 2)
    residual = 0.0
    passes = 0
    for _ in range(steps):
        residual = 0.0
        outer[:, :] = 0.0
        outer_right[:, :] = 0.0
        for i in range(blocks):
            for attempt in range(6):
                passes += 1
                off = block_system(
                    items, link, link_time, free, needed, floors, mean_work, width, target, prices, i, loads,
                    work,
                )  # fmt: skip
                if attempt == 0:
                    residual = max(residual, off)
                if not solve_dense(work.matrix, work.right):
                    break
                if (off <= SETTLED and free) or blocks == 1 or attempt == 5:
                    break
                step[:] = work.right[:, 0]
                move_block(prices, i, target, step, 1.0)
                if off <= tolerance:
                    break
            answers[i] = work.right
            if free:
                _add_block(prices, i, link, work, outer, outer_right)
        longest = 1.0
        if free:
            residual = max(residual, _bandwidth_system(link, prices, outer, outer_right))
            if not solve_dense(outer, outer_right):
                return passes, residual
            for k in range(devices):
                longest = min(longest, LOG_MOVE / max(abs(outer_right[k, 0]), 1e-300))
        elif blocks > 1:
            return passes, residual
        for i in range(blocks):
            for r in range(devices + 2):
                step[r] = answers[i, r, 0]
                if free:
                    for k in range(devices):
                        step[r] += answers[i, r, 1 + k] * outer_right[k, 0]
            length = move_block(prices, i, target, step, longest)
            if blocks == 1:
                longest = length
        if free:
            _move_bandwidth(link, prices, outer_right, longest)
        if residual < tolerance:
            break
    return passes, residual


@compiled
def _add_block(
    prices: Prices, i: int, link: Link, work: Work, outer: np.ndarray, outer_right: np.ndarray
) -> None:
    """Add what block ``i`` says about the bandwidth to the outer equations."""
    devices = prices.transfer.shape[1]
    right, terms = work.right, work.terms
    for k in range(devices):
        p = prices.transfer[i, k]
        room = prices.deadline[i] - link.delay[k] - work.active[k]
        across, along = room * terms[1, k], p * terms[1, k]
        outer[k, k] += p * room * terms[2, k]
        outer_right[k, 0] -= p * across + across * right[k, 0] + along * right[devices + 1, 0]
        for q in range(devices):
            outer[k, q] += across * right[k, 1 + q] + along * right[devices + 1, 1 + q]


@compiled
def _bandwidth_system(link: Link, prices: Prices, outer: np.ndarray, outer_right: np.ndarray) -> float:
    """Complete the equations of bandwidth and its price; a share pressed against a limit stays there."""
    devices = link.low.size
    used = 0.0
    nu = prices.hertz[0]
    worst = 0.0
    for k in range(devices):
        b = exp(prices.log_bandwidth[0, k])
        used += b
        outer_right[k, 0] += nu * b
        outer[k, k] -= nu * b
        outer[k, devices] = -b
        outer[devices, k] = -b
    outer_right[devices, 0] = used - link.total
    for k in range(devices):
        b = exp(prices.log_bandwidth[0, k])
        # Right side: minus the slope of the Lagrangian; it grows the share where bandwidth is dear.
        pressed = (b >= link.high[k] * (1.0 - 1e-9) and outer_right[k, 0] < 0.0) or (
            b <= link.low[k] * (1.0 + 1e-9) and outer_right[k, 0] > 0.0
        )
        if pressed:
            for q in range(devices + 1):
                outer[k, q] = 0.0
            outer[k, k] = 1.0
            outer_right[k, 0] = 0.0
        else:
            worst = max(worst, abs(outer_right[k, 0]) / (nu * link.total))
    return max(worst, abs(used / link.total - 1.0))


@compiled
def _move_bandwidth(link: Link, prices: Prices, step: np.ndarray, length: float) -> None:
    """Move the bandwidth and its price within their limits."""
    devices = link.low.size
    for k in range(devices):
        u = prices.log_bandwidth[0, k] + length * step[k, 0]
        if link.low[k] > 0.0:
            u = max(u, log(link.low[k]))
        prices.log_bandwidth[0, k] = min(u, log(min(link.high[k], link.total)))
    prices.hertz[0] = max(prices.hertz[0] + length * step[devices, 0], 0.3 * prices.hertz[0])
