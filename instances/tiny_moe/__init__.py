"""Tiny MoE: a small but real mixture-of-experts language model of our own, its texts and its training.

Mixtral architecture, 8 experts, top-2. Texts need NumPy only; everything that runs the model needs the
extra ``capture`` (torch, transformers, tokenizers, safetensors), which importing this package does not.

* `texts`: what it is trained on, and what is held out;
* ``python -m wdmoe_opt.instances.tiny_moe.train``: train it, resumably;
* ``python -m wdmoe_opt.instances.tiny_moe.weights``: export, unpack and check the shipped weights;
* ``python -m wdmoe_opt.instances.tiny_moe.evaluate``: score a checkpoint on the held-out texts.
"""

from __future__ import annotations

from wdmoe_opt.instances.tiny_moe.model import Shape
from wdmoe_opt.instances.tiny_moe.texts import HELD_OUT, TRAINING, documents, text

__all__ = ["HELD_OUT", "TRAINING", "Shape", "documents", "text"]
