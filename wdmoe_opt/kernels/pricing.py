"""Loads, times, retention and weight-to-latency ratios of a selection: one pass over the tokens."""

from __future__ import annotations

import numpy as np

from wdmoe_opt.kernels.compiled import compiled

#: Rows of the fault table: token without expert, kept outside the candidates, too many experts.
EMPTY, STRAY, CROWDED = 0, 1, 2


@compiled
def count_loads(
    ids: np.ndarray,
    keep: np.ndarray,
    expert_device: np.ndarray,
    by_device: bool,
    expert_load: np.ndarray,
    sent: np.ndarray,
) -> None:
    """Fill tokens per expert (blocks, experts) and transfers per device (blocks, devices).

    A transfer is one (token, expert) pair, or with ``by_device`` one distinct token of the device.
    """
    blocks, tokens, columns = ids.shape
    last = np.full(sent.shape[1], -1)
    for i in range(blocks):
        expert_load[i, :] = 0
        sent[i, :] = 0.0
        for j in range(tokens):
            stamp = i * tokens + j
            for c in range(columns):
                e = ids[i, j, c]
                if keep[i, j, c] and e >= 0:
                    k = expert_device[e]
                    expert_load[i, e] += 1
                    if not by_device:
                        sent[i, k] += 1.0
                    elif last[k] != stamp:
                        last[k] = stamp
                        sent[i, k] += 1.0


@compiled
def busy_times(
    expert_load: np.ndarray,
    sent: np.ndarray,
    expert_device: np.ndarray,
    compute: np.ndarray,
    activation: np.ndarray,
    link_delay: np.ndarray,
    busy: np.ndarray,
) -> None:
    """Fill the seconds of each loaded device that bandwidth cannot change, (blocks, devices)."""
    for i in range(sent.shape[0]):
        for k in range(sent.shape[1]):
            busy[i, k] = link_delay[k] if sent[i, k] > 0.0 else 0.0
        for e in range(expert_device.size):
            n = expert_load[i, e]
            if n > 0:
                busy[i, expert_device[e]] += activation[e] + compute[e] * n


@compiled
def device_times(
    sent: np.ndarray, busy: np.ndarray, link_time: np.ndarray, device_time: np.ndarray, latency: np.ndarray
) -> None:
    """Fill the time of every device (blocks, devices) and of every block, that of its slowest device."""
    for i in range(sent.shape[0]):
        latency[i] = 0.0
        for k in range(sent.shape[1]):
            time = busy[i, k]
            if sent[i, k] > 0.0:
                time += sent[i, k] * link_time[i, k]
            device_time[i, k] = time
            latency[i] = max(latency[i], time)


@compiled
def price_tokens(
    ids: np.ndarray,
    weights: np.ndarray,
    mass: np.ndarray,
    keep: np.ndarray,
    candidates: int,
    max_experts: int,
    expert_device: np.ndarray,
    by_device: bool,
    token_rate: np.ndarray,
    expert_load: np.ndarray,
    sent: np.ndarray,
    kept_weight: np.ndarray,
    retention: np.ndarray,
    wlr_token: np.ndarray,
    faults: np.ndarray,
) -> None:
    """Everything about a selection that needs its tokens, in one pass.

    Parameters
    ----------
    ids, weights, keep : arrays (blocks, tokens, m)
    mass : float array (blocks, tokens)
        Sum of a token's top-k weights.
    candidates, max_experts : int
        Leading columns a selection may use; cap on experts per token.
    token_rate : float array (blocks, experts), 1/s
        Inverse time of one token on each expert, for the per-token weight-to-latency ratio.
    expert_load, sent, kept_weight, retention, wlr_token : arrays, filled
        (blocks, experts), (blocks, devices), (blocks, devices), (blocks, tokens), (blocks,).
    faults : int array (3, 3), filled
        Count, block and token of the first EMPTY, STRAY and CROWDED token.
    """
    blocks, tokens, columns = ids.shape
    last = np.full(sent.shape[1], -1)
    faults[:, :] = 0
    for i in range(blocks):
        expert_load[i, :] = 0
        sent[i, :] = 0.0
        kept_weight[i, :] = 0.0
        ratios = 0.0
        for j in range(tokens):
            stamp = i * tokens + j
            kept = 0.0
            ratio = 0.0
            count = 0
            stray = False
            for c in range(columns):
                if not keep[i, j, c]:
                    continue
                e = ids[i, j, c]
                if e < 0 or c >= candidates:
                    stray = True
                    if e < 0:
                        continue
                w = weights[i, j, c]
                k = expert_device[e]
                count += 1
                kept += w
                if w > 0.0:  # an expert that takes no time has an infinite rate
                    ratio += w * token_rate[i, e]
                kept_weight[i, k] += w
                expert_load[i, e] += 1
                if not by_device:
                    sent[i, k] += 1.0
                elif last[k] != stamp:
                    last[k] = stamp
                    sent[i, k] += 1.0
            retention[i, j] = kept / mass[i, j]
            if count > 0:
                ratios += ratio / count
            else:
                _note(faults, 0, i, j)
            if stray:
                _note(faults, 1, i, j)
            if count > max_experts:
                _note(faults, 2, i, j)
        wlr_token[i] = ratios / tokens


@compiled
def _note(faults: np.ndarray, kind: int, block: int, token: int) -> None:
    if faults[kind, 0] == 0:
        faults[kind, 1] = block
        faults[kind, 2] = token
    faults[kind, 0] += 1


@compiled
def block_ratios(
    kept_weight: np.ndarray,
    device_time: np.ndarray,
    latency: np.ndarray,
    per_device: np.ndarray,
    per_block: np.ndarray,
) -> None:
    """Fill, per block, the sum over devices of kept weight / device time, and kept weight / latency."""
    for i in range(latency.size):
        total = 0.0
        ratio = 0.0
        for k in range(kept_weight.shape[1]):
            if kept_weight[i, k] > 0.0:
                total += kept_weight[i, k]
                ratio += kept_weight[i, k] / device_time[i, k]
        per_device[i] = ratio
        per_block[i] = total / latency[i] if total > 0.0 else 0.0


@compiled
def inverse_token_times(
    link_time: np.ndarray, compute: np.ndarray, expert_device: np.ndarray, out: np.ndarray
) -> None:
    """Fill 1 / (link time + compute time) of one token on each expert, (blocks, experts)."""
    for i in range(link_time.shape[0]):
        for e in range(expert_device.size):
            out[i, e] = 1.0 / (link_time[i, expert_device[e]] + compute[e])
