"""Policies: what decides over a block's experts and bandwidth when its gate has spoken.

A policy is any callable that takes a `BlockCall` and returns a `Choice`, a bare selection (tokens, m), or
None where no selection keeps the floors. Where it has a method ``observe(call, device_time, transfers)``,
it is told what the devices took.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from inspect import signature
from math import nan
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wdmoe_opt.errors import InputError, UnknownNameError, UnsupportedError
from wdmoe_opt.network.device_history import DeviceHistory
from wdmoe_opt.problem import Problem
from wdmoe_opt.registry import check_request, find_solver, list_solvers
from wdmoe_opt.session import Session
from wdmoe_opt.solvers.testbed import Algorithm2, relieve
from wdmoe_opt.solving import solve
from wdmoe_opt.validation import IntArray, RealArray


@dataclass(frozen=True, eq=False)
class BlockCall:
    """One block that waits for a decision.

    Attributes
    ----------
    block : int
    forward_pass : int
    expert_ids : int array (tokens, m)
        By falling gate weight.
    gate_weights : float array (tokens, m)
    problem : Problem
        Of this block alone, with the channel as it truly is: a policy that should not know it must not
        look at its link.
    link : mapping
        Fields of `Instance` that the channel's state sets; empty if it sets none.
    time : float, s
        Simulated.
    """

    block: int
    forward_pass: int
    expert_ids: IntArray
    gate_weights: RealArray
    problem: Problem
    link: Mapping[str, Any]
    time: float


@dataclass(frozen=True, eq=False)
class Choice:
    """What a policy decided.

    Attributes
    ----------
    keep : bool array (tokens, m)
        Aligned with the call's ``expert_ids``.
    bandwidth : float array (devices,), Hz, optional
        Default as the problem fixes it, else equal shares.
    gap : float
        To a lower bound, relative; NaN if there is none.
    """

    keep: ArrayLike
    bandwidth: ArrayLike | None = None
    gap: float = nan


Policy = Callable[[BlockCall], Choice | ArrayLike | None]


class SessionPolicy:
    """A `Session`: near-optimal with a bound, block after block from the last prices.

    Parameters
    ----------
    session : Session or Problem
        A problem is given a session of its own, which grows with the number of tokens.
    **options
        Of that session: ``rel_gap``, ``certify``, ``time_limit``, ``max_tokens``. Without a
        ``time_limit`` it is 0: the searches that close the gap of a few tokens' block take longer than
        the block itself.
    """

    def __init__(self, session: Session | Problem, **options: Any) -> None:
        self.own = isinstance(session, Problem)
        for name in options:
            if not self.own:
                raise InputError(name, "cannot be set: the session is made")
            if name not in (known := [*signature(Session).parameters][1:]):
                raise UnknownNameError("option of a Session", name, known)
        self._options = {"time_limit": 0.0} | options
        self.session = Session(session, **self._options) if isinstance(session, Problem) else session

    def begin(self, tokens: int) -> None:
        """Make room for a forward pass of so many tokens.

        Raises
        ------
        InputError
            If the session is a given one and has no such room.
        """
        if tokens <= self.session.max_tokens:
            return
        if not self.own:
            rule = f"is too small for a pass of {tokens} tokens; make the session with a larger one"
            raise InputError("max_tokens", rule, value=self.session.max_tokens)
        room = 1 << (tokens - 1).bit_length()
        self.session = Session(self.session.template, **(self._options | {"max_tokens": room}))

    def __call__(self, call: BlockCall) -> Choice | None:
        """Solve the block in its channel."""
        self._check_link(call)
        link = {name: value for name, value in call.link.items() if name in _SESSION_FIELDS}
        result = self.session.solve(
            block=call.block, expert_ids=call.expert_ids, gate_weights=call.gate_weights, **link
        )
        if not result.feasible:
            return None
        return Choice(result.keep, result.bandwidth, nan if result.bound_kind == "none" else result.gap)

    def _check_link(self, call: BlockCall) -> None:
        """Refuse a state that changes what a session cannot change."""
        known = self.session.template.instance
        for name, value in call.link.items():
            if name not in _SESSION_FIELDS and not np.all(np.asarray(value) == getattr(known, name)):
                raise UnsupportedError(
                    f"the channel changes {name}, which a Session cannot follow; use policy 'certified'"
                )


_SESSION_FIELDS = ("gain_down", "gain_up", "token_time_link")


class SolverPolicy:
    """A registered solver, called anew for every block.

    Parameters
    ----------
    method : str
        See `list_solvers`.
    problem : Problem
        A block's problem, to find out whether the solver takes it.
    **options
        Of `solve` and of the solver.

    Raises
    ------
    UnknownNameError
        If there is no such solver or option.
    UnsupportedError
        If the solver does not take the problem.
    """

    def __init__(self, method: str, problem: Problem, **options: Any) -> None:
        names = [info.name for info in list_solvers()]
        if method not in (*names, "auto"):
            raise UnknownNameError("policy", method, [*names, "auto", "session"])
        own = [name for name in options if name not in _CONTROLS]
        if method != "auto":
            check_request(find_solver(method), problem, own)
        elif own:
            raise InputError(own[0], "cannot be set with method 'auto'; name a method")
        self.method, self.options = method, options

    def __call__(self, call: BlockCall) -> Choice | None:
        """Solve the block in its channel."""
        solution = solve(call.problem, self.method, **self.options)
        if solution.keep is None:
            return None
        width = None if solution.bandwidth is None else solution.bandwidth.reshape(-1)
        return Choice(solution.keep[0], width, nan if solution.bound_kind == "none" else solution.gap)


_CONTROLS = ("time_limit", "rel_gap", "seed", "threads")


@dataclass(eq=False)
class HistoryPolicy:
    """Algorithm 2 with latencies learned on the way, as on paper A's testbed; knows neither link nor floors.

    Parameters
    ----------
    history : DeviceHistory, optional
        Default a smoothed one, made at the first block.
    algorithm : Algorithm2
    """

    history: DeviceHistory | None = None
    algorithm: Algorithm2 = field(default_factory=Algorithm2)

    def __post_init__(self) -> None:
        if self.algorithm.estimates is not None:
            raise InputError("estimates", "cannot be given: they come from the history")

    def __call__(self, call: BlockCall) -> NDArray[np.bool_]:
        """Relieve the device that by experience finishes last."""
        known, t = call.problem.instance, call.problem.tables
        if self.history is None:
            self.history = DeviceHistory(known.devices)
        keep = call.expert_ids >= 0
        keep[:, known.top_k :] = False
        relieve(
            keep, call.expert_ids, call.problem.shares[0], t.expert_device, self.history.estimates,
            self.algorithm, t.by_device,
        )  # fmt: skip
        return keep

    def observe(self, call: BlockCall, device_time: RealArray, transfers: RealArray) -> None:
        """Remember what the devices took."""
        assert self.history is not None
        self.history.observe(device_time, transfers)


def policy_of(policy: str | Policy, problem: Problem, options: Mapping[str, Any]) -> Policy:
    """The policy that a name stands for, or a callable as it is.

    Parameters
    ----------
    policy : "session", str or callable
        A solver's name, or a policy.
    problem : Problem
        Template of all blocks.
    options : mapping
        For the session or the solver.

    Raises
    ------
    UnknownNameError
        If there is no such policy.
    InputError
        If it is neither, or options are given with a callable.
    """
    if policy == "session":
        return SessionPolicy(problem, **options)
    if isinstance(policy, str):
        return SolverPolicy(policy, problem.for_block(0), **options)
    if not callable(policy):
        raise InputError("policy", f"must be a name or a callable, got {type(policy).__name__}")
    if options:
        raise InputError("policy_options", "go with a name, not with a callable", value=dict(options))
    return policy
