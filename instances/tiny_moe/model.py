"""The model: its shape, and a freshly initialised one."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from wdmoe_opt.errors import UnsupportedError


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of a Mixtral model; the defaults are those of the tiny MoE (7.0 million parameters).

    Parameters
    ----------
    vocabulary : int
        Tokens, see `tokens`.
    width, expert_width : int
        Values of an activation, and inside an expert.
    blocks, experts, top_k : int
    heads, key_value_heads : int
        Of the attention.
    context : int
        Tokens of a training window.
    """

    vocabulary: int = 1024
    width: int = 192
    expert_width: int = 224
    blocks: int = 6
    experts: int = 8
    top_k: int = 2
    heads: int = 6
    key_value_heads: int = 2
    context: int = 256

    def as_dict(self) -> dict[str, int]:
        """The fields by name."""
        return asdict(self)


def libraries() -> tuple[Any, Any]:
    """Import (torch, transformers).

    Raises
    ------
    UnsupportedError
        If the extra ``capture`` is not installed.
    """
    try:
        import torch
        import transformers
    except ImportError as error:
        raise UnsupportedError(
            f"the tiny MoE needs the extra: pip install 'wdmoe_opt[capture]' ({error})"
        ) from None
    return torch, transformers


def new_model(shape: Shape, seed: int) -> Any:
    """MixtralForCausalLM in float32, initialised from ``seed``; the global random state is kept.

    Parameters
    ----------
    shape : Shape
    seed : int

    Raises
    ------
    UnsupportedError
        If the extra ``capture`` is not installed.
    """
    torch, transformers = libraries()
    config = transformers.MixtralConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.expert_width,
        num_hidden_layers=shape.blocks,
        num_local_experts=shape.experts,
        num_experts_per_tok=shape.top_k,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        max_position_embeddings=shape.context,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # The plain loop over experts: as fast as grouped products on a CPU, and in every torch version.
        return transformers.MixtralForCausalLM._from_config(config, experts_implementation="eager")
