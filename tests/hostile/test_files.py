"""Hostile files for every loader, and savings that fail.

How damaged archives and hand-edited instance files are refused stands in tests/test_archive.py and
tests/test_files.py; here is what attacks a reader, and the same for all other kinds of file.
"""

from __future__ import annotations

import errno
import io
import json
import os
import re
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_instance import good

import wdmoe_opt as wo
from hostile.table import Nameless, refused
from wdmoe_opt.archive import MANIFEST, ArchiveError, peek_manifest
from wdmoe_opt.benchmarks.suites.load import load_suite
from wdmoe_opt.instances.devices import DeviceProfile, load_profile
from wdmoe_opt.instances.load_file import LoadFile
from wdmoe_opt.instances.profiling.fit import load_measurement, write_profile
from wdmoe_opt.instances.routing_file import RoutingFile
from wdmoe_opt.instances.scenario import build_scenario
from wdmoe_opt.instances.token_types import TokenTypes
from wdmoe_opt.instances.validate import validate_file

ARCHIVES = [
    wo.Instance.load,
    wo.Solution.load,
    RoutingFile.load,
    LoadFile.load,
    TokenTypes.load,
    validate_file,
]
JSONS = [wo.Instance.load, build_scenario, DeviceProfile.from_file, load_measurement, validate_file]
TOMLS = [build_scenario, load_suite, validate_file]
READERS = {".npz": ARCHIVES, ".json": JSONS, ".toml": TOMLS}
ALL = [
    pytest.param(ending, load, id=f"{load.__qualname__} {ending}")
    for ending, found in READERS.items()
    for load in found
]


@pytest.mark.parametrize(("ending", "load"), ALL)
@pytest.mark.parametrize(
    "value",
    [None, 5, b"x.npz", [], np.ones(2), Nameless(), "a\0b", "\ud800"],
    ids=lambda value: type(value).__name__,
)
def test_names_that_are_none(ending: str, load: Callable[[Any], Any], value: Any) -> None:
    path = f"{value}{ending}" if isinstance(value, str) else value
    if load is load_suite and not isinstance(value, str):
        refused(lambda: load(path), "suite.*: unknown name; choose from .+", wo.UnknownNameError)
    else:
        refused(lambda: load(path), "path.*: must be a text or a Path that can name a file")


@pytest.mark.parametrize(("ending", "load"), ALL)
def test_what_is_no_regular_file(tmp_path: Path, ending: str, load: Callable[[Any], Any]) -> None:
    """A folder, a pipe that nobody writes to, an endless device, a link to itself, nothing: no hang."""
    folder, pipe, device, loop = (
        tmp_path / f"{name}{ending}" for name in ("folder", "pipe", "device", "loop")
    )
    folder.mkdir()
    os.mkfifo(pipe)
    device.symlink_to("/dev/zero")
    loop.symlink_to(loop)
    for path in (folder, pipe, device):
        refused(lambda path=path: load(path), rf"{path}: cannot be read \(not a regular file\)", ArchiveError)
    refused(
        lambda: load(loop), rf"{loop}: cannot be read \(Too many levels of symbolic links\)", ArchiveError
    )
    none, long = tmp_path / f"none{ending}", tmp_path / f"{'x' * 300}{ending}"
    refused(lambda: load(none), rf"{none}: cannot be read \(No such file or directory\)", ArchiveError)
    refused(lambda: load(long), rf"{long}: cannot be read \(File name too long\)", ArchiveError)


BYTES = {
    "empty": b"", "one byte": b"\0", "zip's first bytes": b"PK\x03\x04", "an empty zip": b"PK\x05\x06" + b"\0" * 18,
    "a pickle": b"\x80\x04cos\nsystem\n(S'true'\ntR.", "random": np.random.default_rng(1).bytes(2000),
    "UTF-16": "{}".encode("utf-16"), "half a character": b'{"a": "\xc3', "nulls": b"\0" * 1000,
    "deep lists": b"[" * 200_000, "deep lists, closed": b"[" * 500 + b"]" * 500, "deep objects": b'{"a":' * 100_000,
    "a key twice": b'{"kind": "instance", "kind": "instance"}', "NaN": b'{"routing": NaN}', "null": b"null",
    "5000 digits": b'{"routing": ' + b"1" * 5000 + b"}", "a text": b'"routing"', "a number": b"1e999", "half a pair": b'{"routing": "\\ud800"}',
    "deep in TOML": b"a = " + b"[" * 5000, "closed in TOML": b"a = " + b"[" * 300 + b"]" * 300,
    "dots without end": b"a" + b".a" * 200_000 + b" = 1", "5000 digits in TOML": b"a = " + b"1" * 5000, "tables": b"[routing]\n[routing]\n",
}  # fmt: skip


@pytest.mark.parametrize("content", BYTES)
@pytest.mark.parametrize(("ending", "load"), ALL)
def test_bytes_that_are_no_such_file(
    tmp_path: Path, ending: str, load: Callable[[Any], Any], content: str
) -> None:
    path = tmp_path / f"x{ending}"
    path.write_bytes(BYTES[content])
    with pytest.raises(wo.WdmoeError) as caught:
        load(path)
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    assert len(text) < 1000
    if load != DeviceProfile.from_file:  # what breaks a rule of profiles names the field
        assert isinstance(caught.value, wo.InstanceFileError)
        assert text.startswith(f"{path}: ")


# ------------------------------------------------------------------ archives that attack


def saved(folder: Path, kind: str = "instance") -> Path:
    path = folder / "x.npz"
    inst = wo.Instance.from_arrays(**good())
    if kind == "instance":
        inst.save(path)
    else:
        wo.solve(wo.Problem(inst, min_retention=0.9), "certified").save(path)
    return path


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def pack(path: Path, content: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in content.items():
            archive.writestr(zipfile.ZipInfo(name), data, compression)


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
@pytest.mark.parametrize("victim", [MANIFEST, "compute_time.npy"])
def test_a_bomb_that_lies_about_its_size_is_not_unpacked(
    tmp_path: Path, victim: str, compression: int
) -> None:
    """A member of 100 MB that declares 1000 bytes: memory stays far below its size."""
    path = saved(tmp_path)
    content = members(path)
    content[victim] += b" " * (100 * 2**20)
    pack(path, content, compression)
    data = bytearray(path.read_bytes())
    entry = data.find(b"PK\x01\x02")
    while entry >= 0:
        length = struct.unpack_from("<H", data, entry + 28)[0]
        if data[entry + 46 : entry + 46 + length] == victim.encode():
            data[entry + 24 : entry + 28] = struct.pack("<I", 1000)
        entry = data.find(b"PK\x01\x02", entry + 4)
    path.write_bytes(data)
    del content, data
    tracemalloc.start()
    with pytest.raises(ArchiveError):
        wo.Instance.load(path)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 80 * 2**20


@pytest.mark.parametrize(
    "name",
    [
        "../evil.npy",
        "/etc/evil.npy",
        "C:\\evil.npy",
        "gain_down.npy/",
        "x" * 60_000,
        "é.npy",
        "a\nb.npy",
        "CON",
    ],
)
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    path = saved(tmp_path)
    pack(path, {**members(path), name: b"x"})
    refused(lambda: wo.Instance.load(path), rf"{path}: must hold only, each once, .+; holds .+", ArchiveError)
    assert [found.name for found in tmp_path.iterdir()] == ["x.npz"]


HEADERS = {
    "an expression": "{'descr': '<f8', 'fortran_order': False, 'shape': (1+1,), }",
    "of Python 2": "{'descr': '<f8', 'fortran_order': False, 'shape': (3L,), }",
    "negative": "{'descr': '<f8', 'fortran_order': False, 'shape': (-3,), }",
    "an escape": "{'descr': '\\d', 'fortran_order': False, 'shape': (3,), }",
    "no descr": "{'descr': (), 'fortran_order': False, 'shape': (3,), }",
    "records": "{'descr': [('a', '<f8')], 'fortran_order': False, 'shape': (3,), }",
    "deep": "(" * 5000,
    "huge": "{'descr': '<f8', 'fortran_order': False, 'shape': (" + "9" * 19 + ",), }",
    "digits of other scripts": "{'descr': '<f8', 'fortran_order': False, 'shape': (٣,), }",
}  # fmt: skip


@pytest.mark.parametrize("header", HEADERS)
def test_headers_are_matched_and_never_evaluated(tmp_path: Path, header: str) -> None:
    path = saved(tmp_path)
    text = HEADERS[header].encode() + b"\n"
    data = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + b"\0" * 24
    pack(path, {**members(path), "compute_time.npy": data})
    reason = rf"{path}: cannot be read as a file of kind 'instance' \(no header as numpy writes it: .+\)"
    refused(lambda: wo.Instance.load(path), reason, ArchiveError)


def edited(path: Path, change: Callable[[dict[str, Any]], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Change a manifest, and let the hash be right."""
    content = members(path)
    manifest = json.loads(content[MANIFEST])
    change(manifest)
    pack(path, {**content, MANIFEST: json.dumps(manifest).encode()})
    monkeypatch.setattr("wdmoe_opt.archive.check_hash", lambda *_: None)


SOLUTION_EDITS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no instance": lambda m: m.pop("instance"),
    "instance a list": lambda m: m.update(instance=[]),
    "an unknown request": lambda m: m["request"].update(instance=1),
    "request a list": lambda m: m.update(request=[]),
    "objective a text": lambda m: m.update(objective="x"),
    "objective of 400 digits": lambda m: m.update(objective=10**400),
    "objective another": lambda m: m.update(objective=1e-9),
    "bound a list": lambda m: m.update(lower_bound=[1]),
    "bound of 400 digits": lambda m: m.update(lower_bound=10**400),
    "an unknown kind of bound": lambda m: m.update(bound_kind="proved"),
    "an unknown end": lambda m: m["termination"].update(reason="done"),
    "an end with more": lambda m: m["termination"].update(why="x"),
    "trace of numbers": lambda m: m.update(trace=[1]),
    "timings a text": lambda m: m.update(timings="x"),
    "no certificate": lambda m: m.pop("certificate"),
    "certificate a list": lambda m: m.update(certificate=[]),
    "huge shapes": lambda m: m["certificate"].update(arrays=[["send", [2**40, 2**40]]]),
    "a shape beyond 64 bits": lambda m: m["certificate"].update(arrays=[["send", [10**30]]]),
    "negative shapes": lambda m: m["certificate"].update(arrays=[["send", [-1, -1]]]),
    "shapes of text": lambda m: m["certificate"].update(arrays=[["send", "ab"]]),
    "claims without end": lambda m: m["certificate"].update(
        claims={"floor." * i: ["deadline", 1.0, ""] for i in range(2000)}
    ),
    "no claims": lambda m: m["certificate"].update(claims={}),
    "an unknown form": lambda m: m["certificate"]["claims"].update({"": ["x", 1.0, ""]}),
    "an unhashable form": lambda m: m["certificate"]["claims"].update({"": [{}, 1.0, ""]}),
    "a digest of numbers": lambda m: m["certificate"]["claims"].update({"": ["deadline", 1.0, 5]}),
}  # fmt: skip


@pytest.mark.parametrize("edit", SOLUTION_EDITS)
def test_manifests_of_solutions(tmp_path: Path, edit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path, "solution")
    edited(path, SOLUTION_EDITS[edit], monkeypatch)
    refused(lambda: wo.Solution.load(path), rf"{path}: .+", ArchiveError)


SOURCE = {
    "model": "toy", "revision": None, "model_licence": None, "weights_meaning": "-", "prompts": "-", "prompt_hash": None,
    "capture": None, "width": 8, "expert_width": 4, "parts": ["a"], "layers": [0], "top_k": 1,
}  # fmt: skip
MANIFEST_EDITS: dict[str, tuple[dict[str, Any], str]] = {
    "parts a number": ({"parts": 1}, "manifest.parts: must name 1 as loads has"),
    "parts a text": ({"parts": "a"}, "manifest.parts: must name 1 as loads has"),
    "parts of numbers": ({"parts": [1]}, r"manifest.parts = \[1\]: must be a list of texts"),
    "layers null": ({"layers": None}, "manifest.layers: must name 1 as loads has"),
    "top_k a text": ({"top_k": "1"}, "manifest.top_k = '1': must be a whole number"),
    "top_k too many": ({"top_k": 10**30}, "manifest.top_k = 1000000000000000000000000000000: must be 1 to experts"),
    "no model": ({"model": ...}, r"manifest: has no 'model' \(None where it is not known\)"),
}  # fmt: skip


@pytest.mark.parametrize("edit", MANIFEST_EDITS)
def test_manifests_of_loads(edit: str) -> None:
    change, message = MANIFEST_EDITS[edit]
    manifest = {key: value for key, value in {**SOURCE, **change}.items() if value is not ...}
    refused(lambda: LoadFile(np.array([[[[2, 1]]]], dtype=np.uint16), manifest), message)


@pytest.mark.parametrize("part", ["a." + "9" * 5000, "a.٣", "a.", "a.-1", "a.1", "a.x"])
def test_prompts_of_a_part(part: str) -> None:
    file = LoadFile(np.array([[[[2, 1]]]], dtype=np.uint16), SOURCE)
    refused(lambda: file.find(part), "part = .+: prompt must be 0 to 0")


# ------------------------------------------------------------------ scenarios and suites


SCENARIOS: dict[str, tuple[str, str]] = {
    "no routing": ("name = 'x'", "routing: needs either 'family' or 'file'"),
    "routing a number": ("routing = 1", "routing = 1: must be a table"),
    "an unknown table": ("[rooting]", "scenario = 'rooting': unknown name; choose from .*routing.*"),
    "a date": ("[routing]\nfamily = 2020-01-01", r"family = datetime.date\(2020, 1, 1\): must be a text"),
    "a null in a path": ('[routing]\nfile = "a\\u0000.npz"', ".+: must be a text or a Path that can name a file"),
    "tokens NaN": ("[routing]\nfamily = 'gpt-oss-20b-decode'\ntokens = nan", "tokens = nan: must be a whole number"),
    "tokens many": ("[routing]\nfamily = 'gpt-oss-20b-decode'\ntokens = 999999999999999999", "tokens = 999999999999999999: must be 1 to .+"),
    "blocks of text": ("[routing]\nfamily = 'gpt-oss-20b-decode'\nblocks = '0-99999999999999999999'", "blocks = .+: must name a block, 0 to 23"),
    "bits infinite": ("[routing]\nfamily = 'gpt-oss-20b-decode'\n[payload]\nbits_per_value = inf", "bits_per_value = inf: must be finite"),
    "bits huge": ("[routing]\nfamily = 'gpt-oss-20b-decode'\n[payload]\nbits_per_value = 1e308", "bits(_down)? = inf: must be finite"),
    "state late": ("[routing]\nfamily = 'gpt-oss-20b-decode'\n[channel]\nstate = 100000", "state = 100000: must be 0 to 99999"),
    "distances of text": ("[routing]\nfamily = 'gpt-oss-20b-decode'\n[channel]\ndistances_m = ['far', 'far', 'far', 'far', 'far', 'far', 'far', 'far']", "distances_m: must hold real numbers, got dtype <U3"),
    "gains of text": ("[routing]\nfamily = 'gpt-oss-20b-decode'\n[channel]\ntoken_time_link = 'x'", "token_time_link: must hold real numbers, got dtype <U1"),
    "hosts elsewhere": (f"[routing]\nfamily = 'gpt-oss-20b-decode'\n[placement]\nexpert_device = {[99] * 32}", r"expert_device\[0\] = 99: must name a device, 0 to 7"),
    "boards none": ("[routing]\nfamily = 'gpt-oss-20b-decode'\n[fleet]\nboards = []", r"fleet.boards = \[\]: must be a list of profile names or profile files"),
    "a board elsewhere": ("[routing]\nfamily = 'gpt-oss-20b-decode'\n[fleet]\nboards = ['../none.json']", r".+none.json: cannot be read \(No such file or directory\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenarios(tmp_path: Path, name: str) -> None:
    text, message = SCENARIOS[name]
    path = tmp_path / "x.toml"
    path.write_text(text)
    with pytest.raises(wo.WdmoeError) as caught:
        wo.load_instance(path)
    assert re.fullmatch(f"({re.escape(str(path))}: )?{message}", str(caught.value)), str(caught.value)


BASE = "name = 'x'\n[[contestants]]\nmethod = 'greedy'\n[[cases]]\ninstance = 'a'\n"
SUITES: dict[str, tuple[str, str]] = {
    "no name": ("seeds = 1", "name: must be a text"),
    "name with blanks": (BASE.replace("'x'", "'a b'"), "name = 'a b': must be lower-case letters, digits and dashes"),
    "seeds infinite": ("seeds = inf\n" + BASE, "seeds = inf: must be a whole number"),
    "a contestant a number": ("name = 'x'\ncontestants = [1]", r"contestants: must be given as at least one table \[\[contestants\]\]"),
    "limit NaN": (BASE.replace("[[cases]]", "time_limit = nan\n[[cases]]"), r"contestants\[0\].time_limit = nan: must be finite"),
    "limit zero": (BASE.replace("[[cases]]", "time_limit = -0.0\n[[cases]]"), r"contestants\[0\].time_limit = -0.0: must be greater than 0"),
    "many cases": (BASE + "each = { " + ", ".join(f"k{i} = {list(range(10))}" for i in range(6)) + " }", r"cases\[0\].each: makes more than 100000 cases"),
    "many cases of many": (BASE + "name = '{a}{b}'\neach = {a=" + str(list(range(300))) + ",b=" + str(list(range(300))) + "}\n[[cases]]\ninstance='b'\nname='b{a}{b}'\neach={a=" + str(list(range(300))) + ",b=" + str(list(range(300))) + "}", r"cases\[1\].each: makes more than 100000 cases"),
    "an open place": (BASE + "name = '{x}'", r"cases\[0\].name = '\{x\}': \{x\} is not listed in 'each'"),
    "a key of two lines": (BASE + 'each = { "a\\nb" = 1 }', r"cases\[0\].each.a b = 1: must be a list of values, not named 'seed'"),
}  # fmt: skip


@pytest.mark.parametrize("name", SUITES)
def test_suites(tmp_path: Path, name: str) -> None:
    text, message = SUITES[name]
    path = tmp_path / "x.toml"
    path.write_text(text)
    refused(lambda: load_suite(path), rf"{path}: {message}", wo.InstanceFileError)


# ------------------------------------------------------------------ savings that fail


class Full(io.RawIOBase):
    """A disk that fills up after some bytes."""

    def __init__(self, stream: Any, room: int) -> None:
        self.stream, self.room = stream, room

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.stream.write(data)

    def close(self) -> None:
        self.stream.close()
        super().close()


def routing() -> RoutingFile:
    labels = np.arange(2)
    return RoutingFile(
        np.array([[[0, 1], [1, 0]]]), np.array([[[0.6, 0.4], [0.9, 0.1]]]), 1, 2, labels, labels, SOURCE
    )


SAVES: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "Instance .npz": (".npz", lambda path: wo.Instance.from_arrays(**good()).save(path)),
    "Instance .json": (".json", lambda path: wo.Instance.from_arrays(**good()).save(path)),
    "Solution": (".npz", lambda path: wo.solve(wo.Instance.from_arrays(**good()), "topk").save(path)),
    "RoutingFile": (".npz", lambda path: routing().save(path)),
    "LoadFile": (".npz", lambda path: LoadFile(np.array([[[[2, 1]]]], dtype=np.uint16), SOURCE).save(path)),
    "DeviceProfile": (".json", lambda path: load_profile("agx-thor").save(path)),
    "write_profile": (".json", lambda path: write_profile(path, load_profile("agx-thor").to_dict())),
}  # fmt: skip


@pytest.mark.parametrize("room", [0, 100, 500])
@pytest.mark.parametrize("save", SAVES)
def test_a_full_disk_leaves_the_old_file(
    tmp_path: Path, save: str, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ending, write = SAVES[save]
    path = tmp_path / f"x{ending}"
    path.write_bytes(b"old")
    opened = os.fdopen
    monkeypatch.setattr("wdmoe_opt.archive.os.fdopen", lambda handle, mode: Full(opened(handle, mode), room))
    refused(lambda: write(path), rf"{path}: cannot be written \(No space left on device\)", ArchiveError)
    assert [(found.name, found.read_bytes()) for found in tmp_path.iterdir()] == [(path.name, b"old")]


@pytest.mark.parametrize("save", SAVES)
def test_places_that_cannot_be_written(tmp_path: Path, save: str) -> None:
    ending, write = SAVES[save]
    folder = tmp_path / f"folder{ending}"
    folder.mkdir()
    (tmp_path / "file").touch()
    refused(lambda: write(folder), rf"{folder}: cannot be written \(.+\)", ArchiveError)
    for path in (tmp_path / "none" / f"x{ending}", tmp_path / "file" / f"x{ending}"):
        refused(lambda path=path: write(path), rf"{path}: cannot be written \(.+\)", ArchiveError)
    for name in (f"a\0b{ending}", f"\ud800{ending}"):
        refused(lambda name=name: write(name), "path = .+: must be a text or a Path that can name a file")
    assert sorted(found.name for found in tmp_path.iterdir()) == ["file", folder.name]


def test_lzma_is_still_read(tmp_path: Path) -> None:
    """Unpacking piece by piece gives the same arrays as at once."""
    path = saved(tmp_path)
    before = wo.Instance.load(path).digest
    pack(path, members(path), zipfile.ZIP_LZMA)
    assert wo.Instance.load(path).digest == before
    assert peek_manifest(path)["kind"] == "instance"
