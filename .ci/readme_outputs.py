"""Rewrite the outputs shown in README.md with what the commands print now.

Usage: python .ci/readme_outputs.py
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from test_readme import README, _command, _example, _run


def main() -> None:
    """Run every shown command and put its output in its place."""

    def text(name: str) -> str:
        return _run(sys.executable, "-c", _example()) if name == "example" else _run(*_command(name))

    def fenced(match: re.Match[str]) -> str:
        return f"<!-- output: {match[1]} -->\n```text\n{text(match[1])}\n```"

    def table(match: re.Match[str]) -> str:
        return f"<!-- table: {match[1]} -->\n\n{text(match[1])}\n\n<!-- end -->"

    page = README.read_text("utf-8")
    page = re.sub(r"<!-- output: (.+?) -->\n```text\n.*?```", fenced, page, flags=re.S)
    page = re.sub(r"<!-- table: (.+?) -->\n\n.*?\n<!-- end -->", table, page, flags=re.S)
    README.write_text(page, "utf-8")


if __name__ == "__main__":
    main()
