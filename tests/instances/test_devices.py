"""Device profiles: derivation, ranges, files, and the back-test."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from wdmoe_opt.errors import InputError, InstanceFileError, UnknownNameError
from wdmoe_opt.instances.devices import (
    DeviceProfile,
    Range,
    backtest,
    derive,
    expert_weights,
    list_profiles,
    load_profile,
)
from wdmoe_opt.instances.devices import rows as rows_module
from wdmoe_opt.instances.devices.profile import LEVELS, PROFILES_FILE
from wdmoe_opt.instances.devices.rows import DATA, read_rows

MIXTRAL = expert_weights(4096, 14336)
EVERY = [(name, precision) for name in list_profiles() for precision in ("fp16", "int4")]
PLAIN = {"centre": 2.0, "low": 1.0, "high": 3.0, "evidence": "measured", "source": "a test"}


def document(**changes: object) -> dict[str, object]:
    plain: dict[str, object] = {
        "schema_version": 1,
        "name": "mine",
        "precision": "fp16",
        "bytes_per_weight": 2.0,
        "launch_time": PLAIN,
        "weight_bandwidth": PLAIN,
        "compute_rate": PLAIN,
    }
    return plain | changes


def test_every_asked_board_is_there() -> None:
    assert set(list_profiles()) == {
        "agx-thor", "agx-orin-maxn", "agx-orin-50w", "agx-orin-30w", "agx-orin-15w", "orin-nx",
        "orin-nano-maxn-super", "orin-nano-15w", "agx-xavier-estimated", "xavier-nx-estimated",
    }  # fmt: skip


def test_deriving_again_gives_the_shipped_file() -> None:
    again = json.loads(derive.render(derive.derive_profiles()))
    shipped = json.loads(PROFILES_FILE.read_text(encoding="utf-8"))
    assert [one["name"] for one in again["profiles"]] == [one["name"] for one in shipped["profiles"]]
    for one, other in zip(again["profiles"], shipped["profiles"], strict=True):
        for key in ("launch_time", "weight_bandwidth", "compute_rate"):
            numbers = {name: one[key].pop(name) for name in LEVELS}
            assert numbers == pytest.approx({name: other[key].pop(name) for name in LEVELS}, rel=1e-5)
        assert one == other


# Board, precision, then fixed ms and us per token of a Mixtral expert without launch, from the survey of the
# measured rows that the derivation follows. Tolerances wider than 2 % have a reason:
# - Orin Nano FP16 rate: fitted to the linear layers alone, so that the matmul rows stay for the back-test.
# - Orin Nano 15 W: the input embedding is not streamed, and one decode step is taken off the prompt time.
# - AGX Xavier: the survey used a memory read-out of an unnamed repository; here AGX Orin's use is scaled.
SURVEY = [
    ("agx-thor", "fp16", 1.42, 3.2, 0.02, 0.02),
    ("agx-orin-maxn", "fp16", 2.17, 16.7, 0.02, 0.02),
    ("orin-nx", "fp16", 3.80, 36.8, 0.02, 0.02),
    ("orin-nano-maxn-super", "fp16", 6.84, 50.0, 0.02, 0.05),
    ("orin-nano-15w", "fp16", 9.2, 104.0, 0.10, 0.08),
    ("agx-xavier-estimated", "fp16", 3.2, 69.0, 0.03, 0.02),
    ("xavier-nx-estimated", "fp16", 8.1, 108.0, 0.02, 0.03),
    ("agx-orin-maxn", "int4", 0.58, 17.5, 0.02, 0.02),
    ("orin-nx", "int4", 1.00, 36.8, 0.02, 0.02),
    ("orin-nano-maxn-super", "int4", 1.82, 58.0, 0.02, 0.02),
]


@pytest.mark.parametrize(("name", "precision", "fixed", "token", "fixed_tol", "token_tol"), SURVEY)
def test_mixtral_expert_table(
    name: str, precision: str, fixed: float, token: float, fixed_tol: float, token_tol: float
) -> None:
    profile = load_profile(name, precision)
    streaming = profile.activation_time(MIXTRAL) - profile.launch_time.centre
    assert streaming * 1e3 == pytest.approx(fixed, rel=fixed_tol)
    assert profile.compute_time(MIXTRAL) * 1e6 == pytest.approx(token, rel=token_tol)


@pytest.mark.parametrize(
    ("name", "fixed", "token"),
    [("agx-thor", (0.40, 0.76), (1.3, 15.5)), ("orin-nano-15w", (2.5, 3.1), (95.0, 104.0))],
)
def test_int4_centres_lie_in_the_surveyed_spread(
    name: str, fixed: tuple[float, float], token: tuple[float, float]
) -> None:
    # Thor: the survey mixed a W4A16 layer (0.69 ms) with an NVFP4 rate; here both are NVFP4, 0.69 the high.
    profile = load_profile(name, "int4")
    streaming = 1e3 * (profile.activation_time(MIXTRAL) - profile.launch_time.centre)
    assert fixed[0] <= streaming <= fixed[1]
    assert 0.98 * token[0] <= 1e6 * profile.compute_time(MIXTRAL) <= 1.02 * token[1]


@pytest.mark.parametrize(("name", "launch"), [("maxn", 0.37), ("50w", 0.53), ("30w", 0.46), ("15w", 0.71)])
def test_launch_cost_from_the_dispatch_logs(name: str, launch: float) -> None:
    values = load_profile(f"agx-orin-{name}").launch_time
    assert values.centre * 1e3 == pytest.approx(launch, rel=0.02)
    assert 0.02e-3 <= values.low <= 0.05e-3


@pytest.mark.parametrize(("name", "precision"), EVERY)
def test_values_and_times_are_in_order(name: str, precision: str) -> None:
    profile = load_profile(name, precision)
    for values in (profile.launch_time, profile.weight_bandwidth, profile.compute_rate):
        assert 0 < values.low <= values.centre <= values.high
        assert values.rows
        assert values.source
    for tokens in (1, 64, 2048):
        low, centre, high = (profile.time(MIXTRAL, tokens, level) for level in LEVELS)
        assert 0 < low < centre < high
    assert profile.time(MIXTRAL, 0) == 0.0


def test_estimates_are_named_and_never_called_measured() -> None:
    for name in list_profiles():
        profile = load_profile(name)
        evidence = {profile.weight_bandwidth.evidence, profile.compute_rate.evidence}
        assert ("xavier" in name) == name.endswith("-estimated")
        if "xavier" in name:
            assert "measured" not in evidence
            assert "Derived from MLPerf Inference v1.1" in profile.compute_rate.source


def test_slower_modes_are_slower() -> None:
    for precision in ("fp16", "int4"):
        modes = [load_profile(f"agx-orin-{mode}", precision) for mode in ("maxn", "50w", "30w", "15w")]
        for fast, slow in pairwise(modes):
            assert fast.weight_bandwidth.centre > slow.weight_bandwidth.centre
            assert fast.compute_rate.centre > slow.compute_rate.centre


def test_at_most_ten_constants() -> None:
    used = {row for row in derive.fitted_rows(derive.derive_profiles()) if row.startswith("constant: ")}
    assert 0 < len(used) <= 10


def test_every_source_row_exists() -> None:
    for key in derive.fitted_rows(derive.derive_profiles()):
        if key.startswith("constant: "):
            continue
        file, line = key.split("#")[0].split(":")
        assert (DATA / file).is_file()
        if line.isdigit():
            assert int(line) <= len((DATA / file).read_text(encoding="utf-8").splitlines())


def test_tables_that_must_not_be_shipped_are_not() -> None:
    names = {path.name for path in DATA.rglob("*")}
    assert not names & {"llm_bench_rows.csv", "memory_bandwidth_rows.csv"}
    for folder in (path for path in DATA.iterdir() if path.is_dir()):
        assert (folder / "PROVENANCE.md").is_file()
        assert list(folder.glob("LICENSE*"))
    assert sum(path.stat().st_size for path in DATA.rglob("*.csv")) < 1.5e6


def test_backtest_uses_no_fitted_row() -> None:
    profiles = derive.derive_profiles()
    fitted = derive.fitted_rows(profiles)
    tested = {outcome.row.key for outcome in backtest.run()}
    timed = {row.key for row in read_rows()[0]}
    assert not tested & fitted
    assert tested | (timed & fitted) == timed
    assert len(timed & fitted) > 100


def test_changing_any_tested_row_changes_no_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, left_out = read_rows()
    before = derive.derive_profiles()
    fitted = derive.fitted_rows(before)
    spoiled = tuple(row if row.key in fitted else replace(row, time=1.01 * row.time) for row in rows)
    monkeypatch.setattr(rows_module, "read_rows", lambda: (spoiled, left_out))
    assert derive.derive_profiles() == before


def test_row_keys_are_unique() -> None:
    keys = [row.key for row in read_rows()[0]]
    assert len(keys) == len(set(keys))


def test_prediction_agrees_with_the_profile() -> None:
    profile = load_profile("agx-orin-maxn")
    row = next(row for row in read_rows()[0] if row.kind == "eager layer" and row.kernels == 5)
    for level in LEVELS:
        expected = profile.time(row.used, row.tokens, level)
        assert backtest.predict(profile, row, level) == pytest.approx(expected)


def test_buckets() -> None:
    assert [backtest.bucket(n) for n in (1, 2, 8, 9, 4096, 4097)] == [
        "1", "2 to 8", "2 to 8", "9 to 64", "513 to 4096", "over 4096",
    ]  # fmt: skip


def test_page_is_the_committed_one() -> None:
    committed = Path(__file__).parents[2] / "docs" / "device-backtest.md"
    assert committed.read_text(encoding="utf-8") == backtest.page()


def test_command_prints_tables_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    backtest.main([])
    assert "agx-orin-maxn" in capsys.readouterr().out
    backtest.main(["--json"])
    assert len(json.loads(capsys.readouterr().out)["rows"]) == len(backtest.run())


def test_own_profile_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    made = DeviceProfile.from_dict(document(provenance={"tool": "profile-device"}, memory=8e9))
    made.save(path)
    assert DeviceProfile.from_file(path) == made
    assert [one.name for one in path.parent.iterdir()] == ["mine.json"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schema_version": 2}, "schema_version = 2: must be 1"),
        ({"name": " "}, "name = ' ': must be a text"),
        ({"precision": "fp17"}, "precision = 'fp17': must be one of"),
        ({"bytes_per_weight": 0}, "bytes_per_weight = 0.0: must be greater than 0"),
        ({"bytes_per_weight": "two"}, "bytes_per_weight = 'two': must be a number"),
        ({"launch_time": PLAIN | {"low": -1.0}}, "launch_time.low = -1.0: must be at least 0"),
        ({"launch_time": PLAIN | {"low": float("nan")}}, "launch_time.low = nan: must be finite"),
        ({"compute_rate": PLAIN | {"low": 2.5}}, "compute_rate.low = 2.5: must not exceed the centre 2"),
        ({"compute_rate": PLAIN | {"high": 1.5}}, "compute_rate.high = 1.5: must not be below the centre 2"),
        ({"compute_rate": PLAIN | {"evidence": "guess"}}, "compute_rate.evidence = 'guess': must be one of"),
        (
            {"weight_bandwidth": PLAIN | {"rows": "all"}},
            "weight_bandwidth.rows = 'all': must be a list of texts",
        ),
        ({"weight_bandwidth": 5.0}, "weight_bandwidth = 5.0: must be an object"),
        ({"provenance": "me"}, "provenance = 'me': must be an object"),
        ({"colour": 1}, "profile key = 'colour': unknown name"),
    ],
)
def test_malformed_profiles_are_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(InputError) as caught:
        DeviceProfile.from_dict(document(**changes))
    assert words in str(caught.value)


@pytest.mark.parametrize("key", ["schema_version", "name", "launch_time"])
def test_missing_keys_are_named(key: str) -> None:
    with pytest.raises(InputError, match=f"profile.{key}: is missing"):
        DeviceProfile.from_dict({name: value for name, value in document().items() if name != key})


def test_profiles_made_in_code_are_checked_too() -> None:
    with pytest.raises(InputError, match=r"compute_rate\.low = 5\.0: must not exceed the centre 2"):
        replace(
            DeviceProfile.from_dict(document()),
            compute_rate=Range(centre=2.0, low=5.0, high=6.0, evidence="measured", source="a test"),
        )


def test_profiles_can_be_pickled_and_hashed() -> None:
    profile = load_profile("agx-thor", "int4")
    assert pickle.loads(pickle.dumps(profile)) == profile
    assert hash(profile) == hash(pickle.loads(pickle.dumps(profile)))


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    with pytest.raises(InstanceFileError, match="cannot be read"):
        DeviceProfile.from_file(path)
    path.write_text("{", encoding="utf-8")
    with pytest.raises(InstanceFileError, match="not valid JSON"):
        DeviceProfile.from_file(path)


def test_unknown_names_list_the_near_ones() -> None:
    with pytest.raises(UnknownNameError, match="agx-orin-maxn"):
        load_profile("agx-orin-max")
    with pytest.raises(UnknownNameError, match="int4"):
        load_profile("agx-orin-maxn", "int8")


def test_unknown_level_is_refused() -> None:
    with pytest.raises(InputError, match="level = 'best'"):
        load_profile("orin-nx").time(1e6, 1, "best")


def test_user_profile_may_have_no_launch_cost() -> None:
    made = DeviceProfile.from_dict(document(launch_time=PLAIN | {"low": 0, "centre": 0, "high": 0}))
    assert made.activation_time(10) == pytest.approx(10.0)
    assert isinstance(made.launch_time, Range)
