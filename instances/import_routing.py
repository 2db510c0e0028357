"""Convert the captured routing of others into the routing files shipped here.

``python -m wdmoe_opt.instances.import_routing SOURCE_DIR [DATA_DIR]`` reads the folders named after the
upstream repositories (``ESFT``, ``GPT-OSS-MoE-ExpertFingerprinting``, ``mixtral-vis-moe``, ``OLMoE``),
each with the arrays that its PROVENANCE.md describes, and rewrites ``data/routing``. Candidates are put
in order of falling weight; no number changes. The same source gives the same bytes.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

from wdmoe_opt.archive import LZMA
from wdmoe_opt.instances.load_file import LoadFile, exact_loads
from wdmoe_opt.instances.routing_file import RoutingFile, rank_candidates
from wdmoe_opt.instances.token_types import TokenTypes

DATA = Path(__file__).parent / "data" / "routing"

DEEPSEEK_PROMPTS = {
    "intent": "Chinese sentences to JSON intents",
    "law": "Chinese court cases",
    "summary": "Chinese customer calls",
    "translation": "Cherokee to English",
}

_CONVERTED = "by `wdmoe_opt.instances.import_routing`"
ROUTING_CHANGES = (
    f"Converted to this package's routing file format {_CONVERTED}: "
    "blocks first, each token's experts in order of falling weight (among equal weights the lower "
    "expert first), weights as float32. No weight or expert was changed or left out. "
    "Routing outputs only, no model weights."
)
MIXTRAL_CHANGES = (
    f"File here: `mmlu-loads.npz`, made {_CONVERTED}: for every question the smallest number of tokens T "
    "that makes all 256 shares times 2T whole, and the whole loads that follow, uint16 "
    "(subjects, questions, blocks, experts). Loads over 2T give back the source's float32 shares."
)
OLMOE_CHANGES = (
    f"Files here, made {_CONVERTED}: `domain-loads.npz`, the loads (`expert_counts`) of OLMoE and its SFT "
    "and DPO variants; `token-types.npz`, the choices per token type of OLMoE. Counts unchanged. Left out: "
    "Mixtral's counts, first choices only (`_top1`), and pairs across layers."
)

#: Name of each prompt set of OLMoE here, with model and domain in the source.
OLMOE_PARTS = {
    "arxiv": ("olmoe", "arxiv"),
    "book": ("olmoe", "book"),
    "c4": ("olmoe", "c4"),
    "github": ("olmoe", "github"),
    "wikipedia": ("olmoe", "wikipedia"),
    "tulu": ("olmoe", "tulu"),
    "tulu-sft": ("olmoe-sft", "tulu"),
    "tulu-dpo": ("olmoe-dpo", "tulu"),
}
TOKEN_TYPE_DOMAINS = ("arxiv", "book", "github", "wikipedia")


def main(arguments: list[str]) -> None:
    """Command line of this module."""
    source = Path(arguments[0])
    target = Path(arguments[1]) if len(arguments) > 1 else DATA
    for task, prompts in DEEPSEEK_PROMPTS.items():
        folder = _prepare(source / "ESFT", target / "deepseek-v2-lite", ROUTING_CHANGES)
        _import_deepseek(source / "ESFT" / f"{task}.npz", prompts).save(
            folder / f"{task}.npz", compression=LZMA
        )
    upstream = source / "GPT-OSS-MoE-ExpertFingerprinting"
    folder = _prepare(upstream, target / "gpt-oss-20b", ROUTING_CHANGES)
    _import_gpt_oss(upstream).save(folder / "sequences.npz", compression=LZMA)
    upstream = source / "mixtral-vis-moe"
    folder = _prepare(upstream, target / "mixtral-8x7b", MIXTRAL_CHANGES)
    _import_mixtral(upstream).save(folder / "mmlu-loads.npz")
    upstream = source / "OLMoE"
    folder = _prepare(upstream, target / "olmoe", OLMOE_CHANGES)
    _import_olmoe_loads(upstream).save(folder / "domain-loads.npz")
    _import_olmoe_types(upstream).save(folder / "token-types.npz")


def _prepare(source: Path, target: Path, changes: str) -> Path:
    """Folder of a family with its licence and provenance."""
    target.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source / "LICENSE", target / "LICENSE")
    text = (source / "PROVENANCE.md").read_text(encoding="utf-8").rstrip()
    (target / "PROVENANCE.md").write_text(f"{text}\n\n## Changed for this package\n{changes}\n", "utf-8")
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


def _import_mixtral(folder: Path) -> LoadFile:
    with np.load(folder / "mixtral-8x7b__mmlu-57x20.npz", allow_pickle=False) as source:
        parts = sorted(source.files)
        loads = np.stack([exact_loads(source[part], 2) for part in parts]).astype(np.uint16)
    manifest = {
        "model": "Mixtral-8x7B (the source does not say whether base or instruct)",
        "revision": None,
        "model_licence": "Apache-2.0 (model weights; none here)",
        "data_licence": "Apache-2.0",
        "weights_meaning": "none: tokens per expert only",
        "prompts": "MMLU test, the first 20 questions of each of 57 subjects",
        "prompt_hash": None,
        "source": "github.com/ajtejankar/mixtral-vis-moe",
        "source_commit": "5c2f185d579721ee17d7a8111a221ee9d41c9ac8",
        "width": 4096,
        "expert_width": 14336,
        "top_k": 2,
        "mode": "loads",
        "layers": list(range(32)),
        "parts": parts,
        "capture": None,
    }
    return LoadFile(loads, manifest)


def _olmoe_manifest(weights_meaning: str, prompts: str, parts: list[str]) -> dict[str, Any]:
    return {
        "model": "OLMoE-1B-7B-0924 (allenai/OLMoE-1B-7B-0924)",
        "revision": None,
        "model_licence": "Apache-2.0 (model weights; none here)",
        "data_licence": "Apache-2.0",
        "weights_meaning": weights_meaning,
        "prompts": prompts,
        "prompt_hash": None,
        "source": "github.com/allenai/OLMoE",
        "source_commit": "357454f4f647385839c0ff6b99a688dc7cd9c13f",
        "width": 2048,
        "expert_width": 1024,
        "top_k": 8,
        "layers": [0, 7, 15],
        "parts": parts,
        "capture": None,
    }


def _import_olmoe_loads(folder: Path) -> LoadFile:
    counts = json.loads((folder / "expert_counts.json").read_text(encoding="utf-8"))["counts"]
    loads = [counts[model]["expert_counts"][domain] for model, domain in OLMOE_PARTS.values()]
    prompts = (
        "205,000 to 209,000 tokens of each domain in windows of 2,048; -sft and -dpo: variants of the model"
    )
    manifest = _olmoe_manifest("none: tokens per expert only", prompts, list(OLMOE_PARTS))
    return LoadFile(np.array(loads, dtype=np.uint32)[:, None], {**manifest, "mode": "loads"})


def _import_olmoe_types(folder: Path) -> TokenTypes:
    with np.load(folder / "token_type_selection_counts.npz", allow_pickle=False) as source:
        counts = [source[f"olmoe__{domain}__counts"] for domain in TOKEN_TYPE_DOMAINS]
        ids = [source[f"olmoe__{domain}__token_id"] for domain in TOKEN_TYPE_DOMAINS]
    domain = np.repeat(np.arange(len(ids), dtype=np.uint8), [found.size for found in ids])
    meaning = "averages: share of a token type's choices that went to each expert, not gates of single tokens"
    prompts = "token types seen at least 30 times in a domain of 208,896 tokens"
    manifest = _olmoe_manifest(meaning, prompts, list(TOKEN_TYPE_DOMAINS))
    return TokenTypes(
        np.concatenate(counts, axis=1), domain, np.concatenate(ids), {**manifest, "mode": "types"}
    )


if __name__ == "__main__":
    main(sys.argv[1:])
