"""Held-out text through the model, its experts behind the simulated network."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib.metadata import version
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from wdmoe_opt.benchmarks.what_dropping_costs.controls import CONTROLS, Control
from wdmoe_opt.benchmarks.what_dropping_costs.plan import (
    CHANNEL,
    EXPERT_WIDTH,
    FLEET,
    STRIDE,
    WIDTH,
    Curve,
    Plan,
)
from wdmoe_opt.benchmarks.what_dropping_costs.results import MEASURES, Results
from wdmoe_opt.errors import InputError
from wdmoe_opt.instances.channels import channel_states
from wdmoe_opt.instances.tiny_moe.evaluate import count, held_out_batches
from wdmoe_opt.instances.tiny_moe.model import libraries
from wdmoe_opt.instances.tiny_moe.texts import text_hash
from wdmoe_opt.instances.tiny_moe.tokens import token_bytes
from wdmoe_opt.instances.tiny_moe.weights import WEIGHTS, load_weights
from wdmoe_opt.integrations.transformers import WirelessExperts, model_instance
from wdmoe_opt.validation import IntArray


def about(plan: Plan, weights: Path) -> dict[str, Any]:
    """What identifies model, texts and network; the bytes of each pass by text."""
    context = int(load_weights(weights).config.max_position_embeddings)
    passes = {text: batches(plan, text, context) for text in plan.texts}
    return {
        "weights": f"sha256:{hashlib.sha256((weights / WEIGHTS).read_bytes()).hexdigest()}",
        "plan": plan.as_dict(),
        "texts": {text: text_hash(text) for text in plan.texts},
        "tokens_per_pass": plan.windows * context,
        "bytes": {
            text: [int(token_bytes()[b[:, 1:]].sum()) for b in found] for text, found in passes.items()
        },
        "packages": {name: version(name) for name in ("torch", "transformers")},
    }


def batches(plan: Plan, text: str, context: int) -> list[IntArray]:
    """Tokens of each forward pass, (windows, context + 1), evenly spread over the text.

    Raises
    ------
    InputError
        If the text is too short.
    """
    full = [b for b in held_out_batches(text, context, plan.windows) if len(b) == plan.windows]
    if len(full) < plan.passes:
        raise InputError("passes", f"must be at most {len(full)}, what {text} has", value=plan.passes)
    return [full[i] for i in np.linspace(0, len(full) - 1, plan.passes).astype(int)]


class Bench:
    """A model and a network to put it in.

    Parameters
    ----------
    model : transformers.MixtralForCausalLM
    plan : Plan
    """

    def __init__(self, model: Any, plan: Plan) -> None:
        self.model, self.plan = model, plan
        self.fleet = model_instance(
            model, fleet=FLEET, channel=CHANNEL, width=WIDTH, expert_width=EXPERT_WIDTH
        )
        # Every policy meets the same states, one per forward pass.
        states = channel_states(CHANNEL, self.fleet.devices, STRIDE * plan.passes)
        self.states = list(islice(states, 0, None, STRIDE))

    def measure(self, text: str, curve: Curve, setting: float) -> dict[str, Any]:
        """Run a text through a policy at a setting; `MEASURES` of each pass, and sums."""
        torch, _ = libraries()
        own = curve.policy in CONTROLS
        network = WirelessExperts(
            self.model,
            self.fleet,
            policy=Control(curve.policy) if own else curve.policy,
            policy_options=None if own else curve.options_at(setting),
            channel=self.states,
            advance="pass",
            renormalise=curve.renormalise,
            **curve.request_at(setting),
        )
        began, counts = perf_counter(), []
        with torch.inference_mode(), network:
            for batch in batches(self.plan, text, self.model.config.max_position_embeddings):
                tokens = torch.from_numpy(batch)
                logits = self.model(input_ids=tokens[:, :-1], use_cache=False).logits
                counts.append(count(logits, tokens[:, 1:]))
        report = network.report
        found: dict[str, Any] = {
            "nats": [one.bits * np.log(2.0) for one in counts],
            "hits": [one.hits for one in counts],
            "latency_ms": 1e3 * report.pass_latency,
            "retention": report.per_pass("retention", np.mean),
            "experts": report.per_pass("experts", np.mean),
        }
        rounded = {
            name: [round(float(v), digits) if digits else int(v) for v in found[name]]
            for name, digits in MEASURES.items()
        }
        ends = {"floors_missed": report.floors_missed, "seconds": round(perf_counter() - began, 2)}
        return {**rounded, **ends}


def run(
    results: Results,
    plan: Plan,
    weights: Path,
    *,
    workers: int,
    save: Callable[[], None],
    advance: Callable[[], None] = lambda: None,
) -> None:
    """Measure whatever the results do not hold yet.

    Parameters
    ----------
    results : Results
        Filled.
    plan : Plan
    weights : Path
        Folder of the weights.
    workers : int
        Processes with one torch thread each; 0 measures in this one.
    save, advance : callable
        Called after each unit.
    """
    missing = [unit for unit in plan.units() if not results.holds(*unit)]
    for unit, found in _measured(missing, plan, weights, workers):
        results.add(*unit, found)
        save()
        advance()


def _measured(
    units: list[tuple[str, Curve, float]], plan: Plan, weights: Path, workers: int
) -> Iterator[tuple[tuple[str, Curve, float], dict[str, Any]]]:
    if not units:
        return
    if workers == 0:
        _start(weights, plan)
        yield from ((unit, _one(unit)) for unit in units)
        return
    with ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=_start, initargs=(weights, plan)
    ) as pool:
        pending = {pool.submit(_one, unit): unit for unit in units}
        try:
            for done in as_completed(pending):
                yield pending[done], done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


_bench: Bench | None = None


def _start(weights: Path, plan: Plan) -> None:
    """Make a process ready: its model, one thread."""
    global _bench
    torch, _ = libraries()
    torch.set_num_threads(1)
    _bench = Bench(load_weights(weights), plan)


def _one(unit: tuple[str, Curve, float]) -> dict[str, Any]:
    assert _bench is not None
    return _bench.measure(*unit)
