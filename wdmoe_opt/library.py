"""The door to the instance library: names resolve in the room next door, loaded on first use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wdmoe_opt.errors import InputError
from wdmoe_opt.instance import Instance


def list_instances() -> list[str]:
    """Names of the shipped instances."""
    from wdmoe_opt.instances.catalogue import instance_names

    return instance_names()


def load_instance(name: str | Path, **selection: Any) -> Instance:
    """Load a shipped instance by name, or an instance file (``.npz``, ``.json``) by path.

    Parameters
    ----------
    name : str or Path
        A name of `list_instances`, or a path that ends in ``.npz`` or ``.json``.
    **selection
        For names: ``tokens`` and ``blocks``, see `instances.catalogue.build_instance`.

    Raises
    ------
    UnknownNameError
        If there is no such name.
    InstanceFileError
        If the file cannot be read.
    """
    from wdmoe_opt.instances.catalogue import build_instance

    if isinstance(name, Path) or str(name).endswith((".npz", ".json")):
        if selection:
            raise InputError(min(selection), "can only be set for shipped instances, not for a file")
        return Instance.load(name)
    return build_instance(name, **selection)
