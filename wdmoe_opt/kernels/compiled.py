"""The one way kernels are compiled here."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """Compile with Numba: cached on disk, without the GIL, IEEE division, no fast-math.

    Fast-math is out because bounds are built on these numbers; ``parallel=True`` is out because its
    threads die with forked children and abort under a thread pool.
    """
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
    try:
        return cast("F", numba.njit(cache=True, **options)(function))
    except RuntimeError:  # neither the package's folder nor the user's cache folder can be written
        _warn_uncached()
        return cast("F", numba.njit(**options)(function))


@cache
def _warn_uncached() -> None:
    warnings.warn(
        "wdmoe_opt: no writable folder for compiled kernels, so every process compiles anew; "
        "set NUMBA_CACHE_DIR to a writable folder",
        RuntimeWarning,
        stacklevel=2,
    )
