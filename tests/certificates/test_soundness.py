"""Rules on which soundness rests, each alone and without a solver; written against surviving mutants."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from itertools import combinations, permutations, product

import numpy as np
import pytest
from makers import Split, chain, random_prices, random_problem

import wdmoe_opt as wo
from wdmoe_opt import Certificate, Instance, Problem
from wdmoe_opt.certificates.branches import check_roots, contradictions, one_block, restricted, tree_verdict
from wdmoe_opt.certificates.certify import _beyond
from wdmoe_opt.certificates.check import deadline_margins, flat_verdict, inspect
from wdmoe_opt.certificates.exact import Block, Prices, deadline_margin, inspect_exactly
from wdmoe_opt.certificates.exact import flat_verdict as exact_flat
from wdmoe_opt.certificates.exact import token_bound as exact_token_bound
from wdmoe_opt.certificates.exact_branches import contradicts
from wdmoe_opt.certificates.exact_branches import restricted as exact_restricted
from wdmoe_opt.certificates.exact_branches import tree_verdict as exact_tree_verdict
from wdmoe_opt.certificates.facts import facts_of
from wdmoe_opt.certificates.pricing import reprice
from wdmoe_opt.certificates.tokens import TokenPrices, token_bound
from wdmoe_opt.certificates.tree import DEADLINE, EXPERT, LOAD, PAIR, ROOT, Tree
from wdmoe_opt.testing.arrays import Shape, random_arrays

HOSTS, COMPUTE = np.array([0, 0, 1, 1]), np.array([1e-3, 2e-3, 1.5e-3, 3e-3])
IDS = [[[0, 1, 2], [2, 3, 0]], [[3, 2, 1], [1, 0, 3]]]
WEIGHTS = [[[0.5, 0.3, 0.2], [0.6, 0.25, 0.15]]] * 2
#: Both floors leave some selections and forbid others.
MEAN_FLOOR, TOKEN_FLOOR, CAP = 0.5, 0.3, 2


def small(**request) -> Problem:
    """Two blocks of two tokens, three candidates, four experts on two devices."""
    fields = ("link_delay", "activation_time", "compute_time", "bandwidth_min", "bandwidth_max")
    extra = {name: request.pop(name) for name in fields if name in request}
    arrays = {"compute_time": COMPUTE, "link_delay": [0.0, 0.0], "activation_time": [0.0, 0.0], **extra}
    instance = Instance.from_arrays(
        expert_ids=IDS, gate_weights=WEIGHTS, expert_device=HOSTS, gain_down=[1e-9] * 2, gain_up=[1e-9] * 2,
        power_down=1.0, power_up=0.1, noise_density=4e-21, total_bandwidth=2e7, bits_down=3e4, bits_up=3e4,
        **arrays,
    )  # fmt: skip
    return Problem(instance, **request)


# ---------------------------------------------------------------------- facts under restrictions


def selections(block: int, dispatch: str) -> list[dict]:
    """Every selection that keeps floors and cap: pairs, and per expert and device what they come to."""
    choices = [s for size in range(1, CAP + 1) for s in combinations(range(3), size)]
    found = []
    for chosen in product(choices, repeat=2):
        shares = [sum(WEIGHTS[block][j][c] for c in columns) for j, columns in enumerate(chosen)]
        if min(shares) < TOKEN_FLOOR or np.mean(shares) < MEAN_FLOOR:
            continue
        pairs = [(j, c, IDS[block][j][c]) for j, columns in enumerate(chosen) for c in columns]
        visits = [(j, HOSTS[e]) for j, _, e in pairs]
        visits = list(set(visits)) if dispatch == "device" else visits
        found.append({
            "pairs": {(j, c) for j, c, _ in pairs},
            "active": {e for _, _, e in pairs},
            "sent": np.bincount([k for _, k in visits], minlength=2),
            "work": np.bincount([HOSTS[e] for *_, e in pairs], [COMPUTE[e] for *_, e in pairs], 2),
        })  # fmt: skip
    return found


def holds(split: Split, selection: dict) -> bool:
    inside = {
        PAIR: (split.second, split.third) in selection["pairs"],
        EXPERT: split.second in selection["active"],
        LOAD: split.kind == LOAD and selection["sent"][split.second] > split.value,
    }
    return bool(inside[split.kind]) == bool(split.side)


SPLITS = [
    *(Split(PAIR, j, c, 0.0, side) for j in range(2) for c in range(3) for side in (0, 1)),
    *(Split(EXPERT, e, -1, 0.0, side) for e in range(4) for side in (0, 1)),
    *(Split(LOAD, k, -1, float(n), side) for k in range(2) for n in range(4) for side in (0, 1)),
]


@pytest.mark.parametrize("dispatch", ["expert", "device"])
@pytest.mark.parametrize("i", [0, 1])
def test_facts_under_restrictions_hold_for_every_selection_left(i: int, dispatch: str) -> None:
    """No selection is called impossible, and limits of transfers and compute hold, in both arithmetics."""
    problem = small(
        min_retention=MEAN_FLOOR, min_token_retention=TOKEN_FLOOR, max_experts=CAP, dispatch=dispatch
    )
    facts, all_of = one_block(facts_of(problem), i), selections(i, dispatch)
    several = [path for n in (2, 3) for path in permutations(SPLITS, n)]
    drawn = np.random.default_rng(i).choice(len(several), 150, replace=False)
    closed = seen = 0
    for path in [(), *((split,) for split in SPLITS), *(several[n] for n in drawn)]:
        tree, node = chain(i, path)
        left = [s for s in all_of if all(holds(split, s) for split in path)]
        limited = restricted(facts, tree, node)
        block = exact_restricted(Block.of(problem, i), tree, node)
        empty = bool(contradictions(limited).any())
        assert empty == contradicts(block), path
        closed += not left
        seen += empty
        if empty:
            assert not left, path
            continue
        for k in range(2):
            light, heavy, least, most = block.limits(k)
            assert (least, most) == (limited.least[0, k], limited.most[0, k]), path
            assert float(light) == pytest.approx(limited.light[0, k], rel=1e-12)
            assert float(heavy) == pytest.approx(limited.heavy[0, k], rel=1e-12)
        usable, awake = set(np.flatnonzero(limited.usable[0])), set(np.flatnonzero(limited.awake[0]))
        assert (block.usable(), block.awake) == (usable, awake)
        for s in left:
            assert awake <= s["active"] <= usable, path
            assert (limited.least[0] <= s["sent"]).all(), path
            assert (s["sent"] <= limited.most[0]).all(), path
            assert (limited.light[0] * s["sent"] <= s["work"] * (1 + 3e-16)).all(), path
            assert (s["work"] <= limited.heavy[0] * s["sent"] * (1 + 3e-16)).all(), path
    assert closed > seen > 0.5 * closed


def test_a_deadline_leaves_latencies_up_to_it() -> None:
    problem = small()
    facts = one_block(facts_of(problem), 1)
    for below, above in product((1.0, 2.0, 3.0), repeat=2):
        tree, node = chain(1, (Split(DEADLINE, -1, -1, below, 0), Split(DEADLINE, -1, -1, above, 1)))
        limited, block = restricted(facts, tree, node), exact_restricted(Block.of(problem, 1), tree, node)
        assert (limited.after[0], limited.until[0]) == (block.after, block.until) == (above, below)
        assert bool(contradictions(limited)[0]) == contradicts(block) == (above >= below)


def test_splits_lie_within_their_root_and_the_problem() -> None:
    problem = small()
    for kind, at in ((PAIR, (2, 0)), (PAIR, (0, 3)), (PAIR, (-1, 0)), (EXPERT, (4, -1)), (LOAD, (2, -1))):
        trees = [chain(i, (Split(kind, *at, 1.0, 0),))[0] for i in (0, 1)]
        second = np.where(trees[1].parent < 0, -1, trees[1].parent + 3)
        joined = {
            name: np.concatenate([getattr(tree, name) for tree in trees])
            for name in ("kind", "index", "value", "side")
        }
        parent = np.concatenate([trees[0].parent, second])
        both = Tree(parent=parent, leaves=dict.fromkeys((1, 2, 4, 5), "empty"), **joined)
        with pytest.raises(wo.InputError, match=r"must lie within the problem"):
            check_roots(problem, both)
    last = chain(-1, (Split(EXPERT, 3, -1, 0.0, 0),))[0]
    index = last.index.copy()
    index[1:, 0] = 1
    check_roots(problem, replace(last, index=index))
    index[1:, 0] = 2
    with pytest.raises(wo.InputError, match=r"must lie within the problem"):
        check_roots(problem, replace(last, index=index))
    own = np.array([[0, -1, -1], [1, 3, -1], [1, 3, -1], [1, -1, -1]])
    strange = Tree(
        parent=[-1, 0, 0, -1], kind=[ROOT, EXPERT, EXPERT, ROOT], index=own, value=[0.0] * 4,
        side=[0, 0, 1, 0], leaves=dict.fromkeys((1, 2, 3), "empty"),
    )  # fmt: skip
    with pytest.raises(wo.InputError, match="must split block 0 as its root says"):
        check_roots(problem, strange)


def test_a_leaf_of_all_blocks_needs_a_form_for_all_blocks() -> None:
    """Prices of shared bandwidth prove nothing where every block has one of its own."""
    problem = small(allocation="per-block")
    leaf = Certificate(form="shared", offset=np.zeros(2), grid=np.ones((2, 1)), **random_prices(problem, 1))
    tree = chain(-1, ())[0]
    c = Certificate(form="tree", tree=replace(tree, leaves={0: leaf}))
    for verdict in (tree_verdict(problem, facts_of(problem), c), exact_tree_verdict(problem, c)):
        assert verdict.bound == -np.inf
        assert "does not bound several blocks" in verdict.failures[0]


# ---------------------------------------------------------------------- outward by the tolerance


@pytest.mark.parametrize("allocation", ["shared", "fixed"])
def test_limits_and_floors_lie_outward_by_the_tolerance_and_hardly_more(allocation: str) -> None:
    """As far as a point may lie that is called feasible, in both arithmetics."""
    problem = small(
        min_retention=0.5, min_token_retention=0.3, allocation=allocation,
        bandwidth_min=[1e5, 2e5], bandwidth_max=[1.5e7, 1.9e7],
    )  # fmt: skip
    facts, block, total = facts_of(problem), Block.of(problem, 1), 2e7
    low, high = np.array([1e5, 2e5]), np.array([1.5e7, 1.9e7])
    if allocation == "fixed":
        low = high = np.broadcast_to(problem.fixed_bandwidth, (2,))
    slack = 1e-9 * total
    outward = [(0.5 - facts.mean_floor[1]) / 0.5 / 1e-9, (0.3 - facts.token_floor[1]) / 0.3 / 1e-9]
    outward += [float((Fraction(0.5) - block.mean_floor) * 2 * 10**9)]
    outward += [float((Fraction(0.3) - block.token_floor) / Fraction(0.3) * 10**9)]
    for k in range(2):
        outward += [(facts.high[1, k] - high[k]) / slack, float(block.high[k] - Fraction(high[k])) / slack]
        if allocation == "shared":
            outward += [(low[k] - facts.low[1, k]) / slack, float(Fraction(low[k]) - block.low[k]) / slack]
    if allocation == "shared":
        assert block.budget is not None
        outward += [(facts.budget - total) / slack, float(block.budget - Fraction(total)) / slack]
    else:
        # More bandwidth than given is never worse, so only the most of it counts.
        assert block.budget is None
        assert block.low == block.high
    assert min(outward) >= 1
    assert max(outward) < 1.01


@pytest.mark.parametrize("beyond", [0.9e-9, 2e-9])
@pytest.mark.parametrize(
    "name",
    [
        "min_retention",
        "min_token_retention",
        "max_latency",
        "bandwidth_min",
        "bandwidth_max",
        "total",
        "fixed",
    ],
)
def test_both_pricings_forgive_a_billionth_and_not_two(name: str, beyond: float) -> None:
    keep, bandwidth = np.ones((2, 2, 3), dtype=bool), np.array([1e7, 1e7])
    keep[0, 1, 2] = False
    base, slack = wo.evaluate(small(), keep, bandwidth), beyond * 2e7
    request = {
        "min_retention": {"min_retention": base.block_retention[0] * (1 + beyond)},
        "min_token_retention": {"min_token_retention": base.token_retention[0, 1] * (1 + beyond)},
        "max_latency": {"max_latency": base.latency / (1 + beyond)},
        "bandwidth_min": {"bandwidth_min": [0.0, 1e7 + slack]},
        "bandwidth_max": {"bandwidth_max": [1e7 - slack, 2e7]},
        "total": {},
        "fixed": {"allocation": "fixed", "bandwidth": bandwidth - [slack, 0.0]},
    }[name]
    problem = small(**request)
    used = bandwidth * (1 + beyond) if name == "total" else bandwidth
    broken = bool(wo.evaluate(problem, keep, used).violations)
    assert broken == bool(reprice(problem, keep, used).faults) == (beyond > 1e-9)


def test_what_may_underflow_is_left_to_rational_arithmetic() -> None:
    problem = small(min_retention=0.9, allocation="per-block")
    prices = random_prices(problem, 1)
    prices |= {
        "send": np.full((2, 2), 1e-3),
        "bandwidth": np.full((2, 2), 1e-12),
        "retention": np.full(2, 1e-3),
    }
    for deadline, known in ((1e-99, True), (1e-101, False)):
        c = Certificate(form="deadline", deadline=np.full(2, deadline), **prices)
        assert (inspect(problem, c).bound > 0) == known
        assert inspect_exactly(problem, c).bound == pytest.approx(2 * deadline)
    c = Certificate(form="deadline", deadline=np.full(2, 1e-99), **prices)
    for name in ("compute_time", "activation_time", "link_delay"):
        shape = 4 if name == "compute_time" else 2
        for tiny, known in ((1e-139, True), (1e-141, False)):
            harder = small(min_retention=0.9, allocation="per-block", **{name: np.full(shape, tiny)})
            assert (inspect(harder, c).bound > 0) == known, (name, tiny)


# ---------------------------------------------------------------------- grids


def refusals(facts, block: Block, c: Certificate) -> list[bool]:
    """Whether the grid is refused, by both arithmetics."""
    verdicts = (flat_verdict(facts, c), exact_flat([block], c))
    return [any("does not cover" in text for text in verdict.failures) for verdict in verdicts]


def one(problem: Problem, **form) -> Certificate:
    prices = {name: array[:1] for name, array in random_prices(problem, 1).items() if name != "share"}
    return Certificate(**{"form": "shared", **prices, "wake": np.zeros((1, 4)), **form})


@pytest.mark.parametrize(
    ("offset", "after", "until", "grid", "covers"),
    [
        (1e-3, 5e-3, np.inf, [0.0, 250 * (1 + 1e-9)], True),
        (1e-3, 5e-3, np.inf, [0.0, 250 * (1 - 1e-9)], False),
        (-1e-3, 5e-3, np.inf, [0.0, 200.0], True),
        (-1e-3, 5e-3, np.inf, [0.0, 166.0], False),
        (1e-3, 5e-3, np.inf, [1e-6, 300.0], False),
        (1e-3, 5e-3, 9e-3, [125 * (1 - 1e-9), 300.0], True),
        (1e-3, 5e-3, 9e-3, [125 * (1 + 1e-9), 300.0], False),
        (-1e-3, 5e-3, 9e-3, [99.0, 300.0], True),
        (-1e-3, 5e-3, 9e-3, [111.0, 300.0], False),
        (5e-3, 5e-3, np.inf, [0.0, 1e9], False),
        (9e-3, 5e-3, 8e-3, [1.0, 1e9], False),
        (0.0, 0.0, np.inf, [0.0, 1e9], False),
        (0.0, 0.0, np.inf, [0.0], True),
        (1e-3, 0.0, np.inf, [0.0], False),
        (-1e-3, 0.0, np.inf, [0.0], False),
    ],
)
def test_a_grid_covers_every_latency_left(offset, after, until, grid, covers: bool) -> None:
    problem = small()
    facts = replace(one_block(facts_of(problem), 0), after=np.array([after]), until=np.array([until]))
    block = Block.of(problem, 0)
    block.after, block.until = Fraction(after), until if until == np.inf else Fraction(until)
    c = one(problem, offset=[offset], grid=[grid])
    assert refusals(facts, block, c) == [not covers] * 2


@pytest.mark.parametrize("name", ["link_delay", "activation_time", "wake"])
def test_a_grid_of_zero_alone_needs_devices_that_do_not_wait(name: str) -> None:
    problem = small() if name == "wake" else small(**{name: [0.0, 1e-3]})
    change = {"wake": [[0.0, 0.0, 0.0, 1e-6]]} if name == "wake" else {}
    c = one(problem, offset=[0.0], grid=[[0.0]], **change)
    assert refusals(one_block(facts_of(problem), 0), Block.of(problem, 0), c) == [True, True]


# ---------------------------------------------------------------------- prices


def test_what_tokens_pay_for_an_expert_is_its_price_at_least() -> None:
    """Shares with a price of waking below their sum would be paid and never earned."""
    problem = small(min_retention=0.9, activation_time=[2e-3, 1e-3], allocation="per-block")
    prices = random_prices(problem, 3)
    share = np.full((2, 2, 3), 1e-3)
    deadline = np.full(2, 5e-3)
    sums = np.zeros((2, 4))
    np.add.at(sums, (np.arange(2)[:, None, None], np.array(IDS)), share)
    margins = []
    for wake in (np.zeros((2, 4)), sums * 0.5, sums):
        c = Certificate(form="deadline", deadline=deadline, **{**prices, "wake": wake, "share": share})
        blocks = [Block.of(problem, i) for i in range(2)]
        exact = [deadline_margin(b, Prices.of(b, c, i), Fraction(5e-3)) for i, b in enumerate(blocks)]
        margins.append([*deadline_margins(facts_of(problem), c), *map(float, exact)])
    np.testing.assert_allclose(margins[0], margins[2], rtol=1e-9)
    np.testing.assert_allclose(margins[1], margins[2], rtol=1e-9)


def test_no_sum_is_taken_of_memory_never_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Signalling NaNs there would warn, or raise where the caller's NumPy raises."""
    problem = small(min_retention=0.9)
    facts, c = facts_of(problem), Certificate(form="mean", **random_prices(problem, 3))
    prices = TokenPrices(c.send, c.work, c.retention)
    expected = token_bound(facts, prices)

    def poisoned(shape: tuple[int, ...]) -> np.ndarray:
        return np.full(shape, 0x7FF0000000000001, dtype=np.uint64).view(np.float64)

    monkeypatch.setattr(np, "empty", poisoned)
    with np.errstate(all="raise", under="ignore"):
        np.testing.assert_array_equal(token_bound(facts, prices), expected)


@pytest.mark.parametrize("dispatch", ["expert", "device"])
@pytest.mark.parametrize("floor", [0.0, 0.01, 0.8])
@pytest.mark.parametrize("cap", [None, 3])
def test_nine_candidates_cost_the_same_in_both_arithmetics(
    dispatch: str, floor: float, cap: int | None
) -> None:
    """Beyond the candidates whose subsets are listed."""
    shape = Shape(blocks=1, tokens=3, devices=5, per_device=2, top_k=9, columns=9, hosts=True)
    instance = Instance.from_arrays(**random_arrays(shape, 4))
    cap = None if floor else cap
    problem = Problem(instance, min_token_retention=floor, dispatch=dispatch, max_experts=cap)
    prices = random_prices(problem, 4)
    c = Certificate(form="mean", **prices)
    block = Block.of(problem, 0)
    exact = float(exact_token_bound(block, Prices.of(block, c, 0)))
    share = None if c.share is None else np.ascontiguousarray(c.share.transpose(2, 0, 1))
    fast = token_bound(facts_of(problem), TokenPrices(c.send, c.work, c.retention, share))[0]
    assert fast <= exact
    assert fast == pytest.approx(exact, rel=1e-9, abs=1e-15)
    ratio = problem.replace(objective="wlr-token", min_retention=0.5)
    point = wo.evaluate(ratio.replace(allocation="fixed"), ratio.top_k_keep, None)
    for mu in (0.0, 1.0, 1e3):
        c = Certificate(form="token-ratio", retention=[mu])
        least, most = inspect_exactly(ratio, c).bound, inspect(ratio, c).bound
        assert least <= most
        assert most == pytest.approx(least, rel=1e-9)
        if cap is None:
            assert least >= point.objective


@pytest.mark.parametrize("cap", [None, 2])
def test_many_candidates_in_two_blocks_have_the_same_ratio_in_both_arithmetics(cap: int | None) -> None:
    """What a token keeps at most is that block's, whatever the other keeps."""
    shape = Shape(blocks=2, tokens=2, devices=5, per_device=2, top_k=9, columns=9, hosts=True)
    instance = Instance.from_arrays(**random_arrays(shape, 4))
    problem = Problem(instance, objective="wlr-token", allocation="fixed", min_retention=0.2, max_experts=cap)
    for mu in (0.0, 1.0, 1e3):
        c = Certificate(form="token-ratio", retention=[mu, 2 * mu])
        assert inspect(problem, c).bound == pytest.approx(inspect_exactly(problem, c).bound, rel=1e-9)


@pytest.mark.parametrize("weights", [[0.7, 0.3], [1.0, 0.0]])
@pytest.mark.parametrize("idle", [0, 1])
def test_a_token_that_takes_no_time_has_no_bounded_ratio(weights: list[float], idle: int) -> None:
    instance = Instance.from_arrays(
        expert_ids=[[[0, 1]]],
        gate_weights=[[weights]],
        compute_time=np.where(np.arange(2) == idle, 0.0, 1e-3),
        token_time_link=np.where(np.arange(2) == idle, 0.0, 1e-3),
    )
    problem = Problem(instance, objective="wlr-token", allocation="fixed")
    c = Certificate(form="token-ratio", retention=[0.0])
    for check in (inspect, inspect_exactly):
        verdict = check(problem, c)
        assert verdict.bound == np.inf
        assert "takes no time" in verdict.failures[0]


# ---------------------------------------------------------------------- verdicts on claims


@pytest.mark.parametrize(("objective", "worse"), [("latency", -1), ("wlr-block", 1)])
def test_bounds_are_held_to_their_own_side(objective: str, worse: int) -> None:
    """Below a latency, above a ratio; by more than rounding on the other side is a contradiction."""
    problem = small(objective=objective, allocation="fixed")
    assert not _beyond(problem, 1 + worse * 0.5, 1.0)
    assert not _beyond(problem, 1 - worse * 0.9e-12, 1.0)
    assert _beyond(problem, 1 - worse * 2e-12, 1.0)
    point = wo.Solution.from_arrays(problem, keep=problem.top_k_keep, bandwidth=problem.fixed_bandwidth)
    value = point.objective
    assert wo.gap(problem, point, lower_bound=value * (1 + worse * 0.5)) == pytest.approx(0.5)
    assert wo.gap(problem, point, lower_bound=value) == pytest.approx(0, abs=1e-15)


def test_nothing_selectable_has_no_trees_over_pairs() -> None:
    """Loads alone have no tokens to split on."""
    problem = next(p for p in map(random_problem, range(100)) if not p.selectable and p.instance.blocks == 1)
    with pytest.raises(wo.InputError, match="must lie within the problem"):
        check_roots(problem, chain(0, (Split(PAIR, 0, 0, 0.0, 0),))[0])


def test_shapes_are_held_together_also_behind_an_array_left_out() -> None:
    prices = {name: array for name, array in random_prices(small(), 1).items() if name != "share"}
    with pytest.raises(wo.InputError, match="bandwidth: must have 2 blocks as send has, got 1"):
        Certificate(form="mean", **{**prices, "bandwidth": prices["bandwidth"][:1]})
