"""Texts of the tiny MoE: what it is trained on, and what is held out.

GSM8K keeps its official split; of tinyshakespeare the first nine tenths are trained on. HumanEval is never
trained on, nor is any other program text: it shows the model far from what it has seen.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wdmoe_opt.errors import InstanceFileError, UnknownNameError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

DATA = Path(__file__).parents[1] / "data" / "text"
TRAINING = ("gsm8k-train", "shakespeare-train")
HELD_OUT = ("gsm8k", "humaneval", "shakespeare")
#: Ends a document in `text`, as one token of its own does for the model; no document holds it.
SEPARATOR = b"\0"

#: File and SHA-256 of its content, by name.
FILES = {
    "gsm8k/train.jsonl.gz": "17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465",
    "gsm8k/test.jsonl.gz": "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14",
    "human-eval/HumanEval.jsonl.gz": "1d49078ba3e2b196b9344535bef34a43021f038fad9561d6ee7c53450609a6a2",
    "tinyshakespeare/input.txt.gz": "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
}


def documents(name: str) -> tuple[str, ...]:
    """Documents of a text: one per problem; a part of tinyshakespeare is one document.

    Parameters
    ----------
    name : str
        One of `TRAINING` or `HELD_OUT`.

    Raises
    ------
    UnknownNameError
        If there is no such text.
    InstanceFileError
        If its file is damaged.
    """
    if name not in _READERS:
        raise UnknownNameError("text", name, _READERS)
    return _READERS[name]()


def text(name: str) -> NDArray[np.uint8]:
    """Bytes of a text, (bytes,): its documents in UTF-8, each followed by `SEPARATOR`.

    Raises as `documents`.
    """
    joined = b"".join(document.encode() + SEPARATOR for document in documents(name))
    return np.frombuffer(joined, dtype=np.uint8)


def text_hash(name: str) -> str:
    """SHA-256 of a text's bytes."""
    return f"sha256:{hashlib.sha256(text(name).tobytes()).hexdigest()}"


@cache
def _read(name: str) -> str:
    path = DATA / name
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError) as error:
        raise InstanceFileError(f"{path}: cannot be read ({error})") from None
    if hashlib.sha256(content).hexdigest() != FILES[name]:
        raise InstanceFileError(f"{path}: content does not match its hash")
    return content.decode("utf-8")


def _records(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in _read(name).splitlines() if line]


def _gsm8k(part: str) -> tuple[str, ...]:
    return tuple(f"{record['question']}\n{record['answer']}" for record in _records(f"gsm8k/{part}.jsonl.gz"))


def _humaneval() -> tuple[str, ...]:
    records = _records("human-eval/HumanEval.jsonl.gz")
    return tuple(record["prompt"] + record["canonical_solution"] for record in records)


def _shakespeare(*, held_out: bool) -> tuple[str, ...]:
    plays = _read("tinyshakespeare/input.txt.gz")
    cut = plays.index("\n\n", len(plays) * 9 // 10) + 2
    return (plays[cut:] if held_out else plays[:cut],)


_READERS: dict[str, Callable[[], tuple[str, ...]]] = {
    "gsm8k-train": lambda: _gsm8k("train"),
    "gsm8k": lambda: _gsm8k("test"),
    "humaneval": _humaneval,
    "shakespeare-train": lambda: _shakespeare(held_out=False),
    "shakespeare": lambda: _shakespeare(held_out=True),
}
