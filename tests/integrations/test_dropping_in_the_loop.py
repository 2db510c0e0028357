"""The experiment on what dropping costs, on a small untrained model."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from wdmoe_opt.benchmarks.what_dropping_costs import document, measure
from wdmoe_opt.benchmarks.what_dropping_costs.__main__ import experiment, main
from wdmoe_opt.benchmarks.what_dropping_costs.plan import (
    CURVES,
    LIGHTEST,
    MAIN,
    OPTIMAL,
    RANDOM,
    SECOND,
    UNIFORM,
    Plan,
)
from wdmoe_opt.benchmarks.what_dropping_costs.results import NAME, Results, read
from wdmoe_opt.errors import InputError
from wdmoe_opt.instances.tiny_moe import Shape
from wdmoe_opt.instances.tiny_moe.model import new_model
from wdmoe_opt.instances.tiny_moe.weights import save_weights

if TYPE_CHECKING:
    from pathlib import Path

torch = pytest.importorskip("torch", reason="the experiment runs a model (extra: capture)")
pytest.importorskip("transformers", reason="of transformers (extra: capture)")
torch.set_num_threads(1)

SHAPE = Shape(width=32, expert_width=24, blocks=2, heads=4, context=32)
BY_NAME = {curve.name: curve for curve in CURVES}
ROUTED = replace(BY_NAME["certified-8"], settings=(0.8,))
TOKEN = replace(BY_NAME["certified-token"], settings=(0.55,))
THRESHOLD = replace(BY_NAME["wdmoe"], settings=(1.0,))
MEAN = replace(MAIN, settings=(1.0, 0.8))
CONTROLS = tuple(replace(curve, settings=(0.8,)) for curve in (LIGHTEST, SECOND, RANDOM))
PLAN = Plan((UNIFORM, OPTIMAL, MEAN, ROUTED, TOKEN, THRESHOLD, *CONTROLS), ("gsm8k",), passes=3, windows=2)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = new_model(SHAPE, seed=4)
    for layer in model.model.layers:  # an untrained gate weighs all experts alike
        torch.nn.init.normal_(layer.mlp.gate.weight, std=0.3)
    folder = tmp_path_factory.mktemp("weights")
    save_weights(model, folder, SHAPE)
    return folder


@pytest.fixture(scope="module")
def results(weights: Path) -> Results:
    found = Results(measure.about(PLAN, weights))
    measure.run(found, PLAN, weights, workers=0, save=lambda: None)
    return found


def of(results: Results, curve: Any, setting: float, measure: str) -> Any:
    return results.get("gsm8k", curve, setting, measure)


def test_plain_top_k_and_floor_one_have_the_same_loss_exactly(results: Results) -> None:
    for curve in (OPTIMAL, MEAN):
        assert of(results, curve, 1.0, "nats").tolist() == of(results, UNIFORM, 1.0, "nats").tolist()
        assert of(results, curve, 1.0, "hits").tolist() == of(results, UNIFORM, 1.0, "hits").tolist()
    rows = document.find(results, PLAN).of("gsm8k", MEAN)
    assert (rows[0].loss.value, rows[0].loss.low, rows[0].loss.high) == (0.0, 0.0, 0.0)


def test_loss_is_the_bare_models(results: Results, weights: Path) -> None:
    """The model's own loss on the same windows, without network."""
    bench = measure.Bench(measure.load_weights(weights), PLAN)
    plain = []
    with torch.inference_mode():
        for batch in measure.batches(PLAN, "gsm8k", SHAPE.context):
            tokens = torch.from_numpy(batch)
            loss = bench.model(input_ids=tokens[:, :-1], labels=None).logits.log_softmax(dim=-1)
            plain.append(-float(loss.gather(-1, tokens[:, 1:, None]).double().sum()))
    np.testing.assert_allclose(of(results, UNIFORM, 1.0, "nats"), plain, atol=1e-3)


def test_floors_are_kept_and_dropping_changes_the_loss(results: Results) -> None:
    for curve in (MEAN, ROUTED, *CONTROLS):
        kept = of(results, curve, 0.8, "retention")
        assert (kept >= 0.8 - 1e-6).all(), curve.name
        assert (of(results, curve, 0.8, "nats") != of(results, UNIFORM, 1.0, "nats")).all(), curve.name
        assert results.units["gsm8k"][f"{curve.name} 0.8"]["floors_missed"] == 0
    for curve in CONTROLS:
        assert (of(results, curve, 0.8, "retention") < 0.82).all(), curve.name
    assert (of(results, THRESHOLD, 1.0, "experts") == 1.0).all()


def test_every_policy_meets_the_same_channel_and_saves_what_it_can(results: Results) -> None:
    equal, best = (of(results, curve, 1.0, "latency_ms") for curve in (UNIFORM, OPTIMAL))
    assert (best < equal).all()
    np.testing.assert_allclose(of(results, MEAN, 1.0, "latency_ms"), best, rtol=1e-4)
    assert (of(results, MEAN, 0.8, "latency_ms") < best).all()
    assert len(set(equal.round(2).tolist())) == PLAN.passes, "the channel moves"


def test_a_part_that_is_there_is_not_measured_again(results: Results, weights: Path, tmp_path: Path) -> None:
    path = tmp_path / NAME
    results.save(path)
    found = read(path)
    del found.units["gsm8k"]["random 0.8"]
    measured: list[int] = []
    measure.run(found, PLAN, weights, workers=0, save=lambda: None, advance=lambda: measured.append(1))
    assert len(measured) == 1

    def numbers(unit: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in unit.items() if name != "seconds"}

    again = found.units["gsm8k"]["random 0.8"]
    assert numbers(again) == numbers(results.units["gsm8k"]["random 0.8"]), "and it repeats itself"


def test_too_short_a_text_is_refused(weights: Path) -> None:
    with pytest.raises(InputError, match=r"passes = 10000000.*gsm8k"):
        measure.about(replace(PLAN, passes=10_000_000), weights)


def test_the_whole_command_in_two_processes(weights: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="figures need matplotlib (extra: plot)")
    plan = replace(PLAN, passes=2)
    findings = experiment(plan, weights, tmp_path, workers=2)
    assert next(iter(read(tmp_path / document.NAME / NAME).units["gsm8k"])) == "topk-uniform 1"
    page = (tmp_path / "what-dropping-costs.md").read_text()
    experiment(plan, weights, tmp_path, workers=0)
    assert (tmp_path / "what-dropping-costs.md").read_text() == page
    assert findings.of("gsm8k", MEAN)[0].loss.value == 0.0


def test_missing_weights_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="figures need matplotlib (extra: plot)")
    with pytest.raises(SystemExit) as end:
        main(["--weights", str(tmp_path), "--out", str(tmp_path / "out"), "--quick"])
    assert end.value.code == 2
    assert "weights.safetensors: cannot be read (No such file" in capsys.readouterr().err
