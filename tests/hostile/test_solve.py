"""Hostile arguments of solve, evaluate, allocate_bandwidth, frontier, solve_many, gap, certify and Session."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from test_instance import good

import wdmoe_opt as wo
from hostile.table import NOT_FINITE, NOT_NUMBERS, NOT_WHOLE, Nameless, nested, refused, rows
from wdmoe_opt.benchmarks.runner.plugins import load_plugins

PROBLEM = wo.Problem(wo.Instance.from_arrays(**good()), min_retention=0.5)
ONE = PROBLEM.for_block(0)
OBJECTS: list[Any] = [
    None,
    5,
    "x",
    [],
    {},
    np.ones(3),
    np.array(1.0),
    Nameless(),
    nested(10_000),
    int,
    lambda: 1,
]


@pytest.fixture(scope="module")
def solution() -> wo.Solution:
    return wo.solve(PROBLEM, "certified")


@pytest.mark.parametrize("value", OBJECTS, ids=lambda value: type(value).__name__)
def test_every_function_says_what_it_takes(value: Any, solution: wo.Solution) -> None:
    kind = type(value).__name__
    refused(lambda: wo.solve(value), f"problem: must be a Problem or an Instance, got {kind}")
    for call in (
        wo.evaluate, wo.allocate_bandwidth, wo.Session, wo.Solution.from_arrays,
        lambda v: wo.certify(v, solution), lambda v: wo.gap(v, solution),
    ):  # fmt: skip
        refused(lambda call=call: call(value), f"problem: must be a Problem, got {kind}")
    for check in (wo.certify, wo.gap):
        refused(lambda check=check: check(PROBLEM, value), f"solution: must be a Solution, got {kind}")
    refused(lambda: wo.frontier(value), f"problem: must be a Problem or an Instance, got {kind}")
    refused(lambda: wo.solve_many([value]), rf"problems\[0\]: must be a Problem or an Instance, got {kind}")


@pytest.mark.parametrize("value", [None, 5, np.array(1.0), PROBLEM, Nameless()])
def test_batches_are_several(value: Any) -> None:
    kind = type(value).__name__
    refused(lambda: wo.solve_many(value), f"problems: must be several problems, got one {kind}")


@pytest.mark.parametrize("argument", ["time_limit", "rel_gap"])
@pytest.mark.parametrize(
    ("value", "message"), rows(NOT_NUMBERS, {k: (v, "X") for k, (v, _) in NOT_FINITE.items()})
)
def test_limits_are_finite_numbers(argument: str, value: Any, message: str) -> None:
    full = f"{argument} = -?(nan|inf): must be finite" if message == "X" else f"{argument}: {message}"
    for call in (
        lambda: wo.solve(PROBLEM, "certified", **{argument: value}),
        lambda: wo.frontier(PROBLEM, [0.8], policies=(), **{argument: value}),
        lambda: wo.Session(ONE, **{argument: value}),
    ):
        refused(call, full)


@pytest.mark.parametrize(("value", "spelt"), NOT_WHOLE)
def test_whole_arguments(value: Any, spelt: str) -> None:
    rule = re.escape(f" = {spelt}: must be a whole number")
    refused(lambda: wo.solve(PROBLEM, seed=value), f"seed{rule}")
    refused(lambda: wo.solve(PROBLEM, threads=value), f"threads{rule}")
    refused(lambda: wo.solve_many([], threads=value), f"threads{rule}")
    refused(lambda: wo.frontier(PROBLEM, threads=value), f"threads{rule}")
    refused(lambda: wo.frontier(PROBLEM, points=value), f"points{rule}")
    refused(lambda: wo.Session(ONE, max_tokens=value), f"max_tokens{rule}")
    refused(lambda: wo.Session(ONE).solve(block=value), f"block{rule}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": -1}, "seed = -1: must be at least 0"),
        ({"seed": 2**63}, "seed = 9223372036854775808: must be at least 0"),
        ({"threads": 0}, "threads = 0: must be 1 to 4096"),
        ({"threads": 10**9}, "threads = 1000000000: must be 1 to 4096"),
        ({"time_limit": -5e-324}, "time_limit = -5e-324: must be at least 0"),
        ({"rel_gap": -1.0}, "rel_gap = -1.0: must be at least 0"),
        ({"min_retention": 0.5}, r"min_retention: is part of the Problem; use problem.replace\(\)"),
    ],
)
def test_limits_out_of_range(arguments: dict[str, Any], message: str) -> None:
    refused(lambda: wo.solve(PROBLEM, "certified", **arguments), message)


@pytest.mark.parametrize(
    "method", [None, 5, "", "CERTIFIED", "x" * 100_000, b"exact", ["exact"], np.ones(3), Nameless()]
)
def test_methods_are_names(method: Any) -> None:
    refused(
        lambda: wo.solve(PROBLEM, method),
        "method = .{0,210}: unknown name; choose from .+|method: unknown name; .+",
        wo.UnknownNameError,
    )


@pytest.mark.parametrize("option", ["alfa", "", "\n", "x" * 10_000])
def test_unknown_options_are_named(option: str) -> None:
    refused(
        lambda: wo.solve(PROBLEM, "wdmoe", **{option: 1}),
        "option of 'wdmoe' = '.{0,199}('|...): unknown name; choose from .+",
        wo.UnknownNameError,
    )


@pytest.mark.parametrize(("value", "message"), rows(NOT_NUMBERS))
def test_bandwidth_of_points(value: Any, message: str, solution: wo.Solution) -> None:
    refused(lambda: wo.evaluate(PROBLEM, solution.keep, value), f"bandwidth: {message}")
    refused(
        lambda: wo.Solution.from_arrays(PROBLEM, keep=solution.keep, bandwidth=value), f"bandwidth: {message}"
    )
    refused(lambda: wo.gap(PROBLEM, solution, lower_bound=value), f"lower_bound: {message}")
    refused(lambda: wo.frontier(PROBLEM, value), f"retentions: {message}")


SHAPE = r"keep: must have shape \(2, 2, 3\), \(blocks, tokens, m\) as expert_ids; got \(.*\)"


@pytest.mark.parametrize("name", NOT_NUMBERS)
def test_selections(name: str) -> None:
    message = rf"{SHAPE}|keep: must be a rectangular array \(.+\)"
    for call in (lambda v: wo.evaluate(PROBLEM, v, [1e6] * 3), lambda v: wo.allocate_bandwidth(PROBLEM, v)):
        refused(lambda call=call: call(NOT_NUMBERS[name][0]), message)


@pytest.mark.parametrize("field", ["expert_ids", "gate_weights", "gain_down", "gain_up"])
@pytest.mark.parametrize(("value", "message"), rows(NOT_NUMBERS))
def test_sessions_refuse_and_stay_as_they_were(field: str, value: Any, message: str) -> None:
    session = wo.Session(ONE)
    before = session.solve().copy()
    if message.startswith("must fit into"):  # a session looks at the shape before it copies
        message = f"{message}|must have shape .+ got .+"
    refused(lambda: session.solve(**{field: value}), f"{field}: ({message})")
    after = session.solve()
    assert after.latency == before.latency
    np.testing.assert_array_equal(after.keep, before.keep)


@pytest.mark.parametrize("policies", ["topk", 5, None, np.array(1.0), int])
def test_policies_are_names(policies: Any) -> None:
    refused(
        lambda: wo.frontier(PROBLEM, [0.8], policies=policies),
        "policies.*: must be a sequence of method names",
    )


@pytest.mark.parametrize("name", [None, 5, "", " x", "X", np.ones(3), Nameless()])
def test_solvers_have_proper_names(name: Any) -> None:
    refused(
        lambda: wo.register_solver(name, "a:b", summary=""),
        "name.*: must be non-empty, lower case, without outer blanks",
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("def f(: pass", "SyntaxError: .+"),
        ("raise KeyError('a\\nb')", r"KeyError: 'a\\nb'"),
        ("def f(): f()\nf()", "RecursionError: .+"),
        ("\0", "(SyntaxError|ValueError): source code (string )?cannot contain null bytes.*"),
    ],
)
def test_plugins_that_fail(tmp_path: Any, text: str, message: str) -> None:
    path = tmp_path / "plug.py"
    path.write_text(text)
    refused(lambda: load_plugins([str(path)]), rf"plugin = '.+': cannot be imported: {message}")


@pytest.mark.parametrize(
    ("plugin", "message"),
    [
        ("no_such_module_here", "plugin = '.+': cannot be imported: ModuleNotFoundError: .+"),
        ("json", "plugin = 'json': registers no solver"),
        ("json:nothing", "plugin = '.+': cannot be imported: AttributeError: .+"),
        ("json:__name__", "plugin = '.+': must name a SolverInfo or a function"),
        ("none.py", "plugin = 'none.py': there is no such file"),
        ("", "plugin = '': cannot be imported: ValueError: .+"),
        (5, "plugin = 5: cannot be imported: AttributeError: .+"),
    ],
)
def test_plugins_that_are_none(plugin: Any, message: str) -> None:
    refused(lambda: load_plugins([plugin]), message)


@pytest.mark.parametrize("scale", [1e-150, 1e150])
def test_huge_and_tiny_times_are_no_surprise(scale: float) -> None:
    """Seconds of any size: an answer with a bound below its value, or one line."""
    arrays = good(
        compute_time=[1e-4 * scale, 2e-4 * scale, 3e-4 * scale], bits_down=1e4 * scale, bits_up=1e4 * scale
    )
    problem = wo.Problem(wo.Instance.from_arrays(**arrays), min_retention=0.5)
    answer = wo.solve(problem, "certified")
    assert answer.latency > 0
    assert not answer.lower_bound > answer.latency
    assert wo.evaluate(problem, answer.keep, answer.bandwidth).latency == answer.latency
