"""Rewrite the outputs shown in README.md with what the commands print now.

Usage: python .ci/readme_outputs.py
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from test_readme import README, _example, _run


def main() -> None:
    """Run every shown command and put its output in its place."""

    def output(match: re.Match[str]) -> str:
        name = match[1]
        if name == "example":
            text = _run(sys.executable, "-c", _example())
        else:
            text = _run(sys.executable, "-m", "wdmoe_opt.cli", *name.split()[1:])
        return f"<!-- output: {name} -->\n```text\n{text}\n```"

    page = README.read_text("utf-8")
    README.write_text(re.sub(r"<!-- output: (.+?) -->\n```text\n.*?```", output, page, flags=re.S), "utf-8")


if __name__ == "__main__":
    main()
