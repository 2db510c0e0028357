"""Tokens: a byte-level vocabulary of 1,024 pieces learned from the training texts, and texts as tokens.

``python -m wdmoe_opt.instances.tiny_moe.tokens FILE`` learns it again; the same texts give the same file.
Every byte is a token of its own too, so that no text is out of reach; digits are never merged. Token 0
stands before every document.
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wdmoe_opt.instances.tiny_moe.model import Shape, libraries
from wdmoe_opt.instances.tiny_moe.texts import TRAINING, documents

if TYPE_CHECKING:
    from numpy.typing import NDArray

FILE = Path(__file__).parents[1] / "data" / "model" / "tiny-moe" / "tokenizer.json"
START = "<|start|>"


def learn() -> Any:
    """Learn the vocabulary from the training texts, as a ``tokenizers.Tokenizer``."""
    libraries()
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=Shape().vocabulary,
        special_tokens=[START],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    pieces = (line for name in TRAINING for document in documents(name) for line in document.splitlines(True))
    tokenizer.train_from_iterator(pieces, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A", special_tokens=[(START, tokenizer.token_to_id(START))]
    )
    return tokenizer


@cache
def tokenizer() -> Any:
    """The shipped vocabulary as a transformers tokenizer; it puts `START` before every text.

    Raises
    ------
    UnsupportedError
        If the extra ``capture`` is not installed.
    """
    _, transformers = libraries()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(FILE), bos_token=START, eos_token=START, pad_token=START
    )


@cache
def token_bytes() -> NDArray[np.int64]:
    """Bytes that each token stands for, (vocabulary,); `START` counts as the separator of documents."""
    known = tokenizer()
    pieces = known.convert_ids_to_tokens(range(len(known)))
    # In a byte-level vocabulary one character stands for one byte.
    sizes = np.array([1 if piece == START else len(piece) for piece in pieces], dtype=np.int64)
    sizes.setflags(write=False)
    return sizes


@cache
def stream(*names: str) -> NDArray[np.int64]:
    """Token ids of whole texts one after another, (tokens,): `START` before and after every document.

    Parameters
    ----------
    *names : str
        See `texts.documents`.
    """
    found = [document for name in names for document in documents(name)]
    encoded = tokenizer().backend_tokenizer.encode_batch(found)
    ids = np.concatenate([np.asarray(one.ids, dtype=np.int64) for one in encoded] + [np.zeros(1, np.int64)])
    ids.setflags(write=False)
    return ids


if __name__ == "__main__":
    learn().save(sys.argv[1])
