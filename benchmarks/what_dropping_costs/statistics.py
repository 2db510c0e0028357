"""Paired comparisons with plain top-2 on the same forward passes; forward passes are the sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wdmoe_opt.benchmarks.what_dropping_costs.plan import OPTIMAL, UNIFORM, Curve, key
from wdmoe_opt.benchmarks.what_dropping_costs.results import Results
from wdmoe_opt.instances.tiny_moe.evaluate import ratio
from wdmoe_opt.validation import RealArray

#: Loss increases that a user may allow.
TARGETS = (0.001, 0.005, 0.01, 0.05)
RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """A policy at a setting on a text (or several), beside plain top-2.

    Attributes
    ----------
    text, curve, key : str
    setting, retention, experts : float
        Kept gate weight, and experts per token, mean.
    bits_per_byte, accuracy : float
    loss : Estimate
        Relative increase of the loss.
    accuracy_change : Estimate
        Absolute.
    latency, latency_uniform : Estimate
        Total latency over that of plain top-2 with optimal, with equal bandwidth.
    floors_missed : int
        Blocks.
    """

    text: str
    curve: str
    key: str
    setting: float
    retention: float
    experts: float
    bits_per_byte: float
    accuracy: float
    loss: Estimate
    accuracy_change: Estimate
    latency: Estimate
    latency_uniform: Estimate
    floors_missed: int


@dataclass(frozen=True)
class Crossing:
    """Where a curve reaches a loss increase, between its settings linearly.

    Attributes
    ----------
    text, curve : str
    target : float
        Relative loss increase.
    reached : bool
        Else the curve ends before, and its end is given.
    latency, latency_uniform, retention : Estimate
        There; as in `Row`.
    """

    text: str
    curve: str
    target: float
    reached: bool
    latency: Estimate
    latency_uniform: Estimate
    retention: Estimate


def row(results: Results, label: str, texts: tuple[str, ...], curve: Curve, setting: float) -> Row:
    """Compare a policy with plain top-2 on the same passes.

    Parameters
    ----------
    results : Results
    label : str
        What the texts are called together.
    texts : tuple of str
    curve : Curve
    setting : float
    """

    def of(measure: str, one: Curve = curve, at: float = setting) -> RealArray:
        return results.get(texts, one, at, measure)

    def plain(measure: str, one: Curve = UNIFORM) -> RealArray:
        return of(measure, one, one.settings[0])

    tokens = np.full(of("nats").shape, float(results.about["tokens_per_pass"]))
    size = sum(sum(results.about["bytes"][text]) for text in texts)
    missed = sum(results.units[text][key(curve, setting)]["floors_missed"] for text in texts)
    return Row(
        text=label,
        curve=curve.name,
        key=key(curve, setting),
        setting=setting,
        retention=float(of("retention").mean()),
        experts=float(of("experts").mean()),
        bits_per_byte=float(of("nats").sum() / np.log(2.0) / size),
        accuracy=float(of("hits").sum() / tokens.sum()),
        loss=_paired(of("nats") - plain("nats"), plain("nats")),
        accuracy_change=_paired(of("hits") - plain("hits"), tokens),
        latency=_paired(of("latency_ms"), plain("latency_ms", OPTIMAL)),
        latency_uniform=_paired(of("latency_ms"), plain("latency_ms")),
        floors_missed=missed,
    )


def crossings(
    results: Results, label: str, texts: tuple[str, ...], curve: Curve, targets: Sequence[float] = TARGETS
) -> list[Crossing]:
    """Latency and retention at which a curve reaches loss increases, from plain top-2 with optimal bandwidth.

    Intervals are of a bootstrap over the passes of each text; the same passes for all settings.

    Parameters
    ----------
    results : Results
    label : str
    texts : tuple of str
    curve : Curve
        Its settings from gentle to harsh.
    targets : sequence of float
        Relative loss increases.
    """
    sizes = [len(results.get(text, UNIFORM, UNIFORM.settings[0], "nats")) for text in texts]
    weights = np.vstack([np.ones(sum(sizes)), resamples(sizes, RESAMPLES)])
    points = [(OPTIMAL, OPTIMAL.settings[0]), *((curve, setting) for setting in curve.settings)]

    def sums(measure: str) -> RealArray:
        stacked = np.stack([results.get(texts, *point, measure) for point in points], axis=1)
        total: RealArray = weights @ stacked
        return total

    plain = results.get(texts, UNIFORM, UNIFORM.settings[0], "latency_ms")
    nats, latency = sums("nats"), sums("latency_ms")
    loss = nats / nats[:, :1] - 1.0
    others = (
        latency / latency[:, :1],
        latency / (weights @ plain)[:, None],
        sums("retention") / weights.sum(axis=1)[:, None],
    )
    return [
        Crossing(
            label, curve.name, target, bool((loss[0] > target).any()),
            *(_interval(at_loss(loss, other, target)) for other in others),
        )
        for target in targets
    ]  # fmt: skip


def at_loss(loss: RealArray, other: RealArray, target: float) -> RealArray:
    """What goes with the first crossing of a loss increase, between points linearly.

    Parameters
    ----------
    loss : float array (samples, points)
        From plain top-2, where it is 0, to the harshest setting.
    other : float array (samples, points)
    target : float
        Above 0.

    Returns
    -------
    float array (samples,)
        The last point's where the target is not crossed.
    """
    above = loss > target
    rows = np.arange(len(loss))
    after = np.where(above.any(axis=1), above.argmax(axis=1), loss.shape[1] - 1)
    before = np.maximum(after - 1, 0)
    step = loss[rows, after] - loss[rows, before]
    part = np.divide(target - loss[rows, before], step, out=np.ones(len(loss)), where=above.any(axis=1))
    part[after == before] = 1.0
    found: RealArray = other[rows, before] + part * (other[rows, after] - other[rows, before])
    return found


def resamples(sizes: Sequence[int], count: int, seed: int = 0) -> NDArray[np.float64]:
    """How often each pass is drawn in bootstrap samples, (count, sum of sizes), each text on its own."""
    rng = np.random.default_rng(seed)
    parts = [rng.multinomial(size, np.full(size, 1.0 / size), size=count) for size in sizes]
    return np.concatenate(parts, axis=1).astype(np.float64)


def rank_correlation(rows: Sequence[Row]) -> float:
    """Spearman's between retention lost and loss increase, over policies and settings."""
    from scipy.stats import spearmanr

    lost, loss = [1.0 - one.retention for one in rows], [one.loss.value for one in rows]
    return float(spearmanr(lost, loss).statistic)


def at_retention(rows: Sequence[Row], retention: float) -> float:
    """Loss increase of one curve at a retention, between its settings linearly; NaN outside of them.

    Parameters
    ----------
    rows : sequence of Row
        Of one curve and text.
    retention : float
    """
    kept = np.array([1.0, *(one.retention for one in rows)])
    loss = np.array([0.0, *(one.loss.value for one in rows)])
    order = np.argsort(kept, kind="stable")
    return float(np.interp(retention, kept[order], loss[order], left=np.nan))


def _paired(above: RealArray, below: RealArray) -> Estimate:
    value, (low, high) = ratio(above, below)
    return Estimate(value, low, high)


def _interval(samples: RealArray) -> Estimate:
    """The first sample is the estimate, the others are resampled."""
    low, high = np.quantile(samples[1:], (0.025, 0.975))
    return Estimate(float(samples[0]), float(low), float(high))
