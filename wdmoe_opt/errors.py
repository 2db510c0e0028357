"""Exceptions of the package; every message is one line that names field, index, value and rule."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

#: Longest text of a value in a message.
LONGEST = 200


class WdmoeError(Exception):
    """Base class of every error raised on purpose by this package."""

    def __init__(self, message: str = "") -> None:
        super().__init__(one_line(message))

    def __reduce__(self) -> tuple[Any, ...]:
        """Whole in a pickle, as process pools send it; values of foreign classes travel as text."""
        state = {name: v if isinstance(v, _PLAIN) else shown(v) for name, v in vars(self).items()}
        return _restored, (type(self), str(self), state)


#: Types of attributes that any process can unpickle.
_PLAIN = (int, float, str, tuple, Path, type(None))


def _restored(kind: type[WdmoeError], message: str, state: dict[str, Any]) -> WdmoeError:
    error = kind.__new__(kind, message)
    vars(error).update(state)
    return error


def one_line(text: str) -> str:
    """Text with its line breaks as blanks; other blanks stay."""
    return " ".join(text.splitlines())


def shown(value: object) -> str:
    """`repr` of a value, of bounded length; the type's name where there is no `repr`."""
    try:
        text = one_line(repr(value))
    except Exception:  # too deep, too long a number, or what a foreign class raises
        text = f"<{type(value).__name__}>"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


class InputError(WdmoeError, ValueError):
    """A value handed in breaks a rule.

    Parameters
    ----------
    field : str
        Name of the offending field, as the caller knows it.
    rule : str
        The rule it breaks, in words.
    index : tuple of int, optional
        First offending index of an array field.
    value : object, optional
        The offending value.
    """

    def __init__(
        self, field: str, rule: str, *, index: tuple[int, ...] | None = None, value: object = None
    ) -> None:
        self.field, self.rule, self.index, self.value = field, rule, index, value
        where = f"{field}[{', '.join(map(str, index))}]" if index is not None else field
        what = "" if value is None else f" = {shown(value)}"
        super().__init__(f"{where}{what}: {rule}")


#: So many known names are all listed.
FEW = 6


class UnknownNameError(InputError, LookupError):
    """A name (instance, solver, option, key) that does not exist; the message lists near ones."""

    def __init__(self, field: str, name: object, known: Iterable[str]) -> None:
        names = sorted(known)
        text = name if isinstance(name, str) else shown(name)
        near = get_close_matches(text[:LONGEST], names, n=3, cutoff=0.4)
        rest = [name for name in names if name not in near]
        few = not near or len(names) <= FEW
        more = "" if few else f" (nearest of {len(names)})"
        listed = ", ".join([*near, *rest] if few else near)
        super().__init__(field, f"unknown name; choose from {listed}{more}", value=name)


class UnsupportedError(WdmoeError):
    """A method was asked for something it does not do; the message names those that can."""


class InstanceFileError(WdmoeError):
    """A file cannot be read as what it should be, or its content hash does not match."""
