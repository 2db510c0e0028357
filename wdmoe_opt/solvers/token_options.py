"""What one token may select, listed: the ground enumeration stands on."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from wdmoe_opt.errors import UnsupportedError
from wdmoe_opt.problem import FEASIBILITY_TOLERANCE, Problem


def token_options(problem: Problem, able: NDArray[np.bool_], i: int, j: int) -> NDArray[np.bool_]:
    """Every selection of one token that keeps its own floor and cap, bool (options, m).

    Parameters
    ----------
    able : bool array (blocks, tokens, m)
        Usable candidates.
    """
    t = problem.tables
    columns = np.flatnonzero(able[i, j])
    sizes = range(1, min(columns.size, problem.expert_cap) + 1)
    subsets = [list(s) for size in sizes for s in combinations(columns, size)]
    options = np.zeros((len(subsets), t.ids.shape[2]), dtype=np.bool_)
    for row, subset in zip(options, subsets, strict=True):
        row[subset] = True
    kept = np.where(options, t.weights[i, j], 0.0).sum(axis=1) / t.mass[i, j]
    floor = float(np.asarray(problem.min_token_retention)[i])
    enough: NDArray[np.bool_] = options[kept >= floor * (1 - FEASIBILITY_TOLERANCE)]
    return enough


def too_many(what: str) -> UnsupportedError:
    """The refusal of an instance that is not tiny."""
    return UnsupportedError(
        f"method 'enumerate' is for tiny instances: {what}; use milp or minlp, or raise max_states"
    )
