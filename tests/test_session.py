"""Session: quality of cold solves, refusals, memory, views, threads; and solve_many."""

from __future__ import annotations

import gc
import re
import resource
import sys
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from test_readme import _run

import wdmoe_opt as wo
from wdmoe_opt.testing.arrays import Shape, random_arrays

MODES = {
    "plain": ({}, {"allocation": "shared"}),
    "per-block": ({}, {"allocation": "per-block"}),
    "activation": ({"activation": True, "per_device": 2, "link_delay": True}, {}),
    "per expert": ({"per_device": 3, "times_per_expert": True, "hosts": True}, {}),
    "unreachable": ({"unreachable": True, "missing": True}, {"min_retention": 0.4}),
    "limits": ({"limits": True}, {}),
    "token floor": ({}, {"min_token_retention": 0.6}),
    "cap": ({"columns": 4, "top_k": 3}, {"max_experts": 2, "min_retention": 0.5}),
    "re-routing": ({"columns": 4}, {"candidates": 4}),
    "fixed": ({}, {"allocation": "fixed"}),
    "device": ({"per_device": 2, "hosts": True, "columns": 3, "top_k": 3}, {"dispatch": "device"}),
    "device, activation": ({"per_device": 2, "activation": True}, {"dispatch": "device"}),
}


def make(tokens: int = 40, seed: int = 3, shape: dict | None = None, **request) -> wo.Problem:
    """One block of random gates on four devices."""
    kinds = {"blocks": 1, "tokens": tokens, "devices": 4, "columns": 3} | (shape or {})
    arrays = random_arrays(Shape(**kinds), seed)
    return wo.Problem(wo.Instance.from_arrays(**arrays), **{"min_retention": 0.8} | request)


def routing(problem: wo.Problem) -> dict:
    inst = problem.instance
    return {"expert_ids": inst.expert_ids[0], "gate_weights": inst.gate_weights[0]}


def steps(problem: wo.Problem, name: str, count: int = 6):
    """Inputs of a sequence of calls: new gains, new gates, other numbers of tokens."""
    rng = np.random.default_rng(len(name))
    shape, request = MODES[name]
    for step in range(count):
        change = {}
        if step % 2:
            factor = 10 ** (rng.normal(0, 1, 4) / 10)
            change |= {"gain_down": problem.instance.gain_down * factor}
            change |= {"gain_up": problem.instance.gain_up * factor}
        if step >= 2:
            tokens = int(rng.integers(8, 60))
            other = make(tokens, 3, shape, **request).instance
            if (other.expert_device == problem.instance.expert_device).all():
                change |= routing(make(tokens, 3, shape, **request))
        yield change


@pytest.mark.parametrize("name", MODES)
def test_quality_of_a_cold_solve(name: str) -> None:
    """Whatever changes, a session's answer is feasible, bounded, and about as good as a cold one."""
    shape, request = MODES[name]
    problem = make(40, 3, shape, **request)
    session = wo.Session(problem, max_tokens=64)
    for change in steps(problem, name):
        try:
            result = session.solve(**change)
        except wo.InputError:  # routing that was drawn for other reachable devices
            continue
        solution = result.to_solution()
        cold = wo.solve(solution.problem, "certified")
        assert solution.feasible
        assert solution.latency == pytest.approx(result.latency, rel=1e-12)
        assert solution.retention == pytest.approx(result.retention, rel=1e-12)
        # The check may prove a little less than was claimed.
        assert solution.lower_bound <= result.lower_bound * (1 + 1e-8)
        assert solution.lower_bound >= result.lower_bound * (1 - 1e-3)
        assert solution.gap <= max(cold.gap * 1.5, 1e-3) + 2e-3
        assert solution.latency <= cold.latency * (1 + max(2e-3, cold.gap))
        assert solution.lower_bound <= cold.latency * (1 + 1e-12)
        assert wo.certify(solution.problem, solution)
        np.testing.assert_allclose(result.device_time, solution.device_time[0], rtol=1e-12)
        np.testing.assert_allclose(result.gate_weights(), solution.gate_weights()[0], rtol=1e-12)


def test_measured_link() -> None:
    """Times on air may change where there is no bandwidth."""
    arrays = random_arrays(Shape(blocks=1, tokens=20), 5)
    for name in wo.Instance.RADIO_FIELDS:
        arrays.pop(name)
    inst = wo.Instance.from_arrays(**arrays, token_time_link=[1e-3, 2e-3, 1e-3])
    session = wo.Session(wo.Problem(inst, allocation="fixed", min_retention=0.7))
    before = session.solve().latency
    after = session.solve(token_time_link=[2e-3, 4e-3, 2e-3])
    assert before < after.latency
    assert after.bandwidth is None
    assert after.to_solution().feasible
    with pytest.raises(wo.InputError, match="gain_up: cannot be given"):
        session.solve(gain_up=[1.0, 1.0, 1.0])


def test_blocks_of_a_template_are_kept_apart() -> None:
    """Gains, floors, routing and prices are each block's own."""
    arrays = random_arrays(Shape(blocks=3, tokens=30, gains_per_block=True), 2)
    problem = wo.Problem(
        wo.Instance.from_arrays(**arrays), allocation="per-block", min_retention=[0.6, 0.8, 0.9]
    )
    session, cold = wo.Session(problem, rel_gap=0.02), wo.solve(problem, "certified")
    for turn in range(2):
        for i in (2, 0, 1):
            result = session.solve(block=i)
            assert result.warm == (turn > 0)
            assert result.latency == pytest.approx(cold.block_latency[i], rel=2e-2)
    with pytest.raises(wo.InputError, match="block: is missing: the template has 3 blocks"):
        session.solve()
    with pytest.raises(wo.InputError, match="block = 3: must be 0 to 2"):
        session.solve(block=3)


def test_same_calls_same_bits() -> None:
    """Determinism, warm starts included."""

    def run() -> list:
        problem = make(40)
        session = wo.Session(problem, max_tokens=64)
        return [session.solve(**change).copy() for change in steps(problem, "plain", 8)]

    for one, two in zip(run(), run(), strict=True):
        assert (one.latency, one.lower_bound) == (two.latency, two.lower_bound)
        assert (one.keep == two.keep).all()
        assert (one.bandwidth == two.bandwidth).all()


def test_warm_start_is_used_and_left() -> None:
    """Small changes start warm; devices that come into reach, or wild changes, start anew."""
    problem = make(60, 5, min_retention=0.5)
    gain = problem.instance.gain_down
    session = wo.Session(problem, rel_gap=0.02)
    assert not session.solve().warm
    assert session.solve(gain_down=gain * 1.2).warm
    lost = gain * (np.arange(4) != 1)
    result = session.solve(gain_down=lost)
    assert not result.warm
    assert result.bandwidth[1] == 0
    session.solve(gain_down=gain * 1e4, gain_up=gain * 1e4)
    assert session.solve(gain_down=gain, gain_up=gain).to_solution().gap < 2e-2


# ------------------------------------------------------------------ refusals


IDS, WEIGHTS = [[0, 1, 2], [3, 2, 0]], [[0.5, 0.3, 0.1], [0.6, 0.2, 0.1]]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"expert_ids": [[0, 1, 2], [3, 2, 4]]}, r"expert_ids\[1, 2\] = 4: must name an expert, 0 to 3"),
        ({"expert_ids": [[0, 1, 1], [3, 2, 0]]}, r"expert_ids\[0\] = 1: a token must not list"),
        ({"expert_ids": [[0, -1, 1], [3, 2, 0]]}, r"expert_ids\[0, 1\] = -1: -1 may only trail"),
        ({"expert_ids": [[0, 1, -1], [3, 2, 0]]}, r"gate_weights\[0, 2\] = 0.1: must be 0 where"),
        ({"expert_ids": [[0.5, 1, 2], [3, 2, 0]]}, r"expert_ids\[0, 0\] = 0.5: must be whole numbers"),
        ({"expert_ids": [[0, 1, 2**40], [3, 2, 0]]}, r"expert_ids\[0, 2\] = 1099511627776: must name"),
        ({"expert_ids": "many"}, "expert_ids: must hold real numbers"),
        ({"expert_ids": [[0, 1], [3, 2]]}, r"expert_ids: must have shape \(tokens, 3\)"),
        ({"expert_ids": [[0, 1, 2]] * 3}, "must have as many tokens as the other"),
        ({"expert_ids": [[0, 1, 2]] * 99, "gate_weights": [WEIGHTS[0]] * 99}, "at most max_tokens = 64"),
        ({"gate_weights": [[0.5, 0.6, 0.1], [0.6, 0.2, 0.1]]}, r"gate_weights\[0, 1\] = 0.6: must not"),
        ({"gate_weights": [[0.5, 0.3, 0.1], [0.6, 0.2, -0.1]]}, r"gate_weights\[1, 2\] = -0.1: must be at"),
        ({"gate_weights": [[np.nan, 0.3, 0.1], [0.6, 0.2, 0.1]]}, r"gate_weights\[0, 0\] = nan: must be"),
        ({"gate_weights": np.float64([[np.inf, 0.3, 0.1], [0.6, 0.2, 0.1]])}, r"\[0, 0\] = inf: must be"),
        ({"gate_weights": np.zeros((2, 3))}, r"gate_weights\[0\] = 0.0: a token's top-k weights"),
        ({"gain_down": [1e-9, 1e-9, -1.0, 1e-9]}, r"gain_down\[2\] = -1.0: must be at least 0"),
        ({"gain_up": np.array([1e-9, np.nan, 1e-9, 1e-9])}, r"gain_up\[1\] = nan: must be finite"),
        ({"gain_up": np.full(4, 1e300)}, r"gain_up\[0\] = inf: must keep power x gain"),
        ({"gain_up": [1.0, 2.0]}, r"gain_up: must have shape \(4,\)"),
        ({"gain_up": np.zeros(4)}, r"expert_ids\[0\] = \[0, 1, 2\]: none of the token's experts"),
        ({"token_time_link": np.ones(4)}, "token_time_link: cannot be given: the template has a radio link"),
        ({"block": True}, "block = True: must be a whole number"),
        ({"block": 1}, "block = 1: must be 0 to 0"),
    ],
)  # fmt: skip
def test_refused_calls_leave_the_session_as_it_was(change: dict, words: str) -> None:
    """Errors are those of Instance and Problem; nothing moves, and the last result stays valid."""
    problem = make(40, 3, {"top_k": 3})
    session, other = wo.Session(problem, max_tokens=64), wo.Session(problem, max_tokens=64)
    given = {"expert_ids": IDS, "gate_weights": WEIGHTS}
    session.solve(**given)
    last = session.solve(**given)
    other.solve(**given)
    other.solve(**given)
    kept, weights = last.keep.copy(), last.gate_weights()
    with pytest.raises(wo.InputError, match=words):
        session.solve(**change)
    assert (last.keep == kept).all()
    assert (last.gate_weights() == weights).all()
    one, two = session.solve(), other.solve()
    assert (one.latency, one.lower_bound, one.warm) == (two.latency, two.lower_bound, two.warm)


def test_templates_that_are_refused() -> None:
    """What a session cannot do is said when it is made."""
    several = wo.Problem(wo.Instance.from_arrays(**random_arrays(Shape(), 1)), allocation="shared")
    with pytest.raises(wo.InputError, match="allocation = 'shared': must be 'per-block' or 'fixed'"):
        wo.Session(several)
    with pytest.raises(wo.UnsupportedError, match="'wlr-block'"):
        wo.Session(make(objective="wlr-block"))
    with pytest.raises(wo.InputError, match="max_tokens = 3: must be at least the template's 40"):
        wo.Session(make(), max_tokens=3)
    with pytest.raises(wo.InputError, match="certify = 1: must be True or False"):
        wo.Session(make(), certify=1)
    with pytest.raises(wo.InputError, match="problem: must be a Problem, got Instance"):
        wo.Session(make().instance)
    with pytest.raises(wo.InputError, match="rel_gap"):
        wo.Session(make(), rel_gap=-1.0)


@pytest.mark.parametrize("mode", ["shared", "fixed"])
def test_floors_out_of_reach_are_an_answer(mode: str) -> None:
    """A floor that nothing can meet gives a result that says so, and the next call works."""
    problem = make(20, 3, {"top_k": 2}, max_experts=1, min_retention=0.2, allocation=mode)
    session = wo.Session(problem)
    flat = np.full((1, 3), 0.1)
    high = wo.Session(problem.replace(min_retention=0.99), max_tokens=64)
    result = high.solve(expert_ids=[[0, 1, 2]], gate_weights=flat)
    assert not result.feasible
    assert result.gap == np.inf
    assert result.termination.reason == "infeasible"
    assert "min_retention cannot be met" in result.termination.detail
    assert result.to_solution().termination.reason == "infeasible"
    assert session.solve(expert_ids=[[0, 1, 2]], gate_weights=flat).feasible


# ------------------------------------------------------------------ views, copies, certificates


def test_results_are_views_until_the_next_call() -> None:
    """No copies: an older result refuses to be read, a copy stays."""
    session = wo.Session(make(40))
    first = session.solve()
    assert first.keep.base is not None
    assert not first.keep.flags.writeable
    kept, keep = first.copy(), first.keep.copy()
    second = session.solve(gain_down=session.template.instance.gain_down * 0.3)
    for read in ("keep", "bandwidth", "device_time", "expert_ids"):
        with pytest.raises(wo.WdmoeError, match="keep one with copy"):
            getattr(first, read)
    with pytest.raises(wo.WdmoeError, match="keep one with copy"):
        first.copy()
    assert not np.shares_memory(kept.keep, second.keep)
    assert (kept.keep == keep).all()
    assert kept.to_solution().latency == kept.latency == first.latency
    assert wo.certify(kept.problem(), kept.to_solution())


def test_gate_weights_into_a_given_array() -> None:
    """The model's own buffer can be filled."""
    result = wo.Session(make(40)).solve()
    out = np.empty(result.keep.shape)
    assert result.gate_weights(renormalise=False, out=out) is out
    assert (out[~result.keep] == 0).all()
    assert result.gate_weights().sum() == pytest.approx(result._memory.mass[:40].sum())
    with pytest.raises(wo.InputError, match="out: must have shape"):
        result.gate_weights(out=np.empty((1, 1)))
    with pytest.raises(wo.InputError, match="out: must be a float64 array"):
        result.gate_weights(out=np.empty((40, 3), dtype=np.float32))


@pytest.mark.parametrize("dtypes", [(np.int32, np.float32), (np.int64, np.float16), (np.uint8, np.float64)])
def test_dtypes_and_strides(dtypes: tuple) -> None:
    """Inputs of any usual type and any strides give the same answer as plain ones."""
    problem = make(40)
    ids, weights = problem.instance.expert_ids, problem.instance.gate_weights.astype(dtypes[1])
    want = wo.Session(problem).solve(gate_weights=weights.astype(np.float64)).latency
    strided = np.asfortranarray(ids[0].astype(dtypes[0]))
    assert wo.Session(problem).solve(expert_ids=strided, gate_weights=weights).latency == want


def test_certify_per_call() -> None:
    """Rechecked bounds are called certified, and the full solution passes the whole check."""
    session = wo.Session(make(100), certify=True)
    gain = session.template.instance.gain_down
    for factor in (1.0, 1.3, 0.7):
        result = session.solve(gain_down=gain * factor)
        assert result.bound_kind == "certified"
        assert result.timings["certify"] > 0
        solution = result.to_solution()
        assert solution.lower_bound == result.lower_bound
        assert wo.certify(solution.problem, solution)
    assert wo.Session(make(40)).solve().bound_kind == "claimed"


# ------------------------------------------------------------------ loops and threads


@pytest.mark.compiled
def test_memory_stays_constant() -> None:
    """Thousands of calls allocate nothing that stays."""
    problem = make(16)
    gain = problem.instance.gain_down
    session = wo.Session(problem, rel_gap=0.05)

    def run(calls: int) -> None:
        for i in range(calls):
            session.solve(gain_down=gain * (1 + 0.1 * (i % 7)))

    run(300)
    gc.collect()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run(3000)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2_000  # kB
    tracemalloc.start()
    try:
        run(50)
        first = tracemalloc.get_traced_memory()[0]
        run(500)
        assert tracemalloc.get_traced_memory()[0] - first < 20_000  # less than any array per call
    finally:
        tracemalloc.stop()


def test_concurrent_calls_are_refused() -> None:
    """A second thread is told, not served wrongly; the first one is not disturbed."""
    session = wo.Session(make(40))
    session.solve()
    inside, leave = threading.Event(), threading.Event()
    stage = session._stage_routing

    def slow(*arguments):
        inside.set()
        leave.wait(10)
        return stage(*arguments)

    session._stage_routing = slow
    found = []
    thread = threading.Thread(target=lambda: found.append(session.solve()))
    thread.start()
    assert inside.wait(10)
    with pytest.raises(wo.WdmoeError, match="one session per thread"):
        session.solve()
    leave.set()
    thread.join()
    assert found[0].feasible


# ------------------------------------------------------------------ the page


def test_page_example_runs() -> None:
    """The example of docs/session.md prints what stands below it, up to times and last digits."""
    page = (Path(__file__).parents[1] / "docs" / "session.md").read_text("utf-8")
    code = re.search(r"<!-- example -->\n```python\n(.*?)```", page, re.S)
    shown = re.search(r"<!-- output: example -->\n```text\n(.*?)```", page, re.S)
    assert code
    assert shown
    printed = _run(sys.executable, "-c", code[1])
    assert re.sub(r"[\d.]+", "#", printed) == re.sub(r"[\d.]+", "#", shown[1].rstrip())
    gaps = [float(gap) for gap in re.findall(r"gap ([\d.]+)%", printed)]
    assert max(gaps) <= 0.1


# ------------------------------------------------------------------ solve_many


def test_solve_many_is_solve_one_by_one() -> None:
    """In order, from a generator, the same bits for any number of threads."""
    problems = [make(20, seed) for seed in range(12)]
    want = [wo.solve(problem, "certified") for problem in problems]
    for threads in (1, 3):
        found = wo.solve_many((p for p in problems), threads=threads, progress=True)
        assert [s.problem for s in found] == problems
        for one, two in zip(found, want, strict=True):
            assert (one.latency, one.lower_bound) == (two.latency, two.lower_bound)
            assert (one.keep == two.keep).all()
    assert wo.solve_many([]) == []
    assert {s.method for s in wo.solve_many(problems[:2], "greedy", seed=1)} == {"greedy"}


@pytest.mark.parametrize("threads", [1, 2])
def test_solve_many_reads_generators_as_it_goes(threads: int) -> None:
    """A failing problem ends the batch; what comes long after it has not been asked for."""
    read = []

    def problems():
        for i in range(100):
            read.append(i)
            yield "none" if i == 3 else make(8)

    with pytest.raises(wo.InputError, match=r"problems\[3\]: must be a Problem or an Instance, got str"):
        wo.solve_many(problems(), threads=threads)
    assert len(read) < 20


def test_solve_many_names_the_problem() -> None:
    """Errors carry the index."""
    with pytest.raises(wo.UnsupportedError, match=r"problems\[1\]: .*certified"):
        wo.solve_many([make(8), make(8, objective="wlr-device")])
    with pytest.raises(wo.InputError, match=r"problems\[0\]\.rel_gap"):
        wo.solve_many([make(8)], rel_gap=-1.0)
    with pytest.raises(wo.UnknownNameError, match="method"):
        wo.solve_many([make(8)], "no such")
    with pytest.raises(wo.InputError, match="problems: must be several problems, got one Problem"):
        wo.solve_many(make(8))
    with pytest.raises(wo.InputError, match="threads"):
        wo.solve_many([], threads=0)
