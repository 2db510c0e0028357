"""Solvers of third parties: a module or file that registers them, or entry points of installed packages."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from wdmoe_opt.errors import InputError, WdmoeError
from wdmoe_opt.registry import ENTRY_POINT_GROUP, SolverInfo, add_solver, list_solvers

#: Prefix of the names under which files are imported.
_PREFIX = "wdmoe_opt_plugin_"


def load_plugins(plugins: Iterable[str]) -> tuple[SolverInfo, ...]:
    """Import plugins; return the solvers that they added.

    Parameters
    ----------
    plugins : iterable of str
        ``"path.py"`` or ``"module"``, which call `wdmoe_opt.register_solver` when imported; or
        ``"module:attr"`` (``"path.py:attr"``): a `SolverInfo`, or a function without arguments that
        registers.

    Raises
    ------
    InputError
        If a plugin cannot be imported, or adds nothing.
    """
    added: dict[str, SolverInfo] = {}
    for plugin in plugins:
        known = {info.name for info in list_solvers()}
        try:
            _load(plugin)
        except WdmoeError:
            raise
        except (Exception, SystemExit) as error:
            raise InputError(
                "plugin", f"cannot be imported: {type(error).__name__}: {error}", value=plugin
            ) from error
        new = [info for info in list_solvers() if info.name not in known]
        if not new and plugin not in _loaded:
            raise InputError("plugin", "registers no solver", value=plugin)
        _loaded.setdefault(plugin, tuple(new))
        added |= {info.name: info for info in _loaded[plugin]}
    return tuple(added.values())


_loaded: dict[str, tuple[SolverInfo, ...]] = {}


def entry_point_solvers() -> tuple[SolverInfo, ...]:
    """Solvers that installed packages announce under the group ``wdmoe_opt.solvers``."""
    from importlib.metadata import entry_points

    known = {info.name: info for info in list_solvers()}
    announced = [point.load() for point in entry_points(group=ENTRY_POINT_GROUP)]
    return tuple(known[info.name] for info in announced if info.name in known)


def resolved(plugin: str) -> str:
    """A plugin as workers elsewhere find it: files by their full path.

    Raises
    ------
    InputError
        If a file does not exist.
    """
    name, attribute = _parts(plugin)
    if not name.endswith(".py"):
        return plugin
    path = Path(name).resolve()
    if not path.is_file():
        raise InputError("plugin", "there is no such file", value=name)
    return f"{path}:{attribute}" if attribute else str(path)


def _parts(plugin: str) -> tuple[str, str]:
    """Module or file, and attribute or ""."""
    name, colon, attribute = plugin.rpartition(":")
    # A colon may also belong to a path of Windows.
    return (name, attribute) if colon and attribute.isidentifier() else (plugin, "")


def _load(plugin: str) -> None:
    if plugin in _loaded:
        return
    name, attribute = _parts(plugin)
    module = _import_file(Path(name)) if name.endswith(".py") else import_module(name)
    if not attribute:
        return
    found = getattr(module, attribute)
    if isinstance(found, SolverInfo):
        if found.name not in {info.name for info in list_solvers()}:
            add_solver(found)
    elif callable(found):
        found()
    else:
        raise InputError("plugin", "must name a SolverInfo or a function", value=plugin)


def _import_file(path: Path) -> object:
    """Import a file under a name of its own, so that its functions can be found again."""
    name = _PREFIX + path.stem
    spec = spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise InputError("plugin", "there is no such file", value=str(path))
    module = module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
