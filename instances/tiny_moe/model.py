"""The model: its shape, and a freshly initialised one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from wdmoe_opt.errors import InputError, UnsupportedError
from wdmoe_opt.validation import whole

#: Largest size in a shape.
LARGEST = 65_536
#: The output head, which is the embedding under another name.
TIED = "lm_head.weight"


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

    Raises
    ------
    InputError
        If a size is no whole number of 1 to `LARGEST`, or heads or experts do not fit together.
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

    def __post_init__(self) -> None:
        for name, value in self.as_dict().items():
            whole(f"shape.{name}", value, 1, LARGEST, f"must be 1 to {LARGEST}")
        for name, whole_of in (("heads", self.width), ("key_value_heads", self.heads)):
            if whole_of % getattr(self, name):
                raise InputError(f"shape.{name}", f"must divide {whole_of}", value=getattr(self, name))
        whole("shape.top_k", self.top_k, 1, self.experts, f"must be 1 to {self.experts}")

    @classmethod
    def read(cls, found: Any) -> Shape:
        """Shape of what a file says.

        Raises
        ------
        InputError
            If that is no mapping of the fields to whole numbers.
        """
        names = {field.name for field in fields(cls)}
        if not isinstance(found, Mapping) or set(found) != names:
            raise InputError("shape", f"must have the fields {', '.join(sorted(names))}", value=found)
        return cls(**found)

    @property
    def parameters(self) -> int:
        """Parameters of a model of this shape; the output head is tied to the embedding."""
        head = self.width // self.heads
        attention = 2 * self.width * head * (self.heads + self.key_value_heads)
        experts = self.experts * (3 * self.width * self.expert_width + self.width)
        block = attention + experts + 2 * self.width
        return self.vocabulary * self.width + self.blocks * block + self.width

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


def model_of(shape: Shape, state: Mapping[str, Any]) -> Any:
    """MixtralForCausalLM with parameters from a file, in evaluation mode.

    Raises
    ------
    InputError
        Naming the first parameter that is missing, unknown or of another shape.
    UnsupportedError
        If the extra ``capture`` is not installed.
    """
    stored = sum(math.prod(getattr(value, "shape", ())) for name, value in state.items() if name != TIED)
    if stored != shape.parameters:  # before memory is taken for as many as the shape says
        raise InputError("parameters", f"must be {shape.parameters} of the shape", value=stored)
    model = new_model(shape, seed=0)
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    for name in sorted({*wanted, *state}, key=str):
        found = tuple(getattr(state.get(name), "shape", ()))
        if found != wanted.get(name):
            rule = f"must have the shape {wanted[name]}" if name in wanted else "is no parameter of the model"
            raise InputError(f"parameters[{name!r}]", rule, value=found)
    model.load_state_dict(state)
    return model.eval()
