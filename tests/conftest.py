"""Shared set-up: helper modules of this folder are importable, Hypothesis repeats itself exactly."""

from __future__ import annotations

import sys
from pathlib import Path

from hypothesis import HealthCheck, settings

# `strategies` and `oracles` lie beside this file; with pytest's importlib mode it is not on the path.
_folder = str(Path(__file__).parent)
if _folder not in sys.path:
    sys.path.insert(0, _folder)

# Kernels compile on first use, so no deadline; the same examples on every machine.
settings.register_profile(
    "repeatable", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("repeatable")
