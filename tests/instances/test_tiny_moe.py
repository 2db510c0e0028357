"""The tiny MoE: texts, tokens, batches, and a training of two blocks for a few steps."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from wdmoe_opt.errors import InputError, InstanceFileError, UnknownNameError
from wdmoe_opt.instances.tiny_moe import HELD_OUT, TRAINING, Shape, documents, text
from wdmoe_opt.instances.tiny_moe.batches import Batches
from wdmoe_opt.instances.tiny_moe.texts import text_hash

if TYPE_CHECKING:
    from pathlib import Path

HASHES = {
    "gsm8k-train": "90576f2b15026c96cb6cde1360b08f6031618ae2c9b27ed7325c2cea76cb4b30",
    "shakespeare-train": "cac74c96e72e4b1d4e0e7b58eafdd9b63f736ad56db90e0462404edfddeedb13",
    "gsm8k": "01306212659ea9cfbbf5dd224a78570bc3cc5db39d137e5dabe4ab4563f68cd5",
    "humaneval": "f3178e5825c8660e5d52430b5cbeed585e8e79406429361ce179d58c69927d79",
    "shakespeare": "7403ca131656045c5983e83bc3effef5a76726d3014b041ab0c9ed5fe42e4464",
}


@pytest.mark.parametrize("name", HASHES)
def test_texts_are_what_they_were(name: str) -> None:
    assert text_hash(name) == f"sha256:{HASHES[name]}"


def test_texts_split_as_documented() -> None:
    assert set(HASHES) == {*TRAINING, *HELD_OUT}
    assert [len(documents(name)) for name in HASHES] == [7473, 1, 1319, 164, 1]
    parts = documents("shakespeare-train") + documents("shakespeare")
    assert sum(map(len, parts)) == 1_115_394
    assert len(parts[0]) / 1_115_394 == pytest.approx(0.9, abs=0.001)
    assert parts[0].endswith("\n\n")
    assert not set(documents("gsm8k")) & set(documents("gsm8k-train"))


@pytest.mark.parametrize("name", HASHES)
def test_a_text_is_its_documents(name: str) -> None:
    found = text(name).tobytes().decode().split("\0")
    assert found.pop() == ""
    assert tuple(found) == documents(name)


def test_an_unknown_text_is_named() -> None:
    with pytest.raises(UnknownNameError, match="gsm8k-train"):
        text("gsm8k-training")


def test_batches_depend_on_the_step_alone_and_cover_a_pass() -> None:
    batches = Batches(np.arange(1000), context=10, size=7, seed=3)
    np.testing.assert_array_equal(batches.at(31), Batches(np.arange(1000), 10, 7, 3).at(31))
    drawn = np.concatenate([batches.at(step) for step in range(14)])
    assert drawn.shape == (98, 11)
    starts = np.sort(drawn[:, 0])
    assert (np.diff(starts) == 10).all()
    np.testing.assert_array_equal(drawn - drawn[:, :1], np.tile(np.arange(11), (98, 1)))
    assert set(np.concatenate([batches.at(14 + step) for step in range(14)])[:, 0]) != set(starts)


class TestModel:
    """What needs torch."""

    SHAPE = Shape(width=32, expert_width=24, blocks=2, heads=4, context=32)

    @pytest.fixture(autouse=True)
    def _torch(self) -> Any:
        torch = pytest.importorskip("torch", reason="needs torch (extra: capture)")
        pytest.importorskip("transformers", reason="needs transformers (extra: capture)")
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.use_deterministic_algorithms(False)
        torch.set_num_threads(threads)

    @pytest.fixture
    def run(self, tmp_path: Path) -> Any:
        """A run of twenty steps, not started."""
        return self.start(tmp_path / "run")

    def start(self, folder: Path, **changes: Any) -> Any:
        from wdmoe_opt.instances.tiny_moe.train import Plan, Run

        values: dict[str, Any] = {"shape": self.SHAPE, "steps": 20, "batch": 4, "warmup": 4, "threads": 1}
        return Run.start(Plan(**values | changes), folder)

    def test_the_shipped_tokenizer_is_learned_from_the_training_texts(self, tmp_path: Path) -> None:
        from wdmoe_opt.instances.tiny_moe.tokens import FILE, learn

        learn().save(str(tmp_path / "tokenizer.json"))
        assert (tmp_path / "tokenizer.json").read_text("utf-8") == FILE.read_text("utf-8")

    @pytest.mark.parametrize("name", HELD_OUT)
    def test_tokens_stand_for_every_byte(self, name: str) -> None:
        from wdmoe_opt.instances.tiny_moe.tokens import START, stream, token_bytes, tokenizer

        ids = stream(name)
        assert token_bytes()[ids[1:]].sum() == text(name).size
        assert tokenizer().decode(ids).split(START)[1:-1] == list(documents(name))

    def test_the_default_shape_is_as_documented(self) -> None:
        from wdmoe_opt.instances.tiny_moe.model import new_model
        from wdmoe_opt.instances.tiny_moe.tokens import tokenizer

        model = new_model(Shape(), seed=0)
        assert sum(value.numel() for value in model.parameters()) == 6_991_296
        assert len(tokenizer()) == Shape().vocabulary

    def test_the_loss_falls(self, run: Any) -> None:
        losses = [run.update()["loss"] for _ in range(20)]
        assert losses[0] == pytest.approx(np.log(1024), abs=0.1)
        assert losses[-1] < losses[0] - 0.2

    def test_a_resumed_run_gives_the_same_bits(self, run: Any, tmp_path: Path) -> None:
        from wdmoe_opt.instances.tiny_moe.train import Run

        straight = [run.update() for _ in range(20)]
        other = self.start(tmp_path / "other")
        begun = [other.update() for _ in range(10)]
        other.save()
        other = Run.resume(tmp_path / "other")
        assert other.plan == run.plan
        assert begun + [other.update() for _ in range(10)] == straight
        for name, value in run.model.state_dict().items():
            assert value.equal(other.model.state_dict()[name]), name

    def test_a_run_logs_saves_and_forgets_what_it_will_repeat(self, tmp_path: Path) -> None:
        from wdmoe_opt.instances.tiny_moe.train import Run

        run = self.start(tmp_path / "run")
        run.train(until=10)
        log = tmp_path / "run" / "log.jsonl"
        kept = log.read_text("utf-8")
        lines = [json.loads(line) for line in kept.splitlines()]
        assert [line["step"] for line in lines] == [10, 10]
        assert "loss" in lines[0]
        assert "bits_per_byte_gsm8k" in lines[1]
        with log.open("a", encoding="utf-8") as stream:
            stream.write('{"step": 20}\n{"step": 2')
        again = Run.resume(tmp_path / "run")
        assert (again.step, again.seconds) == (10, run.seconds)
        assert log.read_text("utf-8") == kept

    def test_a_folder_holds_one_run(self, run: Any, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="--resume"):
            self.start(tmp_path / "run")

    def test_the_rate_rises_and_falls_to_a_tenth(self, run: Any) -> None:
        rates = [run.plan.rate(step) for step in range(21)]
        assert rates[:4] == pytest.approx([5e-4, 1e-3, 1.5e-3, 2e-3])
        assert max(rates) == rates[4] == 2e-3
        assert rates[20] == pytest.approx(2e-4)

    def test_scores_add_up(self, run: Any) -> None:
        from wdmoe_opt.instances.tiny_moe.evaluate import held_out_batches, score
        from wdmoe_opt.instances.tiny_moe.tokens import token_bytes

        found = score(run.model, "shakespeare", limit=3)
        tokens = sum(batch[:, 1:].size for batch in held_out_batches("shakespeare", 32))
        everything = score(run.model, "shakespeare")
        assert everything.tokens == tokens
        assert found.batches == 3
        assert found == score(run.model, "shakespeare", limit=3)
        # A fresh model holds every token about as likely as any other.
        bits = 10 * everything.tokens / everything.bytes
        assert everything.bits_per_byte == pytest.approx(bits, rel=0.05)
        low, high = everything.bits_per_byte_interval
        assert low < everything.bits_per_byte < high
        assert token_bytes().min() == 1

    def test_weights_come_back(self, run: Any, tmp_path: Path) -> None:
        from wdmoe_opt.instances.tiny_moe.weights import load_weights, save_weights

        for _ in range(5):
            run.update()
        path = save_weights(run.model, tmp_path, self.SHAPE)
        again = load_weights(tmp_path)
        for name, value in run.model.state_dict().items():
            found = again.state_dict()[name]
            room = value.abs().amax(dim=-1, keepdim=True) / 127 * 0.501
            assert ((found - value).abs() <= room).all(), name
        gate = "model.layers.1.mlp.gate.weight"
        assert again.state_dict()[gate].equal(run.model.state_dict()[gate])
        assert path.stat().st_size < 1.5 * sum(value.numel() for value in run.model.parameters())
        content = path.read_bytes()
        save_weights(again, tmp_path, self.SHAPE)
        assert path.read_bytes() == content

    def test_an_export_is_checked_against_its_card(self, run: Any, tmp_path: Path) -> None:
        from wdmoe_opt.instances.tiny_moe.weights import check, export, read_card

        with pytest.raises(InputError, match="0 of 20 steps"):
            export(tmp_path / "run", tmp_path)
        card = export(tmp_path / "run", tmp_path, unfinished=True, limit=2)
        assert read_card(tmp_path) == card
        assert all(abs(row["difference"]) < 1e-4 for row in check(tmp_path).values())
        card["held_out"]["gsm8k"]["bits_per_byte"] += 0.01
        (tmp_path / "card.json").write_text(json.dumps(card), "utf-8")
        with pytest.raises(InstanceFileError, match="gsm8k"):
            check(tmp_path)

    def test_foreign_weights_are_refused(self, run: Any, tmp_path: Path) -> None:
        from wdmoe_opt.instances.tiny_moe.weights import load_weights, save_weights

        with pytest.raises(InstanceFileError, match="No such file"):
            load_weights(tmp_path)
        path = save_weights(run.model, tmp_path, self.SHAPE)
        card = {"sha256": "0", "held_out": {name: {"bits_per_byte": 1.0} for name in HELD_OUT}}
        (tmp_path / "card.json").write_text(json.dumps(card), "utf-8")
        with pytest.raises(InstanceFileError, match="hash"):
            load_weights(tmp_path)
        (tmp_path / "card.json").unlink()
        path.write_bytes(b"nothing of the kind")
        with pytest.raises(InstanceFileError, match="not a weights file"):
            load_weights(tmp_path)

    def test_transformers_loads_what_is_unpacked(self, run: Any, tmp_path: Path) -> None:
        import torch
        import transformers

        from wdmoe_opt.instances.tiny_moe.weights import load_weights, save_pretrained, save_weights

        save_weights(run.model, tmp_path / "weights", self.SHAPE)
        save_pretrained(tmp_path / "unpacked", source=tmp_path / "weights")
        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "unpacked")
        tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "unpacked")
        ids = torch.tensor([tokenizer("def twice(x):\n    return 2 * x\n")["input_ids"]])
        assert ids[0, 0] == 0
        with torch.inference_mode():
            assert model(ids).logits.equal(load_weights(tmp_path / "weights")(ids).logits)

    @pytest.mark.parametrize("name", HELD_OUT)
    def test_full_gates_are_captured(self, run: Any, tmp_path: Path, name: str) -> None:
        import torch

        from wdmoe_opt.instances.routing_file import RoutingFile
        from wdmoe_opt.instances.tiny_moe.routing import capture_gates, prompts
        from wdmoe_opt.instances.tiny_moe.tokens import tokenizer

        model = run.model.eval()
        capture_gates(name, tmp_path / "gates.npz", model=model, revision="test", tokens=200)
        found = RoutingFile.load(tmp_path / "gates.npz")
        assert found.full
        assert 200 - 32 < found.tokens <= 200
        np.testing.assert_allclose(found.gate_weights[:, :, :2].sum(axis=2), 1.0, rtol=1e-5)
        ids = tokenizer()(prompts(name, tokens=200, context=32)[0])["input_ids"][:32]
        with torch.inference_mode():
            logits = model(torch.tensor([ids]), output_router_logits=True).router_logits
        for block, rows in enumerate(logits):
            best = rows.argsort(dim=-1, descending=True)[:, :2].numpy()
            np.testing.assert_array_equal(found.expert_ids[block, : len(ids), :2], best)
