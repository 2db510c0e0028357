"""What deciding costs inside a model: ``python -m wdmoe_opt.benchmarks.in_the_loop [--json]``.

A random Mixtral (hidden 256, 4 blocks, 8 experts, top-2; extra ``capture``) with experts and payload priced
at the sizes of Mixtral 8x7B, on eight boards in the cell of paper A while they move, floor 0.9. Prefill of
512 tokens, and decoding one token a step for 1, 16 and 64 sequences. Wall-clock medians over blocks, warm,
one torch thread.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np

from wdmoe_opt.errors import UnsupportedError
from wdmoe_opt.instances.channels import channel_states
from wdmoe_opt.integrations.transformers import WirelessExperts, model_instance

SIZES = {
    "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "vocab_size": 512,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024,
}  # fmt: skip
POLICIES = ("session", "greedy", "wdmoe")
#: Sequences, tokens of each, and tokens written.
RUNS = {
    "prefill 512": (1, 512, 1),
    "decode 1": (1, 8, 20),
    "decode 16": (16, 8, 20),
    "decode 64": (64, 8, 20),
}


def run() -> list[dict[str, Any]]:
    """Every policy in every situation."""
    try:
        import torch
        import transformers
    except ImportError:
        raise UnsupportedError(
            "this benchmark needs torch and transformers; install wdmoe_opt[capture]"
        ) from None
    torch.set_num_threads(1)
    transformers.set_seed(0)
    model = transformers.MixtralForCausalLM(transformers.MixtralConfig(**SIZES)).eval()
    for layer in model.model.layers:  # as sharp as a trained gate: untrained ones weigh all experts alike
        torch.nn.init.normal_(layer.mlp.gate.weight, std=0.1)
    fleet = model_instance(model, width=4096, expert_width=14336)
    channel = channel_states("cell-100mhz-moving", 8, 1000)
    rows = []
    for policy in POLICIES:
        for name, (sequences, length, written) in RUNS.items():
            tokens = torch.randint(3, 512, (sequences, length), generator=torch.Generator().manual_seed(1))
            network = WirelessExperts(model, fleet, policy=policy, channel=channel, min_retention=0.9)
            with network:
                for _ in range(3):
                    model.generate(
                        tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=written,
                        do_sample=False, eos_token_id=None, pad_token_id=0,
                    )  # fmt: skip
            records = network.report.records[len(network.report.records) // 3 :]
            rows.append(_summary(policy, name, [r for r in records if written == 1 or r.tokens == sequences]))
    return rows


def _summary(policy: str, name: str, records: list[Any]) -> dict[str, Any]:
    """Medians over blocks, in ms."""
    row: dict[str, Any] = {"policy": policy, "situation": name}
    for field in ("latency", "solve_seconds", "gate_seconds", "other_seconds"):
        row[f"{field.removesuffix('_seconds')}_ms"] = 1e3 * float(
            np.median([getattr(record, field) for record in records])
        )
    return row


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    asked, rows = parser.parse_args(), run()
    if asked.json:
        print(json.dumps(rows, indent=1))
        return
    print(
        "policy   situation    block on the network  deciding, ms  of the block  gate, ms  moved, priced, ms"
    )
    for row in rows:
        print(
            f"{row['policy']:9}{row['situation']:13}{row['latency_ms']:17.3f} ms{row['solve_ms']:14.3f}"
            f"{row['solve_ms'] / row['latency_ms']:14.2%}{row['gate_ms']:10.3f}{row['other_ms']:19.3f}"
        )


if __name__ == "__main__":
    main()
