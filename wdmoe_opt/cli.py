"""The command ``wdmoe-opt``: tables for people, ``--json`` for programs, one line per error."""

from __future__ import annotations

import json
import os
import platform
import sys
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from wdmoe_opt import __version__
from wdmoe_opt.errors import InputError, WdmoeError
from wdmoe_opt.library import load_instance
from wdmoe_opt.problem import Problem
from wdmoe_opt.registry import find_solver, list_solvers
from wdmoe_opt.report import instance_json, plain, solution_json, solution_view
from wdmoe_opt.solving import solve

if TYPE_CHECKING:
    from collections.abc import Iterator

    from wdmoe_opt.instance import Instance

# Typer used to build on click and now carries its own copy; the base class is reached through Typer's
# public exception in either case.
_UsageError: Any = typer.BadParameter.__mro__[2]

#: Exit status of a solve whose point breaks a constraint; errors exit with 2.
INFEASIBLE = 3

app = typer.Typer(
    name="wdmoe-opt",
    help="Expert selection and bandwidth allocation for mixture-of-experts models on wireless devices.",
    invoke_without_command=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
instances_app = typer.Typer(help="The instance library.", invoke_without_command=True, rich_markup_mode=None)


@app.callback()
@instances_app.callback()
def _help_without_command(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


app.add_typer(instances_app, name="instances")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Name = Annotated[str, typer.Argument(metavar="NAME_OR_FILE", help="Shipped instance, or .npz / .json file.")]
Tokens = Annotated[str | None, typer.Option(help="Batch size of a shipped instance, or 'all'.")]
Blocks = Annotated[int | None, typer.Option(help="Only the first so many blocks.")]
Start = Annotated[int, typer.Option(help="First token of the batch, or decode step.")]


@app.command("solve")
def solve_command(
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
    start: Start = 0,
    option: Annotated[
        list[str] | None, typer.Option("--option", "-o", help="Solver option NAME=VALUE; repeatable.")
    ] = None,
    time_limit: Annotated[float | None, typer.Option(help="Seconds, for solvers that search.")] = None,
    rel_gap: Annotated[float, typer.Option(help="Relative gap at which a solver may stop.")] = 1e-3,
    seed: Annotated[int, typer.Option(help="Seed of solvers that draw.")] = 0,
    threads: Annotated[int, typer.Option(help="Threads over blocks.")] = 1,
    as_json: AsJson = False,
    with_selection: Annotated[
        bool, typer.Option(help="With --json: list the kept experts of every token.")
    ] = False,
) -> None:
    """Select experts and allocate bandwidth, and say what it costs against plain top-k at equal bandwidth."""
    inst = _load(name, tokens, blocks, start)
    request: dict[str, Any] = {"allocation": _default_allocation(inst, allocation)}
    if inst.loads is None:
        request |= {
            "objective": objective,
            "min_retention": min_retention,
            "min_token_retention": min_token_retention,
            "max_experts": max_experts,
            "candidates": candidates if candidates == "top-k" else _whole("candidates", candidates),
            "dispatch": dispatch,
            "max_latency": max_latency,
        }
    problem = Problem(inst, **request)
    options = _options(method, option or [])
    with _working("solving (the first run compiles, about ten seconds)"):
        baseline = solve(problem, "topk-uniform")
        answer = solve(
            problem, method, time_limit=time_limit, rel_gap=rel_gap, seed=seed, threads=threads, **options
        )
    if as_json:
        _print_json(solution_json(answer, baseline, selection=with_selection))
    else:
        _console().print(solution_view(answer, baseline))
    if not answer.feasible:
        raise typer.Exit(INFEASIBLE)


@app.command("solvers")
def solvers_command(as_json: AsJson = False) -> None:
    """List the solvers: what each does, can do, and whether it is available."""
    rows: list[dict[str, Any]] = [
        {
            "name": info.name,
            "summary": info.summary,
            "needs_tokens": info.needs_tokens,
            "honours_floors": info.honours_floors,
            "bound": info.bound,
            "available": bool(info.availability()),
            "reason": info.availability().reason,
            "options": info.options if info.availability() else {},
        }
        for info in list_solvers()
    ]
    if as_json:
        _print_json(rows)
        return
    table = _table("solver", "what it does", "floors", "bound", "available")
    for row in rows:
        floors = "keeps" if row["honours_floors"] else "unaware"
        table.add_row(row["name"], row["summary"], floors, row["bound"], row["reason"] or "yes")
    _console().print(table)


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
    table = _table("", "")
    for key, value in values.items():
        pairs = value.items() if isinstance(value, dict) else [("", value)]
        for number, (name, text) in enumerate(pairs):
            table.add_row(key if number == 0 else "", f"{name} {text}".strip())
    _console().print(table)


@instances_app.command("list")
def instances_list(as_json: AsJson = False) -> None:
    """List the shipped instances."""
    from wdmoe_opt.instances.families import FAMILIES

    rows: list[dict[str, Any]] = [
        {"name": f.name, "mode": f.mode, "tokens": f.batch, "summary": f.summary} for f in FAMILIES.values()
    ]
    if as_json:
        _print_json(rows)
        return
    table = _table("name", "mode", "tokens", "what it is")
    for row in rows:
        table.add_row(row["name"], row["mode"], str(row["tokens"]), row["summary"])
    _console().print(table)


@instances_app.command("show")
def instances_show(
    name: Name, tokens: Tokens = None, blocks: Blocks = None, start: Start = 0, as_json: AsJson = False
) -> None:
    """Show an instance: sizes, fleet, channel, and where the numbers come from."""
    inst = _load(name, tokens, blocks, start)
    values = {**instance_json(inst), "provenance": plain(inst.provenance)}
    if as_json:
        _print_json(values)
        return
    table = _table("", "")
    for key, value in _flat(values):
        table.add_row(key, value)
    _console().print(table)


@instances_app.command("export")
def instances_export(
    name: Name,
    output: Annotated[Path, typer.Argument(help="File to write, .npz or .json.")],
    tokens: Tokens = None,
    blocks: Blocks = None,
    start: Start = 0,
) -> None:
    """Write an instance to a file that `solve` and other programs can read."""
    inst = _load(name, tokens, blocks, start)
    inst.save(output)
    _console().print(f"wrote {output}: {inst!r}", markup=False, highlight=False)


def main() -> None:
    """Entry point: run the command line and turn every foreseen error into one line."""
    try:
        status = app(standalone_mode=False)
    except WdmoeError as error:
        status = _complain(str(error))
    except _UsageError as error:
        status = _complain(error.format_message(), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        status = _complain("interrupted", 130)
    except BrokenPipeError:
        # The reader has gone; nothing can be said to it any more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    sys.exit(status if isinstance(status, int) else 0)


def _complain(message: str, status: int = 2) -> int:
    print(f"wdmoe-opt: {' '.join(message.split())}", file=sys.stderr)
    return status


def _console() -> Console:
    # A pipe has no width: wide enough that no column is cut.
    return Console(width=None if sys.stdout.isatty() else 160, highlight=False)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", show_header=any(columns))
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


@contextmanager
def _working(what: str) -> Iterator[None]:
    """A spinner on standard error while attached to a terminal."""
    console = Console(stderr=True)
    if console.is_terminal:
        with console.status(what):
            yield
    else:
        yield


def _print_json(value: Any) -> None:
    json.dump(value, sys.stdout, indent=1, allow_nan=False, default=str)
    sys.stdout.write("\n")


def _load(name: str, tokens: str | None, blocks: int | None, start: int) -> Instance:
    selection: dict[str, Any] = {}
    if tokens is not None:
        selection["tokens"] = tokens if tokens == "all" else _whole("tokens", tokens)
    if blocks is not None:
        selection["blocks"] = blocks
    if start:
        selection["start"] = start
    return load_instance(name, **selection)


def _default_allocation(inst: Instance, allocation: str) -> str:
    """A measured link has no bandwidth knob: fixed is all it can be."""
    return "fixed" if inst.token_time_link is not None and allocation == "shared" else allocation


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
        try:
            return float(text)
        except ValueError:
            raise InputError(f"option {name}", "must be a number", value=text) from None
    return text


def _whole(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise InputError(name, "must be a whole number", value=text) from None


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list):
            yield f"{prefix}{key}", ", ".join(map(str, value))
        else:
            yield f"{prefix}{key}", str(value)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    main()
