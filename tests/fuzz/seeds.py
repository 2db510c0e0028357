"""Good inputs of every target, where the fuzzer starts: ``python tests/fuzz/seeds.py`` writes them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from targets import TARGETS, framed

import wdmoe_opt as wo
from wdmoe_opt.archive import dump_json
from wdmoe_opt.instances.devices import load_profile
from wdmoe_opt.instances.load_file import LoadFile
from wdmoe_opt.instances.routing_file import RoutingFile
from wdmoe_opt.instances.token_types import TokenTypes
from wdmoe_opt.testing.arrays import Shape, loads_arrays, measured_arrays, random_arrays

CORPUS = Path(__file__).parent / "corpus"
SOURCE = {
    "model": "toy", "revision": None, "model_licence": None, "weights_meaning": "softmax", "prompts": "none",
    "prompt_hash": None, "capture": None, "width": 8, "expert_width": 4, "parts": ["a"], "layers": [0],
    "top_k": 1,
}  # fmt: skip
TOML = """name = "toy"
[routing]
family = "gpt-oss-20b-decode"
tokens = 4
blocks = "0-1"
[fleet]
name = "orin-mix-8"
precision = "int4"
[channel]
name = "cell-100mhz"
state = 1
per_block = true
distances_m = [60.0, 90.5]
[payload]
bits_per_value = 8
[placement]
rule = "balanced"
"""
SUITE = """name = "toy"
seeds = 2
[defaults]
time_limit = 2.0
[request]
min_retention = 0.9
[[contestants]]
method = "greedy"
options = {}
tasks = ["joint"]
[[cases]]
name = "b{block}"
instance = "gpt-oss-20b-decode#{block}"
selection = { state = "{seed}" }
axis = "block"
axis_value = "{block}"
each = { block = [0, 1] }
"""


def put(target: str, name: str, data: bytes) -> None:
    """Write a seed that its target takes."""
    folder = CORPUS / target
    folder.mkdir(parents=True, exist_ok=True)
    assert TARGETS[target](data), (target, name)
    (folder / name).write_bytes(data)


def main() -> None:
    """Write every seed."""
    shape = Shape(blocks=2, tokens=2, devices=2, top_k=1, columns=2)
    makers = {"radio": random_arrays, "loads": loads_arrays, "measured": measured_arrays}
    path = CORPUS / "seed.npz"
    for name, make in makers.items():
        inst = wo.Instance.from_arrays(**make(shape, 1), name=name, provenance={"a": [1, None]})
        inst.save(path)
        put("archive", name, path.read_bytes())
        put("instance", name, framed(path))
        inst.save(path.with_suffix(".json"))
        put("instance-json", name, path.with_suffix(".json").read_bytes())
    path.with_suffix(".json").unlink()
    inst = wo.Instance.from_arrays(**random_arrays(shape, 1))
    for method in ("topk", "certified", "exact"):
        wo.solve(inst, method).save(path)
        put("solution", method, framed(path))
    ids, labels = np.array([[[0, 1], [1, 0]]]), np.arange(2)
    weights = np.array([[[0.6, 0.4], [0.9, 0.1]]])
    RoutingFile(ids, weights, 1, 2, labels, labels, SOURCE).save(path)
    put("routing", "routing", framed(path))
    LoadFile(np.array([[[[2, 1]]]], dtype=np.uint16), SOURCE).save(path)
    put("routing", "loads", framed(path))
    counts = np.array([[[2, 1]]], dtype=np.uint16)
    TokenTypes(counts, np.zeros(1, np.uint8), np.zeros(1, np.uint32), SOURCE).save(path)
    put("routing", "types", framed(path))
    path.unlink()
    put("scenario-toml", "all", TOML.encode())
    put("scenario-json", "link", dump_json(
        {"routing": {"family": "gpt-oss-20b-decode"}, "channel": {"token_time_link": [1e-3] * 8}}
    ).encode())  # fmt: skip
    put("suite", "all", SUITE.encode())
    put("profile", "thor", json.dumps(load_profile("agx-thor").to_dict()).encode())


if __name__ == "__main__":
    main()
