"""Certificates for tests: with random prices, and with prices read off a good point."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from wdmoe_opt import Instance, Problem, Solution
from wdmoe_opt.certificates.certificate import Certificate
from wdmoe_opt.certificates.check import deadline_margins, inspect
from wdmoe_opt.certificates.facts import Facts, facts_of
from wdmoe_opt.certificates.tree import ROOT, Tree
from wdmoe_opt.testing.arrays import loads_arrays, measured_arrays, random_arrays, random_shape


def random_problem(seed: int, **fixed: Any) -> Problem:
    """Tiny problem with every option on or off by chance; floors within reach of every token."""
    rng = np.random.default_rng(seed)
    kind = rng.choice(["radio", "radio", "radio", "radio", "measured", "loads"]) if not fixed else "radio"
    shape = random_shape(rng, tokens=int(rng.integers(1, 5)), blocks=int(rng.integers(1, 3)))
    shape = replace(shape, devices=min(shape.devices, 3), zero_weights=False, **fixed)
    if kind == "loads":
        inst = Instance.from_arrays(**loads_arrays(shape, seed))
        return Problem(inst, allocation=str(rng.choice(["shared", "per-block", "fixed"])))
    arrays = measured_arrays(shape, seed) if kind == "measured" else random_arrays(shape, seed)
    inst = Instance.from_arrays(**arrays)
    allocation = "fixed" if kind == "measured" else str(rng.choice(["shared", "per-block", "fixed"]))
    request: dict[str, Any] = {
        "allocation": allocation,
        "dispatch": str(rng.choice(["expert", "device"])),
        "min_retention": float(rng.choice([0.0, 0.6, 0.9])),
        "min_token_retention": float(rng.choice([0.0, 0.0, 0.5])),
        "max_experts": int(rng.integers(1, 4)) if rng.random() < 0.4 else None,
        "candidates": inst.columns if rng.random() < 0.5 else "top-k",
    }
    return Problem(inst, **request)


def random_prices(problem: Problem, seed: int) -> dict[str, np.ndarray]:
    """Prices of about the right sizes, whatever they prove."""
    rng = np.random.default_rng(seed)
    inst = problem.instance
    size = (inst.blocks, inst.devices)
    t = problem.tables
    scale = 10.0 ** rng.uniform(-5, -2, size)
    wake = 10.0 ** rng.uniform(-5, -2, (inst.blocks, inst.experts)) * (rng.random() < 0.5)
    prices = {
        "send": scale * np.where(rng.random(size) < 0.05, -1, 1),
        "work": 10.0 ** rng.uniform(-2, 1, size) * (rng.random() < 0.7),
        "wake": wake,
        "retention": 10.0 ** rng.uniform(-4, -1, inst.blocks) * (rng.random() < 0.7),
        "bandwidth": np.repeat(10.0 ** rng.uniform(-12, -8, (inst.blocks, 1)), inst.devices, axis=1),
        "points": rng.uniform(0.05, 1, size) * max(t.total, 1.0),
    }
    if problem.selectable and wake.any():
        prices["share"] = _shares(problem, wake, rng.random(inst.expert_ids.shape))
    return prices


def _shares(problem: Problem, wake: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """Split every expert's price over its allowed pairs in proportion to ``parts``."""
    parts = np.where(problem.allowed, parts + 1e-9, 0.0)
    ids = np.maximum(problem.instance.expert_ids, 0)
    total = np.zeros(wake.shape)
    rows = np.broadcast_to(np.arange(len(wake))[:, None, None], ids.shape)
    np.add.at(total, (rows, ids), parts)
    return parts * (wake / np.where(total > 0, total, 1.0))[rows, ids]


def near_prices(problem: Problem, point: Solution) -> dict[str, np.ndarray]:
    """Prices by which a good point pays for its loads: multipliers of its slowest devices."""
    inst, e = problem.instance, point.evaluation
    t = problem.tables
    blocks, devices = e.device_time.shape
    b = np.broadcast_to(
        t.total / devices if point.bandwidth is None else point.bandwidth, e.device_time.shape
    )
    b = np.maximum(b, 1e-9 * max(t.total, 1.0))
    fall = np.maximum(-_link_slope(problem, b), 1e-300)
    # A block without any load has no latency; any prices do.
    latency = np.maximum(e.block_latency, 1e-9)[:, None]
    slow = e.device_time >= 0.999 * latency
    if problem.allocation == "fixed":
        multiplier = np.exp(60 * (e.device_time / latency - 1))
    else:
        multiplier = np.where(slow & (e.transfers > 0), 1 / (np.maximum(e.transfers, 1) * fall), 0.0)
    multiplier[multiplier.sum(axis=1) == 0] = 1.0
    multiplier /= multiplier.sum(axis=1, keepdims=True)
    link = np.where(np.isfinite(e.link_time), e.link_time, 1e3)
    compute = multiplier[:, t.expert_device] * t.activation
    nu = (multiplier * e.transfers * fall).max(axis=1)
    prices = {
        "send": multiplier * link,
        "work": multiplier,
        "wake": compute,
        "retention": np.zeros(blocks),
        "bandwidth": np.repeat(nu[:, None], devices, axis=1),
        "points": b,
    }
    if problem.selectable and inst.expert_ids is not None:
        assert point.keep is not None
        prices["share"] = _shares(problem, compute, point.keep * 1.0)
        prices["retention"] = _best_retention(problem, prices)
    return prices


def _link_slope(problem: Problem, b: np.ndarray) -> np.ndarray:
    if problem.instance.token_time_link is not None:
        return np.zeros(b.shape)
    t = problem.tables

    def time(at: np.ndarray) -> np.ndarray:
        total = np.zeros(at.shape)
        with np.errstate(divide="ignore"):
            for bits, c in ((t.bits_down, t.c_down), (t.bits_up, t.c_up)):
                if bits > 0:
                    total += bits * np.log(2) / (at * np.log1p(c / at))
        return total

    with np.errstate(invalid="ignore"):
        slope = (time(b * 1.0001) - time(b * 0.9999)) / (2e-4 * b)
    return np.where(np.isfinite(slope), slope, -1.0)


def _best_retention(problem: Problem, prices: dict[str, np.ndarray]) -> np.ndarray:
    """Price of retention of every block that gives the token part its largest value."""
    from wdmoe_opt.certificates.tokens import TokenPrices, token_bound

    facts = facts_of(problem)
    share = prices["share"].transpose(2, 0, 1)[: facts.pair.shape[0]]
    top = 100 * (prices["send"].max(axis=1) + prices["work"].max(axis=1) * problem.tables.compute.max())
    best, value = np.zeros(len(top)), np.full(len(top), -np.inf)
    for factor in np.r_[0.0, np.geomspace(1e-6, 1, 200)]:
        mu = factor * top
        bound = token_bound(facts, TokenPrices(prices["send"], prices["work"], mu, share))
        best, value = np.where(bound > value, mu, best), np.maximum(bound, value)
    return best


def deadline_certificate(problem: Problem, prices: dict[str, np.ndarray], top: np.ndarray) -> Certificate:
    """The largest deadlines up to ``top`` that the prices prove; 0 where they prove none."""
    return largest_deadlines(facts_of(problem), prices, top)


def largest_deadlines(facts: Facts, prices: dict[str, np.ndarray], top: np.ndarray) -> Certificate:
    """By bisection, all blocks at once."""

    def at(deadline: np.ndarray) -> Certificate:
        return Certificate(form="deadline", deadline=deadline, **prices)

    low, high = np.zeros(len(top)), np.array(top, dtype=float)
    for _ in range(60):
        middle = (low + high) / 2
        passes = deadline_margins(facts, at(middle)) > 0
        low, high = np.where(passes, middle, low), np.where(passes, high, middle)
    return at(low)


def shared_certificate(
    problem: Problem, prices: dict[str, np.ndarray], floor: Certificate, latency: np.ndarray, points: int = 24
) -> Certificate:
    """The prices in shared form: a grid from the latency down to the floor; the best of some offsets."""
    assert floor.deadline is not None
    claims = replace(floor, deadline=floor.deadline) if (floor.deadline > 0).any() else None
    low = floor.deadline * (1 - 1e-9)
    best, value = None, -np.inf
    for share in (0.0, 0.5, 0.9):
        offset = np.where(low > 0, share * low, -latency * 1e-3)
        last = (1 + 1e-6) / np.maximum(np.maximum(low, 0) - offset, 1e-12)
        first = 1 / np.maximum(4 * latency - offset, 1e-12)
        steps = first[:, None] * (last / first)[:, None] ** np.linspace(0, 1, points)
        grid = np.maximum.accumulate(np.concatenate([np.zeros((len(low), 1)), steps], axis=1), axis=1)
        # Prices in units of a block's own latency: at the optimum x pi is the part that bandwidth pays.
        scaled = {k: v * (latency - offset).reshape(-1, *[1] * (v.ndim - 1)) for k, v in prices.items()}
        scaled.update(points=prices["points"], bandwidth=prices["bandwidth"])
        c = Certificate(form="shared", offset=offset, grid=grid, floor=claims, **scaled)
        bound = inspect(problem, c).bound
        if best is None or bound > value:
            best, value = c, bound
    assert best is not None
    return best


def mean_certificate(prices: dict[str, np.ndarray]) -> Certificate:
    """The prices in mean form: all of a block scaled so that its weights sum to just below 1.

    Prices of bandwidth belong to seconds of latency, as they do.
    """
    total = np.maximum(prices["work"].sum(axis=1), 1e-12) * (1 + 1e-12)
    scaled = {
        name: array / total.reshape(-1, *[1] * (array.ndim - 1))
        for name, array in prices.items()
        if name not in ("bandwidth", "points")
    }
    return Certificate(form="mean", bandwidth=prices["bandwidth"], points=prices["points"], **scaled)


# ---------------------------------------------------------------------- restrictions


class Split(NamedTuple):
    """One side of a split of a block."""

    kind: int
    second: int
    third: int
    value: float
    side: int


def chain(block: int, path: tuple[Split, ...]) -> tuple[Tree, int]:
    """A tree with one path, and the path's last node."""
    parent, kind, index, value, side = [-1], [ROOT], [[block, -1, -1]], [0.0], [0]
    node = 0
    for split in path:
        for one in (0, 1):
            parent.append(node)
            kind.append(split.kind)
            index.append([block, split.second, split.third])
            value.append(split.value)
            side.append(one)
        node = len(parent) - 2 + split.side
    leaves = {n: "empty" for n in range(len(parent)) if n not in parent}
    return Tree(parent=parent, kind=kind, index=index, value=value, side=side, leaves=leaves), node
