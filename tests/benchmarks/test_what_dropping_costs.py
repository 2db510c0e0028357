"""Statistics, controls, file and page of the experiment on what dropping costs; nothing here needs torch."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from wdmoe_opt.benchmarks.what_dropping_costs import document
from wdmoe_opt.benchmarks.what_dropping_costs.controls import CONTROLS, drop_in_order
from wdmoe_opt.benchmarks.what_dropping_costs.plan import CURVES, MAIN, OPTIMAL, RANDOM, UNIFORM, Curve, Plan
from wdmoe_opt.benchmarks.what_dropping_costs.results import Results, read
from wdmoe_opt.benchmarks.what_dropping_costs.statistics import (
    Estimate,
    at_loss,
    at_retention,
    crossings,
    rank_correlation,
    resamples,
    row,
)
from wdmoe_opt.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

PASSES, TOKENS = 12, 100
PLAN = replace(Plan(), passes=PASSES)


def lost(curve: Curve, setting: float) -> float:
    """Gate weight that the invented policies drop."""
    if not curve.knob:
        return 0.0
    return setting - 0.7 if curve.knob == "threshold" else 1.0 - setting


def loss_of(curve: Curve, setting: float) -> float:
    """Relative loss increase that the invented results have."""
    return 0.5 * lost(curve, setting) ** 2 * (4.0 if curve is RANDOM else 1.0)


def invented(plan: Plan = PLAN) -> Results:
    """Passes of unequal loss and latency; every policy changes all of them by the same factor."""
    about = {
        "weights": "sha256:0123456789abcdef", "plan": plan.as_dict(), "tokens_per_pass": TOKENS,
        "texts": dict.fromkeys(plan.texts, "sha256:0"),
        "bytes": {text: [2 * TOKENS] * plan.passes for text in plan.texts},
    }  # fmt: skip
    results = Results(about)
    rng = np.random.default_rng(5)
    for text in plan.texts:
        nats, slow = rng.uniform(150, 250, plan.passes), rng.uniform(50, 90, plan.passes)
        for curve in plan.curves:
            for setting in curve.settings:
                loss = loss_of(curve, setting)
                results.add(text, curve, setting, {
                    "nats": list(nats * (1.0 + loss)),
                    "hits": [40 - round(100 * loss)] * plan.passes,
                    "latency_ms": list(slow * (1.25 if curve is UNIFORM else 1.0 - 2.0 * loss)),
                    "retention": [1.0 - lost(curve, setting)] * plan.passes,
                    "experts": [2.0 - loss] * plan.passes,
                    "floors_missed": 0,
                    "seconds": 1.5,
                })  # fmt: skip
    return results


RESULTS = invented()


def test_a_row_has_the_ratios_it_was_made_with() -> None:
    found = row(RESULTS, "gsm8k", ("gsm8k",), MAIN, 0.9)
    for estimate, value in ((found.loss, 0.005), (found.latency, 0.99), (found.latency_uniform, 0.99 / 1.25)):
        assert estimate.value == pytest.approx(value)
        assert (estimate.low, estimate.high) == pytest.approx((value, value))
    nats = RESULTS.get("gsm8k", UNIFORM, 1.0, "nats")
    assert found.bits_per_byte == pytest.approx(1.005 * nats.sum() / np.log(2) / (2 * TOKENS * PASSES))


def test_no_difference_is_exactly_none() -> None:
    found = row(RESULTS, "both", ("gsm8k", "shakespeare"), MAIN, 1.0)
    assert found.loss == found.accuracy_change == Estimate(0.0, 0.0, 0.0)


def test_pairing_takes_out_what_passes_have_in_common() -> None:
    """Intervals are those of the differences: far narrower than those of the losses."""
    results = invented()
    rng = np.random.default_rng(1)
    unit = results.units["gsm8k"]["certified 0.9"]
    noise = rng.normal(0.0, 0.2, PASSES)
    unit["nats"] = list(np.asarray(unit["nats"]) + noise)
    found = row(results, "gsm8k", ("gsm8k",), MAIN, 0.9).loss
    plain = results.get("gsm8k", UNIFORM, 1.0, "nats")
    reach = 2.201 * noise.std(ddof=1) * np.sqrt(PASSES) / plain.sum()
    assert (found.high - found.low) / 2 == pytest.approx(reach, rel=0.05)
    assert found.high - found.low < 0.1 * plain.std() / plain.mean()


@pytest.mark.parametrize(("target", "expected"), [(0.5, 0.95), (1.5, 0.85), (2.0, 0.8), (3.0, 0.7)])
def test_crossings_lie_between_settings_linearly(target: float, expected: float) -> None:
    loss = np.array([[0.0, 1.0, 2.0, 2.5]])
    assert at_loss(loss, np.array([[1.0, 0.9, 0.8, 0.7]]), target) == pytest.approx([expected])


def test_the_first_crossing_counts_and_samples_are_apart() -> None:
    loss = np.array([[0.0, 2.0, 0.5, 3.0], [0.0, 0.5, 0.75, 1.25]])
    other = np.array([[1.0, 0.8, 0.6, 0.4], [1.0, 0.8, 0.6, 0.4]])
    np.testing.assert_allclose(at_loss(loss, other, 1.0), [0.9, 0.5])


def test_crossings_of_a_curve() -> None:
    found = crossings(RESULTS, "gsm8k", ("gsm8k",), MAIN, (0.005, 0.04, 0.9))
    assert [one.reached for one in found] == [True, True, False]
    exact, between, end = (one.latency.value for one in found)
    assert exact == pytest.approx(0.99)
    assert between == pytest.approx(0.92)
    assert end == pytest.approx(1.0 - 2.0 * loss_of(MAIN, 0.7))
    for one in found:
        assert one.latency.low <= one.latency.value <= one.latency.high
        assert one.latency_uniform.value == pytest.approx(one.latency.value / 1.25)


def test_intervals_of_crossings_widen_with_noise() -> None:
    results = invented()
    rng = np.random.default_rng(2)
    for name, unit in results.units["gsm8k"].items():
        if name.startswith("certified ") and name != "certified 1":
            unit["nats"] = list(np.asarray(unit["nats"]) + rng.normal(0.0, 2.0, PASSES))
    quiet, noisy = (crossings(r, "gsm8k", ("gsm8k",), MAIN, (0.01,))[0].retention for r in (RESULTS, results))
    assert quiet.high - quiet.low < 1e-9
    assert noisy.high - noisy.low > 1e-3


def test_resamples_keep_texts_apart() -> None:
    drawn = resamples([3, 5], 100)
    assert drawn.shape == (100, 8)
    assert (drawn[:, :3].sum(axis=1) == 3).all()
    assert (drawn[:, 3:].sum(axis=1) == 5).all()
    assert drawn.std(axis=0).min() > 0.5


def test_retention_orders_the_loss_of_one_curve_but_not_of_all() -> None:
    main = [row(RESULTS, "gsm8k", ("gsm8k",), MAIN, setting) for setting in MAIN.settings]
    assert rank_correlation(main) == pytest.approx(1.0)
    shuffled = [replace(one, retention=kept) for one, kept in zip(main, (0.9, 0.7, 0.8) * 4, strict=False)]
    assert rank_correlation(shuffled) < 0.9
    assert at_retention(main, 0.9) == pytest.approx(0.005)
    assert np.isnan(at_retention(main, 0.1))


@pytest.mark.parametrize("name", CONTROLS)
def test_controls_stop_at_the_floor(name: str) -> None:
    rng = np.random.default_rng(0)
    heavy = rng.uniform(0.5, 1.0, 400)
    shares = np.stack([heavy, 1.0 - heavy], axis=1)
    columns, tokens = CONTROLS[name](shares, rng)
    assert sorted(tokens) == list(range(400))
    keep = drop_in_order(shares, columns, tokens, 0.9)
    kept = np.where(keep, shares, 0.0).sum(axis=1).mean()
    assert 0.9 <= kept < 0.9 + 1.0 / 400
    assert keep.any(axis=1).all()
    assert drop_in_order(shares, columns, tokens, 1.0).all()
    if name == "lightest":
        assert shares[~keep].max() <= shares[:, 1][keep[:, 1]].min()
    else:
        assert bool((~keep[:, 0]).any()) is (name == "random")


def test_results_survive_their_file(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    RESULTS.save(path)
    found = read(path)
    assert found.about == RESULTS.about
    assert found.units == RESULTS.units
    assert all(found.holds(*unit) for unit in PLAN.units())
    assert not found.holds("gsm8k", MAIN, 0.123)
    changed = replace(MAIN, renormalise=False)
    assert not found.holds("gsm8k", changed, 0.9)
    path.write_text("[]")
    with pytest.raises(InputError, match=r"results\.json"):
        read(path)


def test_names_of_measurements_are_their_own() -> None:
    units = [(text, f"{curve.name} {setting:g}") for text, curve, setting in Plan().units()]
    assert len(set(units)) == len(units)
    for curve in CURVES:
        if curve.knob.startswith("min_"):
            assert list(curve.settings) == sorted(curve.settings, reverse=True), "from gentle to harsh"


def test_the_page_says_what_the_results_hold() -> None:
    text = document.page(RESULTS, PLAN, document.find(RESULTS, PLAN))
    assert "| 0.9 | 0.900 |" in text
    line = next(line for line in text.splitlines() if line.startswith("| 1.00 % |"))
    assert "**0.9**" in line
    assert "0.50 % [0.50, 0.50]" in line
    reductions = next(
        line for line in text.splitlines() if line.startswith("| certified, drop only | 0.20 %")
    )
    assert "1.00 % [1.00, 1.00] (20.8 %)" in reductions
    assert '"random expert, random tokens" (2.0 %)' in text
    assert "nan" not in text
    assert max(map(len, text.split("## Every point")[0].splitlines())) < 400
    for image in re.findall(r"\]\(images/(.*?)\.png\)", text):
        assert image.startswith(document.NAME)


def test_the_page_changes_with_the_results() -> None:
    results = invented()
    unit = results.units["gsm8k"]["certified 0.9"]
    unit["nats"] = list(1.02 * np.asarray(unit["nats"]))
    before, after = (document.find(r, PLAN) for r in (RESULTS, results))
    safe = [document.safe_floor(one.of("gsm8k", MAIN), 0.006) for one in (before, after)]
    assert [one.setting for one in safe if one] == [0.9, 0.93]
    assert before.of("shakespeare", MAIN) == after.of("shakespeare", MAIN)
    assert document.safe_floor(before.of("gsm8k", MAIN), -0.1) is None


def test_the_quick_page_is_whole_too(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="figures need matplotlib (extra: plot)")
    quick = Plan().quick()
    findings = document.write(invented(quick), quick, tmp_path)
    text = (tmp_path / "what-dropping-costs.md").read_text()
    named = set(re.findall(r"\]\((images/.*?\.png)\)", text))
    assert named == {f"images/{path.name}" for path in (tmp_path / "images").iterdir()}
    assert len(named) == 4
    content: dict[str, Any] = findings.as_dict()
    assert {one["curve"] for one in content["rows"]} == {curve.name for curve in CURVES}
    assert OPTIMAL.name not in {one["curve"] for one in content["crossings"]}
