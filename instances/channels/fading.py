"""Small-scale fading: power gains of unit mean over a sequence of channel blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from wdmoe_opt.validation import RealArray, per_device, real_array, real_scalar

from .draws import ComplexArray, complex_normals

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

SPEED_OF_LIGHT = 299_792_458.0


@runtime_checkable
class Fading(Protocol):
    """What a cell asks of a fading model."""

    def power(self, states: int, devices: int, *, block_time: float, seed: int, stream: int) -> RealArray:
        """Power gains (states, devices) of unit mean; a longer sequence starts as a shorter one.

        Parameters
        ----------
        states, devices : int
        block_time : float, s
            Time from one state to the next.
        seed, stream : int
            Streams of one seed are independent (downlink and uplink, for example).
        """

    def describe(self) -> dict[str, Any]:
        """Name and parameters of the model for provenance, JSON values only."""


@dataclass(frozen=True)
class Unfaded:
    """No small-scale fading: every gain is 1."""

    def power(self, states: int, devices: int, *, block_time: float, seed: int, stream: int) -> RealArray:
        """All ones, (states, devices); see `Fading.power`."""
        return np.ones((states, devices))

    def describe(self) -> dict[str, Any]:
        """Name of the model."""
        return {"model": "unfaded"}


@dataclass(frozen=True)
class Rayleigh:
    """Independent Rayleigh block fading: power exponentially distributed with mean 1."""

    def power(self, states: int, devices: int, *, block_time: float, seed: int, stream: int) -> RealArray:
        """Independent draws, (states, devices); see `Fading.power`."""
        return _power(complex_normals(seed, stream, (states, devices)), np.zeros(devices))

    def describe(self) -> dict[str, Any]:
        """Name of the model."""
        return {"model": "rayleigh"}


@dataclass(frozen=True, eq=False)
class Rician:
    """Independent Rician block fading.

    The power has mean 1 and variance (2 K + 1) / (K + 1)^2; K = 0 is Rayleigh.

    Parameters
    ----------
    k_factor : float or float array (devices,), power ratio
        Power of the fixed path over that of the scattered ones.
    """

    k_factor: ArrayLike

    def power(self, states: int, devices: int, *, block_time: float, seed: int, stream: int) -> RealArray:
        """Independent draws, (states, devices); see `Fading.power`."""
        k_factor = per_device("k_factor", self.k_factor, devices, minimum=0)
        return _power(complex_normals(seed, stream, (states, devices)), k_factor)

    def describe(self) -> dict[str, Any]:
        """Name and parameters of the model."""
        return {"model": "rician", "k_factor": np.asarray(self.k_factor).tolist()}


@dataclass(frozen=True, eq=False)
class Autoregressive:
    """First-order autoregressive fading: h(t) = a h(t-1) + sqrt(1 - a^2) w(t), a = J0(2 pi f_D T).

    The lag-one correlation is that of Jakes's model; at lag n it is a^n where Jakes's is
    J0(2 pi f_D n T), which a first-order recursion cannot follow.

    Parameters
    ----------
    doppler_hz : float or float array (devices,), Hz
        Largest Doppler shift f_D; see `doppler_hz`. 0 freezes the channel at its first state.
    k_factor : float or float array (devices,), power ratio, default 0
        Rician K factor; the recursion drives the scattered part only.
    """

    doppler_hz: ArrayLike
    k_factor: ArrayLike = 0.0

    def correlation(self, devices: int, block_time: float) -> RealArray:
        """Coefficient a of every device, (devices,), for blocks of ``block_time`` s."""
        from scipy.special import j0

        doppler = per_device("doppler_hz", self.doppler_hz, devices, minimum=0)
        step = real_scalar("block_time", block_time, minimum=0, above=True)
        coefficient: RealArray = j0(2 * np.pi * doppler * step)
        return coefficient

    def power(self, states: int, devices: int, *, block_time: float, seed: int, stream: int) -> RealArray:
        """Correlated draws, (states, devices), stationary from the first; see `Fading.power`."""
        k_factor = per_device("k_factor", self.k_factor, devices, minimum=0)
        coefficient = self.correlation(devices, block_time)
        scattered = complex_normals(seed, stream, (states, devices))
        innovation = np.sqrt(1 - coefficient**2)
        for state in range(1, states):
            scattered[state] = coefficient * scattered[state - 1] + innovation * scattered[state]
        return _power(scattered, k_factor)

    def describe(self) -> dict[str, Any]:
        """Name and parameters of the model."""
        return {
            "model": "autoregressive",
            "doppler_hz": np.asarray(self.doppler_hz).tolist(),
            "k_factor": np.asarray(self.k_factor).tolist(),
        }


def doppler_hz(speed: ArrayLike, carrier_ghz: float) -> RealArray:
    """Largest Doppler shift in Hz, speed / wavelength, elementwise.

    Parameters
    ----------
    speed : float or float array, m/s
    carrier_ghz : float, GHz
    """
    carrier = real_scalar("carrier_ghz", carrier_ghz, minimum=0, above=True)
    return real_array("speed", speed, minimum=0) * (carrier * 1e9 / SPEED_OF_LIGHT)


def _power(scattered: ComplexArray, k_factor: RealArray) -> RealArray:
    fixed = np.sqrt(k_factor / (k_factor + 1))
    amplitude = fixed + scattered / np.sqrt(k_factor + 1)
    power: RealArray = amplitude.real**2 + amplitude.imag**2
    return power
