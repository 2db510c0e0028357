"""Examples of the pages in docs/ that are written as a session print what the page shows."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(page.name for page in DOCS.glob("*.md") if ">>> " in page.read_text("utf-8"))


@pytest.mark.parametrize("page", PAGES)
def test_examples_run(page: str) -> None:
    failed, tried = doctest.testfile(str(DOCS / page), module_relative=False)
    assert tried >= 3
    assert failed == 0


def test_pages_are_found() -> None:
    assert {"certificates.md", "certified.md"} <= set(PAGES)
