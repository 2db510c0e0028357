"""``wdmoe-opt bench report``: read the rows, write the page, say where it is."""

from __future__ import annotations

from pathlib import Path

from wdmoe_opt.archive import write_atomically
from wdmoe_opt.benchmarks.report.page import Page, make_page
from wdmoe_opt.benchmarks.report.render import dump, html, markdown
from wdmoe_opt.benchmarks.report.results import read_results
from wdmoe_opt.errors import InputError, UnsupportedError


def report(results: Path, out: Path | None = None, json: bool = False) -> Page:
    """Write report.html, report.md and images/ into a folder.

    Parameters
    ----------
    results : Path
        A Parquet file with rows of the runner, or a folder of them.
    out : Path, optional
        Folder, made if need be; default: ``report`` beside the results.
    json : bool
        Print every number as JSON instead of where the files are.

    Returns
    -------
    Page

    Raises
    ------
    UnsupportedError
        If a package of the extra ``bench`` is missing.
    InputError
        If the results cannot be read or the folder cannot be written.
    """
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError:
        raise UnsupportedError("the report needs matplotlib and jinja2; install wdmoe_opt[bench]") from None
    results = Path(results)
    page = make_page(read_results(results))
    target = Path(out) if out is not None else (results if results.is_dir() else results.parent) / "report"
    write(page, target)
    if json:
        print(dump(page))
    else:
        print(f"{target / 'report.html'}: {len(page.tables)} tables, {len(page.pictures)} pictures, "
              f"{len(page.limitations)} limitations")  # fmt: skip
    return page


def write(page: Page, folder: Path) -> None:
    """Write every file of a report; pictures of an earlier one that this one lacks are removed."""
    images = folder / "images"
    try:
        images.mkdir(parents=True, exist_ok=True)
        for picture in page.pictures:
            _write(images / f"{picture.name}.png", picture.png)
            _write(images / f"{picture.name}.svg", picture.svg)
        _write(folder / "report.md", markdown(page).encode())
        _write(folder / "report.html", html(page).encode())
        _forget(page, images)
    except OSError as error:
        raise InputError("out", f"cannot be written: {error}", value=str(folder)) from None


def _write(path: Path, content: bytes) -> None:
    write_atomically(path, lambda stream: stream.write(content))


def _forget(page: Page, images: Path) -> None:
    """Remove pictures that this report could have but has not."""
    items = [item for section in page.sections for item in section.items if hasattr(item, "reason")]
    for item in items:
        if item.reason:
            for ending in ("png", "svg"):
                (images / f"{item.name}.{ending}").unlink(missing_ok=True)
