"""Random numbers whose values do not depend on the NumPy version."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from wdmoe_opt.validation import RealArray, whole

ComplexArray = NDArray[np.complex128]

# Every draw is a formula applied to Generator.random(): NumPy may change the algorithms, and with them
# the streams, of .normal() and .exponential() in any release, and shipped instances must stay identical
# (up to the last bit, where the log, sine and cosine of another machine round differently).


def checked_seed(seed: Any) -> int:
    """Seed as a non-negative integer that fits 64 bits."""
    return whole("seed", seed, 0, 2**64 - 1, "must be 0 to 2^64 - 1")


def uniforms(seed: int, stream: int, shape: tuple[int, ...]) -> RealArray:
    """Independent uniform numbers in [0, 1); different streams of a seed are independent.

    The first axis fills last, so that a longer array starts with the values of a shorter one.
    """
    return np.random.default_rng([seed, stream]).random(shape)


def complex_normals(seed: int, stream: int, shape: tuple[int, ...]) -> ComplexArray:
    """Circular complex normal numbers of unit mean power (Box-Muller transform); always finite."""
    first, second = np.moveaxis(uniforms(seed, stream, (*shape, 2)), -1, 0)
    normals: ComplexArray = np.sqrt(-np.log1p(-first)) * np.exp(2j * np.pi * second)
    return normals
