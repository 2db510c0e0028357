"""Train the tiny MoE: ``python -m wdmoe_opt.instances.tiny_moe.train --out DIR``.

The run is a pure function of its plan: the batch, the learning rate and the update of a step depend on the
step and on what the steps before made, on nothing else. DIR holds ``plan.json``, ``checkpoint.pt``,
replaced every few minutes, and ``log.jsonl``, one line per ten steps and per evaluation. A run that was
stopped continues with ``--resume``, on the same machine and threads to the same bits.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from time import perf_counter
from typing import Any

from wdmoe_opt.archive import write_text
from wdmoe_opt.errors import InputError
from wdmoe_opt.instances.tiny_moe import checkpoint
from wdmoe_opt.instances.tiny_moe.batches import Batches
from wdmoe_opt.instances.tiny_moe.evaluate import score_all
from wdmoe_opt.instances.tiny_moe.model import Shape, libraries, model_of, new_model
from wdmoe_opt.instances.tiny_moe.texts import TRAINING
from wdmoe_opt.instances.tiny_moe.tokens import stream
from wdmoe_opt.validation import whole

LOG_EVERY = 10
#: Batches of each held-out text at a checkpoint.
GLANCE = 4


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run is; together with the texts it decides every number.

    Parameters
    ----------
    shape : Shape
    steps, batch : int
        Updates, and windows of each.
    warmup : int
        Steps over which the learning rate rises; it then falls along a cosine to a tenth.
    learning_rate, weight_decay : float
        Of AdamW; the decay applies to matrices.
    balance : float
        Weight of the load-balancing loss of Switch Transformer, summed over the blocks. transformers' own
        averages loads over the blocks first, so that one block's imbalance may hide another's.
    seed, threads : int
    """

    shape: Shape = field(default_factory=Shape)
    steps: int = 3600
    batch: int = 8
    warmup: int = 200
    learning_rate: float = 2e-3
    weight_decay: float = 0.1
    balance: float = 0.005
    seed: int = 1
    threads: int = 2

    @classmethod
    def read(cls, found: Mapping[str, Any]) -> Plan:
        """Plan of what a checkpoint says.

        Raises
        ------
        InputError
            If a field is missing, unknown or of another type.
        """
        kinds = {one.name: type(one.default) for one in fields(cls) if one.name != "shape"}
        for name in sorted({"shape", *kinds, *found}, key=str):
            kind = kinds.get(name, Mapping)
            if name not in {"shape", *kinds} or not isinstance(found.get(name), kind):
                raise InputError(f"plan.{name}", "must be a field of a plan, of its type")
        return cls(**{**found, "shape": Shape.read(found["shape"])})

    def rate(self, step: int) -> float:
        """Learning rate of a step."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.learning_rate * (0.1 + 0.45 * (1.0 + math.cos(math.pi * done)))


@dataclass
class Run:
    """A run in progress.

    Parameters
    ----------
    plan : Plan
    folder : Path
    model, optimizer : torch objects
    batches : Batches
    step : int
        Updates made.
    seconds : float
        Spent on them, over all sittings.
    """

    plan: Plan
    folder: Path
    model: Any
    optimizer: Any
    batches: Batches
    step: int = 0
    seconds: float = 0.0

    @classmethod
    def start(cls, plan: Plan, folder: Path) -> Run:
        """Begin a run.

        Raises
        ------
        InputError
            If the folder holds one already.
        """
        if (folder / "plan.json").exists():
            raise InputError("out", "holds a run already; continue it with --resume", value=str(folder))
        run = cls._new(plan, folder, new_model(plan.shape, plan.seed))
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "plan.json", json.dumps(asdict(plan), indent=2) + "\n")
        run.save()
        return run

    @classmethod
    def resume(cls, folder: Path) -> Run:
        """Continue a run from its checkpoint; what was logged after it is forgotten.

        Raises
        ------
        InputError
            If there is none, or its parts do not fit.
        """
        state = checkpoint.load(folder)
        plan = Plan.read(state["plan"])
        run = cls._new(plan, folder, model_of(plan.shape, state["model"]).train())
        try:
            run.optimizer.load_state_dict(state["optimizer"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError("run", f"its optimizer does not fit ({error})", value=str(folder)) from None
        run.step, run.seconds = state["step"], state["seconds"]
        _forget(folder / "log.jsonl", run.step)
        return run

    @classmethod
    def _new(cls, plan: Plan, folder: Path, model: Any) -> Run:
        torch, _ = libraries()
        torch.set_num_threads(plan.threads)
        torch.use_deterministic_algorithms(True)
        optimizer = _optimizer(torch, model, plan)
        batches = Batches(stream(*TRAINING), plan.shape.context, plan.batch, plan.seed)
        return cls(plan, folder, model, optimizer, batches)

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one update."""
        return self.plan.batch * self.plan.shape.context

    def update(self) -> dict[str, float]:
        """Make the next update.

        Returns
        -------
        dict
            ``loss`` in nat per token, ``balance`` (1 if every block's load is even), ``skew`` (largest over
            mean load of the experts, mean over the blocks), ``gradient`` (norm before clipping), ``rate``.
        """
        torch, _ = libraries()
        tokens = torch.from_numpy(self.batches.at(self.step))
        output = self.model(input_ids=tokens[:, :-1], use_cache=False, output_router_logits=True)
        loss = torch.nn.functional.cross_entropy(output.logits.flatten(0, 1), tokens[:, 1:].flatten())
        balance, skew = _balance(torch, output.router_logits, self.plan.shape.top_k)
        (loss + self.plan.balance * balance.sum()).backward()
        gradient = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        rate = self.plan.rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return {
            "loss": loss.item(), "balance": balance.mean().item(), "skew": skew.mean().item(),
            "gradient": gradient.item(), "rate": rate,
        }  # fmt: skip

    def train(self, *, until: int | None = None, save_every: float = 180.0, progress: bool = False) -> None:
        """Make updates and save now and then.

        Parameters
        ----------
        until : int, optional
            Stop after this step; default all of the plan.
        save_every : float, s
        progress : bool
            Show a progress bar.
        """
        end = self.plan.steps if until is None else min(until, self.plan.steps)
        saved = since = perf_counter()
        with _bar(self.plan.steps, self.step, progress) as show:
            while self.step < end:
                found = self.update()
                now = perf_counter()
                self.seconds, since, spent = self.seconds + now - since, now, now - since
                if self.step % LOG_EVERY == 0:
                    self._log({key: float(f"{value:.5g}") for key, value in found.items()})
                show(self.step, found["loss"], self.tokens_per_step / spent)
                if now - saved >= save_every:
                    self.save()
                    self._glance()
                    saved = since = perf_counter()
        self.save()
        self._glance()

    def save(self) -> None:
        """Write the checkpoint."""
        checkpoint.save(
            self.folder,
            {
                "plan": asdict(self.plan), "step": self.step, "seconds": self.seconds,
                "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
            },
        )  # fmt: skip

    def _glance(self) -> None:
        scores = score_all(self.model, limit=GLANCE)
        self._log({f"bits_per_byte_{name}": round(one.bits_per_byte, 4) for name, one in scores.items()})

    def _log(self, found: dict[str, float]) -> None:
        line = {
            "step": self.step, "seconds": round(self.seconds, 1),
            "tokens_per_second": round(self.step * self.tokens_per_step / max(self.seconds, 1e-9)), **found,
        }  # fmt: skip
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")


def _optimizer(torch: Any, model: Any, plan: Plan) -> Any:
    matrices = [value for value in model.parameters() if value.ndim > 1]
    others = [value for value in model.parameters() if value.ndim == 1]
    groups = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        groups, lr=plan.learning_rate, betas=(0.9, 0.95), weight_decay=plan.weight_decay, fused=True
    )


def _balance(torch: Any, router_logits: Sequence[Any], top_k: int) -> tuple[Any, Any]:
    """Load-balancing loss and skew of every block, both (blocks,), from logits (tokens, experts) each."""
    gate = torch.stack(list(router_logits)).float().softmax(dim=-1)
    chosen = torch.zeros_like(gate).scatter(-1, gate.topk(top_k, dim=-1).indices, 1.0)
    load = chosen.mean(dim=1) * (gate.shape[-1] / top_k)
    return (load * gate.mean(dim=1)).sum(dim=-1), load.max(dim=-1).values


def _forget(log: Path, step: int) -> None:
    """Drop the lines of a log after a step."""
    if not log.exists():
        return
    lines = log.read_text(encoding="utf-8").splitlines()
    # A line cut short by a crash is the last one, and later than the checkpoint.
    whole_lines = [line for line in lines if line.endswith("}")]
    kept = [line for line in whole_lines if json.loads(line)["step"] <= step]
    write_text(log, "".join(f"{line}\n" for line in kept))


@contextmanager
def _bar(total: int, done: int, visible: bool) -> Iterator[Callable[[int, float, float], None]]:
    """Progress over steps on standard error; yields the function that shows (step, loss, tokens/s)."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("train"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), disable=not visible) as bar:
        task = bar.add_task("", total=total, completed=done)
        yield lambda step, loss, speed: bar.update(
            task, completed=step, description=f"loss {loss:.3f}, {speed:,.0f} tokens/s"
        )


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train the tiny MoE.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--resume", action="store_true", help="continue the run in that folder")
    parser.add_argument("--steps", type=int, help=f"default {Plan.steps}")
    parser.add_argument("--threads", type=int, help=f"default {Plan.threads}")
    parser.add_argument("--seed", type=int, help=f"default {Plan.seed}")
    parser.add_argument("--save-every", type=float, default=180.0, help="seconds between checkpoints")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of this module."""
    # Before torch is loaded: threads that spin while they wait for each other starve on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    options = _arguments(arguments)
    given = {key: getattr(options, key) for key in ("steps", "threads", "seed")}
    given = {key: value for key, value in given.items() if value is not None}
    for key, value in given.items():
        whole(key, value, 0 if key == "seed" else 1, 2**31, "must be a whole number, at least 1 (seed: 0)")
    if options.resume and given:
        raise InputError(next(iter(given)), "cannot be set: --resume continues the run's own plan")
    run = Run.resume(options.out) if options.resume else Run.start(Plan(**given), options.out)
    run.train(save_every=options.save_every, progress=sys.stderr.isatty())


if __name__ == "__main__":
    main()
