"""Gaps and times of the certified solvers: ``python -m wdmoe_opt.benchmarks.certified [--write] [--json]``.

Floor 0.95 throughout. Synthetic gates are Dirichlet draws on the paper's cell, one expert per device; with
activation, compute and activation times are those of the captured Mixtral instance's Jetson boards. All
other cases are captured instances on eight Jetson boards. Warm, one thread, medians of repeated solves;
every gap is that of the rechecked bound. ``--write`` puts the table into docs/certified.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

import wdmoe_opt as wo
from wdmoe_opt.benchmarks.heuristics import synthetic
from wdmoe_opt.instances.channels import cell_states

FLOOR = 0.95
FAMILIES = tuple(f"deepseek-v2-lite-{part}" for part in ("intent", "law", "summary", "translation"))
BLOCKS = (0, 5, 10, 15, 20, 25)
DOCUMENT = Path("docs") / "certified.md"
BEGIN, END = "<!-- table: python -m wdmoe_opt.benchmarks.certified --write -->", "<!-- end of table -->"


@dataclass(frozen=True)
class Case:
    """One line of the table.

    Attributes
    ----------
    name, method : str
    gap, worst, seconds : float or None
        Targets: median gap, worst gap, median time.
    limit : float or None, s
        Time limit given to the solver.
    """

    name: str
    method: str = "certified"
    gap: float | None = None
    worst: float | None = None
    seconds: float | None = None
    limit: float | None = None


@dataclass(frozen=True)
class Line:
    """What was measured for a case.

    Attributes
    ----------
    gaps, times : tuple of float
        Relative gap, and median seconds of solve(), of every instance.
    checks : tuple of float
        Seconds of `times` that went into rechecking the certificate.
    certified : int
        How many bounds were certified.
    """

    case: Case
    gaps: tuple[float, ...]
    times: tuple[float, ...]
    checks: tuple[float, ...]
    certified: int

    @property
    def reached(self) -> float | None:
        """Share of instances within both targets; None without any."""
        case = self.case
        if case.gap is None and case.seconds is None:
            return None
        good = [
            (case.gap is None or gap <= case.gap) and (case.seconds is None or time <= case.seconds)
            for gap, time in zip(self.gaps, self.times, strict=True)
        ]
        return sum(good) / len(good)


def gated(
    tokens: int, blocks: int, devices: int = 8, *, measured: bool = False, seed: int = 0
) -> wo.Instance:
    """Several blocks of synthetic top-2 gates, one expert per device, on the cell of paper A."""
    gates = np.random.default_rng(seed).dirichlet(np.full(devices, 0.3), size=(blocks, tokens))
    times: dict[str, Any] = {"compute_time": np.linspace(1e-5, 4e-5, devices)}
    if measured:
        boards = wo.load_instance("mixtral-8x7b-mmlu-load")
        times = {"compute_time": boards.compute_time, "activation_time": boards.activation_time}
    cell = cell_states(1, seed=1, distances_m=np.linspace(60.0, 300.0, devices))[0]
    return wo.Instance.from_gates(
        gates, 2, columns=2, bits_down=65_536.0, bits_up=65_536.0, name=f"gated-{tokens}x{blocks}",
        **times, **cell.arrays(),
    )  # fmt: skip


def captured(tokens: int | None = None, *, whole: bool = False) -> Iterator[wo.Instance]:
    """Captured DeepSeek instances, single blocks or whole models, on eight Jetson boards."""
    size = "" if tokens is None else f"@{tokens}"
    for family in FAMILIES:
        if whole:
            yield wo.load_instance(f"{family}{size}")
        else:
            yield from (wo.load_instance(f"{family}{size}#{block}") for block in BLOCKS)


def cases() -> Iterator[tuple[Case, Iterable[wo.Instance]]]:
    """Every case with its instances."""
    yield (
        Case("1 block, 512 tokens, 8 devices, synthetic", gap=2e-4, worst=1e-3, seconds=1e-3),
        (synthetic(512, seed=seed) for seed in range(20)),
    )
    yield (
        Case("1 block, 32 tokens, 8 devices, synthetic", gap=5e-3, seconds=5e-4),
        (synthetic(32, seed=seed) for seed in range(20)),
    )
    yield (
        Case("same", "exact", gap=1e-4, seconds=10.0, limit=9.0),
        (synthetic(32, seed=seed) for seed in range(10)),
    )
    yield (
        Case("32 blocks, 512 tokens, 8 devices, synthetic, shared", gap=5e-4, worst=3e-3, seconds=0.1),
        (gated(512, 32, seed=seed) for seed in range(4)),
    )
    yield (
        Case("same, measured activation", gap=5e-3, worst=2e-2, seconds=0.5),
        (gated(512, 32, measured=True, seed=seed) for seed in range(4)),
    )
    yield (
        Case("1 block, 4,096 tokens, 64 experts on 64 devices, synthetic", gap=1e-3, seconds=0.03),
        (synthetic(4096, 64, seed=seed) for seed in range(5)),
    )
    yield (
        Case("1 block, 512 tokens, 64 experts on 8 boards", gap=5e-3, worst=1.5e-2, seconds=0.02),
        captured(512),
    )
    yield Case("same, 128 tokens", gap=2e-2, seconds=0.02), captured(128)
    yield Case("same, 32 tokens"), captured(32)
    yield Case("same, 32 tokens", "exact", gap=1e-2, seconds=10.0, limit=9.0), captured(32)
    yield (
        Case("26 blocks, 512 tokens, 64 experts on 8 boards, shared", gap=1e-2, seconds=1.0),
        captured(whole=True),
    )
    yield (
        Case("24 blocks, 24 tokens, 32 experts on 8 boards, shared"),
        [wo.load_instance("gpt-oss-20b-decode")],
    )


def measure(case: Case, instances: Iterable[wo.Instance]) -> Line:
    """Solve every instance of a case, warm."""
    gaps, times, checks, certified = [], [], [], 0
    for instance in instances:
        problem = wo.Problem(instance, min_retention=FLOOR)
        found, check, solution = _timed(problem, case)
        gaps.append(solution.gap)
        times.append(found)
        checks.append(check)
        certified += solution.bound_kind == "certified"
    return Line(case, tuple(gaps), tuple(times), tuple(checks), certified)


def _timed(problem: wo.Problem, case: Case) -> tuple[float, float, wo.Solution]:
    """Median seconds of a warm solve, of its check, and the solution."""
    options: dict[str, Any] = {"rel_gap": 1e-3 if case.gap is None else case.gap}
    if case.method == "exact":
        options = {"rel_gap": 1e-4, "time_limit": case.limit}
    solution = wo.solve(problem, case.method, **options)
    taken: list[float] = []
    checks: list[float] = []
    while len(taken) < 3 or (sum(taken) < 0.2 and len(taken) < 50):
        started = perf_counter()
        solution = wo.solve(problem, case.method, **options)
        taken.append(perf_counter() - started)
        checks.append(solution.timings["certify"])
        if taken[-1] > 2.0:
            break
    return statistics.median(taken), statistics.median(checks), solution


def table(lines: Iterable[Line]) -> str:
    """The lines as a Markdown table."""
    rows = [
        "| case (floor 0.95) | method | n | gap: target | median | worst | time: target | median "
        "| of it check | worst | within both targets |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for line in lines:
        case = line.case
        target = "-" if case.gap is None else _percent(case.gap)
        if case.worst is not None:
            target += f", worst {_percent(case.worst)}"
        reached = "-" if line.reached is None else f"{line.reached:.0%}"
        gap = _percent(statistics.median(line.gaps))
        rows.append(
            f"| {case.name} | {case.method} | {len(line.gaps)} | {target} | {gap} "
            f"| {_percent(max(line.gaps))} | {_time(case.seconds)} | {_time(statistics.median(line.times))} "
            f"| {_time(statistics.median(line.checks))} | {_time(max(line.times))} | {reached} |"
        )
    return "\n".join(rows)


def _percent(value: float) -> str:
    return f"{100 * value:.3g} %"


def _time(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3g} s" if value >= 1 else f"{value * 1e3:.3g} ms"


def write(text: str, path: Path = DOCUMENT) -> None:
    """Replace the table in the document."""
    page = path.read_text()
    head, rest = page.split(BEGIN)
    _, tail = rest.split(END)
    path.write_text(f"{head}{BEGIN}\n{text}\n{END}{tail}")


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description="Gaps and times of the certified solvers.")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--write", action="store_true", help=f"put the table into {DOCUMENT}")
    arguments = parser.parse_args()
    quiet = Console(stderr=True)
    lines = [measure(*case) for case in track(list(cases()), "measuring", console=quiet, transient=True)]
    if arguments.write:
        write(table(lines))
    print(json.dumps([asdict(line) for line in lines], indent=1) if arguments.json else table(lines))


if __name__ == "__main__":
    main()
