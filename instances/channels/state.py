"""One channel state, and sequences of them over time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, overload

import numpy as np

from wdmoe_opt.errors import InputError, UnknownNameError
from wdmoe_opt.validation import (
    RealArray,
    freeze,
    real_array,
    real_scalar,
    refuse_where,
    require_shape,
    whole,
)

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

_STRICTLY_POSITIVE = ("power_down", "power_up", "noise_density", "total_bandwidth")
_SCALARS = ("noise_density", "total_bandwidth")
_GAINS = ("gain_down", "gain_up")


def _checked(name: str, value: Any) -> Any:
    if name in _SCALARS:
        return real_scalar(name, value, minimum=0, above=True)
    if name != "token_time_link":
        return real_array(name, value, minimum=0, above=name in _STRICTLY_POSITIVE)
    try:
        times = np.array(value, dtype=np.float64, order="C")
    except (TypeError, ValueError):
        raise InputError(name, "must be an array of numbers") from None
    refuse_where(name, ~(times >= 0), times, "must be at least 0 (inf: unreachable)")
    return times


@dataclass(frozen=True, eq=False, kw_only=True)
class ChannelState:
    """The link fields of an `Instance` at one moment; fields the source does not know are None.

    A state holds the six radio fields, or ``token_time_link``, or ``link_delay`` alone, which then
    stands beside the fields of another state (see `combine`).

    Parameters
    ----------
    time : float, s
        Moment of the state, from the start of its sequence.
    gain_down, gain_up : float array (devices,) or (blocks, devices), power ratio
    power_down, power_up : float or float array (devices,), W
    noise_density : float, W/Hz
    total_bandwidth : float, Hz
    link_delay : float array (devices,), s
        Round trip, once per loaded device and block.
    token_time_link : float array (devices,), s per token
        Measured link without a bandwidth knob; ``inf`` means unreachable.

    Raises
    ------
    InputError
        Naming field, first bad index, value and rule.
    """

    time: float = 0.0
    gain_down: RealArray | None = None
    gain_up: RealArray | None = None
    power_down: RealArray | None = None
    power_up: RealArray | None = None
    noise_density: float | None = None
    total_bandwidth: float | None = None
    link_delay: RealArray | None = None
    token_time_link: RealArray | None = None

    #: The keys of `Instance` a state can provide.
    FIELDS: ClassVar[tuple[str, ...]] = (
        "gain_down", "gain_up", "power_down", "power_up", "noise_density", "total_bandwidth",
        "link_delay", "token_time_link",
    )  # fmt: skip
    RADIO_FIELDS: ClassVar[tuple[str, ...]] = FIELDS[:6]

    def __post_init__(self) -> None:
        object.__setattr__(self, "time", real_scalar("time", self.time))
        for name in self.FIELDS:
            value = getattr(self, name)
            if value is not None:
                checked = _checked(name, value)
                object.__setattr__(self, name, checked if name in _SCALARS else freeze(checked))
        self._check_fields()
        self._check_shapes()

    def _check_fields(self) -> None:
        given = [name for name in self.RADIO_FIELDS if getattr(self, name) is not None]
        if self.token_time_link is not None and given:
            raise InputError(given[0], "cannot stand beside token_time_link, which has no bandwidth knob")
        if given and len(given) < len(self.RADIO_FIELDS):
            missing = next(name for name in self.RADIO_FIELDS if name not in given)
            raise InputError(missing, "is missing (give all radio fields, or none)")
        if not given and self.token_time_link is None and self.link_delay is None:
            raise InputError("ChannelState", "must hold at least one link field")

    def _check_shapes(self) -> None:
        for name in (*_GAINS, "token_time_link", "link_delay"):
            array = getattr(self, name)
            if array is None:
                continue
            if array.ndim not in ((1, 2) if name in _GAINS else (1,)) or array.size == 0:
                raise InputError(name, f"must have shape (devices,), got {array.shape}")
            if array.shape[-1] != self.devices:
                raise InputError(name, f"must have {self.devices} devices, got shape {array.shape}")
        for name in ("power_down", "power_up"):
            power = getattr(self, name)
            if power is not None and power.ndim:
                require_shape(name, power, (self.devices,), "(devices,) or a scalar")

    @property
    def devices(self) -> int:
        """Number of devices."""
        for array in (self.gain_down, self.token_time_link, self.link_delay):
            if array is not None:
                return int(array.shape[-1])
        raise AssertionError("a state holds at least one of these fields")

    def arrays(self) -> dict[str, Any]:
        """Return the known fields by `Instance` key: ``Instance.from_arrays(**state.arrays(), ...)``."""
        found = {name: getattr(self, name) for name in self.FIELDS}
        return {name: value for name, value in found.items() if value is not None}

    def replace(self, **changes: Any) -> ChannelState:
        """Return a variant with some fields changed; ``None`` removes a field."""
        return ChannelState(**{"time": self.time, **self.arrays(), **changes})


class ChannelSequence(Sequence[ChannelState]):
    """States of one channel over time; each is built when it is asked for.

    Parameters
    ----------
    times : float array (states,), s
        Moment of every state, rising.
    varying : mapping of field to float array (states, devices)
        Fields of `ChannelState` that change from state to state.
    fixed : mapping, optional
        Fields of `ChannelState` that do not.
    provenance : mapping, optional
        Source, licence and parameters (JSON values only).

    Raises
    ------
    InputError
        Naming field, first bad index, value and rule.
    UnknownNameError
        If a key is not a field of a state.
    """

    def __init__(
        self,
        times: ArrayLike,
        varying: Mapping[str, ArrayLike],
        fixed: Mapping[str, Any] | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        self.times: RealArray = freeze(real_array("times", times))
        if self.times.ndim != 1 or self.times.size == 0:
            raise InputError("times", f"must have shape (states,), got {self.times.shape}")
        late = np.append(False, self.times[1:] <= self.times[:-1])
        refuse_where("times", late, self.times, "must rise from state to state")
        self._fixed = dict(fixed or {})
        for name in (*varying, *self._fixed):
            if name not in ChannelState.FIELDS:
                raise UnknownNameError("ChannelSequence", name, ChannelState.FIELDS)
        self._varying = {name: self._stack(name, value) for name, value in varying.items()}
        self.provenance: Mapping[str, Any] = MappingProxyType(dict(provenance or {}))
        self.devices: int = self[0].devices

    def _stack(self, name: str, value: ArrayLike) -> RealArray:
        array: RealArray = freeze(_checked(name, value))
        if array.ndim != 2 or array.shape[0] != self.times.size:
            rule = f"must have shape ({self.times.size} states, devices), got {array.shape}"
            raise InputError(name, rule)
        return array

    def __len__(self) -> int:
        return self.times.size

    @overload
    def __getitem__(self, index: int) -> ChannelState: ...
    @overload
    def __getitem__(self, index: slice) -> ChannelSequence: ...
    def __getitem__(self, index: int | slice) -> ChannelState | ChannelSequence:
        varying: dict[str, Any] = {name: array[index] for name, array in self._varying.items()}
        if isinstance(index, slice):
            return ChannelSequence(self.times[index], varying, self._fixed, self.provenance)
        return ChannelState(time=float(self.times[index]), **self._fixed, **varying)

    def __iter__(self) -> Iterator[ChannelState]:
        return (self[index] for index in range(len(self)))

    def stacked(self, field: str) -> RealArray:
        """Values of one varying field over all states, (states, devices), read-only.

        Raises
        ------
        UnknownNameError
            If the field does not vary in this sequence.
        """
        if field not in self._varying:
            raise UnknownNameError("field", field, self._varying)
        return self._varying[field]

    def per_block(self, blocks: int, start: int = 0) -> ChannelState:
        """One state whose gains change from block to block: block i sees state ``start + i``.

        Parameters
        ----------
        blocks : int
            Mixture-of-experts blocks of the model.
        start : int, default 0
            State that the first block sees.

        Raises
        ------
        InputError
            If the sequence is too short, or something other than the gains varies.
        """
        start = whole("start", start, 0, len(self) - 1, f"must be a state, 0 to {len(self) - 1}")
        left = len(self) - start
        blocks = whole("blocks", blocks, 1, left, f"must be 1 to the {left} states from start on")
        if not set(self._varying) <= set(_GAINS):
            raise InputError("per_block", "only gains may change from block to block")
        gains = {name: array[start : start + blocks] for name, array in self._varying.items()}
        return self[start].replace(**gains)

    def __repr__(self) -> str:
        fields = ", ".join(self._varying)
        return f"<ChannelSequence: {len(self)} states, {self.devices} devices, varying {fields}>"


def combine(link: ChannelSequence, delay: ChannelSequence) -> ChannelSequence:
    """Put the delays of one sequence on the links of another, state by state.

    Parameters
    ----------
    link : ChannelSequence
        With radio fields or token times; its times are kept, delays of its own are replaced.
    delay : ChannelSequence
        With ``link_delay`` for the same number of devices. The i-th delay joins the i-th link state
        whatever their times are; the shorter sequence ends the result.
    """
    if delay.devices != link.devices:
        raise InputError("delay", f"must have {link.devices} devices as link has", value=delay.devices)
    states = min(len(link), len(delay))
    varying = {name: array[:states] for name, array in link._varying.items()}
    varying["link_delay"] = delay.stacked("link_delay")[:states]
    provenance = {"link": dict(link.provenance), "delay": dict(delay.provenance)}
    return ChannelSequence(link.times[:states], varying, link._fixed, provenance)
