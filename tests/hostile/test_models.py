"""Files around a model: prompts, parts of a stopped capture, checkpoints and weights of the tiny MoE."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import wdmoe_opt as wo
from wdmoe_opt.instances.capture.parts import PartStore
from wdmoe_opt.instances.capture.prompts import read_prompts
from wdmoe_opt.instances.tiny_moe import checkpoint, weights
from wdmoe_opt.instances.tiny_moe.model import Shape

# ---------------------------------------------------------------------- prompts


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"[" * 100_000, "must be JSON"),
        (b'{"text": ' + b"9" * 5000 + b"}", "must be JSON"),
        (b'{"text": "a", "weight": NaN}', "must be JSON (NaN is not a JSON value)"),
        (b'{"text": "a", "text": "b"}', "must be JSON (key 'text' stands twice)"),
        (b'{"text": "a", "prompt": "b"}', 'must be an object with a "prompt" or a "text" field'),
        (b'{"text": "\\ud800"}', "must be Unicode (surrogates not allowed)"),
        (b'{"text": "a"\x00}', "must be JSON"),
        (b'{"text": null}', "must be a text that is not empty"),
        (b'"text"', 'must be an object with a "prompt" or a "text" field'),
    ],
)
def test_lines_of_prompts(tmp_path: Path, line: bytes, words: str) -> None:
    (tmp_path / "p.jsonl").write_bytes(b'{"text": "fine"}\n' + line)
    with pytest.raises(wo.InputError) as caught:
        read_prompts(tmp_path / "p.jsonl")
    assert "\n" not in str(caught.value)
    assert f"p.jsonl line 2: {words}" in str(caught.value)
    assert len(str(caught.value)) < 300


def test_prompts_come_from_regular_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, words in {
        "": "not a regular file",
        "pipe": "not a regular file",
        "none": "No such file",
    }.items():
        with pytest.raises(wo.InputError, match=words):
            read_prompts(tmp_path / name)


# ---------------------------------------------------------------------- parts of a stopped capture

SETTINGS = {"model": "m", "gate": "full"}


def store(folder: Path) -> PartStore:
    return PartStore(folder, 1, 2, np.dtype("<u1"), np.array([0, 3, 5]))


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000, b"[]", b"3", b'{"a": NaN}'])
def test_settings_of_a_stopped_capture(tmp_path: Path, content: bytes) -> None:
    parts = store(tmp_path / "x.parts")
    parts.open(SETTINGS)
    parts.open(SETTINGS)
    (parts.folder / "settings.json").write_bytes(content)
    with pytest.raises(wo.InstanceFileError, match=r"settings\.json: (not valid JSON|not UTF-8|must hold)"):
        parts.open(SETTINGS)


def damaged(path: Path) -> dict[str, bytes]:
    whole = path.read_bytes()
    return {
        "cut": whole[:-1], "nothing": b"", "text": b"part", "a pickle": pickle.dumps(damaged),
        "another length": whole.replace(b"(1, 3)", b"(1, 9)"), "objects": whole.replace(b"|u1", b"|O0"),
    }  # fmt: skip


def test_damaged_parts_are_captured_again(tmp_path: Path) -> None:
    """Only whole parts count, and nothing is unpickled."""
    parts = store(tmp_path / "x.parts")
    parts.open(SETTINGS)
    for start, stop in ((0, 1), (1, 2)):
        tokens = int(parts.offsets[stop] - parts.offsets[start])
        ids, given = np.zeros((1, tokens, 2), np.uint8), np.zeros((1, tokens, 2), np.float32)
        parts.write(start, [ids], [given], stop)
    assert sorted(file.suffix for file in parts.folder.iterdir()) == [".json", ".npy", ".npy"]
    assert parts.complete() == [(0, 1), (1, 2)]
    first = parts.folder / "part-00000000-00000001.npy"
    for name, content in damaged(first).items():
        first.write_bytes(content)
        assert parts.complete() == [], name


# ---------------------------------------------------------------------- checkpoints and weights

SHAPE = Shape(width=32, expert_width=24, blocks=2, heads=4, context=32)


@pytest.fixture
def torch() -> Any:
    found = pytest.importorskip("torch", reason="needs torch (extra: capture)")
    pytest.importorskip("transformers", reason="needs transformers (extra: capture)")
    return found


@pytest.fixture
def state(torch: Any) -> dict[str, Any]:
    """A checkpoint as `train` writes it, without an optimizer's numbers."""
    from wdmoe_opt.instances.tiny_moe.model import new_model

    plan = {"shape": SHAPE.as_dict()}
    model = new_model(SHAPE, seed=0).state_dict()
    return {"plan": plan, "step": 3, "seconds": 1.0, "model": model, "optimizer": {}}


@pytest.mark.parametrize("size", [0, -1, 65_537, 1.5, True, "32", None])
def test_sizes_of_a_shape(size: Any) -> None:
    with pytest.raises(wo.InputError, match=r"shape.blocks(?s:.*): must be (1 to 65536|a whole number)"):
        Shape.read({**SHAPE.as_dict(), "blocks": size})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"heads": 5}, "shape.heads = 5: must divide 32"),
        ({"key_value_heads": 3}, "shape.key_value_heads = 3: must divide 4"),
        ({"top_k": 9}, "shape.top_k = 9: must be 1 to 8"),
    ],
)
def test_sizes_that_do_not_fit_together(change: dict[str, int], words: str) -> None:
    with pytest.raises(wo.InputError) as caught:
        Shape.read({**SHAPE.as_dict(), **change})
    assert str(caught.value) == words


@pytest.mark.parametrize("found", [None, [], "shape", {}, {"blocks": 2}, {**SHAPE.as_dict(), "more": 1}])
def test_fields_of_a_shape(found: Any) -> None:
    with pytest.raises(wo.InputError, match=r"shape.*: must have the fields blocks, context"):
        Shape.read(found)


CHECKPOINTS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no dict": (lambda s: [s], "must hold a dict of plan, step, seconds, model, optimizer"),
    "no plan": (lambda s: {**s, "plan": 3}, "must hold a dict of plan"),
    "no step": (lambda s: {k: v for k, v in s.items() if k != "step"}, "must hold a dict of plan"),
    "no shape": (lambda s: {**s, "plan": {}}, "shape: must have the fields"),
    "a shape beyond memory": (
        lambda s: {**s, "plan": {"shape": {**SHAPE.as_dict(), "width": 65536, "blocks": 65536}}},
        "parameters = .*: must be .* of the shape",
    ),
    "another shape": (
        lambda s: {**s, "plan": {"shape": {**SHAPE.as_dict(), "heads": 2}}},
        "parameters = .*: must be .* of the shape",
    ),
    "a parameter less": (
        lambda s: {**s, "model": {k: v for k, v in s["model"].items() if "norm" not in k}},
        "parameters = .*: must be .* of the shape",
    ),
    "another name": (
        lambda s: {**s, "model": {k.replace("model.norm", "model.form"): v for k, v in s["model"].items()}},
        r"parameters\['model.form.weight'\] = .*: is no parameter of the model",
    ),
    "turned round": (
        lambda s: {**s, "model": {k: v.T if v.ndim == 2 else v for k, v in s["model"].items()}},
        "must have the shape",
    ),
    "no tensors": (lambda s: {**s, "model": {"model.norm.weight": 3.0}}, "must be .* of the shape"),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoints(name: str, torch: Any, state: dict[str, Any], tmp_path: Path) -> None:
    change, words = CHECKPOINTS[name]
    checkpoint.save(tmp_path, state)
    assert checkpoint.load_model(tmp_path).config.hidden_size == 32
    checkpoint.save(tmp_path, change(state))
    assert [file.name for file in tmp_path.iterdir()] == [checkpoint.NAME]
    with pytest.raises(wo.InputError, match=words):
        checkpoint.load_model(tmp_path)


class Trap:
    """Unpickled by a careless reader, it leaves a file."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("trapped"),)


def test_checkpoints_are_not_executed(
    torch: Any, state: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / checkpoint.NAME
    torch.save({**state, "model": Trap()}, path)
    whole = path.read_bytes()
    for content in (whole, pickle.dumps(Trap()), whole[: len(whole) // 2], b"", b"PK\x05\x06" + bytes(18)):
        path.write_bytes(content)
        with pytest.raises(wo.InputError, match=r"run = .*: checkpoint.pt cannot be read \(\w+\)$"):
            checkpoint.load(tmp_path)
    assert not (tmp_path / "trapped").exists()


PLANS = {
    "steps": ("many", "plan.steps: must be a field of a plan"),
    "colour": (1, "plan.colour: must be a field"),
    "shape": (3, "plan.shape: must be"),
    7: (1, "plan.7: must be a field"),
}


@pytest.mark.parametrize("field", PLANS)
def test_plans_of_a_run(field: str | int, torch: Any, state: dict[str, Any], tmp_path: Path) -> None:
    from dataclasses import asdict

    from wdmoe_opt.instances.tiny_moe.train import Plan, Run

    value, words = PLANS[field]
    plan = asdict(Plan(shape=SHAPE))
    checkpoint.save(tmp_path, {**state, "plan": {**plan, field: value}})
    with pytest.raises(wo.InputError, match=words):
        Run.resume(tmp_path)
    checkpoint.save(tmp_path, {**state, "plan": plan})
    with pytest.raises(wo.InputError, match="its optimizer does not fit"):
        Run.resume(tmp_path)


WEIGHTS: dict[str, tuple[Callable[[dict[str, Any], dict[str, str]], Any], str]] = {
    "no metadata": (lambda packed, meta: (packed, None), "shape: must have the fields"),
    "metadata that is no JSON": (lambda packed, meta: (packed, {"shape": "["}), "Expecting value"),
    "deep metadata": (lambda packed, meta: (packed, {"shape": "[" * 100_000}), "maximum recursion depth"),
    "metadata of another kind": (lambda packed, meta: (packed, {"shape": "[]"}), "must have the fields"),
    "a shape beyond memory": (
        lambda packed, meta: (packed, {"shape": json.dumps({**SHAPE.as_dict(), "blocks": 65536})}),
        "must be .* of the shape",
    ),
    "no embedding": (
        lambda packed, meta: ({k: v for k, v in packed.items() if "embed" not in k}, meta),
        "model.embed_tokens.weight",
    ),
    "scales of another length": (
        lambda packed, meta: (
            {k: v[1:] if k.endswith("norm.weight") else v for k, v in packed.items()},
            meta,
        ),
        "must be .* of the shape",
    ),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights(name: str, torch: Any, state: dict[str, Any], tmp_path: Path) -> None:
    from safetensors.torch import save_file

    change, words = WEIGHTS[name]
    packed, meta = change(weights.pack(state["model"]), {"shape": json.dumps(SHAPE.as_dict())})
    save_file(packed, tmp_path / weights.WEIGHTS, metadata=meta)
    with pytest.raises(wo.InstanceFileError, match=rf"weights.safetensors: is not a weights file .*{words}"):
        weights.load_weights(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\xff" * 100, (1 << 60).to_bytes(8, "little") + b"{}", b"\x02"])
def test_weights_of_another_format(content: bytes, torch: Any, tmp_path: Path) -> None:
    (tmp_path / weights.WEIGHTS).write_bytes(content)
    with pytest.raises(wo.InstanceFileError, match="is not a weights file of the tiny MoE"):
        weights.load_weights(tmp_path)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"sha256": 3}', '{"sha256": "", "held_out": {"gsm8k": {}}}']
)
def test_cards(content: str, tmp_path: Path) -> None:
    (tmp_path / weights.CARD).write_text(content, "utf-8")
    with pytest.raises(wo.InstanceFileError, match=r"card\.json: (not valid JSON|must state sha256)"):
        weights.read_card(tmp_path)
