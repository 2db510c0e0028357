"""What ``wdmoe-opt capture`` does: load a model by name and capture its routing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wdmoe_opt.errors import InputError, UnsupportedError
from wdmoe_opt.instances.capture.prompts import read_prompts
from wdmoe_opt.instances.capture.routers import gate_of
from wdmoe_opt.instances.capture.run import capture, check_output

PRECISIONS = {"auto": "auto", "fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


def capture_command(
    model: str,
    prompts_file: str | Path,
    output: str | Path,
    *,
    gate: str = "top-k",
    revision: str | None = None,
    model_licence: str | None = None,
    precision: str = "auto",
    device: str = "auto",
    batch_size: int = 4,
    max_length: int = 2048,
    overwrite: bool = False,
    progress: bool | None = True,
) -> dict[str, Any]:
    """Load a Hugging Face model and write the routing file of a prompts file.

    Parameters
    ----------
    model : str
        Name on the hub, or a local folder.
    prompts_file : str or Path
        See `prompts.read_prompts`.
    output : str or Path
        The routing file to write.
    gate : {"top-k", "full"}
        Keep the experts the model chose, or all.
    revision : str, optional
        Branch, tag or commit on the hub; the manifest notes the commit.
    model_licence : str, optional
        Licence of the model, for the manifest.
    precision : {"auto", "fp32", "fp16", "bf16"}
        Precision to load the model in; "auto" is that of its files.
    device : str
        "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1", ...
    batch_size, max_length, overwrite, progress
        See `run.capture`.

    Returns
    -------
    dict
        The manifest as written.

    Raises
    ------
    UnsupportedError
        If the extra ``capture`` is not installed, or the model is not supported.
    InputError
        Naming what else is wrong.
    """
    transformers, torch = _libraries()
    if precision not in PRECISIONS:
        raise InputError("precision", f"must be one of {', '.join(PRECISIONS)}", value=precision)
    place = _device(torch, device)
    check_output(Path(output), overwrite=overwrite)
    prompts = read_prompts(prompts_file)
    config = _load(transformers.AutoConfig, model, revision)
    # Before the weights are fetched: they may be a hundred gigabytes.
    gate_of(config.model_type, gate)
    tokenizer = _load(transformers.AutoTokenizer, model, revision)
    loaded = _load(transformers.AutoModelForCausalLM, model, revision, dtype=PRECISIONS[precision])
    return capture(
        loaded.to(place),
        prompts,
        output,
        tokenizer=tokenizer,
        gate=gate,
        batch_size=batch_size,
        max_length=max_length,
        model_name=model,
        revision=revision,
        model_licence=model_licence,
        prompts_name=Path(prompts_file).name,
        overwrite=overwrite,
        progress=progress,
    )


def _libraries() -> tuple[Any, Any]:
    try:
        import torch
        import transformers
    except ImportError as error:
        raise UnsupportedError(
            f"capture needs the extra: pip install 'wdmoe_opt[capture]' ({error})"
        ) from None
    return transformers, torch


def _device(torch: Any, device: str) -> Any:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError:
        raise InputError("device", "must be auto, cpu, cuda or cuda:<number>", value=device) from None
    if place.type == "cuda" and not torch.cuda.is_available():
        raise InputError("device", "torch finds no GPU here", value=device)
    return place


def _load(factory: Any, model: str, revision: str | None, **options: Any) -> Any:
    try:
        return factory.from_pretrained(model, revision=revision, **options)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError("model", f"cannot be loaded ({reason})", value=model) from None
