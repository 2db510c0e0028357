"""What a certificate holds: prices, tangent points, a claim. Data only; `check` says what they prove."""

from __future__ import annotations

import hashlib
from copy import copy
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wdmoe_opt.certificates.tree import Tree
from wdmoe_opt.errors import InputError, UnknownNameError
from wdmoe_opt.validation import RealArray, float_array, freeze, real_array, refuse_where

if TYPE_CHECKING:
    from wdmoe_opt.problem import Problem

Form = Literal["deadline", "shared", "mean", "tree", "ratio", "token-ratio"]

#: Axes of every price array; "m" is the instance's number of columns.
_AXES = {
    "send": ("blocks", "devices"),
    "work": ("blocks", "devices"),
    "wake": ("blocks", "experts"),
    "share": ("blocks", "tokens", "m"),
    "retention": ("blocks",),
    "bandwidth": ("blocks", "devices"),
    "points": ("blocks", "devices"),
    "deadline": ("blocks",),
    "offset": ("blocks",),
    "grid": ("blocks", "g"),
    "toll": ("blocks", "devices"),
}
_PRICES = ("send", "work", "wake", "retention", "bandwidth", "points")
_NEEDED: dict[str, tuple[str, ...]] = {
    "deadline": (*_PRICES, "deadline"),
    "shared": (*_PRICES, "offset", "grid"),
    "mean": _PRICES,
    "ratio": (*_PRICES, "grid"),
    "token-ratio": ("retention",),
    "tree": ("tree",),
}
_ANY_SIGN = ("send", "offset", "toll")


@dataclass(frozen=True, eq=False, kw_only=True)
class Certificate:
    """Prices that prove a bound on an objective's best value; arrays are stacked over blocks, read-only.

    Units are those of form "deadline"; in form "ratio" prices are in kept gate weight instead of seconds,
    that of bandwidth per second of latency, and in form "token-ratio" retention has the price of a ratio.

    Parameters
    ----------
    form : {"deadline", "shared", "mean", "tree", "ratio", "token-ratio"}
        What is proved, see docs/certificates.md.
    send : float array (blocks, devices), s per transfer
        Price of a transfer, any sign.
    work : float array (blocks, devices), 1
        Price of a second of compute, >= 0. Form "mean": weight of a device, of its compute or not.
    wake : float array (blocks, experts), s
        Price of an active expert, >= 0. Where it is below the sum of the expert's shares, that sum counts.
    share : float array (blocks, tokens, m), s, optional
        Part of ``wake`` that a token pays for a candidate, >= 0; default zeros.
    retention : float array (blocks,), s
        Price of retention, >= 0.
    bandwidth : float array (blocks, devices), s per Hz
        Price of bandwidth, >= 0; not used where bandwidth is fixed.
    points : float array (blocks, devices), Hz
        Where the checker puts its first tangents, > 0; a bound holds whatever they are.
    deadline : float array (blocks,), s
        Form "deadline": what every block's latency exceeds, 0 where nothing is claimed.
    offset : float array (blocks,), s
        Form "shared": part of the latency that is taken off before inverting.
    grid : float array (blocks, g)
        Form "shared": values of 1 / (latency - offset), 1/s, ascending from 0; form "ratio": values of
        1 / latency, ascending. Short rows repeat their last value.
    toll : float array (blocks, devices), s per transfer, optional
        Forms "shared" and "ratio": price of the limits on a device's transfers, above 0 of the most it can
        get, below 0 of the least; default zeros.
    floor : Certificate, optional
        Of form "deadline": what is known of each block alone.
    tree : Tree, optional
        Form "tree": splits, and a certificate for every leaf.
    bound : float
        The claim: what `check.recompute` gives.
    digest : str
        Over everything here and the problem; see `sealed`.

    Raises
    ------
    InputError
        Naming field, index, value and rule.
    """

    form: Form
    send: RealArray | None = None
    work: RealArray | None = None
    wake: RealArray | None = None
    share: RealArray | None = None
    retention: RealArray | None = None
    bandwidth: RealArray | None = None
    points: RealArray | None = None
    deadline: RealArray | None = None
    offset: RealArray | None = None
    grid: RealArray | None = None
    toll: RealArray | None = None
    floor: Certificate | None = None
    tree: Tree | None = None
    bound: float = -np.inf
    digest: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.form, str) or self.form not in get_args(Form):
            raise UnknownNameError("form", self.form, get_args(Form))
        for name in _NEEDED[self.form]:
            if getattr(self, name) is None:
                raise InputError(name, f"is missing (form {self.form!r} needs it)")
        for name in _AXES:
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _array(name, getattr(self, name)))
        self._check_shapes()
        self._check_parts()
        bound = float_array("bound", self.bound)
        if bound.ndim or np.isnan(bound):
            raise InputError("bound", "must be a number", value=self.bound)
        object.__setattr__(self, "bound", float(bound))
        if not isinstance(self.digest, str):
            raise InputError("digest", "must be a text", value=self.digest)

    def _check_shapes(self) -> None:
        known: dict[str, tuple[str, int]] = {}
        for name, axes in _AXES.items():
            array = getattr(self, name)
            if array is None:
                continue
            if array.ndim != len(axes):
                raise InputError(name, f"must have shape ({', '.join(axes)}), got {array.shape}")
            for axis, length in zip(axes, array.shape, strict=True):
                first, expected = known.setdefault(axis, (name, length))
                if length != expected:
                    raise InputError(name, f"must have {expected} {axis} as {first} has, got {length}")
        if self.grid is not None:
            if self.grid.shape[1] == 0:
                raise InputError("grid", "must hold at least one value per block")
            falls = np.diff(self.grid, axis=1) < 0
            refuse_where("grid", falls, self.grid[:, 1:], "must ascend")

    def _check_parts(self) -> None:
        if self.floor is not None:
            if not isinstance(self.floor, Certificate) or self.floor.form != "deadline":
                raise InputError("floor", "must be a Certificate of form 'deadline'")
            if self.blocks is not None and self.floor.blocks != self.blocks:
                raise InputError("floor", f"must have {self.blocks} blocks", value=self.floor.blocks)
        if self.tree is not None and not isinstance(self.tree, Tree):
            raise InputError("tree", f"must be a Tree, got {type(self.tree).__name__}")

    @property
    def blocks(self) -> int | None:
        """Number of blocks the prices are for; None for a tree."""
        return None if self.retention is None else int(self.retention.size)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays that are there, by name; those of floor and tree under dotted names."""
        found: dict[str, NDArray[Any]] = {
            name: getattr(self, name) for name in _AXES if getattr(self, name) is not None
        }
        if self.floor is not None:
            found.update({f"floor.{name}": array for name, array in self.floor.arrays().items()})
        if self.tree is not None:
            found.update({f"tree.{name}": array for name, array in self.tree.arrays().items()})
        return found

    def claims(self) -> list[tuple[str, str, float]]:
        """Place, form and bound of this certificate and of all its parts."""
        found: list[tuple[str, str, float]] = [("", self.form, self.bound)]
        parts = [("floor", self.floor)] if self.floor is not None else []
        if self.tree is not None:
            leaves = sorted(self.tree.leaves.items())
            parts += [(f"leaf {n}", leaf) for n, leaf in leaves if isinstance(leaf, Certificate)]
        for place, part in parts:
            found += [(f"{place} {inner}", form, bound) for inner, form, bound in part.claims()]
        return found

    def expected_digest(self, problem: Problem) -> str:
        """Digest that an untouched certificate of ``problem`` carries."""
        digest = hashlib.blake2b(digest_size=16)
        digest.update(f"{problem.digest} {self.claims()}".encode())
        for name, array in self.arrays().items():
            digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def sealed(self, problem: Problem, bound: float) -> Self:
        """Return a copy that claims ``bound`` for ``problem``, with its digest.

        Raises
        ------
        InputError
            If the bound is not a number.
        """
        if np.isnan(bound):
            raise InputError("bound", "must be a number", value=bound)
        # The arrays have been checked and are read-only; the copy is this function's own until returned.
        claimed = copy(self)
        object.__setattr__(claimed, "bound", float(bound))
        object.__setattr__(claimed, "digest", claimed.expected_digest(problem))
        return claimed

    def __repr__(self) -> str:
        size = "" if self.blocks is None else f", {self.blocks} block(s)"
        return f"<Certificate {self.form}{size}: bound {self.bound:.6g}>"


def _array(name: str, value: ArrayLike) -> RealArray:
    """Read-only finite array of the right sign; one that is already read-only is not copied."""
    if (
        isinstance(value, np.ndarray)
        and value.dtype == np.float64
        and not value.flags.writeable
        and value.flags.c_contiguous
        and value.base is None
    ):
        array: RealArray = value
        refuse_where(name, ~np.isfinite(array), array, "must be finite")
    else:
        array = freeze(real_array(name, value))
    if name == "points":
        refuse_where(name, array <= 0, array, "must be greater than 0")
    elif name not in _ANY_SIGN:
        refuse_where(name, array < 0, array, "must be at least 0")
    return array


FIELDS = tuple(f.name for f in fields(Certificate))
