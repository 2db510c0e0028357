"""Algorithm 2 of the WDMoE journal paper: drop light experts on the device that will finish last.

On the paper's testbed neither channel nor compute is known in advance, and bandwidth cannot be set. A
device's finishing time is predicted as its estimated time per token times the tokens routed to it. On the
device predicted to finish last, tokens lose their lightest expert if it is there and light enough, the
lightest first, until another device finishes last.

The paper was not at hand: the procedure is *remembered* (35 %), that bandwidth is left alone with 60 %.
Options say what is open; estimates learned from observed times: `wdmoe_opt.network.DeviceHistory`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wdmoe_opt.errors import InputError, UnknownNameError
from wdmoe_opt.metrics import price
from wdmoe_opt.problem import Problem
from wdmoe_opt.registry import Control, Point, Termination
from wdmoe_opt.solvers.topk import equal_bandwidth
from wdmoe_opt.solvers.wdmoe import lightest_column
from wdmoe_opt.validation import IntArray, RealArray, float_array, real_scalar, refuse_where


@dataclass(frozen=True)
class Algorithm2:
    """Options of Algorithm 2.

    Parameters
    ----------
    threshold : float
        Share of its token's top-k gate weight below which a lightest expert may be dropped. That there
        is a threshold is remembered (35 %); 0.3 is this package's choice. 0 drops nothing.
    repeat : bool
        Go on with the device that finishes last then, until none has anything left to drop (open; the
        remembered text ends with the first device).
    tie : {"lowest-index", "highest-index"}
        Which of several equally light experts is the lightest (open).
    estimates : float array (devices,) or (blocks, devices), s per token, optional
        Default the true times: link at the given or equal bandwidth plus the mean compute time of the
        device's experts; activation times are left out.
    """

    threshold: float = 0.3
    repeat: bool = False
    tie: Literal["lowest-index", "highest-index"] = "lowest-index"
    estimates: ArrayLike | None = None

    def __post_init__(self) -> None:
        real_scalar("threshold", self.threshold, minimum=0)
        if not isinstance(self.repeat, (bool, np.bool_)):
            raise InputError("repeat", "must be True or False", value=self.repeat)
        if self.tie not in ("lowest-index", "highest-index"):
            raise UnknownNameError("tie", self.tie, ("lowest-index", "highest-index"))


def wdmoe_testbed(problem: Problem, control: Control, algorithm: Algorithm2) -> Point:
    """Algorithm 2 at the given or equal bandwidth, block by block.

    The method does not know floors: its point may violate them, and says so.

    Parameters
    ----------
    problem : Problem
    control : Control
    algorithm : Algorithm2
    """
    bandwidth, t = equal_bandwidth(problem), problem.tables
    keep = problem.top_k_keep.copy()
    if algorithm.estimates is None:
        estimates = price(problem, keep, bandwidth).link_time + mean_compute(
            t.expert_device, t.compute, t.low.size
        )
    else:
        estimates = _checked(algorithm.estimates, (keep.shape[0], t.low.size))
    trace: list[dict[str, Any]] = []
    for i in range(keep.shape[0]):
        steps = relieve(
            keep[i], t.ids[i], problem.shares[i], t.expert_device, estimates[i], algorithm, t.by_device
        )
        trace += [{"block": i, **step} for step in steps]
    dropped = sum(step["dropped"] for step in trace)
    words = f"{dropped} expert{'' if dropped == 1 else 's'} dropped"
    end = Termination("heuristic", detail=f"Algorithm 2: {words}")
    return Point(keep, bandwidth, end, trace=tuple(trace))


def relieve(
    keep: NDArray[np.bool_],
    ids: NDArray[Any],
    shares: RealArray,
    hosts: NDArray[Any],
    estimates: RealArray,
    algorithm: Algorithm2,
    by_device: bool = False,
) -> list[dict[str, Any]]:
    """Drop light experts of one block from the device predicted to finish last.

    Parameters
    ----------
    keep : bool array (tokens, m), changed in place
        The selection to start from, usually plain top-k.
    ids : int array (tokens, m)
    shares : float array (tokens, m)
        Gate weight over the token's top-k gate weight.
    hosts : int array (experts,)
    estimates : float array (devices,), s per token
    algorithm : Algorithm2
    by_device : bool
        Whether a token goes once to a device that hosts several of its experts.

    Returns
    -------
    list of dict
        For each device that was relieved: device, finishing time before and after, s, dropped experts.
    """
    rows = np.arange(keep.shape[0])
    device = np.where(keep, hosts[np.maximum(ids, 0)], -1)
    column = lightest_column(ids, shares, keep, algorithm.tie)
    host, share = device[rows, column], shares[rows, column]
    alone = np.full(keep.shape[0], True)
    if by_device:
        alone = (device == host[:, None]).sum(axis=1) == 1
    open_ = (keep.sum(axis=1) > 1) & (share < algorithm.threshold) & alone
    tokens = _transfers(device, estimates.size, by_device)
    finishing = _finishing(tokens, estimates)
    steps: list[dict[str, Any]] = []
    while True:
        last = int(finishing.argmax())
        others = np.delete(finishing, last).max(initial=0.0)
        waiting = np.flatnonzero(open_ & (host == last))
        if not waiting.size:
            return steps
        waiting = waiting[np.argsort(share[waiting], kind="stable")]
        left = _finishing(tokens[last] - np.arange(waiting.size + 1), estimates[last])
        ahead = np.flatnonzero(left < others)
        drops = int(ahead[0]) if ahead.size else waiting.size
        dropped = waiting[:drops]
        keep[dropped, column[dropped]] = False
        open_[dropped] = False
        steps.append(
            {"device": last, "before": float(left[0]), "after": float(left[drops]), "dropped": drops}
        )
        tokens[last] -= drops
        finishing[last] = left[drops]
        if not algorithm.repeat:
            return steps


def mean_compute(hosts: NDArray[Any], compute: RealArray, devices: int) -> RealArray:
    """Mean compute time of the experts of each device, s per token (devices,); 0 where there are none."""
    hosted = np.bincount(hosts, minlength=devices)
    total = np.bincount(hosts, weights=compute, minlength=devices)
    mean: RealArray = total / np.maximum(hosted, 1)
    return mean


def _transfers(device: NDArray[Any], devices: int, by_device: bool) -> IntArray:
    """Tokens sent to each device, int (devices,); ``device`` (tokens, m) is -1 where none."""
    if not by_device:
        return np.bincount(device[device >= 0], minlength=devices).astype(np.int64)
    sent = np.zeros((device.shape[0], devices + 1), dtype=bool)
    np.put_along_axis(sent, device, True, axis=1)  # -1 falls into the extra column
    counts: IntArray = sent[:, :devices].sum(axis=0)
    return counts


def _finishing(tokens: NDArray[Any], estimates: Any) -> RealArray:
    """Predicted finishing times, s; a device without tokens is done, however slow it is."""
    times = np.zeros(tokens.shape)
    np.multiply(tokens, estimates, out=times, where=tokens > 0)
    return times


def _checked(estimates: ArrayLike, shape: tuple[int, int]) -> RealArray:
    """Estimates (blocks, devices) from a user's."""
    times = float_array("estimates", estimates)
    if times.shape not in (shape, shape[1:]):
        raise InputError("estimates", f"must have shape {shape[1:]} or {shape}, got {times.shape}")
    refuse_where("estimates", ~(times >= 0), times, "must be at least 0 (inf: never answers)")
    return np.broadcast_to(times, shape)
