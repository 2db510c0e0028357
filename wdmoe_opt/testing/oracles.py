"""Slow, obvious recomputations in plain Python; nothing here imports the package.

Arrays are those of `Instance.arrays`; selections and bandwidths may be nested lists.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any


def listed(value: Any) -> Any:
    """Nested lists of plain numbers from whatever array."""
    return value.tolist() if hasattr(value, "tolist") else value


def facts(arrays: dict[str, Any]) -> SimpleNamespace:
    """Resolve every default of an instance's arrays by the rules of the documentation."""
    a = {name: listed(value) for name, value in arrays.items()}
    link = a.get("token_time_link")
    devices = len(link) if link is not None else len(_last_axis(a["gain_down"]))
    loads = a.get("loads")
    blocks = len(loads) if loads is not None else len(a["expert_ids"])
    hosts = a.get("expert_device") or list(range(devices))

    def spread(value: Any) -> list[float]:
        return list(value) if isinstance(value, list) else [value] * devices

    def per_expert(value: Any) -> list[float]:
        values = spread(value)
        return [values[h] for h in hosts] if len(values) == devices else values

    def per_block(value: Any) -> list[list[float]]:
        return value if isinstance(value[0], list) else [value] * blocks

    f = SimpleNamespace(
        blocks=blocks,
        devices=devices,
        loads=loads,
        hosts=hosts,
        ids=a.get("expert_ids"),
        weights=a.get("gate_weights"),
        link=link,
        compute=per_expert(a["compute_time"]),
        activation=per_expert(a.get("activation_time", 0.0)),
        link_delay=spread(a.get("link_delay", 0.0)),
        compute_power=a.get("compute_power"),
    )
    f.top_k = None if f.ids is None else a.get("top_k", len(f.ids[0][0]))
    if link is None:
        f.total = a["total_bandwidth"]
        f.noise = a["noise_density"]
        f.bits_down, f.bits_up = a["bits_down"], a["bits_up"]
        f.gain_down, f.gain_up = per_block(a["gain_down"]), per_block(a["gain_up"])
        f.power_down, f.power_up = spread(a["power_down"]), spread(a["power_up"])
        f.low = spread(a.get("bandwidth_min", 0.0))
        f.high = spread(a.get("bandwidth_max", math.inf))
    return f


def _last_axis(value: Any) -> list[Any]:
    while isinstance(value[0], list):
        value = value[0]
    return list(value)


def one_way(bits: float, b: float | None, power: float, gain: float, noise: float) -> float:
    """Seconds to send ``bits`` over ``b`` Hz at the Shannon rate."""
    if bits == 0:
        return 0.0
    if b is None or b <= 0 or gain <= 0:
        return math.inf
    snr = power * gain / (noise * b)
    # log2(1 + x) loses the digits of a small x.
    bits_per_hz = math.log2(1 + snr) if snr > 1 else math.log1p(snr) / math.log(2)
    return bits / (b * bits_per_hz)


def link_seconds(f: SimpleNamespace, i: int, k: int, b: float | None) -> float:
    """Seconds on air for one transfer, there and back."""
    if f.link is not None:
        return float(f.link[k])
    if b is None or b <= 0:
        return math.inf
    down = one_way(f.bits_down, b, f.power_down[k], f.gain_down[i][k], f.noise)
    return down + one_way(f.bits_up, b, f.power_up[k], f.gain_up[i][k], f.noise)


def rows_of(f: SimpleNamespace, bandwidth: Any) -> list[list[float | None]]:
    """One bandwidth row per block."""
    if bandwidth is None:
        return [[None] * f.devices] * f.blocks
    rows = listed(bandwidth)
    return rows if isinstance(rows[0], list) else [rows] * f.blocks


def price(arrays: dict[str, Any], keep: Any, bandwidth: Any, *, dispatch: str = "expert") -> SimpleNamespace:
    """Everything the metric says about a point, by loops over tokens."""
    f = facts(arrays)
    rows = rows_of(f, bandwidth)
    keep = listed(keep)
    out = SimpleNamespace(
        device_time=[], block_latency=[], transfers=[], expert_load=[], token_retention=[],
        block_retention=[], link_time=[], transmit_energy=[], compute_energy=[],
    )  # fmt: skip
    out.wlr = {"wlr-token": [], "wlr-device": [], "wlr-block": []}
    for i in range(f.blocks):
        per_transfer = [link_seconds(f, i, k, rows[i][k]) for k in range(f.devices)]
        load, sent, kept_weight, retention, token_ratios = count(f, keep, i, per_transfer, dispatch)
        times = []
        for k in range(f.devices):
            work = 0.0
            for e, host in enumerate(f.hosts):
                if host == k and load[e] > 0:
                    work += f.activation[e] + load[e] * f.compute[e]
            time = work
            if sent[k] > 0:
                time += f.link_delay[k] + sent[k] * per_transfer[k]
            times.append(time)
            if f.compute_power is not None:
                out.compute_energy.append(f.compute_power[k] * work)
            if f.link is None and sent[k] > 0:
                b = rows[i][k]
                down = one_way(f.bits_down, b, f.power_down[k], f.gain_down[i][k], f.noise)
                up = one_way(f.bits_up, b, f.power_up[k], f.gain_up[i][k], f.noise)
                out.transmit_energy.append(sent[k] * (f.power_down[k] * down + f.power_up[k] * up))
        latency = max(times)
        out.device_time.append(times)
        out.block_latency.append(latency)
        out.transfers.append(sent)
        out.expert_load.append(load)
        out.link_time.append(per_transfer)
        if keep is None:
            out.block_retention.append(1.0)
            continue
        out.token_retention.append(retention)
        out.block_retention.append(sum(retention) / len(retention))
        out.wlr["wlr-token"].append(sum(token_ratios) / len(token_ratios))
        out.wlr["wlr-device"].append(sum(w / t for w, t in zip(kept_weight, times, strict=True) if w > 0))
        out.wlr["wlr-block"].append(sum(kept_weight) / latency if sum(kept_weight) > 0 else 0.0)
    out.latency = sum(out.block_latency)
    out.retention = sum(out.block_retention) / f.blocks
    return out


def count(
    f: SimpleNamespace, keep: Any, i: int, per_transfer: list[float], dispatch: str
) -> tuple[list[int], list[int], list[float], list[float], list[float]]:
    """Loads, transfers, kept weight per device, retention and WLR per token of one block."""
    load, sent = [0] * len(f.hosts), [0] * f.devices
    kept_weight = [0.0] * f.devices
    retention: list[float] = []
    ratios: list[float] = []
    if keep is None:
        return list(f.loads[i]), list(f.loads[i]), kept_weight, retention, ratios
    for j, ids in enumerate(f.ids[i]):
        weights = f.weights[i][j]
        chosen = [c for c in range(len(ids)) if keep[i][j][c] and ids[c] >= 0]
        visited = set()
        for c in chosen:
            k = f.hosts[ids[c]]
            load[ids[c]] += 1
            kept_weight[k] += weights[c]
            if dispatch == "expert" or k not in visited:
                sent[k] += 1
            visited.add(k)
        mass = sum(weights[: f.top_k])
        retention.append(sum(weights[c] for c in chosen) / mass if mass > 0 else 0.0)
        values = [weights[c] / (per_transfer[f.hosts[ids[c]]] + f.compute[ids[c]]) for c in chosen]
        ratios.append(sum(values) / len(values) if values else 0.0)
    return load, sent, kept_weight, retention, ratios


# ---------------------------------------------------------------------- constraints

#: Relative tolerance of floors, caps and limits, with room for another order of summation.
TOLERANCE = 1.001e-9


def broken(
    arrays: dict[str, Any], keep: Any, bandwidth: Any, *, candidates: int | None = None, fixed: Any = None
) -> list[str]:
    """What no point may do, in words: leave the candidates, keep nothing, overdraw the bandwidth.

    Parameters
    ----------
    candidates : int, optional
        Columns that may be used; default the top-k.
    fixed : bandwidth, optional
        The only one allowed.
    """
    f = facts(arrays)
    found = [] if keep is None else _outside(f, listed(keep), candidates or f.top_k)
    return found if f.link is not None else found + _broken_bandwidth(f, rows_of(f, bandwidth), fixed)


def short(
    arrays: dict[str, Any],
    keep: Any,
    bandwidth: Any,
    *,
    floors: tuple[list[float], list[float]],
    max_experts: int | None = None,
) -> list[str]:
    """Which floors a selection misses and where it passes the cap on experts, in words.

    Parameters
    ----------
    floors : two lists of float (blocks,)
        On the mean retention of every block, and on every token's.
    max_experts : int, optional
    """
    priced = price(arrays, keep, bandwidth)
    found = []
    for i, kept in enumerate(priced.block_retention):
        if kept < floors[0][i] * (1 - TOLERANCE):
            found.append(f"block {i} retains {kept}, below min_retention {floors[0][i]}")
        if min(priced.token_retention[i]) < floors[1][i] * (1 - TOLERANCE):
            found.append(f"a token of block {i} is below min_token_retention {floors[1][i]}")
        for j, row in enumerate(listed(keep)[i]):
            if max_experts is not None and sum(row) > max_experts:
                found.append(f"token [{i}, {j}] keeps {sum(row)} experts, more than max_experts")
    return found


def _outside(f: SimpleNamespace, keep: Any, candidates: int) -> list[str]:
    found = []
    for i in range(f.blocks):
        for j, ids in enumerate(f.ids[i]):
            used = [c for c in range(len(ids)) if keep[i][j][c]]
            wrong = [c for c in used if c >= candidates or ids[c] < 0 or not can_serve(f, i, f.hosts[ids[c]])]
            found += [f"keep[{i}, {j}, {c}] is outside the candidates" for c in wrong]
            found += [] if used else [f"token [{i}, {j}] keeps no expert"]
    return found


def can_serve(f: SimpleNamespace, i: int, k: int) -> bool:
    """Whether device k answers at all in block i, given bandwidth."""
    if f.link is not None:
        return math.isfinite(f.link[k])
    down = f.bits_down == 0 or f.gain_down[i][k] > 0
    return bool(down and (f.bits_up == 0 or f.gain_up[i][k] > 0))


def _broken_bandwidth(f: SimpleNamespace, rows: Any, fixed: Any) -> list[str]:
    slack = TOLERANCE * f.total
    found = []
    for row, given in zip(rows, rows if fixed is None else rows_of(f, fixed), strict=True):
        if not all(b >= 0 for b in row):
            found.append(f"bandwidth {row} holds a negative number or NaN")
        if not sum(row) <= f.total + slack:
            found.append(f"bandwidth sums to {sum(row)} Hz, total_bandwidth is {f.total}")
        if any(abs(b - g) > slack for b, g in zip(row, given, strict=True)):
            found.append(f"bandwidth {row} is not the fixed one")
        limits = zip(f.low, row, f.high, strict=True)
        if fixed is None and any(not low - slack <= b <= high + slack for low, b, high in limits):
            found.append(f"bandwidth {row} is outside bandwidth_min and bandwidth_max")
    return found


# ---------------------------------------------------------------------- the best bandwidth

#: Golden section: what is left of an interval after one step.
GOLDEN = (math.sqrt(5) - 1) / 2


def least_latency(arrays: dict[str, Any], keep: Any, *, dispatch: str = "expert", steps: int = 60) -> float:
    """Least latency of a selection over one bandwidth vector for all blocks, s, without limits on it.

    The latency is convex in the shares, so one golden section within another finds it: for up to three
    devices.
    """
    f = facts(arrays)

    def best(shares: list[float]) -> float:
        left = f.total - sum(shares)
        if len(shares) == f.devices - 1:
            return float(price(arrays, keep, [*shares, left], dispatch=dispatch).latency)
        return _golden(lambda b: best([*shares, b]), left, steps)

    return best([])


def _golden(value: Any, top: float, steps: int) -> float:
    """Least value of a convex function on 0 to ``top``, infinite at ends perhaps."""
    low, high = 0.0, top
    left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
    at_left, at_right = value(left), value(right)
    for _ in range(steps):
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - GOLDEN * (high - low)
            at_left = value(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + GOLDEN * (high - low)
            at_right = value(right)
    return min(float(at_left), float(at_right))
