"""Hostile arguments and files of every command: status 2, one line on standard error, no traceback.

Wrong options of ``solve`` and ``instances`` stand in tests/test_cli.py.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from wdmoe_opt.cli import main

NAME = "gpt-oss-20b-decode"
BAD = {
    "empty": b"", "pickle": b"\x80\x04cos\nsystem\n.", "deep": b"[" * 100_000, "nulls": b"\0" * 100,
    "half a character": b'{"a": "\xc3', "zip": b"PK\x05\x06" + b"\0" * 18,
}  # fmt: skip
TAKERS = [
    ("solve", ".npz"), ("solve", ".json"), ("solve", ".toml"), ("frontier", ".npz"), ("certify", ".npz"),
    ("instances show", ".npz"), ("instances stats", ".toml"), ("instances validate", ".npz"),
    ("instances validate", ".json"), ("instances validate", ".toml"), ("bench run", ".toml"),
    ("profile-device OUT --measurement", ".json"),
]  # fmt: skip


def complaint(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    """The one line of a command that fails with status 2."""
    monkeypatch.setattr(sys, "argv", ["wdmoe-opt", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    out, err = capsys.readouterr()
    assert (stop.value.code, out, len(err.splitlines())) == (2, "", 1), err
    assert len(err) < 1200
    return err.removeprefix("wdmoe-opt: ").rstrip("\n")


@pytest.mark.parametrize("content", BAD)
@pytest.mark.parametrize(("command", "ending"), TAKERS)
def test_files(
    command: str, ending: str, content: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"x{ending}"
    path.write_bytes(BAD[content])
    line = complaint([*command.replace("OUT", "out.json").split(), str(path)], monkeypatch, capsys)
    assert line.startswith((f"{path}: ", "suite: ", "name: ")), line
    assert [found.name for found in tmp_path.iterdir()] == [path.name]


CALLS = {
    "frontier {NAME} --floors nan": r"retentions\[0\] = nan: must be finite",
    "frontier {NAME} --floors x": "floors = 'x': must be a number",
    "frontier {NAME} --floors 2": r"retentions\[0\] = 2.0: must be at most 1",
    "frontier {NAME} --points 1": "points = 1: must be 2 to 10000",
    "frontier {NAME} --points 3 --threads 0": "threads = 0: must be 1 to 4096",
    "frontier {NAME} --csv none/x.csv": "csv = 'none/x.csv': its folder does not exist",
    "frontier {NAME} --time-limit inf": "time_limit = inf: must be finite",
    "solve {NAME} --time-limit nan": "time_limit = nan: must be finite",
    "solve {NAME} --rel-gap=-inf": "rel_gap = -inf: must be finite",
    "solve {NAME} --seed 99999999999999999999": "seed = 99999999999999999999: must be at least 0",
    "solve {NAME} --max-latency 0": "max_latency = 0.0: must be greater than 0",
    "solve {NAME} --blocks 1 --tokens 2 --method topk --save none/x.npz": r"none/x.npz: cannot be written \(No such file or directory\)",
    "solve {NAME} --blocks 1 --tokens 2 --method topk --save x.txt": "x.txt: the name must end in .npz",
    "solve mixtral-8x7b-mmlu-load:anatomy.99999999999999999999": "part = .+: prompt must be 0 to 19",
    "solve {LONG}": "instance = '.{200}...: unknown name; choose from .+|instance.*unknown name.*",
    "certify none.npz": r"none.npz: cannot be read \(No such file or directory\)",
    "certify x.json": "x.json: the name must end in .npz",
    "bench run none": "suite = 'none': unknown name; choose from .+",
    "bench run smoke --seeds 0": "seeds = 0: must be at least 1",
    "bench run smoke --workers -1": "workers = -1: must be at least 1",
    "bench run smoke --plugin none.py": "plugin = 'none.py': there is no such file",
}  # fmt: skip


@pytest.mark.parametrize("call", CALLS)
def test_calls(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = call.replace("{NAME}", NAME).replace("{LONG}", "x" * 100_000).split()
    line = complaint(arguments, monkeypatch, capsys)
    assert re.fullmatch(CALLS[call], line), line
