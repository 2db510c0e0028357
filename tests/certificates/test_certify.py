"""certify() and gap(), certificates on their way through solve(), files and the command line."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from makers import deadline_certificate, near_prices, random_problem, shared_certificate
from test_branches import tree_certificate
from test_check import optimum

import wdmoe_opt as wo
from wdmoe_opt import Instance, Problem, Solution
from wdmoe_opt.archive import ArchiveError
from wdmoe_opt.benchmarks.agreement import tiny_problem
from wdmoe_opt.certificates.check import Verdict, inspect, recompute
from wdmoe_opt.certificates.exact import inspect_exactly
from wdmoe_opt.certificates.pricing import reprice
from wdmoe_opt.certificates.tree import Tree
from wdmoe_opt.registry import Point, SolverInfo
from wdmoe_opt.testing.arrays import Shape, loads_arrays, random_arrays


@pytest.fixture(scope="module")
def solved() -> Solution:
    """A solution with a certified bound."""
    shape = Shape(blocks=2, tokens=12, devices=3, per_device=2, top_k=2, columns=2, activation=True)
    problem = Problem(
        Instance.from_arrays(**random_arrays(shape, 5)), min_retention=0.9, allocation="per-block"
    )
    best = wo.solve(problem, "alternating")
    return certified(best, deadline_certificate(problem, near_prices(problem, best), best.block_latency))


def certified(best: Solution, certificate: wo.Certificate) -> Solution:
    bound = recompute(best.problem, certificate)
    sealed = certificate.sealed(best.problem, bound)
    return replace(best, lower_bound=bound, bound_kind="certified", certificate=sealed)


# ---------------------------------------------------------------------- pricing


@pytest.mark.parametrize("objective", ["latency", "wlr-token", "wlr-device", "wlr-block"])
def test_second_pricing_agrees_with_the_metric(objective: str) -> None:
    for seed in range(80):
        problem = random_problem(seed)
        if not problem.selectable and objective != "latency":
            continue
        problem = problem.replace(objective=objective)
        for method in ("topk", "topk-uniform"):
            solution = wo.solve(problem, method)
            price = reprice(problem, solution.keep, solution.bandwidth)
            assert price.objective == pytest.approx(solution.objective, rel=1e-12)
            assert price.latency == pytest.approx(solution.latency, rel=1e-12)
            assert bool(price.faults) != solution.feasible, (seed, price.faults, solution.violations)


def test_second_pricing_of_retention_and_cap() -> None:
    problem = Problem(
        Instance.from_arrays(**random_arrays(Shape(), 1)), objective="retention", max_latency=1e-9
    )
    solution = wo.solve(problem, "topk")
    price = reprice(problem, solution.keep, solution.bandwidth)
    assert price.objective == pytest.approx(solution.objective)
    assert "above max_latency" in price.faults[0]


# ---------------------------------------------------------------------- certify and gap


def test_true_claims_pass(solved: Solution) -> None:
    for exact in (False, True):
        report = wo.certify(solved.problem, solved, exact=exact)
        assert report, str(report)
        assert report.value == pytest.approx(solved.objective, rel=1e-12)
        assert report.gap == pytest.approx(solved.gap)
        assert "everything claimed was rechecked" in str(report)
    assert wo.gap(solved.problem, solved) == pytest.approx(solved.gap)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {"lower_bound": s.lower_bound * (1 + 1e-6)}, "the solution claims the bound"),
        (lambda s: {"certificate": None}, "comes without a certificate"),
        (lambda s: {"certificate": replace(s.certificate, bound=s.lower_bound * 1.1)}, "digest"),
        (lambda s: {"certificate": replace(s.certificate, points=s.certificate.points * 1.01)}, "digest"),
        (lambda s: {"certificate": replace(s.certificate, send=s.certificate.send * 0)}, "proves nothing"),
        (lambda s: {"bandwidth": s.bandwidth * 0.9}, "claimed is"),
        (lambda s: {"bandwidth": s.bandwidth * 1.1}, "more than total_bandwidth"),
        (lambda s: {"keep": s.keep & False}, "keeps no expert"),
        (lambda s: {"keep": s.keep[:1]}, "malformed"),
    ],
)
def test_false_claims_are_named(solved: Solution, change, message: str) -> None:
    report = wo.certify(solved.problem, replace(solved, **change(solved)))
    assert not report
    assert message in str(report)
    assert "NOT everything" in str(report)


def test_exact_means_rational_arithmetic(solved: Solution, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each check asks its own arithmetic."""
    from wdmoe_opt.certificates import certify as module
    from wdmoe_opt.certificates import exact

    for name, broken in (("inspect", module), ("inspect_exactly", exact)):
        with monkeypatch.context() as patch:
            patch.setattr(broken, name, lambda *_: Verdict(-np.inf, ("elsewhere",)))
            for asked in (False, True):
                same = asked == (name == "inspect_exactly")
                assert bool(wo.certify(solved.problem, solved, exact=asked)) is not same


def test_bound_beyond_the_point_is_a_contradiction(solved: Solution) -> None:
    better = solved.problem.replace(min_retention=0.0)
    point = Solution.from_arrays(better, keep=better.top_k_keep, bandwidth=solved.bandwidth)
    fast = wo.solve(better, "alternating")
    assert fast.latency < solved.lower_bound
    lying = replace(solved, keep=fast.keep, bandwidth=fast.bandwidth, evaluation=fast.evaluation)
    assert not wo.certify(solved.problem, lying)
    assert wo.certify(better, point)


def test_nothing_claimed_and_claims_without_proof() -> None:
    problem = Problem(Instance.from_arrays(**random_arrays(Shape(blocks=1, tokens=3), 1)))
    nothing = wo.certify(problem, wo.solve(problem, "topk"))
    assert nothing
    assert "nothing claimed about the optimum" in nothing.checks
    assert nothing.gap == math.inf
    claimed = wo.certify(problem, wo.solve(problem, "enumerate"))
    assert not claimed
    assert "not rechecked" in claimed.failures[0]
    none = replace(wo.solve(problem, "topk"), keep=None, bandwidth=None,
                   termination=wo.Termination("infeasible"))  # fmt: skip
    assert "no point" in wo.certify(problem, none).failures[0]


def test_gap_takes_a_bound_or_a_certificate(solved: Solution) -> None:
    problem = solved.problem
    point = Solution.from_arrays(problem, keep=solved.keep, bandwidth=solved.bandwidth)
    assert wo.gap(problem, point, lower_bound=solved.lower_bound) == pytest.approx(solved.gap)
    assert wo.gap(problem, point, lower_bound=point.objective) == 0
    broken = Solution.from_arrays(problem, keep=solved.keep, bandwidth=solved.bandwidth * 2)
    assert wo.gap(problem, broken, lower_bound=0.1) == math.inf


# ---------------------------------------------------------------------- on the way through solve


def _solver(certificate, **claims) -> SolverInfo:
    def function(problem, control):
        keep = problem.top_k_keep
        bandwidth = np.broadcast_to(
            problem.uniform_bandwidth, (problem.instance.blocks, problem.instance.devices)
        )
        return Point(keep, bandwidth, wo.Termination("heuristic"), certificate=certificate, **claims)

    return SolverInfo("test-certified", "for tests", function)


def test_solve_believes_the_certificate_only(solved: Solution, monkeypatch: pytest.MonkeyPatch) -> None:
    from wdmoe_opt import registry

    problem, c = solved.problem, solved.certificate

    def solve(certificate, **claims) -> Solution:
        monkeypatch.setitem(registry._SOLVERS, "test-certified", _solver(certificate, **claims))
        return wo.solve(problem, "test-certified")

    lofty = solve(c, lower_bound=99.0, bound_kind="certified")
    assert lofty.bound_kind == "certified"
    assert lofty.lower_bound == solved.lower_bound == lofty.certificate.bound
    assert wo.certify(problem, lofty)
    downgraded = solve(None, lower_bound=0.01, bound_kind="certified")
    assert (downgraded.bound_kind, downgraded.certificate) == ("claimed", None)
    # Prices are good even if their deadline claims too much: it is moved to where it holds.
    weaker = solve(replace(c, deadline=c.deadline * 1.1), lower_bound=99.0, bound_kind="certified")
    assert weaker.bound_kind == "certified"
    assert 0.5 * solved.lower_bound < weaker.lower_bound < solved.lower_bound * 1.1
    assert wo.certify(problem, weaker)
    nothing = replace(c, **{n: getattr(c, n) * 0 for n in ("send", "work", "wake", "retention", "bandwidth")})
    assert solve(replace(nothing, share=None)).bound_kind == "none"
    one = {
        n: getattr(c, n)[:1] for n in ("send", "work", "wake", "share", "retention", "bandwidth", "points")
    }
    with pytest.raises(wo.WdmoeError, match="malformed certificate"):
        solve(wo.Certificate(form="deadline", deadline=c.deadline[:1], **one))


# ---------------------------------------------------------------------- files


def same(one, other) -> bool:
    """Equality of nested solutions, instances, certificates and trees."""
    if isinstance(one, (Solution, Problem, wo.Certificate, Tree)):
        names = set(one.__dataclass_fields__) - {"evaluation"}
        return type(one) is type(other) and all(same(getattr(one, n), getattr(other, n)) for n in names)
    if isinstance(one, Instance):
        return same(one.arrays(), other.arrays()) and one.name == other.name
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other, equal_nan=True)
    return one == other or (isinstance(one, float) and math.isnan(one) and math.isnan(other))


@pytest.mark.parametrize("seed", range(40))
def test_files_keep_everything(seed: int, tmp_path: Path) -> None:
    problem = random_problem(seed)
    best = optimum(problem)
    if best is None:
        return
    floor = deadline_certificate(problem, near_prices(problem, best), best.block_latency)
    solutions = [best]
    if recompute(problem, floor) > 0:
        solutions.append(certified(best, floor))
    if problem.allocation == "shared":
        c = shared_certificate(
            problem, near_prices(problem, best), floor, np.maximum(best.block_latency, 1e-9)
        )
        solutions.append(replace(best, certificate=c))
    if problem.selectable:
        solutions.append(replace(best, certificate=tree_certificate(problem, best, seed, near=True)))
    for solution in solutions:
        text = solution.save(tmp_path / "one.npz")
        loaded = Solution.load(tmp_path / "one.npz")
        assert same(solution, loaded)
        assert loaded.problem.digest == problem.digest
        assert loaded.save(tmp_path / "two.npz") == text
        assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
        assert bool(wo.certify(loaded.problem, loaded)) == bool(wo.certify(problem, solution))


def test_files_of_loads_and_of_nothing(tmp_path: Path) -> None:
    for request in ({"allocation": "shared"}, {"allocation": "fixed"}):
        problem = Problem(Instance.from_arrays(**loads_arrays(Shape(), 3)), **request)
        solution = wo.solve(problem, "topk")
        solution.save(tmp_path / "loads.npz")
        assert same(solution, Solution.load(tmp_path / "loads.npz"))
    problem = Problem(Instance.from_arrays(**random_arrays(Shape(blocks=1, tokens=2), 1)), max_latency=1e-9)
    nothing = wo.solve(problem, "enumerate")
    assert not nothing.has_point
    nothing.save(tmp_path / "nothing.npz")
    loaded = Solution.load(tmp_path / "nothing.npz")
    assert same(nothing, loaded)
    assert not loaded.has_point


def test_bad_files_are_refused(solved: Solution, tmp_path: Path) -> None:
    path = tmp_path / "solution.npz"
    with pytest.raises(ArchiveError, match=r"must end in \.npz"):
        solved.save(tmp_path / "solution.json")
    with pytest.raises(ArchiveError, match="cannot be read"):
        Solution.load(path)
    solved.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArchiveError):
        Solution.load(path)
    solved.problem.instance.save(path)
    with pytest.raises(ArchiveError, match="kind must be 'solution'"):
        Solution.load(path)
    lying = replace(solved, evaluation=wo.evaluate(solved.problem, solved.keep, solved.bandwidth * 0.9))
    lying.save(path)
    with pytest.raises(ArchiveError, match="is not what the point is worth"):
        Solution.load(path)


# ---------------------------------------------------------------------- command line


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "wdmoe_opt.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8")


def test_command_certify(solved: Solution, tmp_path: Path) -> None:
    good, bad = str(tmp_path / "good.npz"), str(tmp_path / "bad.npz")
    solved.save(good)
    replace(solved, lower_bound=solved.lower_bound * 1.01).save(bad)
    done = run("certify", good)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("everything claimed was rechecked\n  ok    the point keeps")
    done = run("certify", good, "--exact", "--json")
    report = json.loads(done.stdout)
    assert done.returncode == 0
    assert report["certified"] is True
    assert report["bound"] == pytest.approx(solved.lower_bound)
    done = run("certify", bad)
    assert done.returncode == 1
    assert "FAILS the solution claims the bound" in done.stdout
    done = run("certify", str(tmp_path / "none.npz"))
    assert done.returncode == 2
    assert "cannot be read" in done.stderr


def test_command_solve_saves(solved: Solution, tmp_path: Path) -> None:
    instance, saved = str(tmp_path / "instance.npz"), str(tmp_path / "solution.npz")
    solved.problem.instance.save(instance)
    done = run("solve", instance, "--method", "topk", "--min-retention", "0.9", "--save", saved)
    assert done.returncode == 0, done.stderr
    assert Solution.load(saved).method == "topk"
    assert run("certify", saved).returncode == 0


def hand_made():
    """Four tokens on two equal devices; the optimum is 1.142 ms."""
    instance = wo.Instance.from_arrays(
        expert_ids=[[[0, 1], [1, 0], [0, 1], [1, 0]]], gate_weights=[[[0.7, 0.3]] * 4],
        compute_time=[1e-4] * 2, gain_down=[1e-9] * 2, gain_up=[1e-9] * 2, power_down=1.0, power_up=0.1,
        noise_density=4e-21, total_bandwidth=2e7, bits_down=3e4, bits_up=3e4,
    )  # fmt: skip
    return wo.Problem(instance, min_retention=0.6, allocation="per-block")


def test_prices_that_underflow_prove_nothing():
    """A price of 5e-324 s would earn nothing by rounding, and so prove any deadline."""
    problem, none = hand_made(), [[0.0, 0.0]]
    lie = wo.Certificate(
        form="deadline", deadline=[0.4], send=[[5e-324] * 2], work=none, wake=none, retention=[0.0],
        bandwidth=none, points=[[1e7] * 2],
    )  # fmt: skip
    assert inspect(problem, lie).bound == -np.inf
    assert inspect_exactly(problem, lie).bound == -np.inf
    found = wo.solve(problem, "certified")
    prices = ("send", "work", "wake", "share", "retention", "bandwidth")
    for factor in (1e-320, 1e-200, 1e-100):
        scaled = {
            name: getattr(found.certificate, name) * factor
            for name in prices
            if getattr(found.certificate, name) is not None
        }
        doubled = replace(found.certificate, deadline=2 * found.certificate.deadline, **scaled)
        assert inspect(problem, doubled).bound == -np.inf, factor


def test_a_bound_that_is_no_number_is_refused():
    problem = hand_made()
    found = wo.solve(problem, "certified")
    assert wo.certify(problem, found)
    assert not wo.certify(problem, replace(found, lower_bound=math.nan))
    with pytest.raises(wo.InputError, match=r"bound.*must be a number"):
        found.certificate.sealed(problem, math.nan)


def test_the_digest_covers_the_parts_of_a_tree():
    problem = tiny_problem(3)
    found = wo.solve(problem, "exact", rel_gap=1e-6)
    tree = found.certificate.tree
    number = next(n for n, leaf in tree.leaves.items() if not isinstance(leaf, str))
    edited = replace(tree.leaves[number], bound=1.0)
    changed = replace(found.certificate, tree=replace(tree, leaves={**tree.leaves, number: edited}))
    report = wo.certify(problem, replace(found, certificate=changed))
    assert any("digest" in text for text in report.failures)
