"""One device's link: Shannon rates, seconds per token, and the inverse (facts 1 and 2).

A direction is given by its payload L (bit per token) and its SNR bandwidth c = P g / N0 (Hz). With
x = c / b its rate is R(b) = b log2(1 + x) and one token takes L / R(b) seconds. As b grows the rate
saturates at c / ln 2, so the time splits into a floor L ln2 / c that no bandwidth removes and an
*excess* L ln2 / c (x / ln(1 + x) - 1). The excess behaves like 1 / b at both ends; Newton on its
logarithm therefore converges in a few steps from anywhere, where Newton on the time itself would
lose all digits on a saturated link.
"""

from __future__ import annotations

from math import exp, inf, log, log1p

import numpy as np

from wdmoe_opt.kernels.compiled import compiled

LN2 = log(2.0)
# Below this x the closed forms cancel; the series' first neglected term is then below 1e-14.
SMALL = 1e-3
HUGE = 1e300


@compiled
def rate(b: float, c: float) -> float:
    """Bit per second over bandwidth ``b`` Hz at SNR bandwidth ``c`` Hz; 0 if either is 0."""
    if b <= 0.0 or c <= 0.0:
        return 0.0
    x = c / b
    # The quotient overflows before the rate does.
    return b * (log1p(x) if x < HUGE else log(c) - log(b)) / LN2


@compiled
def link_time(b: float, bits_down: float, c_down: float, bits_up: float, c_up: float) -> float:
    """Seconds on air for one token there and back; inf if a needed direction has no rate."""
    time = 0.0
    if bits_down > 0.0:
        time += bits_down / rate(b, c_down)
    if bits_up > 0.0:
        time += bits_up / rate(b, c_up)
    return time


@compiled
def floor_time(bits_down: float, c_down: float, bits_up: float, c_up: float) -> float:
    """Seconds per token with unlimited bandwidth; inf if a needed direction is unreachable."""
    time = 0.0
    if bits_down > 0.0:
        time += bits_down * LN2 / c_down
    if bits_up > 0.0:
        time += bits_up * LN2 / c_up
    return time


@compiled
def _excess_ratio(x: float) -> tuple[float, float]:
    """Return x / ln(1+x) - 1 and its derivative times x."""
    if x < SMALL:
        value = x * (0.5 + x * (-1.0 / 12.0 + x * (1.0 / 24.0 - x * 19.0 / 720.0)))
        slope = x * (0.5 + x * (-1.0 / 6.0 + x * (0.125 - x * 19.0 / 180.0)))
        return value, slope
    l1 = log1p(x)
    ratio = x / l1
    return ratio - 1.0, ratio - ratio * ratio / (1.0 + x)


@compiled
def excess(b: float, bits_down: float, c_down: float, bits_up: float, c_up: float) -> tuple[float, float]:
    """Seconds per token above the floor at bandwidth ``b`` > 0, and minus its slope in ln b (> 0)."""
    value = 0.0
    slope = 0.0
    if bits_down > 0.0:
        v, s = _excess_ratio(min(c_down / b, HUGE))
        scale = bits_down * LN2 / c_down
        value += scale * v
        slope += scale * s
    if bits_up > 0.0:
        v, s = _excess_ratio(min(c_up / b, HUGE))
        scale = bits_up * LN2 / c_up
        value += scale * v
        slope += scale * s
    return value, slope


@compiled
def bandwidth_for_excess(
    target: float, start: float, bits_down: float, c_down: float, bits_up: float, c_up: float
) -> tuple[float, float]:
    """Bandwidth whose excess is ``target`` > 0 s, and d ln b / d ln target (< 0).

    Newton on ln excess over ln b from ``start`` > 0; the slope there lies in (-1, -0.1), so steps are
    short of wild. The loop ends when a step no longer moves b.
    """
    b = start
    slope = -1.0
    for _ in range(60):
        value, fall = excess(b, bits_down, c_down, bits_up, c_up)
        slope = -fall / value
        step = log(target / value) / slope
        # exp() of a long step could overflow from a bad start.
        b *= exp(min(max(step, -40.0), 40.0))
        if abs(step) < 1e-8:  # quadratic: the next step would be below 1e-15
            break
    return b, 1.0 / slope


@compiled
def log_time_terms(
    b: float, bits_down: float, c_down: float, bits_up: float, c_up: float
) -> tuple[float, float, float]:
    """Seconds per token and its first and second derivative in ln b.

    ln R is concave in ln b with slope e(x) = 1 - x / ((1+x) ln(1+x)), so 1/R is log-convex there.
    """
    time = 0.0
    first = 0.0
    second = 0.0
    for up in range(2):
        bits = bits_up if up else bits_down
        c = c_up if up else c_down
        if bits > 0.0:
            x = min(c / b, HUGE)
            # The logarithm takes most of the time, so the rate shares it; see `rate`.
            l1 = log1p(x)
            if x < SMALL:
                e = x * (0.5 + x * (-5.0 / 12.0 + x * (0.375 - x * 251.0 / 720.0)))
                bend = x * (0.5 + x * (-5.0 / 6.0 + x * (1.125 - x * 251.0 / 180.0)))
            else:
                e = 1.0 - x / ((1.0 + x) * l1)
                bend = x / (1.0 + x) * ((x - l1) / (1.0 + x)) / (l1 * l1)
            v = bits / (b * l1 / LN2) if c > 0.0 and x < HUGE else bits / rate(b, c)
            time += v
            first -= v * e
            second += v * (e * e + bend)
    return time, first, second


@compiled
def link_times(
    bandwidth: np.ndarray, bits_down: float, c_down: np.ndarray, bits_up: float, c_up: np.ndarray
) -> np.ndarray:
    """Seconds per token, (blocks, devices), from bandwidth (blocks or 1, devices)."""
    blocks, devices = c_down.shape
    out = np.empty((blocks, devices))
    rows = bandwidth.shape[0]
    for i in range(blocks):
        for k in range(devices):
            b = bandwidth[i if rows > 1 else 0, k]
            c_d = c_down[i, k]
            c_u = c_up[i, k]
            if (bits_down > 0.0 and c_d <= 0.0) or (bits_up > 0.0 and c_u <= 0.0) or b <= 0.0:
                out[i, k] = inf
            else:
                out[i, k] = link_time(b, bits_down, c_d, bits_up, c_u)
    return out
