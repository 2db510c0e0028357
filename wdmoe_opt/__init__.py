"""Expert selection and bandwidth allocation for mixture-of-experts models on wireless devices."""

from __future__ import annotations

from pathlib import Path as _Path

_here = _Path(__file__).parent
if not (_here / "instances").is_dir() and (_here.parent / "pyproject.toml").is_file():
    # A checkout: the sibling rooms stand beside this folder, not inside it as in a wheel.
    __path__.append(str(_here.parent))
