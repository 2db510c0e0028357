"""P-LAT as it stands in the literature: one mixed-integer nonlinear program for selection and bandwidth.

Sets, selection variables and rules as in `wdmoe_opt.formulations.pyomo_parts`; in addition
Given
    L       payload of a transfer in each direction, bit
    c_ik    SNR bandwidth P g / N0 in each direction, Hz
    B       total bandwidth, Hz; low_k, high_k limits of a share, Hz
Variables
    b_k or b_ik >= 0    bandwidth, Hz, shared by all blocks or one vector per block
    R_ik, a_ik >= 0     rate, bit/s, and air time, s, in each direction
    T_i     latency of block i, s
Model
    minimise    sum_i T_i
    subject to  busy_ik + a_ik^down + a_ik^up <= T_i
                a_ik R_ik >= L sent_ik          (bilinear: load times time per token)
                R_ik <= b_k log2(1 + c_ik / b_k)
                sum_k b_k <= B,  low_k <= b_k <= high_k,  sum_i T_i <= max_latency if given

Source: papers A and B, section III (the joint problem they split in two levels); docs/mathematics.md,
section 2. With allocation "fixed" the bandwidth is a number and the model is P-SEL.
"""

from __future__ import annotations

from wdmoe_opt.formulations.pyomo_parts import TimedModel


class JointModel(TimedModel):
    """The joint problem as a Pyomo model, for any global solver of mixed-integer nonlinear programs.

    Parameters
    ----------
    problem : Problem
        With tokens.

    Attributes
    ----------
    model : pyomo.environ.ConcreteModel
    variables : dict of str to pyomo component
        "select", "active", "loaded", "share" b / B by (row, device), "rate_down", ..., "air_down", ...,
        "latency" T_i over ``data.time_unit``.

    Examples
    --------
    Extend the model: device 4 takes at most two transfers per block.

    >>> import pyomo.environ as pyo, wdmoe_opt as wo
    >>> inst = wo.load_instance("gpt-oss-20b-decode", blocks=1, tokens=3)
    >>> request = wo.Problem(inst, min_retention=0.7)
    >>> joint = request.to_pyomo()
    >>> joint.model.spared = pyo.Constraint(joint.model.blocks, rule=lambda m, i: m.sent[i, 4] <= 2)
    >>> from wdmoe_opt.solvers.minlp import backends
    >>> if backends():                       # any installed global solver
    ...     outcome = backends()[0].solve(joint.model, time_limit=60.0, rel_gap=1e-3, threads=1)
    ...     found = joint.extract()
    ...     print(wo.evaluate(request, found.keep > 0.5, found.bandwidth).transfers[0, 4] <= 2)
    ... else:
    ...     print(True)
    True
    """
