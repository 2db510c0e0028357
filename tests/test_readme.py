"""Every example in the README runs, and prints what the README shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

NUMBER = re.compile(r"\d+\.\d+")
README = Path(__file__).parents[1] / "README.md"


def _outputs() -> dict[str, str]:
    fenced = re.findall(r"<!-- output: (.+?) -->\n```text\n(.*?)```", README.read_text("utf-8"), re.S)
    tables = re.findall(r"<!-- table: (.+?) -->\n\n(.*?)\n<!-- end -->", README.read_text("utf-8"), re.S)
    return dict(fenced + tables)


def _run(*command: str) -> str:
    environment = os.environ | {"PYTHONIOENCODING": "utf-8", "COLUMNS": "160"}
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=environment)
    assert done.returncode == 0, done.stderr
    return "\n".join(line.rstrip() for line in done.stdout.rstrip().splitlines())


def _example() -> str:
    found = re.search(r"<!-- example -->\n```python\n(.*?)```", README.read_text("utf-8"), re.S)
    assert found
    return found[1]


def _command(line: str) -> list[str]:
    """How a command of the README is run from here."""
    program, *arguments = line.split()
    return [sys.executable, *({"wdmoe-opt": ["-m", "wdmoe_opt.cli"], "python": []}[program]), *arguments]


@pytest.mark.compiled
@pytest.mark.parametrize("line", [name for name in _outputs() if name != "example"])
def test_command_output(line: str) -> None:
    """A command shown with its output prints exactly that."""
    shown, printed = _outputs()[line].rstrip(), _run(*_command(line))
    if line.startswith("python"):  # a table of searches' results: the last digit may differ by machine
        assert NUMBER.sub("#", printed) == NUMBER.sub("#", shown)
        values = zip(NUMBER.findall(printed), NUMBER.findall(shown), strict=True)
        assert all(abs(float(a) - float(b)) <= 0.002 for a, b in values)
    else:
        assert printed == shown


@pytest.mark.compiled
def test_python_example() -> None:
    """The Python example prints what stands below it."""
    assert _run(sys.executable, "-c", _example()) == _outputs()["example"].rstrip()


def test_both_commands_are_there() -> None:
    """One command installs and runs, one installs and tests, each on one line."""
    commands = re.findall(r"<!-- command: (\w+) -->\n```sh\n(.*?)```", README.read_text("utf-8"), re.S)
    assert {name for name, _ in commands} == {"run", "test"}
    assert all(text.count("\n") == 1 for _, text in commands)


def test_solver_table_is_complete() -> None:
    """The README's table names every registered solver, and no other."""
    import wdmoe_opt as wo

    named = set(re.findall(r"^\| `([a-z0-9-]+)` \|", README.read_text("utf-8"), re.M))
    assert named == {info.name for info in wo.list_solvers()} | {"auto"}
