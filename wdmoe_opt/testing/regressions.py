"""A problem that went wrong: cut down as far as it still does, and kept as an instance file.

The file is an ordinary JSON instance; what was asked of it, and what went wrong, travels in its provenance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from wdmoe_opt import __version__
from wdmoe_opt.errors import InputError
from wdmoe_opt.files import plain_values
from wdmoe_opt.instance import Instance
from wdmoe_opt.problem import Problem

#: Request fields and what they are without a wish.
PLAIN: dict[str, Any] = {
    "max_experts": None,
    "candidates": "top-k",
    "dispatch": "expert",
    "min_token_retention": 0.0,
    "min_retention": 0.0,
    "bandwidth": None,
}
#: Instance fields that can be left out.
OPTIONAL = ("activation_time", "link_delay", "bandwidth_min", "bandwidth_max", "compute_power")


def record(problem: Problem, folder: Path, fault: str) -> Path:
    """Keep a problem that goes wrong.

    Parameters
    ----------
    problem : Problem
    folder : Path
        The file is named after the problem's digest.
    fault : str
        What went wrong, in words.

    Returns
    -------
    Path
    """
    asked = {
        f.name: np.asarray(value).tolist() if isinstance(value, np.ndarray) else value
        for f in fields(Problem)
        if f.name != "instance" and (value := getattr(problem, f.name)) is not None
    }
    note = {
        "request": asked, "fault": fault, "found": date.today().isoformat(), "version": __version__,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{problem.digest[:12]}.json"
    problem.instance.replace(provenance=note).save(path)
    return path


def recorded(path: Path) -> tuple[Problem, str]:
    """Read back a problem that `record` kept, and its fault.

    Raises
    ------
    InputError
        If the file holds an instance without a request.
    """
    instance = Instance.load(path)
    note = plain_values(instance.provenance)
    if not isinstance(note.get("request"), Mapping):
        raise InputError("provenance", f"holds no request: {path} was not written by record()")
    return Problem(instance, **note["request"]), str(note.get("fault", ""))


def minimised(problem: Problem, fails: Callable[[Problem], bool]) -> Problem:
    """Cut a problem down while it still fails.

    Parameters
    ----------
    problem : Problem
        One for which ``fails`` is true.
    fails : callable (Problem) -> bool

    Returns
    -------
    Problem
        No single further cut of `smaller` fails.
    """
    while True:
        cut = next((part for part in smaller(problem) if fails(part)), None)
        if cut is None:
            return problem
        problem = cut


def smaller(problem: Problem) -> Iterator[Problem]:
    """Problems with one thing less, the largest cuts first; those that break a rule are left out."""
    for change in _cuts(problem):
        try:
            yield change()
        except InputError:
            continue


def _cuts(problem: Problem) -> Iterator[Callable[[], Problem]]:
    inst = problem.instance
    if inst.blocks > 1:
        yield from (partial(_without, problem, 0, i) for i in range(inst.blocks))
    if problem.selectable:
        assert inst.top_k is not None
        if inst.tokens > 1:
            yield from (partial(_without, problem, 1, j) for j in range(inst.tokens))
        if inst.columns > inst.top_k:
            yield partial(_without, problem, 2, inst.columns - 1)
    for name, plain in PLAIN.items():
        if not np.array_equal(np.asarray(getattr(problem, name)), np.asarray(plain)) and np.any(
            getattr(problem, name)
        ):
            yield partial(problem.replace, **{name: plain})
    for name in OPTIONAL:
        value = getattr(inst, name)
        if value is not None and np.any(value):
            nothing = np.zeros(()) if name in ("activation_time", "link_delay") else None
            yield partial(_with, problem, **{name: nothing})


def _with(problem: Problem, **fields: Any) -> Problem:
    """The problem with other instance fields."""
    return problem.replace(instance=problem.instance.replace(**fields))


def _without(problem: Problem, axis: int, index: int) -> Problem:
    """The problem without one block (axis 0), token (1) or column (2)."""
    inst = problem.instance
    changes: dict[str, Any] = {}
    for name in ("expert_ids", "gate_weights", "loads", "gain_down", "gain_up"):
        value = getattr(inst, name)
        if value is None or (axis > 0 and name not in ("expert_ids", "gate_weights")):
            continue
        if name.startswith("gain") and value.ndim == 1:
            continue
        changes[name] = np.delete(value, index, axis)
    request: dict[str, Any] = {}
    if axis == 0:
        for name in ("min_retention", "min_token_retention"):
            request[name] = np.delete(np.asarray(getattr(problem, name)), index)
        if problem.bandwidth is not None and np.ndim(problem.bandwidth) == 2:
            request["bandwidth"] = np.delete(np.asarray(problem.bandwidth), index, 0)
    if axis == 2 and isinstance(problem.candidates, int):
        request["candidates"] = min(problem.candidates, inst.columns - 1)
    return problem.replace(instance=inst.replace(**changes), **request)
