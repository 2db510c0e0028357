"""Shared set-up: helper modules of this folder are importable, Hypothesis repeats itself exactly."""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# `profiles` and other helpers lie beside this file; with pytest's importlib mode it is not on the path.
_folder = str(Path(__file__).parent)
if _folder not in sys.path:
    sys.path.insert(0, _folder)

import profiles  # noqa: E402

settings.load_profile(profiles.PROFILE)


def pytest_configure(config: pytest.Config) -> None:
    """Kernels as plain Python warn where compiled ones divide and overflow silently, by IEEE."""
    if os.environ.get("NUMBA_DISABLE_JIT", "0") != "0":
        config.addinivalue_line("filterwarnings", r"ignore::RuntimeWarning:wdmoe_opt\.kernels\..*")
    if profiles.PROFILE == "coverage":
        # A test stopped inside a callback of the garbage collector cannot end there: the timer comes again.
        config.addinivalue_line("filterwarnings", "ignore::pytest.PytestUnraisableExceptionWarning")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The coverage profile: the first parameter sets of every test that needs no compiled kernels."""
    if profiles.PROFILE != "coverage":
        return
    seen: Counter[str] = Counter()
    kept, left = [], []
    for item in items:
        name = f"{item.parent.nodeid}::{getattr(item, 'originalname', item.name)}"
        seen[name] += 1
        few = seen[name] <= profiles.CASES and item.get_closest_marker("compiled") is None
        (kept if few else left).append(item)
    items[:] = kept
    config.hook.pytest_deselected(items=left)


def _cut_short(signum: int, frame: Any) -> None:
    inside = frame
    while inside is not None:
        if f"{os.sep}coverage{os.sep}" in inside.f_code.co_filename:
            # It may hold its lock, and would never give it back.
            signal.setitimer(signal.ITIMER_VIRTUAL, 0.01, profiles.SECONDS)
            return
        inside = inside.f_back
    pytest.skip(f"stopped after {profiles.SECONDS} s: what it ran is counted")


def _bounded() -> Generator[None, Any, Any]:
    """The coverage profile stops what takes long in plain Python."""
    if profiles.PROFILE != "coverage" or not hasattr(signal, "setitimer"):
        return (yield)
    before = signal.signal(signal.SIGVTALRM, _cut_short)
    signal.setitimer(signal.ITIMER_VIRTUAL, profiles.SECONDS, profiles.SECONDS)
    try:
        return (yield)
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, Any, Any]:
    """Bound what fixtures take."""
    return (yield from _bounded())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Bound what a test takes."""
    return (yield from _bounded())
