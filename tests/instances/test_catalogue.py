"""The catalogue: what can be listed, shown, exported and validated, and the numbers of `stats`."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import wdmoe_opt as wo
from wdmoe_opt.instances import catalogue
from wdmoe_opt.instances.devices import load_profile
from wdmoe_opt.instances.families import FAMILIES
from wdmoe_opt.instances.routing_file import RoutingFile
from wdmoe_opt.instances.statistics import stats


def test_families_are_listed() -> None:
    lines = {line.name: line for line in catalogue.list_families()}
    assert list(lines) == wo.list_instances() == list(FAMILIES)
    mixtral = lines["mixtral-8x7b-mmlu-load"]
    assert (mixtral.kind, mixtral.blocks, mixtral.experts, mixtral.parts) == ("loads", 32, 8, 57)
    assert lines["olmoe-token-types-averaged"].kind == "averages"
    assert {"orin-mix-8"} < set(catalogue.list_parts()["fleets"])


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_described(name: str) -> None:
    found = catalogue.describe(name)
    json.dumps(found, allow_nan=False)
    assert found["content_hash"].startswith("sha256:")
    assert found["version"] >= 1
    assert found["licence"] in ("MIT", "Apache-2.0", "Apache-2.0, text MIT", "Apache-2.0, text public domain")
    assert found["manifest"]["source_commit"] or name.startswith("tiny-moe")  # made here
    assert found["memory"]["fits"]
    assert found["statistics"]["load_skew"]["worst"] >= found["statistics"]["load_skew"]["median"] > 1


def test_a_description_of_a_scenario_is_that_of_its_family() -> None:
    name = "mixtral-8x7b-mmlu-load:anatomy/agx-mix-8"
    assert catalogue.describe(name) == catalogue.describe("mixtral-8x7b-mmlu-load")
    with pytest.raises(wo.UnknownNameError, match="choose from mixtral-8x7b-mmlu-load"):
        catalogue.describe("mixtral")


def test_stats_of_a_case_done_by_hand() -> None:
    instance = wo.Instance.from_arrays(
        expert_ids=[[[0, 1], [1, 2], [3, 0]]], gate_weights=[[[0.6, 0.2], [0.3, 0.1], [0.5, 0.5]]],
        expert_device=[0, 0, 1, 1], compute_time=[1.0, 1.0], token_time_link=[1.0, np.inf],
    )  # fmt: skip
    found = stats(instance)
    assert found["sizes"] == {
        "blocks": 1, "tokens": 3, "experts": 4, "devices": 2, "top_k": 2, "candidates": 2,
    }  # fmt: skip
    assert found["reachable_devices"] == {"min": 1, "max": 1}
    assert found["expert_load_skew"]["median"] == pytest.approx(2 / 1.5)
    assert found["device_load_skew"]["worst"] == pytest.approx(4 / 3)
    assert found["unused_experts"] == 0
    assert found["shared_with_previous"] == pytest.approx(1 / 4)
    assert found["top_k_mass"] == pytest.approx({"min": 0.4, "mean": 2.2 / 3, "max": 1.0})
    assert found["retention"] == pytest.approx([2 / 3, 1.0])
    assert found["weight_outside"] is None


def test_stats_compare_a_token_with_its_predecessor_in_the_same_sequence_only() -> None:
    source = FAMILIES["deepseek-v2-lite-law"].load()
    assert isinstance(source, RoutingFile)
    border = int(np.flatnonzero(np.diff(source.sequence))[0]) + 1
    instance = wo.load_instance("deepseek-v2-lite-law", start=border - 2, tokens=4, blocks=1)
    assert instance.provenance["batch"]["sequence_starts"] == [2]
    ids = instance.expert_ids[0, :, :6].tolist()
    shared = sum(len(set(ids[i]) & set(ids[i - 1])) for i in (1, 3)) / 12
    assert stats(instance)["shared_with_previous"] == pytest.approx(shared)
    one = wo.load_instance("deepseek-v2-lite-law", start=border, tokens=1, blocks=1)
    assert stats(one)["shared_with_previous"] is None


def test_stats_of_users_and_token_types_know_no_predecessor() -> None:
    for name in ("gpt-oss-20b-decode@8", "olmoe-token-types-averaged@8"):
        assert catalogue.instance_stats(name)["shared_with_previous"] is None


@pytest.mark.parametrize("starts", [3, ["1"], [99], [-1], [True], None])
def test_stats_survive_a_strange_record_of_the_batch(starts: Any) -> None:
    instance = wo.load_instance("deepseek-v2-lite-law", tokens=4, blocks=1)
    for batch in ({"sequence_starts": starts}, starts):
        strange = replace(instance, provenance={"batch": batch})
        assert stats(strange)["shared_with_previous"] is None or batch is starts


def test_stats_bound_the_weight_outside() -> None:
    found = catalogue.instance_stats("deepseek-v2-lite-law@64")["weight_outside"]
    assert found["inconsistent_tokens"] == 0
    assert found["mean"] == pytest.approx(
        1 - catalogue.instance_stats("deepseek-v2-lite-law@64")["top_k_mass"]["mean"]
    )
    assert 0 < found["mean_largest_below"] < found["largest_below"] < found["mean"]
    assert catalogue.instance_stats("gpt-oss-20b-decode@8")["weight_outside"] is None


def test_stats_of_loads_say_none_where_nothing_is_known() -> None:
    found = catalogue.instance_stats("olmoe-domains:c4")
    assert found["expert_load_skew"] is None
    assert found["device_load_skew"]["median"] > 1
    assert found["sizes"]["tokens"] is None


@pytest.mark.parametrize("ending", ["npz", "json"])
def test_export_and_validate(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"x.{ending}"
    digest = catalogue.export_instance("gpt-oss-20b-decode@8#0-1", path)
    found = catalogue.validate_file(path)
    assert found == {
        "kind": "instance", "content_hash": digest,
        "summary": "Instance gpt-oss-20b-decode@8#0-1: 2 blocks, 8 tokens, 32 experts, top-4, 8 devices",
    }  # fmt: skip
    assert catalogue.instance_stats(path)["sizes"]["tokens"] == 8


@pytest.mark.parametrize("name", FAMILIES)
def test_shipped_files_are_valid(name: str) -> None:
    found = catalogue.validate_file(FAMILIES[name].path)
    assert found["content_hash"] == catalogue.describe(name)["content_hash"]


def test_a_device_profile_is_valid(tmp_path: Path) -> None:
    load_profile("orin-nx").save(tmp_path / "x.json")
    assert catalogue.validate_file(tmp_path / "x.json")["summary"] == "device profile orin-nx"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.npz", b"", "cannot be read as an archive (File is not a zip file)"),
        ("x.csv", b"", "the name must end in .npz, .json or .toml"),
        ("x.json", b"{", "not valid JSON"),
        ("x.json", b"[]", "kind must be 'instance'"),
        ("x.json", b'{"launch_time": 1}', "profile.schema_version: is missing"),
        ("x.json", b'{"routing": {}}', "routing: needs either 'family' or 'file'"),
        ("x.toml", b"\xff", "not UTF-8 text (invalid start byte)"),
    ],
)
def test_what_is_not_valid_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(wo.InstanceFileError) as caught:
        catalogue.validate_file(tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path / name}: ")
    assert message in str(caught.value)
    with pytest.raises(wo.InstanceFileError, match="cannot be read"):
        catalogue.validate_file(tmp_path / "none.npz")


def run_python(code: str) -> Any:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, check=True, capture_output=True, text=True
    )  # fmt: skip
    return json.loads(done.stdout)


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import json, sys, wdmoe_opt as wo; wo.load_instance('gpt-oss-20b-decode@8'); "
        "print(json.dumps([m for m in ('matplotlib', 'pandas', 'torch', 'cvxpy') if m in sys.modules]))"
    )
    assert run_python(code) == []
