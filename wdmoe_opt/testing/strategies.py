"""Hypothesis strategies for instances and problems, over the seeded generator of `arrays`.

They shrink towards few blocks, tokens and devices with every option off.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from wdmoe_opt.instance import Instance
from wdmoe_opt.problem import Problem
from wdmoe_opt.testing.arrays import Shape, loads_arrays, measured_arrays, random_arrays

try:
    from hypothesis import strategies as st
except ImportError:
    raise ImportError("wdmoe_opt.testing.strategies needs Hypothesis; install wdmoe_opt[test]") from None

#: Seeds of the generator; small ones shrink better.
SEEDS = st.integers(0, 2**20)
#: Kinds of instances; the last two leave less to decide.
KINDS = ("radio", "measured", "loads")
ALLOCATIONS = ("fixed", "per-block", "shared")


@st.composite
def shapes(draw: st.DrawFn, /, **fixed: Any) -> Shape:
    """Shapes of instances.

    Parameters
    ----------
    **fixed
        Fields of `Shape` that are not drawn. ``wide``, gains over 20 decades, is off unless set here.
    """
    drawn: dict[str, Any] = {
        "blocks": draw(st.integers(1, 3)),
        "tokens": draw(st.integers(1, 8)),
        "devices": draw(st.integers(1, 5)),
        "per_device": draw(st.integers(1, 3)),
        "top_k": draw(st.integers(1, 3)),
        "columns": draw(st.integers(1, 4)),
    }
    for name, kind in Shape.__annotations__.items():
        if kind == "bool" and name != "wide":
            drawn[name] = draw(st.booleans())
    return Shape(**{**drawn, **fixed})


@st.composite
def array_sets(draw: st.DrawFn, /, kind: str = "radio", **fixed: Any) -> dict[str, Any]:
    """Arrays for `Instance.from_arrays`.

    Parameters
    ----------
    kind : {"radio", "measured", "loads"}
        Tokens on a radio link, tokens on a measured link, or loads only.
    **fixed
        As in `shapes`.
    """
    make = {"radio": random_arrays, "measured": measured_arrays, "loads": loads_arrays}[kind]
    return make(draw(shapes(**fixed)), draw(SEEDS))


def instances(kind: str = "radio", **fixed: Any) -> st.SearchStrategy[Instance]:
    """Instances of one kind; parameters as in `array_sets`."""
    return array_sets(kind, **fixed).map(lambda arrays: Instance.from_arrays(**arrays))


@st.composite
def problems(
    draw: st.DrawFn,
    /,
    *,
    kinds: tuple[str, ...] = KINDS,
    allocations: tuple[str, ...] = ALLOCATIONS,
    request: dict[str, Any] | None = None,
    **fixed: Any,
) -> Problem:
    """Problems of least latency: every allocation, dispatch rule, floor, cap and kind of candidates.

    Parameters
    ----------
    kinds, allocations : tuple of str
        What is drawn from; a measured link always has allocation "fixed".
    request : dict, optional
        Fields of `Problem` that are not drawn.
    **fixed
        As in `shapes`.
    """
    kind = draw(st.sampled_from(kinds))
    inst = draw(instances(kind, **fixed))
    asked: dict[str, Any] = {
        "allocation": "fixed" if kind == "measured" else draw(st.sampled_from(allocations))
    }
    if asked["allocation"] == "fixed" and kind == "radio" and draw(st.booleans()):
        asked["bandwidth"] = given_bandwidth(inst, draw(SEEDS))
    if kind != "loads":
        asked |= {
            "dispatch": draw(st.sampled_from(("expert", "device"))),
            "min_retention": draw(st.sampled_from((0.0, 0.5, 0.8, 0.95, 1.0))),
            "min_token_retention": draw(st.sampled_from((0.0, 0.0, 0.3, 0.6))),
            "max_experts": draw(st.sampled_from((None, None, 1, 2))),
            "candidates": draw(st.sampled_from(("top-k", inst.columns))),
        }
    return Problem(inst, **{**asked, **(request or {})})


def given_bandwidth(instance: Instance, seed: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """A bandwidth for allocation "fixed": random shares within the limits, Hz (devices,)."""
    rng = np.random.default_rng(seed)
    uniform = np.asarray(Problem(instance, allocation="fixed").fixed_bandwidth)
    share: np.ndarray[Any, np.dtype[np.float64]] = uniform * rng.uniform(0.2, 1.0, uniform.size)
    return share if instance.bandwidth_min is None else np.maximum(share, instance.bandwidth_min)
