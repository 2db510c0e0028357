"""Estimates from observed times."""

from __future__ import annotations

import numpy as np
import pytest

from wdmoe_opt.errors import InputError
from wdmoe_opt.network import DeviceHistory

NEVER = np.inf


def test_smoothing_moves_by_the_weight():
    history = DeviceHistory(2, weight=0.25)
    history.observe([2.0, 3.0], [2, 1])
    history.observe([6.0, 0.0], [2, 0])
    np.testing.assert_allclose(history.estimates, [1.0 + 0.25 * (3.0 - 1.0), 3.0])


def test_window_takes_time_over_tokens_of_the_last_ones():
    history = DeviceHistory(1, rule="window", window=2)
    for time, tokens in ((100.0, 1), (1.0, 1), (9.0, 4)):
        history.observe([time], [tokens])
    np.testing.assert_allclose(history.estimates, [10.0 / 5.0])


@pytest.mark.parametrize("rule", ["smoothed", "window"])
def test_unseen_devices(rule):
    history = DeviceHistory(3, rule=rule)
    np.testing.assert_array_equal(history.estimates, [1.0, 1.0, 1.0])
    history.observe([2.0, 4.0, NEVER], [1, 1, 1])
    np.testing.assert_allclose(history.estimates, [2.0, 4.0, 3.0])
    told = DeviceHistory(3, rule=rule, prior=[1.0, 2.0, 5.0])
    told.observe([4.0, 0.0, 0.0], [2, 0, 0])
    np.testing.assert_allclose(told.estimates, [2.0, 2.0, 5.0])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rule": "mean"}, "rule = 'mean'"),
        ({"weight": 1.5}, "weight = 1.5: must be at most 1"),
        ({"weight": 0}, "weight = 0.0: must be greater than 0"),
        ({"window": 0}, "window = 0"),
        ({"prior": [1.0, 2.0]}, "prior: must have shape"),
    ],
)
def test_arguments_are_checked(options, words):
    with pytest.raises(InputError, match=words):
        DeviceHistory(3, **options)


def test_observations_are_checked():
    with pytest.raises(InputError, match="tokens: must have shape"):
        DeviceHistory(3).observe([1.0, 1.0, 1.0], [1, 1])
