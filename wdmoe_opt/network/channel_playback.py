"""Channel states one after another, as simulated time goes on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import inf
from typing import Literal, get_args

import numpy as np

from wdmoe_opt.errors import InputError, UnknownNameError, WdmoeError
from wdmoe_opt.instances.channels import ChannelSequence, ChannelState

Advance = Literal["time", "block", "pass"]

#: States waited out in one outage before it is called endless, where the channel does not say how long it is.
LONGEST_WAIT = 100_000


class ChannelPlayback:
    """Where a channel stands now; a clock that counts simulated seconds moves it.

    Parameters
    ----------
    channel : ChannelState, ChannelSequence, iterable of ChannelState, or None
        One state for good, or states in turn: a sequence starts again at its end (one typical step after
        its last state), any other iterable does not. None leaves the link as the instance has it.
    advance : {"time", "block", "pass"}
        A state lasts until the clock reaches the time of the next; or for one block; or for one forward
        pass. The state at a block's start holds for the whole block.

    Raises
    ------
    InputError
        If a state has gains by block, or there is none.
    UnknownNameError
        If ``advance`` is none of these.
    """

    def __init__(
        self,
        channel: ChannelState | ChannelSequence | Iterable[ChannelState] | None,
        advance: Advance = "time",
    ) -> None:
        if advance not in get_args(Advance):
            raise UnknownNameError("advance", advance, get_args(Advance))
        self.advance = advance
        self.now = 0.0
        self.still = channel is None or isinstance(channel, ChannelState)
        self.longest_wait = len(channel) if isinstance(channel, ChannelSequence) else LONGEST_WAIT
        self._states = _timed(channel)
        self._upcoming: tuple[float, ChannelState] | None = None
        self._fresh = True
        self.state: ChannelState | None = None
        self._start = 0.0
        if channel is not None:
            first = next(self._states, None)
            if first is None:
                raise InputError("channel", "holds no state")
            self._start, self.state = first

    def begin_pass(self) -> None:
        """A forward pass begins."""
        if self.advance == "pass":
            self._turn()

    def begin_block(self) -> None:
        """A block begins."""
        if self.advance == "block":
            self._turn()

    def elapse_to(self, moment: float) -> None:
        """Set the clock, s; it never runs backwards."""
        self.now = max(self.now, moment)
        if self.advance == "time":
            while self._next_start() <= self.now:
                self._move()

    def wait(self) -> None:
        """Wait for the next state; the clock moves by the time between them.

        Raises
        ------
        WdmoeError
            If there is none.
        """
        if self.still or self._next_start() == inf:
            raise WdmoeError(
                "a device that is needed cannot be reached, and the channel holds no other state"
            )
        step = self._next_start() - (self.now if self.advance == "time" else self._start)
        self._move()
        self.now += max(step, 0.0)

    def _turn(self) -> None:
        """Move on, except at the very beginning."""
        if self._fresh or self.still:
            self._fresh = False
            return
        if self._next_start() == inf:
            raise WdmoeError(f"the channel has no state for another {self.advance}; give a longer one")
        self._move()

    def _next_start(self) -> float:
        """When the next state begins, s; inf if there is none."""
        if self.still:
            return inf
        if self._upcoming is None:
            self._upcoming = next(self._states, (inf, ChannelState(link_delay=np.zeros(1))))
            if self.advance == "time" and self._upcoming[0] <= self._start:
                rule = "its states' times must rise; use advance 'block' or 'pass' where they have none"
                raise InputError("channel", rule, value=self._upcoming[1].time)
        return self._upcoming[0]

    def _move(self) -> None:
        assert self._upcoming is not None
        (self._start, self.state), self._upcoming = self._upcoming, None


def _timed(
    channel: ChannelState | ChannelSequence | Iterable[ChannelState] | None,
) -> Iterator[tuple[float, ChannelState]]:
    """States with the seconds from the first one's time to theirs."""
    if channel is None:
        return
    if isinstance(channel, ChannelState):
        yield 0.0, _checked(channel)
        return
    if isinstance(channel, ChannelSequence):
        yield from _endless(channel)
        return
    try:
        states = iter(channel)
    except TypeError:
        rule = f"must be a ChannelState or an iterable of them, got {type(channel).__name__}"
        raise InputError("channel", rule) from None
    first: float | None = None
    for state in states:
        first = _checked(state).time if first is None else first
        yield state.time - first, _checked(state)


def _endless(channel: ChannelSequence) -> Iterator[tuple[float, ChannelState]]:
    """The states of a sequence, again and again."""
    times = channel.times - channel.times[0]
    step = float(np.median(np.diff(times))) if times.size > 1 else inf
    offset = 0.0
    while offset < inf:
        for moment, state in zip(times, channel, strict=True):
            yield offset + float(moment), _checked(state)
        offset += float(times[-1]) + step


def _checked(state: ChannelState) -> ChannelState:
    if not isinstance(state, ChannelState):
        raise InputError("channel", f"must hold ChannelStates, got {type(state).__name__}")
    if any(gain is not None and gain.ndim == 2 for gain in (state.gain_down, state.gain_up)):
        raise InputError("channel", "a state's gains must have shape (devices,): blocks follow in time")
    return state
