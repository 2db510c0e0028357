"""Files of any kind this package reads: load them, check them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wdmoe_opt.archive import ArchiveError, as_path, peek_manifest, read_json
from wdmoe_opt.errors import InputError, InstanceFileError
from wdmoe_opt.instance import Instance
from wdmoe_opt.instances.devices import DeviceProfile
from wdmoe_opt.instances.load_file import LoadFile
from wdmoe_opt.instances.routing_file import RoutingFile
from wdmoe_opt.instances.scenario import build_scenario
from wdmoe_opt.instances.token_types import TokenTypes

_ARCHIVES: dict[str, Any] = {
    "instance": Instance.load,
    "routing": RoutingFile.load,
    "loads": LoadFile.load,
    "token-types": TokenTypes.load,
}


def validate_file(path: str | Path) -> dict[str, Any]:
    """Check hash, schema and every rule of a file.

    Parameters
    ----------
    path : str or Path
        An instance (``.npz``, ``.json``), a routing, load or token-type file (``.npz``), a scenario
        (``.toml``, ``.json``) or a device profile (``.json``).

    Returns
    -------
    dict
        ``kind``, ``content_hash`` (None where the kind has none) and ``summary``, one line.

    Raises
    ------
    InstanceFileError
        Naming file and rule.
    """
    path = as_path(path)
    kind, stored = _kind(path)
    try:
        found = _reader(kind)(path)
    except InputError as error:
        raise InstanceFileError(f"{path}: {error}") from None
    summary = f"device profile {found.name}" if isinstance(found, DeviceProfile) else repr(found).strip("<>")
    return {"kind": kind, "content_hash": stored, "summary": summary}


def load_file(path: Path, **selection: Any) -> Instance:
    """Instance of an instance file or of a scenario file.

    Parameters
    ----------
    path : Path
    **selection
        For scenarios: fields of `scenario.Scenario` to change.

    Raises
    ------
    InstanceFileError
        Naming file and rule.
    InputError
        If something is selected of an instance file.
    """
    if path.suffix != ".npz" and _kind(path)[0] == "scenario":
        return build_scenario(path, **selection)
    if selection:
        rule = "can only be set for shipped instances and scenarios, not for an instance file"
        raise InputError(min(selection), rule)
    return Instance.load(path)


def _reader(kind: str) -> Any:
    more = {"scenario": build_scenario, "device profile": DeviceProfile.from_file}
    return (_ARCHIVES | more)[kind]


def _kind(path: Path) -> tuple[str, str | None]:
    """Kind of a file and the content hash it claims."""
    if path.name in (".npz", ".json", ".toml"):
        raise ArchiveError(path, "must have a name before its ending")
    if path.suffix == ".npz":
        manifest = peek_manifest(path)
        if manifest.get("kind") not in _ARCHIVES:
            raise ArchiveError(path, f"manifest kind must be one of {', '.join(_ARCHIVES)}")
        return str(manifest["kind"]), manifest.get("content_hash")
    if path.suffix == ".toml":
        return "scenario", None
    if path.suffix != ".json":
        raise ArchiveError(path, "the name must end in .npz, .json or .toml")
    content = read_json(path)
    keys = content.keys() if isinstance(content, dict) else ()
    if "routing" in keys:
        return "scenario", None
    if "launch_time" in keys:
        return "device profile", None
    return "instance", content.get("content_hash") if isinstance(content, dict) else None
