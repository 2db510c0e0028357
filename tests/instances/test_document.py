"""The generated page is current, and every family has its picture."""

from __future__ import annotations

import difflib
from pathlib import Path

import pytest

from wdmoe_opt.instances.document import page
from wdmoe_opt.instances.families import FAMILIES

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_is_current() -> None:
    written = (DOCS / "instances.md").read_text(encoding="utf-8")
    change = "\n".join(difflib.unified_diff(written.splitlines(), page().splitlines(), lineterm="", n=0))
    assert not change, f"run `python -m wdmoe_opt.instances.document`:\n{change}"


def test_every_family_has_a_picture_and_they_stay_small() -> None:
    pictures = {path.stem for path in (DOCS / "images").glob("*.png")}
    assert set(FAMILIES) <= pictures
    assert sum(path.stat().st_size for path in (DOCS / "images").iterdir()) < 1.5e6


@pytest.mark.parametrize("name", ["gpt-oss-20b-decode", "olmoe-domains"])
def test_pictures_are_drawn(name: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pictures need matplotlib (extra: plot)")
    from wdmoe_opt.instances.pictures import draw_family

    draw_family(FAMILIES[name], tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
