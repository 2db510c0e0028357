"""The shipped weights: int8 with one scale per row, in one safetensors file, and a card that describes them.

* ``python -m wdmoe_opt.instances.tiny_moe.weights export --run DIR``: write weights and card of a finished
  training run, scored as they will be loaded;
* ``... weights check``: score the shipped weights again and compare with the card;
* ``... weights unpack DIR``: a folder that ``from_pretrained`` of transformers reads.

Matrices are rounded; norms and the routers, which decide, stay in float32.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from wdmoe_opt.archive import (
    ArchiveError,
    parse_json,
    read_json,
    regular_file,
    write_atomically,
    write_text,
)
from wdmoe_opt.errors import InputError, InstanceFileError
from wdmoe_opt.instances.tiny_moe import checkpoint
from wdmoe_opt.instances.tiny_moe.evaluate import Score, score_all
from wdmoe_opt.instances.tiny_moe.model import TIED, Shape, libraries, model_of
from wdmoe_opt.instances.tiny_moe.texts import HELD_OUT, TRAINING, text_hash
from wdmoe_opt.instances.tiny_moe.tokens import tokenizer
from wdmoe_opt.instances.tiny_moe.train import Plan

DATA = Path(__file__).parents[1] / "data" / "model" / "tiny-moe"
WEIGHTS, CARD = "weights.safetensors", "card.json"
SIZE_LIMIT = 8_000_000
#: Suffix of the scales that belong to an int8 tensor.
SCALE = ".scale"
#: How far a score may be from the card on another machine: other sums, other roundings.
TOLERANCE = 1e-3
_EXACT = (".mlp.gate.weight", "norm.weight")


def pack(state: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors to store of a model's state: int8 rows with float32 scales, or as they are.

    Parameters
    ----------
    state : mapping of float tensors
        ``model.state_dict()``; the output head is tied to the embedding and left out.

    Returns
    -------
    dict of tensors
        int8 (..., columns) by name, with float32 (..., 1) under the name and `SCALE`.
    """
    torch, _ = libraries()
    packed = {}
    for name, value in state.items():
        if name == TIED:
            continue
        if name.endswith(_EXACT):
            packed[name] = value.float().contiguous()
            continue
        scale = value.float().abs().amax(dim=-1, keepdim=True).clamp_min(1e-12) / 127.0
        packed[name] = (value.float() / scale).round().to(torch.int8).contiguous()
        packed[name + SCALE] = scale
    return packed


def unpack(packed: Mapping[str, Any]) -> dict[str, Any]:
    """Float32 state of a model from what `pack` made."""
    state = {
        name: value.float() * packed[name + SCALE] if name + SCALE in packed else value
        for name, value in packed.items()
        if not name.endswith(SCALE)
    }
    return {**state, TIED: state["model.embed_tokens.weight"]}


def save_weights(model: Any, folder: Path, shape: Shape) -> Path:
    """Write the weights of a model; the path of the file.

    Raises
    ------
    InputError
        If the file would be larger than `SIZE_LIMIT`.
    """
    from safetensors.torch import save

    content = save(pack(model.state_dict()), metadata={"shape": json.dumps(shape.as_dict())})
    if len(content) > SIZE_LIMIT:
        raise InputError("model", f"its weights must fit into {SIZE_LIMIT} bytes", value=len(content))
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / WEIGHTS, lambda stream: stream.write(content))
    return folder / WEIGHTS


def load_weights(folder: str | Path = DATA) -> Any:
    """MixtralForCausalLM in float32 from a weights file, in evaluation mode.

    Parameters
    ----------
    folder : str or Path
        Where the file is; default the shipped one.

    Raises
    ------
    InstanceFileError
        If the file is missing, no weights file, or not what a card beside it says.
    UnsupportedError
        If the extra ``capture`` is not installed.
    """
    libraries()
    from safetensors import SafetensorError, safe_open

    folder = Path(folder)
    path = regular_file(folder / WEIGHTS, SIZE_LIMIT)
    if (folder / CARD).is_file() and read_card(folder)["sha256"] != _sha256(path):
        raise InstanceFileError(f"{path}: content does not match the hash in {CARD}")
    try:
        with safe_open(path, framework="pt") as file:
            shape = Shape.read(parse_json((file.metadata() or {}).get("shape", "null")))
            packed = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return model_of(shape, unpack(packed))
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ArchiveError(path, f"is not a weights file of the tiny MoE ({reason})") from None


def read_card(folder: str | Path = DATA) -> dict[str, Any]:
    """Card of the weights in a folder.

    Raises
    ------
    InstanceFileError
        If it is missing, or no card.
    """
    path = Path(folder) / CARD
    card = read_json(path, SIZE_LIMIT)
    try:
        stated = (card["sha256"], *(card["held_out"][name]["bits_per_byte"] for name in HELD_OUT))
    except (KeyError, TypeError):
        stated = ()
    if not stated or not isinstance(stated[0], str) or not all(isinstance(x, float) for x in stated[1:]):
        raise ArchiveError(path, "must state sha256, and bits_per_byte of each text that was held out")
    return dict(card)


def export(
    run: Path,
    folder: Path = DATA,
    *,
    unfinished: bool = False,
    limit: int | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Write weights and card of a training run.

    Parameters
    ----------
    run : Path
        Folder of the run.
    folder : Path
        Where to; default where the shipped ones are.
    unfinished : bool
        Allow a run that has steps left.
    limit : int, optional
        Batches of each held-out text to score, see `evaluate.score`; default all.
    progress : bool
        Show a progress bar.

    Returns
    -------
    dict
        The card.

    Raises
    ------
    InputError
        If the run has not ended, or the weights are too large.
    """
    state = checkpoint.load(run)
    plan = asdict(Plan.read(state["plan"]))
    if state["step"] < plan["steps"] and not unfinished:
        raise InputError("run", f"has made {state['step']} of {plan['steps']} steps", value=str(run))
    model = checkpoint.load_model(run)
    before = score_all(model, limit=limit, progress=progress)
    (folder / CARD).unlink(missing_ok=True)
    path = save_weights(model, folder, Shape(**plan["shape"]))
    scores = score_all(load_weights(folder), limit=limit, progress=progress)
    tokens = state["step"] * plan["batch"] * plan["shape"]["context"]
    card = {
        "model": "tiny-moe, by the wdmoe_opt authors",
        "architecture": "Mixtral (transformers.MixtralForCausalLM)",
        "licence": "Apache-2.0",
        "parameters": sum(value.numel() for value in model.parameters()),
        "stored_as": "int8 with a float32 scale per row; norms and routers float32",
        "sha256": _sha256(path),
        "training_texts": {name: text_hash(name) for name in TRAINING},
        "plan": plan,
        "steps": state["step"],
        "tokens": tokens,
        "seconds": round(state["seconds"]),
        "machine": _machine(),
        "packages": {name: version(name) for name in ("torch", "transformers", "tokenizers")},
        "batches_limit": limit,
        "held_out": {
            name: {
                **_rounded(one),
                "text": text_hash(name),
                "bits_per_byte_before_rounding": round(before[name].bits_per_byte, 4),
            }
            for name, one in scores.items()
        },
    }
    text = json.dumps(card, indent=2) + "\n"
    write_text(folder / CARD, text)
    return card


def check(folder: str | Path = DATA, *, progress: bool = False) -> dict[str, dict[str, float]]:
    """Score the weights in a folder again, on the batches that its card was made from.

    Returns
    -------
    dict
        By held-out text: bits per byte as ``stated`` by the card, as ``found``, their ``difference``.

    Raises
    ------
    InstanceFileError
        If file and card do not fit, or a difference is beyond `TOLERANCE`.
    """
    card = read_card(folder)
    scores = score_all(load_weights(folder), limit=card.get("batches_limit"), progress=progress)
    report = {}
    for name in HELD_OUT:
        stated, found = card["held_out"][name]["bits_per_byte"], scores[name].bits_per_byte
        report[name] = {"stated": stated, "found": round(found, 5), "difference": round(found - stated, 5)}
        if abs(found - stated) > TOLERANCE:
            raise InstanceFileError(
                f"{name}: {found:.4f} bits per byte, the card states {stated:.4f} (tolerance {TOLERANCE})"
            )
    return report


def save_pretrained(folder: str | Path, *, source: str | Path = DATA) -> None:
    """Write model and tokenizer as a folder that ``from_pretrained`` of transformers reads."""
    load_weights(source).save_pretrained(folder)
    tokenizer().save_pretrained(folder)


def _rounded(score: Score) -> dict[str, Any]:
    return {
        key: [round(end, 5) for end in value] if isinstance(value, tuple) else round(value, 5)
        for key, value in asdict(score).items()
    }


def _machine() -> str:
    cpus = Path("/proc/cpuinfo")
    lines = cpus.read_text(encoding="utf-8").splitlines() if cpus.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{platform.system()}, {os.cpu_count()} cores of {names[0] if names else platform.machine()}"


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description="Export, check and unpack the weights of the tiny MoE.")
    commands = parser.add_subparsers(dest="command", required=True)
    exporting = commands.add_parser("export", help="write weights and card of a training run")
    exporting.add_argument("--run", type=Path, required=True, help="folder of the run")
    exporting.add_argument("--to", type=Path, default=DATA, help="folder; default the package's own data")
    exporting.add_argument("--unfinished", action="store_true", help="allow a run with steps left")
    exporting.add_argument("--batches", type=int, help="batches of each text to score; default all")
    checking = commands.add_parser("check", help="score the weights again and compare with the card")
    checking.add_argument("--folder", type=Path, default=DATA, help="default the shipped weights")
    unpacking = commands.add_parser("unpack", help="write a folder for from_pretrained")
    unpacking.add_argument("folder", type=Path)
    options = parser.parse_args(arguments)
    visible = sys.stderr.isatty()
    if options.command == "export":
        found = export(
            options.run, options.to, unfinished=options.unfinished, limit=options.batches, progress=visible
        )
        print(json.dumps(found, indent=2))
    elif options.command == "check":
        print(json.dumps(check(options.folder, progress=visible), indent=2))
    else:
        save_pretrained(options.folder)


if __name__ == "__main__":
    main()
