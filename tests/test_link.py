"""One device's link against the same formulas in high precision (facts 1 and 2)."""

from __future__ import annotations

from math import inf, log2

import mpmath as mp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from profiles import examples

from wdmoe_opt.kernels.link import (
    bandwidth_for_excess,
    excess,
    floor_time,
    link_time,
    link_times,
    log_time_terms,
    rate,
)

#: Bit per token of either direction, none, few or many; SNR bandwidth and bandwidth in Hz.
BITS = st.sampled_from([0.0, 0.5, 1.0, 32768.0, 1e6])
SNR = st.floats(-6, 12).map(lambda e: 10.0**e)
BAND = st.floats(-3, 9).map(lambda e: 10.0**e)


def seconds(b: mp.mpf, down: float, c_down: float, up: float, c_up: float) -> mp.mpf:
    """Shannon, both directions."""
    pairs = [(down, c_down), (up, c_up)]
    return mp.fsum(bits / (b * mp.log1p(mp.mpf(c) / b) / mp.log(2)) for bits, c in pairs if bits)


def floor(down: float, c_down: float, up: float, c_up: float) -> mp.mpf:
    """What no bandwidth removes."""
    return mp.fsum(bits * mp.log(2) / mp.mpf(c) for bits, c in [(down, c_down), (up, c_up)] if bits)


def in_logarithms(link: tuple[float, ...], b: float, order: int) -> mp.mpf:
    """A derivative of the link time in ln b, by high-precision differences."""
    return mp.diff(lambda u: seconds(mp.exp(u), *link), mp.log(mp.mpf(b)), order)


LINK = st.tuples(BITS, SNR, BITS, SNR).filter(lambda link: link[0] + link[2] > 0)


@examples(200)
@given(LINK, BAND)
@example((1.0, 1.0, 0.5, 0.1), 0.5)
@example((32768.0, 9.99e3, 0.0, 1.0), 1e7)  # x just below the series' end
@example((0.0, 1.0, 32768.0, 1.01e4), 1e7)  # and above it
@example((1.0, 1.0, 0.0, 0.0), 1.0)  # nothing is asked of a direction without payload
@example((0.0, 0.0, 1.0, 1.0), 1.0)
def test_times_and_derivatives(link: tuple[float, float, float, float], b: float) -> None:
    """Time, floor, excess and all derivatives lie within rounding of 60-digit arithmetic."""
    with mp.workdps(60):
        exact, least = seconds(mp.mpf(b), *link), floor(*link)
        first, second = in_logarithms(link, b, 1), in_logarithms(link, b, 2)
        above = exact - least
    assert link_time(b, *link) == pytest.approx(float(exact), rel=1e-13, abs=0)
    assert floor_time(*link) == pytest.approx(float(least), rel=1e-14, abs=0)
    value, fall = excess(b, *link)
    assert value == pytest.approx(float(above), rel=1e-12, abs=0)
    assert fall == pytest.approx(float(-first), rel=1e-12, abs=0)
    time, one, two = log_time_terms(b, *link)
    assert time == pytest.approx(float(exact), rel=1e-13, abs=0)
    assert one == pytest.approx(float(first), rel=1e-12, abs=0)
    assert two == pytest.approx(float(second), rel=1e-11, abs=0)


@examples(100)
@given(LINK, BAND, st.floats(-3, 3))
def test_bandwidth_for_an_excess_is_its_inverse(
    link: tuple[float, float, float, float], b: float, away: float
) -> None:
    """From a start up to a thousandfold off, the bandwidth comes back, with its elasticity."""
    target, fall = excess(b, *link)
    found, elasticity = bandwidth_for_excess(target, b * 10.0**away, *link)
    assert found == pytest.approx(b, rel=1e-9, abs=0)
    assert elasticity == pytest.approx(-target / fall, rel=1e-6, abs=0)


@pytest.mark.parametrize("b", [0.0, -1.0, 1.0])
@pytest.mark.parametrize("c", [0.0, -1.0, 1.0])
def test_rate_needs_bandwidth_and_signal(b: float, c: float) -> None:
    """Without one of them nothing arrives."""
    assert rate(b, c) == (pytest.approx(log2(2.0)) if b > 0 and c > 0 else 0.0)


def test_rate_where_the_ratio_overflows() -> None:
    """The ratio is beyond floats, its logarithm is not."""
    with mp.workdps(60):
        want = mp.mpf(1e-300) * mp.log1p(mp.mpf(1e300) / mp.mpf(1e-300)) / mp.log(2)
    assert rate(1e-300, 1e300) == pytest.approx(float(want), rel=1e-13, abs=0)
    assert log_time_terms(1e-300, 2.0, 1e300, 0.0, 0.0)[0] == pytest.approx(float(2 / want), rel=1e-13, abs=0)


def test_table_of_times_repeats_a_single_row_and_knows_unreachable_devices() -> None:
    """One row of bandwidth serves all blocks; a needed direction without signal takes forever."""
    down = np.array([[1.0, 0.0, 1.0, 0.5], [1.0, 1.0, 1.0, 0.5]])
    up = np.array([[1.0, 1.0, 0.0, 0.5], [0.5, 1.0, 0.0, 0.5]])
    shared = np.array([[1.0, 1.0, 1.0, 0.0]])
    own = np.array([[1.0, 1.0, 1.0, 0.5], [0.5, 1.0, 1.0, 0.5]])

    def one(b: float, c_down: float, c_up: float, bits_up: float) -> float:
        needed = c_down > 0 and (c_up > 0 or not bits_up) and b > 0
        return link_time(b, 2.0, c_down, bits_up, c_up) if needed else inf

    for bandwidth in (shared, own):
        for bits_up in (3.0, 0.0):
            rows = np.broadcast_to(bandwidth, down.shape)
            want = [[one(rows[i, k], down[i, k], up[i, k], bits_up) for k in range(4)] for i in range(2)]
            np.testing.assert_array_equal(link_times(bandwidth, 2.0, down, bits_up, up), want)
    assert np.isinf(link_times(own, 2.0, down, 3.0, up)).sum() == 3
    silent = link_times(own, 0.0, np.zeros_like(down), 3.0, np.ones_like(up))
    assert np.isfinite(silent).all()
