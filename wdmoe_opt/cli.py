"""The command ``wdmoe-opt``: tables for people, ``--json`` for programs, one line per error."""

from __future__ import annotations

import io
import json
import os
import platform
import re
import sys
from contextlib import contextmanager, suppress
from dataclasses import fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from wdmoe_opt import __version__
from wdmoe_opt.errors import InputError, WdmoeError
from wdmoe_opt.library import load_instance
from wdmoe_opt.problem import Problem
from wdmoe_opt.registry import COMMON_ARGUMENTS, find_solver, list_solvers
from wdmoe_opt.report import clean, instance_json, number, plain, solution_json, solution_view
from wdmoe_opt.solving import solve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from rich.console import RenderableType

    from wdmoe_opt.instance import Instance
    from wdmoe_opt.registry import SolverInfo

# Typer used to build on click and now carries its own copy; the base class is reached through Typer's
# public exception in either case.
_UsageError: Any = typer.BadParameter.__mro__[2]

#: ASCII digits only, and fewer than Python refuses to read.
_WHOLE = re.compile(r"[+-]?[0-9]{1,40}")

#: Exit status of a solve whose point breaks a constraint; errors exit with 2.
INFEASIBLE = 3
#: Exit status after Ctrl-C.
INTERRUPTED = 130
#: Exit status of a certify that could not recheck every claim.
UNPROVED = 1

app = typer.Typer(
    name="wdmoe-opt",
    help="Expert selection and bandwidth allocation for mixture-of-experts models on wireless devices.",
    invoke_without_command=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
instances_app = typer.Typer(help="The instance library.", invoke_without_command=True, rich_markup_mode=None)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"wdmoe-opt {__version__}")
        raise typer.Exit


@app.callback()
def _main_help(
    context: typer.Context,
    show_version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    _help_without_command(context)


@instances_app.callback()
def _help_without_command(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


app.add_typer(instances_app, name="instances")

bench_app = typer.Typer(
    help="Benchmarks: run a suite, list the suites, write the report (extra `bench`).",
    invoke_without_command=True,
    rich_markup_mode=None,
)
bench_app.callback()(_help_without_command)
app.add_typer(bench_app, name="bench")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME_OR_FILE",
        help="Family, scenario such as FAMILY/FLEET/CHANNEL@64#0-4, or .npz, .json, .toml file. "
        "After # stand block indices: #3 is block 3 alone, unlike --blocks 3.",
    ),
]
Tokens = Annotated[str | None, typer.Option(help="Batch size of a shipped instance, or 'all'.")]
Blocks = Annotated[
    str | None,
    typer.Option(
        help="A number keeps the first so many blocks: 3 is blocks 0, 1 and 2. Ranges and lists such as 3-3, "
        "0-4 or 0,7 name blocks by index, as does #BLOCKS in a name, where #3 is block 3 alone."
    ),
]
Start = Annotated[int | None, typer.Option(help="First token of the batch, or decode step.")]
Part = Annotated[str | None, typer.Option(help="Subject or domain of a family that has them.")]


@app.command("solve")
def solve_command(
    context: typer.Context,
    name: Name,
    method: Annotated[str, typer.Option(help="Solver, see `wdmoe-opt solvers`.")] = "auto",
    min_retention: Annotated[float, typer.Option(help="Floor on each block's mean kept gate weight.")] = 0.95,
    min_token_retention: Annotated[float, typer.Option(help="Floor on each token's kept gate weight.")] = 0.0,
    objective: Annotated[str, typer.Option(help="latency, wlr-token, wlr-device, wlr-block, retention.")] = (
        "latency"
    ),
    max_latency: Annotated[float | None, typer.Option(help="Cap on total latency, s.")] = None,
    max_experts: Annotated[int | None, typer.Option(help="Cap on experts per token.")] = None,
    candidates: Annotated[str, typer.Option(help="'top-k', or how many leading candidates.")] = "top-k",
    allocation: Annotated[str, typer.Option(help="shared, per-block or fixed.")] = "shared",
    dispatch: Annotated[str, typer.Option(help="expert or device.")] = "expert",
    tokens: Tokens = None,
    blocks: Blocks = None,
    start: Start = None,
    part: Part = None,
    option: Annotated[
        list[str] | None, typer.Option("--option", "-o", help="Solver option NAME=VALUE; repeatable.")
    ] = None,
    time_limit: Annotated[float | None, typer.Option(help="Seconds, for solvers that search.")] = None,
    rel_gap: Annotated[float, typer.Option(help="Relative gap at which a solver may stop.")] = 1e-3,
    seed: Annotated[int, typer.Option(help="Seed of solvers that draw.")] = 0,
    threads: Annotated[int, typer.Option(help="Threads over blocks.")] = 1,
    save: Annotated[
        Path | None, typer.Option(help="Also write the solution to this file, .npz, for `certify`.")
    ] = None,
    as_json: AsJson = False,
    with_selection: Annotated[
        bool, typer.Option(help="With --json: list the kept experts of every token.")
    ] = False,
) -> None:
    """Select experts and allocate bandwidth, and say what it costs against plain top-k at equal bandwidth."""
    if with_selection and not as_json:
        raise InputError("--with-selection", "needs --json: a table has no room for it")
    inst = _load(name, tokens, blocks, start, part)
    problem = Problem(
        inst,
        objective=_any(objective),
        min_retention=_floor(context, inst, "min_retention", min_retention),
        min_token_retention=_floor(context, inst, "min_token_retention", min_token_retention),
        max_experts=max_experts,
        candidates=_any(candidates if candidates == "top-k" else _whole("candidates", candidates)),
        allocation=_any(_allocation(context, inst, allocation)),
        dispatch=_any(dispatch),
        max_latency=max_latency,
    )
    options = _options(method, option or [])
    with _working("solving (the first run compiles, about ten seconds)"):
        baseline = solve(problem, "topk-uniform")
        answer = solve(
            problem, method, time_limit=time_limit, rel_gap=rel_gap, seed=seed, threads=threads, **options
        )
    if save is not None:
        answer.save(save)
    if as_json:
        _print_json(solution_json(answer, baseline, selection=with_selection))
    else:
        _show(solution_view(answer, baseline))
    if answer.termination.limit == "interrupt":
        # The best so far has been shown; the status still tells that it is no finished answer.
        raise KeyboardInterrupt
    if not answer.feasible:
        raise typer.Exit(INFEASIBLE)


@app.command("certify")
def certify_command(
    path: Annotated[Path, typer.Argument(help="Solution file, as `solve --save` writes it.")],
    exact: Annotated[
        bool, typer.Option("--exact", help="In rational arithmetic: slow, free of rounding.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check everything a solution claims, without any solver; exit status 1 if something is not proved."""
    from wdmoe_opt.certificates.certify import certify
    from wdmoe_opt.solution import Solution

    solution = Solution.load(path)
    with _working("checking"):
        report = certify(solution.problem, solution, exact=exact)
    if as_json:
        _print_json({"certified": bool(report), **plain(vars(report))})
    else:
        print("\n".join(map(_printable, str(report).splitlines())))
    if not report:
        raise typer.Exit(UNPROVED)


def _printable(line: str) -> str:
    """A line without control characters, its indent kept."""
    return line[: len(line) - len(line.lstrip(" "))] + " ".join(map(clean, line.lstrip(" ").split(" ")))


@app.command("frontier")
def frontier_command(
    context: typer.Context,
    name: Name,
    points: Annotated[int, typer.Option(help="Floors of the even grid.")] = 11,
    floors: Annotated[
        str | None, typer.Option(help="Floors on each block's mean kept gate weight, such as 0.7,0.8,0.95.")
    ] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(help="Solver to mark beside the curve; repeatable. Default: topk-uniform, topk, wdmoe."),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Picture to write, .png, .svg or .pdf.")] = None,
    csv_file: Annotated[Path | None, typer.Option("--csv", help="Table to write.")] = None,
    min_token_retention: Annotated[float, typer.Option(help="Floor on each token's kept gate weight.")] = 0.0,
    max_experts: Annotated[int | None, typer.Option(help="Cap on experts per token.")] = None,
    candidates: Annotated[str, typer.Option(help="'top-k', or how many leading candidates.")] = "top-k",
    allocation: Annotated[str, typer.Option(help="shared, per-block or fixed.")] = "shared",
    dispatch: Annotated[str, typer.Option(help="expert or device.")] = "expert",
    tokens: Tokens = None,
    blocks: Blocks = None,
    start: Start = None,
    part: Part = None,
    time_limit: Annotated[float | None, typer.Option(help="Seconds per floor.")] = None,
    rel_gap: Annotated[float, typer.Option(help="Relative gap at which a floor is done.")] = 1e-3,
    threads: Annotated[int, typer.Option(help="Floors solved at the same time.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Find the least latency at every retention, with certified bounds, and what policies leave unused."""
    from wdmoe_opt.archive import write_text
    from wdmoe_opt.pareto import POLICIES, frontier
    from wdmoe_opt.pareto_plot import check_target
    from wdmoe_opt.report import frontier_csv, frontier_json, frontier_view

    if floors is not None and _is_given(context, "points"):
        raise InputError("--points", "cannot be given together with --floors")
    asked = None if floors is None else [_number("floors", text) for text in floors.split(",")]
    if plot is not None:
        check_target(plot)
    if csv_file is not None and not csv_file.parent.is_dir():
        raise InputError("csv", "its folder does not exist", value=str(csv_file))
    inst = _load(name, tokens, blocks, start, part)
    problem = Problem(
        inst,
        min_token_retention=_floor(context, inst, "min_token_retention", min_token_retention),
        max_experts=max_experts,
        candidates=_any(candidates if candidates == "top-k" else _whole("candidates", candidates)),
        allocation=_any(_allocation(context, inst, allocation)),
        dispatch=_any(dispatch),
    )
    with _counting("solving floor by floor") as progress:
        front = frontier(
            problem, asked, points=points, policies=policy or POLICIES, rel_gap=rel_gap,
            time_limit=time_limit, threads=threads, progress=progress,
        )  # fmt: skip
    if plot is not None:
        front.plot(plot)
    if csv_file is not None:
        write_text(csv_file, frontier_csv(front))
    if as_json:
        _print_json(frontier_json(front))
    else:
        _show(frontier_view(front))


@app.command("solvers")
def solvers_command(as_json: AsJson = False) -> None:
    """List the solvers: what each does, can do, and whether it is available."""
    rows = [_solver_row(info) for info in list_solvers()]
    rows.append(
        {
            "name": "auto",
            "summary": "picks one of the others by size and time limit, and says which",
            "needs_tokens": False,
            "honours_floors": True,
            "bound": "none",
            "available": True,
            "reason": "",
            "options": {},
        }
    )
    rows.sort(key=lambda row: str(row["name"]))
    if as_json:
        _print_json(rows)
        return
    lines = (
        (
            row["name"],
            row["summary"],
            "keeps" if row["honours_floors"] else "unaware",
            "of its pick" if row["name"] == "auto" else row["bound"],
            row["reason"] or "yes",
        )
        for row in rows
    )
    _show(_table("solver", "what it does", "floors", "bound", "available", rows=lines))


def _solver_row(info: SolverInfo) -> dict[str, Any]:
    available = info.availability()
    return {
        "name": info.name,
        "summary": info.summary,
        "needs_tokens": info.needs_tokens,
        "honours_floors": info.honours_floors,
        "bound": info.bound,
        "available": bool(available),
        "reason": available.reason,
        "options": info.options if available else {},
    }


@app.command("info")
def info_command(as_json: AsJson = False) -> None:
    """Versions, machine and solvers, for bug reports."""
    packages = ("numpy", "scipy", "numba", "llvmlite", "typer", "rich")
    optional = ("cvxpy", "pyomo", "highspy", "pandas", "matplotlib", "torch", "transformers")
    values = {
        "wdmoe_opt": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "packages": {name: _version(name) for name in packages},
        "optional": {name: _version(name) for name in optional},
        "solvers": {info.name: info.availability().reason or "available" for info in list_solvers()},
    }
    if as_json:
        _print_json(values)
        return
    rows = []
    for key, value in values.items():
        pairs = value.items() if isinstance(value, dict) else [("", value)]
        for count, (name, text) in enumerate(pairs):
            rows.append(("" if count else key, f"{name} {text}"))
    _show(_table("", "", rows=rows))


@instances_app.command("list")
def instances_list(as_json: AsJson = False) -> None:
    """List the routing families, and the fleets, channels and placements they combine with."""
    from wdmoe_opt.instances.catalogue import list_families, list_parts

    families = [vars(family) for family in list_families()]
    if as_json:
        _print_json({"families": families, **list_parts()})
        return
    rows = []
    for row in families:
        numbers = (row["blocks"], row["tokens"], row["default_batch"] or "a part", row["parts"] or "")
        rows.append((row["name"], row["kind"], *numbers, row["licence"], row["summary"]))
    names = ("name", "knows", "blocks", "tokens", "batch", "parts", "licence", "what it is")
    parts = (Text(f"\n{kind}: {', '.join(known)}") for kind, known in list_parts().items())
    _show(_table(*names, rows=rows), *parts)


@instances_app.command("show")
def instances_show(
    name: Name,
    tokens: Tokens = None,
    blocks: Blocks = None,
    start: Start = None,
    part: Part = None,
    as_json: AsJson = False,
) -> None:
    """Show an instance: sizes, fleet, channel, and where the numbers come from."""
    from wdmoe_opt.instances.catalogue import describe

    inst = _load(name, tokens, blocks, start, part)
    values = {"instance": instance_json(inst), "provenance": plain(inst.provenance)}
    if not _is_file(name):
        values["family"] = plain(describe(name))
    _print_values(values, as_json)


@instances_app.command("stats")
def instances_stats(
    name: Name,
    tokens: Tokens = None,
    blocks: Blocks = None,
    start: Start = None,
    part: Part = None,
    as_json: AsJson = False,
) -> None:
    """Print load skew, locality, retention curve and sizes of an instance."""
    from wdmoe_opt.instances.statistics import stats

    _print_values(plain(stats(_load(name, tokens, blocks, start, part))), as_json)


@instances_app.command("validate")
def instances_validate(
    path: Annotated[Path, typer.Argument(help="Instance, routing, loads, scenario or device profile file.")],
    as_json: AsJson = False,
) -> None:
    """Check a file: schema, hash and every rule of its content."""
    from wdmoe_opt.instances.catalogue import validate_file

    _print_values(plain(validate_file(path)), as_json)


@instances_app.command("export")
def instances_export(
    name: Name,
    output: Annotated[Path, typer.Argument(help="File to write, .npz or .json.")],
    tokens: Tokens = None,
    blocks: Blocks = None,
    start: Start = None,
    part: Part = None,
) -> None:
    """Write an instance to a file that `solve` and other programs can read."""
    inst = _load(name, tokens, blocks, start, part)
    inst.save(output)
    print(clean(f"wrote {output}: {inst!r}"))


@app.command("capture")
def capture_command(
    model: Annotated[str, typer.Argument(help="Hugging Face model name or folder.")],
    prompts: Annotated[Path, typer.Argument(help="One prompt per line, or JSONL with 'prompt' or 'text'.")],
    output: Annotated[Path, typer.Argument(help="Routing file to write, .npz.")],
    gate: Annotated[str, typer.Option(help="top-k, or full for every expert's weight.")] = "top-k",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the model.")] = None,
    model_licence: Annotated[str | None, typer.Option(help="Licence of the model, for the manifest.")] = None,
    precision: Annotated[str, typer.Option(help="auto, fp32, fp16 or bf16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    batch_size: Annotated[int, typer.Option(help="Prompts per forward pass.")] = 4,
    max_length: Annotated[int, typer.Option(help="Tokens at which a prompt is cut.")] = 2048,
    overwrite: Annotated[bool, typer.Option(help="Replace an existing file.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run a mixture-of-experts model on prompts and write its routing (extra `capture`); resumable."""
    from wdmoe_opt.instances.capture import capture_command as capture

    manifest = capture(
        model,
        prompts,
        output,
        gate=gate,
        revision=revision,
        model_licence=model_licence,
        precision=precision,
        device=device,
        batch_size=batch_size,
        max_length=max_length,
        overwrite=overwrite,
        progress=None,
    )
    _print_values(plain(manifest), as_json)


@app.command("profile-device")
def profile_device_command(
    output: Annotated[Path, typer.Argument(help="Device profile to write, .json.")],
    width: Annotated[int | None, typer.Option(help="Model width.")] = None,
    expert_width: Annotated[int | None, typer.Option(help="Width inside the expert.")] = None,
    precision: Annotated[str, typer.Option(help="fp32, fp16 or bf16.")] = "fp32",
    tokens: Annotated[list[int] | None, typer.Option(help="Token count to time; repeatable.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    repeats: Annotated[int, typer.Option(help="Most repeats per token count.")] = 50,
    seconds: Annotated[float, typer.Option(help="Most seconds per token count.")] = 10.0,
    measurement: Annotated[Path | None, typer.Option(help="Fit this measure.py output instead.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the profile.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace an existing file.")] = False,
    as_json: AsJson = False,
) -> None:
    """Time an expert's feed-forward on this machine and write a device profile (needs torch)."""
    from wdmoe_opt.instances.profiling import profile_command

    chosen: dict[str, Any] = {} if not tokens else {"tokens": tuple(tokens)}
    profile = profile_command(
        output,
        width=width,
        expert_width=expert_width,
        precision=precision,
        device=device,
        repeats=repeats,
        seconds=seconds,
        measurement=measurement,
        name=name,
        overwrite=overwrite,
        progress=None,
        **chosen,
    )
    _print_values(plain(profile), as_json)


@bench_app.command("run")
def bench_run(
    suite: Annotated[
        str, typer.Argument(metavar="SUITE", help="Name, see `bench suites`, or a TOML file of your own.")
    ],
    solver: Annotated[
        list[str] | None,
        typer.Option(
            help="Only this solver, by label or method; repeatable. One that the suite lacks joins it."
        ),
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="How many seeds, from 0. Default: the suite's.")] = None,
    out: Annotated[
        Path, typer.Option(help="Folder of results; finished rows in it are not run again.")
    ] = Path("bench-results"),
    plugin: Annotated[
        list[str] | None,
        typer.Option(
            help="Module, file or MODULE:ATTRIBUTE that calls wdmoe_opt.register_solver; repeatable. "
            "Its solvers join the suite."
        ),
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="Address of a dask.distributed scheduler to hand the tasks to.")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Processes at the same time here, which disturb each other's times. Default: the suite's."
        ),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Run finished rows again and replace them.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run a benchmark suite: every solver on every case, each in a process of its own, with time limits.

    Interrupt it at any time: what is finished is kept, and the same command goes on from there.
    """
    from wdmoe_opt.benchmarks.runner.command import run

    for name, value in (("seeds", seeds), ("workers", workers)):
        if value is not None and value < 1:
            raise InputError(name, "must be at least 1", value=value)
    found = run(
        suite, solvers=solver or (), seeds=seeds, out=out, plugins=plugin or (), scheduler=scheduler,
        workers=workers, fresh=fresh,
    )  # fmt: skip
    if as_json:
        _print_json(found)
        return
    names = ("solver", "kind", "rows", "ok", "other", "feasible", "wrong claims", "gap", "cold", "warm")
    lines = [
        (
            row["solver"], row["kind"], row["rows"], row["states"].get("ok", 0),
            ", ".join(f"{count} {state}" for state, count in row["states"].items() if state != "ok"),
            row["feasible"], row["claims_wrong"],
            *(_known(row[key]) for key in ("median_gap", "cold_s", "warm_s")),
        )
        for row in found["solvers"]
    ]  # fmt: skip
    _show(_table(*names, rows=lines))
    print(f"medians; times in s. {found['rows']} rows run, {found['skipped']} were there; {found['table']}")


def _known(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


@bench_app.command("suites")
def bench_suites(as_json: AsJson = False) -> None:
    """List the benchmark suites."""
    from wdmoe_opt.benchmarks.runner.command import list_suites

    suites = list_suites()
    if as_json:
        _print_json(suites)
        return
    lines = (
        (
            s["name"], s["cases"], len(s["contestants"]), s["seeds"], s["rows_per_seed"] * s["seeds"],
            s["summary"],
        )
        for s in suites
    )  # fmt: skip
    _show(_table("name", "cases", "solvers", "seeds", "rows", "what it is", rows=lines))


@bench_app.command("report")
def bench_report(
    results: Annotated[
        Path, typer.Argument(metavar="RESULTS", help="Folder that `bench run` wrote, or its Parquet file.")
    ] = Path("bench-results"),
    out: Annotated[
        Path | None, typer.Option(help="Folder of the report; default beside the results.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write the report of benchmark results: HTML, Markdown and pictures."""
    from wdmoe_opt.benchmarks.report.command import report

    report(results, out, as_json)


def main() -> None:
    """Entry point: run the command line and turn every foreseen error into one line."""
    try:
        _open_output()
        status = app(standalone_mode=False)
        sys.stdout.flush()
        if status == INTERRUPTED:
            # Typer makes this status of a Ctrl-C, without a word.
            _complain("interrupted")
    except WdmoeError as error:
        status = _complain(str(error))
    except _UsageError as error:
        status = _complain(error.format_message(), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        status = _complain("interrupted", INTERRUPTED)
    except MemoryError as error:
        status = _complain(f"out of memory ({error})" if str(error) else "out of memory")
    except BrokenPipeError:
        # The reader has gone; nothing can be said to it any more.
        _discard_output()
        status = 1
    except OSError as error:
        # Files that are read or written complain by name; what is left is a full disk behind a redirection.
        status = _complain(f"{error.filename or 'standard output'}: cannot be written ({error.strerror})")
        _discard_output()
    sys.exit(status if isinstance(status, int) else 0)


def _open_output() -> None:
    """Make sure that there is a standard output, and that no character stops it."""
    if sys.stdout is None:
        raise WdmoeError("standard output: is closed")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def _discard_output() -> None:
    """Let the interpreter's last flush go nowhere."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _complain(message: str, status: int = 2) -> int:
    with suppress(OSError):
        if sys.stderr is not None:
            print(f"wdmoe-opt: {clean(message)}", file=sys.stderr)
    return status


def _show(*parts: RenderableType) -> None:
    """Print to standard output, without the blanks that fill tables to their width."""
    # A pipe has no width, unless it is told: wide enough that no column is cut.
    told = sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdecimal()
    console = Console(width=None if told else 160, highlight=False)
    with console.capture() as captured:
        for part in parts:
            console.print(part)
    sys.stdout.write("".join(f"{line.rstrip(' ')}\n" for line in captured.get().splitlines()))


def _table(*columns: str, rows: Iterable[Iterable[Any]]) -> Table:
    """A table of plain text: no markup, no control characters."""
    table = Table(box=None, pad_edge=False, header_style="bold", show_header=any(columns))
    for column in columns:
        table.add_column(Text(column), overflow="fold")
    for row in rows:
        table.add_row(*(Text(clean(cell)) for cell in row))
    return table


@contextmanager
def _working(what: str) -> Iterator[None]:
    """A spinner on standard error while attached to a terminal."""
    if sys.stderr is not None and sys.stderr.isatty():
        with Console(stderr=True).status(what):
            yield
    else:
        yield


@contextmanager
def _counting(what: str) -> Iterator[Callable[[int, int], None] | None]:
    """A bar on standard error while attached to a terminal, moved by the function that is yielded."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield None
        return
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _print_values(values: dict[str, Any], as_json: bool) -> None:
    """Nested values as JSON, or as a table of dotted keys."""
    if as_json:
        _print_json(values)
        return
    _show(_table("", "", rows=_flat(values)))


def _print_json(value: Any) -> None:
    json.dump(value, sys.stdout, indent=1, allow_nan=False, default=str)
    sys.stdout.write("\n")


def _load(name: str, tokens: str | None, blocks: str | None, start: int | None, part: str | None) -> Instance:
    given: dict[str, Any] = {"start": start, "part": part, "blocks": blocks}
    if tokens is not None:
        given["tokens"] = tokens if tokens == "all" else _whole("tokens", tokens)
    if blocks is not None and _WHOLE.fullmatch(blocks):
        given["blocks"] = int(blocks)
    return load_instance(name, **{key: value for key, value in given.items() if value is not None})


def _is_file(name: str) -> bool:
    return name.endswith((".npz", ".json", ".toml"))


def _any(value: Any) -> Any:
    """A text that `Problem` checks against its choices."""
    return value


def _is_given(context: typer.Context, name: str) -> bool:
    """Whether the user typed an option, rather than left its default."""
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def _floor(context: typer.Context, inst: Instance, name: str, value: float) -> float:
    """Without gate weights there is none to keep: the default floor falls away, one asked for is refused."""
    if inst.loads is None:
        return value
    if _is_given(context, name) and value != 0:
        raise InputError(name, "cannot be set: the instance has loads only, no gate weights", value=value)
    return 0.0


def _allocation(context: typer.Context, inst: Instance, allocation: str) -> str:
    """A measured link has no bandwidth knob: fixed is its default, and all it can be."""
    measured = inst.token_time_link is not None
    return "fixed" if measured and not _is_given(context, "allocation") else allocation


#: What `solve` takes by arguments of the command, not as options of a solver.
_OWN = {"method", *COMMON_ARGUMENTS, *(field.name for field in fields(Problem))} - {"instance", "bandwidth"}


def _options(method: str, pairs: list[str]) -> dict[str, Any]:
    """Solver options from NAME=VALUE, typed like their defaults."""
    if not pairs:
        return {}
    known = find_solver(method).options if method != "auto" else {}
    options = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise InputError("option", "must read NAME=VALUE", value=pair)
        if key in _OWN:
            raise InputError("option", f"has an argument of its own, --{key.replace('_', '-')}", value=key)
        if key in ("problem", "bandwidth"):
            raise InputError("option", "is no option of a solver", value=key)
        options[key] = _typed(key, text, known.get(key))
    return options


def _typed(name: str, text: str, default: Any) -> Any:
    if isinstance(default, bool):
        if text not in ("true", "false"):
            raise InputError(f"option {name}", "must be true or false", value=text)
        return text == "true"
    if isinstance(default, int):
        return _whole(f"option {name}", text)
    if isinstance(default, float):
        return _number(f"option {name}", text)
    return text


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(name, "must be a number", value=text[:40]) from None


def _whole(name: str, text: str) -> int:
    if _WHOLE.fullmatch(text) is None:
        raise InputError(name, "must be a whole number", value=text[:40])
    return int(text)


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list):
            yield f"{prefix}{key}", ", ".join(map(_cell, value))
        else:
            yield f"{prefix}{key}", _cell(value)


def _cell(value: Any) -> str:
    return number(value) if isinstance(value, float) else str(value)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    main()
