"""Small randomly initialised models of every supported architecture (needs torch and transformers)."""

from __future__ import annotations

from typing import Any

from wdmoe_opt.instances.capture.routers import GATES

VOCABULARY = 96
PROMPTS = [[5, 9, 3, 17, 60, 2], [8, 1], [40, 41, 42, 43, 44, 45, 46, 47, 48], [7], [11, 90, 12]]
TOKENS = sum(map(len, PROMPTS))

COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
LATENT: dict[str, Any] = {
    "num_key_value_heads": 4, "kv_lora_rank": 16, "q_lora_rank": None, "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8, "v_head_dim": 8, "moe_intermediate_size": 24, "n_routed_experts": 8,
    "num_experts_per_tok": 3, "first_k_dense_replace": 1, "n_shared_experts": 1,
}  # fmt: skip
GROUPED = {
    "topk_method": "group_limited_greedy",
    "n_group": 4,
    "topk_group": 2,
    "routed_scaling_factor": 16.0,
}
LOCAL = {"num_local_experts": 8, "num_experts_per_tok": 2}
NAMED = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
LINEAR = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8, "head_dim": 8, "shared_expert_intermediate_size": 24,
}  # fmt: skip

#: (model_type, options, MoE blocks) by the name of the case.
CASES: dict[str, tuple[str, dict[str, Any], int]] = {
    "mixtral": ("mixtral", LOCAL, 3),
    "minimax": ("minimax", LOCAL | {"head_dim": 8, "block_size": 4}, 3),
    "olmoe": ("olmoe", {"num_experts": 8, "num_experts_per_tok": 3}, 3),
    "olmoe-renormalised": ("olmoe", {"num_experts": 8, "num_experts_per_tok": 3, "norm_topk_prob": True}, 3),
    "flex_olmo": ("flex_olmo", {"num_experts": 6, "num_experts_per_tok": 2}, 3),
    "qwen2_moe": ("qwen2_moe", NAMED | {"shared_expert_intermediate_size": 24, "mlp_only_layers": [0]}, 2),
    "qwen3_moe": ("qwen3_moe", NAMED | {"head_dim": 8, "norm_topk_prob": True}, 3),
    "qwen3_next": ("qwen3_next", NAMED | LINEAR, 3),
    "deepseek_v2": ("deepseek_v2", LATENT | {"topk_method": "greedy", "routed_scaling_factor": 1.0}, 2),
    "deepseek_v2-grouped": (
        "deepseek_v2",
        LATENT | GROUPED,
        2,
    ),
    "deepseek_v3": ("deepseek_v3", LATENT | {"q_lora_rank": 16, "n_group": 2, "topk_group": 1}, 2),
    "glm4_moe": ("glm4_moe", LATENT | {"head_dim": 8, "n_group": 1, "topk_group": 1}, 2),
    "gpt_oss": ("gpt_oss", LOCAL | {"head_dim": 8, "sliding_window": 4}, 3),
    "phimoe": ("phimoe", LOCAL, 3),
    "granitemoe": ("granitemoe", LOCAL, 3),
    "granitemoeshared": ("granitemoeshared", LOCAL | {"shared_intermediate_size": 24}, 3),
    "granitemoehybrid": (
        "granitemoehybrid",
        LOCAL | {"shared_intermediate_size": 24, "layer_types": ["attention"] * 3, "mamba_n_heads": 4},
        3,
    ),
    "jamba": (
        "jamba",
        {
            "num_experts": 4, "num_experts_per_tok": 2, "expert_layer_period": 2, "expert_layer_offset": 1,
            "attn_layer_period": 1, "attn_layer_offset": 0, "use_mamba_kernels": False,
            "num_hidden_layers": 4,
        },
        2,
    ),
    "ernie4_5_moe": (
        "ernie4_5_moe",
        {"moe_num_experts": 8, "moe_k": 2, "moe_intermediate_size": 24, "moe_layer_start_index": 1},
        2,
    ),
}  # fmt: skip
FULL = [name for name, (kind, _, _) in CASES.items() if GATES[kind].full is not None]


def build(case: str, seed: int = 0, **more: Any) -> Any:
    """Random model whose routers are sharp enough that no two experts tie."""
    import torch
    import transformers

    model_type, options, _ = CASES[case]
    torch.manual_seed(seed)
    config = transformers.AutoConfig.for_model(model_type, **(COMMON | options | more))
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for module in model.modules():
            if type(module).__name__ == GATES[model_type].router:
                for name, value in module.named_parameters():
                    value.normal_(std=0.5 if "weight" in name else 0.1)
    return model
