"""allocate_bandwidth against high-precision optima, rigorous bounds and general-purpose solvers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cvxpy as cp
import mpmath as mp
import numpy as np
import pytest
from bandwidth_oracles import Case, certified_bound, one_block_optimum, two_device_optimum
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

import wdmoe_opt as wo
from wdmoe_opt.testing.arrays import Shape, loads_arrays, measured_arrays, random_keep, random_shape
from wdmoe_opt.testing.oracles import facts, price
from wdmoe_opt.testing.strategies import array_sets

EXACT = 1e-9


def case_of(arrays: dict[str, Any]) -> Case:
    """The bandwidth problem of a loads-only instance, recomputed from its raw arrays."""
    f = facts(arrays)
    sent = np.array(f.loads, dtype=float)
    busy = np.zeros(sent.shape)
    snr = (np.empty(sent.shape), np.empty(sent.shape))
    for i in range(f.blocks):
        for k in range(f.devices):
            if sent[i, k] > 0:
                busy[i, k] = f.activation[k] + f.link_delay[k] + f.compute[k] * sent[i, k]
            snr[0][i, k] = f.power_down[k] * f.gain_down[i][k] / f.noise
            snr[1][i, k] = f.power_up[k] * f.gain_up[i][k] / f.noise
    return Case(sent, busy, (f.bits_down, f.bits_up), snr, np.array(f.low), np.array(f.high), f.total)


def allocate(arrays: dict[str, Any], allocation: str = "shared") -> wo.BandwidthAllocation:
    """Allocate for the loads of an instance, after checking that limits and budget are kept."""
    found = wo.allocate_bandwidth(wo.Problem(wo.Instance.from_arrays(**arrays), allocation=allocation))
    check_feasible(arrays, found.bandwidth)
    assert np.isfinite(found.kkt_residual)
    assert found.kkt_residual >= 0
    return found


def check_feasible(arrays: dict[str, Any], bandwidth: np.ndarray) -> None:
    """Sum, minimum and maximum of every row hold to 1e-12."""
    f = facts(arrays)
    assert np.isfinite(bandwidth).all()
    for row in np.atleast_2d(bandwidth).tolist():
        assert sum(row) <= f.total * (1 + 1e-12)
        for b, low, high in zip(row, f.low, f.high, strict=True):
            assert low * (1 - 1e-12) <= b <= high * (1 + 1e-12)


def assert_truthful(residual: float, suboptimality: float) -> None:
    """What is reported may not promise more than what is true, up to rounding."""
    assert suboptimality <= residual + 1e-10


# ------------------------------------------------------------------ against high precision


@pytest.mark.parametrize("seed", range(12))
def test_one_block_matches_high_precision_bisection(seed: int) -> None:
    """One block: the optimum by bisection in 60 digits, for gains 1e-20 to 1 and budgets 1 kHz to 10 GHz."""
    shape = random_shape(
        np.random.default_rng(seed), blocks=1, devices=1 + seed % 5, wide=seed % 3 > 0, limits=seed % 4 == 3
    )
    arrays = loads_arrays(shape, seed, idle=0.2 * (seed % 2))
    if not arrays["loads"].any():
        arrays["loads"][0, 0] = 7
    case = case_of(arrays)
    found = allocate(arrays)
    best = one_block_optimum(case)
    excess = float(case.latency(found.bandwidth) / best - 1)
    assert -1e-12 <= excess <= EXACT
    assert_truthful(found.kkt_residual, excess)


@pytest.mark.parametrize("seed", range(40))
def test_two_devices_match_high_precision_search(seed: int) -> None:
    """Several blocks, two devices: golden section over the one free share, in 60 digits."""
    shape = random_shape(
        np.random.default_rng(seed), blocks=2 + seed % 3, devices=2, wide=seed % 2 > 0, limits=seed % 5 == 4
    )
    arrays = loads_arrays(shape, seed, idle=0.0)
    case = case_of(arrays)
    found = allocate(arrays)
    excess = float(case.latency(found.bandwidth) / two_device_optimum(case) - 1)
    assert -1e-12 <= excess <= EXACT
    assert_truthful(found.kkt_residual, excess)


@pytest.mark.parametrize("chunk", range(6))
def test_many_devices_lie_within_1e_9_of_a_rigorous_bound(chunk: int) -> None:
    """Any sizes, shared and per block: weak duality in 60 digits proves every allocation optimal to 1e-9."""
    rng = np.random.default_rng(chunk)
    for number in range(60):
        blocks = int(rng.choice([1, 2, 3, 6]))
        shape = random_shape(
            rng, blocks=blocks, devices=int(rng.integers(1, 9)), wide=bool(number % 2), limits=number % 3 == 2
        )
        arrays = loads_arrays(shape, 1000 * chunk + number, idle=float(rng.choice([0.0, 0.3, 0.8])))
        if number % 10 == 9:
            equalise(arrays)
        case = case_of(arrays)
        shared = allocate(arrays).bandwidth
        rows = allocate(arrays, "per-block").bandwidth
        for part, point in [(case, shared), *((case.block(i), rows[i]) for i in range(blocks))]:
            ours = part.latency(point)
            assert ours - certified_bound(part, point) <= EXACT * ours, (shape, number)


def equalise(arrays: dict[str, Any]) -> None:
    """Make all devices alike: every optimality condition is degenerate then."""
    for name in ("gain_down", "gain_up", "power_down", "compute_time"):
        arrays[name] = np.full(np.shape(arrays[name]), np.ravel(arrays[name])[0])


LIMITS = {
    "minimums sum to the total": lambda rng, k, total: (rng.dirichlet(np.ones(k)) * total, None),
    "equal minimums sum to the total": lambda rng, k, total: (np.full(k, total / k), None),
    "minimum equals maximum": lambda rng, k, total: (rng.dirichlet(np.ones(k)) * total / 2,) * 2,
    "maximums sum to half of the total": lambda rng, k, total: (None, rng.dirichlet(np.ones(k)) * total / 2),
    "maximums sum to twice the total": lambda rng, k, total: (None, rng.dirichlet(np.ones(k)) * total * 2),
    "minimums leave a thousandth": lambda rng, k, total: (rng.dirichlet(np.ones(k)) * total * 0.999, None),
    "some are pinned": lambda rng, k, total: (
        np.where(np.arange(k) % 2, total / k / 2, 0.0),
        np.where(np.arange(k) % 2, total / k / 2, total),
    ),
}


@pytest.mark.parametrize("name", LIMITS)
def test_tight_limits_are_kept_and_used(name: str) -> None:
    """Binding limits, shared and per block: kept to 1e-12, and the rest is optimal by a rigorous bound."""
    rng = np.random.default_rng(list(LIMITS).index(name))
    for number in range(40):
        devices, blocks = int(rng.integers(1, 7)), int(rng.choice([1, 3]))
        shape = random_shape(rng, blocks=blocks, devices=devices, wide=number % 4 == 0, limits=False)
        arrays = loads_arrays(shape, number)
        low, high = LIMITS[name](rng, devices, arrays["total_bandwidth"])
        arrays["bandwidth_min"] = np.zeros(devices) if low is None else low
        if high is not None:
            arrays["bandwidth_max"] = np.maximum(high, arrays["bandwidth_min"])
        case = case_of(arrays)
        shared, rows = allocate(arrays).bandwidth, allocate(arrays, "per-block").bandwidth
        for part, point in [(case, shared), *((case.block(i), rows[i]) for i in range(blocks))]:
            ours = part.latency(np.maximum(point, 1e-250))
            slack = ours - certified_bound(part, np.maximum(point, 1e-250))
            assert slack <= EXACT * ours, (name, number)


def test_lone_device_leaves_the_others_their_minimum() -> None:
    """One loaded device with a cap above what the others' minimums leave: it gets the rest, no more."""
    arrays = loads_arrays(Shape(blocks=1, devices=3), 5)
    arrays["loads"] = np.array([[9, 0, 0]])
    total = arrays["total_bandwidth"]
    arrays.update(bandwidth_min=np.array([0.1, 0.2, 0.2]) * total, bandwidth_max=np.full(3, 0.7) * total)
    for allocation in ("shared", "per-block"):
        bandwidth = np.atleast_2d(allocate(arrays, allocation).bandwidth)[0]
        np.testing.assert_allclose(bandwidth / total, [0.6, 0.2, 0.2], rtol=1e-12)


def test_unloaded_devices_get_their_minimum_only() -> None:
    """Bandwidth of a device without load in any block is its minimum, and nothing where there is none."""
    arrays = loads_arrays(Shape(blocks=3, devices=4), 8, idle=0.0)
    arrays["loads"][:, 2] = 0
    assert allocate(arrays).bandwidth[2] == 0.0
    arrays["bandwidth_min"] = np.array([0.0, 0.0, 0.01, 0.0]) * arrays["total_bandwidth"]
    assert allocate(arrays).bandwidth[2] == arrays["bandwidth_min"][2]
    assert (allocate(arrays, "per-block").bandwidth[:, 2] == arrays["bandwidth_min"][2]).all()


def test_pairs_that_do_not_exist_load_no_device() -> None:
    """A kept column without an expert counts for nobody, least of all for the last device."""
    instance = wo.Instance.from_arrays(
        expert_ids=[[[0, 1], [1, -1]], [[0, -1], [1, 2]]], top_k=2, compute_time=[1e-4, 2e-4, 3e-4],
        gate_weights=[[[0.6, 0.4], [1.0, 0.0]], [[1.0, 0.0], [0.6, 0.4]]], gain_down=3 * [1e-9],
        gain_up=3 * [1e-9], power_down=1.0, power_up=0.1, noise_density=4e-21, total_bandwidth=3e6,
        bits_down=1e4, bits_up=1e4,
    )  # fmt: skip
    problem = wo.Problem(instance, allocation="per-block")
    everything = np.ones((2, 2, 2), dtype=bool)
    found, want = (wo.allocate_bandwidth(problem, keep) for keep in (everything, problem.top_k_keep))
    np.testing.assert_array_equal(found.bandwidth, want.bandwidth)


def test_no_loads_at_all_cost_nothing() -> None:
    """Zero loads everywhere: finite shares, latency zero, residual zero."""
    arrays = loads_arrays(Shape(blocks=2, devices=3, activation=True, link_delay=True), 3)
    arrays["loads"] = np.zeros((2, 3), dtype=int)
    for allocation in ("shared", "per-block"):
        found = allocate(arrays, allocation)
        assert found.kkt_residual == 0.0
        assert price(arrays, None, found.bandwidth).latency == 0.0


def test_single_device_takes_the_whole_budget() -> None:
    """One device: all of the budget, or its cap."""
    arrays = loads_arrays(Shape(blocks=3, devices=1), 11, idle=0.0)
    assert allocate(arrays).bandwidth[0] == pytest.approx(arrays["total_bandwidth"], rel=1e-9)
    arrays["bandwidth_max"] = np.array([0.25 * arrays["total_bandwidth"]])
    assert allocate(arrays).bandwidth[0] == pytest.approx(0.25 * arrays["total_bandwidth"], rel=1e-9)


def test_equal_devices_share_equally() -> None:
    """Four alike devices with equal loads: a quarter each, whatever the number of blocks."""
    for blocks in (1, 2, 5):
        arrays = loads_arrays(Shape(blocks=blocks, devices=4), 2, idle=0.0)
        equalise(arrays)
        arrays["loads"] = np.full((blocks, 4), 6)
        np.testing.assert_allclose(
            allocate(arrays).bandwidth / arrays["total_bandwidth"], 0.25, rtol=1e-6 if blocks > 1 else 1e-9
        )


@pytest.mark.parametrize("seed", range(30))
def test_residual_is_truthful(seed: int) -> None:
    """The residual bounds the true suboptimality from above, and is itself small."""
    shape = random_shape(
        np.random.default_rng(seed), blocks=1 + seed % 3, devices=2 + seed % 4, wide=True, limits=False
    )
    arrays = loads_arrays(shape, seed, idle=0.1)
    case = case_of(arrays)
    found = allocate(arrays)
    ours = case.latency(found.bandwidth)
    if ours > 0:
        better = random_search(case, found.bandwidth, seed)
        assert float(ours / better - 1) <= found.kkt_residual + 1e-12
    assert found.kkt_residual <= EXACT


def random_search(case: Case, start: np.ndarray, seed: int) -> mp.mpf:
    """Best of many perturbed feasible points: an optimum cannot be beaten by any of them."""
    rng = np.random.default_rng(seed)
    best = case.latency(start)
    for scale in (1.0, 1e-1, 1e-3, 1e-6, 1e-9):
        for _ in range(12):
            point = start * np.exp(scale * rng.standard_normal(start.size))
            point *= case.total / max(point.sum(), case.total)
            best = min(best, case.latency(point))
    return best


def test_residual_grows_with_a_worse_point() -> None:
    """The certificate used as an oracle here is not vacuous: equal shares fail it by a wide margin."""
    arrays = loads_arrays(Shape(blocks=2, devices=4), 21, idle=0.0)
    case = case_of(arrays)
    equal = np.full(4, case.total / 4)
    assert float(1 - certified_bound(case, equal) / case.latency(equal)) > 1e-3


# ------------------------------------------------------------------ token-level properties


@given(array_sets(), st.integers(0, 1000), st.sampled_from(["expert", "device"]))
def test_allocation_is_never_slower_than_equal_shares(
    arrays: dict[str, Any], seed: int, dispatch: str
) -> None:
    """Any selection, both dispatch rules: feasible, no slower than equal shares, per block faster yet."""
    problem = wo.Problem(wo.Instance.from_arrays(**arrays), dispatch=dispatch)
    keep = random_keep(problem, seed)
    shared = wo.allocate_bandwidth(problem, keep).bandwidth
    rows = wo.allocate_bandwidth(problem.replace(allocation="per-block"), keep).bandwidth
    check_feasible(arrays, shared)
    check_feasible(arrays, rows)
    latency = [price(arrays, keep, b, dispatch=dispatch).latency for b in (shared, rows)]
    equal = price(arrays, keep, problem.uniform_bandwidth, dispatch=dispatch).latency
    assert latency[0] <= equal * (1 + 1e-11)
    assert latency[1] <= latency[0] * (1 + 1e-9)


def test_fixed_allocation_is_passed_through() -> None:
    """Allocation "fixed" optimises nothing: the given shares, or equal ones; none on a measured link."""
    arrays = loads_arrays(Shape(blocks=2, devices=3), 4)
    inst = wo.Instance.from_arrays(**arrays)
    given_shares = np.array([0.5, 0.3, 0.1]) * arrays["total_bandwidth"]
    found = wo.allocate_bandwidth(wo.Problem(inst, allocation="fixed", bandwidth=given_shares))
    assert found.bandwidth.tolist() == given_shares.tolist()
    assert np.isnan(found.kkt_residual)
    equal = wo.allocate_bandwidth(wo.Problem(inst, allocation="fixed")).bandwidth
    np.testing.assert_allclose(equal, arrays["total_bandwidth"] / 3, rtol=1e-14)
    measured = wo.Instance.from_arrays(**measured_arrays(Shape(), 4))
    problem = wo.Problem(measured, allocation="fixed")
    assert wo.allocate_bandwidth(problem, problem.top_k_keep).bandwidth is None


def test_unreachable_device_is_refused_by_name() -> None:
    """A selection that needs a device without a channel is refused, with block, device and transfers."""
    arrays = {
        "expert_ids": [[[0, 1]], [[0, 1]]], "gate_weights": [[[0.6, 0.4]], [[0.6, 0.4]]],
        "compute_time": [1e-4, 1e-4], "gain_down": [1e-9, 0.0], "gain_up": [1e-9, 1e-9], "power_down": 1.0,
        "power_up": 1.0, "noise_density": 4e-21, "total_bandwidth": 1e6, "bits_down": 1e3, "bits_up": 1e3,
    }  # fmt: skip
    problem = wo.Problem(wo.Instance.from_arrays(**arrays))
    with pytest.raises(wo.InputError) as caught:
        wo.allocate_bandwidth(problem, np.array([[[True, False]], [[True, True]]]))
    rule = "the selection uses a device that cannot be reached"
    assert str(caught.value) == f"keep[1, 1] = 1: {rule}"


# ------------------------------------------------------------------ against general solvers

TIGHT = 1e-6


def normal_case(
    rng: np.random.Generator, seed: int, blocks: int, devices: int, *, idle: float = 0.15
) -> tuple[dict[str, Any], Case]:
    """A problem with everyday numbers, on which general solvers can do their best."""
    shape = Shape(
        blocks=blocks, devices=devices, activation=seed % 2 == 0, link_delay=seed % 3 == 0, one_way=False
    )
    arrays = loads_arrays(shape, seed, idle=idle)
    arrays["loads"][rng.integers(blocks), rng.integers(devices)] = 50
    for name in ("gain_down", "gain_up"):
        arrays[name] = np.clip(arrays[name], 1e-10, 1e-7)
    return arrays, case_of(arrays)


def agreement(cases: list[tuple[float, float]]) -> float:
    """Share of (ours, theirs) within 1e-6; ours must never be worse by more."""
    ours, theirs = np.array(cases).T
    worst = int(np.argmax(ours / theirs))
    assert ours[worst] <= theirs[worst] * (1 + TIGHT), worst
    return float(np.mean(np.abs(theirs / ours - 1) <= TIGHT))


def slsqp(case: Case) -> np.ndarray:
    """The epigraph form in normalised units by SciPy's SLSQP, with analytic derivatives."""
    blocks, devices = case.sent.shape
    equal = float(sum(np.max(times(case, np.full(devices, 1.0 / devices))[0], axis=1)))
    rows, columns = np.nonzero(case.sent)
    index = np.arange(rows.size)

    def slack(x: np.ndarray) -> np.ndarray:
        t, _ = times(case, x[:devices])
        return np.append(x[devices + rows] - t[rows, columns] / equal, 1.0 - x[:devices].sum())

    def slope(x: np.ndarray) -> np.ndarray:
        _, fall = times(case, x[:devices])
        matrix = np.zeros((rows.size + 1, devices + blocks))
        matrix[index, devices + rows] = 1.0
        matrix[index, columns] = -fall[rows, columns] / equal
        matrix[-1, :devices] = -1.0
        return matrix

    start = np.full(devices, 1.0 / devices)
    x = np.concatenate([start, times(case, start)[0].max(axis=1) / equal])
    cost = np.concatenate([np.zeros(devices), np.ones(blocks)])
    found = minimize(
        lambda x: x[devices:].sum(), x, jac=lambda x: cost, method="SLSQP",
        bounds=[(1e-7, 1.0)] * devices + [(0.0, None)] * blocks,
        constraints={"type": "ineq", "fun": slack, "jac": slope}, options={"maxiter": 300, "ftol": 1e-14},
    )  # fmt: skip
    return np.asarray(found.x[:devices])


def times(case: Case, share: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Device times and their slopes over shares of the budget, in doubles."""
    b = np.maximum(share, 1e-9) * case.total
    t, fall = case.busy.copy(), np.zeros(case.busy.shape)
    for bits, c in zip(case.bits, case.snr_hz, strict=True):
        x = c / b
        seconds = case.sent * bits * np.log(2.0) / (b * np.log1p(x))
        t += seconds
        fall -= seconds / b * (1 - x / ((1 + x) * np.log1p(x)))
    return t, fall * case.total


def to_budget(case: Case, share: np.ndarray) -> np.ndarray:
    """A solver's shares made feasible: positive, and summing to the budget exactly."""
    point = np.maximum(share, 1e-12)
    return point / point.sum() * case.total


def latency_of(arrays: dict[str, Any], bandwidth: np.ndarray) -> float:
    return float(price(arrays, None, bandwidth).latency)


SHAPES = [(1, 3), (1, 5), (2, 3), (3, 4)]


@pytest.mark.parametrize(("blocks", "devices"), SHAPES)
def test_slsqp_agrees_or_is_worse(blocks: int, devices: int) -> None:
    """250 problems of each shape by SLSQP: ours agrees to 1e-6 or is better, and mostly it agrees."""
    rng = np.random.default_rng(1)
    seen = []
    for seed in range(250):
        arrays, case = normal_case(rng, seed, blocks, devices)
        ours = latency_of(arrays, allocate(arrays).bandwidth)
        seen.append((ours, latency_of(arrays, to_budget(case, slsqp(case)))))
    assert agreement(seen) >= 0.95


class ConicModel:
    """The bandwidth problem as a conic program, compiled once per shape; shares and times near one."""

    def __init__(self, blocks: int, devices: int) -> None:
        self.share = cp.Variable(devices, nonneg=True)
        rates = [cp.Variable(devices, nonneg=True) for _ in range(2)]
        # b ln(1 + c/b) = b ln(((b + c) / m) / b) + b ln m with m near (b + c) / b keeps the cone near one.
        self.inverse, self.offset, self.log = (
            [cp.Parameter(devices, nonneg=True) for _ in range(2)] for _ in range(3)
        )
        self.unit = [cp.Parameter(devices, nonneg=True) for _ in range(2)]
        self.work = [cp.Parameter((blocks, devices), nonneg=True) for _ in range(2)]
        self.busy = cp.Parameter((blocks, devices), nonneg=True)
        deadline = cp.Variable(blocks)
        limits = [cp.sum(self.share) <= 1]
        for way, rate in enumerate(rates):
            scaled = cp.multiply(self.inverse[way], self.share) + self.offset[way]
            nats = cp.multiply(self.log[way], self.share) - cp.rel_entr(self.share, scaled)
            limits.append(cp.multiply(self.unit[way], rate) <= nats)
        for i in range(blocks):
            sent = sum(
                cp.multiply(work[i], cp.inv_pos(rate)) for work, rate in zip(self.work, rates, strict=True)
            )
            limits.append(self.busy[i] + sent <= deadline[i])
        self.problem = cp.Problem(cp.Minimize(cp.sum(deadline)), limits)
        assert self.problem.is_dpp()

    def solve(self, case: Case) -> np.ndarray:
        devices = case.sent.shape[1]
        equal = np.full(devices, 1.0 / devices)
        unit = times(case, equal)[0].max(axis=1).sum()
        for way in range(2):
            snr = case.snr_hz[way][0] / case.total
            scale = 1 + snr * devices
            self.inverse[way].value, self.offset[way].value = 1 / scale, snr / scale
            self.log[way].value = np.log(scale)
            # Rates in units of those at equal shares.
            self.unit[way].value = np.log1p(snr * devices) / devices
            seconds = case.bits[way] * np.log(2.0) / case.total / self.unit[way].value
            self.work[way].value = case.sent * seconds / unit
        self.busy.value = case.busy / unit
        self.problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-10, tol_gap_rel=1e-10, tol_feas=1e-10)
        return np.asarray(self.share.value)


@pytest.mark.parametrize(("blocks", "devices"), SHAPES)
@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")
def test_clarabel_agrees_or_is_worse(blocks: int, devices: int) -> None:
    """250 problems of each shape by CVXPY and Clarabel: ours agrees to 1e-6 or is better."""
    rng = np.random.default_rng(2)
    model = ConicModel(blocks, devices)
    seen = []
    for seed in range(250):
        # A rate nobody needs has no best value, which costs the conic solver its digits.
        arrays, case = normal_case(rng, 10_000 + seed, blocks, devices, idle=0.0)
        try:
            share = model.solve(case)
        except cp.SolverError:
            continue
        ours = latency_of(arrays, allocate(arrays).bandwidth)
        seen.append((ours, latency_of(arrays, to_budget(case, share))))
    assert len(seen) >= 240
    assert agreement(seen) >= 0.95


def test_scaling_laws_of_the_optimum() -> None:
    """Twice the payload over twice the SNR and budget takes the same time; twice the times, twice as long."""
    arrays = loads_arrays(Shape(blocks=3, devices=4, activation=True), 6, idle=0.0)
    base = latency_of(arrays, allocate(arrays).bandwidth)
    wider = {**arrays, "total_bandwidth": 2 * arrays["total_bandwidth"]}
    for name in ("gain_down", "gain_up", "bits_down", "bits_up"):
        wider[name] = 2 * arrays[name]
    assert latency_of(wider, allocate(wider).bandwidth) == pytest.approx(base, rel=1e-10)
    slower = dict(arrays)
    for name in ("compute_time", "activation_time", "bits_down", "bits_up"):
        slower[name] = 2 * arrays[name]
    assert latency_of(slower, allocate(slower).bandwidth) == pytest.approx(2 * base, rel=1e-10)


def test_permuting_devices_permutes_the_shares() -> None:
    """Device order does not matter."""
    arrays = loads_arrays(replace(Shape(), blocks=3, devices=5, limits=True), 13, idle=0.1)
    order = np.array([3, 0, 4, 1, 2])
    turned = dict(arrays)
    for name, value in arrays.items():
        if np.ndim(value) > 0:
            turned[name] = np.asarray(value)[..., order]
    np.testing.assert_allclose(allocate(turned).bandwidth, allocate(arrays).bandwidth[order], rtol=1e-5)


def test_residual_of_one_block_is_the_gap_of_a_bad_point() -> None:
    """The kernel's own residual, at deliberately bad shares, bounds the true suboptimality and is not 0."""
    from wdmoe_opt.kernels.block_bandwidth import _priced, block_bandwidth
    from wdmoe_opt.kernels.link import floor_time

    rng = np.random.default_rng(4)
    for _ in range(40):
        sent = rng.integers(1, 50, 4).astype(float)
        busy = rng.random(4) * 1e-3
        c_down, c_up = 10.0 ** rng.uniform(6, 9, (2, 4))
        low, high, total = np.zeros(4), np.full(4, np.inf), 1e8
        best = np.empty(4)
        latency, residual = block_bandwidth(sent, busy, 3e4, c_down, 3e4, c_up, low, high, total, best)
        assert 0 <= residual < 1e-9
        shares = best * rng.uniform(0.5, 1.5, 4)
        shares *= total / shares.sum()
        floors = np.array([busy[k] + sent[k] * floor_time(3e4, c_down[k], 3e4, c_up[k]) for k in range(4)])
        worse, gap = _priced(sent, floors, 3e4, c_down, 3e4, c_up, low, high, total, shares, 0.0)
        assert worse > latency
        assert (worse - latency) / worse <= gap + 1e-12
        assert gap < 1


@pytest.mark.parametrize("part", [1e-12, 1e-9, 1e-6, 1e-4])
@pytest.mark.parametrize("allocation", ["shared", "per-block"])
def test_minimums_that_leave_next_to_nothing(part: float, allocation: str) -> None:
    """No NaN, limits kept, never slower than equal shares; a small residual is a true one."""
    inst = wo.load_instance("gpt-oss-20b-decode", blocks=3)
    low = np.zeros(8)
    low[0] = inst.total_bandwidth * (1 - part)
    problem = wo.Problem(inst.replace(bandwidth_min=low), allocation=allocation)
    found, equal = wo.solve(problem, "topk"), wo.solve(problem, "topk-uniform")
    assert found.feasible
    assert np.isfinite(found.bandwidth).all()
    assert found.latency <= equal.latency * (1 + 1e-9)
    if allocation == "per-block" or part >= 1e-6:
        assert found.kkt_residual < 1e-8


def test_minimums_that_leave_nothing_are_reported() -> None:
    """A device that the minimums leave no bandwidth makes the point infeasible, without NaN."""
    inst = wo.load_instance("gpt-oss-20b-decode", blocks=2)
    problem = wo.Problem(inst.replace(bandwidth_min=np.r_[inst.total_bandwidth, np.zeros(7)]))
    found = wo.solve(problem, "topk")
    assert not found.feasible
    assert found.latency == np.inf
    assert np.isfinite(found.bandwidth).all()


def test_vanishing_bandwidth_is_slow() -> None:
    """A share of 1e-300 Hz takes practically forever; its SNR overflows, its rate does not."""
    problem = wo.Problem(wo.load_instance("gpt-oss-20b-decode", blocks=1))
    priced = wo.evaluate(problem, problem.top_k_keep, np.full(8, 1e-300))
    assert priced.latency > 1e290
