"""The routing file: round trip, determinism, and every way it can be broken."""

from __future__ import annotations

import io
import json
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from wdmoe_opt.errors import InputError, InstanceFileError
from wdmoe_opt.instances.routing_file import (
    ARRAYS,
    SOURCE_KEYS,
    RoutingFile,
    RoutingFileError,
    id_dtype,
    rank_candidates,
    write_routing,
)

if TYPE_CHECKING:
    from pathlib import Path

SOURCE: dict[str, Any] = dict.fromkeys(SOURCE_KEYS) | {"model": "tiny", "prompts": {"count": 2}}


def make(blocks: int = 3, tokens: int = 7, experts: int = 6, m: int = 4, **changes: Any) -> RoutingFile:
    rng = np.random.default_rng(0)
    ids = np.argsort(rng.random((blocks, tokens, experts)), axis=2)[:, :, :m]
    ids, weights = rank_candidates(ids, rng.random((blocks, tokens, m)))
    values: dict[str, Any] = {
        "expert_ids": ids, "gate_weights": weights, "top_k": 2, "experts": experts,
        "sequence": np.arange(tokens) // 4, "position": np.arange(tokens) % 4, "manifest": SOURCE,
    }  # fmt: skip
    return RoutingFile(**(values | changes))


def rewrite(source: Path, target: Path, **members: bytes | None) -> Path:
    """Copy a routing file with some members replaced (None: left out), names with __ for a dot."""
    changed = {name.replace("__", "."): data for name, data in members.items()}
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
        data = {name: old.read(name) for name in old.namelist()} | changed
        for name, content in data.items():
            if content is not None:
                new.writestr(name, content)
    return target


def npy_bytes(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    make().save(tmp_path / "routing.npz")
    return tmp_path / "routing.npz"


def test_round_trip(tmp_path: Path) -> None:
    routing = make()
    digest = routing.save(tmp_path / "a.npz")
    loaded = RoutingFile.load(tmp_path / "a.npz")
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(loaded, name), getattr(routing, name))
        assert getattr(loaded, name).dtype == getattr(routing, name).dtype
        assert not getattr(loaded, name).flags.writeable
    assert loaded.manifest["content_hash"] == digest
    assert (loaded.top_k, loaded.experts, loaded.full) == (2, 6, False)
    assert loaded.manifest["tokens"] == 7
    assert "tiny: 3 blocks, 7 tokens, top-4 of 6" in repr(loaded)
    assert make(m=6).full


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    make().save(tmp_path / "a.npz")
    RoutingFile.load(tmp_path / "a.npz").save(tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "b.npz"]


def test_types_follow_the_number_of_experts() -> None:
    assert id_dtype(256) == np.uint8
    assert make(experts=300, m=300).expert_ids.dtype == np.uint16


def test_ranking_puts_lower_experts_first_among_equals() -> None:
    ids, weights = rank_candidates([5, 3, 1, 4], [0.2, 0.4, 0.2, 0.4])
    assert ids.tolist() == [3, 4, 1, 5]
    assert (np.diff(weights) <= 0).all()


@pytest.mark.parametrize(
    ("field", "index", "value", "message"),
    [
        ("gate_weights", (1, 2, 3), 5.0, r"gate_weights\[1, 2, 3\] = 5.0: must not rise"),
        ("gate_weights", (1, 2, 3), np.nan, r"gate_weights\[1, 2, 3\] = nan: must be finite"),
        ("gate_weights", (0, 0, 3), -0.5, r"gate_weights\[0, 0, 3\] = -0.5: must be at least 0"),
        ("expert_ids", (2, 6, 0), 6, r"expert_ids\[2, 6, 0\] = 6: must name an expert, 0 to 5"),
        ("expert_ids", (2, 6, 0), -1, r"expert_ids\[2, 6, 0\] = -1: must name"),
        ("sequence", (3,), -1, r"sequence\[3\] = -1: must be 0 to"),
    ],
)
def test_bad_values_are_named(field: str, index: tuple[int, ...], value: float, message: str) -> None:
    good = make()
    array = np.array(getattr(good, field), dtype=float if field == "gate_weights" else int)
    array[index] = value
    with pytest.raises(InputError, match=message):
        make(**{field: array})


def test_ties_repeats_and_empty_tokens_are_refused() -> None:
    ids = np.array([[[2, 1]]])
    labels = {"sequence": [0], "position": [0]}
    with pytest.raises(InputError, match="must rise among candidates of equal gate weight"):
        make(expert_ids=ids, gate_weights=np.array([[[0.5, 0.5]]]), **labels)
    with pytest.raises(InputError, match="twice"):
        make(expert_ids=ids * 0, gate_weights=np.array([[[0.5, 0.4]]]), **labels)
    with pytest.raises(InputError, match="must not all be zero"):
        make(expert_ids=ids[:, :, ::-1], gate_weights=np.zeros((1, 1, 2)), **labels)
    with pytest.raises(InputError, match="top_k = 5: must be 1 to m = 4"):
        make(top_k=5)


def test_manifest_must_name_its_source() -> None:
    with pytest.raises(InputError, match="has no 'prompt_hash'"):
        make(manifest={key: None for key in SOURCE_KEYS if key != "prompt_hash"})
    with pytest.raises(InputError, match="JSON values only"):
        make(manifest=SOURCE | {"extra": float("nan")})


def test_pieces_must_fill_the_shape(tmp_path: Path) -> None:
    good = make()
    with pytest.raises(InputError, match="expert_ids = 56: pieces must hold 84 bytes"):
        write_routing(
            tmp_path / "a.npz", shape=(3, 7, 4), experts=6, top_k=2, expert_ids=good.expert_ids[:2],
            gate_weights=good.gate_weights, sequence=good.sequence, position=good.position, manifest=SOURCE,
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_a_changed_array_or_manifest_is_found(saved: Path, tmp_path: Path) -> None:
    labels = npy_bytes(np.zeros(7, dtype=np.int32))
    with pytest.raises(RoutingFileError, match="does not match its content_hash"):
        RoutingFile.load(rewrite(saved, tmp_path / "b.npz", sequence__npy=labels))
    with zipfile.ZipFile(saved) as archive:
        manifest = json.loads(archive.read("manifest.json"))
    manifest["model"] = "another"
    changed = rewrite(saved, tmp_path / "c.npz", manifest__json=json.dumps(manifest).encode())
    with pytest.raises(InstanceFileError, match=r"c\.npz: content does not match"):
        RoutingFile.load(changed)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"sequence__npy": None}, "must hold exactly"),
        ({"more__npy": b""}, "must hold exactly"),
        ({"sequence__npy": b"not an array"}, "cannot be read"),
        ({"sequence__npy": npy_bytes(np.zeros(7))}, "no valid type or shape"),
        ({"sequence__npy": npy_bytes(np.zeros(7, dtype=np.int32))[:-4]}, "size does not match its shape"),
        ({"manifest__json": b"[]"}, "kind must be 'routing'"),
        ({"manifest__json": b'{"kind": "routing", "schema_version": 9}'}, "schema_version 9"),
        ({"manifest__json": b"{"}, "cannot be read"),
        ({"manifest__json": b'{"kind": "routing", "schema_version": 1}'}, "does not match its content_hash"),
    ],
)
def test_broken_members_are_refused(
    saved: Path, tmp_path: Path, members: dict[str, bytes], message: str
) -> None:
    with pytest.raises(RoutingFileError, match=message) as caught:
        RoutingFile.load(rewrite(saved, tmp_path / "broken.npz", **members))
    assert "\n" not in str(caught.value)
    assert "broken.npz" in str(caught.value)


def test_pickles_are_never_read(saved: Path, tmp_path: Path) -> None:
    stream = io.BytesIO()
    np.save(stream, np.array([{"a": 1}] * 7, dtype=object), allow_pickle=True)
    with pytest.raises(RoutingFileError, match="no valid type"):
        RoutingFile.load(rewrite(saved, tmp_path / "b.npz", sequence__npy=stream.getvalue()))


def test_large_and_cut_files_are_refused(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(RoutingFileError, match="over the limit of 500"):
        RoutingFile.load(saved, limit=500)
    (tmp_path / "cut.npz").write_bytes(saved.read_bytes()[:-40])
    with pytest.raises(RoutingFileError, match="cannot be read"):
        RoutingFile.load(tmp_path / "cut.npz")
    with pytest.raises(RoutingFileError, match="cannot be read"):
        RoutingFile.load(tmp_path / "absent.npz")
