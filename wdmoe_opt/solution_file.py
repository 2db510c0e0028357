"""Solution files: an archive complete in itself, with instance, request, point, claims and certificate."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from wdmoe_opt.archive import ArchiveError, ArrayRule, Layout, as_path, read_archive, write_archive
from wdmoe_opt.certificates.certificate import Certificate
from wdmoe_opt.certificates.tree import Tree
from wdmoe_opt.errors import InputError, shown
from wdmoe_opt.files import LAYOUT as INSTANCE
from wdmoe_opt.files import plain_values
from wdmoe_opt.instance import Instance
from wdmoe_opt.metrics import evaluate, unpriced
from wdmoe_opt.problem import Problem
from wdmoe_opt.registry import BoundKind, Reason, Termination
from wdmoe_opt.solution import Solution
from wdmoe_opt.validation import freeze

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

#: Request fields that are arrays; the others stand in the manifest.
_REQUEST_ARRAYS = ("min_retention", "min_token_retention", "bandwidth")
_FLOATS = ArrayRule(("<f8",), (1, 2))
LAYOUT = Layout(
    "solution",
    1,
    {
        **{f"instance.{name}": rule for name, rule in INSTANCE.arrays.items()},
        **{f"request.{name}": _FLOATS for name in _REQUEST_ARRAYS},
        "keep": ArrayRule(("|u1",), (3,)),
        "point.bandwidth": _FLOATS,
        "certificate": ArrayRule(("<f8",), (1,)),
    },
    optional=True,
)
#: Relative difference of a stored objective and the one priced at loading, over which a file is refused.
_SAME = 1e-9


def save_solution(solution: Solution, path: str | Path) -> str:
    """Write a solution to ``path``, ending in .npz, and return its content hash; see `Solution.save`."""
    path = _checked_ending(path)
    problem = solution.problem
    arrays: dict[str, NDArray[Any]] = {
        f"instance.{name}": np.asarray(value) for name, value in problem.instance.arrays(copy=False).items()
    }
    request = {f.name: getattr(problem, f.name) for f in fields(problem) if f.name != "instance"}
    for name in _REQUEST_ARRAYS:
        value = request.pop(name)
        if value is not None:
            arrays[f"request.{name}"] = np.asarray(value)
    if solution.keep is not None:
        arrays["keep"] = solution.keep.astype(np.uint8)
    if solution.bandwidth is not None:
        arrays["point.bandwidth"] = solution.bandwidth
    manifest: dict[str, Any] = {
        "instance": {
            "name": problem.instance.name,
            "provenance": plain_values(problem.instance.provenance),
        },
        "request": plain_values(request),
        "method": solution.method,
        "objective": _number(solution.objective),
        "lower_bound": _number(solution.lower_bound),
        "bound_kind": solution.bound_kind,
        "kkt_residual": _number(solution.kkt_residual),
        "termination": vars(solution.termination),
        "timings": {name: _number(value) for name, value in solution.timings.items()},
        "trace": [_values(step) for step in solution.trace],
    }
    if solution.certificate is not None:
        arrays["certificate"], manifest["certificate"] = _packed(solution.certificate)
    return str(write_archive(path, LAYOUT, arrays, manifest)["content_hash"])


def load_solution(path: str | Path) -> Solution:
    """Read a solution file and price its point; see `Solution.load`."""
    path = _checked_ending(path)
    arrays, manifest = read_archive(path, LAYOUT)
    try:
        return _solution(arrays, manifest)
    except InputError as error:
        raise ArchiveError(path, str(error)) from error
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
        raise ArchiveError(path, f"manifest and arrays do not make a solution ({shown(error)})") from error


def _solution(arrays: Mapping[str, NDArray[Any]], manifest: Mapping[str, Any]) -> Solution:
    given = _under("instance.", arrays)
    scalars = {key: value.item() if value.ndim == 0 else value for key, value in given.items()}
    about = manifest["instance"]
    inst = Instance.from_arrays(**scalars, name=about["name"], provenance=about["provenance"])
    request: dict[str, Any] = {**manifest["request"], **_under("request.", arrays)}
    problem = Problem(inst, **request)
    keep = bandwidth = None
    if "keep" in arrays:
        keep = freeze(problem.checked_keep(arrays["keep"]).copy())
    if "point.bandwidth" in arrays:
        bandwidth = freeze(problem.checked_bandwidth(arrays["point.bandwidth"]))
    termination = Termination(**manifest["termination"])
    for name, value, known in (
        ("termination", termination.reason, get_args(Reason)),
        ("bound_kind", manifest["bound_kind"], get_args(BoundKind)),
    ):
        if value not in known:
            raise InputError(name, f"must be one of {', '.join(known)}", value=value)
    empty = keep is None and bandwidth is None and termination.reason in ("infeasible", "no-solution")
    priced = unpriced(problem) if empty else evaluate(problem, keep, bandwidth)
    solution = Solution(
        problem,
        keep,
        bandwidth,
        priced,
        method=str(manifest["method"]),
        lower_bound=_float(manifest["lower_bound"]),
        bound_kind=manifest["bound_kind"],
        kkt_residual=_float(manifest["kkt_residual"]),
        termination=termination,
        timings={name: _float(value) for name, value in manifest["timings"].items()},
        trace=tuple(dict(step) for step in manifest["trace"]),
        certificate=_unpacked(arrays["certificate"], manifest["certificate"])
        if "certificate" in arrays
        else None,
    )
    stored = _float(manifest["objective"])
    if not np.isclose(solution.objective, stored, rtol=_SAME, atol=0, equal_nan=True):
        rule = f"is not what the point is worth, {solution.objective!r}"
        raise InputError("objective", rule, value=stored)
    return solution


def _checked_ending(path: str | Path) -> Path:
    path = as_path(path)
    if path.suffix != ".npz":
        raise ArchiveError(path, "the name must end in .npz")
    return path


def _under(prefix: str, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}


def _number(value: float) -> float | str:
    """JSON has no infinities and no NaN: they become text."""
    value = float(value)
    return value if np.isfinite(value) else str(value)


def _float(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise TypeError(f"{value!r} is not a number")
    return float(value)


def _values(value: Any) -> Any:
    """JSON values of a solver's step."""
    if isinstance(value, np.ndarray):
        return _values(value.tolist())
    if hasattr(value, "items"):
        return {str(key): _values(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_values(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return _number(value) if isinstance(value, float) else value


# ---------------------------------------------------------------------- certificates


def _packed(certificate: Certificate) -> tuple[NDArray[Any], dict[str, Any]]:
    """All numbers in one vector, and what they are."""
    arrays = certificate.arrays()
    parts = [np.asarray(array, dtype=np.float64).ravel() for array in arrays.values()]
    described: dict[str, Any] = {
        "arrays": [[name, list(array.shape)] for name, array in arrays.items()],
        "claims": {},
    }
    for name, part in _parts(certificate):
        described["claims"][name] = [part.form, _number(part.bound), part.digest]
    return np.concatenate(parts), described


def _parts(certificate: Certificate, name: str = "") -> list[tuple[str, Certificate]]:
    """A certificate and those inside it, by dotted name."""
    found = [(name, certificate)]
    if certificate.floor is not None:
        found += _parts(certificate.floor, f"{name}floor.")
    if certificate.tree is not None:
        for node, leaf in sorted(certificate.tree.leaves.items()):
            if isinstance(leaf, Certificate):
                found += _parts(leaf, f"{name}tree.{node}.")
    return found


def _unpacked(numbers: NDArray[Any], described: Mapping[str, Any]) -> Certificate:
    arrays: dict[str, NDArray[Any]] = {}
    start = 0
    for name, shape in described["arrays"]:
        size = int(np.prod(shape, dtype=np.int64))
        arrays[name] = freeze(numbers[start : start + size].reshape(shape).copy())
        start += size
    if start != numbers.size:
        raise InputError("certificate", f"must hold {start} numbers", value=int(numbers.size))
    return _certificate(arrays, described["claims"], "")


def _certificate(arrays: Mapping[str, NDArray[Any]], claims: Mapping[str, Any], name: str) -> Certificate:
    form, bound, digest = claims[name]
    mine = {key: value for key, value in _under(name, arrays).items() if "." not in key}
    floor = tree = None
    if f"{name}floor." in claims:
        floor = _certificate(arrays, claims, f"{name}floor.")
    if form == "tree":
        tree = _tree(_under(f"{name}tree.", arrays), arrays, claims, f"{name}tree.")
    return Certificate(form=form, bound=_float(bound), digest=digest, floor=floor, tree=tree, **mine)


def _tree(
    mine: Mapping[str, NDArray[Any]], arrays: Mapping[str, NDArray[Any]], claims: Mapping[str, Any], name: str
) -> Tree:
    leaves: dict[int, Any] = {int(key.partition(".")[0]): "empty" for key in mine if key.endswith(".empty")}
    for node in {int(key.partition(".")[0]) for key in mine if "." in key} - leaves.keys():
        leaves[node] = _certificate(arrays, claims, f"{name}{node}.")
    return Tree(**{key: value for key, value in mine.items() if "." not in key}, leaves=leaves)
