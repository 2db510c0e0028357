"""Bandwidth that maximises a sum of rates: the lower level of the weight-to-latency ratio.

Both the per-token and the per-device reading are sums of terms A / (B + C phi_k(b_k)) over devices, with
phi the seconds per transfer. Each is the rate of fact 1 up to constants, hence concave and increasing
in b_k, and the devices couple through the budget only: at the optimum all marginal rates are equal.
"""

from __future__ import annotations

from math import exp, log

import numpy as np

from wdmoe_opt.kernels.compiled import compiled
from wdmoe_opt.kernels.link import log_time_terms

HALVINGS = 50
#: Smallest share of a loaded device, as part of the budget: even weightless work must end some time.
LEAST_SHARE = 1e-7


@compiled
def ratio_bandwidth(
    numerator: np.ndarray,
    constant: np.ndarray,
    factor: np.ndarray,
    loaded: np.ndarray,
    bits_down: float,
    c_down: np.ndarray,
    bits_up: float,
    c_up: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    total: float,
    out: np.ndarray,
) -> None:
    """Maximise sum of numerator / (constant + factor phi_k(b_k)) over shares within limits and budget.

    Parameters
    ----------
    numerator, constant, factor : float arrays (blocks, devices, terms)
        Terms with numerator 0 do not count.
    loaded : bool array (devices,)
        Devices that get a share even if no term counts.
    c_down, c_up : float arrays (blocks, devices), Hz
    low, high : float arrays (devices,), Hz
    out : float array (devices,), Hz, filled
    """
    devices = low.size
    lowest, highest = np.empty(devices), np.empty(devices)
    for k in range(devices):
        useful = False
        for i in range(numerator.shape[0]):
            for r in range(numerator.shape[2]):
                useful = useful or numerator[i, k, r] > 0.0
        lowest[k] = max(low[k], min(LEAST_SHARE * total, high[k])) if loaded[k] else low[k]
        highest[k] = max(min(high[k], total), lowest[k]) if useful else lowest[k]
    # Bracket of the common marginal rate, in logarithms.
    least, most = 700.0, -700.0
    for k in range(devices):
        if highest[k] > lowest[k]:
            least = min(
                least,
                _log_marginal(highest[k], k, numerator, constant, factor, bits_down, c_down, bits_up, c_up),
            )
            most = max(
                most,
                _log_marginal(lowest[k], k, numerator, constant, factor, bits_down, c_down, bits_up, c_up),
            )
    for _ in range(HALVINGS):
        price = 0.5 * (least + most)
        used = 0.0
        for k in range(devices):
            out[k] = _share_at(
                price, lowest[k], highest[k], k, numerator, constant, factor, bits_down, c_down, bits_up, c_up
            )
            used += out[k]
        if used > total:
            least = price
        else:
            most = price
    used = 0.0
    reserved = 0.0
    for k in range(devices):
        used += out[k]
        reserved += low[k]
    if used > total and used > reserved:
        part = max(total - reserved, 0.0) / (used - reserved)
        for k in range(devices):
            out[k] = low[k] + (out[k] - low[k]) * part


@compiled
def _share_at(
    price: float,
    lowest: float,
    highest: float,
    k: int,
    numerator: np.ndarray,
    constant: np.ndarray,
    factor: np.ndarray,
    bits_down: float,
    c_down: np.ndarray,
    bits_up: float,
    c_up: np.ndarray,
) -> float:
    """Share at which device k's marginal rate falls to exp(price)."""
    if highest <= lowest:
        return lowest
    down, up = log(lowest), log(highest)
    for _ in range(HALVINGS):
        middle = 0.5 * (down + up)
        if (
            _log_marginal(exp(middle), k, numerator, constant, factor, bits_down, c_down, bits_up, c_up)
            > price
        ):
            down = middle
        else:
            up = middle
    return min(max(exp(0.5 * (down + up)), lowest), highest)


@compiled
def _log_marginal(
    b: float,
    k: int,
    numerator: np.ndarray,
    constant: np.ndarray,
    factor: np.ndarray,
    bits_down: float,
    c_down: np.ndarray,
    bits_up: float,
    c_up: np.ndarray,
) -> float:
    """Logarithm of the derivative of device k's terms in b."""
    rate = 0.0
    known = False
    c_d = c_u = phi = slope = 0.0
    for i in range(numerator.shape[0]):
        if not (known and c_down[i, k] == c_d and c_up[i, k] == c_u):
            c_d, c_u, known = c_down[i, k], c_up[i, k], True
            phi, slope, _ = log_time_terms(b, bits_down, c_d, bits_up, c_u)
        for r in range(numerator.shape[2]):
            if numerator[i, k, r] > 0.0:
                time = constant[i, k, r] + factor[i, k, r] * phi
                rate -= numerator[i, k, r] * factor[i, k, r] * slope / (b * time * time)
    return log(rate) if rate > 1e-300 else -690.0
