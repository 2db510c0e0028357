"""Capture, end to end on small randomly initialised models of every supported architecture."""

from __future__ import annotations

import json
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tiny_models import CASES, COMMON, FULL, PROMPTS, TOKENS, build

from wdmoe_opt.errors import InputError, UnsupportedError
from wdmoe_opt.instances.capture import (
    CaptureError,
    capture,
    capture_command,
    read_prompts,
    supported_models,
)
from wdmoe_opt.instances.capture.routers import GATES
from wdmoe_opt.instances.routing_file import RoutingFile

if TYPE_CHECKING:
    from pathlib import Path

torch = pytest.importorskip("torch", reason="capture needs torch (extra: capture)")
transformers = pytest.importorskip("transformers", reason="capture needs transformers (extra: capture)")
torch.set_num_threads(1)


def run(model: Any, path: Path, prompts: Any = PROMPTS, **options: Any) -> RoutingFile:
    capture(model, prompts, path, progress=False, **options)
    return RoutingFile.load(path)


class Witness:
    """What the routers get and return and what the experts are called with, without padding: one prompt."""

    def __init__(self, model: Any) -> None:
        kind = GATES[model.config.model_type].router
        self.logits: list[np.ndarray] = []
        self.mixing: list[np.ndarray] = []
        self.routers = [module for module in model.modules() if type(module).__name__ == kind]
        handles = [router.register_forward_hook(self.on_router) for router in self.routers]
        for module in model.modules():
            inside = {type(child).__name__ for child in module.children()}
            if kind in inside:
                handles.append(module.experts.register_forward_pre_hook(self.on_experts, with_kwargs=True))
        self.handles = handles

    def on_router(self, router: Any, inputs: Any, output: Any) -> None:
        hidden = inputs[0].reshape(-1, router.weight.shape[1]).float()
        bias = getattr(router, "bias", None)
        logits = torch.nn.functional.linear(hidden, router.weight.float(), bias)
        self.logits.append(logits.double().numpy())

    def on_experts(self, experts: Any, inputs: Any, named: Any) -> None:
        _, ids, weights = inputs
        dense = torch.zeros(ids.shape[0], self.routers[0].num_experts).scatter(1, ids, weights.float())
        self.mixing.append(dense.numpy())

    def __call__(self, model: Any, prompt: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """Logits and mixing weights of one prompt, (blocks, tokens, experts)."""
        self.logits, self.mixing = [], []
        with torch.inference_mode():
            model(torch.tensor([prompt]), use_cache=False)
        return np.stack(self.logits), np.stack(self.mixing)


def witnessed(model: Any) -> tuple[np.ndarray, np.ndarray]:
    witness = Witness(model)
    logits, mixing = zip(*(witness(model, prompt) for prompt in PROMPTS), strict=True)
    for handle in witness.handles:
        handle.remove()
    return np.concatenate(logits, axis=1), np.concatenate(mixing, axis=1)


def dense(routing: RoutingFile, columns: int | None = None) -> np.ndarray:
    gates = np.zeros((routing.blocks, routing.tokens, routing.experts))
    ids = routing.expert_ids[:, :, :columns].astype(int)
    np.put_along_axis(gates, ids, routing.gate_weights[:, :, :columns], axis=2)
    return gates


def softmax(logits: np.ndarray) -> np.ndarray:
    rise = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return rise / rise.sum(axis=-1, keepdims=True)


def recomputed(case: str, logits: np.ndarray, k: int) -> np.ndarray:
    """Full gate in float64 NumPy, written from the papers and not from the code under test."""
    gates = softmax(logits)
    if case == "deepseek_v2-grouped":
        groups = gates.reshape(*gates.shape[:2], 4, 2)
        best = np.argsort(-groups.max(axis=3), axis=2)[:, :, :2]
        allowed = np.zeros(groups.shape[:3], dtype=bool)
        np.put_along_axis(allowed, best, True, axis=2)
        return 16.0 * (groups * allowed[..., None]).reshape(gates.shape)
    if case in ("olmoe", "flex_olmo", "qwen2_moe", "qwen3_next-plain", "jamba", "deepseek_v2"):
        return gates
    return gates / np.sort(gates, axis=2)[:, :, -k:].sum(axis=2, keepdims=True)


def test_every_supported_model_has_a_case() -> None:
    assert {kind for kind, _, _ in CASES.values()} == set(supported_models())


@pytest.mark.parametrize("case", CASES)
def test_top_k_is_what_the_experts_are_mixed_with(case: str, tmp_path: Path) -> None:
    model = build(case)
    _, mixing = witnessed(model)
    routing = run(model, tmp_path / "r.npz", batch_size=2)
    assert routing.blocks == CASES[case][2]
    assert routing.tokens == TOKENS
    assert routing.columns == routing.top_k == model.config.num_experts_per_tok
    np.testing.assert_allclose(dense(routing), mixing, rtol=1e-4, atol=2e-6)
    np.testing.assert_array_equal(dense(routing) > 0, mixing > 0)


@pytest.mark.parametrize("case", FULL)
def test_full_gate_matches_the_logits_and_leads_with_the_mixing_weights(case: str, tmp_path: Path) -> None:
    model = build(case)
    logits, mixing = witnessed(model)
    routing = run(model, tmp_path / "r.npz", gate="full", batch_size=2)
    assert routing.full
    assert routing.top_k == model.config.num_experts_per_tok
    expected = recomputed(case if case != "qwen3_next" else _plain(model), logits, routing.top_k)
    np.testing.assert_allclose(dense(routing), expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(dense(routing, routing.top_k), mixing, rtol=1e-4, atol=1e-6)


def sparse_mixer(logits: np.ndarray, jitter: float) -> np.ndarray:
    """Gate of one token (experts,) by SparseMixer's inference rule, arXiv:2409.12136, section 2."""
    gate, left = np.zeros(logits.size), logits.copy()
    for _ in range(2):
        best = int(left.argmax())
        near = (left[best] - left) / np.maximum(np.abs(logits), left[best]) <= 2 * jitter
        gate[best] = softmax(np.where(near, left, -np.inf))[best]
        left[best] = -np.inf
    return gate


def test_sparse_mixer_weights_follow_from_the_logits(tmp_path: Path) -> None:
    model = build("phimoe", router_jitter_noise=0.2)
    logits, _ = witnessed(model)
    gates = dense(run(model, tmp_path / "r.npz"))
    expected = np.apply_along_axis(sparse_mixer, 2, logits, 0.2)
    np.testing.assert_allclose(gates, expected, rtol=1e-4, atol=1e-6)
    assert not np.allclose(gates.sum(axis=2), 1)


def _plain(model: Any) -> str:
    return "qwen3_next" if model.config.norm_topk_prob else "qwen3_next-plain"


@pytest.mark.parametrize("case", ["mixtral", "olmoe", "qwen2_moe", "phimoe", "granitemoe"])
def test_choice_agrees_with_the_logits_the_model_reports(case: str, tmp_path: Path) -> None:
    model = build(case)
    routing = run(model, tmp_path / "r.npz")
    with torch.inference_mode():
        outputs = [model(torch.tensor([prompt]), output_router_logits=True) for prompt in PROMPTS]
    reported = [output.router_logits for output in outputs]
    for block in range(routing.blocks):
        logits = torch.cat([layers[block].reshape(-1, routing.experts) for layers in reported])
        chosen = np.sort(logits.topk(routing.top_k).indices.numpy(), axis=1)
        np.testing.assert_array_equal(np.sort(routing.expert_ids[block], axis=1), chosen)


@pytest.mark.parametrize("case", ["mixtral", "qwen2_moe", "deepseek_v2-grouped", "gpt_oss", "qwen3_next"])
def test_batching_and_padding_change_nothing(case: str, tmp_path: Path) -> None:
    model = build(case)
    one = run(model, tmp_path / "one.npz", batch_size=1)
    four = run(model, tmp_path / "four.npz", batch_size=4)
    np.testing.assert_array_equal(one.expert_ids, four.expert_ids)
    np.testing.assert_allclose(one.gate_weights, four.gate_weights, rtol=1e-4, atol=1e-6)
    assert one.sequence.tolist() == [row for row, prompt in enumerate(PROMPTS) for _ in prompt]
    assert four.position.tolist() == [place for prompt in PROMPTS for place in range(len(prompt))]


@pytest.mark.parametrize("case", ["mixtral", "gpt_oss", "deepseek_v2-grouped", "granitemoe"])
def test_low_precision_passes_the_check_against_the_model(case: str, tmp_path: Path) -> None:
    model = build(case).to(torch.bfloat16)
    routing = run(model, tmp_path / "r.npz", gate="full")
    assert routing.manifest["capture"]["precision"] == "bfloat16"


def test_manifest_names_the_source(tmp_path: Path) -> None:
    routing = run(
        build("mixtral"), tmp_path / "r.npz", model_name="tiny", revision="main", model_licence="none",
        prompts_name="prompts.txt", max_length=5,
    )  # fmt: skip
    manifest = routing.manifest
    assert (manifest["model"], manifest["revision"], manifest["model_licence"]) == ("tiny", "main", "none")
    assert manifest["prompts"]["count"] == 5
    assert manifest["prompts"]["truncated"] == 2
    assert manifest["prompt_hash"].startswith("sha256:")
    assert "softmax over the logits of the chosen" in manifest["weights_meaning"]
    assert manifest["capture"]["packages"]["torch"] == torch.__version__
    assert manifest["capture"]["routers"][0].endswith("layers.0.mlp.gate")


class StopError(Exception):
    """Stands for a killed process."""


def test_a_stopped_run_continues_and_gives_the_same_file(tmp_path: Path) -> None:
    model = build("olmoe")
    options: dict[str, Any] = {"gate": "full", "batch_size": 1, "part_bytes": 1}
    parts: list[tuple[int, int]] = []

    def stop_after_three(start: int, stop: int) -> None:
        parts.append((start, stop))
        if len(parts) == 3:
            raise StopError

    run(model, tmp_path / "whole.npz", **options)
    with pytest.raises(StopError):
        run(model, tmp_path / "stopped.npz", on_part=stop_after_three, **options)
    assert not (tmp_path / "stopped.npz").exists()
    cut = tmp_path / "stopped.npz.parts" / "part-00000002-00000003.npy"
    cut.write_bytes(cut.read_bytes()[:-8])

    later: list[tuple[int, int]] = []
    run(model, tmp_path / "stopped.npz", on_part=lambda *part: later.append(part), **options)
    assert later == [(2, 3), (3, 4), (4, 5)]
    assert (tmp_path / "stopped.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stopped.npz", "whole.npz"]


def test_hooks_are_removed_and_the_mode_restored(tmp_path: Path) -> None:
    model = build("mixtral").train()
    run(model, tmp_path / "r.npz")
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


def test_other_settings_do_not_continue_a_stopped_run(tmp_path: Path) -> None:
    def stop(start: int, end: int) -> None:
        raise StopError

    with pytest.raises(StopError):
        run(build("mixtral"), tmp_path / "r.npz", on_part=stop)
    with pytest.raises(InputError, match=r"batch_size = 3: .*was begun with 4"):
        run(build("mixtral"), tmp_path / "r.npz", batch_size=3)
    with pytest.raises(InputError, match="router_hash = 'sha256:"):
        run(build("mixtral", seed=1), tmp_path / "r.npz")


def test_models_without_routers_are_named(tmp_path: Path) -> None:
    torch.manual_seed(0)
    llama = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model("llama", **COMMON)
    )
    with pytest.raises(UnsupportedError, match=r"'llama' has no routers known here; supported: .*mixtral"):
        run(llama, tmp_path / "r.npz")
    dense_model = build("qwen2_moe", mlp_only_layers=[0, 1, 2])
    with pytest.raises(CaptureError, match="all its blocks are dense"):
        run(dense_model, tmp_path / "r.npz")
    with pytest.raises(UnsupportedError, match=r"phimoe gives no weight .* full gate: .*olmoe"):
        run(build("phimoe"), tmp_path / "r.npz", gate="full")


def test_routers_that_do_not_do_as_expected_are_found(tmp_path: Path) -> None:
    model = build("mixtral")
    gate = model.model.layers[1].mlp.gate
    ordinary = type(gate).forward

    def bypass(hidden: Any) -> Any:
        return ordinary(gate, hidden)

    model.model.layers[1].mlp.gate.forward = lambda hidden: (*bypass(hidden)[:2], bypass(hidden)[2][:1])
    with pytest.raises(CaptureError, match="does not return"):
        run(model, tmp_path / "r.npz")
    gate.forward = lambda hidden: (bypass(hidden)[0], bypass(hidden)[1] * 2, bypass(hidden)[2])
    with pytest.raises(CaptureError, match="mixes with other weights"):
        run(model, tmp_path / "r.npz")
    model.model.layers[1].mlp.forward = lambda hidden: hidden
    with pytest.raises(CaptureError, match=r"layers\.1\.mlp\.gate was bypassed"):
        run(model, tmp_path / "r.npz")
    broken = build("mixtral")
    broken.model.layers[2].mlp.gate.weight.data[0] = float("nan")
    with pytest.raises(CaptureError, match="not finite"):
        run(broken, tmp_path / "s.npz")


def test_bad_arguments_are_named(tmp_path: Path) -> None:
    model = build("mixtral")
    for prompts, message in (
        ([], "at least one prompt"),
        ([[]], r"prompts\[0\]: must be at least one token"),
        ([[1], [2, 96]], r"prompts\[1\] = 96: token ids must be 0 to 95"),
        (["words"], "needs a tokenizer"),
    ):
        with pytest.raises(InputError, match=message):
            run(model, tmp_path / "r.npz", prompts=prompts)
    with pytest.raises(InputError, match="gate = 'half'"):
        run(model, tmp_path / "r.npz", gate="half")
    with pytest.raises(InputError, match="batch_size = 0"):
        run(model, tmp_path / "r.npz", batch_size=0)
    (tmp_path / "old.npz").touch()
    with pytest.raises(InputError, match="exists already"):
        run(model, tmp_path / "old.npz")
    with pytest.raises(InputError, match="folder does not exist"):
        run(model, tmp_path / "no" / "r.npz")


def test_prompt_files(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_bytes("first\r\n\n  \nzweite Zeile ü\n".encode())
    assert read_prompts(path) == ["first", "zweite Zeile ü"]
    lines = tmp_path / "p.jsonl"
    lines.write_text('{"prompt": "a\\nb"}\n\n{"text": "c", "id": 3}\n', encoding="utf-8")
    assert read_prompts(lines) == ["a\nb", "c"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", b"fine\n\xff\xfe", "p.txt line 2: must be UTF-8"),
        ("p.txt", b"\n \n", "holds no prompt"),
        ("p.jsonl", b'{"text": "a"}\n{"text": ', "p.jsonl line 2: must be JSON"),
        ("p.jsonl", b'{"words": "a"}', 'line 1: must be an object with a "prompt" or a "text" field'),
        ("p.jsonl", b'["a"]', "line 1: must be an object"),
        ("p.jsonl", b'{"text": 5}', "line 1: must be a text"),
    ],
)
def test_bad_prompt_files_name_the_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_prompts(tmp_path / name)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a model folder with a word tokenizer, as `from_pretrained` wants it."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("models") / "tiny-qwen3-moe"
    words = ["[UNK]", "the", "quick", "brown", "fox", "jumps"]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    build("qwen3_moe").save_pretrained(folder)
    transformers.PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]").save_pretrained(folder)
    return folder


def test_command_runs_a_saved_model_on_a_prompts_file(checkpoint: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("the quick brown fox\njumps\n", encoding="utf-8")
    manifest = capture_command(
        str(checkpoint),
        prompts,
        tmp_path / "r.npz",
        gate="full",
        device="cpu",
        precision="fp32",
        progress=False,
    )  # fmt: skip
    routing = RoutingFile.load(tmp_path / "r.npz")
    assert routing.tokens == manifest["tokens"] == 5
    assert manifest["model"] == "tiny-qwen3-moe"
    assert manifest["prompts"]["name"] == "prompts.txt"
    with zipfile.ZipFile(tmp_path / "r.npz") as archive:
        assert str(tmp_path) not in json.dumps(json.loads(archive.read("manifest.json")))
    by_ids = run(build("qwen3_moe"), tmp_path / "ids.npz", prompts=[[1, 2, 3, 4], [5]], gate="full")
    np.testing.assert_array_equal(by_ids.expert_ids, routing.expert_ids)


def test_command_names_what_is_wrong(checkpoint: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("the fox\n", encoding="utf-8")
    with pytest.raises(InputError, match="precision = 'int4'"):
        capture_command(str(checkpoint), prompts, tmp_path / "r.npz", precision="int4")
    with pytest.raises(InputError, match="device = 'abacus'"):
        capture_command(str(checkpoint), prompts, tmp_path / "r.npz", device="abacus")
    with pytest.raises(InputError, match=r"prompts = '.*absent\.txt': cannot be read"):
        capture_command(str(checkpoint), tmp_path / "absent.txt", tmp_path / "r.npz")
    with pytest.raises(InputError, match="cannot be loaded") as caught:
        capture_command(str(tmp_path / "nothing"), prompts, tmp_path / "r.npz", device="cpu")
    assert "\n" not in str(caught.value)
