"""The page in headless Chromium: no errors, every picture there, nothing wider than a laptop."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from wdmoe_opt.benchmarks.report.page import Page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
LAPTOP, HEIGHT = 1366, 768
#: s; a loaded machine starts Chromium slowly.
PATIENCE = 90

#: A page around the report: it looks into the frame, so that nothing is put into the report itself.
PROBE = """<!doctype html><meta charset="utf-8"><title>probe</title>
<iframe id="report" src="report.html" style="width:{width}px;height:{height}px;border:0"></iframe>
<pre id="found"></pre>
<script>
document.getElementById("report").addEventListener("load", async (event) => {{
  const page = event.target.contentDocument, root = page.documentElement;
  await Promise.all([...page.images].map((image) => image.decode().catch(() => null)));
  document.getElementById("found").textContent = JSON.stringify({{
    title: page.title,
    width: root.clientWidth,
    scroll: root.scrollWidth,
    tables: page.querySelectorAll("tbody tr").length,
    wide: [...page.querySelectorAll(".scroll")].filter((box) => box.scrollWidth > box.clientWidth).length,
    images: [...page.images].map((image) => ({{
      name: image.closest("figure").previousElementSibling.id,
      natural: image.naturalWidth, shown: image.getBoundingClientRect().width, alt: image.alt,
    }})),
    small: [...page.querySelectorAll("p, td, th, li, figcaption")]
      .filter((item) => parseFloat(page.defaultView.getComputedStyle(item).fontSize) < 13).length,
  }});
}});
</script>
"""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; apt-get install chromium")


def browse(address: str, profile: Path, *options: str) -> tuple[str, str]:
    """Standard output and error of one run of headless Chromium, all of whose processes end with it."""
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        "--no-first-run", "--disable-background-networking", "--allow-file-access-from-files",
        "--enable-logging=stderr", "--v=0", f"--user-data-dir={profile}", *options, address,
    ]  # fmt: skip
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as running:
        try:
            return running.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(running.pid, signal.SIGKILL)
            raise


@pytest.fixture(scope="module")
def folder(page: Page, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from wdmoe_opt.benchmarks.report.command import write

    folder = tmp_path_factory.mktemp("page")
    write(page, folder)
    (folder / "probe.html").write_text(PROBE.format(width=LAPTOP, height=HEIGHT), "utf-8")
    return folder


@pytest.fixture(scope="module")
def seen(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[str]]:
    """What the probe found, and every line that the page wrote to the console."""
    dom, log = browse(
        (folder / "probe.html").as_uri(), tmp_path_factory.mktemp("profile"), "--dump-dom",
        "--virtual-time-budget=20000", f"--window-size={LAPTOP + 60},{HEIGHT + 60}",
    )  # fmt: skip
    found = re.search(r'<pre id="found">(.+?)</pre>', dom, re.S)
    assert found, log[-2000:]
    return json.loads(html.unescape(found[1])), re.findall(r".*CONSOLE.*", log)


def test_the_console_stays_empty(seen: tuple[dict[str, Any], list[str]]) -> None:
    assert seen[1] == []
    assert seen[0]["title"] == "Benchmark report: captured, scaling, radio, paper"


def test_every_picture_is_there(seen: tuple[dict[str, Any], list[str]], folder: Path) -> None:
    images = seen[0]["images"]
    assert {image["name"] for image in images} == {path.stem for path in (folder / "images").glob("*.png")}
    for image in images:
        assert image["natural"] > 0
        assert image["shown"] > 800
        assert image["alt"]


def test_it_is_readable_at_the_width_of_a_laptop(seen: tuple[dict[str, Any], list[str]]) -> None:
    found = seen[0]
    assert found["width"] <= LAPTOP
    assert found["scroll"] <= found["width"]
    assert found["wide"] == 0
    assert found["small"] == 0
    assert found["tables"] > 80


def test_errors_on_the_console_would_be_seen(tmp_path: Path) -> None:
    (tmp_path / "bad.html").write_text("<script>console.error('seen'); missing()</script>", "utf-8")
    _, log = browse((tmp_path / "bad.html").as_uri(), tmp_path / "profile", "--dump-dom")
    assert len(re.findall(r".*CONSOLE.*", log)) == 2
