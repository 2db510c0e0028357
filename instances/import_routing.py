"""Convert the captured routing of others into the routing files shipped here.

``python -m wdmoe_opt.instances.import_routing SOURCE_DIR [DATA_DIR]`` reads the folders named after the
upstream repositories (``ESFT``, ``GPT-OSS-MoE-ExpertFingerprinting``), each with the arrays that its
PROVENANCE.md describes, and rewrites ``data/routing``. Candidates are put in order of falling weight;
no number changes. The same source gives the same bytes.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

from wdmoe_opt.archive import LZMA
from wdmoe_opt.instances.routing_file import RoutingFile, rank_candidates

DATA = Path(__file__).parent / "data" / "routing"

DEEPSEEK_PROMPTS = {
    "intent": "Chinese sentences to JSON intents",
    "law": "Chinese court cases",
    "summary": "Chinese customer calls",
    "translation": "Cherokee to English",
}


def main(arguments: list[str]) -> None:
    """Command line of this module."""
    source = Path(arguments[0])
    target = Path(arguments[1]) if len(arguments) > 1 else DATA
    for task, prompts in DEEPSEEK_PROMPTS.items():
        folder = _prepare(source / "ESFT", target / "deepseek-v2-lite")
        _import_deepseek(source / "ESFT" / f"{task}.npz", prompts).save(
            folder / f"{task}.npz", compression=LZMA
        )
    folder = _prepare(source / "GPT-OSS-MoE-ExpertFingerprinting", target / "gpt-oss-20b")
    _import_gpt_oss(source / "GPT-OSS-MoE-ExpertFingerprinting").save(
        folder / "sequences.npz", compression=LZMA
    )


def _prepare(source: Path, target: Path) -> Path:
    """Folder of a family with its licence and provenance."""
    target.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source / "LICENSE", target / "LICENSE")
    text = (source / "PROVENANCE.md").read_text(encoding="utf-8").rstrip()
    text += (
        "\n\n## Changed for this package\n"
        "Converted to this package's routing file format by `wdmoe_opt.instances.import_routing`: "
        "blocks first, each token's experts in order of falling weight (among equal weights the lower "
        "expert first), weights as float32. No weight or expert was changed or left out. "
        "Routing outputs only, no model weights.\n"
    )
    (target / "PROVENANCE.md").write_text(text, encoding="utf-8")
    return target


def _positions(sequence: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Running index of each token within its sequence; sequences are contiguous."""
    starts = np.flatnonzero(np.r_[True, sequence[1:] != sequence[:-1]])
    lengths = np.diff(np.r_[starts, sequence.size])
    return np.arange(sequence.size) - np.repeat(starts, lengths)


def _import_deepseek(path: Path, prompts: str) -> RoutingFile:
    with np.load(path, allow_pickle=False) as source:
        ids, gate = source["expert_ids"], source["gate_e4"]
        sequence = np.asarray(source["sequence"], dtype=np.int32)
    ids, weights = rank_candidates(ids.transpose(1, 0, 2), gate.transpose(1, 0, 2) / 10_000)
    manifest = {
        "model": "DeepSeek-V2-Lite (deepseek-ai/ESFT-vanilla-lite)",
        "revision": None,
        "model_licence": "DeepSeek model licence (model weights; none here)",
        "data_licence": "MIT",
        "weights_meaning": "softmax over 64 routed experts, the six largest, not renormalised; four decimals",
        "weight_outside": "1 minus a token's sum",
        "prompts": f"{prompts}; prefill of prompt and reference answer, as in the source",
        "prompt_hash": None,
        "source": "github.com/deepseek-ai/ESFT",
        "source_commit": "579a7711e4b332b4c57b47e378a0cf240d85caa6",
        "width": 2048,
        "expert_width": 1408,
        "mode": "prefill",
        "capture": None,
    }
    return RoutingFile(
        ids, weights, top_k=6, experts=64, sequence=sequence, position=_positions(sequence), manifest=manifest
    )


def _import_gpt_oss(folder: Path) -> RoutingFile:
    with np.load(folder / "gpt-oss-20b.npz", allow_pickle=False) as source:
        ids, gate = source["expert_ids"], source["gate"]
        sequence = np.asarray(source["sequence"], dtype=np.int32)
        position = np.asarray(source["position"], dtype=np.int32)
    ids, weights = rank_candidates(ids.transpose(1, 0, 2), gate.transpose(1, 0, 2))
    sequences = json.loads((folder / "sequences.json").read_text(encoding="utf-8"))
    manifest = {
        "model": "gpt-oss-20b (openai/gpt-oss-20b)",
        "revision": None,
        "model_licence": "Apache-2.0 (model weights; none here)",
        "data_licence": "Apache-2.0",
        "weights_meaning": "softmax over the four chosen logits; no weight exists outside the four",
        "weight_outside": "0",
        "prompts": "12 MMLU, 10 MMLU-Pro, 1 Polyglot-or-Not, 1 Tulu-3; greedy decoding, "
        "generated tokens only",
        "prompt_hash": None,
        "source": "github.com/AmanPriyanshu/GPT-OSS-MoE-ExpertFingerprinting",
        "source_commit": "72b368f60045221f21eeb65debb27d58de92e565",
        "width": 2880,
        "expert_width": 2880,
        "mode": "decode",
        "capture": None,
        "sequences": sequences,
    }
    return RoutingFile(
        ids, weights, top_k=4, experts=32, sequence=sequence, position=position, manifest=manifest
    )


if __name__ == "__main__":
    main(sys.argv[1:])
