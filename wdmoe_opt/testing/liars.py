"""Solvers that lie, one lie each: what a suite, `solve` or `certify` must catch.

Every liar starts from an honest answer, so that its lie is the only thing wrong. They are not registered;
`LIARS` lists them by name, ready for `add_solver`.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from wdmoe_opt.certificates.certificate import Certificate
from wdmoe_opt.metrics import evaluate
from wdmoe_opt.problem import Problem
from wdmoe_opt.registry import Control, Point, SolverInfo, Termination, find_solver

LIARS: dict[str, SolverInfo] = {}
#: How long the liar that ignores its time limit takes, s.
DAWDLE = 0.6


def liar(**abilities: Any) -> Callable[[Callable[..., Point]], Callable[..., Point]]:
    """Put a function under its name into `LIARS`, with what it falsely declares."""

    def enter(function: Callable[..., Point]) -> Callable[..., Point]:
        name = function.__name__.strip("_").replace("_", "-")
        summary = (function.__doc__ or "").strip().rstrip(".").lower()
        LIARS[name] = SolverInfo(name, summary, function, **{"objectives": ("latency",), **abilities})
        return function

    return enter


def honest(problem: Problem, control: Control, method: str = "topk") -> Point:
    """The point of a method that can be relied on; plain top-k keeps every floor, and is not optimal."""
    return find_solver(method).run(problem, control, {})


def value_of(problem: Problem, point: Point) -> float:
    """What a point costs, s."""
    return evaluate(problem, point.keep, point.bandwidth).latency


# ---------------------------------------------------------------------- the objective


@liar(bound="claimed")
def bound_above_value(problem: Problem, control: Control) -> Point:
    """Claims a bound above the value of its own point."""
    point = honest(problem, control)
    return replace(point, lower_bound=1.1 * value_of(problem, point), bound_kind="claimed")


@liar(bound="claimed")
def bound_above_optimum(problem: Problem, control: Control) -> Point:
    """Claims a bound between the optimum and the value of its own, worse, point."""
    point = honest(problem, control)
    return replace(point, lower_bound=0.9999 * value_of(problem, point), bound_kind="claimed")


@liar(bound="claimed")
def nan_bound(problem: Problem, control: Control) -> Point:
    """Claims a bound that is not a number."""
    return replace(honest(problem, control), lower_bound=np.nan, bound_kind="claimed")


@liar()
def wrong_trace(problem: Problem, control: Control) -> Point:
    """Traces values that no point has."""
    point = honest(problem, control)
    return replace(point, trace=({"block": 0, "objective": 0.1 * value_of(problem, point)},))


@liar()
def wrong_trace_bound(problem: Problem, control: Control) -> Point:
    """Traces bounds above the value of its point."""
    point = honest(problem, control)
    return replace(point, trace=({"block": 0, "bound": 1.5 * value_of(problem, point)},))


@liar()
def false_optimum(problem: Problem, control: Control) -> Point:
    """Says that plain top-k is optimal."""
    return replace(honest(problem, control), termination=Termination("optimal"))


@liar(bound="claimed")
def false_optimum_with_bound(problem: Problem, control: Control) -> Point:
    """Says that plain top-k is optimal, its value the bound."""
    point = honest(problem, control)
    return replace(
        point,
        termination=Termination("optimal"),
        lower_bound=value_of(problem, point),
        bound_kind="claimed",
    )


@liar(bound="certified", honours_floors=True)
def optimum_with_a_gap(problem: Problem, control: Control) -> Point:
    """Says that it is done, and proves a quarter of it."""
    point = honest(problem, control, "certified")
    assert point.certificate is not None
    if point.certificate.deadline is None:
        return replace(point, termination=Termination("optimal"))
    less = replace(point.certificate, deadline=0.25 * point.certificate.deadline)
    return replace(
        point, certificate=less, lower_bound=0.25 * point.lower_bound, termination=Termination("optimal")
    )


@liar(honours_floors=True)
def false_infeasible(problem: Problem, control: Control) -> Point:
    """Says that nothing can be done."""
    return Point.nothing("infeasible", detail="no selection meets the floors")


@liar()
def point_without_solution(problem: Problem, control: Control) -> Point:
    """Says that it found nothing, and hands it out."""
    return replace(honest(problem, control), termination=Termination("no-solution"))


# ---------------------------------------------------------------------- the point


@liar(honours_floors=True)
def broken_floor(problem: Problem, control: Control) -> Point:
    """Keeps the lightest expert of every token and calls the floors kept."""
    point = honest(problem, control)
    if point.keep is None:
        return point
    lightest = point.keep.shape[2] - 1 - point.keep[:, :, ::-1].argmax(axis=2)
    keep = np.zeros_like(point.keep)
    np.put_along_axis(keep, lightest[:, :, None], True, axis=2)
    return replace(point, keep=keep)


@liar()
def too_much_bandwidth(problem: Problem, control: Control) -> Point:
    """Hands out twice the bandwidth that there is."""
    point = honest(problem, control)
    return replace(point, bandwidth=None if point.bandwidth is None else 2 * point.bandwidth)


@liar()
def negative_bandwidth(problem: Problem, control: Control) -> Point:
    """Takes from one device more than it has."""
    point = honest(problem, control)
    if point.bandwidth is None:
        return point
    bandwidth = np.array(point.bandwidth)
    bandwidth[..., 0] *= -1
    return replace(point, bandwidth=bandwidth)


@liar()
def nan_bandwidth(problem: Problem, control: Control) -> Point:
    """Returns what a failed division left behind."""
    point = honest(problem, control)
    return replace(point, bandwidth=None if point.bandwidth is None else np.nan * point.bandwidth)


@liar()
def outside_candidates(problem: Problem, control: Control) -> Point:
    """Adds a column that is not among the candidates."""
    point = honest(problem, control)
    if point.keep is None or problem.candidate_columns == point.keep.shape[2]:
        return point
    keep = point.keep.copy()
    keep[:, :, -1] = True
    return replace(point, keep=keep)


@liar()
def no_expert(problem: Problem, control: Control) -> Point:
    """Keeps nothing: the fastest selection of all."""
    point = honest(problem, control)
    return replace(point, keep=None if point.keep is None else np.zeros_like(point.keep))


# ---------------------------------------------------------------------- certificates


@liar(bound="certified")
def zero_certificate(problem: Problem, control: Control) -> Point:
    """Proves its value by prices of zero, with which 0 = 0."""
    point = honest(problem, control)
    return replace(
        point,
        certificate=zero_prices(problem, value_of(problem, point)),
        lower_bound=value_of(problem, point),
        bound_kind="certified",
        termination=Termination("optimal"),
    )


def zero_prices(problem: Problem, latency: float) -> Certificate:
    """A certificate whose prices are all zero, for a total latency spread over the blocks."""
    inst = problem.instance
    nothing = np.zeros((inst.blocks, inst.devices))
    return Certificate(
        form="deadline",
        send=nothing,
        work=nothing,
        wake=np.zeros((inst.blocks, inst.experts)),
        retention=np.zeros(inst.blocks),
        bandwidth=nothing,
        points=nothing + max(problem.tables.total, 1.0) / inst.devices,
        deadline=np.full(inst.blocks, latency / inst.blocks),
    )


@liar(bound="certified")
def stale_certificate(problem: Problem, control: Control) -> Point:
    """Hands out the certificate of the same problem at a hundredth of the bandwidth."""
    point = honest(problem, control)
    slow = honest(slowed(problem), control, "certified")
    return replace(point, certificate=slow.certificate, lower_bound=slow.lower_bound, bound_kind="certified")


def slowed(problem: Problem) -> Problem:
    """The problem with everything a hundred times slower."""
    inst = problem.instance
    if inst.token_time_link is not None:
        return problem.replace(instance=inst.replace(token_time_link=100 * inst.token_time_link))
    assert inst.bits_down is not None
    assert inst.bits_up is not None
    return problem.replace(instance=inst.replace(bits_down=100 * inst.bits_down, bits_up=100 * inst.bits_up))


@liar(bound="certified")
def no_certificate(problem: Problem, control: Control) -> Point:
    """Declares certified bounds and claims one without a proof."""
    point = honest(problem, control)
    return replace(point, lower_bound=1e-9 * value_of(problem, point), bound_kind="certified")


# ---------------------------------------------------------------------- how it behaves


@liar()
def time_limit_ignored(problem: Problem, control: Control) -> Point:
    """Takes the time it takes."""
    time.sleep(DAWDLE)
    return honest(problem, control)


_calls = itertools.count()


@liar()
def restless(problem: Problem, control: Control) -> Point:
    """Answers differently every time."""
    point = honest(problem, control)
    share = 1 - 1e-6 * next(_calls)
    return replace(point, bandwidth=None if point.bandwidth is None else share * point.bandwidth)


_shared: list[Problem] = []


@liar()
def one_thread_only(problem: Problem, control: Control) -> Point:
    """Keeps its work in one place: another thread's call changes it."""
    _shared.append(problem)
    time.sleep(0.02)
    crowd = len(_shared)
    point = honest(problem, control)
    _shared.remove(problem)
    share = 1 - 1e-6 * (crowd - 1)
    return replace(point, bandwidth=None if point.bandwidth is None else share * point.bandwidth)


@liar()
def writes_inputs(problem: Problem, control: Control) -> Point:
    """Sorts the instance's times in place."""
    times = problem.instance.compute_time
    point = honest(problem, control)
    times.flags.writeable = True
    times[:] = times[::-1].copy()
    return point


@liar()
def writes_request(problem: Problem, control: Control) -> Point:
    """Lowers the floor to what it reached."""
    floor = np.asarray(problem.min_retention)
    floor.flags.writeable = True
    floor[:] = 0.125
    floor.flags.writeable = False
    return honest(problem, control)


@liar()
def absolute_tolerance(problem: Problem, control: Control) -> Point:
    """Gives up what it takes for rounding: 0.1 MHz, whatever the bandwidth."""
    point = honest(problem, control)
    if point.bandwidth is None or problem.allocation == "fixed":
        return point
    return replace(point, bandwidth=np.maximum(point.bandwidth - 1e5, 0.5 * point.bandwidth))


@liar()
def swallows_options(problem: Problem, control: Control, **options: Any) -> Point:
    """Takes any option, and uses none."""
    return honest(problem, control)


@liar(dispatches=("expert", "device"))
def overstated_abilities(problem: Problem, control: Control) -> Point:
    """Declares a dispatch rule that it cannot do."""
    if problem.dispatch == "device":
        raise NotImplementedError("dispatch by device")
    return honest(problem, control)
