"""Shared set-up: helper modules of this folder are importable, Hypothesis repeats itself exactly."""

from __future__ import annotations

import sys
from pathlib import Path

from hypothesis import settings

# `profiles` and other helpers lie beside this file; with pytest's importlib mode it is not on the path.
_folder = str(Path(__file__).parent)
if _folder not in sys.path:
    sys.path.insert(0, _folder)

import profiles  # noqa: E402

settings.load_profile(profiles.PROFILE)
