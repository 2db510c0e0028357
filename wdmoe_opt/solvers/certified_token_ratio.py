"""Certified, for the ratio per token: tokens are independent but for the mean floor (wlr-token).

A token's ratio is the mean over its experts of weight over time, and does not depend on other tokens' choices
where bandwidth is fixed. So every block has one unknown, the price of retention, at which the floor is just
met; the few tokens that are indifferent there are all that is not exact. Without a floor the price is 0
and the point optimal. Where bandwidth is free, a bound follows if every device is given all of it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from wdmoe_opt.certificates.certificate import Certificate
from wdmoe_opt.certificates.check import recompute
from wdmoe_opt.floors import fixed_link_times, usable
from wdmoe_opt.kernels.link import link_times
from wdmoe_opt.metrics import price
from wdmoe_opt.problem import Problem
from wdmoe_opt.registry import Control, Point, Termination
from wdmoe_opt.search import start_selection
from wdmoe_opt.solvers.alternating import alternating
from wdmoe_opt.solvers.deadline import Deadline
from wdmoe_opt.validation import RealArray

#: Candidates up to which a token's options are all listed, as the check does.
LISTED = 8
#: Halvings of the range of the price of retention.
HALVINGS = 60
#: Floors are met up to this part, well within the feasibility tolerance.
SLACK = 1e-12


def certified_token_ratio(problem: Problem, control: Control) -> Point:
    """Find a point of large mean ratio per token, and prove how far from the best it can be.

    Parameters
    ----------
    problem : Problem
        Objective "wlr-token".
    control : Control

    Returns
    -------
    Point
        With a certificate.
    """
    plain, conflict = start_selection(problem)
    if plain is None:
        return Point.nothing("infeasible", detail=conflict)
    deadline = Deadline.of(control)
    fixed = problem.allocation == "fixed"
    blocks = [TokenOptions(problem, i) for i in range(problem.instance.blocks)]
    listed = problem.candidate_columns <= LISTED
    prices = [block.settle() if listed else 0.0 for block in blocks]
    certificate = Certificate(form="token-ratio", retention=np.array(prices))
    best = None
    if fixed and listed:
        keep = np.stack([block.select(mu) for block, mu in zip(blocks, prices, strict=True)])
        best = (keep, problem.fixed_bandwidth)
    if best is None:
        start = alternating(problem, control)
        assert start.keep is not None
        best = (start.keep, start.bandwidth)
    return ratio_point(problem, control, deadline, best, price(problem, *best).objective, certificate)


def ratio_point(
    problem: Problem,
    control: Control,
    deadline: Deadline,
    best: tuple[NDArray[np.bool_], RealArray | None],
    value: float,
    certificate: Certificate | None,
    trace: tuple[dict[str, Any], ...] = (),
) -> Point:
    """A selection and its bandwidth as a point, with what its certificate proves."""
    late = "time" if deadline.left == 0.0 else ""
    if certificate is None:
        end = Termination("feasible-at-limit", late or "relaxation", "no latency could be ruled out")
        return Point(*best, end, trace=trace)
    bound = recompute(problem, certificate)
    gap = (bound - value) / value if value > 0 else np.inf
    if gap <= control.rel_gap:
        end = Termination("optimal", detail=f"certified within {gap:.2e}")
    else:
        words = "the time limit passed" if late else f"the relaxation leaves a gap of {gap:.2e}"
        end = Termination("feasible-at-limit", late or "relaxation", words)
    return Point(
        *best, end, lower_bound=bound, bound_kind="claimed", trace=trace, certificate=certificate
    )  # fmt: skip


class TokenOptions:
    """Every option of every token of a block: its mean ratio and its retention, (options, tokens).

    Options that are not allowed or miss the token's floor have a ratio of -inf.
    """

    def __init__(self, problem: Problem, i: int) -> None:
        t = problem.tables
        width = min(problem.candidate_columns, LISTED)
        chosen = (np.arange(1, 2**width)[:, None] >> np.arange(width)) & 1 == 1
        self.chosen = chosen[chosen.sum(axis=1) <= problem.expert_cap]
        self.columns = t.ids.shape[2]
        able = usable(problem)[i, :, :width].T
        ids = np.maximum(t.ids[i, :, :width].T, 0)
        seconds = quickest_links(problem)[i, t.expert_device[ids]] + t.compute[ids]
        ratio = np.where(able, t.weights[i, :, :width].T / seconds, 0.0)
        part = self.chosen / self.chosen.sum(axis=1, keepdims=True)
        self.share = self.chosen @ np.where(able, problem.shares[i, :, :width].T, 0.0)
        barred = self.chosen @ ~able > 0
        barred |= self.share < float(np.asarray(problem.min_token_retention)[i]) * (1 - SLACK)
        self.ratio = np.where(barred, -np.inf, part @ ratio)
        self.needed = float(np.asarray(problem.min_retention)[i]) * ratio.shape[1] * (1 - SLACK)

    def at(self, mu: float) -> NDArray[np.intp]:
        """Every token's best option where retention is paid for; of equals, one that keeps most."""
        value = self.ratio + mu * self.share
        near = value >= value.max(axis=0) * (1 - 1e-14)
        best: NDArray[np.intp] = np.where(near, self.share, -1.0).argmax(axis=0)
        return best

    def kept(self, option: NDArray[np.intp]) -> RealArray:
        """Retention of every token, (tokens,)."""
        kept: RealArray = self.share[option, np.arange(option.size)]
        return kept

    def settle(self) -> float:
        """Least price of retention at which the floor is met, from above."""
        if self.kept(self.at(0.0)).sum() >= self.needed:
            return 0.0
        low, high = 0.0, float(self.ratio.max())
        while self.kept(self.at(high)).sum() < self.needed and high < 1e12 * self.ratio.max():
            low, high = high, 4.0 * high
        for _ in range(HALVINGS):
            middle = 0.5 * (low + high)
            enough = self.kept(self.at(middle)).sum() >= self.needed
            low, high = (low, middle) if enough else (middle, high)
        return high

    def select(self, mu: float) -> NDArray[np.bool_]:
        """Best selection at a price that meets the floor, what it keeps too much given back, (tokens, m)."""
        option = self.at(mu)
        tokens = np.arange(option.size)
        spare = float(self.kept(option).sum()) - self.needed
        gain = self.ratio - self.ratio[option, tokens]
        loss = self.kept(option) - self.share
        with np.errstate(divide="ignore", invalid="ignore"):
            worth = np.where((gain > 0) & (loss <= spare), gain / np.maximum(loss, 1e-300), -np.inf)
        for flat in np.argsort(-worth, axis=None)[: int(np.isfinite(worth).sum())]:
            o, j = divmod(int(flat), option.size)
            lost = float(self.share[option[j], j] - self.share[o, j])
            if lost <= spare and self.ratio[o, j] > self.ratio[option[j], j]:
                spare -= lost
                option[j] = o
        keep = np.zeros((option.size, self.columns), dtype=np.bool_)
        keep[:, : self.chosen.shape[1]] = self.chosen[option]
        return keep


def quickest_links(problem: Problem) -> RealArray:
    """Seconds per transfer at the fixed bandwidth, or with all that a device can have, (blocks, devices)."""
    t = problem.tables
    if problem.allocation == "fixed":
        return fixed_link_times(problem)
    most = np.minimum(t.high, t.total)[None, :]
    times: RealArray = link_times(most, t.bits_down, t.c_down, t.bits_up, t.c_up)
    return times
