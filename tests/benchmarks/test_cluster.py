"""The same tasks on a real dask.distributed scheduler with two worker processes, one of which is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

pd = pytest.importorskip("pandas")
pytest.importorskip("pyarrow")
pytest.importorskip("distributed")

SUITE = """
name = "spread"
[defaults]
time_limit = 5.0
[[contestants]]
method = "topk-uniform"
kind = "baseline"
[[contestants]]
method = "topk"
[[cases]]
name = "{tokens} tokens"
generator = "synthetic"
parameters = { tokens = "{tokens}" }
each = { tokens = [8, 16, 24, 32] }
"""


@pytest.fixture
def cluster(tmp_path):
    """A scheduler and two workers of one thread; its address and the worker processes."""
    told = tmp_path / "scheduler.json"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": os.getcwd()}
    module = [sys.executable, "-m"]
    scheduler = subprocess.Popen(
        [*module, "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0",
         "--no-dashboard", "--scheduler-file", str(told)], **quiet,
    )  # fmt: skip
    workers = []
    try:
        deadline = time.monotonic() + 60
        while not told.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(0.3)
        address = json.loads(told.read_text())["address"]
        workers += [
            subprocess.Popen(
                [*module, "distributed.cli.dask_worker", address, "--nthreads", "1", "--no-nanny",
                 "--no-dashboard", "--local-directory", str(tmp_path)], **quiet,
            )
            for _ in range(2)
        ]  # fmt: skip
        yield address, workers
    finally:
        for process in (*workers, scheduler):
            process.kill()
            process.wait()


def finished(folder):
    return len(list((folder / "parts").glob("*.json")))


def test_a_worker_killed_in_the_middle_loses_nothing(cluster, tmp_path):
    address, workers = cluster
    path, out = tmp_path / "spread.toml", tmp_path / "out"
    path.write_text(SUITE)
    command = [
        sys.executable, "-m", "wdmoe_opt", "bench", "run", str(path),
        "--out", str(out), "--scheduler", address, "--json",
    ]  # fmt: skip
    runner = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while finished(out) < 2 and time.monotonic() < deadline and runner.poll() is None:
        time.sleep(0.05)
    done_before = finished(out)
    workers[0].send_signal(signal.SIGKILL)
    printed, complaints = runner.communicate(timeout=240)
    assert runner.returncode == 0, complaints
    assert 2 <= done_before < 8
    found = json.loads(printed)
    assert found["states"] == {"ok": 8}
    table = pd.read_parquet(found["table"])
    assert len(table) == 8
    assert not table["task_key"].duplicated().any()
    assert (table["cold_s"] > 0).all()
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(again.stdout)["skipped"] == 8


def test_no_scheduler_is_one_clear_line(tmp_path):
    command = [
        sys.executable, "-m", "wdmoe_opt", "bench", "run", "smoke",
        "--out", str(tmp_path), "--scheduler", "tcp://127.0.0.1:9",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "scheduler = 'tcp://127.0.0.1:9': no scheduler answers there" in done.stderr.splitlines()[-1]
