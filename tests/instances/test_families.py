"""Routing families: what was published about them, their batches, and that every one is solved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import wdmoe_opt as wo
from wdmoe_opt.archive import LZMA, ArchiveError
from wdmoe_opt.instances import families, statistics
from wdmoe_opt.instances.families import FAMILIES, block_indices
from wdmoe_opt.instances.load_file import LoadFile, exact_loads
from wdmoe_opt.instances.placement import balanced, contiguous
from wdmoe_opt.instances.routing_file import SOURCE_KEYS, RoutingFile
from wdmoe_opt.instances.token_types import TokenTypes

DATA = Path(families.__file__).parent / "data"
TOKEN_FAMILIES = [name for name, family in FAMILIES.items() if family.mode != "loads"]
LOAD_FAMILIES = [name for name, family in FAMILIES.items() if family.mode == "loads"]
DEEPSEEK = [name for name in FAMILIES if name.startswith("deepseek")]
SOURCE = dict.fromkeys(SOURCE_KEYS) | {"model": "toy", "top_k": 1, "layers": [0], "parts": ["a"]}

#: Content of each version: whoever changes the numbers of a family counts its version up.
PINNED = {
    "deepseek-v2-lite-intent": (1, "sha256:70b5a6ff1a99"),
    "deepseek-v2-lite-law": (1, "sha256:50e591736fc0"),
    "deepseek-v2-lite-summary": (1, "sha256:c2798c5b8b62"),
    "deepseek-v2-lite-translation": (1, "sha256:6a5c2fb98191"),
    "gpt-oss-20b-decode": (1, "sha256:c5e3fb8c741e"),
    "mixtral-8x7b-mmlu-load": (1, "sha256:96d698b74bda"),
    "olmoe-domains": (1, "sha256:b1e823913b3c"),
    "olmoe-token-types-averaged": (1, "sha256:7f64c55a8e4e"),
    "tiny-moe-gsm8k": (1, "sha256:03ae99219b2f7c08"),
    "tiny-moe-humaneval": (1, "sha256:15037e487090"),
    "tiny-moe-shakespeare": (1, "sha256:8e80ae6735a2"),
}


def routing_of(name: str) -> RoutingFile:
    source = FAMILIES[name].load()
    assert isinstance(source, RoutingFile)
    return source


def loads_of(name: str) -> LoadFile:
    source = FAMILIES[name].load()
    assert isinstance(source, LoadFile)
    return source


# ---------------------------------------------------------------------- data


@pytest.mark.parametrize("name", FAMILIES)
def test_versions_pin_the_content(name: str) -> None:
    version, digest = PINNED[name]
    assert FAMILIES[name].version == version
    assert str(FAMILIES[name].load().manifest["content_hash"]).startswith(digest)


@pytest.mark.parametrize("folder", sorted({file.parent for file in DATA.glob("*/*/*")}), ids=lambda p: p.name)
def test_every_data_folder_has_licence_and_provenance(folder: Path) -> None:
    assert list(folder.glob("LICENSE*"))
    text = (folder / "PROVENANCE.md").read_text(encoding="utf-8")
    assert "repositor" in text.lower()


def test_the_data_stay_small() -> None:
    assert sum(file.stat().st_size for file in DATA.rglob("*")) < 24e6


# ---------------------------------------------------------------------- published statistics


@pytest.mark.parametrize(
    ("name", "median"),
    [
        ("deepseek-v2-lite-intent", 3.96),
        ("deepseek-v2-lite-law", 3.28),
        ("deepseek-v2-lite-summary", 4.35),
        ("deepseek-v2-lite-translation", 5.58),
        ("gpt-oss-20b-decode", 2.45),
    ],
)
def test_load_skew_is_the_published_one(name: str, median: float) -> None:
    skew = statistics.routing_statistics(routing_of(name))["load_skew"]
    assert round(skew["median"], 2) == median


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("gpt-oss-20b-decode", 0.415, 0.425), *((name, 0.255, 0.295) for name in DEEPSEEK)],
)
def test_experts_shared_with_the_previous_token(name: str, low: float, high: float) -> None:
    routing = routing_of(name)
    shared = statistics.shared_with_previous(routing.expert_ids, routing.sequence, routing.top_k).mean()
    assert low < shared < high


@pytest.mark.parametrize("name", DEEPSEEK)
def test_the_six_of_deepseek_are_the_largest_of_a_softmax(name: str) -> None:
    routing = routing_of(name)
    weights = routing.gate_weights.astype(np.float64)
    outside = 1 - weights.sum(axis=2)
    # Every weight is rounded to four decimals: six of them in the sum, one in the smallest.
    assert (outside <= 58 * (weights.min(axis=2) + 0.5e-4) + 6 * 0.5e-4 + 1e-6).all()
    assert statistics.weight_outside(weights, 64, rounding=0.5e-4).consistent.all()
    assert 0.33 <= weights.sum(axis=2).mean() <= 0.40


def test_gpt_oss_has_no_weight_outside() -> None:
    mass = routing_of("gpt-oss-20b-decode").gate_weights.sum(axis=2)
    assert abs(mass - 1).max() < 0.0031


@pytest.mark.parametrize("name", [name for name in FAMILIES if name.startswith("tiny-moe")])
def test_the_tiny_moe_has_its_full_gate(name: str) -> None:
    routing = routing_of(name)
    assert routing.full
    assert (routing.blocks, routing.experts, routing.top_k) == (6, 8, 2)
    assert abs(routing.gate_weights[:, :, :2].sum(axis=2) - 1).max() < 1e-5


def test_mixtral_loads_are_whole_and_nearly_even() -> None:
    loads = loads_of("mixtral-8x7b-mmlu-load")
    assert loads.loads.shape == (57, 20, 32, 8)
    tokens = loads.loads[:, :, 0].sum(axis=2) // 2
    assert (tokens.min(), np.median(tokens), tokens.max()) == (283, 548, 2044)
    per_question = loads.loads.reshape(-1, 32, 8) / loads.loads.mean(axis=3).reshape(-1, 32, 1)
    assert round(float(np.median(per_question.max(axis=2))), 2) == 1.38


def test_olmoe_loads_have_the_published_range() -> None:
    loads = loads_of("olmoe-domains")
    skew = {part: statistics.load_skew(loads.loads[i, 0]) for i, part in enumerate(loads.parts)}
    assert round(float(skew["c4"][2]), 1) == 2.5
    assert round(float(skew["arxiv"][0]), 1) == 7.8
    assert (loads.loads.sum(axis=3)[:5] == 208_896 * 8).all()


def test_token_types_are_distributions() -> None:
    types = FAMILIES["olmoe-token-types-averaged"].load()
    assert isinstance(types, TokenTypes)
    for part in types.parts:
        shares = types.distribution(part)
        np.testing.assert_allclose(shares.sum(axis=2), 1, rtol=1e-12)
        assert shares.max() <= 1 / types.top_k + 1e-12
        assert (np.diff(types.occurrences[types.rows(part)]) <= 0).all()
    routing = types.routing("github")
    assert (routing.full, routing.blocks, routing.tokens) == (True, 1, 889)
    assert "averages" in routing.manifest["weights_meaning"]


def test_exact_loads_come_back_from_rounded_shares() -> None:
    rng = np.random.default_rng(5)
    for tokens in (7, 283, 2044):
        loads = rng.multinomial(2 * tokens, np.full(8, 1 / 8), size=(1, 32))
        shares = (loads / (2 * tokens)).astype(np.float32)
        np.testing.assert_array_equal(exact_loads(shares, 2), loads)
    with pytest.raises(wo.InputError, match=r"shares\[0\]: no number of tokens up to 50 fits"):
        exact_loads(shares, 2, most_tokens=50)


# ---------------------------------------------------------------------- weight outside


def test_bounds_on_the_weight_outside_hold_for_full_softmaxes() -> None:
    rng = np.random.default_rng(3)
    gates = np.exp(rng.normal(size=(500, 64)) * rng.uniform(0.1, 3, size=(500, 1)))
    gates = -np.sort(-gates / gates.sum(axis=1, keepdims=True), axis=1)
    found = statistics.weight_outside(gates[:, :6], 64)
    np.testing.assert_allclose(found.mass, gates[:, 6:].sum(axis=1), atol=1e-12)
    assert (gates[:, 6] <= found.largest_below + 1e-12).all()
    assert (gates[:, 6] >= found.largest_above - 1e-12).all()
    assert found.consistent.all()
    assert not statistics.weight_outside([[0.3, 0.01]], 4).consistent.any()
    assert statistics.weight_outside([[0.3, 0.7]], 2).mass.tolist() == [0.0]
    with pytest.raises(wo.InputError, match="must sum to at most 1"):
        statistics.weight_outside([[0.9, 0.3]], 4)


def test_bounds_on_the_weight_outside_hold_for_stored_decimals() -> None:
    """Weights near the end of a rounding step: the seventh may be heavier than the sixth as stored."""
    gates = np.full((1, 64), 0.0)
    gates[0, :7] = [0.5, 0.2, 0.1, 0.05, 0.0101, 0.01004, 0.01003]
    gates[0, 7:] = (1 - gates[0].sum()) / 57
    found = statistics.weight_outside(gates[:, :6].round(4), 64, rounding=0.5e-4)
    assert gates[0, 6] > gates[0, 5].round(4) * 1.001
    assert found.largest_below[0] == pytest.approx(0.0100 + 0.5e-4, rel=1e-12)
    # Where the mass decides: six stored weights, each rounded up by half a unit.
    whole = np.array([[0.3, 0.2, 0.2, 0.1, 0.1, 0.0999]])
    found = statistics.weight_outside(whole, 64, rounding=0.5e-4)
    assert found.largest_below[0] == pytest.approx(1e-4 + 6 * 0.5e-4, rel=1e-9)
    assert found.largest_above[0] == 0
    rng = np.random.default_rng(4)
    gates = np.exp(rng.normal(size=(5000, 64)) * rng.uniform(0, 0.5, size=(5000, 1)))
    gates = -np.sort(-gates / gates.sum(axis=1, keepdims=True), axis=1)
    stored = gates[:, :6].round(4)
    assert (gates[:, 6] > stored[:, 5] * 1.001).any()
    found = statistics.weight_outside(stored, 64, rounding=0.5e-4)
    assert (gates[:, 6] <= found.largest_below + 1e-12).all()
    assert (gates[:, 6] >= found.largest_above - 1e-12).all()
    exact = statistics.weight_outside([[0.5, 0.25]], 8)
    assert (exact.largest_below[0], exact.largest_above[0]) == (0.25, 0.25 / 6)


# ---------------------------------------------------------------------- batches


@pytest.mark.parametrize("tokens", [8, 16, 32, 64, 128, 512])
def test_prefill_batches_are_windows(tokens: int) -> None:
    routing = routing_of("deepseek-v2-lite-law")
    instance = wo.load_instance("deepseek-v2-lite-law", tokens=tokens, start=100, blocks=[3, 0])
    assert (instance.blocks, instance.tokens) == (2, tokens)
    assert instance.expert_ids is not None
    np.testing.assert_array_equal(instance.expert_ids, routing.expert_ids[[3, 0], 100 : 100 + tokens])


def test_decode_batches_are_one_token_of_each_user() -> None:
    routing = routing_of("gpt-oss-20b-decode")
    instance = wo.load_instance("gpt-oss-20b-decode", start=70)
    assert instance.tokens == 24
    assert instance.expert_ids is not None
    for user in range(24):
        index = np.flatnonzero(routing.sequence == user)[70]
        np.testing.assert_array_equal(instance.expert_ids[:, user], routing.expert_ids[:, index])
    late = wo.load_instance("gpt-oss-20b-decode", tokens="all", start=400)
    assert 1 <= late.tokens < 24
    with pytest.raises(wo.InputError, match=r"tokens = 24: must be 1 to \d+ users at step 400"):
        wo.load_instance("gpt-oss-20b-decode", start=400)


def test_the_default_users_are_past_the_format_tokens() -> None:
    early, usual = (
        statistics.stats(wo.load_instance("gpt-oss-20b-decode", start=start)) for start in (0, None)
    )
    assert early["expert_load_skew"]["median"] == 8.0
    assert usual["expert_load_skew"]["median"] < 4.0


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [(None, [0, 1, 2, 3]), (2, [0, 1]), ("3", [3]), ("1-2", [1, 2]), ("0,2-3", [0, 2, 3]), ((3, 1), [3, 1])],
)
def test_blocks_are_chosen(blocks: Any, expected: list[int]) -> None:
    assert block_indices(blocks, 4).tolist() == expected


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        (5, r"^blocks = 5: must be 1 to 4: a number keeps the first so many blocks"),
        ("4", r"^blocks = 4: must name a block, 0 to 3$"),
        ("x", r"^blocks = 'x': must be a number of blocks, or indices such as '3-3', '0-4' or '0,7,15'$"),
        ("2-1", r"^blocks: must name at least one block$"),
        ("1,1", r"^blocks = \[1, 1\]: must name each block once$"),
        ([], r"^blocks: must name at least one block$"),
        ([0.5], r"^blocks = 0\.5: must be a whole number$"),
        (1.5, r"^blocks = 1\.5: must be a whole number$"),
    ],
)
def test_wrong_blocks_are_named(blocks: Any, message: str) -> None:
    with pytest.raises(wo.InputError, match=message):
        block_indices(blocks, 4)


def test_loads_refuse_what_only_tokens_have() -> None:
    with pytest.raises(wo.InputError, match=r"^tokens = 8: cannot be set: only the loads of whole prompts"):
        wo.load_instance("olmoe-domains", tokens=8)
    with pytest.raises(wo.InputError, match=r"^start = 2: cannot be set: choose a prompt as"):
        wo.load_instance("olmoe-domains", start=2)
    with pytest.raises(wo.UnknownNameError, match=r"^part = 'anatom': unknown name; choose from anatomy"):
        wo.load_instance("mixtral-8x7b-mmlu-load", part="anatom")
    with pytest.raises(wo.InputError, match=r"^part = 'anatomy.20': prompt must be 0 to 19$"):
        wo.load_instance("mixtral-8x7b-mmlu-load", part="anatomy.20")
    with pytest.raises(wo.InputError, match=r"^part = 'x': cannot be set: the family has no parts$"):
        wo.load_instance("deepseek-v2-lite-law", part="x")


def test_loads_of_a_subject_are_the_sum_of_its_questions() -> None:
    whole = wo.load_instance("mixtral-8x7b-mmlu-load", part="anatomy")
    parts = [wo.load_instance("mixtral-8x7b-mmlu-load", part=f"anatomy.{i}") for i in range(20)]
    assert whole.loads is not None
    np.testing.assert_array_equal(whole.loads, sum(part.loads for part in parts if part.loads is not None))
    assert (whole.blocks, whole.devices) == (32, 8)


def test_loads_follow_the_placement_and_activation_counts_the_hosted() -> None:
    loads = loads_of("olmoe-domains").loads[3, 0]
    instance = wo.load_instance("olmoe-domains", part="github")
    assert instance.loads is not None
    np.testing.assert_array_equal(instance.loads, loads.reshape(3, 8, 8).sum(axis=2))
    single = wo.load_instance("olmoe-domains", part="github", fleet="orin-mix-64")
    np.testing.assert_allclose(instance.activation_time, 8 * single.activation_time[:8])


# ---------------------------------------------------------------------- placement


def test_balanced_placement_evens_out_blocks_without_hindsight() -> None:
    for name in DEEPSEEK:
        even, plain = (
            statistics.stats(wo.load_instance(name, placement=rule))["device_load_skew"]["median"]
            for rule in ("balanced", "contiguous")
        )
        assert even < plain
    with pytest.raises(wo.InputError, match="'balanced' needs tokens of the family outside the batch"):
        wo.load_instance("deepseek-v2-lite-law", tokens="all", placement="balanced")


def test_balanced_does_not_look_at_the_batch() -> None:
    routing = routing_of("deepseek-v2-lite-law")
    instance = wo.load_instance("deepseek-v2-lite-law", tokens=512, start=1000, placement="balanced")
    rest = np.r_[0:1000, 1512 : routing.tokens]
    counts = [np.bincount(block[rest].ravel(), minlength=64) for block in routing.expert_ids]
    assert instance.expert_device is not None
    np.testing.assert_array_equal(instance.expert_device, balanced(np.array(counts), 8))


def test_balanced_on_a_case_done_by_hand() -> None:
    # Two blocks, two devices: experts 0 and 2 are busy in block 0, expert 1 and 3 in block 1.
    load = np.array([[9, 0, 7, 0], [0, 8, 0, 6]])
    assert balanced(load, 2).tolist() == [0, 0, 1, 1]
    assert np.bincount(balanced(np.ones((1, 7), dtype=np.int64), 3)).max() == 3
    assert contiguous(7, 3).tolist() == [0, 0, 0, 1, 1, 2, 2]


# ---------------------------------------------------------------------- solving


@pytest.mark.parametrize("name", TOKEN_FAMILIES)
def test_every_token_family_is_solved(name: str) -> None:
    instance = wo.load_instance(name, tokens=16)
    latency = {}
    for method in ("topk-uniform", "topk", "wdmoe"):
        solution = wo.solve(instance, method)
        assert solution.feasible
        latency[method] = solution.latency
    assert latency["topk"] <= latency["topk-uniform"] * (1 + 1e-9)


@pytest.mark.parametrize("name", LOAD_FAMILIES)
def test_every_load_family_is_solved_for_bandwidth_only(name: str) -> None:
    instance = wo.load_instance(name)
    uniform, best = (wo.solve(instance, method).latency for method in ("topk-uniform", "topk"))
    assert best < uniform
    with pytest.raises(wo.WdmoeError, match=r"loads|gate weights|selection"):
        wo.solve(instance, "wdmoe")
    with pytest.raises(
        wo.InputError, match=r"^objective = 'wlr-token': must be 'latency': the instance has loads"
    ):
        wo.Problem(instance, objective="wlr-token")


def test_a_whole_model_with_512_tokens_is_solved() -> None:
    instance = wo.load_instance("deepseek-v2-lite-summary")
    assert (instance.blocks, instance.tokens, instance.experts) == (26, 512, 64)
    assert wo.solve(instance, "topk").latency < wo.solve(instance, "topk-uniform").latency


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_survives_an_instance_file(name: str, tmp_path: Path) -> None:
    instance = wo.load_instance(name, blocks=1)
    instance.save(tmp_path / "x.npz")
    loaded = wo.load_instance(tmp_path / "x.npz")
    assert dict(loaded.provenance) == dict(instance.provenance)
    for key, value in instance.arrays().items():
        np.testing.assert_array_equal(loaded.arrays()[key], value)


# ---------------------------------------------------------------------- file rules


def test_load_files_are_checked(tmp_path: Path) -> None:
    good = LoadFile(np.array([[[[1, 2], [3, 0]]]], dtype=np.uint16), {**SOURCE, "layers": [0, 1]})
    good.save(tmp_path / "x.npz", compression=LZMA)
    loaded = LoadFile.load(tmp_path / "x.npz")
    np.testing.assert_array_equal(loaded.loads, good.loads)
    assert (loaded.tokens, loaded.blocks, loaded.experts, loaded.top_k) == (3, 2, 2, 1)
    uneven = np.array([[[[1, 2], [3, 1]]]], dtype=np.uint16)
    with pytest.raises(
        wo.InputError, match=r"loads\[0, 0, 1\] = 4: blocks of a prompt must have equal totals"
    ):
        LoadFile(uneven, {**SOURCE, "layers": [0, 1]})
    with pytest.raises(wo.InputError, match=r"totals must be multiples of top_k = 2"):
        LoadFile(good.loads, {**SOURCE, "layers": [0, 1], "top_k": 2})
    with pytest.raises(wo.InputError, match=r"manifest\.layers: must name 2 as loads has"):
        LoadFile(good.loads, SOURCE)
    with pytest.raises(wo.InputError, match=r"must be unsigned"):
        LoadFile(good.loads.astype(float), SOURCE)
    with pytest.raises(ArchiveError, match="kind must be 'token-types'"):
        TokenTypes.load(_renamed(tmp_path))


def _renamed(folder: Path) -> Path:
    """Archive with the members of a token-type file and the kind of another."""
    from wdmoe_opt.archive import Layout, write_archive
    from wdmoe_opt.instances.token_types import LAYOUT

    arrays = {
        "counts": np.zeros((1, 1, 2), dtype=np.uint16),
        "domain": np.zeros(1, dtype=np.uint8),
        "token_id": np.zeros(1, dtype=np.uint32),
    }
    write_archive(folder / "other.npz", Layout("other", 1, LAYOUT.arrays), arrays, {})
    return folder / "other.npz"


def test_token_type_files_are_checked() -> None:
    counts = np.array([[[2, 0], [1, 1]]], dtype=np.uint16)
    labels: dict[str, Any] = {
        "domain": np.zeros(2, dtype=np.uint8), "token_id": np.arange(2, dtype=np.uint32), "manifest": SOURCE,
    }  # fmt: skip
    assert TokenTypes(counts, **labels).occurrences.tolist() == [2, 2]
    with pytest.raises(wo.InputError, match="an expert is chosen at most once per occurrence"):
        TokenTypes(counts, **{**labels, "manifest": {**SOURCE, "top_k": 2}})
    with pytest.raises(wo.InputError, match=r"domain\[0\] = 1: must be below 1 parts"):
        TokenTypes(counts, **{**labels, "domain": np.ones(2, dtype=np.uint8)})
    with pytest.raises(wo.InputError, match=r"token_id: must have shape \(2,\)"):
        TokenTypes(counts, **{**labels, "token_id": np.zeros(3, dtype=np.uint32)})
    with pytest.raises(wo.UnknownNameError, match="choose from a"):
        TokenTypes(counts, **labels).rows("b")


@pytest.mark.parametrize("name", ["gpt-oss-20b-decode", "olmoe-domains", "olmoe-token-types-averaged"])
def test_a_damaged_family_is_refused(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    data = bytearray(family.path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path = tmp_path / "damaged.npz"
    path.write_bytes(data)
    with pytest.raises(ArchiveError, match=r"damaged\.npz: "):
        type(family.load()).load(path)
