"""Sixteen threads on shared problems, sessions in threads, and threads of one solve: always the same bits."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest
from profiles import PROFILE

import wdmoe_opt as wo
from wdmoe_opt.registry import find_solver
from wdmoe_opt.testing.arrays import Shape, random_arrays
from wdmoe_opt.testing.problems import PROBLEMS

POOL = 16
METHODS = (
    "certified",
    "exact",
    "greedy",
    "alternating",
    "local-search",
    "wdmoe",
    "wdmoe-testbed",
    "topk",
    "slsqp",
)
MODELS = ("convex", "milp", "minlp", "enumerate")
#: How often, and how many of the threads also call what solves models one thread at a time.
ROUNDS, MODELLERS = (20, POOL) if PROFILE == "long" else (1, 2)


def bits(solution: wo.Solution) -> tuple:
    """Everything that has to be equal, to the last bit."""
    arrays = (solution.keep, solution.bandwidth)
    return (
        solution.latency, solution.lower_bound, solution.bound_kind, solution.termination,
        *(None if a is None else np.asarray(a).tobytes() for a in arrays),
    )  # fmt: skip


def test_a_pool_of_sixteen_on_shared_problems() -> None:
    """Several methods at once on the same objects: what each alone gives."""
    problems = [make() for case, make in PROBLEMS.items() if case in ("shared", "per-block", "activation")]
    calls = [
        (method, problem)
        for method in (*METHODS, *MODELS)
        if find_solver(method).availability()
        for problem in problems
        if not find_solver(method).refusal(problem)
    ]
    # The pool's problems are their own objects: what they derive lazily is derived by many threads at once.
    fresh = {id(problem): problem.replace() for problem in problems}
    want = [bits(wo.solve(problem, method)) for method, problem in calls]
    start = Barrier(POOL)

    def work(number: int) -> None:
        start.wait()
        for i in np.random.default_rng(number).permutation(len(calls)):
            method, problem = calls[i]
            if method not in MODELS or number < MODELLERS:
                assert bits(wo.solve(fresh[id(problem)], method)) == want[i], method

    for _ in range(ROUNDS):
        with ThreadPoolExecutor(POOL) as pool:
            list(pool.map(work, range(POOL)))


def block(tokens: int = 40, seed: int = 3) -> wo.Problem:
    shape = Shape(blocks=1, tokens=tokens, devices=4, columns=3)
    return wo.Problem(wo.Instance.from_arrays(**random_arrays(shape, seed)), min_retention=0.8)


def walk(session: wo.Session, calls: int, seed: int) -> list[tuple]:
    rng = np.random.default_rng(seed)
    gain = session.template.instance.gain_down
    found = []
    for _ in range(calls):
        result = session.solve(gain_down=gain * 10 ** (rng.normal(0, 1, gain.size) / 10))
        found.append((result.latency, result.lower_bound, result.keep.tobytes(), result.bandwidth.tobytes()))
    return found


def test_one_session_per_thread() -> None:
    """Sessions over one shared template, each in a thread of its own, give what each alone gives."""
    problem = block()
    want = [walk(wo.Session(problem, time_limit=0), 30, seed) for seed in range(POOL)]
    with ThreadPoolExecutor(POOL) as pool:
        found = list(pool.map(lambda seed: walk(wo.Session(problem, time_limit=0), 30, seed), range(POOL)))
    assert found == want


def test_one_session_under_many_threads_is_guarded() -> None:
    """A call gets its own answer or is refused; afterwards the session works as if nothing had been."""
    session = wo.Session(block(), time_limit=0)
    gain = session.template.instance.gain_down
    factors = np.linspace(0.5, 2.0, POOL)
    # Where a call starts from depends on the call before it, so answers may differ within the gap.
    want = [wo.Session(block(), time_limit=0).solve(gain_down=gain * f) for f in factors]
    start = Barrier(POOL)

    def work(number: int) -> list[float]:
        start.wait()
        found = []
        for _ in range(50):
            try:
                found.append(session.solve(gain_down=gain * factors[number]).latency)
            except wo.WdmoeError as error:
                assert "one session per thread" in str(error)  # noqa: PT017
        return found

    with ThreadPoolExecutor(POOL) as pool:
        answers = list(pool.map(work, range(POOL)))
    assert sum(map(len, answers)) > 0
    for found, alone in zip(answers, want, strict=True):
        low, high = alone.lower_bound, alone.latency * (1 + alone.gap) + (alone.latency - alone.lower_bound)
        assert all(low * (1 - 1e-9) <= latency <= high for latency in found)
    last = session.solve(gain_down=gain)
    assert last.feasible
    assert wo.certify(last.problem(), last.to_solution())


MANY = {
    "shared": {"allocation": "shared"},
    "per-block": {"allocation": "per-block"},
    "fixed": {"allocation": "fixed"},
    "by device": {"allocation": "per-block", "dispatch": "device"},
}


@pytest.mark.parametrize("mode", MANY)
@pytest.mark.parametrize("method", ["certified", "exact", "greedy", "alternating", "local-search"])
def test_threads_of_one_solve_change_no_bit(method: str, mode: str) -> None:
    """One and two threads over many blocks, at two seeds."""
    blocks = 3 if method == "exact" else 12
    shape = Shape(blocks=blocks, tokens=24, devices=4, columns=3, activation=True)
    problem = wo.Problem(wo.Instance.from_arrays(**random_arrays(shape, 5)), min_retention=0.85, **MANY[mode])
    options = {"max_branches": 31} if method == "exact" else {}
    for seed in (0, 7):
        one, two = (
            wo.solve(problem, method, seed=seed, threads=threads, rel_gap=1e-4, **options)
            for threads in (1, 2)
        )
        assert bits(one) == bits(two)
