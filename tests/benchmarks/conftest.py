"""A page of made-up rows, drawn once for all tests that look at it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from wdmoe_opt.benchmarks.report.page import Page


@pytest.fixture(scope="session")
def page() -> Page:
    for needed in ("pandas", "jinja2", "matplotlib"):
        pytest.importorskip(needed)
    from fake_results import fake_results

    from wdmoe_opt.benchmarks.report.page import make_page
    from wdmoe_opt.benchmarks.report.results import tidy

    return make_page(tidy(fake_results()))
