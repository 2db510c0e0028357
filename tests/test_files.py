"""Instance files through Instance.save and Instance.load: identity, and every kind of damage."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import wdmoe_opt as wo
from wdmoe_opt.testing.arrays import Shape, loads_arrays, measured_arrays, random_arrays
from wdmoe_opt.testing.strategies import array_sets

ENDINGS = ["npz", "json"]


def example(**change: Any) -> wo.Instance:
    arrays = {**random_arrays(Shape(activation=True, link_delay=True, missing=True), 3), **change}
    return wo.Instance.from_arrays(**arrays, name="example", provenance={"from": "ä", "list": [1, None, "x"]})


def assert_equal(one: wo.Instance, two: wo.Instance) -> None:
    """Same keys, dtypes and bits; same name and provenance."""
    first, second = one.arrays(), two.arrays()
    assert list(first) == list(second)
    for name, value in first.items():
        assert type(value) is type(second[name])
        assert np.asarray(value).dtype == np.asarray(second[name]).dtype
        assert np.asarray(value).tobytes() == np.asarray(second[name]).tobytes(), name
    assert (one.name, dict(one.provenance)) == (two.name, dict(two.provenance))


@pytest.mark.parametrize("ending", ENDINGS)
@given(arrays=array_sets(), name=st.text(st.characters(exclude_categories=["Cs"]), max_size=8))
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_round_trip_is_the_identity(tmp_path: Path, ending: str, arrays: dict[str, Any], name: str) -> None:
    """Save and load give back every bit, for radio instances of all shapes."""
    inst = wo.Instance.from_arrays(**arrays, name=name, provenance={"note": name})
    path = tmp_path / f"instance.{ending}"
    inst.save(path)
    assert_equal(wo.Instance.load(path), inst)


@pytest.mark.parametrize("ending", ENDINGS)
def test_round_trip_of_special_values(tmp_path: Path, ending: str) -> None:
    """Infinite link times, unknown watts, subnormal gains and loads survive."""
    odd = example(compute_power=[1.5, np.nan, 0.0], gain_down=[5e-324, 1e-9, 1e-9])
    far = wo.Instance.from_arrays(**{**measured_arrays(Shape(unreachable=True), 2), "link_delay": 1e-3})
    counts = wo.Instance.from_arrays(**loads_arrays(Shape(limits=True), 2))
    assert np.isinf(far.token_time_link).any()
    for inst in (odd, far, counts):
        path = tmp_path / f"instance.{ending}"
        inst.save(path)
        assert_equal(wo.Instance.load(str(path)), inst)


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    """Files are reproducible."""
    for ending in ENDINGS:
        for name in "ab":
            example().save(tmp_path / f"{name}.{ending}")
        assert (tmp_path / f"a.{ending}").read_bytes() == (tmp_path / f"b.{ending}").read_bytes()


def test_loaded_instance_is_solved_alike(tmp_path: Path) -> None:
    """A round trip changes nothing about the answer."""
    inst = example()
    inst.save(tmp_path / "a.npz")
    assert wo.solve(wo.Instance.load(tmp_path / "a.npz"), "wdmoe").latency == wo.solve(inst, "wdmoe").latency


def test_file_names_lead_through_load_instance(tmp_path: Path) -> None:
    """load_instance takes a path as well as a name."""
    example().save(tmp_path / "a.json")
    assert_equal(wo.load_instance(str(tmp_path / "a.json")), example())


# ------------------------------------------------------------------ writing


def test_saving_is_all_or_nothing(tmp_path: Path) -> None:
    """A failed save leaves the old file as it was, and nothing beside it."""
    path = tmp_path / "a.json"
    example().save(path)
    before = path.read_bytes()
    broken = wo.Instance.from_arrays(**random_arrays(Shape(), 1), provenance={"not JSON": object()})
    for target in (path, tmp_path / "a.npz"):
        with pytest.raises((TypeError, wo.WdmoeError)):
            broken.save(target)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("name", ["a.txt", "a", "a.npz.bak", "missing/a.npz"])
def test_unwritable_names_are_refused(tmp_path: Path, name: str) -> None:
    """Unknown endings and missing folders are InstanceFileErrors that name the path."""
    with pytest.raises(wo.InstanceFileError) as caught:
        example().save(tmp_path / name)
    assert name.split("/")[-1] in str(caught.value)
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------ damage


def refused(path: Path, *words: str) -> None:
    """Loading raises InstanceFileError, naming the file and the given words."""
    with pytest.raises(wo.InstanceFileError) as caught:
        wo.Instance.load(path)
    for word in (path.name, *words):
        assert word in str(caught.value)


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_truncation_is_noticed(tmp_path: Path, ending: str) -> None:
    """Cut anywhere, the file is refused."""
    path = tmp_path / f"a.{ending}"
    example().save(path)
    whole = path.read_bytes()
    for length in [*range(0, len(whole) - 1, max(1, len(whole) // 60)), len(whole) - 1]:
        path.write_bytes(whole[:length])
        if ending == "json" and whole[length:].strip() == b"":
            continue
        refused(path)


@pytest.mark.parametrize("ending", ENDINGS)
def test_flipped_bits_never_change_numbers(tmp_path: Path, ending: str) -> None:
    """One bit flipped anywhere: refused, or (in padding, names, notes) every number is as before."""
    path = tmp_path / f"a.{ending}"
    inst = example()
    inst.save(path)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    noticed = 0
    for _ in range(300):
        place, bit = int(rng.integers(len(whole))), int(rng.integers(8))
        damaged = bytearray(whole)
        damaged[place] ^= 1 << bit
        path.write_bytes(bytes(damaged))
        try:
            again = wo.Instance.load(path)
        except wo.InstanceFileError:
            noticed += 1
            continue
        for name, value in inst.arrays().items():
            np.testing.assert_array_equal(again.arrays()[name], value)
    assert noticed >= 100


def edit_json(path: Path, change: Any) -> Path:
    example().save(path)
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


JSON_EDITS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "a number by hand": (lambda c: c["arrays"].update(total_bandwidth=1.0), ("content_hash",)),
    "a key too many": (lambda c: c["arrays"].update(bandwith=1.0), ()),
    "a key missing": (lambda c: c["arrays"].pop("compute_time"), ()),
    "no arrays": (lambda c: c.pop("arrays"), ("arrays",)),
    "arrays are a list": (lambda c: c.update(arrays=[1]), ("arrays",)),
    "no hash": (lambda c: c.pop("content_hash"), ("content_hash",)),
    "another kind": (lambda c: c.update(kind="routing"), ("kind",)),
    "no kind": (lambda c: c.pop("kind"), ("kind",)),
    "a later version": (lambda c: c.update(schema_version=99), ("99",)),
    "a string version": (lambda c: c.update(schema_version="1"), ("version",)),
    "words": (lambda c: c["arrays"].update(power_up="strong"), ("power_up", "strong")),
    "truth values": (lambda c: c["arrays"].update(power_up=True), ("power_up",)),
    "null": (lambda c: c["arrays"].update(power_up=None), ("power_up",)),
    "an object": (lambda c: c["arrays"].update(power_up={"a": 1}), ("power_up",)),
    "ragged": (lambda c: c["arrays"].update(gain_up=[[1.0], [1.0, 2.0]]), ("gain_up",)),
    "a huge integer": (lambda c: c["arrays"].update(expert_ids=[[[10**30]]]), ("expert_ids",)),
}  # fmt: skip


@pytest.mark.parametrize("edit", JSON_EDITS)
def test_hand_edited_json_is_refused(tmp_path: Path, edit: str) -> None:
    """Every edit is an InstanceFileError that says where."""
    change, words = JSON_EDITS[edit]
    refused(edit_json(tmp_path / "a.json", change), *words)


@pytest.mark.parametrize(
    "text",
    [
        "", "null", "[]", "5", '"text"', "{", "{}", '{"arrays": {}}', "[" * 100_000, '{"a":' * 50_000,
        '{"kind": "instance", "schema_version": 1, "arrays": {"power_up": ' + "[" * 2000 + "]" * 2000 + "}}",
    ],
)  # fmt: skip
def test_other_json_is_refused(tmp_path: Path, text: str) -> None:
    """Empty, foreign and absurdly deep JSON end in InstanceFileError."""
    path = tmp_path / "a.json"
    path.write_text(text)
    refused(path)


def test_not_utf8_is_refused(tmp_path: Path) -> None:
    """Binary rubbish with a .json name."""
    path = tmp_path / "a.json"
    path.write_bytes(b"\xff\xfe\x00{}")
    refused(path)


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def pack(path: Path, content: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


def npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def test_hand_edited_npz_is_refused(tmp_path: Path) -> None:
    """A changed, missing, added or foreign member is noticed."""
    path = tmp_path / "a.npz"
    example().save(path)
    content = members(path)
    manifest = next(name for name in content if name.endswith(".json"))
    array = next(name for name in content if name.startswith("compute_time"))
    without = {name: data for name, data in content.items() if name != array}
    refused(pack(path, {**content, array: npy(np.full(3, 1.0))}), "content_hash")
    refused(pack(path, without))
    refused(pack(path, {**content, "extra.npy": npy(np.ones(1))}))
    refused(pack(path, {**content, "readme.txt": b"hello"}), "readme.txt")
    refused(pack(path, {**content, "../evil.npy": npy(np.ones(1))}))
    refused(pack(path, {name: data for name, data in content.items() if name != manifest}), "manifest")
    refused(pack(path, {**content, manifest: b"{"}))
    refused(pack(path, {**content, manifest: b"[" * 100_000}))
    refused(pack(path, {**content, manifest: b"\xff\xfe"}))
    refused(pack(path, {**content, manifest: b"[]"}))
    refused(pack(path, {**content, array: b"\x93NUMPY"}))
    refused(pack(path, {**content, array: b"not an array"}))
    refused(pack(path, {}))


class Bomb:
    """Unpickling this would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    """Object arrays, bare pickles and pickled members are refused unopened."""
    path, trace = tmp_path / "a.npz", tmp_path / "opened"
    example().save(path)
    content = members(path)
    array = next(name for name in content if name.startswith("compute_time"))
    refused(pack(path, {**content, array: npy(np.array([Bomb(trace)], dtype=object))}))
    refused(pack(path, {**content, array: pickle.dumps(Bomb(trace))}))
    path.write_bytes(pickle.dumps(Bomb(trace)))
    refused(path)
    (tmp_path / "a.json").write_bytes(pickle.dumps(Bomb(trace)))
    refused(tmp_path / "a.json")
    assert not trace.exists()


def header(shape: tuple[int, ...]) -> bytes:
    """An .npy file that declares a shape and holds nothing."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f8", "fortran_order": False, "shape": shape})
    return stream.getvalue()


def test_archives_that_explode_are_refused(tmp_path: Path) -> None:
    """Arrays that declare more than they hold, and sizes that overflow, are refused without allocating."""
    path = tmp_path / "a.npz"
    example().save(path)
    content = members(path)
    array = next(name for name in content if name.startswith("compute_time"))
    for shape in ((2**40,), (2**62, 2**62), (10**9, 10**9)):
        refused(pack(path, {**content, array: header(shape)}))


def test_declared_sizes_beyond_the_limit_are_refused(tmp_path: Path) -> None:
    """A zip directory that promises terabytes is refused from the directory alone."""
    path = tmp_path / "a.npz"
    example().save(path)
    data = bytearray(path.read_bytes())
    # Uncompressed size, in every central directory entry.
    place = data.find(b"PK\x01\x02")
    while place >= 0:
        data[place + 24 : place + 28] = (0xFFFFFFF0).to_bytes(4, "little")
        place = data.find(b"PK\x01\x02", place + 4)
    path.write_bytes(bytes(data))
    refused(path)


@pytest.mark.parametrize("ending", ENDINGS)
def test_missing_files_and_folders(tmp_path: Path, ending: str) -> None:
    """No such file, or a folder of that name."""
    refused(tmp_path / f"none.{ending}")
    (tmp_path / f"folder.{ending}").mkdir()
    refused(tmp_path / f"folder.{ending}")


def test_other_endings_are_not_opened(tmp_path: Path) -> None:
    """Only .npz and .json are read."""
    path = tmp_path / "a.pkl"
    path.write_bytes(b"x")
    refused(path, ".npz or .json")


@pytest.mark.parametrize("ending", ENDINGS)
def test_invalid_content_with_a_valid_hash_is_refused(tmp_path: Path, ending: str) -> None:
    """A file whose hash fits but whose numbers break a rule names the field and the rule."""
    path = tmp_path / f"a.{ending}"
    inst = example()
    # Behind the back of the validation, as another program could write it.
    object.__setattr__(inst, "compute_time", np.array([1e-4, -1.0, 1e-4]))
    inst.save(path)
    refused(path, "compute_time[1] = -1.0: must be at least 0")
