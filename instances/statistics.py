"""Statistics of routing: load skew, locality, kept weight, and the weight no one captured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wdmoe_opt.errors import InputError
from wdmoe_opt.instance import Instance
from wdmoe_opt.instances.load_file import LoadFile
from wdmoe_opt.instances.routing_file import RoutingFile, expert_counts
from wdmoe_opt.instances.token_types import TokenTypes
from wdmoe_opt.validation import RealArray, real_array, whole


@dataclass(frozen=True)
class WeightOutside:
    """What is known of the gate weight outside the stored candidates, of a softmax over all experts.

    Attributes
    ----------
    mass : float array (...)
        Weight of all experts that are not stored, together: 1 minus the stored sum, at least 0.
    largest_below : float array (...)
        No expert that is not stored weighs more: the smallest stored weight, or the whole mass if less,
        each with the most that rounding can have taken from it.
    largest_above : float array (...)
        The heaviest expert that is not stored weighs at least their mean, less what rounding can have added.
    consistent : bool array (...)
        Whether the stored weights can be the largest ones of a softmax at all:
        mass <= (experts - m) x smallest stored weight, up to rounding.
    """

    mass: RealArray
    largest_below: RealArray
    largest_above: RealArray
    consistent: NDArray[np.bool_]


def weight_outside(gate_weights: ArrayLike, experts: int, *, rounding: float = 0.0) -> WeightOutside:
    """Bound the weight of the experts that were not stored.

    Parameters
    ----------
    gate_weights : float array (..., m)
        The m largest weights of a softmax over all experts, not renormalised (DeepSeek-V2-Lite).
    experts : int
        Of the softmax, at least m.
    rounding : float
        Half a unit of the last stored decimal (DeepSeek-V2-Lite: 0.5e-4): a stored weight was at most that
        much larger or smaller.

    Raises
    ------
    InputError
        If the weights sum to more than 1, rounding apart: then they are renormalised or no softmax.
    """
    weights = real_array("gate_weights", gate_weights, minimum=0)
    m = weights.shape[-1]
    others = whole("experts", experts, m, 2**31, f"must be at least m = {m}") - m
    total = weights.sum(axis=-1)
    slack = m * rounding + 1e-6
    if total.max(initial=0.0) > 1 + slack:
        rule = "a token's weights must sum to at most 1 (softmax over all experts)"
        raise InputError("gate_weights", rule, value=float(total.max()))
    mass: RealArray = np.maximum(1.0 - total, 0.0) if others else np.zeros_like(total)
    smallest = weights.min(axis=-1)
    error = m * rounding
    most, least = (np.maximum(1.0 - total + sign * error, 0.0) if others else mass for sign in (1, -1))
    return WeightOutside(
        mass=mass,
        largest_below=np.minimum(smallest + rounding, most),
        largest_above=least / max(others, 1),
        consistent=mass <= others * (smallest + rounding) + slack,
    )


def load_skew(loads: NDArray[Any]) -> RealArray:
    """Largest load over mean load of each block, (blocks,), from loads (blocks, experts or devices)."""
    skew: RealArray = loads.max(axis=1) / loads.mean(axis=1)
    return skew


def shared_with_previous(ids: NDArray[Any], sequence: NDArray[Any], top_k: int) -> RealArray:
    """Share of a token's top-k experts that its predecessor used too, mean of each block, (blocks,).

    Parameters
    ----------
    ids : int array (blocks, tokens, m)
    sequence : int array (tokens,)
        Only neighbours of the same sequence are compared.
    top_k : int
    """
    same = np.flatnonzero(sequence[1:] == sequence[:-1]) + 1
    if same.size == 0:
        return np.full(ids.shape[0], np.nan)
    shared = np.empty(ids.shape[0])
    for block, row in enumerate(ids[:, :, :top_k]):
        now, before = row[same], row[same - 1]
        hits = sum((now == before[:, [column]]).sum() for column in range(top_k))
        shared[block] = hits / (same.size * top_k)
    return shared


def retention_curve(weights: NDArray[Any], top_k: int) -> RealArray:
    """Kept gate weight over top-k gate weight when every token keeps its j heaviest experts.

    Parameters
    ----------
    weights : float array (blocks, tokens, m)
        By falling weight.
    top_k : int

    Returns
    -------
    float array (blocks, top_k)
        Mean over tokens, j = 1 to top_k; the last column is 1.
    """
    chosen = weights[:, :, :top_k].astype(np.float64)
    kept: RealArray = (chosen.cumsum(axis=2) / chosen.sum(axis=2, keepdims=True)).mean(axis=1)
    return kept


def routing_statistics(source: RoutingFile | LoadFile | TokenTypes) -> dict[str, Any]:
    """Statistics of a whole family.

    Returns
    -------
    dict
        ``load_skew`` (median and worst over blocks; of a load file over parts and blocks), and where
        gate weights are known ``shared_with_previous``, ``random_share`` (what chance would give),
        ``retention`` (kept weight by number of experts), ``weight_outside`` (mean mass, of a softmax over
        all experts) and ``top_k_mass`` (smallest, mean and largest sum of the stored top-k).
    """
    if isinstance(source, LoadFile):
        sums = source.loads.sum(axis=1, dtype=np.int64)
        return {"load_skew": _spread(load_skew(sums.reshape(-1, source.experts)))}
    if isinstance(source, TokenTypes):
        return {"load_skew": _spread(load_skew(source.counts.sum(axis=1, dtype=np.int64)))}
    top_k, weights = source.top_k, source.gate_weights
    mass = weights[:, :, :top_k].sum(axis=2, dtype=np.float64)
    found = {
        "load_skew": _spread(load_skew(expert_counts(source.expert_ids[:, :, :top_k], source.experts))),
        "shared_with_previous": float(shared_with_previous(source.expert_ids, source.sequence, top_k).mean()),
        "random_share": top_k / source.experts,
        "retention": [float(kept) for kept in retention_curve(weights, top_k).mean(axis=0)],
        "top_k_mass": {"min": float(mass.min()), "mean": float(mass.mean()), "max": float(mass.max())},
    }
    if has_weight_outside(source.manifest):
        found["weight_outside"] = _outside(weights, source.experts)
    return found


def has_weight_outside(manifest: Mapping[str, Any]) -> bool:
    """Whether the manifest says that the gate put weight on experts that were not stored."""
    return manifest.get("weight_outside") not in (None, "0")


def _outside(weights: NDArray[Any], experts: int) -> dict[str, float]:
    # The only such source, DeepSeek-V2-Lite, has four decimals.
    outside = weight_outside(weights, experts, rounding=0.5e-4)
    return {
        "mean": float(outside.mass.mean()),
        "largest_below": float(outside.largest_below.max()),
        "mean_largest_below": float(outside.largest_below.mean()),
        "inconsistent_tokens": int((~outside.consistent).sum()),
    }


def stats(instance: Instance) -> dict[str, Any]:
    """Statistics of one instance.

    Returns
    -------
    dict
        ``name``; ``sizes`` (blocks, tokens, experts, devices, top_k, candidates); ``reachable_devices``
        (smallest and largest number over blocks); ``device_load_skew``, ``expert_load_skew`` (largest over
        mean load under plain top-k: median and worst block); ``unused_experts`` (mean per block);
        ``shared_with_previous`` (share of a token's experts that the token before it in the same sequence
        used; tokens of an instance that says nothing of sequences count as one, tokens of several users or
        token types have no predecessor);
        ``top_k_mass`` (min, mean, max); ``retention`` (kept weight by number of experts kept);
        ``weight_outside`` (mean mass of the experts that were not stored, and bounds on any single one,
        see `weight_outside`). What the instance does not tell is None.
    """
    reach = instance.reachable.sum(axis=1)
    found: dict[str, Any] = {
        "name": instance.name,
        "sizes": {
            "blocks": instance.blocks,
            "tokens": instance.tokens or None,
            "experts": None if instance.loads is not None else instance.experts,
            "devices": instance.devices,
            "top_k": instance.top_k,
            "candidates": instance.columns or None,
        },
        "reachable_devices": {"min": int(reach.min()), "max": int(reach.max())},
    }
    unknown = (
        "expert_load_skew", "unused_experts", "shared_with_previous", "top_k_mass", "retention",
        "weight_outside",
    )  # fmt: skip
    if instance.loads is not None:
        return found | {"device_load_skew": _skew_or_none(instance.loads)} | dict.fromkeys(unknown)
    return found | _token_statistics(instance)


def _token_statistics(instance: Instance) -> dict[str, Any]:
    ids, weights, top_k, hosts = (
        instance.expert_ids, instance.gate_weights, instance.top_k, instance.expert_device
    )  # fmt: skip
    assert ids is not None
    assert weights is not None
    assert top_k is not None
    assert hosts is not None
    loads = expert_counts(ids[:, :, :top_k], instance.experts)
    devices = np.zeros((instance.blocks, instance.devices), dtype=np.int64)
    for expert, host in enumerate(hosts):
        devices[:, host] += loads[:, expert]
    mass = weights[:, :, :top_k].sum(axis=2)
    sequence = _sequences(instance)
    shared = None if sequence is None else float(shared_with_previous(ids, sequence, top_k).mean())
    outside = None
    source = instance.provenance.get("routing")
    if isinstance(source, Mapping) and has_weight_outside(source):
        outside = _outside(weights, instance.experts)
    return {
        "device_load_skew": _skew_or_none(devices),
        "expert_load_skew": _skew_or_none(loads),
        "unused_experts": float((loads == 0).sum(axis=1).mean()),
        "shared_with_previous": None if shared is None or np.isnan(shared) else shared,
        "top_k_mass": {"min": float(mass.min()), "mean": float(mass.mean()), "max": float(mass.max())},
        "retention": [float(kept) for kept in retention_curve(weights, top_k).mean(axis=0)],
        "weight_outside": outside,
    }


def _sequences(instance: Instance) -> NDArray[Any] | None:
    """Number of each token's sequence, (tokens,); None where tokens do not follow one another."""
    batch = instance.provenance.get("batch")
    if not isinstance(batch, Mapping):
        batch = {}
    if batch.get("mode") in ("decode", "types"):
        return None
    starts = batch.get("sequence_starts", [])
    sequence = np.zeros(instance.tokens, dtype=np.int64)
    if not isinstance(starts, (list, tuple)):
        return None
    for start in starts:
        if isinstance(start, bool) or not isinstance(start, int) or not 0 <= start < instance.tokens:
            return None
        sequence[start] = 1
    return sequence.cumsum()


def _skew_or_none(loads: NDArray[Any]) -> dict[str, float] | None:
    busy = loads[loads.sum(axis=1) > 0]
    return _spread(load_skew(busy)) if len(busy) else None


def _spread(values: RealArray) -> dict[str, float]:
    return {"median": float(np.median(values)), "worst": float(values.max())}
