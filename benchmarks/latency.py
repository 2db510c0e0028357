"""What the package costs in time: ``python -m wdmoe_opt.benchmarks.latency [--json]``.

Every figure is a median over repeats with its quartiles, warm, one thread, on the instance
``deepseek-v2-lite-intent`` unless the row says otherwise. Import and first call run in fresh
processes, the first call with an empty compile cache.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from time import perf_counter
from typing import Any

import numba
import numpy as np

import wdmoe_opt as wo
from wdmoe_opt.bandwidth import allocate, demands
from wdmoe_opt.kernels.block_bandwidth import block_bandwidth
from wdmoe_opt.kernels.compiled import compiled
from wdmoe_opt.metrics import price

INSTANCE = "deepseek-v2-lite-intent"


@compiled
def _repeat_block(
    count: int,
    sent: np.ndarray,
    busy: np.ndarray,
    bits_down: float,
    c_down: np.ndarray,
    bits_up: float,
    c_up: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    total: float,
    out: np.ndarray,
) -> float:
    """Run the one-block kernel ``count`` times on slightly different budgets, inside compiled code."""
    checksum = 0.0
    for r in range(count):
        budget = total * (1.0 + 1e-3 * r / count)
        checksum += block_bandwidth(sent, busy, bits_down, c_down, bits_up, c_up, low, high, budget, out)[0]
    return checksum


def timed(call: Callable[[], Any], *, inner: int, repeats: int = 15) -> list[float]:
    """Seconds per call of ``repeats`` batches of ``inner`` calls, after one warm-up batch."""
    found = []
    for _ in range(repeats + 1):
        started = perf_counter()
        for _ in range(inner):
            call()
        found.append((perf_counter() - started) / inner)
    return found[1:]


def measure() -> list[dict[str, Any]]:
    """All rows of the report, times in s."""
    block = wo.Problem(wo.load_instance(INSTANCE, blocks=1))
    model = wo.Problem(wo.load_instance(INSTANCE))
    keep = block.top_k_keep
    bandwidth = wo.solve(block, "topk").bandwidth
    transfers, busy = demands(block, keep)
    t = block.tables
    out = np.empty(transfers.shape[1])
    arguments = (
        transfers[0],
        busy[0],
        t.bits_down,
        t.c_down[0],
        t.bits_up,
        t.c_up[0],
        t.low,
        t.high,
        t.total,
        out,
    )
    count = 2000
    rows = [
        _row(
            "P-BW kernel, one block, 8 devices, inside compiled code",
            [s / count for s in timed(lambda: _repeat_block(count, *arguments), inner=1)],
        ),
        _row(
            "solve(problem, 'topk'), one block, 512 tokens", timed(lambda: wo.solve(block, "topk"), inner=200)
        ),
        _row("metric, one block, 512 tokens", timed(lambda: price(block, keep, bandwidth), inner=200)),
    ]
    whole = demands(model, model.top_k_keep)
    rows += [
        _row(
            "P-BW, 26 blocks sharing bandwidth, 8 devices", timed(lambda: allocate(model, *whole), inner=20)
        ),
        _row(
            "solve(problem, 'topk'), 26 blocks, 512 tokens", timed(lambda: wo.solve(model, "topk"), inner=10)
        ),
        _row(
            "solve(problem, 'wdmoe'), 26 blocks, 512 tokens", timed(lambda: wo.solve(model, "wdmoe"), inner=2)
        ),
        _row("import wdmoe_opt and its solvers, fresh process", [_import_time() for _ in range(5)]),
        _row("first solve ever, 26 blocks, empty compile cache", [_first_call_time()]),
    ]
    return rows


def _row(what: str, seconds: list[float]) -> dict[str, Any]:
    quartiles = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else [seconds[0]] * 3
    return {"what": what, "median_s": statistics.median(seconds), "q1_s": quartiles[0], "q3_s": quartiles[2]}


def _import_time() -> float:
    code = (
        "import time; t = time.perf_counter()\n"
        "import wdmoe_opt; wdmoe_opt.solve; print(time.perf_counter() - t)"
    )
    return _in_process(code, {})


def _first_call_time() -> float:
    code = (
        "import time, wdmoe_opt as wo; inst = wo.load_instance('deepseek-v2-lite-intent')\n"
        "t = time.perf_counter(); wo.solve(inst, 'topk'); print(time.perf_counter() - t)"
    )
    with tempfile.TemporaryDirectory() as cache:
        return _in_process(code, {"NUMBA_CACHE_DIR": cache})


def _in_process(code: str, environment: dict[str, str]) -> float:
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def _human(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description="Time the package on this machine.")
    parser.add_argument("--json", action="store_true")
    as_json = parser.parse_args().json
    rows = measure()
    machine = {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "numba": numba.__version__,
        "processors": os.cpu_count(),
    }
    if as_json:
        print(json.dumps({"machine": machine, "rows": rows}, indent=1))
        return
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    for row in rows:
        spread = f"{_human(row['q1_s'])} to {_human(row['q3_s'])}"
        print(f"{row['what']:<58} {_human(row['median_s']):>9}   ({spread})")


if __name__ == "__main__":
    main()
