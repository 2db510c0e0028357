"""Models in the loop: identity, mixing by hand, generation, padding, accounting, errors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import CASES, COMMON, FULL, PROMPTS, TOKENS, build

import wdmoe_opt as wo
from wdmoe_opt.instances.capture import CaptureError, capture
from wdmoe_opt.instances.capture.routers import GATES
from wdmoe_opt.instances.channels import channel_states, wifi_states
from wdmoe_opt.instances.routing_file import RoutingFile
from wdmoe_opt.integrations.transformers import WirelessExperts, model_instance
from wdmoe_opt.network import HistoryPolicy, WirelessNetwork
from wdmoe_opt.solvers.testbed import Algorithm2

torch = pytest.importorskip("torch", reason="a model in the loop needs torch (extra: capture)")
transformers = pytest.importorskip("transformers", reason="and transformers (extra: capture)")

torch.set_num_threads(1)

TYPES = ["mixtral", "olmoe", "qwen2_moe", "deepseek_v2", "deepseek_v2-grouped"]


def batch(prompts: Any = PROMPTS, left: bool = False) -> dict[str, Any]:
    """Prompts of different lengths as one padded batch."""
    longest = max(map(len, prompts))
    ids, mask = torch.zeros(2, len(prompts), longest, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        place = slice(longest - len(prompt), None) if left else slice(len(prompt))
        ids[row, place], mask[row, place] = torch.tensor(prompt), 1
    return {"input_ids": ids, "attention_mask": mask}


def logits(model: Any, **inputs: Any) -> Any:
    with torch.inference_mode():
        return model(**inputs, use_cache=False).logits


class Mixing:
    """What the experts are called with, dense (rows, experts), block by block; a context manager."""

    def __init__(self, model: Any) -> None:
        kind = GATES[model.config.model_type].router
        inside = [m for m in model.modules() if kind in {type(c).__name__ for c in m.children()}]
        self.experts = [module.experts for module in inside]
        self.routers = [m for m in model.modules() if type(m).__name__ == kind]
        self.dense: list[np.ndarray] = []
        self.logits: list[np.ndarray] = []

    def __enter__(self) -> Mixing:
        self.handles = [e.register_forward_pre_hook(self.on_experts, with_kwargs=True) for e in self.experts]
        self.handles += [router.register_forward_hook(self.on_router) for router in self.routers]
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self.handles:
            handle.remove()

    def on_experts(self, experts: Any, inputs: Any, named: Any) -> None:
        _, ids, weights = inputs
        dense = torch.zeros(ids.shape[0], self.routers[0].num_experts)
        self.dense.append(dense.scatter_add(1, ids, weights.float()).numpy())

    def on_router(self, router: Any, inputs: Any, output: Any) -> None:
        self.logits.append(output[0].double().numpy())


class Recorder:
    """A policy that draws, and remembers what it was asked and what it said."""

    def __init__(self, seed: int = 0, most: int | None = None) -> None:
        self.rng, self.most = np.random.default_rng(seed), most
        self.calls: list[Any] = []
        self.keeps: list[np.ndarray] = []

    def __call__(self, call: Any) -> np.ndarray:
        keep = self.rng.random(call.expert_ids.shape) < 0.5
        keep[np.arange(len(keep)), self.rng.integers(0, keep.shape[1], len(keep))] = True
        keep[::4] = False
        keep[::4, : call.problem.instance.top_k] = True  # every fourth token stays as it is
        self.calls.append(call)
        self.keeps.append(keep)
        return keep


@pytest.mark.parametrize("case", CASES)
def test_floor_one_gives_the_models_own_logits_bit_for_bit(case: str) -> None:
    model = build(case)
    inputs = batch(left=True)
    plain = logits(model, **inputs)
    with WirelessExperts(model, model_instance(model), min_retention=1.0) as network:
        looped = logits(model, **inputs)
    assert torch.equal(looped, plain)
    assert network.report.retention == pytest.approx(1.0)
    assert network.report.tokens == TOKENS
    assert len(network.report.records) == CASES[case][2]


@pytest.mark.parametrize("case", ["mixtral", "olmoe"])
@pytest.mark.parametrize("renormalise", [True, False])
@pytest.mark.parametrize("more", [0, 3])
def test_a_block_mixes_as_computed_by_hand(case: str, renormalise: bool, more: int) -> None:
    """Everything of one block in NumPy, from its input to its output."""
    model = build(case)
    k = int(model.config.num_experts_per_tok)
    block = model.base_model.layers[0].mlp
    through: list[Any] = []
    block.register_forward_hook(lambda module, inputs, output: through.append((inputs[0], output)))
    policy = Recorder()
    network = WirelessExperts(
        model, model_instance(model), policy=policy, candidates=k + more, renormalise=renormalise
    )
    with network:
        logits(model, input_ids=torch.tensor([PROMPTS[2]]))
    x, result = (part.reshape(-1, 32).double().numpy() for part in through[0])
    gate = np.exp(x @ block.gate.weight.detach().numpy().T)
    gate /= gate.sum(axis=1, keepdims=True)
    up, down = (p.detach().numpy() for p in (block.experts.gate_up_proj, block.experts.down_proj))
    for j in range(len(x)):
        ranked = np.argsort(-gate[j])
        weights = gate[j] / (gate[j][ranked[:k]].sum() if case == "mixtral" else 1.0)
        kept = ranked[: k + more][policy.keeps[0][j]]
        scale = weights[ranked[:k]].sum() / weights[kept].sum() if renormalise else 1.0
        expected = np.zeros(32)
        for e in kept:
            opened, value = np.split(up[e] @ x[j], 2)
            expected += scale * weights[e] * (down[e] @ (opened / (1 + np.exp(-opened)) * value))
        np.testing.assert_allclose(result[j], expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("case", TYPES)
@pytest.mark.parametrize("more", [0, 2])
def test_the_selection_is_what_the_experts_get(case: str, more: int) -> None:
    model = build(case)
    k = int(model.config.num_experts_per_tok)
    policy = Recorder(1)
    inputs = batch()
    real = inputs["attention_mask"].bool().reshape(-1).numpy()
    network = WirelessExperts(model, model_instance(model), policy=policy, candidates=k + more)
    with network, Mixing(model) as mixing:
        logits(model, **inputs)
    assert len(mixing.dense) == CASES[case][2]
    for call, keep, dense in zip(policy.calls, policy.keeps, mixing.dense, strict=True):
        assert keep.shape == (TOKENS, k + more)
        kept = np.where(keep, call.gate_weights, 0.0)
        mass = call.gate_weights[:, :k].sum(axis=1, keepdims=True)
        expected = np.zeros((TOKENS, dense.shape[1]))
        left = kept.sum(axis=1, keepdims=True)
        mix = kept * np.where(left > 0, mass / np.maximum(left, 1e-300), 1.0)
        np.put_along_axis(expected, call.expert_ids, mix, axis=1)
        np.testing.assert_allclose(dense[real], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("case", TYPES)
def test_padding_is_neither_sent_nor_touched(case: str) -> None:
    model = build(case)
    inputs = batch()
    padding = ~inputs["attention_mask"].bool().reshape(-1).numpy()
    with Mixing(model) as plain:
        logits(model, **inputs)
    policy = Recorder(2)
    with WirelessExperts(model, model_instance(model), policy=policy), Mixing(model) as mixing:
        logits(model, **inputs)
    np.testing.assert_array_equal(mixing.dense[0][padding], plain.dense[0][padding])
    assert not np.array_equal(mixing.dense[0][~padding], plain.dense[0][~padding])
    alone = Recorder(2)
    with WirelessExperts(model, model_instance(model), policy=alone):
        for prompt in PROMPTS:
            logits(model, input_ids=torch.tensor([prompt]))
    blocks = CASES[case][2]
    ids = np.concatenate([call.expert_ids for call in alone.calls[::blocks]])
    np.testing.assert_array_equal(policy.calls[0].expert_ids, ids)


def test_nothing_real_is_nothing_sent() -> None:
    model = build("mixtral")
    inputs = batch() | {"attention_mask": torch.zeros(len(PROMPTS), 9, dtype=torch.long)}
    plain = logits(model, **inputs)
    with WirelessExperts(model, model_instance(model), min_retention=0.5) as network:
        assert torch.equal(logits(model, **inputs), plain)
    assert not network.report.records


@pytest.mark.parametrize("case", ["mixtral", "qwen2_moe", "deepseek_v2"])
def test_generate_equals_a_loop_by_hand(case: str) -> None:
    model = build(case)
    inputs = batch(PROMPTS[:3], left=True)
    options: dict[str, Any] = {
        "policy": "wdmoe-testbed",
        "policy_options": {"threshold": 0.6, "repeat": True},
    }
    steps = 7
    with WirelessExperts(model, model_instance(model), **options) as network:
        written = model.generate(
            **inputs, max_new_tokens=steps, min_new_tokens=steps, do_sample=False, eos_token_id=None
        )
    ids, mask, cache = inputs["input_ids"], inputs["attention_mask"], None
    with WirelessExperts(model, model_instance(model), **options) as by_hand, torch.inference_mode():
        position = mask.cumsum(dim=1) - 1
        new, place = ids, position.clamp(min=0)
        for _ in range(steps):
            output = model(
                input_ids=new, attention_mask=mask, position_ids=place, past_key_values=cache, use_cache=True
            )
            new, cache = output.logits[:, -1:].argmax(dim=-1), output.past_key_values
            ids, mask = torch.cat([ids, new], dim=1), torch.cat([mask, torch.ones_like(new)], dim=1)
            place = mask.sum(dim=1, keepdim=True) - 1
    assert torch.equal(written, ids)
    report = network.report
    assert report.passes == steps
    real = sum(map(len, PROMPTS[:3]))
    assert report.per_pass("tokens", np.max).tolist() == [real] + [3] * (steps - 1)
    assert report.retention < 1
    np.testing.assert_allclose(report.column("latency"), by_hand.report.column("latency"), rtol=1e-9)


@pytest.mark.parametrize(("case", "more"), [("mixtral", 0), ("olmoe", 2), ("deepseek_v2-grouped", 0)])
@pytest.mark.parametrize("policy", ["session", "topk-uniform"])
def test_accounts_are_what_evaluate_says_of_the_captured_gates(
    case: str, more: int, policy: str, tmp_path: Path
) -> None:
    """Block by block in one batch; plain routing, so that later blocks see the captured inputs."""
    model = build(case)
    capture(
        model, PROMPTS, tmp_path / "r.npz", gate="full" if more else "top-k", batch_size=5, progress=False
    )
    routing = RoutingFile.load(tmp_path / "r.npz")
    inst = model_instance(model)
    columns = routing.top_k + more
    with WirelessExperts(model, inst, policy=policy, candidates=columns, min_retention=1.0) as network:
        logits(model, **batch())
    sent = inst.replace(
        expert_ids=routing.expert_ids[:, :, :columns].astype(int),
        gate_weights=routing.gate_weights[:, :, :columns],
    )
    problem = wo.Problem(sent, allocation="per-block", candidates=columns, min_retention=1.0)
    if policy == "topk-uniform":
        priced = wo.evaluate(
            problem, problem.top_k_keep, np.tile(problem.uniform_bandwidth, (sent.blocks, 1))
        )
        np.testing.assert_allclose(network.report.column("latency"), priced.block_latency, rtol=1e-12)
    else:
        best = wo.solve(problem, "certified")
        first = network.report.records[0]
        assert first.latency == pytest.approx(best.block_latency[0], rel=0.25)
        assert first.floors_kept


def test_a_session_of_ones_own() -> None:
    model = build("olmoe")
    inst = model_instance(model)
    problem = wo.Problem(inst, min_retention=[0.7, 0.8, 1.0], allocation="per-block", candidates=4)
    session = wo.Session(problem, max_tokens=TOKENS)
    with WirelessExperts(model, session) as network:
        logits(model, **batch())
        with pytest.raises(wo.InputError, match="max_tokens = 21: is too small for a pass of 45 tokens"):
            logits(model, input_ids=torch.ones(5, 9, dtype=torch.long))
    kept = network.report.column("retention")
    assert (kept >= np.array([0.7, 0.8, 1.0]) - 1e-9).all()
    assert kept[0] < 0.95


def test_one_network_carries_two_models_in_turn() -> None:
    models = [build("mixtral", seed=seed) for seed in (0, 1)]
    network = WirelessNetwork(model_instance(models[0]), min_retention=0.9)
    for model in models:
        with WirelessExperts(model, network):
            logits(model, **batch())
    assert network.report.passes == 2
    assert network.channel.now == pytest.approx(network.report.latency)


def test_channel_states_and_history_on_measured_wifi() -> None:
    model = build("mixtral")
    inst = model_instance(model, fleet="orin-mix-4", channel="feup-wifi")
    assert inst.token_time_link is not None
    trace = wifi_states(bits_down=inst.bits_down)[:50]
    policy = HistoryPolicy(algorithm=Algorithm2(threshold=0.6))
    with WirelessExperts(model, inst, policy=policy, channel=trace, advance="block") as network:
        model.generate(**batch(left=True), max_new_tokens=4, do_sample=False)
    assert np.isfinite(network.report.latency)
    assert network.report.retention < 1
    assert (policy.history.estimates > 0).all()


def test_gates_and_overheads_are_timed() -> None:
    model = build("mixtral")
    with WirelessExperts(model, model_instance(model), min_retention=0.9) as network:
        logits(model, **batch())
    report = network.report
    assert (report.column("gate_seconds") > 0).all()
    assert (report.column("other_seconds") > 0).all()
    assert report.solve_over_latency > 0
    assert "times the gate's" in str(report)


def test_gradients_reach_the_gate() -> None:
    model = build("mixtral")
    with WirelessExperts(model, model_instance(model), policy=Recorder(), candidates=4):
        model(**batch()).logits.sum().backward()
    assert model.base_model.layers[0].mlp.gate.weight.grad.abs().sum() > 0


def test_bfloat16_stays_bfloat16() -> None:
    model = build("mixtral").to(torch.bfloat16)
    with WirelessExperts(model, model_instance(model), policy=Recorder(), candidates=4):
        assert logits(model, **batch()).dtype == torch.bfloat16


def test_hooks_are_removed_and_one_loop_is_enough() -> None:
    model = build("mixtral")
    plain = logits(model, **batch())
    loop = WirelessExperts(model, model_instance(model), policy=Recorder())
    with loop:
        with pytest.raises(wo.WdmoeError, match="in the loop already"):
            loop.__enter__()
        assert not torch.equal(logits(model, **batch()), plain)
    assert torch.equal(logits(model, **batch()), plain)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_only_whole_passes_are_sent() -> None:
    model = build("mixtral")
    with WirelessExperts(model, model_instance(model)):
        with pytest.raises(wo.WdmoeError, match="outside a whole forward pass"):
            model.base_model.layers[0].mlp(torch.zeros(1, 2, 32))
        four = torch.ones(5, 1, 9, 9)
        with pytest.raises(wo.InputError, match=r"attention_mask: must have shape .* \(5, 9 or more\)"):
            logits(model, **(batch() | {"attention_mask": four}))


def test_a_bypassed_router_is_an_error() -> None:
    model = build("mixtral")
    block = model.base_model.layers[1].mlp
    block.forward = lambda hidden: hidden
    with (
        WirelessExperts(model, model_instance(model)),
        pytest.raises(wo.WdmoeError, match=r"layers\.2.* outside|were bypassed"),
    ):
        logits(model, **batch())


def fit(model: Any, **changes: Any) -> wo.Instance:
    return model_instance(model).replace(**changes)


@pytest.mark.parametrize(
    ("start", "error", "words"),
    [
        (lambda m, i: WirelessExperts(object(), i), wo.InputError, "model: must be a transformers model"),
        (lambda m, i: WirelessExperts(m, {}), wo.InputError, "network: must be a WirelessNetwork, Problem"),
        (lambda m, i: WirelessExperts(m, i, policy="gready"), wo.UnknownNameError, "greedy"),
        (lambda m, i: WirelessExperts(m, i, renormalise=1), wo.InputError, "renormalise = 1"),
        (
            lambda m, i: WirelessExperts(build("mixtral", num_local_experts=16), i),
            wo.InputError,
            "network.experts = 8: must be the model's 16",
        ),
        (
            lambda m, i: WirelessExperts(build("mixtral", num_hidden_layers=2), i),
            wo.InputError,
            "network.blocks = 3: must be the model's 2",
        ),
        (lambda m, i: WirelessExperts(m, i.replace(top_k=3)), wo.InputError, "network.top_k = 3"),
        (
            lambda m, i: WirelessExperts(
                build("olmoe"), wo.Session(wo.Problem(i, allocation="per-block"))
            ),
            wo.InputError,
            "network.top_k = 2: must be the model's 3",
        ),
        (
            lambda m, i: WirelessExperts(build("phimoe"), i, candidates=4),
            wo.UnsupportedError,
            "phimoe gives no weight to experts beyond its top-k",
        ),
        (
            lambda m, i: WirelessExperts(m, WirelessNetwork(i), min_retention=0.5),
            wo.InputError,
            "is set where the WirelessNetwork is made",
        ),
        (lambda m, i: WirelessExperts(m, i, channel=channel_states("cell-20mhz", 4)), wo.InputError, "8 dev"),
        (
            lambda m, i: WirelessExperts(m, i.replace(
                loads=[[1] * 8] * 3, expert_ids=None, gate_weights=None, top_k=None, expert_device=None
            )),
            wo.UnsupportedError,
            "loads only",
        ),
    ],
)  # fmt: skip
def test_errors_before_anything_runs(start: Any, error: Any, words: str) -> None:
    model = build("mixtral")
    with pytest.raises(error, match=words):
        start(model, model_instance(model))


def test_models_without_routers_are_refused() -> None:
    llama = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model("llama", **COMMON)
    )
    with pytest.raises(wo.UnsupportedError, match="'llama' has no routers known here"):
        model_instance(llama)
    dense = build("qwen2_moe", mlp_only_layers=[0, 1, 2])
    with pytest.raises(CaptureError, match="all its blocks are dense"):
        WirelessExperts(dense, model_instance(build("mixtral")))


def test_an_instance_of_the_models_shape() -> None:
    model = build("deepseek_v2")
    inst = model_instance(model, fleet="orin-mix-4", channel="umi-100mhz", width=2048, expert_width=1408)
    assert (inst.blocks, inst.experts, inst.top_k, inst.devices) == (2, 8, 3, 4)
    assert inst.bits_down == 16 * 2048
    assert inst.expert_device.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    placed = model_instance(model, expert_device=np.arange(8)[::-1])
    assert placed.expert_device.tolist() == [7, 6, 5, 4, 3, 2, 1, 0]
    with pytest.raises(wo.UnknownNameError, match="fleet"):
        model_instance(model, fleet="orin")


def test_full_gates_are_known_for_the_types_tested_here() -> None:
    assert set(TYPES) <= set(FULL)


def test_the_example_runs() -> None:
    example = Path(__file__).parents[2] / "examples" / "own_model_in_the_loop.py"
    done = subprocess.run([sys.executable, str(example)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("forward pass(es)") == 3
