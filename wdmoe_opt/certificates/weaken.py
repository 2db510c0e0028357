"""Claim a little less where a claim fails: deadlines earlier, until the check lets them pass.

A solver's own arithmetic may be tighter than the check's, which bounds sets of experts and loads more
simply. Its prices are then still good, only its deadline is not.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from wdmoe_opt.certificates.check import deadline_margins
from wdmoe_opt.certificates.facts import facts_of

if TYPE_CHECKING:
    from wdmoe_opt.certificates.certificate import Certificate
    from wdmoe_opt.certificates.facts import Facts
    from wdmoe_opt.problem import Problem

#: By how much, relatively, a deadline that fails is claimed earlier; then it is not claimed at all.
CUTS = (1e-9, 1e-7, 1e-5, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)


def weakened(problem: Problem, certificate: Certificate) -> Certificate:
    """Return a certificate whose deadlines hold, where they can be made to.

    Parameters
    ----------
    problem : Problem
    certificate : Certificate
        Of form "deadline", or "shared" or "ratio" with a floor; any other comes back as it is.

    Returns
    -------
    Certificate
        Without seal.
    """
    facts = facts_of(problem)
    if certificate.form == "deadline":
        return _earlier(facts, certificate)
    if certificate.form not in ("shared", "ratio") or certificate.floor is None:
        return certificate
    floor = _earlier(facts, certificate.floor)
    assert floor.deadline is not None
    assert certificate.grid is not None
    offset = np.zeros(floor.deadline.shape) if certificate.offset is None else certificate.offset
    if not (floor.deadline > offset).all():
        return certificate
    # The grid must reach as far as the weaker floor leaves possible.
    last = np.maximum(1 / (floor.deadline - offset) * (1 + 1e-9), certificate.grid[:, -1])
    grid = np.hstack([certificate.grid, last[:, None]])
    return replace(certificate, floor=floor, grid=grid)


def _earlier(facts: Facts, certificate: Certificate) -> Certificate:
    deadline = certificate.deadline
    assert deadline is not None
    claimed, now = certificate, deadline
    for cut in CUTS:
        failing = (now > 0) & ~(deadline_margins(facts, claimed) > 0)
        if not failing.any():
            break
        now = np.where(failing, deadline * (1 - cut), now)
        claimed = replace(claimed, deadline=now)
    return claimed
