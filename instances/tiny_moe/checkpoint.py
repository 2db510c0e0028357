"""Checkpoint of a training run: one file, replaced in one step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wdmoe_opt.archive import write_atomically
from wdmoe_opt.errors import InputError
from wdmoe_opt.instances.tiny_moe.model import Shape, libraries, model_of

NAME = "checkpoint.pt"
_KINDS = {"plan": dict, "step": int, "seconds": float, "model": dict, "optimizer": dict}


def save(folder: Path, state: dict[str, Any]) -> None:
    """Write the checkpoint of a run, replacing the one before."""
    torch, _ = libraries()
    write_atomically(folder / NAME, lambda stream: torch.save(state, stream))


def load(folder: Path) -> dict[str, Any]:
    """Read the checkpoint of a run; nothing in it is executed.

    Returns
    -------
    dict
        ``plan`` (dict), ``step``, ``seconds``, ``model`` and ``optimizer`` (states).

    Raises
    ------
    InputError
        If there is none, or what is there is none.
    """
    torch, _ = libraries()
    path = folder / NAME
    if not path.is_file():
        raise InputError("run", f"holds no {NAME}", value=str(folder))
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever unpickling and unzipping end in
        reason = f"{NAME} cannot be read ({type(error).__name__})"
        raise InputError("run", reason, value=str(folder)) from None
    if not isinstance(state, dict) or any(not isinstance(state.get(k), kind) for k, kind in _KINDS.items()):
        raise InputError("run", f"{NAME} must hold a dict of {', '.join(_KINDS)}", value=str(folder))
    return state


def load_model(folder: Path) -> Any:
    """MixtralForCausalLM of a run's checkpoint.

    Raises
    ------
    InputError
        If there is none, or its shape and its parameters do not fit.
    """
    state = load(folder)
    return model_of(Shape.read(state["plan"].get("shape")), state["model"])
