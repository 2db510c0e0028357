"""Control policies: they drop down to a floor without asking for latency; bandwidth is then optimal."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from wdmoe_opt.bandwidth import allocate, demands
from wdmoe_opt.network import BlockCall, Choice
from wdmoe_opt.validation import RealArray

#: Order in which tokens lose an expert: columns of it, (tokens,), and the tokens in turn, (tokens,).
Order = Callable[[RealArray, np.random.Generator], tuple[NDArray[np.intp], NDArray[np.intp]]]


def _lightest(shares: RealArray, rng: np.random.Generator) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    column = shares.argmin(axis=1)
    return column, np.argsort(shares.min(axis=1), kind="stable")


def _second(shares: RealArray, rng: np.random.Generator) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    return shares.argmin(axis=1), rng.permutation(len(shares))


def _random(shares: RealArray, rng: np.random.Generator) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    return rng.integers(0, shares.shape[1], len(shares)), rng.permutation(len(shares))


#: What each token loses, and which token first: the lightest expert anywhere; the lighter expert of random
#: tokens; a random expert of random tokens.
CONTROLS: dict[str, Order] = {"lightest": _lightest, "second": _second, "random": _random}


def drop_in_order(
    shares: RealArray, columns: NDArray[np.intp], tokens: NDArray[np.intp], floor: float
) -> NDArray[np.bool_]:
    """Let tokens lose one expert each, in turn, as long as the mean kept share is at least ``floor``.

    Parameters
    ----------
    shares : float array (tokens, m)
        Of a token's gate weight; m is at least 2.
    columns : int array (tokens,)
        What a token loses.
    tokens : int array (tokens,)
        The order.
    floor : float

    Returns
    -------
    keep : bool array (tokens, m)
    """
    keep = np.ones(shares.shape, dtype=np.bool_)
    lost = np.cumsum(shares[tokens, columns[tokens]])
    dropped = tokens[: np.searchsorted(lost, (1.0 - floor) * len(shares), side="right")]
    keep[dropped, columns[dropped]] = False
    return keep


class Control:
    """One of `CONTROLS` as a policy of a network; every block draws from a seed of its own.

    Parameters
    ----------
    name : str
    seed : int
    """

    def __init__(self, name: str, seed: int = 0) -> None:
        self.order, self.seed = CONTROLS[name], seed

    def __call__(self, call: BlockCall) -> Choice:
        """Drop, then give bandwidth its optimum."""
        rng = np.random.default_rng([self.seed, call.forward_pass, call.block])
        shares = call.problem.shares[0]
        floor = float(np.asarray(call.problem.min_retention)[0])
        keep = drop_in_order(shares, *self.order(shares, rng), floor)
        best = allocate(call.problem, *demands(call.problem, keep[None]))
        assert best.bandwidth is not None
        return Choice(keep, best.bandwidth.reshape(-1))
