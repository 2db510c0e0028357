"""Score a model on the held-out texts: ``python -m wdmoe_opt.instances.tiny_moe.evaluate [--run DIR]``.

A text is cut into windows of the model's context; each token is predicted once, from those before it in its
window. Windows that are not full are left out, and batches are always the same.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wdmoe_opt.instances.tiny_moe.model import libraries
from wdmoe_opt.instances.tiny_moe.texts import HELD_OUT
from wdmoe_opt.instances.tiny_moe.tokens import stream, token_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Windows of a batch.
BATCH = 8


@dataclass(frozen=True)
class Counts:
    """What one batch of predictions adds up to.

    Attributes
    ----------
    bits : float
        Of the tokens that came, under the model.
    bytes, tokens : int
    hits : int
        Tokens that the model held most likely.
    """

    bits: float
    bytes: int
    tokens: int
    hits: int


@dataclass(frozen=True)
class Score:
    """How well a model predicts one text; intervals cover 95 %, with batches as the sample.

    Attributes
    ----------
    bits_per_byte, accuracy : float
        Accuracy is the share of tokens that the model held most likely.
    bits_per_byte_interval, accuracy_interval : tuple of float
    bytes, tokens, batches : int
    """

    bits_per_byte: float
    bits_per_byte_interval: tuple[float, float]
    accuracy: float
    accuracy_interval: tuple[float, float]
    bytes: int
    tokens: int
    batches: int


def held_out_batches(name: str, context: int, batch: int = BATCH) -> list[NDArray[np.int64]]:
    """Batches of a held-out text, each (windows, context + 1): tokens and, one to the right, what follows.

    Parameters
    ----------
    name : str
        One of `texts.HELD_OUT`.
    context, batch : int
        Tokens of a window, windows of a batch; the last batch may have fewer.
    """
    ids = stream(name)
    starts = np.arange(0, ids.size - context, context)
    windows = ids[starts[:, None] + np.arange(context + 1)]
    return [windows[low : low + batch] for low in range(0, len(windows), batch)]


def count(logits: Any, targets: Any) -> Counts:
    """Count one batch of predictions.

    Parameters
    ----------
    logits : float tensor (..., vocabulary)
    targets : int tensor (...)
        The tokens that came.
    """
    torch, _ = libraries()
    rows, came = logits.float().flatten(0, -2), targets.flatten()
    nats = torch.nn.functional.cross_entropy(rows, came, reduction="sum").item()
    hits = int((rows.argmax(dim=-1) == came).sum())
    size = int(token_bytes()[came.cpu().numpy()].sum())
    return Counts(nats / float(np.log(2.0)), size, int(came.numel()), hits)


def summarise(counts: Sequence[Counts]) -> Score:
    """Score of a text from the counts of its batches."""
    bits, size, tokens, hits = (
        np.array([getattr(one, key) for one in counts], dtype=np.float64)
        for key in ("bits", "bytes", "tokens", "hits")
    )
    return Score(
        *ratio(bits, size), *ratio(hits, tokens), int(size.sum()), int(tokens.sum()), len(counts)
    )  # fmt: skip


def score(model: Any, name: str, *, context: int | None = None, limit: int | None = None) -> Score:
    """Score a model on a held-out text.

    Parameters
    ----------
    model : transformers.MixtralForCausalLM
        Of the vocabulary in `tokens`; it runs in inference mode, where it is.
    name : str
        One of `texts.HELD_OUT`.
    context : int, optional
        Tokens of a window; default the model's.
    limit : int, optional
        Take only so many batches, evenly spread over the text.
    """
    torch, _ = libraries()
    batches = held_out_batches(name, context or model.config.max_position_embeddings)
    if limit is not None:
        batches = [batches[i] for i in np.unique(np.linspace(0, len(batches) - 1, limit).astype(int))]
    training = model.training
    model.eval()
    counts = []
    with torch.inference_mode():
        for batch in batches:
            tokens = torch.from_numpy(batch).to(model.device)
            logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
            counts.append(count(logits, tokens[:, 1:]))
    model.train(training)
    return summarise(counts)


def score_all(model: Any, *, limit: int | None = None, progress: bool = False) -> dict[str, Score]:
    """Score of every held-out text by name; parameters as `score`."""
    from rich.console import Console
    from rich.progress import track

    names: Iterable[str] = HELD_OUT
    if progress:
        names = track(HELD_OUT, "evaluate", console=Console(stderr=True))
    return {name: score(model, name, limit=limit) for name in names}


def ratio(above: NDArray[np.float64], below: NDArray[np.float64]) -> tuple[float, tuple[float, float]]:
    """Ratio of two sums over batches, and its 95 % interval (infinite from one batch).

    Parameters
    ----------
    above, below : float array (batches,)
    """
    from scipy.stats import t

    value = float(above.sum() / below.sum())
    batches = above.size
    if batches < 2:
        return value, (float("-inf"), float("inf"))
    spread = np.sqrt(np.square(above - value * below).sum() * batches / (batches - 1)) / below.sum()
    reach = float(t.ppf(0.975, batches - 1) * spread)
    return value, (value - reach, value + reach)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description="Score the tiny MoE on the held-out texts.")
    parser.add_argument("--run", type=Path, help="folder of a training run; default the shipped weights")
    parser.add_argument("--batches", type=int, help="batches of each text; default all")
    options = parser.parse_args(arguments)
    from wdmoe_opt.instances.tiny_moe.checkpoint import load_model
    from wdmoe_opt.instances.tiny_moe.weights import load_weights

    model = load_model(options.run) if options.run else load_weights()
    scores = score_all(model, limit=options.batches, progress=sys.stderr.isatty())
    print(json.dumps({name: asdict(found) for name, found in scores.items()}, indent=2))


if __name__ == "__main__":
    main()
