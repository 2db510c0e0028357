"""Capture the full gates of the shipped model: ``python -m wdmoe_opt.instances.tiny_moe.routing``.

Writes the routing files of the families ``tiny-moe-gsm8k``, ``tiny-moe-humaneval`` and
``tiny-moe-shakespeare``: all eight gate weights of every token, on held-out text, so that re-routing can be
tried on them and checked against the model. By hand it is::

    python -m wdmoe_opt.instances.tiny_moe.weights unpack tiny-moe
    wdmoe-opt capture tiny-moe prompts.jsonl gates.npz --gate full --max-length 256
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wdmoe_opt.archive import LZMA
from wdmoe_opt.errors import UnknownNameError
from wdmoe_opt.instances.capture import capture
from wdmoe_opt.instances.routing_file import RoutingFile
from wdmoe_opt.instances.tiny_moe.texts import HELD_OUT, documents
from wdmoe_opt.instances.tiny_moe.tokens import tokenizer
from wdmoe_opt.instances.tiny_moe.weights import DATA as MODEL
from wdmoe_opt.instances.tiny_moe.weights import load_weights, read_card

DATA = Path(__file__).parents[1] / "data" / "routing" / "tiny-moe"
#: Tokens of a family: eight default batches.
TOKENS = 4096
#: Shortest prompt made of consecutive speeches.
_SCENE = 400

_WHAT = {
    "gsm8k": "problems of GSM8K test with their worked answers, held out",
    "humaneval": "problems of HumanEval with their solutions; the model was trained on no program text",
    "shakespeare": f"runs of speeches of at least {_SCENE} characters from the held-out tinyshakespeare",
}
_LICENCES = {"gsm8k": "MIT", "humaneval": "MIT", "shakespeare": "public domain"}

_PROVENANCE = """\
# tiny-moe

- Made in this repository, by its authors: `python -m wdmoe_opt.instances.tiny_moe.routing` ran the shipped
  model (`data/model/tiny-moe`, trained here) on held-out texts (`data/text`). Licence: Apache-2.0
  (`LICENSE`); the texts are MIT (GSM8K, HumanEval) or in the public domain (Shakespeare).
- Content: the gate weight of all eight experts for every token and block, on the scale on which the top two
  sum to 1. Routing outputs only, no text.
- The prompts are named and hashed in each file's manifest; the revision is the SHA-256 of the weights.
"""


def prompts(name: str, *, tokens: int = TOKENS, context: int = 256) -> list[str]:
    """First documents of a held-out text whose tokens together are at most ``tokens``.

    Parameters
    ----------
    name : str
        One of `texts.HELD_OUT`. Of tinyshakespeare a prompt is a run of speeches.
    tokens : int
    context : int
        Tokens at which a prompt will be cut; no more are counted.

    Raises
    ------
    UnknownNameError
        If there is no such text.
    """
    if name not in HELD_OUT:
        raise UnknownNameError("text", name, HELD_OUT)
    pieces = _scenes() if name == "shakespeare" else documents(name)
    chosen: list[str] = []
    for piece in pieces:
        tokens -= min(context, len(tokenizer()(piece)["input_ids"]))
        if tokens < 0:
            break
        chosen.append(piece)
    return chosen


def capture_gates(
    name: str, output: Path, *, model: Any, revision: str, tokens: int = TOKENS, progress: bool = False
) -> RoutingFile:
    """Capture the full gates of a model on a held-out text and write them as a family's routing file.

    Parameters
    ----------
    name : str
        One of `texts.HELD_OUT`.
    output : Path
        Replaced if it exists.
    model : transformers.MixtralForCausalLM
    revision : str
        What identifies the weights, for the manifest.
    tokens : int
        At most so many.
    progress : bool
        Show a progress bar.
    """
    context = model.config.max_position_embeddings
    chosen = prompts(name, tokens=tokens, context=context)
    capture(
        model,
        chosen,
        output,
        tokenizer=tokenizer(),
        gate="full",
        max_length=context,
        model_name="tiny-moe (ours: trained by wdmoe_opt.instances.tiny_moe)",
        revision=revision,
        model_licence="Apache-2.0 (model weights; in data/model/tiny-moe)",
        overwrite=True,
        progress=progress,
    )
    captured = RoutingFile.load(output)
    manifest = dict(captured.manifest) | {
        "prompts": f"the first {len(chosen)} {_WHAT[name]}; cut at {context} tokens",
        "data_licence": f"Apache-2.0, text {_LICENCES[name]}",
        "source": "made in this repository by wdmoe_opt.instances.tiny_moe.routing",
        "source_commit": None,
        "weight_outside": "0",
    }
    named = RoutingFile(
        captured.expert_ids,
        captured.gate_weights,
        top_k=captured.top_k,
        experts=captured.experts,
        sequence=captured.sequence,
        position=captured.position,
        manifest=manifest,
    )
    named.save(output, compression=LZMA)
    return named


def _scenes() -> list[str]:
    """Held-out Shakespeare as runs of consecutive speeches, each at least `_SCENE` characters."""
    scenes, speeches = [], ""
    for speech in documents("shakespeare")[0].split("\n\n"):
        speeches = f"{speeches}\n\n{speech}" if speeches else speech
        if len(speeches) >= _SCENE:
            scenes.append(speeches)
            speeches = ""
    return scenes


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description="Capture the full gates of the tiny MoE.")
    parser.add_argument("--weights", type=Path, default=MODEL, help="folder; default the shipped weights")
    parser.add_argument("--to", type=Path, default=DATA, help="folder; default the package's own data")
    options = parser.parse_args(arguments)
    model, card = load_weights(options.weights), read_card(options.weights)
    options.to.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(MODEL / "LICENSE", options.to / "LICENSE")
    (options.to / "PROVENANCE.md").write_text(_PROVENANCE, encoding="utf-8")
    for name in HELD_OUT:
        found = capture_gates(
            name,
            options.to / f"{name}.npz",
            model=model,
            revision=f"sha256:{card['sha256']}",
            progress=sys.stderr.isatty(),
        )
        print(f"{name}: {found!r}, {(options.to / f'{name}.npz').stat().st_size / 1e3:,.0f} kB")


if __name__ == "__main__":
    main()
