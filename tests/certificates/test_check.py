"""The check: no bound above an optimum, each part against brute force, and tampering."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from makers import (
    deadline_certificate,
    near_prices,
    random_prices,
    random_problem,
    shared_certificate,
)
from profiles import enough, few

import wdmoe_opt as wo
from wdmoe_opt import Certificate, Instance, Problem
from wdmoe_opt.certificates.check import deadline_margins, dearest_bandwidth, inspect, recompute
from wdmoe_opt.certificates.devices import DevicePrices, active_sets, device_bound, fitting_terms
from wdmoe_opt.certificates.facts import facts_of
from wdmoe_opt.certificates.tokens import TokenPrices, token_bound
from wdmoe_opt.floors import floor_conflict, usable
from wdmoe_opt.solvers.token_options import token_options
from wdmoe_opt.testing.arrays import Shape, random_arrays


def optimum(problem: Problem) -> wo.Solution | None:
    """The enumerated optimum; None where there is none, or it takes too long."""
    if not problem.selectable:
        solution = wo.solve(problem, "topk")
        return solution if solution.objective > 0 else None
    if floor_conflict(problem):
        return None
    try:
        solution = wo.solve(problem, "enumerate", max_states=5000, time_limit=5)
    except wo.UnsupportedError:
        return None
    return solution if solution.termination.reason == "optimal" else None


def certificates(problem: Problem, best: wo.Solution, seed: int):
    """Certificates with near and with random prices, their claims as large as they pass."""
    for prices in (near_prices(problem, best), random_prices(problem, seed)):
        deadline = deadline_certificate(problem, prices, best.block_latency * 3)
        yield deadline
        if problem.allocation == "shared":
            shared = shared_certificate(problem, prices, deadline, np.maximum(best.block_latency, 1e-9))
            yield shared
            yield replace(shared, toll=random_tolls(shared, seed))


def random_tolls(c: Certificate, seed: int) -> np.ndarray:
    """Tolls of both signs, some above the price of a transfer, some none."""
    rng = np.random.default_rng(seed)
    part = rng.normal(0, 10.0 ** rng.uniform(-3, 0), c.send.shape) * (rng.random(c.send.shape) < 0.7)
    return part * (np.abs(c.send) + 1e-4 * c.work)


# Median looseness over seeds 150 to 500, near prices: 0 at fixed bandwidth, 2 % per block and 4 % shared by
# one block; on several blocks the near prices are those of each block alone and loose. With 512 tokens
# and 8 devices: 0.05 to 0.5 %.
@pytest.mark.parametrize("start", range(0, 240, 40))
def test_no_bound_exceeds_the_optimum(start: int) -> None:
    bound_gap, count = [], 0
    for seed in range(start, start + few(40)):
        problem = random_problem(seed)
        best = optimum(problem)
        if best is None:
            continue
        for certificate in certificates(problem, best, seed):
            bound = recompute(problem, certificate)
            assert bound <= best.objective * (1 + 1e-12), (seed, certificate)
            if certificate.toll is None:
                bound_gap.append(1 - max(bound, 0) / best.objective)
            count += 1
    assert enough(count, 30)
    assert enough(0.05, np.quantile(bound_gap, 0.25))  # the test has teeth


# ---------------------------------------------------------------------- parts


@pytest.mark.parametrize("seed", range(60))
def test_token_part_is_the_least_over_options(seed: int) -> None:
    problem = random_problem(seed, per_device=2)
    if floor_conflict(problem):
        return
    prices = random_prices(problem, seed)
    t = problem.tables
    facts = facts_of(problem)
    share = prices.get("share", np.zeros(t.ids.shape))
    repaid = bool(seed % 2)
    got = token_bound(
        facts,
        TokenPrices(
            prices["send"],
            prices["work"],
            prices["retention"],
            np.ascontiguousarray(share.transpose(2, 0, 1)[: facts.pair.shape[0]]),
            repaid,
        ),
    )
    for i in range(t.ids.shape[0]):
        total = prices["retention"][i] * facts.mean_floor[i] * t.ids.shape[1]
        for j in range(t.ids.shape[1]):
            least = np.inf
            for option in token_options(problem, problem.allowed, i, j):
                experts = t.ids[i, j, option]
                hosts = t.expert_device[experts]
                visits = np.unique(hosts) if t.by_device else hosts
                cost = prices["send"][i, visits].sum() + (prices["work"][i, hosts] * t.compute[experts]).sum()
                cost += share[i, j, option].sum() - repaid * t.weights[i, j, option].sum()
                cost -= prices["retention"][i] * problem.shares[i, j, option].sum()
                least = min(least, cost)
            total += least
        capped = problem.expert_cap < facts.pair.shape[0]
        assert got[i] <= total + 1e-15
        if not (capped and t.by_device and facts.pair.shape[0] > 8):
            assert got[i] == pytest.approx(total, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("seed", range(20))
def test_token_part_of_many_candidates_is_valid(seed: int) -> None:
    """Beyond eight candidates a floor per token is relaxed: never above the enumerated least."""
    shape = Shape(blocks=1, tokens=3, devices=5, per_device=2, top_k=9, columns=9, hosts=True)
    inst = Instance.from_arrays(**random_arrays(shape, seed))
    dispatch = "device" if seed % 2 else "expert"
    problem = Problem(inst, min_token_retention=0.8, dispatch=dispatch)
    few = problem.replace(min_token_retention=0.0)
    prices = random_prices(problem, seed)
    args = TokenPrices(prices["send"], prices["work"], prices["retention"])
    facts = facts_of(problem)
    from wdmoe_opt.certificates import tokens as module

    relaxed = token_bound(facts, args)
    assert (relaxed >= token_bound(facts_of(few), args) - 1e-12).all()
    module.ENUMERATED, kept = 9, module.ENUMERATED
    try:
        exact = token_bound(facts, args)
    finally:
        module.ENUMERATED = kept
    assert (relaxed <= exact + 1e-15).all()


@pytest.mark.parametrize("seed", range(60))
def test_device_part_is_never_below_what_is_possible(seed: int) -> None:
    """Against a dense sample over active sets, bandwidth, transfers and compute."""
    rng = np.random.default_rng(seed)
    problem = random_problem(seed, per_device=2, blocks=1, activation=bool(seed % 3))
    prices = random_prices(problem, seed)
    facts, t = facts_of(problem), problem.tables
    prices["bandwidth"] = prices["bandwidth"] * np.isfinite(facts.budget)
    device = DevicePrices(*(prices[n] for n in ("send", "work", "bandwidth", "points", "wake")))
    deadline = 10.0 ** rng.uniform(-3, -0.5, 1)
    terms = fitting_terms(facts, active_sets(facts, prices["wake"]), deadline)
    got = device_bound(facts, device, terms, deadline, np.ones(1), limits=True, refine=True)
    unlimited = device_bound(facts, device, terms, deadline, np.ones(1), limits=False, refine=True)
    assert (got <= unlimited + 1e-12).all()
    for k in range(t.low.size):
        members = [e for e in np.flatnonzero(t.expert_device == k) if facts.usable[0, e]]
        most = 0.0 if facts.least[0, k] == 0 else -np.inf
        most -= prices["bandwidth"][0, k] * facts.low[0, k]
        for size in range(1, len(members) + 1):
            for active in itertools.combinations(members, size):
                most = max(most, sampled(problem, prices, k, list(active), float(deadline[0]), rng))
        assert got[0, k] >= most - 1e-15


def sampled(problem, prices, k, active, deadline, rng) -> float:
    """Most that random bandwidths and loads of the active experts are worth within the deadline."""
    facts, t = facts_of(problem), problem.tables
    best = -np.inf
    time_left = deadline - t.link_delay[k] - t.activation[active].sum()
    span = np.r_[facts.low[0, k], facts.high[0, k], rng.uniform(facts.low[0, k], facts.high[0, k], 60)]
    for b in span:
        link = 0.0
        for bits, c in ((t.bits_down, t.c_down[0, k]), (t.bits_up, t.c_up[0, k])):
            if bits > 0 and b > 0:
                link += bits * np.log(2) / (b * np.log1p(c / b)) if c > 0 else np.inf
        if t.fixed_link_time is not None:
            link = t.fixed_link_time[0, k]
        elif b <= 0:
            continue
        for compute in {facts.light[0, k], facts.heavy[0, k]}:
            n = min(time_left / (link + compute), facts.most[0, k])
            if n < 1:
                continue
            for load in (1.0, n):
                worth = load * (prices["send"][0, k] + prices["work"][0, k] * compute)
                wake = prices["wake"][0, active].sum()
                paid = prices["bandwidth"][0, k] * b
                best = max(best, worth + wake - paid)
    return best


def test_bandwidth_budget_against_linear_program() -> None:
    from scipy.optimize import linprog

    rng = np.random.default_rng(0)
    for _ in range(30):
        price, low = rng.random(4), rng.random(4) * 0.1
        high, budget = low + rng.random(4), float(rng.uniform(0.5, 3))
        found = linprog(-price, A_ub=np.ones((1, 4)), b_ub=[budget], bounds=list(zip(low, high, strict=True)))
        assert float(dearest_bandwidth(price, low, high, budget)) == pytest.approx(-found.fun, rel=1e-9)


# ---------------------------------------------------------------------- tampering


@pytest.fixture(scope="module")
def proved() -> tuple[Problem, Certificate]:
    shape = Shape(blocks=2, tokens=12, devices=3, per_device=2, top_k=2, columns=2, activation=True)
    problem = Problem(
        Instance.from_arrays(**random_arrays(shape, 5)), min_retention=0.9, allocation="per-block"
    )
    best = wo.solve(problem, "alternating")
    certificate = deadline_certificate(problem, near_prices(problem, best), best.block_latency)
    bound = recompute(problem, certificate)
    assert bound > 0.5 * best.objective
    return problem, certificate.sealed(problem, bound)


def test_raised_claim_fails(proved: tuple[Problem, Certificate]) -> None:
    problem, c = proved
    for i in range(2):
        deadline = c.deadline * (1 + 1e-6 * (np.arange(2) == i))
        verdict = inspect(problem, replace(c, deadline=deadline))
        assert verdict.bound == -np.inf
        assert verdict.failures[0].startswith(f"block {i}:")


@pytest.mark.parametrize("name", ["send", "work", "share", "retention", "bandwidth"])
@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_edited_prices_fail_or_still_prove(
    proved: tuple[Problem, Certificate], name: str, factor: float
) -> None:
    """Whatever is edited: the digest tells, and where the bound falls, the claim fails."""
    problem, c = proved
    edited = replace(c, **{name: getattr(c, name) * factor})
    assert edited.expected_digest(problem) != c.digest
    falls = (deadline_margins(facts_of(problem), edited) <= 0).any()
    assert falls == (recompute(problem, edited) == -np.inf)
    assert falls


def test_digest_covers_claim_problem_and_instance(proved: tuple[Problem, Certificate]) -> None:
    problem, c = proved
    assert c.digest == c.expected_digest(problem)
    assert replace(c, bound=c.bound * (1 + 1e-15)).expected_digest(problem) != c.digest
    assert c.expected_digest(problem.replace(min_retention=0.8)) != c.digest
    other = Instance.from_arrays(**{**problem.instance.arrays(), "bits_down": problem.instance.bits_down * 2})
    assert c.expected_digest(problem.replace(instance=other)) != c.digest


def test_easier_problem_is_not_proved(proved: tuple[Problem, Certificate]) -> None:
    problem, c = proved
    assert recompute(problem.replace(min_retention=0.3), c) == -np.inf


@pytest.mark.parametrize("form", ["deadline", "shared"])
def test_zero_prices_prove_nothing(form: str) -> None:
    problem = Problem(Instance.from_arrays(**random_arrays(Shape(), 1)), min_retention=0.9)
    zero, row, experts = np.zeros((2, 3)), np.zeros(2), np.zeros((2, 3))
    prices = {"send": zero, "work": zero, "wake": experts, "retention": row, "bandwidth": zero}
    prices["points"] = zero + 1e6
    claims = {
        "deadline": [{"deadline": row}, {"deadline": row + 1e-9}],
        "shared": [{"offset": row, "grid": np.zeros((2, 1))}],
    }
    for claim in claims[form]:
        verdict = inspect(problem, Certificate(form=form, **prices, **claim))
        assert verdict.bound == -np.inf
        assert verdict.failures


def test_grid_must_reach_the_floor(proved: tuple[Problem, Certificate]) -> None:
    problem = proved[0].replace(allocation="shared")
    best = wo.solve(problem, "alternating")
    prices = near_prices(problem, best)
    floor = deadline_certificate(problem, prices, best.block_latency)
    c = shared_certificate(problem, prices, floor, best.block_latency)
    assert "grid" not in str(inspect(problem, c).failures)
    short = replace(c, grid=c.grid[:, :-1])
    assert "does not cover" in inspect(problem, short).failures[0]
    assert "does not cover" in inspect(problem, replace(c, floor=None)).failures[0]
    assert "does not cover" in inspect(problem, replace(c, grid=c.grid[:, 1:])).failures[0]
    lifted = replace(floor, deadline=floor.deadline * 1.5)
    assert inspect(problem, replace(c, floor=lifted)).failures[0].startswith("floor: block 0")


# ---------------------------------------------------------------------- refusals


def test_wrong_shapes_and_signs_are_named(proved: tuple[Problem, Certificate]) -> None:
    c = proved[1]
    with pytest.raises(wo.InputError, match=r"work\[0, 1\] = -1.0: must be at least 0"):
        replace(c, work=np.array([[0, -1.0, 0], [0, 0, 0]]))
    with pytest.raises(wo.InputError, match=r"send.*must be finite"):
        replace(c, send=c.send * np.nan)
    with pytest.raises(wo.InputError, match=r"points.*greater than 0"):
        replace(c, points=c.points * 0)
    with pytest.raises(wo.InputError, match="must have 2 blocks as send has, got 1"):
        replace(c, work=c.work[:1])
    with pytest.raises(wo.InputError, match="deadline: is missing"):
        replace(c, deadline=None)
    grid = [[0, 2, 1], [0, 1, 2]]
    with pytest.raises(wo.InputError, match=r"grid.*must ascend"):
        replace(c, form="shared", offset=np.zeros(2), grid=grid)
    with pytest.raises(wo.UnknownNameError):
        Certificate(form="dead-line")
    smaller = Problem(Instance.from_arrays(**random_arrays(Shape(blocks=1), 1)))
    with pytest.raises(wo.InputError, match=r"certificate.send: must have shape"):
        recompute(smaller, c)


def test_form_must_bound_the_objective(proved: tuple[Problem, Certificate]) -> None:
    problem, c = proved
    verdict = inspect(problem.replace(objective="wlr-block"), c)
    assert verdict.bound == np.inf
    assert "does not bound objective" in verdict.failures[0]
    shared = Certificate(
        form="shared", send=c.send, work=c.work, wake=c.wake, retention=c.retention,
        bandwidth=c.bandwidth, points=c.points, offset=np.zeros(2), grid=np.zeros((2, 1)),
    )  # fmt: skip
    assert "per-block" in inspect(problem, shared).failures[0]


def test_device_without_bandwidth_is_usable_in_no_selection() -> None:
    """The tolerance of fixed bandwidth gives an idle device a sliver: the bound stays below the optimum."""
    inst = Instance.from_arrays(**random_arrays(Shape(blocks=1, devices=2), 3))
    bandwidth = np.array([1.0, 0.0]) * inst.total_bandwidth
    problem = Problem(inst, allocation="fixed", bandwidth=bandwidth)
    if (usable(problem).any(axis=2)).all():
        best = wo.solve(problem, "enumerate")
        c = deadline_certificate(problem, near_prices(problem, best), best.block_latency * 2)
        assert recompute(problem, c) <= best.objective
