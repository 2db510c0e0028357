"""The door to the instance library: names resolve in the room next door, loaded on first use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wdmoe_opt.archive import as_path
from wdmoe_opt.errors import InputError, InstanceFileError, UnknownNameError
from wdmoe_opt.instance import Instance

#: Of the files `load_instance` reads.
ENDINGS = (".npz", ".json", ".toml")
_ENDING_RULE = "the name of a file must end in .npz, .json or .toml"


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
        If the file cannot be read, or is no file of this package by its ending.
    """
    if not isinstance(name, (str, Path)):
        raise InputError("name", "must be a text or a Path", value=name)
    if isinstance(name, Path) or str(name).endswith(ENDINGS):
        from wdmoe_opt.instances.validate import load_file

        return load_file(as_path(name), **selection)
    if not name:
        raise InputError("name", "must not be empty", value=name)
    if name.startswith((".", "/", "~")):
        raise InstanceFileError(f"{name}: {_ENDING_RULE}")
    from wdmoe_opt.instances.catalogue import build_instance

    try:
        return build_instance(name, **selection)
    except UnknownNameError as error:
        if error.field == "instance" and _is_path(name):
            raise InstanceFileError(f"{name}: {_ENDING_RULE}") from None
        raise


def _is_path(name: str) -> bool:
    try:
        return Path(name).exists()
    except (OSError, ValueError):  # too long, or with a null character
        return False
