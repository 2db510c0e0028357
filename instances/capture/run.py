"""Run a loaded model over prompts and write its routing file, resumably and in bounded memory."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wdmoe_opt.errors import InputError
from wdmoe_opt.instances.capture.parts import PartStore
from wdmoe_opt.instances.capture.prompts import Encoded, Prompt, encode
from wdmoe_opt.instances.capture.routers import RouterTap, find_routers, gate_of
from wdmoe_opt.instances.routing_file import check_routing, id_dtype, write_routing
from wdmoe_opt.validation import whole

if TYPE_CHECKING:
    from numpy.typing import NDArray

PART_BYTES = 256 * 1024**2
_PACKAGES = ("wdmoe_opt", "torch", "transformers", "tokenizers", "numpy")
OnPart = Callable[[int, int], None]


def capture(
    model: Any,
    prompts: Sequence[Prompt],
    output: str | Path,
    *,
    tokenizer: Callable[[str], Any] | None = None,
    gate: str = "top-k",
    batch_size: int = 4,
    max_length: int = 2048,
    part_bytes: int = PART_BYTES,
    model_name: str | None = None,
    revision: str | None = None,
    model_licence: str | None = None,
    prompts_name: str | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
    on_part: OnPart | None = None,
) -> dict[str, Any]:
    """Capture the routing of ``prompts`` through a loaded transformers model.

    Beside ``output`` a folder ``<output>.parts`` holds what is done so far. A run that was stopped and is
    started again with the same settings continues after the last complete part and gives the same file.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        A model type of `routers.GATES`; it runs in inference mode, where it is.
    prompts : sequence of str or of int sequences
        Texts, or token ids.
    output : str or Path
        The routing file to write.
    tokenizer : callable, optional
        Maps a text to a mapping with ``input_ids``; needed where a prompt is a text.
    gate : {"top-k", "full"}
        Keep the experts the model chose, or all.
    batch_size : int
        Prompts run at once; shorter ones are padded, and padding is neither attended to nor captured.
    max_length : int
        Tokens kept of each prompt; how many prompts were cut is noted in the manifest.
    part_bytes : int, byte
        Write a part once this much is gathered: bounds the memory beside the model's own.
    model_name, revision, model_licence, prompts_name : str, optional
        For the manifest; name and revision default to what the model's configuration says.
    overwrite : bool
        Replace an existing ``output``.
    progress : bool, optional
        Show a progress bar; default only on a terminal.
    on_part : callable, optional
        Called with (start, stop), prompt numbers, after each part is written.

    Returns
    -------
    dict
        The manifest as written.

    Raises
    ------
    UnsupportedError
        If the model's routers are not known here, or give no full gate.
    CaptureError
        If the routers do not do what this version expects, or give a gate that is not finite.
    InputError
        Naming what else is wrong.
    """
    output = Path(output)
    check_output(output, overwrite=overwrite)
    whole("batch_size", batch_size, 1, 65_536, "must be at least 1")
    whole("max_length", max_length, 1, 2**30, "must be at least 1")
    kind = gate_of(model.config.model_type, gate)
    tap = RouterTap(find_routers(model, kind), kind, full=gate == "full")
    text_config = model.config.get_text_config()
    encoded = encode(prompts, tokenizer, max_length, text_config.vocab_size)
    offsets = np.concatenate([[0], np.cumsum([ids.size for ids in encoded.ids])])
    store = PartStore(
        Path(f"{output}.parts"), len(tap.routers), tap.columns, id_dtype(tap.experts), offsets
    )  # fmt: skip
    source = _source(model, model_name, revision, model_licence)
    how = {"gate": gate, "batch_size": batch_size, "max_length": max_length, **_setting(model, tap)}
    store.open({**source, **how, "prompt_hash": encoded.prompt_hash, "token_hash": encoded.token_hash})
    _fill(store, model, tap, encoded, batch_size, part_bytes, progress, on_part)
    prompts_note = {
        "name": prompts_name, "count": len(encoded.ids), "truncated": encoded.truncated,
        "token_hash": encoded.token_hash,
    }  # fmt: skip
    manifest = {
        **source, "weights_meaning": _meaning(kind.meaning, gate), "prompts": prompts_note,
        "prompt_hash": encoded.prompt_hash, "capture": how, "mode": "prefill", **model_widths(text_config),
    }  # fmt: skip
    written = _merge(output, store, tap, encoded, manifest)
    store.remove()
    return written


def check_output(output: Path, *, overwrite: bool) -> None:
    """Refuse an output that exists, or whose folder does not.

    Raises
    ------
    InputError
    """
    if output.exists() and not overwrite:
        raise InputError("output", "exists already; ask to overwrite it", value=str(output))
    if not output.parent.is_dir():
        raise InputError("output", "its folder does not exist", value=str(output))


def _fill(
    store: PartStore,
    model: Any,
    tap: RouterTap,
    encoded: Encoded,
    batch_size: int,
    part_bytes: int,
    progress: bool | None,
    on_part: OnPart | None,
) -> None:
    """Run what no complete part covers yet."""
    done = store.complete()
    start = done[-1][1] if done else 0
    with _evaluating(model), tap, _bar(int(store.offsets[-1]), int(store.offsets[start]), progress) as step:
        ids: list[NDArray[Any]] = []
        weights: list[NDArray[np.float32]] = []
        for low in range(start, len(encoded.ids), batch_size):
            stop = min(low + batch_size, len(encoded.ids))
            batch = _run_batch(model, tap, encoded.ids[low:stop])
            check_routing(*batch, tap.experts, tap.top_k)
            ids.append(batch[0])
            weights.append(batch[1])
            step(batch[0].shape[1])
            gathered = sum(array.nbytes for array in (*ids, *weights))
            if gathered >= part_bytes or stop == len(encoded.ids):
                store.write(start, ids, weights, stop)
                if on_part is not None:
                    on_part(start, stop)
                start, ids, weights = stop, [], []


def _merge(
    output: Path, store: PartStore, tap: RouterTap, encoded: Encoded, manifest: dict[str, Any]
) -> dict[str, Any]:
    """Stream the parts into the routing file; the manifest as written."""
    lengths = np.diff(store.offsets)
    return write_routing(
        output,
        shape=(store.blocks, int(store.offsets[-1]), store.columns),
        experts=tap.experts,
        top_k=tap.top_k,
        expert_ids=store.pieces("ids"),
        gate_weights=store.pieces("weights"),
        sequence=np.repeat(np.arange(lengths.size), lengths),
        position=np.concatenate([np.arange(ids.size) for ids in encoded.ids]),
        manifest=manifest,
    )


def _run_batch(
    model: Any, tap: RouterTap, prompts: list[NDArray[np.int32]]
) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Routing of one batch, (blocks, tokens, m), its prompts one after another."""
    import torch

    longest = max(ids.size for ids in prompts)
    tokens = np.zeros((len(prompts), longest), dtype=np.int64)
    mask = np.zeros((len(prompts), longest), dtype=bool)
    for row, ids in enumerate(prompts):
        tokens[row, : ids.size] = ids
        mask[row, : ids.size] = True
    device = model.get_input_embeddings().weight.device
    attend = torch.from_numpy(mask).to(device)
    tap.expect(attend)
    with torch.inference_mode():
        # The body without the language head: logits of a large vocabulary would fill the memory.
        model.base_model(
            input_ids=torch.from_numpy(tokens).to(device), attention_mask=attend.long(), use_cache=False
        )
    return tap.take()


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Switch off training noise in the gate, and restore the model's mode afterwards."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@contextmanager
def _bar(total: int, done: int, show: bool | None) -> Iterator[Callable[[int], None]]:
    """Progress over tokens on standard error; yields the function that advances it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    visible = sys.stderr.isatty() if show is None else show
    columns = (
        TextColumn("capture"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("tokens"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not visible) as bar:
        task = bar.add_task("capture", total=total, completed=done)
        yield lambda tokens: bar.advance(task, tokens)


def _source(model: Any, name: str | None, revision: str | None, licence: str | None) -> dict[str, str | None]:
    """Say where the model comes from; a local folder is named without its path."""
    found = name or getattr(model.config, "_name_or_path", "") or type(model).__name__
    if Path(found).is_dir():
        found = Path(found).resolve().name
    commit = getattr(model.config, "_commit_hash", None)
    return {"model": found, "revision": commit or revision, "model_licence": licence}


def _setting(model: Any, tap: RouterTap) -> dict[str, Any]:
    """Say what else decides the numbers: the model as loaded, its routers, and the packages."""
    return {
        "precision": str(model.dtype).removeprefix("torch."),
        "device": model.device.type,
        "model_type": model.config.model_type,
        "routers": list(tap.routers),
        "router_hash": _router_hash(tap.routers),
        "packages": _versions(),
    }


def model_widths(config: Any) -> dict[str, int | None]:
    """Sizes of an expert as far as the configuration tells; scenarios need them to price it."""
    expert_width = getattr(config, "moe_intermediate_size", None) or getattr(
        config, "intermediate_size", None
    )
    return {"width": getattr(config, "hidden_size", None), "expert_width": expert_width}


def _meaning(meaning: str, gate: str) -> str:
    if gate == "top-k":
        return f"what the model mixes its chosen experts with: {meaning}"
    return f"what the model mixes with, continued to all experts on the same scale: {meaning}"


def _router_hash(routers: dict[str, Any]) -> str | None:
    """Hash of the routers' own parameters and buffers; None if they are not in memory."""
    import torch

    digest = hashlib.sha256()
    for name, router in routers.items():
        for key, value in sorted(router.state_dict().items()):
            if value.is_meta:
                return None
            digest.update(f"{name}.{key} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return f"sha256:{digest.hexdigest()}"


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found
