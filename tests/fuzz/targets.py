"""What fuzzing calls: bytes go in, and either a good object or one line of `wdmoe_opt.errors` comes out.

An archive may be given in pieces, so that a fuzzer gets past checksums: lines ``%%%% NAME``, each followed
by the bytes of that member. Of such archives, and of instances in JSON, the content hash is not looked at.
"""

from __future__ import annotations

import re
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

from wdmoe_opt.benchmarks.suites.load import load_suite
from wdmoe_opt.errors import WdmoeError
from wdmoe_opt.instance import Instance
from wdmoe_opt.instances.devices import DeviceProfile
from wdmoe_opt.instances.scenario import read_scenario
from wdmoe_opt.instances.validate import validate_file
from wdmoe_opt.solution import Solution

_MEMBER = re.compile(rb"^%%%% ([^\n]*)\n", re.MULTILINE)
_HASH_CHECKS = ("wdmoe_opt.archive.check_hash", "wdmoe_opt.files.check_hash")
_FOLDER = tempfile.TemporaryDirectory(prefix="wdmoe-fuzz-")


def framed(path: Path) -> bytes:
    """An archive in pieces, the manifest first."""
    with zipfile.ZipFile(path) as archive:
        names = sorted(archive.namelist(), key=lambda name: (name != "manifest.json", name))
        return b"\n".join(f"%%%% {name}\n".encode() + archive.read(name) for name in names)


def _write(data: bytes, path: Path) -> None:
    pieces = _MEMBER.split(data)
    if path.suffix != ".npz" or len(pieces) < 3:
        path.write_bytes(data)
        return
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in zip(pieces[1::2], pieces[2::2], strict=True):
            archive.writestr(zipfile.ZipInfo(name.decode("latin-1") or "x"), content.removesuffix(b"\n"))


def _target(ending: str, *loads: Callable[[Path], Any], hashed: bool = True) -> Callable[[bytes], int]:
    """Function that gives bytes to loaders as a file; how many of them took it."""

    def run(data: bytes) -> int:
        path = Path(_FOLDER.name, f"input{ending}")
        taken = 0
        with ExitStack() as stack:
            stack.enter_context(warnings.catch_warnings())
            # A fuzzer may well put a member twice into an archive.
            warnings.filterwarnings("ignore", "Duplicate name", UserWarning)
            _write(data, path)
            warnings.simplefilter("error")
            if not hashed:
                for name in _HASH_CHECKS:
                    stack.enter_context(patch(name, lambda *_: None))
            for load in loads:
                try:
                    load(path)
                    taken += 1
                except WdmoeError as error:
                    message = str(error)
                    message.encode()
                    assert message, "an error without a message"
                    assert len(message.splitlines()) == 1, message
        return taken

    return run


TARGETS: dict[str, Callable[[bytes], int]] = {
    "archive": _target(".npz", Instance.load, validate_file),
    "instance": _target(".npz", Instance.load, hashed=False),
    "instance-json": _target(".json", Instance.load, validate_file, hashed=False),
    "routing": _target(".npz", validate_file, hashed=False),
    "solution": _target(".npz", Solution.load, hashed=False),
    "scenario-toml": _target(".toml", read_scenario),
    "scenario-json": _target(".json", read_scenario),
    "profile": _target(".json", DeviceProfile.from_file),
    "suite": _target(".toml", load_suite),
}
