"""One block's new routing and gains: checked by the rules of `Instance` and `Problem`, and made ready.

Only whether the rules hold is said here. Where they do not, the caller builds the objects themselves,
whose errors name field, index, value and rule.
"""

from __future__ import annotations

from math import inf, isfinite

import numpy as np

from wdmoe_opt.kernels.compiled import compiled


@compiled
def take_routing(
    ids: np.ndarray,
    weights: np.ndarray,
    top_k: int,
    candidates: int,
    cap: int,
    open_expert: np.ndarray,
    compute: np.ndarray,
    allowed: np.ndarray,
    share: np.ndarray,
    work: np.ndarray,
    mass: np.ndarray,
    plain: np.ndarray,
    richest: np.ndarray,
) -> bool:
    """Whether a routing keeps the rules; if so, everything that kernels need of it.

    Parameters
    ----------
    ids : int64 array (tokens, m)
    weights : float array (tokens, m)
    top_k, candidates, cap : int
        Leading columns of plain routing and of selections; most experts of a token.
    open_expert : bool array (experts,)
        Experts on devices that can be reached.
    compute : float array (experts,), s
    allowed : int32 array (1, tokens, m), filled
        Experts, -1 where a candidate is not allowed.
    share : float array (1, tokens, m), filled
    work : float array (1, tokens, m), filled, s
        Compute time of the candidate; left alone if it has another size.
    mass : float array (tokens,), filled
        Sum of the top-k weights.
    plain : bool array (1, tokens, m), filled
        Plain top-k among the experts that can be reached, else the first that can.
    richest : float array (2,), filled
        Most retention that all tokens together, and the poorest of them, can keep.
    """
    tokens, columns = ids.shape
    richest[0], richest[1] = 0.0, inf
    for j in range(tokens):
        total = 0.0
        for c in range(columns):
            e, w = ids[j, c], weights[j, c]
            if e < -1 or e >= open_expert.size or not (0.0 <= w < inf):
                return False
            if e < 0 and w > 0.0:
                return False
            if c > 0 and ((e >= 0 and ids[j, c - 1] < 0) or w > weights[j, c - 1]):
                return False
            for q in range(c):
                if e >= 0 and ids[j, q] == e:
                    return False
            if c < top_k:
                total += w
        if not (0.0 < total < inf):
            return False
        mass[j] = total
        best, number, first, plainly = 0.0, 0, -1, 0
        for c in range(columns):
            e = ids[j, c]
            allowed[0, j, c] = -1
            plain[0, j, c] = False
            share[0, j, c] = weights[j, c] / total
            if work.shape[1] == tokens and work.shape[2] == columns:
                work[0, j, c] = compute[max(e, 0)]
            if e < 0 or c >= candidates or not open_expert[e]:
                continue
            allowed[0, j, c] = e
            if first < 0:
                first = c
            if c < top_k:
                plain[0, j, c] = True
                plainly += 1
            number += 1
            if number <= cap:
                best += share[0, j, c]
        if first < 0:
            return False
        if plainly == 0:
            plain[0, j, first] = True
        richest[0] += best
        richest[1] = min(richest[1], best)
    return True


@compiled
def take_gains(
    gain_down: np.ndarray,
    gain_up: np.ndarray,
    power_down: np.ndarray,
    power_up: np.ndarray,
    noise_density: float,
    bits_down: float,
    bits_up: float,
    high: np.ndarray,
    c_down: np.ndarray,
    c_up: np.ndarray,
    reached: np.ndarray,
) -> bool:
    """Whether gains (devices,) keep the rules; fills SNR bandwidths (1, devices), Hz, and ``reached``."""
    for k in range(gain_down.size):
        down, up = gain_down[k], gain_up[k]
        if not (0.0 <= down < inf and 0.0 <= up < inf):
            return False
        c_down[0, k] = power_down[k] * down / noise_density
        c_up[0, k] = power_up[k] * up / noise_density
        if not (isfinite(c_down[0, k]) and isfinite(c_up[0, k])):
            return False
        reached[k] = (down > 0.0 or bits_down == 0.0) and (up > 0.0 or bits_up == 0.0) and high[k] > 0.0
    return True


@compiled
def price_selection(
    ids: np.ndarray,
    weights: np.ndarray,
    mass: np.ndarray,
    keep: np.ndarray,
    hosts: np.ndarray,
    compute: np.ndarray,
    activation: np.ndarray,
    delay: np.ndarray,
    by_device: bool,
    link_time: np.ndarray,
    device_time: np.ndarray,
) -> tuple[float, float]:
    """Latency, s, and mean retention of one block's selection (tokens, m); fills device times (devices,)."""
    devices = delay.size
    sent, last = np.zeros(devices), np.full(devices, -1)
    load = np.zeros(hosts.size)
    retention = 0.0
    for j in range(keep.shape[0]):
        kept = 0.0
        for c in range(keep.shape[1]):
            if not keep[j, c]:
                continue
            e = ids[j, c]
            k = hosts[e]
            kept += weights[j, c]
            load[e] += 1.0
            if not by_device or last[k] != j:
                sent[k] += 1.0
            last[k] = j
        retention += kept / mass[j]
    for k in range(devices):
        device_time[k] = delay[k] if sent[k] > 0.0 else 0.0
    for e in range(hosts.size):
        if load[e] > 0.0:
            device_time[hosts[e]] += activation[e] + compute[e] * load[e]
    latency = 0.0
    for k in range(devices):
        if sent[k] > 0.0:
            device_time[k] += sent[k] * link_time[k]
        latency = max(latency, device_time[k])
    return latency, retention / keep.shape[0]


@compiled
def mix_weights(
    weights: np.ndarray, mass: np.ndarray, keep: np.ndarray, renormalise: bool, out: np.ndarray
) -> None:
    """Fill the kept gate weights (tokens, m), scaled back to the top-k sum if asked, 0 elsewhere."""
    for j in range(keep.shape[0]):
        kept = 0.0
        for c in range(keep.shape[1]):
            out[j, c] = weights[j, c] if keep[j, c] else 0.0
            kept += out[j, c]
        if renormalise and kept > 0.0:
            for c in range(keep.shape[1]):
                out[j, c] *= mass[j] / kept
