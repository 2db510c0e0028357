"""The door to the instance library: names resolve in the room next door, loaded on first use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wdmoe_opt.instance import Instance


def list_instances() -> list[str]:
    """Names of the shipped instances."""
    from wdmoe_opt.instances.catalogue import instance_names

    return instance_names()


def load_instance(name: str | Path, **selection: Any) -> Instance:
    """Load a shipped instance or scenario by name, or an instance or scenario file by path.

    Parameters
    ----------
    name : str or Path
        A name of `list_instances`; a scenario such as ``"gpt-oss-20b-decode/jetson-mix-8/cell-20mhz@8"``,
        see `instances.scenario`; or a path that ends in ``.npz``, ``.json`` or ``.toml``.
    **selection
        For names and scenario files: ``tokens``, ``start``, ``blocks`` and more, see
        `instances.catalogue.build_instance`.

    Raises
    ------
    UnknownNameError
        If there is no such name.
    InstanceFileError
        If the file cannot be read.
    """
    if isinstance(name, Path) or str(name).endswith((".npz", ".json", ".toml")):
        from wdmoe_opt.instances.validate import load_file

        return load_file(Path(name), **selection)
    from wdmoe_opt.instances.catalogue import build_instance

    return build_instance(name, **selection)
