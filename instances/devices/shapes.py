"""Layer shapes of the language models that were timed whole, from their public configuration files."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class ModelShape:
    """A decoder of gated feed-forward blocks with grouped-query attention; norms and biases are left out.

    Parameters
    ----------
    layers, width, expert_width, heads, kv_heads, head_dim, vocabulary : int
        As in the model's configuration file.
    experts, active : int
        Feed-forward experts per layer, and how many of them a token uses; 1 and 1 for a dense model.
    """

    layers: int
    width: int
    expert_width: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    experts: int = 1
    active: int = 1

    @property
    def head(self) -> int:
        """Weights of the output head."""
        return self.width * self.vocabulary

    @property
    def used(self) -> int:
        """Weights that one token passes, without embedding and output head."""
        return self._attention + self.active * self._expert

    def streamed(self, tokens: float) -> float:
        """Weights read at least once for ``tokens`` tokens, without the output head.

        For a mixture of experts the tokens are taken to choose evenly and independently.
        """
        missed = math.pow(1.0 - self.active / self.experts, tokens)
        return self._attention + self._expert * self.experts * (1.0 - missed)

    @property
    def _attention(self) -> int:
        return 2 * self.layers * self.width * self.head_dim * (self.heads + self.kv_heads)

    @property
    def _expert(self) -> int:
        return 3 * self.layers * self.width * self.expert_width


_QWEN3_1_7B = ModelShape(28, 2048, 6144, 16, 8, 128, 151936)
_QWEN3_4B = ModelShape(36, 2560, 9728, 32, 8, 128, 151936)
_QWEN3_8B = ModelShape(36, 4096, 12288, 32, 8, 128, 151936)
_QWEN3_30B_A3B = ModelShape(48, 2048, 768, 32, 4, 128, 151936, experts=128, active=8)
_QWEN25_7B = ModelShape(28, 3584, 18944, 28, 4, 128, 152064)
_LLAMA_8B = ModelShape(32, 4096, 14336, 32, 8, 128, 128256)
_LLAMA_3B = ModelShape(28, 3072, 8192, 24, 8, 128, 128256)

#: Shape by the model name that a source file uses; the vision models share the text body named here.
SHAPES: dict[str, ModelShape] = {
    "Qwen3-0.6B": ModelShape(28, 1024, 3072, 16, 8, 128, 151936),
    "Qwen3-1.7B": _QWEN3_1_7B,
    "Qwen3-VL-2B-Instruct": _QWEN3_1_7B,
    "Qwen3-4B-Instruct-2507": _QWEN3_4B,
    "Qwen3-VL-4B-Instruct": _QWEN3_4B,
    "qwen3-4b": _QWEN3_4B,
    "Qwen3-8B": _QWEN3_8B,
    "Qwen3-VL-8B-Instruct": _QWEN3_8B,
    "qwen3-8b": _QWEN3_8B,
    "qwen3-32b": ModelShape(64, 5120, 25600, 64, 8, 128, 151936),
    "Qwen3-30B-A3B": _QWEN3_30B_A3B,
    "Qwen3-30B-A3B-GPTQ-Int4": _QWEN3_30B_A3B,
    "qwen3-30b-a3b": _QWEN3_30B_A3B,
    "Qwen2.5-Coder-1.5B": ModelShape(28, 1536, 8960, 12, 2, 128, 151936),
    "Qwen2.5-Coder-3B": ModelShape(36, 2048, 11008, 16, 2, 128, 151936),
    "Qwen2.5-Coder-7B": _QWEN25_7B,
    "Qwen2.5-VL-7B-Instruct": _QWEN25_7B,
    "Llama-3.1-8B-Instruct": _LLAMA_8B,
    "llama-3-1-8b": _LLAMA_8B,
    "llama-3-2-3b": _LLAMA_3B,
    "llama-3-3-70b": ModelShape(80, 8192, 28672, 64, 8, 128, 128256),
}
