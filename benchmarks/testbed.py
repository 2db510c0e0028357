"""Learned against known latencies on measured Wi-Fi: ``python -m wdmoe_opt.benchmarks.testbed [--json]``.

Captured routing of DeepSeek-V2-Lite (26 blocks, 64 experts, top-6) in batches of 16 tokens, four boards on
the Wi-Fi trace, from several seconds of the trace on. Blind policies neither know times nor outages: what
they send to a device out of reach waits until it is back. The others know the present second.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np

import wdmoe_opt as wo
from wdmoe_opt.instances.channels import ChannelSequence, wifi_states
from wdmoe_opt.network import BlockCall, DeviceHistory, HistoryPolicy, LoopReport, WirelessNetwork
from wdmoe_opt.solvers.testbed import Algorithm2

INSTANCE, TOKENS, PASSES = "deepseek-v2-lite-law/orin-mix-4/feup-wifi", 16, 8
STARTS = range(0, 1800, 100)
SENT = Algorithm2(repeat=True)


def plain(call: BlockCall) -> Any:
    """Every top-k expert, whatever the channel."""
    return call.expert_ids >= 0


def policies(devices: int) -> dict[str, dict[str, Any]]:
    """Arguments of a network by the policy's name; each with a history of its own."""
    return {
        "plain top-k, blind": {"policy": plain},
        "Algorithm 2, smoothed history": {"policy": HistoryPolicy(DeviceHistory(devices), SENT)},
        "Algorithm 2, window history": {
            "policy": HistoryPolicy(DeviceHistory(devices, rule="window"), SENT)
        },
        "plain top-k, knows outages": {"policy": "topk-uniform"},
        "Algorithm 2, knows the second": {
            "policy": "wdmoe-testbed",
            "policy_options": {"repeat": True},
        },
        "greedy at 0.97, knows the second": {
            "policy": "greedy",
            "min_retention": 0.97,
            "outage": "wait",
        },
    }  # fmt: skip


def play(inst: wo.Instance, trace: ChannelSequence, **options: Any) -> LoopReport:
    """Send the batches of an instance through the trace."""
    assert inst.expert_ids is not None
    assert inst.gate_weights is not None
    network = WirelessNetwork(inst, channel=trace, **options)
    for number in range(PASSES):
        batch = slice(number * TOKENS, (number + 1) * TOKENS)
        network.begin_pass(TOKENS)
        for block in range(inst.blocks):
            network.send(block, inst.expert_ids[block, batch], inst.gate_weights[block, batch])
    return network.report


def run() -> list[dict[str, Any]]:
    """Every policy from every start."""
    inst = wo.load_instance(INSTANCE, tokens=TOKENS * PASSES)
    assert inst.bits_down is not None
    trace = wifi_states(bits_down=inst.bits_down)
    rows = []
    for start in STARTS:
        for name, options in policies(inst.devices).items():
            report = play(inst, trace[start:], **options)
            rows.append(
                {
                    "start": start,
                    "policy": name,
                    "latency_s": report.latency,
                    "retention": report.retention,
                    "outages": report.outages,
                }
            )
    return rows


def main() -> None:
    """Print times relative to blind plain top-k, quartiles over the starts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print every run")
    asked, rows = parser.parse_args(), run()
    if asked.json:
        print(json.dumps(rows, indent=1))
        return
    names = list(dict.fromkeys(row["policy"] for row in rows))
    table = {name: [row for row in rows if row["policy"] == name] for name in names}
    base = np.array([row["latency_s"] for row in table[names[0]]])
    print(f"{'policy':34}time over blind plain: 25 %  50 %  75 %  retention  seconds waited for")
    for name, found in table.items():
        low, middle, high = np.quantile([row["latency_s"] for row in found] / base, [0.25, 0.5, 0.75])
        kept = np.mean([row["retention"] for row in found])
        waits = np.mean([row["outages"] for row in found])
        print(f"{name:34}{low:27.2f}{middle:6.2f}{high:6.2f}{kept:11.4f}{waits:20.1f}")


if __name__ == "__main__":
    main()
