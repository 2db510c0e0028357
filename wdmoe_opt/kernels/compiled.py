"""The one way kernels are compiled here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """Compile with Numba: cached on disk, without the GIL, IEEE division, no fast-math.

    Fast-math is out because bounds are built on these numbers; ``parallel=True`` is out because its
    threads die with forked children and abort under a thread pool.
    """
    return cast("F", numba.njit(cache=True, nogil=True, error_model="numpy")(function))
