"""Ctrl-C during compiled code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def interrupts_heard() -> Iterator[None]:
    """Ctrl-C stays one: Numba wraps what a signal raises while a compiled function returns.

    Raises
    ------
    KeyboardInterrupt
        In place of a SystemError that has one behind it.
    """
    try:
        yield
    except SystemError as error:
        behind: BaseException | None = error
        while behind is not None and not isinstance(behind, KeyboardInterrupt):
            behind = behind.__cause__ or behind.__context__
        if behind is not None:
            raise KeyboardInterrupt from None
        raise
