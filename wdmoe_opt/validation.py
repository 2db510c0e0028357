"""Checks of what users hand in: finiteness and shape first, anything numerical after."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from wdmoe_opt.errors import InputError

RealArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


def _raw(field: str, value: Any) -> NDArray[Any]:
    if isinstance(value, np.ndarray):
        array = value
    else:
        try:
            if hasattr(value, "__dlpack__") and not hasattr(value, "__array__"):
                array = np.from_dlpack(value)
            else:
                array = np.asarray(value)
        except Exception as error:  # conversions are foreign code
            raise InputError(field, f"must be a rectangular array of numbers ({error})") from None
    if isinstance(array, np.ma.MaskedArray) and np.ma.is_masked(array):
        raise InputError(field, "must not be masked: every value counts")
    if array.dtype.kind not in "iuf":
        raise InputError(field, f"must hold real numbers, got dtype {array.dtype}")
    return array


def refuse_where(field: str, bad: NDArray[np.bool_], array: NDArray[Any], rule: str) -> None:
    """Raise for the first True in ``bad``, naming its index and the value found there."""
    if bad.any():
        index = tuple(int(i) for i in np.unravel_index(int(bad.argmax()), bad.shape))
        raise InputError(field, rule, index=index or None, value=array[index].item())


def float_array(field: str, value: Any) -> RealArray:
    """Float64 copy of ``value``; NaN and infinities are left for the caller to judge."""
    return _copy(field, _raw(field, value), np.float64)


def _copy(field: str, array: NDArray[Any], dtype: type) -> NDArray[Any]:
    """Own copy in C order; a number of a wider type that does not fit becomes infinite."""
    try:
        with np.errstate(over="ignore"):
            return np.array(array, dtype=dtype, order="C", subok=False)
    except MemoryError:
        raise InputError(field, f"must fit into memory, has shape {array.shape}") from None


def real_array(field: str, value: Any, *, minimum: float | None = None, above: bool = False) -> RealArray:
    """Finite float64 copy of ``value``, optionally with a lower limit (strict if ``above``)."""
    array = float_array(field, value)
    refuse_where(field, ~np.isfinite(array), array, "must be finite")
    if minimum is not None:
        word = "greater than" if above else "at least"
        bad = array <= minimum if above else array < minimum
        refuse_where(field, bad, array, f"must be {word} {minimum:g}")
    return array


def int_array(field: str, value: Any) -> IntArray:
    """Int64 copy of ``value``; floating-point input is accepted only where every value is whole."""
    raw = _raw(field, value)
    if raw.dtype.kind == "f":
        raw = _copy(field, raw, np.float64)
        refuse_where(field, ~np.isfinite(raw), raw, "must be finite")
        refuse_where(field, raw != np.floor(raw), raw, "must be whole numbers")
        refuse_where(field, np.abs(raw) > 2.0**53, raw, "must lie within ±2^53")
    elif raw.dtype.kind == "u":
        raw = _copy(field, raw, raw.dtype.type)
        refuse_where(field, raw > np.iinfo(np.int64).max, raw, "must fit a 64-bit signed integer")
    return _copy(field, raw, np.int64)


def real_scalar(field: str, value: Any, *, minimum: float | None = None, above: bool = False) -> float:
    """Finite float from a scalar."""
    array = real_array(field, value, minimum=minimum, above=above)
    require_shape(field, array, (), "a scalar")
    return float(array)


def whole(field: str, value: Any, low: int, high: int, rule: str) -> int:
    """Integer in [low, high]; booleans and fractions are refused."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise InputError(field, "must be a whole number", value=value)
    if not low <= value <= high:
        raise InputError(field, rule, value=int(value))
    return int(value)


def require_type(field: str, value: object, kind: type) -> None:
    """Raise unless ``value`` is of a class."""
    if not isinstance(value, kind):
        article = "an" if kind.__name__[0] in "AEIOU" else "a"
        raise InputError(field, f"must be {article} {kind.__name__}, got {type(value).__name__}")


def require_shape(field: str, array: NDArray[Any], shape: tuple[int, ...], words: str) -> None:
    """Raise unless ``array`` has exactly ``shape``; ``words`` names the axes."""
    if array.shape != shape:
        raise InputError(field, f"must have shape {shape}, {words}; got {array.shape}")


def per_device(field: str, value: Any, devices: int, **limits: Any) -> RealArray:
    """Array (devices,) from a scalar, meant for all, or one value per device."""
    array = real_array(field, value, **limits)
    if array.ndim == 0:
        return np.full(devices, float(array))
    require_shape(field, array, (devices,), "(devices,) or a scalar")
    return array


def freeze(array: Any) -> Any:
    """Make an array read-only, in place."""
    array.setflags(write=False)
    return array


class Pickled:
    """Base of frozen dataclasses: pickles hold the fields, and arrays are read-only again when loaded.

    NumPy forgets that an array is read-only, and kernels are compiled for read-only arrays: without this
    every process that is sent a problem would compile them anew.
    """

    def __getstate__(self) -> dict[str, Any]:
        names = getattr(type(self), "__dataclass_fields__")  # noqa: B009
        return {name: value for name, value in vars(self).items() if name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for value in state.values():
            if isinstance(value, np.ndarray):
                freeze(value)
        vars(self).update(state)
