"""Checkpoint of a training run: one file, replaced in one step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wdmoe_opt.errors import InputError
from wdmoe_opt.instances.tiny_moe.model import Shape, libraries, new_model

NAME = "checkpoint.pt"


def save(folder: Path, state: dict[str, Any]) -> None:
    """Write the checkpoint of a run, replacing the one before."""
    torch, _ = libraries()
    partial = folder / f"{NAME}.partial"
    torch.save(state, partial)
    partial.replace(folder / NAME)


def load(folder: Path) -> dict[str, Any]:
    """Read the checkpoint of a run.

    Raises
    ------
    InputError
        If there is none.
    """
    torch, _ = libraries()
    path = folder / NAME
    if not path.is_file():
        raise InputError("run", f"holds no {NAME}", value=str(folder))
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def load_model(folder: Path) -> Any:
    """MixtralForCausalLM of a run's checkpoint.

    Raises
    ------
    InputError
        If there is none.
    """
    state = load(folder)
    model = new_model(Shape(**state["plan"]["shape"]), seed=0)
    model.load_state_dict(state["model"])
    return model.eval()
