"""Blocks sent through a simulated network: the policy decides, the metric prices, the channel moves on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wdmoe_opt.errors import InputError, UnknownNameError, UnsupportedError
from wdmoe_opt.instance import Instance
from wdmoe_opt.instances.channels import ChannelSequence, ChannelState
from wdmoe_opt.kernels.link import link_times
from wdmoe_opt.metrics import Evaluation, price
from wdmoe_opt.network.channel_playback import Advance, ChannelPlayback
from wdmoe_opt.network.policies import BlockCall, Choice, Policy, SessionPolicy, policy_of
from wdmoe_opt.network.report import BlockRecord, LoopReport
from wdmoe_opt.problem import Problem
from wdmoe_opt.session import Session
from wdmoe_opt.solvers.topk import equal_bandwidth
from wdmoe_opt.validation import IntArray, RealArray, freeze, int_array, real_array

Outage = Literal["drop", "wait"]
_LINKS = ("gain_down", "token_time_link")


@dataclass(frozen=True, eq=False)
class Delivery:
    """What became of one block.

    Attributes
    ----------
    keep : bool array (tokens, m)
        The experts used, aligned with the ids sent.
    device_time : float array (devices,), s
        Until each device had answered, from the decision on.
    evaluation : Evaluation
        Price of the selection in the channel it was chosen in.
    record : BlockRecord
        As it stands in the report.
    """

    keep: NDArray[np.bool_]
    device_time: RealArray
    evaluation: Evaluation
    record: BlockRecord


class WirelessNetwork:
    """Devices behind a channel that changes while a model's blocks are sent to them.

    Parameters
    ----------
    problem : Problem, Instance or Session
        Fleet, payload and request. Its blocks, experts and top-k are the model's; its routing only says
        how many columns are sent (``candidates``) and is replaced block by block. An instance takes the
        request's fields as keywords, with allocation "per-block", or "fixed" on a measured link. A
        session is used as it is.
    policy : "session", str or callable
        What decides: a `Session`, a solver's name, or a callable, see `policies`.
    policy_options : mapping, optional
        Options of the session or the solver.
    channel, advance
        See `ChannelPlayback`; default the instance's link for good.
    outage : {"drop", "wait"}
        Where no selection keeps the floors in the present channel: keep every top-k expert that can be
        reached and count the miss, or wait for the next state. Tokens of which no candidate can be
        reached always wait.
    **request
        Of an instance: fields of `Problem`, such as ``min_retention=0.95``.

    Raises
    ------
    InputError
        If an argument breaks a rule, or they do not fit together.
    UnknownNameError
        If the policy or an option of it does not exist.
    UnsupportedError
        If blocks cannot be sent one by one, or the policy does not take the problem.

    Notes
    -----
    A block's channel holds from its decision on. Where a device is out of reach although tokens went to
    it, its part of the block is served in the first later state in which it can be reached.
    """

    def __init__(
        self,
        problem: Problem | Instance | Session,
        *,
        policy: str | Policy = "session",
        policy_options: Mapping[str, Any] | None = None,
        channel: ChannelState | ChannelSequence | Iterable[ChannelState] | None = None,
        advance: Advance = "time",
        outage: Outage = "drop",
        **request: Any,
    ) -> None:
        if outage not in get_args(Outage):
            raise UnknownNameError("outage", outage, get_args(Outage))
        self.outage = outage
        options = dict(policy_options or {})
        self.channel = ChannelPlayback(channel, advance)
        if isinstance(problem, Session):
            if policy != "session":
                raise InputError("policy", "cannot be given beside a Session, which is one", value=policy)
            _refuse_request(request)
            self.template = problem.template
            _check_channel(self.template.instance, self.channel.state)
            self.policy: Policy = SessionPolicy(problem, **options)
        else:
            self.template = _template(_as_problem(problem, request), self.channel.state)
            self.policy = policy_of(policy, self.template, options)
        if isinstance(self.policy, SessionPolicy) and isinstance(channel, ChannelSequence):
            _check_session_channel(channel)
        self.report = LoopReport()
        self._pass = -1

    @property
    def columns(self) -> int:
        """Candidates per token that are sent, m."""
        return self.template.instance.columns

    def begin_pass(self, tokens: int) -> None:
        """Announce a forward pass.

        Parameters
        ----------
        tokens : int
            In each of its blocks.

        Raises
        ------
        InputError
            If the policy has no room for so many.
        """
        if isinstance(self.policy, SessionPolicy):
            self.policy.begin(tokens)
        self._pass += 1
        self.channel.begin_pass()

    def send(self, block: int, expert_ids: ArrayLike, gate_weights: ArrayLike) -> Delivery:
        """Send one block: decide, price, and move the clock on.

        Parameters
        ----------
        block : int
        expert_ids : int array (tokens, m)
            By falling gate weight.
        gate_weights : float array (tokens, m)

        Raises
        ------
        InputError
            If the routing breaks a rule of `Instance`, or the policy's selection one of `Problem`.
        WdmoeError
            If a device is needed that will never be reached.
        """
        began = perf_counter()
        if self._pass < 0:
            raise InputError("block", "begin_pass() must come first", value=block)
        ids, weights = int_array("expert_ids", expert_ids), real_array("gate_weights", gate_weights)
        self.channel.begin_block()
        started, waits, deciding = self.channel.now, 0, 0.0
        while True:
            problem = self._problem(block, ids, weights)
            if problem is not None:
                call = BlockCall(block, self._pass, ids, weights, problem, self._link, self.channel.now)
                clock = perf_counter()
                answer = self.policy(call)
                deciding += perf_counter() - clock
                if answer is not None or self.outage == "drop":
                    break
            waits = self._wait(waits)
        keep, bandwidth, gap = _checked(answer, problem)
        priced = price(problem, keep, bandwidth)
        _refuse_broken_selection(priced)
        decided = self.channel.now
        device_time, waits = self._served(priced, decided, waits)
        self.channel.elapse_to(decided + float(device_time.max()))
        observe = getattr(self.policy, "observe", None)
        if observe is not None:
            observe(call, device_time, priced.transfers[0])
        floors_kept = not any("retention" in v.constraint for v in priced.violations)
        record = BlockRecord(
            self._pass, block, ids.shape[0], started, self.channel.now - started, priced.retention,
            float(keep.sum() / ids.shape[0]), floors_kept, gap, waits, deciding,
        )  # fmt: skip
        self.report.records.append(record)
        record.other_seconds = perf_counter() - began - deciding
        return Delivery(keep[0], device_time, priced, record)

    @property
    def _link(self) -> dict[str, Any]:
        """Fields of `Instance` that the channel sets now."""
        return {} if self.channel.state is None else self.channel.state.arrays()

    def _problem(self, block: int, ids: IntArray, weights: RealArray) -> Problem | None:
        """The block's problem in the present channel; None while a token has no expert in reach."""
        try:
            return self.template.for_block(
                block, expert_ids=ids[None], gate_weights=weights[None], **self._link
            )
        except InputError:
            if self.channel.still or self._all_in_reach(ids):
                raise
            return None

    def _all_in_reach(self, ids: IntArray) -> bool:
        """Whether every token has a candidate in reach."""
        instance = self.template.instance.replace(**self._link)
        assert instance.expert_device is not None
        m = self.template.candidate_columns
        near = instance.reachable[0][instance.expert_device[np.maximum(ids[:, :m], 0)]]
        return bool((near & (ids[:, :m] >= 0)).any(axis=1).all())

    def _wait(self, waits: int) -> int:
        """Wait for the next state; returns how many were waited for."""
        if waits >= self.channel.longest_wait:
            raise UnsupportedError(
                f"a device that is needed stays out of reach for {waits} channel states; the block cannot end"
            )
        self.channel.wait()
        return waits + 1

    def _served(self, priced: Evaluation, decided: float, waits: int) -> tuple[RealArray, int]:
        """Time of each device from the decision on, s (devices,); outages are waited out."""
        device_time = priced.device_time[0].copy()
        pending = ~np.isfinite(device_time)
        while pending.any():
            waits = self._wait(waits)
            instance = self.template.instance.replace(**self._link)
            per_transfer = _seconds_per_transfer(instance, priced.bandwidth)
            back = pending & np.isfinite(per_transfer)
            served = priced.busy_time[0, back] + priced.transfers[0, back] * per_transfer[back]
            device_time[back] = self.channel.now - decided + served
            pending &= ~back
        return freeze(device_time), waits


def _as_problem(problem: Any, request: dict[str, Any]) -> Problem:
    """The request on one's own terms: a problem as it is, an instance with the keywords."""
    if isinstance(problem, Problem):
        _refuse_request(request)
        return problem
    if not isinstance(problem, Instance):
        rule = f"must be a Problem, an Instance or a Session, got {type(problem).__name__}"
        raise InputError("problem", rule)
    measured = problem.token_time_link is not None
    return Problem(problem, **({"allocation": "fixed" if measured else "per-block"} | request))


def _refuse_request(request: dict[str, Any]) -> None:
    if request:
        raise InputError(min(request), "can only be given with an Instance; use problem.replace()")


def _template(problem: Problem, state: ChannelState | None) -> Problem:
    """The problem with as many columns as are sent, and with what the channel sets beside the gains."""
    if not problem.selectable:
        raise UnsupportedError("the instance has loads only: there are no experts to choose from")
    if problem.max_latency is not None:
        raise UnsupportedError("blocks are sent one by one, so max_latency of them all cannot be kept")
    inst = problem.instance
    if inst.blocks > 1 and problem.allocation == "shared":
        rule = "must be 'per-block' or 'fixed': the blocks are decided one at a time"
        raise InputError("allocation", rule, value=problem.allocation)
    _check_channel(inst, state)
    changes = {} if state is None else state.arrays()
    radio = {name: value for name, value in changes.items() if name not in ("gain_up", *_LINKS)}
    m = problem.candidate_columns
    assert inst.expert_ids is not None
    assert inst.gate_weights is not None
    return problem.replace(
        instance=inst.replace(
            expert_ids=inst.expert_ids[:, :1, :m], gate_weights=inst.gate_weights[:, :1, :m], **radio
        ),
        min_retention=problem.min_retention,
        min_token_retention=problem.min_token_retention,
    )


def _check_channel(inst: Instance, state: ChannelState | None) -> None:
    """Refuse a channel of another fleet, or of another kind than the instance's link."""
    if state is None:
        return
    if state.devices != inst.devices:
        rule = f"must have the {inst.devices} devices of the instance"
        raise InputError("channel", rule, value=state.devices)
    own, other = _LINKS if inst.token_time_link is None else _LINKS[::-1]
    if getattr(state, other) is not None:
        rule = f"sets {other}, but the instance's link has {own}"
        raise InputError("channel", rule)


def _check_session_channel(channel: ChannelSequence) -> None:
    for name in set(ChannelState.FIELDS) - {"gain_down", "gain_up", "token_time_link"}:
        try:
            channel.stacked(name)
        except UnknownNameError:
            continue
        raise UnsupportedError(
            f"the channel changes {name}, which a Session cannot follow; use policy 'certified'"
        )


def _checked(
    answer: Choice | ArrayLike | None, problem: Problem
) -> tuple[NDArray[np.bool_], RealArray | None, float]:
    """Selection (1, tokens, m), bandwidth and gap of a policy's answer; plain top-k for none."""
    if answer is None:
        answer = Choice(problem.top_k_keep[0])
    elif not isinstance(answer, Choice):
        answer = Choice(answer)
    keep = problem.checked_keep(np.asarray(answer.keep)[None]).copy()
    if answer.bandwidth is None or problem.allocation == "fixed":
        return keep, equal_bandwidth(problem), answer.gap
    return keep, problem.checked_bandwidth(answer.bandwidth), answer.gap


def _refuse_broken_selection(priced: Evaluation) -> None:
    """Raise if a policy left a token without expert or went beyond what it may use."""
    for violation in priced.violations:
        if "retention" not in violation.constraint and violation.constraint != "device_time":
            raise InputError("policy", f"its choice breaks a rule: {violation}")


def _seconds_per_transfer(instance: Instance, bandwidth: RealArray | None) -> RealArray:
    """Seconds on air per transfer, (devices,); inf where a device cannot be reached."""
    if instance.token_time_link is not None:
        return instance.token_time_link
    assert bandwidth is not None
    known = instance.arrays(copy=False)
    c_down, c_up = (
        np.atleast_2d(known[f"power_{way}"] * known[f"gain_{way}"] / known["noise_density"])
        for way in ("down", "up")
    )
    times: RealArray = link_times(
        np.atleast_2d(bandwidth), known["bits_down"], c_down, known["bits_up"], c_up
    )[0]
    return times
