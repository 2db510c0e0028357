"""solve() and the registry: re-entrancy, third-party solvers, refusals, honest prices."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import wdmoe_opt as wo
from wdmoe_opt import registry
from wdmoe_opt.solving import run_solver
from wdmoe_opt.testing.arrays import Shape, loads_arrays, measured_arrays, random_arrays, random_keep
from wdmoe_opt.testing.oracles import price
from wdmoe_opt.testing.problems import PROBLEMS

ARRAYS = random_arrays(Shape(blocks=3, tokens=8, devices=4, per_device=2, top_k=2, columns=3), 42)
INSTANCE = wo.Instance.from_arrays(**ARRAYS)
PROBLEM = wo.Problem(INSTANCE)
BUILT_IN = ["topk", "topk-uniform", "wdmoe", "wdmoe-selection"]


@pytest.fixture
def clean_registry() -> Iterator[None]:
    """Forget what a test registers."""
    wo.list_solvers()
    before = dict(registry._SOLVERS)
    yield
    registry._SOLVERS.clear()
    registry._SOLVERS.update(before)


# ------------------------------------------------------------------ results


@pytest.mark.parametrize("method", BUILT_IN)
@pytest.mark.parametrize("allocation", ["shared", "per-block", "fixed"])
def test_solutions_are_priced_by_the_metric(method: str, allocation: str) -> None:
    """Every built-in method in every allocation mode: the price is the plain recomputation of its point."""
    solution = wo.solve(PROBLEM.replace(allocation=allocation), method)
    want = price(ARRAYS, solution.keep, solution.bandwidth)
    assert solution.latency == pytest.approx(want.latency, rel=1e-9)
    assert solution.feasible
    assert solution.method == method
    assert solution.bandwidth.shape == ((3, 4) if allocation == "per-block" else (4,))
    assert set(solution.timings) == {"prepare", "solve", "price", "certify"}


def test_instance_and_request_keywords_make_the_problem() -> None:
    """solve(instance, request fields) is solve(Problem(instance, request fields))."""
    one = wo.solve(INSTANCE, "wdmoe", min_retention=0.3, dispatch="device", alpha=0.7)
    two = wo.solve(wo.Problem(INSTANCE, min_retention=0.3, dispatch="device"), "wdmoe", alpha=0.7)
    assert one.latency == two.latency
    assert one.problem.dispatch == "device"


def test_auto_takes_the_better_feasible_answer() -> None:
    """Method "auto" is no slower than topk and wdmoe, keeps floors they break, and says what it took."""
    both = {name: wo.solve(PROBLEM, name) for name in ("topk", "wdmoe")}
    auto = wo.solve(PROBLEM)
    assert auto.latency <= min(s.latency for s in both.values())
    assert auto.termination.detail.startswith(f"auto took {auto.method} ")
    assert both["wdmoe"].retention < 1
    assert wo.solve(PROBLEM.replace(min_retention=1.0)).feasible
    lazy = wo.solve(wo.Problem(wo.Instance.from_arrays(**loads_arrays(Shape(), 3))))
    assert lazy.feasible
    assert lazy.keep is None


def test_shared_problem_in_eight_threads_gives_identical_results() -> None:
    """A fresh Problem and a fresh Instance, used by eight threads at once: results to the last bit."""
    methods = BUILT_IN * 6
    want = {name: wo.solve(PROBLEM.replace(allocation="per-block"), name) for name in BUILT_IN}
    for _ in range(3):
        problem = wo.Problem(wo.Instance.from_arrays(**ARRAYS), allocation="per-block")
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda name: wo.solve(problem, name), methods))  # noqa: B023
        for name, solution in zip(methods, found, strict=True):
            assert solution.latency == want[name].latency
            np.testing.assert_array_equal(solution.keep, want[name].keep)
            np.testing.assert_array_equal(solution.bandwidth, want[name].bandwidth)


def test_solution_views() -> None:
    """dense() and gate_weights() agree with keep, token by token."""
    solution = wo.solve(PROBLEM, "wdmoe", alpha=1.0)
    dense, mixed = solution.dense(), solution.gate_weights()
    raw = solution.gate_weights(renormalise=False)
    for (i, j, c), kept in np.ndenumerate(solution.keep):
        e = ARRAYS["expert_ids"][i, j, c]
        if e >= 0:
            assert dense[i, j, e] == kept
        assert raw[i, j, c] == (ARRAYS["gate_weights"][i, j, c] if kept else 0.0)
    np.testing.assert_allclose(mixed.sum(axis=2), ARRAYS["gate_weights"][:, :, :2].sum(axis=2), rtol=1e-12)
    assert dense.sum() == solution.keep.sum()


def test_frame_has_a_row_per_block_and_device() -> None:
    """The frame repeats the solution's numbers; loads-only and measured instances have one too."""
    frame = wo.solve(PROBLEM, "topk").to_frame()
    solution = wo.solve(PROBLEM, "topk")
    assert len(frame) == 12
    np.testing.assert_array_equal(frame["device_time_s"], solution.device_time.ravel())
    np.testing.assert_array_equal(frame["bandwidth_hz"], np.tile(solution.bandwidth, 3))
    for arrays, more in (
        (loads_arrays(Shape(), 1), {}),
        (measured_arrays(Shape(), 1), {"allocation": "fixed"}),
    ):
        assert len(wo.solve(wo.Instance.from_arrays(**arrays), **more).to_frame()) == 6


def test_given_point_is_copied_and_priced() -> None:
    """Solution.from_arrays prices a user's point; writing to the user's arrays afterwards changes nothing."""
    keep, width = random_keep(PROBLEM, 1), np.full(4, INSTANCE.total_bandwidth / 4)
    solution = wo.Solution.from_arrays(PROBLEM, keep=keep, bandwidth=width)
    want = price(ARRAYS, keep, width).latency
    before = keep.copy()
    keep[:], width[:] = False, 0.0
    np.testing.assert_array_equal(solution.keep, before)
    assert solution.latency == pytest.approx(want, rel=1e-9)
    assert price(ARRAYS, solution.keep, solution.bandwidth).latency == pytest.approx(want, rel=1e-9)
    assert (solution.method, solution.termination.reason) == ("given", "heuristic")
    assert solution.gap == math.inf


def test_loads_have_no_selection_to_show() -> None:
    """Views of a selection are refused where there is none."""
    solution = wo.solve(wo.Instance.from_arrays(**loads_arrays(Shape(), 1)), "topk")
    for view in (solution.dense, solution.gate_weights):
        with pytest.raises(wo.UnsupportedError, match="there is no selection: the instance has loads only"):
            view()


# ------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"problem": 7}, wo.InputError, "problem: must be a Problem or an Instance, got int"),
        ({"min_retention": 0.5}, wo.InputError,
         "min_retention: is part of the Problem; use problem.replace()"),
        ({"method": "topkk"}, wo.UnknownNameError,
         "method = 'topkk': unknown name; choose from topk"),
        ({"method": 3}, wo.UnknownNameError,
         "method = 3: unknown name; choose from "),
        ({"method": ["topk"]}, wo.UnknownNameError, "method = ['topk']: unknown name; choose from topk"),
        ({"method": "topk", "speed": 1}, wo.UnknownNameError,
         "option of 'topk' = 'speed': unknown name; choose from seed, rel_gap, threads, time_limit"),
        ({"speed": 1}, wo.UnknownNameError, "argument of solve = 'speed': unknown name; choose from "),
        ({"min_retension": 1}, wo.UnknownNameError,
         "argument of solve = 'min_retension': unknown name; choose from min_retention, "),
        ({"alpha": 1}, wo.InputError, "alpha: cannot be set with method 'auto'; name a method"),
        ({"time_limit": -1.0}, wo.InputError, "time_limit = -1.0: must be at least 0"),
        ({"time_limit": math.nan}, wo.InputError, "time_limit = nan: must be finite"),
        ({"rel_gap": "small"}, wo.InputError, "rel_gap: must hold real numbers, got dtype <U5"),
        ({"seed": -1}, wo.InputError, "seed = -1: must be at least 0"),
        ({"seed": 0.5}, wo.InputError, "seed = 0.5: must be a whole number"),
        ({"threads": 0}, wo.InputError, "threads = 0: must be 1 to 4096"),
        ({"threads": True}, wo.InputError, "threads = True: must be a whole number"),
    ],
)  # fmt: skip
def test_bad_arguments(arguments: dict[str, Any], kind: type[Exception], message: str) -> None:
    """Each argument of solve() is checked, with name, value and rule."""
    with pytest.raises(kind) as caught:
        wo.solve(**{"problem": PROBLEM, **arguments})
    # Near names of methods depend on what is installed.
    same = str(caught.value).startswith if "unknown name" in message else str(caught.value).__eq__
    assert same(message)
    assert isinstance(caught.value, wo.WdmoeError)


@pytest.mark.usefixtures("clean_registry")
def test_refusals_name_the_methods_that_can() -> None:
    """Objective, allocation or dispatch a solver does not do: the message says what and who does."""
    wo.register_solver(
        "narrow", lambda p, c: None, summary="-", allocations=("fixed",), objectives=("latency",)
    )
    with pytest.raises(wo.UnsupportedError) as caught:
        wo.solve(PROBLEM, "narrow")
    able = ", ".join(s.name for s in wo.list_solvers() if "shared" in s.allocations)
    assert (
        str(caught.value) == f"method 'narrow' cannot be used: it does not do allocation 'shared'; use {able}"
    )


@pytest.mark.usefixtures("clean_registry")
@pytest.mark.parametrize("module", ["no_such_module_here", "no_such_package.part"])
def test_unavailable_solver_says_why(module: str) -> None:
    """A solver whose module is missing is listed, refused with the reason, and not offered to others."""
    wo.register_solver("missing", "no.such:thing", summary="-", requires=(module,), extra="models")
    with pytest.raises(wo.UnsupportedError) as caught:
        wo.solve(PROBLEM, "missing")
    reason = f"{module} not installed; install wdmoe_opt[models]"
    assert str(caught.value) == f"method 'missing' is not available: {reason}"
    info = next(s for s in wo.list_solvers() if s.name == "missing")
    assert not info.availability()
    assert info.availability().reason == reason


# ------------------------------------------------------------------ registry


@dataclass(frozen=True)
class Options:
    """Options of the solver below."""

    share: float = 0.5


def shrinking(problem: wo.Problem, control: wo.Control, options: Options) -> wo.Point:
    return wo.Point(problem.top_k_keep, problem.uniform_bandwidth * options.share)


@pytest.mark.usefixtures("clean_registry")
def test_third_party_solver_joins() -> None:
    """A registered function is found, takes its options, and its point is priced."""
    info = wo.register_solver("third", shrinking, summary="half", options_class=Options)
    assert info.options == {"share": 0.5}
    assert "third" in [s.name for s in wo.list_solvers()]
    half, most = wo.solve(PROBLEM, "third"), wo.solve(PROBLEM, "third", share=0.9)
    assert half.latency > most.latency
    assert half.latency == pytest.approx(price(ARRAYS, half.keep, half.bandwidth).latency, rel=1e-9)
    assert half.termination.reason == "no-solution"
    with pytest.raises(wo.UnknownNameError, match="'shore': unknown name; choose from share"):
        wo.solve(PROBLEM, "third", shore=1)


@pytest.mark.usefixtures("clean_registry")
def test_plain_keyword_options_of_a_function() -> None:
    """Without a dataclass the options are the function's own keywords."""

    def solver(problem: wo.Problem, control: wo.Control, share: float = 0.25) -> wo.Point:
        return wo.Point(problem.top_k_keep, problem.uniform_bandwidth * share)

    assert wo.register_solver("plain", solver, summary="-").options == {"share": 0.25}
    np.testing.assert_array_equal(
        wo.solve(PROBLEM, "plain", share=0.75).bandwidth, PROBLEM.uniform_bandwidth * 0.75
    )


@pytest.mark.usefixtures("clean_registry")
def test_names_are_unique_and_lower_case() -> None:
    """A taken name is refused unless replaced on purpose; "auto" and odd names always."""
    wo.register_solver("mine", shrinking, summary="first", options_class=Options)
    with pytest.raises(wo.InputError) as caught:
        wo.register_solver("mine", shrinking, summary="second")
    assert str(caught.value) == "name = 'mine': is taken by another solver"
    assert wo.register_solver("mine", shrinking, summary="second", replace=True).summary == "second"
    for name, rule in (
        ("auto", "is taken by another solver"),
        ("Mine", "must be non-empty, lower case, without outer blanks"),
        (" mine", "must be non-empty, lower case, without outer blanks"),
        ("", "must be non-empty, lower case, without outer blanks"),
    ):
        with pytest.raises(wo.InputError) as caught:
            wo.register_solver(name, shrinking, summary="-", replace=True)
        assert str(caught.value) == f"name = {name!r}: {rule}"


@pytest.mark.parametrize("method", ["auto", "certified", "exact", "enumerate"])
def test_a_cap_below_the_least_latency_is_infeasible(method: str) -> None:
    """Nothing is called optimal that breaks the cap; a little above the optimum the cap changes nothing."""
    problem = PROBLEMS["one block"]()
    least = wo.solve(problem, "enumerate").latency
    tight = wo.solve(problem.replace(max_latency=0.5 * least), method)
    assert tight.termination.reason == "infeasible"
    assert not tight.has_point
    assert not tight.feasible
    assert tight.lower_bound > 0.5 * least or tight.bound_kind == "none"
    loose = wo.solve(problem.replace(max_latency=1.5 * least), method, time_limit=20)
    assert loose.feasible
    assert loose.termination.reason != "infeasible"


def test_a_cap_that_is_not_proved_out_of_reach_leaves_the_point() -> None:
    """Without a bound above the cap, the best point stays, but is not called optimal."""
    problem = PROBLEMS["one block"]()
    least = wo.solve(problem, "enumerate").latency
    capped = problem.replace(max_latency=least * (1 - 1e-8))
    for method in ("greedy", "alternating", "topk"):
        found = wo.solve(capped, method)
        assert found.termination.reason == "heuristic"
        assert [v.constraint for v in found.violations] == ["max_latency"]
    found = wo.solve(capped, "certified", rel_gap=0.5)
    if found.lower_bound < capped.max_latency:
        assert found.termination.reason == "heuristic"
        assert found.has_point


@pytest.mark.parametrize("reason", ["optimal", "feasible-at-limit", "infeasible"])
def test_a_claim_proves_no_cap_out_of_reach(reason: str) -> None:
    """A bound above its own point is dropped, cap or no cap; the point stays, whatever its solver says."""

    def liar(problem: wo.Problem, control: wo.Control) -> wo.Point:
        keep, end = problem.top_k_keep, wo.Termination(reason, detail="surely")
        return wo.Point(keep, problem.uniform_bandwidth, end, lower_bound=1e9, bound_kind="claimed")

    problem = PROBLEMS["shared"]()
    value = wo.solve(problem, "topk-uniform").latency
    info = registry.SolverInfo("liar", "-", liar)
    found = run_solver(info, problem.replace(max_latency=0.999 * value), wo.Control(), {})
    assert found.termination.reason == "heuristic"
    assert found.bound_kind == "none"
    assert found.latency == pytest.approx(value)


def test_auto_gives_general_solvers_a_minute() -> None:
    """Where no limit is given; one that is given stays."""
    problem = PROBLEMS["retention"]()
    assert "for 60 s as no time_limit is given" in wo.solve(problem).termination.detail
    assert "for 60 s" not in wo.solve(problem, time_limit=30).termination.detail


@pytest.mark.parametrize("objective", ["wlr-token", "wlr-device", "wlr-block"])
def test_solvers_that_do_not_keep_a_cap_say_so(objective: str) -> None:
    """Weight over latency under a cap is for those that have the cap in their model."""
    problem = PROBLEMS[objective]().replace(max_latency=0.1)
    for method in ("certified", "greedy", "alternating", "enumerate"):
        with pytest.raises(
            wo.UnsupportedError, match=rf"does not keep max_latency with objective '{objective}'"
        ):
            wo.solve(problem, method)
    assert wo.solve(problem, "topk-uniform").has_point


@pytest.mark.usefixtures("clean_registry")
def test_lying_solver_is_priced_by_the_metric() -> None:
    """A point that overspends, starves and drops everything is reported as that, whatever it claims."""

    def liar(problem: wo.Problem, control: wo.Control) -> wo.Point:
        keep = np.zeros(problem.allowed.shape, dtype=bool)
        keep[0] = problem.top_k_keep[0]
        optimal = wo.Termination("optimal", detail="surely")
        return wo.Point(keep, problem.uniform_bandwidth * 2, optimal, lower_bound=0.0, bound_kind="claimed")

    wo.register_solver("liar", liar, summary="-", bound="claimed")
    solution = wo.solve(PROBLEM.replace(min_retention=0.9), "liar")
    assert not solution.feasible
    found = {v.constraint: v.count for v in solution.violations}
    assert found == {"experts per token": 16, "min_retention": 2, "total_bandwidth": 1}
    assert solution.latency == pytest.approx(
        price(ARRAYS, solution.keep, solution.bandwidth).latency, rel=1e-9
    )
    assert "NOT feasible" in str(solution)
    assert solution.bound_kind == "claimed"


@pytest.mark.usefixtures("clean_registry")
@pytest.mark.parametrize(
    ("point", "message"),
    [
        (lambda p: None, "method 'broken' returned a NoneType, not a Point"),
        (
            lambda p: wo.Point(p.top_k_keep[:1], p.uniform_bandwidth),
            "method 'broken' returned a malformed point: keep: must have shape (3, 8, 3), "
            "(blocks, tokens, m) as expert_ids; got (1, 8, 3)",
        ),
        (
            lambda p: wo.Point(p.top_k_keep.astype(float), p.uniform_bandwidth),
            "method 'broken' returned a malformed point: keep: must be boolean, got dtype float64",
        ),
        (
            lambda p: wo.Point(p.top_k_keep, p.uniform_bandwidth[:2]),
            "method 'broken' returned a malformed point: bandwidth: must have shape (4,); got (2,)",
        ),
        (
            lambda p: wo.Point(p.top_k_keep, p.uniform_bandwidth * math.nan),
            "method 'broken' returned a malformed point: bandwidth[0] = nan: must be finite",
        ),
        (
            lambda p: wo.Point(p.top_k_keep, None),
            "method 'broken' returned a malformed point: bandwidth: is missing: allocation is 'shared'",
        ),
    ],
)
def test_malformed_points_never_reach_compiled_code(point: Any, message: str) -> None:
    """A third party's wrong shapes or types are an error that names the method."""
    wo.register_solver("broken", lambda problem, control: point(problem), summary="-")
    with pytest.raises(wo.WdmoeError) as caught:
        wo.solve(PROBLEM, "broken")
    assert str(caught.value) == message


def test_built_in_solvers_are_listed_with_their_abilities() -> None:
    """Name, summary and options of every solver are there, and each function loads."""
    infos = {s.name: s for s in wo.list_solvers()}
    assert set(BUILT_IN) <= set(infos)
    for name in BUILT_IN:
        assert infos[name].summary
        assert callable(infos[name].function)
        assert infos[name].availability()
    assert infos["wdmoe"].options["alpha"] == 0.5
    assert "rounds" in infos["wdmoe"].options
    assert "rounds" not in infos["wdmoe-selection"].options


def test_solution_survives_pickling() -> None:
    """A solution can be sent to another process and keeps its numbers."""
    import pickle

    solution = wo.solve(wo.load_instance("gpt-oss-20b-decode", blocks=1), "topk")
    copy = pickle.loads(pickle.dumps(solution))
    assert copy.latency == solution.latency
    assert copy.wlr == solution.wlr
    assert (copy.keep == solution.keep).all()


@pytest.mark.usefixtures("clean_registry")
def test_solver_with_open_options() -> None:
    """A solver that ends in **options receives whatever is given."""
    seen = {}

    def open_ended(problem: wo.Problem, control: wo.Control, **options: object) -> wo.Point:
        seen.update(options)
        return wo.Point(problem.top_k_keep, problem.uniform_bandwidth, wo.Termination("heuristic"))

    wo.register_solver("open-ended-test", open_ended, summary="test")
    wo.solve(wo.load_instance("gpt-oss-20b-decode", blocks=1), "open-ended-test", colour="red")
    assert seen == {"colour": "red"}


def test_what_solve_returns_is_read_only() -> None:
    """Selection, bandwidth and every priced array refuse to be changed."""
    solution = wo.solve(wo.load_instance("gpt-oss-20b-decode", blocks=1), "topk")
    arrays = [solution.keep, solution.bandwidth, solution.device_time, solution.evaluation.link_time]
    for array in arrays:
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0
    assert (solution.expert_ids == solution.problem.instance.expert_ids).all()


def test_public_names_load_on_first_use() -> None:
    """Every public name resolves, unknown ones do not, and importing the package alone loads no Numba."""
    assert {name for name in wo.__all__ if getattr(wo, name) is None} == set()
    assert set(wo._HOME_OF) == set(wo.__all__)
    assert set(wo.__all__) <= set(dir(wo))
    assert wo.registry is registry
    with pytest.raises(AttributeError, match="has no attribute 'sovle'"):
        wo.sovle  # noqa: B018
    code = "import sys, wdmoe_opt; print(any(m in sys.modules for m in ('numba', 'cvxpy', 'pandas')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_first_use_loads_only_the_core() -> None:
    """Solving natively loads none of the heavy optional packages."""
    code = (
        "import sys, wdmoe_opt as wo\n"
        "wo.solve(wo.load_instance('gpt-oss-20b-decode', blocks=1), 'topk')\n"
        "print([m for m in ('cvxpy', 'pyomo', 'pandas', 'scipy.optimize', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_out_of_memory_is_an_answer(clean_registry: None) -> None:
    """A model too large for its solver ends with no point, and says why; it does not end the program."""

    def huge(problem: wo.Problem, control: Any) -> Any:
        raise MemoryError("Unable to allocate 47.5 GiB")

    wo.register_solver("huge", huge, summary="runs out of memory")
    found = wo.solve(PROBLEM, "huge")
    assert (found.termination.reason, found.termination.limit) == ("no-solution", "memory")
    assert "47.5 GiB" in found.termination.detail
    assert not found.feasible
