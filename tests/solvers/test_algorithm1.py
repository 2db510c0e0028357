"""Algorithm 1 against a slow version in plain Python, written from the description of the papers."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import wdmoe_opt as wo
from wdmoe_opt.testing.arrays import Shape, loads_arrays, measured_arrays, random_arrays
from wdmoe_opt.testing.oracles import count, facts, link_seconds, price, rows_of
from wdmoe_opt.testing.strategies import array_sets

DEFAULTS: dict[str, Any] = {
    "alpha": 0.5, "delta": 0.1, "gamma": 1.01, "theta_max": 1.0, "strict": False, "vector": "selected",
    "cosine_latency": "token", "reading": "wlr-token", "update_loads": True, "renormalise": False,
    "tie": "lowest-index", "scope": "block", "trial": "best",
}  # fmt: skip


class NearTieError(Exception):
    """A comparison that rounding may decide either way."""


def compare(a: float, b: float) -> int:
    """Sign of a - b; refuses to decide what rounding could turn round."""
    if a != b and abs(a - b) <= 1e-11 * max(abs(a), abs(b)):
        raise NearTieError
    return (a > b) - (a < b)


class SlowAlgorithm1:
    """The threshold search of the papers, one step after the other, on nested lists."""

    def __init__(
        self, arrays: dict[str, Any], bandwidth: Any, dispatch: str, options: dict[str, Any]
    ) -> None:
        self.arrays, self.bandwidth, self.dispatch = arrays, bandwidth, dispatch
        self.f = facts(arrays)
        self.o = {**DEFAULTS, **options}
        self.rows = rows_of(self.f, bandwidth)
        # Step 1: plain top-k, the latency of every expert, and the baseline.
        self.start = [
            [self.reachable_top_k(i, j) for j in range(len(self.f.ids[i]))] for i in range(self.f.blocks)
        ]
        self.base = price(arrays, self.start, bandwidth, dispatch=dispatch)

    def reachable(self, i: int, e: int) -> bool:
        k = self.f.hosts[e]
        if self.f.link is not None:
            return self.f.link[k] < math.inf
        down = self.f.bits_down == 0 or self.f.gain_down[i][k] > 0
        return down and (self.f.bits_up == 0 or self.f.gain_up[i][k] > 0)

    def reachable_top_k(self, i: int, j: int) -> list[bool]:
        ids = self.f.ids[i][j]
        return [c < self.f.top_k and e >= 0 and self.reachable(i, e) for c, e in enumerate(ids)]

    def token_time(self, i: int, e: int) -> float:
        k = self.f.hosts[e]
        return link_seconds(self.f, i, k, self.rows[i][k]) + self.f.compute[e]

    def latency_entry(self, i: int, e: int) -> float:
        if self.o["cosine_latency"] == "waiting":
            waiting = self.base.device_time[i][self.f.hosts[e]]
            if waiting > 0:
                return waiting
        return self.token_time(i, e)

    def cosine(self, i: int, j: int) -> float:
        ids, weights = self.f.ids[i][j], self.f.weights[i][j]
        gate = {e: weights[c] for c, e in enumerate(ids) if self.start[i][j][c]}
        if self.o["vector"] == "all":
            members = [e for e in range(len(self.f.hosts)) if self.reachable(i, e)]
        else:
            members = list(gate)
        w = [gate.get(e, 0.0) for e in members]
        t = [self.latency_entry(i, e) for e in members]
        top = max(w)
        if top == 0:
            return 1.0
        w = [x / top for x in w]
        dot = sum(a * b for a, b in zip(w, t, strict=True))
        return dot / math.sqrt(sum(a * a for a in w)) / math.sqrt(sum(b * b for b in t))

    def lightest(self, i: int, j: int) -> int:
        kept = [c for c, on in enumerate(self.start[i][j]) if on]
        sign = 1 if self.o["tie"] == "lowest-index" else -1
        return min(kept, key=lambda c: (self.f.weights[i][j][c], sign * self.f.ids[i][j][c]))

    def ratio(self, keep: list[Any], block: int) -> float:
        """One reading of the WLR for one block."""
        f = self.f
        weights = [list(row) for row in f.weights[block]]
        if self.o["renormalise"]:
            for j, row in enumerate(weights):
                kept = sum(w for w, on in zip(row, keep[block][j], strict=True) if on)
                scale = sum(row[: f.top_k]) / kept if kept > 0 else 0.0
                weights[j] = [w * scale for w in row]
        saved, f.weights = f.weights, {**dict(enumerate(f.weights)), block: weights}
        per_transfer = [link_seconds(f, block, k, self.rows[block][k]) for k in range(f.devices)]
        load, sent, kept_weight, _, ratios = count(f, keep, block, per_transfer, self.dispatch)
        f.weights = saved
        if self.o["reading"] == "wlr-token":
            return sum(ratios) / len(ratios)
        times = self.base.device_time[block]
        if self.o["update_loads"]:
            times = []
            for k in range(f.devices):
                work = sum(
                    f.activation[e] + load[e] * f.compute[e]
                    for e in range(len(f.hosts))
                    if f.hosts[e] == k and load[e] > 0
                )
                away = f.link_delay[k] + sent[k] * per_transfer[k] if sent[k] > 0 else 0.0
                times.append(work + away)
        if self.o["reading"] == "wlr-device":
            return sum(w / t for w, t in zip(kept_weight, times, strict=True) if w > 0)
        return sum(kept_weight) / max(times)

    def wlr(self, keep: list[Any], blocks: list[int]) -> float:
        return sum(self.ratio(keep, i) for i in blocks) / len(blocks)

    def thresholds(self) -> list[float]:
        # Exact decimals: whether theta_max itself is reached must not depend on rounding.
        alpha, delta, last = (Fraction(str(self.o[n])) for n in ("alpha", "delta", "theta_max"))
        found, theta = [float(alpha)], alpha + delta
        while theta <= last:
            found.append(float(theta))
            theta += delta
        return found

    def search(self, blocks: list[int]) -> list[Any]:
        reference = self.wlr(self.start, blocks)
        best, best_ratio = self.start, 1.0
        for theta in self.thresholds():
            # Step 6 says to start again from plain top-k at every threshold.
            trial = [[list(token) for token in block] for block in self.start]
            for i in blocks:
                for j, token in enumerate(trial[i]):
                    sign = compare(self.cosine(i, j), theta)
                    below = sign < 0 if self.o["strict"] else sign <= 0
                    if below and sum(token) > 1:
                        token[self.lightest(i, j)] = False
            value = self.wlr(trial, blocks)
            # No reference at all: only experts without weight are in reach.
            none = 1.0 if value == 0 else math.inf
            ratio = value / reference if reference > 0 else none
            stop = compare(ratio, self.o["gamma"]) > 0
            better = trial != self.start and trial != best and compare(ratio, best_ratio) > 0
            if stop or better or self.o["trial"] == "last":
                best, best_ratio = trial, ratio
            if stop:
                break
        return best

    def run(self) -> np.ndarray:
        keep = [None] * self.f.blocks
        everything = list(range(self.f.blocks))
        for blocks in [everything] if self.o["scope"] == "all-blocks" else [[i] for i in everything]:
            found = self.search(blocks)
            for i in blocks:
                keep[i] = found[i]
        return np.array(keep, dtype=bool)


def solve(arrays: dict[str, Any], method: str = "wdmoe-selection", **options: Any) -> wo.Solution:
    request = {n: options.pop(n) for n in ("allocation", "dispatch", "bandwidth") if n in options}
    return wo.solve(wo.Problem(wo.Instance.from_arrays(**arrays), **request), method, **options)


OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "alpha": st.sampled_from([0.0, 0.3, 0.5, 0.8, 0.95, 1.0]),
        "delta": st.sampled_from([0.05, 0.1, 0.3]),
        "gamma": st.sampled_from([0.5, 1.0, 1.01, 1.05, 1.3, 10.0]),
        "theta_max": st.sampled_from([0.7, 0.9, 1.0]),
        "strict": st.booleans(),
        "vector": st.sampled_from(["selected", "all"]),
        "cosine_latency": st.sampled_from(["token", "waiting"]),
        "reading": st.sampled_from(list(wo.WLR_READINGS)),
        "update_loads": st.booleans(),
        "renormalise": st.booleans(),
        "tie": st.sampled_from(["lowest-index", "highest-index"]),
        "scope": st.sampled_from(["block", "all-blocks"]),
        "trial": st.sampled_from(["best", "last"]),
    },
)


@settings(max_examples=400)
@given(array_sets(), OPTIONS, st.sampled_from(["expert", "device"]), st.sampled_from(["shared", "per-block"]))
def test_matches_the_slow_version(
    arrays: dict[str, Any], options: dict[str, Any], dispatch: str, allocation: str
) -> None:
    """Random instances and options: the same experts are dropped, at the same price."""
    solution = solve(arrays, dispatch=dispatch, allocation=allocation, **options)
    try:
        want = SlowAlgorithm1(arrays, solution.bandwidth, dispatch, options).run()
    except NearTieError:
        assume(False)
    np.testing.assert_array_equal(solution.keep, want)
    priced = price(arrays, want, solution.bandwidth, dispatch=dispatch)
    assert solution.latency == pytest.approx(priced.latency, rel=1e-9)


CHOICES = {
    "strict": [False, True],
    "vector": ["selected", "all"],
    "cosine_latency": ["token", "waiting"],
    "reading": list(wo.WLR_READINGS),
    "update_loads": [True, False],
    "renormalise": [False, True],
    "tie": ["lowest-index", "highest-index"],
    "scope": ["block", "all-blocks"],
    "trial": ["best", "last"],
}


def test_every_combination_of_choices_matches_the_slow_version() -> None:
    """All 768 combinations of the named choices on one instance with ties, activation and shared devices."""
    shape = Shape(
        blocks=2, tokens=12, devices=3, per_device=2, top_k=3, columns=3, ties=True, activation=True
    )
    arrays = random_arrays(shape, 77)
    seen = set()
    ties = 0
    for values in product(*CHOICES.values()):
        options = dict(zip(CHOICES, values, strict=True))
        solution = solve(arrays, alpha=0.6, **options)
        try:
            want = SlowAlgorithm1(arrays, solution.bandwidth, "expert", {"alpha": 0.6, **options}).run()
        except NearTieError:
            ties += 1
            continue
        np.testing.assert_array_equal(solution.keep, want, err_msg=str(options))
        seen.add(want.tobytes())
    assert ties <= 100
    # The options do matter on this instance.
    assert len(seen) >= 10


def test_measured_link_matches_the_slow_version() -> None:
    """A measured link, as on the testbed: only the selection is run, and it is the same."""
    for seed in range(40):
        shape = Shape(tokens=6, devices=4, top_k=2, columns=3, unreachable=True, missing=True)
        arrays = measured_arrays(shape, seed)
        solution = solve(arrays, "wdmoe", allocation="fixed")
        want = SlowAlgorithm1(arrays, None, "expert", {}).run()
        np.testing.assert_array_equal(solution.keep, want)
        assert solution.bandwidth is None


# ------------------------------------------------------------------ worked examples


def one_token(weights: list[float], times: list[float]) -> dict[str, Any]:
    """One token, one expert per device, each device with the given time for one token."""
    count_ = len(weights)
    return {
        "expert_ids": [[list(range(count_))]], "gate_weights": [[weights]], "compute_time": np.zeros(count_),
        "token_time_link": times,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("weights", "times", "cosine"),
    [
        ([0.9, 0.1], [1.0, 5.0], 0.30),
        ([0.9, 0.1], [5.0, 1.0], 0.996),
        ([0.9, 0.1], [1.0, 1.0], 0.78),
        ([0.55, 0.45], [1.0, 1.0], 0.995),
        ([0.55, 0.45], [5.0, 1.0], 0.88),
    ],
)
def test_worked_cosines(weights: list[float], times: list[float], cosine: float) -> None:
    """The cosines worked out by hand: the light expert is dropped from just above them, not from below."""
    for theta, kept in ((cosine - 0.006, 2), (cosine + 0.006, 1)):
        theta = min(theta, 1.0)
        options = {"alpha": theta, "theta_max": theta, "trial": "last", "allocation": "fixed"}
        solution = solve(one_token(weights, times), **options)
        assert solution.keep.sum() == kept
        assert solution.keep[0, 0, 0]


def test_slow_light_expert_is_dropped() -> None:
    """For w = (0.9, 0.1), t = (1, 5): S = 0.30 lies below alpha, and the ratio rises from 0.46 to 0.90."""
    solution = solve(one_token([0.9, 0.1], [1.0, 5.0]), allocation="fixed")
    assert solution.keep.tolist() == [[[True, False]]]
    assert solution.wlr["wlr-token"] == pytest.approx(0.9)
    assert solution.trace[0]["ratio"] == pytest.approx(0.9 / 0.46)
    assert len(solution.trace) == 1


def test_best_trial_beats_the_last_one_where_the_rule_hurts() -> None:
    """For w = (0.55, 0.45), t = (5, 1): dropping takes the ratio from 0.28 to 0.11, so none is."""
    arrays = one_token([0.55, 0.45], [5.0, 1.0])
    best, last = (solve(arrays, allocation="fixed", trial=t) for t in ("best", "last"))
    assert best.keep.tolist() == [[[True, True]]]
    assert best.wlr["wlr-token"] == pytest.approx(0.28)
    assert last.keep.tolist() == [[[True, False]]]
    assert last.wlr["wlr-token"] == pytest.approx(0.11)
    assert not any(step["kept"] for step in best.trace)


def test_threshold_is_raised_in_steps_and_each_trial_restarts() -> None:
    """Thresholds 0.5 to 1.0 in tenths; drops never add up over trials."""
    solution = solve(one_token([0.5, 0.3, 0.2], [5.0, 1.0, 1.0]), allocation="fixed", gamma=99.0)
    assert [step["theta"] for step in solution.trace] == pytest.approx([0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    assert max(step["dropped"] for step in solution.trace) == 1
    assert solution.keep.sum() >= 2


def test_threshold_one_includes_an_aligned_token() -> None:
    """Weights in proportion to latencies have cosine 1: dropped at theta = 1, spared by the strict rule.

    Rounding must not lift the cosine above one.
    """
    rng = np.random.default_rng(4)
    for number in range(200):
        weights = np.sort(rng.uniform(0.1, 1, 3))[::-1]
        arrays = one_token(weights.tolist(), (weights * rng.uniform(0.1, 9)).tolist())
        options = {"alpha": 1.0, "trial": "last", "allocation": "fixed"}
        assert solve(arrays, **options).keep.sum() == 2, number


def test_tie_goes_to_the_expert_index_not_the_column() -> None:
    """Two equally light experts in falling index order: the option names the index that is dropped."""
    arrays = {**one_token([0.8, 0.1, 0.1], [1.0, 9.0, 9.0]), "expert_ids": [[[0, 2, 1]]]}
    low, high = (
        solve(arrays, allocation="fixed", tie=t, gamma=1.0) for t in ("lowest-index", "highest-index")
    )
    assert low.keep.tolist() == [[[True, True, False]]]
    assert high.keep.tolist() == [[[True, False, True]]]


@given(array_sets(), st.sampled_from(["wdmoe-selection", "wdmoe"]))
def test_drops_at_most_one_and_never_the_last(arrays: dict[str, Any], method: str) -> None:
    """Every token loses at most its lightest expert, and keeps at least one."""
    solution = solve(arrays, method, trial="last", alpha=1.0)
    start = solution.problem.top_k_keep
    assert not (solution.keep & ~start).any()
    lost = start.sum(axis=2) - solution.keep.sum(axis=2)
    assert lost.max() <= 1
    assert solution.keep.any(axis=2).all()


@given(array_sets())
def test_best_trial_never_lowers_the_ratio(arrays: dict[str, Any]) -> None:
    """With trial "best" no block ends below plain top-k in the chosen reading, whichever that is."""
    for reading in wo.WLR_READINGS:
        solution = solve(arrays, reading=reading)
        plain = wo.evaluate(solution.problem, solution.problem.top_k_keep, solution.bandwidth)
        for got, base in zip(solution.evaluation.block_wlr[reading], plain.block_wlr[reading], strict=True):
            assert got >= base * (1 - 1e-12)


def test_rounds_keep_the_fastest_and_alternate() -> None:
    """More rounds are never slower; each selects at the bandwidth of the round before."""
    better = 0
    for seed in range(30):
        arrays = random_arrays(Shape(tokens=10, devices=4, top_k=2, columns=2), seed)
        one, three = (solve(arrays, "wdmoe", rounds=n) for n in (1, 3))
        assert three.latency <= one.latency * (1 + 1e-12)
        better += three.latency < one.latency * (1 - 1e-9)
        first = SlowAlgorithm1(arrays, one.problem.uniform_bandwidth, "expert", {}).run()
        np.testing.assert_array_equal(one.keep, first)
        rounds = [step["round"] for step in three.trace]
        assert rounds == sorted(rounds)
        assert set(rounds) <= {0, 1, 2}
    assert better > 0


def test_wdmoe_has_the_best_bandwidth_for_its_selection() -> None:
    """The journal version differs from the conference version by the bandwidth only."""
    arrays = random_arrays(Shape(tokens=10, devices=4), 5)
    selection, both = solve(arrays), solve(arrays, "wdmoe")
    np.testing.assert_array_equal(selection.keep, both.keep)
    best = wo.allocate_bandwidth(both.problem, both.keep)
    np.testing.assert_array_equal(both.bandwidth, best.bandwidth)
    assert both.latency < selection.latency
    assert both.kkt_residual < 1e-9


def test_unknown_floors_are_broken_openly() -> None:
    """Algorithm 1 does not know floors: the point is returned, not feasible, with what it violates."""
    arrays = one_token([0.9, 0.1], [1.0, 5.0])
    inst = wo.Instance.from_arrays(**arrays)
    floors = {"min_retention": 0.95, "min_token_retention": 0.92}
    solution = wo.solve(inst, "wdmoe", allocation="fixed", **floors)
    assert not solution.feasible
    assert [(v.constraint, v.index) for v in solution.violations] == [
        ("min_retention", (0,)),
        ("min_token_retention", (0, 0)),
    ]
    assert "NOT feasible" in str(solution)


def test_fixed_bandwidth_with_a_starved_device_is_priced() -> None:
    """No bandwidth for a device that top-k uses: infinite latency is reported, nothing is raised."""
    arrays = random_arrays(Shape(tokens=8, devices=3), 9)
    shares = np.array([0.0, 0.5, 0.5]) * arrays["total_bandwidth"]
    for reading, vector, waiting in product(wo.WLR_READINGS, CHOICES["vector"], CHOICES["cosine_latency"]):
        solution = solve(
            arrays, "wdmoe", allocation="fixed", bandwidth=shares, reading=reading, vector=vector,
            cosine_latency=waiting,
        )  # fmt: skip
        assert solution.keep.any(axis=2).all()
        assert all(math.isfinite(step["theta"]) for step in solution.trace)
        assert not any(math.isnan(step["ratio"]) for step in solution.trace)


def test_loads_only_are_refused() -> None:
    """Without gate weights there is nothing to select; the message names the methods that can."""
    inst = wo.Instance.from_arrays(**loads_arrays(Shape(), 1))
    with pytest.raises(wo.UnsupportedError) as caught:
        wo.solve(inst, "wdmoe")
    assert str(caught.value).startswith(
        "method 'wdmoe' cannot be used: it selects experts by gate weight, and the instance has loads only; "
        "use "
    )
    assert "topk" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -0.1}, "alpha = -0.1: must be at least 0"),
        ({"alpha": math.nan}, "alpha = nan: must be finite"),
        ({"delta": 0.0}, "delta = 0.0: must be greater than 0"),
        ({"delta": 1e-9}, "delta = 1e-09: gives more than 10000 thresholds"),
        ({"gamma": "high"}, "gamma: must hold real numbers, got dtype <U4"),
        ({"theta_max": math.inf}, "theta_max = inf: must be finite"),
        ({"vector": "some"}, "vector = 'some': unknown name; choose from all, selected"),
        ({"vector": 3}, "vector = 3: unknown name; choose from all, selected"),
        ({"reading": "wlr"}, "reading = 'wlr': unknown name; choose from wlr-token, wlr-block, wlr-device"),
        ({"tie": None}, "tie: unknown name; choose from highest-index, lowest-index"),
        ({"scope": "model"}, "scope = 'model': unknown name; choose from all-blocks, block"),
        ({"rounds": 0}, "rounds = 0: must be at least 1 and at most 1000"),
        ({"rounds": 1.5}, "rounds = 1.5: must be a whole number"),
        (
            {"beta": 1},
            "option of 'wdmoe' = 'beta': unknown name; choose from delta, theta_max, trial (nearest of 18)",
        ),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    """Every option is checked, with its name, its value and the rule in the message."""
    with pytest.raises(wo.InputError) as caught:
        solve(random_arrays(Shape(), 0), "wdmoe", **options)
    assert str(caught.value) == message
