"""Made-up benchmark rows for tests of the report: FAKE numbers, drawn from a random generator.

Nothing here was measured; no page made of these rows may be shown as a result.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd

MACHINE = json.dumps({"cpu": "FAKE CPU", "cores": 2, "python": "3.11"})
VERSIONS = json.dumps({"wdmoe_opt": "0.0-fake", "numpy": "0.0-fake"})


def row(**fields: Any) -> dict[str, Any]:
    """One row, with everything that a test does not care about filled in."""
    base: dict[str, Any] = {
        "suite": "fake", "case": "a", "group": "g", "axis": "", "axis_value": np.nan, "seed": 0,
        "solver": "certified", "options": "{}", "kind": "ours", "time_limit_s": 60.0, "rel_gap": 1e-3,
        "blocks": 1, "tokens": 128, "devices": 4, "experts": 8, "columns": 2, "pairs": 256,
        "objective": "latency", "allocation": "shared", "dispatch": "expert", "candidates": "top-k",
        "min_retention": 0.9, "task": "joint", "state": "ok", "message": "", "reason": "heuristic",
        "limit": "", "detail": "", "value": 1.0, "retention": 0.9, "feasible": True, "violations": "",
        "lower_bound": -np.inf, "bound_kind": "none", "gap": np.inf, "claims_optimal": False,
        "claim_holds": "", "device_time": "", "cold_s": 1.0, "compile_s": np.nan, "warm_s": 0.01,
        "warm_q1_s": 0.0099, "warm_q3_s": 0.0101, "warm_best_s": 0.0098, "repeats": 5, "metric_s": 1e-4,
        "machine": MACHINE, "versions": VERSIONS, "started": "2000-01-01T00:00:00",
    }  # fmt: skip
    base |= fields
    base.setdefault("method", base["solver"])
    base.setdefault("latency_s", base["value"] if base["objective"] == "latency" else np.nan)
    return base


def frame(*rows: dict[str, Any]) -> pd.DataFrame:
    """Rows as a frame."""
    return pd.DataFrame([row(**fields) for fields in rows])


#: Label: kind, seconds at 128 tokens, growth, excess over the optimum, time limit, gap asked.
_JOINT: dict[str, tuple[str, float, float, float, float, float]] = {
    "topk-uniform": ("baseline", 3e-5, 0.9, np.nan, 60, 1e-3),
    "topk": ("baseline", 8e-5, 0.9, np.nan, 60, 1e-3),
    "wdmoe": ("baseline", 4e-4, 1.0, 0.06, 60, 1e-3),
    "wdmoe-selection": ("baseline", 3e-4, 1.0, 0.3, 60, 1e-3),
    "greedy": ("ours", 6e-4, 1.05, 0.004, 60, 1e-3),
    "alternating": ("ours", 7e-3, 1.1, 0.002, 60, 1e-3),
    "certified": ("ours", 2.4e-3, 1.15, 3e-4, 60, 1e-3),
    "certified 1e-2": ("ours", 1.2e-3, 1.1, 4e-3, 60, 1e-2),
    "scip": ("peer", 20.0, 1.6, 1e-3, 60, 1e-3),
    "scip 10 s": ("peer", 10.0, 1.6, 0.02, 10, 1e-3),
    "highs": ("peer", 8.0, 1.5, 2e-2, 60, 1e-3),
    "toy": ("plugin", 5e-3, 1.3, 0.1, 60, 1e-3),
}
_BANDWIDTH = {
    "certified": ("ours", 3e-5, 0.2, 1e-9, 60, 1e-9),
    "cvxpy-clarabel": ("peer", 9e-3, 0.3, 1e-6, 60, 1e-8),
    "cvxpy-scs": ("peer", 4e-2, 0.3, 2e-3, 60, 1e-4),
    "slsqp": ("peer", 5e-2, 0.5, 5e-4, 60, 1e-8),
    "topk-uniform": ("baseline", 3e-5, 0.9, np.nan, 60, 1e-3),
}
_METHODS = {"certified 1e-2": "certified", "scip 10 s": "scip"}
#: As long as labels of the suite paper are.
_PAPER = {
    "topk-uniform": "plain top-k, equal bandwidth", "topk": "without expert selection",
    "wdmoe-selection": "without bandwidth allocation", "certified": "certified at wdmoe's retention",
}  # fmt: skip


def fake_results(seed: int = 0) -> pd.DataFrame:
    """Rows of made-up suites that look like what a runner writes, failures and refusals included."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for group in ("deepseek-v2-lite-law", "deepseek-v2-lite-intent", "gpt-oss-20b-decode"):
        for block in (0, 5):
            for draw in range(1 + (block == 0)):
                base = float(rng.uniform(0.03, 0.09))
                for floor in (0.8, 0.9, 0.95, 0.99):
                    case = {"suite": "captured", "case": f"{group}#{block} at {floor:g}", "group": group}
                    rows += _case(rng, case, base, floor, draw)
    for axis, values in {"tokens": (32, 128, 512, 2048, 8192), "devices": (2, 8, 32, 128)}.items():
        for value in values:
            case = {"suite": "scaling", "case": f"synthetic {axis} {value}", "group": axis, "axis": axis}
            case |= {"axis_value": value, axis: value}
            size = value / (128 if axis == "tokens" else 8)
            rows += _case(rng, case, 0.05 * size**0.8, 0.95, 0, size if axis == "tokens" else size**0.4)
    for megahertz in (5, 20, 100, 400):
        case = {"suite": "radio", "case": f"law at {megahertz} MHz", "group": "bandwidth"}
        case |= {"axis": "bandwidth", "axis_value": megahertz}
        rows += _case(rng, case, 0.02 + 3.0 / megahertz, 0.95, 0)
    for block in range(6):
        case = {"suite": "paper", "case": f"synthetic mixtral #{block}", "group": "synthetic-mixtral"}
        rows += _case(rng, case, float(rng.uniform(0.08, 0.1)), 0.0, 0, own_floor=0.96)
    for block in range(5):
        case = {"suite": "paper", "case": f"mixtral loads #{block}", "group": "mixtral-8x7b-mmlu-load"}
        rows += _case(rng, {**case, "task": "bandwidth"}, 0.09, np.nan, 0)
    return pd.DataFrame([row(**fields) for fields in rows])


def _case(
    rng: np.random.Generator, case: dict[str, Any], base: float, floor: float, seed: int, size: float = 1.0,
    own_floor: float | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Rows of every made-up solver on a case whose plain top-k takes ``base`` s."""
    joint = case.get("task", "joint") == "joint"
    best = base * (0.45 + 0.35 * (floor or 0.96)) * 0.85 if joint else 0.7 * base
    rows = []
    for solver, (kind, time, growth, excess, limit, asked) in (_JOINT if joint else _BANDWIDTH).items():
        method = _METHODS.get(solver, solver)
        fields: dict[str, Any] = {
            **case, "solver": _PAPER.get(solver, solver) if own_floor else solver,
            "method": method, "kind": kind, "time_limit_s": limit,
            "rel_gap": asked, "seed": seed, "min_retention": floor,
        }  # fmt: skip
        retention = 1.0 if "topk" in solver or not joint else (floor or 0.96) + 2e-4
        if solver.startswith("wdmoe") and joint:
            retention = 0.962
        value = best * (1 + excess * rng.uniform(0.5, 1.6)) if excess == excess else base
        value = 0.74 * base if solver == "topk" else value
        value = 0.72 * base * rng.uniform(0.97, 1.03) if solver == "wdmoe" else value
        value = 0.86 * base * rng.uniform(0.97, 1.03) if solver == "wdmoe-selection" else value
        seconds = time * size**growth * rng.lognormal(0, 0.3)
        if method == "certified" and joint and own_floor:
            fields["min_retention"] = retention = 0.962
        fields |= {"value": value, "retention": retention, **_timed(rng, seconds, size)}
        fields["feasible"] = retention >= (fields["min_retention"] or 0) - 1e-6 or not joint
        fields["violations"] = "" if fields["feasible"] else "min_retention"
        if joint:
            fields["device_time"] = json.dumps(_devices(rng, value, solver, int(case.get("devices", 8))))
        fields |= _outcome(rng, method, kind, value, best, seconds, limit)
        rows.append(fields)
    rows.append({**case, "solver": "gurobi", "kind": "peer", "seed": seed, "min_retention": floor,
                 "state": "unavailable", "feasible": False, "value": np.nan, "retention": np.nan,
                 "message": "gurobipy is not installed", "warm_s": np.nan, "cold_s": np.nan})  # fmt: skip
    return rows


def _timed(rng: np.random.Generator, seconds: float, size: float) -> dict[str, float]:
    spread = rng.uniform(0.01, 0.3)
    return {
        "warm_s": seconds, "warm_q1_s": seconds * (1 - spread / 2), "warm_q3_s": seconds * (1 + spread / 2),
        "cold_s": seconds + 1.2, "compile_s": np.nan, "metric_s": 3e-5 * size,
    }  # fmt: skip


def _devices(rng: np.random.Generator, value: float, solver: str, devices: int) -> list[float]:
    low = 0.2 if solver == "topk-uniform" else 0.9
    times = value * rng.uniform(low, 1.0, devices)
    times[rng.integers(devices)] = value
    return [float(time) for time in times]


def _outcome(
    rng: np.random.Generator, method: str, kind: str, value: float, best: float, seconds: float, limit: float
) -> dict[str, Any]:
    """Claims, bounds, and now and then a failure."""
    if method == "certified":
        bound = best * (1 - 2e-4)
        return {"lower_bound": bound, "bound_kind": "certified", "gap": (value - bound) / value,
                "reason": "optimal", "claims_optimal": True, "claim_holds": "yes"}  # fmt: skip
    if kind != "peer":
        return {}
    if seconds > 40 * limit:
        return {"state": "timeout", "feasible": False, "value": np.nan, "retention": np.nan,
                "message": "ended by the runner after 420 s", "warm_s": np.nan, "cold_s": limit}  # fmt: skip
    if seconds > limit:
        return {"warm_s": limit, "warm_q1_s": np.nan, "warm_q3_s": np.nan, "repeats": 1, "limit": "time",
                "reason": "feasible"}  # fmt: skip
    if rng.uniform() < 0.05:
        return {"state": "failed", "feasible": False, "value": np.nan, "retention": np.nan,
                "message": "SolverError: no progress", "warm_s": np.nan}  # fmt: skip
    holds = "no" if rng.uniform() < 0.03 else "yes"
    return {"reason": "optimal", "claims_optimal": True, "claim_holds": holds}
