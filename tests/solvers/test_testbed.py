"""Algorithm 2 against a slow oracle that drops one token at a time."""

from __future__ import annotations

import numpy as np
import pytest

import wdmoe_opt as wo
from wdmoe_opt.solvers.testbed import Algorithm2, relieve


def oracle(keep, ids, shares, hosts, estimates, threshold, repeat, by_device):
    """One drop after another, everything computed anew from plain lists each time."""
    keep = [list(map(bool, row)) for row in keep]
    start = [[c for c in range(len(row)) if row[c]] for row in keep]
    lightest = [min(cols, key=lambda c: (shares[j][c], ids[j][c])) for j, cols in enumerate(start)]
    devices = len(estimates)

    def finishing():
        tokens = [0] * devices
        for j, row in enumerate(keep):
            used = [hosts[ids[j][c]] for c in range(len(row)) if row[c]]
            for k in set(used) if by_device else used:
                tokens[k] += 1
        return [tokens[k] * estimates[k] if tokens[k] else 0.0 for k in range(devices)]

    def droppable(j, k):
        c = lightest[j]
        there = [q for q in start[j] if hosts[ids[j][q]] == k]
        return (
            keep[j][c]
            and len(start[j]) > 1
            and shares[j][c] < threshold
            and hosts[ids[j][c]] == k
            and (not by_device or len(there) == 1)
        )

    while True:
        times = finishing()
        last = times.index(max(times))
        able = sorted(
            (j for j in range(len(keep)) if droppable(j, last)), key=lambda j: shares[j][lightest[j]]
        )
        if not able:
            return np.array(keep)
        for j in able:
            keep[j][lightest[j]] = False
            now = finishing()
            if now[last] < max([t for k, t in enumerate(now) if k != last], default=0.0):
                break
        if not repeat:
            return np.array(keep)


def routing(rng, tokens, experts, columns):
    ids = rng.random((tokens, experts)).argsort(axis=1)[:, :columns]
    weights = -np.sort(-rng.dirichlet(np.full(columns, 0.7), tokens), axis=1)
    if rng.random() < 0.3:
        weights = np.sort(np.round(weights, 1) + 0.05, axis=1)[:, ::-1]  # ties
    return ids, weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("by_device", [False, True])
@pytest.mark.parametrize("repeat", [False, True])
@pytest.mark.parametrize("seed", range(25))
def test_agrees_with_the_oracle(seed, repeat, by_device):
    rng = np.random.default_rng(seed)
    devices, experts = int(rng.integers(1, 5)), int(rng.integers(3, 7))
    ids, shares = routing(rng, int(rng.integers(1, 40)), experts, int(rng.integers(1, 4)))
    hosts = rng.integers(0, devices, experts)
    estimates = rng.choice([1e-3, 2e-3, 5e-3, np.inf], devices, p=[0.4, 0.3, 0.2, 0.1])
    threshold = float(rng.choice([0.0, 0.2, 0.35, 1.0]))
    keep = np.ones(ids.shape, dtype=bool)
    expected = oracle(keep, ids.tolist(), shares.tolist(), hosts, estimates, threshold, repeat, by_device)
    steps = relieve(keep, ids, shares, hosts, estimates, Algorithm2(threshold, repeat), by_device)
    np.testing.assert_array_equal(keep, expected)
    assert keep.any(axis=1).all()
    assert sum(step["dropped"] for step in steps) == (~keep).sum()


def instance(**changes):
    rng = np.random.default_rng(3)
    routed = [routing(rng, 30, 4, 2) for _ in range(2)]
    fields = {
        "expert_ids": np.stack([ids for ids, _ in routed]),
        "gate_weights": np.stack([shares for _, shares in routed]),
        "expert_device": [0, 0, 1, 2],
        "compute_time": [1e-4, 3e-4, 2e-4, 2e-4],
        "token_time_link": [1e-3, 4e-3, 1e-3],
    }
    return wo.Instance.from_arrays(**(fields | changes))


def test_default_estimates_are_the_true_times():
    problem = wo.Problem(instance(), allocation="fixed")
    known = wo.solve(problem, "wdmoe-testbed")
    told = wo.solve(problem, "wdmoe-testbed", estimates=[1.2e-3, 4.2e-3, 1.2e-3])
    np.testing.assert_array_equal(known.keep, told.keep)
    assert known.latency < wo.solve(problem, "topk-uniform").latency
    assert {step["device"] for step in known.trace} == {1}


def test_wrong_estimates_relieve_another_device():
    problem = wo.Problem(instance(), allocation="fixed")
    misled = wo.solve(problem, "wdmoe-testbed", estimates=[[9.0, 1.0, 1.0], [1.0, 1.0, 9.0]])
    assert [step["device"] for step in misled.trace] == [0, 2]
    assert misled.latency == wo.solve(problem, "topk-uniform").latency


def test_repeat_never_finishes_later_by_its_own_estimates():
    problem = wo.Problem(instance(), allocation="fixed")
    once = wo.solve(problem, "wdmoe-testbed")
    again = wo.solve(problem, "wdmoe-testbed", repeat=True)
    assert again.latency <= once.latency
    assert again.keep.sum() <= once.keep.sum()


def test_threshold_zero_is_plain_top_k():
    problem = wo.Problem(instance(), allocation="fixed")
    assert wo.solve(problem, "wdmoe-testbed", threshold=0.0).keep.all()


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"estimates": [1.0, 2.0]}, r"estimates: must have shape \(3,\) or \(2, 3\), got \(2,\)"),
        ({"estimates": [1.0, -2.0, 1.0]}, r"estimates\[0, 1\] = -2.0|estimates\[1\] = -2.0"),
        ({"threshold": -1.0}, "threshold = -1.0"),
        ({"repeat": 1}, "repeat = 1: must be True or False"),
        ({"tie": "first"}, "tie = 'first'"),
    ],
)
def test_options_are_checked(option, words):
    with pytest.raises(wo.InputError, match=words):
        wo.solve(wo.Problem(instance(), allocation="fixed"), "wdmoe-testbed", **option)
