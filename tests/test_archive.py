"""Archives and instance files: round trip, equal bytes, and every way a file can be damaged or forged."""

from __future__ import annotations

import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import wdmoe_opt as wo
from wdmoe_opt.archive import (
    LZMA,
    MANIFEST,
    ArchiveError,
    ArrayRule,
    Layout,
    Stream,
    content_hash,
    dump_json,
    peek_manifest,
    read_archive,
    write_archive,
    write_atomically,
)

LAYOUT = Layout("toy", 2, {"a": ArrayRule(("<f8",), (1, 2)), "b": ArrayRule(("<i8",), (0, 1))}, optional=True)
ARRAYS = {"a": np.linspace(0, 1, 6).reshape(2, 3), "b": np.array(7)}


def small_instance(**changes: Any) -> wo.Instance:
    fields: dict[str, Any] = {
        "expert_ids": [[[0, 1], [1, -1]]], "gate_weights": [[[0.6, 0.3], [0.5, 0.0]]], "top_k": 2,
        "compute_time": [1e-3, 2e-3], "token_time_link": [1e-3, np.inf], "compute_power": [30.0, np.nan],
        "name": "tiny", "provenance": {"source": {"made": "by hand"}},
    }  # fmt: skip
    return wo.Instance.from_arrays(**(fields | changes))


def forge(path: Path, members: dict[str, bytes], **changes: Any) -> None:
    """Write members as they come, with what zipfile lets one say about them."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            info = zipfile.ZipInfo(name)
            for key, value in changes.items():
                setattr(info, key, value)
            archive.writestr(info, data)


def npy_bytes(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def manifest_bytes(arrays: dict[str, np.ndarray], **changes: Any) -> bytes:
    manifest = {**LAYOUT.header(), **changes}
    return dump_json({"content_hash": content_hash(arrays, manifest), **manifest}).encode()


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, LZMA])
def test_round_trip_and_equal_bytes(tmp_path: Path, compression: int) -> None:
    for name in ("one.npz", "two.npz"):
        manifest = write_archive(tmp_path / name, LAYOUT, ARRAYS, {"x": [1, None]}, compression=compression)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    arrays, read = read_archive(tmp_path / "one.npz", LAYOUT)
    assert read == manifest == peek_manifest(tmp_path / "one.npz")
    assert read["x"] == [1, None]
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(arrays[name], array)
        assert not arrays[name].flags.writeable


def test_a_streamed_array_gives_the_bytes_of_a_whole_one(tmp_path: Path) -> None:
    write_archive(tmp_path / "whole.npz", LAYOUT, ARRAYS, {})
    pieces = Stream(np.dtype("<f8"), (2, 3), iter(ARRAYS["a"]))
    write_archive(tmp_path / "pieces.npz", LAYOUT, {**ARRAYS, "a": pieces}, {})
    assert (tmp_path / "whole.npz").read_bytes() == (tmp_path / "pieces.npz").read_bytes()


def test_big_endian_arrays_hash_as_little_endian_ones() -> None:
    big = {"a": ARRAYS["a"].astype(">f8")}
    assert content_hash(big, {}) == content_hash({"a": ARRAYS["a"]}, {})


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"c": ARRAYS["a"]}, "must hold only, each once, a.npy, b.npy, manifest.json; holds c.npy"),
        ({"a": ARRAYS["a"].astype(">f8")}, "a.npy: has no valid type or shape (>f8, (2, 3))"),
        ({"a": ARRAYS["a"].T}, "a.npy: has no valid type or shape (<f8, (3, 2))"),
        ({"a": np.array([{}])}, "a.npy: has no valid type or shape (|O, (1,))"),
        ({"b": np.zeros((1, 1), dtype=np.int64)}, "b.npy: has no valid type or shape (<i8, (1, 1))"),
    ],
)
def test_members_outside_the_layout_are_refused(
    tmp_path: Path, members: dict[str, np.ndarray], message: str
) -> None:
    path = tmp_path / "bad.npz"
    data = {f"{name}.npy": npy_bytes(array) for name, array in members.items()}
    forge(path, {**data, MANIFEST: manifest_bytes({})})
    with pytest.raises(ArchiveError, match=re.escape(message)):
        read_archive(path, LAYOUT)


def test_twice_the_same_member_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "twice.npz"
    good = {"a.npy": npy_bytes(ARRAYS["a"]), MANIFEST: manifest_bytes({"a": ARRAYS["a"]})}
    forge(path, good)
    assert read_archive(path, LAYOUT)[0].keys() == {"a"}
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr("a.npy", npy_bytes(ARRAYS["a"]))
    with pytest.raises(ArchiveError, match="each once"):
        read_archive(path, LAYOUT)


def test_odd_compression_encryption_and_size_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "odd.npz"
    good = {"a.npy": npy_bytes(ARRAYS["a"]), MANIFEST: manifest_bytes({"a": ARRAYS["a"]})}
    forge(path, good, compress_type=zipfile.ZIP_BZIP2)
    with pytest.raises(
        ArchiveError, match=r"manifest\.json: must be stored, deflated or LZMA, not encrypted"
    ):
        read_archive(path, LAYOUT)
    forge(path, good)
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(ArchiveError, match="not encrypted"):
        read_archive(path, LAYOUT)
    forge(path, good)
    with pytest.raises(ArchiveError, match=r"unpacked it is .* over the limit of 100"):
        read_archive(path, LAYOUT, limit=100)
    forge(path, {MANIFEST: b" " * (16 * 2**20 + 1)})
    with pytest.raises(ArchiveError, match=r"manifest\.json: 16777217 bytes, over the limit"):
        read_archive(path, LAYOUT)


@pytest.mark.parametrize("header", [b"{'descr': 'x'}", b"{", b"(" * 150, b"{'a': 1" + b" " * 50])
def test_a_forged_header_is_refused_in_one_line(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "bad.npz"
    data = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    forge(path, {"a.npy": data, MANIFEST: manifest_bytes({})})
    with pytest.raises(ArchiveError, match="cannot be read as a file of kind 'toy'") as caught:
        read_archive(path, LAYOUT)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ending", ["npz", "json"])
def test_random_damage_is_refused_in_one_line_or_changes_nothing(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"x.{ending}"
    good = small_instance()
    good.save(path)
    data, rng, refusals = path.read_bytes(), np.random.default_rng(11), []
    for _ in range(400):
        damaged = bytearray(data)
        for place in rng.integers(len(data), size=rng.integers(1, 4)):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged[: rng.integers(len(data))] if rng.random() < 0.1 else damaged)
        try:
            loaded = wo.Instance.load(path)
        except wo.InstanceFileError as error:
            refusals.append(str(error))
        else:
            # The damage hit the zip's own bookkeeping, or replaced a byte by itself.
            for name, value in good.arrays().items():
                np.testing.assert_array_equal(loaded.arrays()[name], value)
    assert len(refusals) > 300
    assert all(line.startswith(str(path)) and "\n" not in line for line in refusals)


def test_a_file_of_another_kind_is_named(tmp_path: Path) -> None:
    write_archive(tmp_path / "toy.npz", LAYOUT, ARRAYS, {})
    with pytest.raises(ArchiveError, match=r"toy\.npz: manifest\.json: kind must be 'instance', is 'toy'"):
        wo.Instance.load(tmp_path / "toy.npz")


def test_nothing_is_left_behind_where_writing_fails(tmp_path: Path) -> None:
    def fail(stream: Any) -> None:
        stream.write(b"half")
        raise KeyboardInterrupt

    (tmp_path / "old.npz").write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "old.npz", fail)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]
    with pytest.raises(ArchiveError, match=r"none/x\.npz: cannot be written \(No such file"):
        write_archive(tmp_path / "none" / "x.npz", LAYOUT, ARRAYS, {})


# ---------------------------------------------------------------------- instance files


@pytest.mark.parametrize("ending", ["npz", "json"])
def test_an_instance_survives_its_file(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"x.{ending}"
    instance = small_instance()
    instance.save(path)
    loaded = wo.Instance.load(path)
    assert (loaded.name, dict(loaded.provenance)) == ("tiny", {"source": {"made": "by hand"}})
    for name, value in instance.arrays().items():
        np.testing.assert_array_equal(loaded.arrays()[name], value)
    before = path.read_bytes()
    loaded.save(path)
    assert path.read_bytes() == before


def test_both_endings_carry_the_same_hash(tmp_path: Path) -> None:
    instance = small_instance()
    instance.save(tmp_path / "x.npz")
    instance.save(tmp_path / "x.json")
    content = json.loads((tmp_path / "x.json").read_text())
    assert content["content_hash"] == peek_manifest(tmp_path / "x.npz")["content_hash"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("0.6", "0.7"), "content does not match its content_hash"),
        (("by hand", "by me"), "content does not match its content_hash"),
        (('"schema_version": 1', '"schema_version": 2'), "schema_version 2: this release reads 1"),
        (('"instance"', '"routing"'), "kind must be 'instance'"),
        (('"compute_time"', '"compute_tim"'), "holds 'compute_tim'"),
        (("0.6", '"six"'), r"arrays\.gate_weights must be rectangular and numeric \('six' is not a number\)"),
        (("0.6", "[0.6]"), r"arrays\.gate_weights must be rectangular"),
        (("{", "", 1), "not valid JSON"),
    ],
)
def test_a_hand_edited_json_file_is_refused(tmp_path: Path, change: tuple[Any, ...], message: str) -> None:
    path = tmp_path / "edited.json"
    small_instance().save(path)
    path.write_text(path.read_text().replace(*change))
    with pytest.raises(wo.InstanceFileError, match=message) as caught:
        wo.Instance.load(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_what_is_not_an_instance_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(b"\xff")
    with pytest.raises(wo.InstanceFileError, match="not UTF-8"):
        wo.Instance.load(tmp_path / "x.json")
    for name in ("none.json", "none.npz"):
        with pytest.raises(wo.InstanceFileError, match=r"cannot be read.*No such file"):
            wo.Instance.load(tmp_path / name)
    with pytest.raises(wo.InstanceFileError, match=r"must end in \.npz or \.json"):
        small_instance().save(tmp_path / "x.csv")
    with pytest.raises(wo.InputError, match="JSON values only"):
        small_instance(provenance={"x": float("nan")}).save(tmp_path / "x.npz")


def test_a_file_that_breaks_a_rule_of_instances_names_file_and_rule(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    small_instance().save(path)
    content = json.loads(path.read_text())
    content["arrays"]["compute_time"][1] = -1.0
    arrays = {name: np.asarray(value) for name, value in small_instance().arrays().items()}
    arrays["compute_time"] = np.array([1e-3, -1.0])
    manifest = {key: value for key, value in content.items() if key not in ("arrays", "content_hash")}
    content["content_hash"] = content_hash(arrays, manifest)
    path.write_text(json.dumps(content))
    with pytest.raises(wo.InstanceFileError, match=r"x\.json: compute_time\[1\] = -1\.0: must be at least 0"):
        wo.Instance.load(path)


@pytest.mark.parametrize("word", ["NaN", "-Infinity", "1e999", '"\\ud800"'])
@pytest.mark.parametrize("ending", ["npz", "json"])
def test_what_json_has_not_is_refused_in_one_line(tmp_path: Path, ending: str, word: str) -> None:
    path = tmp_path / f"x.{ending}"
    small_instance(provenance={"x": "MARK"}).save(path)
    if ending == "json":
        path.write_text(path.read_text().replace('"MARK"', word))
    else:
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        members[MANIFEST] = members[MANIFEST].replace(b'"MARK"', word.encode())
        forge(path, members)
    with pytest.raises(wo.InstanceFileError) as caught:
        wo.Instance.load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    str(caught.value).encode()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "\ud800", {"\udfff": 1}])
@pytest.mark.parametrize("ending", ["npz", "json"])
def test_what_json_has_not_is_not_written(tmp_path: Path, ending: str, value: Any) -> None:
    for changes in ({"provenance": {"x": value}}, {"name": value if isinstance(value, str) else "\ud800"}):
        with pytest.raises(wo.InputError, match=r"^manifest: must hold JSON values only \(") as caught:
            small_instance(**changes).save(tmp_path / f"x.{ending}")
        str(caught.value).encode()
    assert not list(tmp_path.iterdir())


def test_a_byte_order_mark_is_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    small_instance().save(path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert wo.Instance.load(path).name == "tiny"


@pytest.mark.parametrize("name", [".npz", ".json", ".toml"])
def test_an_ending_alone_is_no_name(tmp_path: Path, name: str) -> None:
    for path in (name, tmp_path / name):
        with pytest.raises(wo.InstanceFileError, match="must have a name before its ending"):
            wo.load_instance(path)
    if name != ".toml":
        with pytest.raises(wo.InstanceFileError, match="must have a name before its ending"):
            small_instance().save(tmp_path / name)


def test_a_path_without_an_ending_is_not_taken_for_a_shipped_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("scenario").touch()
    for name in ("./none", "../none", str(tmp_path), "scenario", Path("none")):
        with pytest.raises(wo.InstanceFileError, match=r"must end in \.npz, \.json or \.toml"):
            wo.load_instance(name)
    with pytest.raises(wo.InputError, match="name = '': must not be empty"):
        wo.load_instance("")
    with pytest.raises(wo.UnknownNameError, match="unknown name"):
        wo.load_instance("none")
    Path("gpt-oss-20b-decode").touch()
    assert wo.load_instance("gpt-oss-20b-decode", blocks=1).blocks == 1
