"""Numbers as text: three significant digits, with the unit that suits them."""

from __future__ import annotations

import math

_UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))
NONE = "–"


def digits(value: float, significant: int = 3) -> str:
    """Plain notation, thousands apart by a narrow space, no trailing point."""
    if math.isnan(value):
        return NONE
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if value == 0:
        return "0"
    size = math.floor(math.log10(abs(value)))
    rounded = round(value, significant - 1 - size)
    size = math.floor(math.log10(abs(rounded)))
    if size < -4:
        return f"{rounded:.{significant - 1}e}"
    return f"{rounded:,.{max(significant - 1 - size, 0)}f}".replace(",", "\u202f")


def seconds(value: float) -> str:
    """Time with its unit."""
    if not math.isfinite(value):
        return digits(value)
    for scale, unit in _UNITS:
        # 0.9996 ms is 1.00 ms, not 1000 µs.
        if float(f"{abs(value):.2e}") >= scale or unit == "ns":
            return f"{digits(value / scale)} {unit}"
    raise AssertionError


def percent(value: float) -> str:
    """Share or gap; as small as it is, but noise of rounding is 0."""
    if math.isfinite(value) and abs(value) < 1e-9:
        return "0 %"
    if math.isfinite(value) and abs(value) < 1e-6:
        return "< 0.0001 %" if value > 0 else "> −0.0001 %"
    if not math.isfinite(value):
        return digits(value)
    return f"{digits(100 * value, 2 if abs(value) < 0.1 else 3)} %"


def share(value: float) -> str:
    """Share of a count: whole per cents, but never 100 or 0 where it is not all or none."""
    if math.isnan(value):
        return NONE
    if 0.995 <= value < 1.0:
        return "> 99 %"
    if 0.0 < value < 0.005:
        return "< 1 %"
    return f"{value:.0%}".replace("%", " %")


def ratio(value: float) -> str:
    """Three decimals."""
    return f"{value:.3f}" if math.isfinite(value) else digits(value)


def times(value: float) -> str:
    """Multiple."""
    return f"{digits(value)} ×" if math.isfinite(value) else digits(value)


def count(value: float) -> str:
    """Whole number."""
    return NONE if math.isnan(value) else f"{int(value):,}".replace(",", "\u202f")
