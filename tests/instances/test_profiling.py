"""Profiling: the standalone measurement, run here, and the fit, on numbers whose answer is known."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wdmoe_opt.errors import InputError, InstanceFileError
from wdmoe_opt.instances.profiling import (
    ProfilingError,
    fit_profile,
    load_measurement,
    measure,
    profile_command,
    write_profile,
)
from wdmoe_opt.instances.profiling.fit import model_time

MEASURE = Path(measure.__file__)
LAUNCH, BANDWIDTH, RATE, SIZE = 4e-4, 6e10, 5e12, 2.0
WEIGHTS = 3 * 2048 * 1408


def statistics(seconds: float, spread: float) -> dict[str, Any]:
    return {"median": seconds, "q1": seconds * (1 - spread), "q3": seconds * (1 + spread)}


def synthetic(
    noise: float = 0.0, spread: float = 0.05, counts: tuple[int, ...] = (1, 8, 32, 128, 512)
) -> Any:
    rng = np.random.default_rng(0)
    rows = []
    for tokens in counts:
        seconds = model_time(LAUNCH, BANDWIDTH, RATE, SIZE, WEIGHTS, tokens)
        seconds *= 1 + noise * rng.standard_normal()
        rows.append({"weights": WEIGHTS, "tokens": tokens, **statistics(float(seconds), spread)})
    return {
        "schema_version": 1, "kind": measure.KIND, "precision": "fp16", "bytes_per_weight": SIZE,
        "launch": statistics(LAUNCH, spread), "expert": rows,
        "environment": {"device": "made up", "torch": "0", "memory": 8 * 2**30},
    }  # fmt: skip


def test_the_fit_finds_the_numbers_that_made_the_times() -> None:
    profile = fit_profile(synthetic(), name="made-up")
    assert profile["launch_time"]["centre"] == LAUNCH
    assert profile["weight_bandwidth"]["centre"] == pytest.approx(BANDWIDTH, rel=1e-9)
    assert profile["compute_rate"]["centre"] == pytest.approx(RATE, rel=1e-9)
    assert profile["weight_bandwidth"]["low"] == pytest.approx(BANDWIDTH / 1.05, rel=1e-9)
    assert profile["compute_rate"]["high"] == pytest.approx(RATE / 0.95, rel=1e-9)
    assert (profile["name"], profile["precision"], profile["bytes_per_weight"]) == ("made-up", "fp16", 2.0)
    assert all(abs(row["relative_error"]) < 1e-9 for row in profile["provenance"]["fit"])


def test_noise_of_some_percent_moves_the_fit_by_as_much() -> None:
    profile = fit_profile(synthetic(noise=0.03))
    assert profile["weight_bandwidth"]["centre"] == pytest.approx(BANDWIDTH, rel=0.15)
    assert profile["compute_rate"]["centre"] == pytest.approx(RATE, rel=0.15)
    for key in ("launch_time", "weight_bandwidth", "compute_rate"):
        assert profile[key]["low"] <= profile[key]["centre"] <= profile[key]["high"]
        assert profile[key]["evidence"] == "measured"


def test_what_launch_hides_is_not_invented() -> None:
    hidden = synthetic()
    for row in hidden["expert"]:
        row |= statistics(LAUNCH, 0.0)
    with pytest.raises(ProfilingError, match=r"weight bandwidth cannot be told .* a wider expert"):
        fit_profile(hidden)
    flat = synthetic()
    for row in flat["expert"]:
        row |= statistics(2 * LAUNCH, 0.0)
    with pytest.raises(ProfilingError, match=r"compute rate cannot be told .* larger token counts"):
        fit_profile(flat)


def test_bad_measurements_are_named(tmp_path: Path) -> None:
    bad = synthetic()
    bad["expert"][2]["q1"] = -1.0
    with pytest.raises(InputError, match=r"expert\[2\]\.q1 = -1.0: must be greater than 0"):
        fit_profile(bad)
    with pytest.raises(InputError, match="has no 'launch'"):
        fit_profile({key: value for key, value in synthetic().items() if key != "launch"})
    (tmp_path / "a.json").write_text("{")
    (tmp_path / "b.json").write_text('{"kind": "device-profile"}')
    (tmp_path / "c.json").write_text(json.dumps({"kind": measure.KIND, "schema_version": 7}))
    for name, message in (
        ("a", "not valid JSON"), ("b", "kind must be"), ("c", "schema_version 7"), ("d", "cannot be read"),
    ):  # fmt: skip
        with pytest.raises(InstanceFileError, match=message):
            load_measurement(tmp_path / f"{name}.json")


def test_a_measurement_from_elsewhere_becomes_a_profile(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text(json.dumps(synthetic()))
    profile = profile_command(tmp_path / "p.json", measurement=tmp_path / "m.json", name="board")
    assert json.loads((tmp_path / "p.json").read_text(encoding="utf-8")) == profile
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.json", "p.json"]
    with pytest.raises(InputError, match="exists already"):
        profile_command(tmp_path / "p.json", measurement=tmp_path / "m.json")
    with pytest.raises(InputError, match="width and expert_width are needed"):
        profile_command(tmp_path / "q.json")


def test_the_profile_loads_like_the_shipped_ones(tmp_path: Path) -> None:
    devices = pytest.importorskip(
        "wdmoe_opt.instances.devices.profile", reason="the device library is absent"
    )
    write_profile(tmp_path / "p.json", fit_profile(synthetic(), name="board"))
    loaded = devices.DeviceProfile.from_file(tmp_path / "p.json")
    assert loaded.name == "board"
    assert loaded.activation_time(WEIGHTS) == pytest.approx(LAUNCH + WEIGHTS * SIZE / BANDWIDTH)


def test_the_standalone_file_keeps_to_python_38_and_torch() -> None:
    tree = ast.parse(MEASURE.read_text(encoding="utf-8"), feature_version=(3, 8))
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(str(node.module).split(".")[0])
    assert imported - set(sys.stdlib_module_names) == {"torch"}
    # Annotations are never evaluated; a subscripted type elsewhere at module level would need 3.9.
    assert not any(
        isinstance(inner, ast.Subscript)
        for node in tree.body
        if isinstance(node, ast.Assign)
        for inner in ast.walk(node)
    )


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the standalone file here, on an expert small enough for a test."""
    pytest.importorskip("torch", reason="measuring needs torch (extra: capture)")
    out = tmp_path_factory.mktemp("measured") / "out.json"
    command = [
        sys.executable, str(MEASURE), "--width", "512", "--expert-width", "1024", "--precision", "fp32",
        "--tokens", "1", "16", "64", "--repeats", "15", "--warm-up", "3", "--seconds", "2", "--device", "cpu",
        "--threads", "1", "--max-bytes", str(192 * 2**20), "--json", str(out),
    ]  # fmt: skip
    answer = subprocess.run(command, capture_output=True, text=True, check=False, cwd=out.parent, timeout=80)
    assert answer.returncode == 0, answer.stderr
    return out


def test_this_machine_gets_a_sane_profile(measured: Path) -> None:
    found = load_measurement(measured)
    assert found["environment"]["threads"] == 1
    assert [row["tokens"] for row in found["expert"][:3]] == [1, 16, 64]
    assert found["streams"][0]["bytes"] == found["streams"][0]["copies"] * 3 * 512 * 1024 * 4
    for row in (*found["expert"], found["launch"], found["empty_kernel"]):
        assert 0 < row["min"] <= row["q1"] <= row["median"] <= row["q3"] <= row["max"]
    profile = fit_profile(found)
    assert 1e-7 < profile["launch_time"]["centre"] < 0.1
    assert 1e8 < profile["weight_bandwidth"]["centre"] < 1e13
    assert 1e8 < profile["compute_rate"]["centre"] < 1e14


def test_an_invisible_expert_is_joined_by_a_wider_one() -> None:
    pytest.importorskip("torch", reason="measuring needs torch (extra: capture)")
    labels: list[str] = []
    found = measure.measure(
        8, 8, "fp32", (1, 2), "cpu", repeats=5, warm_up=1, max_bytes=2**20, on_step=labels.append
    )  # fmt: skip
    # Half of the memory allowed, in whole multiples of the expert's 768 bytes.
    wide = 2**19 // 768 * 192
    assert [row["weights"] for row in found["expert"]] == [192, 192, wide, wide]
    assert "may fit in the cache" in found["notes"][0]
    assert labels[:2] == ["empty kernel", "tiny expert"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": (4, 4)}, "must be at least two different counts"),
        ({"tokens": (0, 4)}, "each at least 1"),
        ({"precision": "int4"}, "must be one of fp32, fp16, bf16"),
        ({"width": 0}, "width = 0: must be at least 1"),
        ({"device": "abacus"}, "must be auto, cpu, cuda"),
        ({"device": "meta"}, "only cpu and cuda can be timed"),
        ({"device": "cuda:99"}, "torch finds . GPUs here"),
        ({"max_bytes": 100}, "max_bytes = 100: one expert has 768 bytes"),
    ],
)
def test_impossible_requests_are_named(options: dict[str, Any], message: str) -> None:
    pytest.importorskip("torch", reason="measuring needs torch (extra: capture)")
    with pytest.raises(measure.MeasureError, match=message):
        measure.measure(**({"width": 8, "expert_width": 8, "device": "cpu", "repeats": 1} | options))


def test_the_command_line_fails_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch", reason="measuring needs torch (extra: capture)")
    arguments = ["--width", "8", "--expert-width", "8", "--tokens", "1", "--json", str(tmp_path / "o.json")]
    assert measure.main(arguments) == 2
    assert capsys.readouterr().err.startswith("error: tokens = [1]: must be at least two")


def test_the_command_measures_and_fits(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="measuring needs torch (extra: capture)")
    profile = profile_command(
        tmp_path / "p.json", width=512, expert_width=1024, tokens=(1, 64), device="cpu", repeats=7, seconds=2,
        max_bytes=192 * 2**20, name="here", progress=False,
    )  # fmt: skip
    assert profile["name"] == "here"
    assert profile["provenance"]["measurement"]["expert_width"] == 1024
    with pytest.raises(InputError, match="precision = 'int4'"):
        profile_command(tmp_path / "q.json", width=8, expert_width=8, precision="int4")
