"""Solutions and instances for people (tables) and for programs (JSON values)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from wdmoe_opt.instance import Instance
from wdmoe_opt.solution import Solution

BAR_WIDTH = 24


def plain(value: Any) -> Any:
    """JSON value: arrays as lists, numbers that JSON has not (NaN, infinities) as None."""
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def solution_json(solution: Solution, baseline: Solution, *, selection: bool = False) -> dict[str, Any]:
    """Everything about a solution as JSON values; SI units in the key names.

    Parameters
    ----------
    solution, baseline : Solution
        The answer, and plain top-k at equal bandwidth.
    selection : bool
        Whether to list the kept experts of every block and token.
    """
    e = solution.evaluation
    values: dict[str, Any] = {
        "instance": instance_json(solution.problem.instance),
        "request": request_json(solution),
        "method": solution.method,
        "latency_s": solution.latency,
        "block_latency_s": solution.block_latency,
        "device_time_s": solution.device_time,
        "transfers": e.transfers.astype(np.int64),
        "bandwidth_hz": solution.bandwidth,
        "retention": solution.retention,
        "block_retention": solution.block_retention,
        "wlr_per_s": solution.wlr,
        "energy_j": solution.energy,
        "feasible": solution.feasible,
        "violations": [str(violation) for violation in solution.violations],
        "lower_bound": solution.lower_bound,
        "bound_kind": solution.bound_kind,
        "kkt_residual": solution.kkt_residual,
        "termination": vars(solution.termination),
        "timings_s": solution.timings,
        "trace": solution.trace,
        "baseline": {
            "method": baseline.method,
            "latency_s": baseline.latency,
            "retention": baseline.retention,
            "wlr_per_s": baseline.wlr,
            "energy_j": baseline.energy,
        },
        "latency_change": solution.latency / baseline.latency - 1.0 if baseline.latency > 0 else None,
    }
    if selection and solution.keep is not None:
        ids = solution.problem.tables.ids
        values["selection"] = [
            [row[kept].tolist() for row, kept in zip(block, keep, strict=True)]
            for block, keep in zip(ids, solution.keep, strict=True)
        ]
    json_values: dict[str, Any] = plain(values)
    return json_values


def instance_json(instance: Instance) -> dict[str, Any]:
    """Name and sizes of an instance."""
    return {
        "name": instance.name,
        "blocks": instance.blocks,
        "tokens": instance.tokens,
        "experts": instance.experts,
        "top_k": instance.top_k,
        "columns": instance.columns,
        "devices": instance.devices,
    }


def request_json(solution: Solution) -> dict[str, Any]:
    """What was asked, as JSON values."""
    p = solution.problem
    names = (
        "objective", "min_retention", "min_token_retention", "max_experts", "candidates",
        "allocation", "dispatch", "max_latency",
    )  # fmt: skip
    values: dict[str, Any] = {name: getattr(p, name) for name in names}
    for name in ("min_retention", "min_token_retention"):
        if (values[name] == values[name][0]).all():
            values[name] = values[name][0]
    json_values: dict[str, Any] = plain(values)
    return json_values


def solution_view(solution: Solution, baseline: Solution) -> RenderableType:
    """Tables for the terminal: the comparison with the baseline, then the devices."""
    parts: list[RenderableType] = [_headline(solution), Text(), _comparison(solution, baseline), Text()]
    parts.append(_devices(solution))
    parts += [Text(f"violates {violation}", style="red") for violation in solution.violations]
    detail = f"{solution.termination.reason}: {solution.termination.detail}"
    if math.isfinite(solution.kkt_residual):
        # Below 1e-9 only rounding is left, which differs between machines.
        detail += f"; bandwidth optimal within {max(solution.kkt_residual, 1e-9):.0e}"
    parts.append(Text(detail, style="dim"))
    return Group(*parts)


def _headline(solution: Solution) -> Text:
    inst = solution.problem.instance
    sizes = f"{_count(inst.blocks, 'block')}, {_count(inst.devices, 'device')}"
    if solution.problem.selectable:
        sizes = f"{_count(inst.blocks, 'block')}, {_count(inst.tokens, 'token')}, {inst.experts} experts, "
        sizes += f"top-{inst.top_k}, {_count(inst.devices, 'device')}"
    return Text.assemble((inst.name or "instance", "bold"), f"  {sizes}")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _comparison(solution: Solution, baseline: Solution) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("", "latency", "change", "retention", "WLR token", "WLR device", "WLR block", "energy", ""):
        table.add_column(name, justify="left" if not name else "right")
    for row in (baseline, solution):
        ratios = [f"{value:.4g} /s" for value in row.wlr.values()] or ["-"] * 3
        change = "" if row is baseline else f"{row.latency / baseline.latency - 1:+.1%}"
        state = Text("feasible", "green") if row.feasible else Text("not feasible", "red")
        energy = "-" if math.isnan(row.energy) else f"{row.energy:.4g} J"
        table.add_row(
            row.method, f"{row.latency * 1e3:.2f} ms", change, f"{row.retention:.4f}", *ratios, energy, state
        )
    return table


def _devices(solution: Solution) -> Table:
    """One row per device, times as means over blocks; a full bar is the mean block latency."""
    e = solution.evaluation
    boards = solution.problem.instance.provenance.get("fleet", {}).get("boards") or []
    blocks, devices = e.device_time.shape
    air = np.zeros_like(e.device_time)
    np.multiply(e.link_time, e.transfers, out=air, where=e.transfers > 0)
    slowest = np.bincount(e.device_time.argmax(axis=1), minlength=devices)
    shares = solution.bandwidth
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("device", "board"):
        table.add_column(name)
    for name in ("bandwidth", "share", "transfers", "on air", "computing", "waiting", "slowest in"):
        table.add_column(name, justify="right")
    table.add_column("time per block")
    full = e.block_latency.mean()
    for k in range(devices):
        time = e.device_time[:, k].mean()
        width = "-", "-"
        if shares is not None:
            mean = shares[..., k].mean()
            width = f"{mean / 1e6:.2f} MHz", f"{mean / solution.problem.tables.total:.1%}"
        table.add_row(
            str(k), boards[k] if k < len(boards) else "",
            *width,
            f"{e.transfers[:, k].mean():.1f}",
            f"{air[:, k].mean() * 1e3:.2f} ms",
            f"{(time - air[:, k].mean()) * 1e3:.2f} ms",
            f"{(full - time) * 1e3:.2f} ms",
            f"{slowest[k]}/{blocks}",
            _bar(time, full),
        )  # fmt: skip
    return table


def _bar(value: float, full: float) -> Text:
    filled = round(BAR_WIDTH * value / full) if 0 < full < math.inf and math.isfinite(value) else 0
    return Text.assemble(("█" * filled, "cyan"), ("·" * (BAR_WIDTH - filled), "dim"))
