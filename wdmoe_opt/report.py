"""Solutions and instances for people (tables) and for programs (JSON values)."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from wdmoe_opt.instance import Instance
from wdmoe_opt.problem import Problem
from wdmoe_opt.solution import Solution

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

    from wdmoe_opt.pareto import Frontier

BAR_WIDTH = 24
#: Full and empty part of a bar, and what stands for them where the encoding has neither.
BLOCKS, ASCII_BLOCKS = ("█", "·"), ("#", ".")
#: Wider than any table.
_UNLIMITED = 10_000


def clean(value: Any) -> str:
    """Text on one line, without control characters: names and messages may come from files of others."""
    words = " ".join(str(value).split())
    return "".join(letter for letter in words if letter.isprintable() or letter == " ")


def number(value: float) -> str:
    """Six significant digits, as many as anything here is good for."""
    return f"{value:.6g}"


@dataclass(frozen=True)
class Column:
    """A column of a `FittedTable`; those without a rank always stay, of the others the highest goes first."""

    name: str
    justify: Literal["left", "right"] = "left"
    rank: int = 0


@dataclass(frozen=True)
class Bar:
    """So many of `BAR_WIDTH` blocks."""

    filled: int

    def text(self, encoding: str) -> Text:
        """Return the bar in characters that the encoding has."""
        full, empty = BLOCKS if _encodes("".join(BLOCKS), encoding) else ASCII_BLOCKS
        return Text.assemble((full * self.filled, "cyan"), (empty * (BAR_WIDTH - self.filled), "dim"))


def _encodes(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True


@dataclass(frozen=True)
class FittedTable:
    """A table that leaves out its least important columns, rather than cut values, where it is too wide."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[str | Text | Bar]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the table with as many columns as fit."""
        shown = list(range(len(self.columns)))
        wide = options.update(width=_UNLIMITED)
        while True:
            table = self._table(shown, options.encoding)
            last = max(shown, key=lambda index: self.columns[index].rank)
            if (
                not self.columns[last].rank
                or console.measure(table, options=wide).maximum <= options.max_width
            ):
                break
            shown.remove(last)
        yield table

    def _table(self, shown: Sequence[int], encoding: str) -> Table:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for index in shown:
            column = self.columns[index]
            table.add_column(Text(column.name), justify=column.justify, overflow="fold")
        for row in self.rows:
            cells = (row[index] for index in shown)
            table.add_row(*(_cell(cell, encoding) for cell in cells))
        return table


def _cell(cell: str | Text | Bar, encoding: str) -> Text:
    if isinstance(cell, Bar):
        return cell.text(encoding)
    return cell if isinstance(cell, Text) else Text(clean(cell))


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
        "request": request_json(solution.problem),
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


def request_json(p: Problem) -> dict[str, Any]:
    """What was asked, as JSON values."""
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


def frontier_json(front: Frontier) -> dict[str, Any]:
    """Both curves and the policies as JSON values; SI units in the key names."""
    request = request_json(front.problem)
    # Every floor of the curve takes its place.
    del request["min_retention"]
    values: dict[str, Any] = {
        "instance": instance_json(front.problem.instance),
        "request": request,
        "floors": front.floors,
        "retention": front.retention,
        "latency_s": front.latency,
        "lower_bound_s": front.lower_bound,
        "gap": front.gap,
        "bound_kind": "certified",
        "unreachable": front.unreachable,
        "policies": [
            {
                "method": mark.method,
                "retention": mark.retention,
                "latency_s": mark.latency,
                "known_s": mark.known,
                "lower_bound_s": mark.lower_bound,
                "saving": mark.saving,
                "gap": mark.gap,
                "conflict": mark.conflict,
            }
            for mark in front.marks
        ],
    }
    json_values: dict[str, Any] = plain(values)
    return json_values


def frontier_csv(front: Frontier) -> str:
    """`Frontier.rows` as comma-separated values with a header."""
    rows = front.rows()
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


_FLOORS = (
    Column("floor", "right"),
    Column("kept", "right", rank=1),
    Column("latency", "right"),
    Column("at least", "right"),
    Column("gap", "right", rank=2),
    Column("latency", rank=3),
)
_POLICIES = (Column("policy"), Column("keeps", "right"), Column("latency", "right"), Column(""))


def frontier_view(front: Frontier) -> RenderableType:
    """Tables for the terminal: a row per floor, then a row per policy."""
    from wdmoe_opt.pareto import mark_words

    longest = max(float(front.latency.max()), *(mark.latency for mark in front.marks), 0.0)
    rows: list[tuple[str | Bar, ...]] = []
    curves = zip(front.floors, front.retention, front.latency, front.lower_bound, front.gap, strict=True)
    for floor, kept, latency, bound, gap in curves:
        times = f"{latency * 1e3:.2f} ms", f"{bound * 1e3:.2f} ms"
        rows.append((f"{floor:.4f}", f"{kept:.4f}", *times, f"{gap:.2%}", _bar(latency, longest)))
    parts: list[RenderableType] = [_headline(front.problem), Text(), FittedTable(_FLOORS, rows)]
    if front.marks:
        policies = [
            (mark.method, f"{mark.retention:.4f}", f"{mark.latency * 1e3:.2f} ms", mark_words(mark))
            for mark in front.marks
        ]
        parts += [Text(), FittedTable(_POLICIES, policies)]
    if front.unreachable.size:
        parts.append(Text(f"out of reach: {', '.join(map(number, front.unreachable.tolist()))}", style="red"))
    parts.append(Text("at least: certified, whatever keeps the floor or more takes as long", style="dim"))
    return Group(*parts)


def solution_view(solution: Solution, baseline: Solution) -> RenderableType:
    """Tables for the terminal: the comparison with the baseline, then the devices."""
    parts: list[RenderableType] = [
        _headline(solution.problem),
        Text(),
        _comparison(solution, baseline),
        Text(),
    ]
    if solution.has_point:
        parts.append(_devices(solution))
        parts += [Text(clean(f"violates {violation}"), style="red") for violation in solution.violations]
    bound = _bound_words(solution)
    if bound:
        parts.append(Text(bound))
    detail = f"{solution.termination.reason}: {solution.termination.detail}"
    if math.isfinite(solution.kkt_residual):
        # Below 1e-9 only rounding is left, which differs between machines.
        detail += f"; bandwidth optimal within {max(solution.kkt_residual, 1e-9):.0e}"
    parts.append(Text(clean(detail), style="dim"))
    return Group(*parts)


def _bound_words(solution: Solution) -> str:
    """What no point can pass, and how far this one is from it."""
    if solution.bound_kind == "none" or not math.isfinite(solution.lower_bound):
        return ""
    latency = solution.problem.objective == "latency"
    value = f"{1e3 * solution.lower_bound:.2f} ms" if latency else f"{solution.lower_bound:.5g}"
    words = f"{solution.bound_kind} {'lower' if latency else 'upper'} bound {value}"
    known = solution.has_point and math.isfinite(solution.gap)
    return f"{words}, gap {max(solution.gap, 0.0):.2%}" if known else words


def _headline(problem: Problem) -> Text:
    inst = problem.instance
    sizes = f"{_count(inst.blocks, 'block')}, {_count(inst.devices, 'device')}"
    if problem.selectable:
        sizes = f"{_count(inst.blocks, 'block')}, {_count(inst.tokens, 'token')}, {inst.experts} experts, "
        sizes += f"top-{inst.top_k}, {_count(inst.devices, 'device')}"
    return Text.assemble((clean(inst.name) or "instance", "bold"), f"  {sizes}")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


_COMPARISON = (
    Column(""),
    Column("latency", "right"),
    Column("change", "right"),
    Column("retention", "right"),
    Column("WLR token", "right", rank=2),
    Column("WLR device", "right", rank=3),
    Column("WLR block", "right", rank=4),
    Column("energy", "right", rank=1),
    Column(""),
)
_DEVICES = (
    Column("device"),
    Column("board", rank=1),
    Column("bandwidth", "right"),
    Column("share", "right", rank=4),
    Column("transfers", "right", rank=5),
    Column("on air", "right", rank=2),
    Column("computing", "right", rank=3),
    Column("waiting", "right", rank=7),
    Column("slowest in", "right", rank=6),
    Column("time per block"),
)


def _comparison(solution: Solution, baseline: Solution) -> FittedTable:
    rows: list[tuple[str | Text, ...]] = []
    for row in (baseline, solution):
        if not row.has_point:
            rows.append((row.method, *["-"] * 7, Text("no point", "red")))
            continue
        ratios = [f"{value:.4g} /s" for value in row.wlr.values()] or ["-"] * 3
        change = "" if row is baseline else f"{row.latency / baseline.latency - 1:+.1%}"
        state = Text("feasible", "green") if row.feasible else Text("not feasible", "red")
        energy = "-" if math.isnan(row.energy) else f"{row.energy:.4g} J"
        latency = f"{row.latency * 1e3:.2f} ms"
        rows.append((row.method, latency, change, f"{row.retention:.4f}", *ratios, energy, state))
    return FittedTable(_COMPARISON, rows)


def _board_names(instance: Instance) -> list[str]:
    """Names of the devices' boards, where the provenance, which may hold anything, has them."""
    fleet = instance.provenance.get("fleet")
    boards = fleet.get("boards") if isinstance(fleet, Mapping) else None
    known = boards if isinstance(boards, (list, tuple)) else []
    names = [board if isinstance(board, str) else "" for board in known[: instance.devices]]
    return names + [""] * (instance.devices - len(names))


def _devices(solution: Solution) -> FittedTable:
    """One row per device, times as means over blocks; a full bar is the mean block latency."""
    e = solution.evaluation
    boards = _board_names(solution.problem.instance)
    blocks, devices = e.device_time.shape
    air = np.zeros_like(e.device_time)
    np.multiply(e.link_time, e.transfers, out=air, where=e.transfers > 0)
    slowest = np.bincount(e.device_time.argmax(axis=1), minlength=devices)
    shares = solution.bandwidth
    full = e.block_latency.mean()
    rows: list[tuple[str | Bar, ...]] = []
    for k in range(devices):
        time = e.device_time[:, k].mean()
        width = "-", "-"
        if shares is not None:
            mean = shares[..., k].mean()
            width = f"{mean / 1e6:.2f} MHz", f"{mean / solution.problem.tables.total:.1%}"
        # Of a device that never answers nothing is left to subtract.
        busy, waiting = (
            (time - air[:, k].mean(), full - time) if math.isfinite(full) else (math.nan, math.nan)
        )
        row: tuple[str | Bar, ...] = (
            str(k), boards[k],
            *width,
            f"{e.transfers[:, k].mean():.1f}",
            f"{air[:, k].mean() * 1e3:.2f} ms",
            "-" if math.isnan(busy) else f"{busy * 1e3:.2f} ms",
            "-" if math.isnan(waiting) else f"{waiting * 1e3:.2f} ms",
            f"{slowest[k]}/{blocks}",
            _bar(time, full),
        )  # fmt: skip
        rows.append(row)
    return FittedTable(_DEVICES, rows)


def _bar(value: float, full: float) -> Bar:
    return Bar(round(BAR_WIDTH * value / full) if 0 < full < math.inf and math.isfinite(value) else 0)
