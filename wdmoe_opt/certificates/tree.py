"""Branch-and-bound trees of a certificate: which restrictions were split on, and what bounds each leaf."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from wdmoe_opt.errors import InputError
from wdmoe_opt.validation import (
    IntArray,
    RealArray,
    freeze,
    int_array,
    real_array,
    refuse_where,
    require_shape,
)

if TYPE_CHECKING:
    from wdmoe_opt.certificates.certificate import Certificate

Kind = Literal["root", "pair", "expert", "load", "deadline"]
#: In the order of their codes.
KINDS: tuple[Kind, ...] = get_args(Kind)
ROOT, PAIR, EXPERT, LOAD, DEADLINE = range(len(KINDS))


@dataclass(frozen=True, eq=False, kw_only=True)
class Tree:
    """Nodes, each made from its parent by one side of a split; both sides of a split are there.

    Parameters
    ----------
    parent : int array (nodes,)
        Smaller than the node's own number; -1 for a root.
    kind : int array (nodes,)
        Which split made the node, an index into `KINDS`.
    index : int array (nodes, 3)
        What was split: block for a root (-1: all blocks together) and a deadline; block, token, column
        for a pair; block and expert; block and device for a load; unused places are -1.
    value : float array (nodes,)
        Load v of a load split, latency t of a deadline split (s), else 0.
    side : int array (nodes,)
        0: pair out, expert closed, load at most v, latency at most t; 1: pair in, expert open, load at
        least v + 1, latency above t; a root has 0.
    leaves : mapping of int to Certificate or "empty"
        For every node without children: prices (of form "deadline", "shared" or "mean", for the root's block
        or blocks), or the claim that its restrictions contradict each other.

    Raises
    ------
    InputError
        Naming field, index, value and rule.
    """

    parent: IntArray
    kind: IntArray
    index: IntArray
    value: RealArray
    side: IntArray
    leaves: Mapping[int, Certificate | Literal["empty"]]

    def __post_init__(self) -> None:
        for name in ("parent", "kind", "index", "side"):
            object.__setattr__(self, name, freeze(int_array(name, getattr(self, name))))
        object.__setattr__(self, "value", freeze(real_array("value", self.value)))
        nodes = self.parent.size
        for name in ("parent", "kind", "value", "side"):
            require_shape(name, getattr(self, name), (nodes,), "(nodes,)")
        require_shape("index", self.index, (nodes, 3), "(nodes, 3)")
        bad = (self.parent < -1) | (self.parent >= np.arange(nodes))
        refuse_where("parent", bad, self.parent, "must name an earlier node, or be -1")
        refuse_where(
            "kind", (self.kind < 0) | (self.kind >= len(KINDS)), self.kind, "must name a kind of split"
        )
        refuse_where("side", (self.side != 0) & (self.side != 1), self.side, "must be 0 or 1")
        lost = (self.parent < 0) != (self.kind == ROOT)
        refuse_where("kind", lost, self.kind, "must be 0 for a root, and for a root only")
        self._check_pairs()
        self._check_leaves()

    def _check_pairs(self) -> None:
        """Two children with the two sides of the same split, or none."""
        for node, children in enumerate(self.children):
            if not children:
                continue
            if len(children) != 2:
                raise InputError("parent", f"must name node {node} twice or never", value=len(children))
            one, other = children
            same = (
                self.kind[one] == self.kind[other]
                and (self.index[one] == self.index[other]).all()
                and self.value[one] == self.value[other]
            )
            if not same or self.side[one] == self.side[other]:
                rule = f"must be the two sides of one split of node {node}"
                raise InputError("side", rule, index=(other,), value=int(self.side[other]))

    def _check_leaves(self) -> None:
        from wdmoe_opt.certificates.certificate import Certificate

        expected = [node for node, children in enumerate(self.children) if not children]
        if sorted(self.leaves) != expected:
            raise InputError("leaves", "must hold every node without children, and no other")
        for node, leaf in self.leaves.items():
            if leaf != "empty" and not (
                isinstance(leaf, Certificate) and leaf.form in ("deadline", "shared", "mean")
            ):
                rule = "must be 'empty' or a Certificate of form 'deadline', 'shared' or 'mean'"
                raise InputError("leaves", rule, index=(node,), value=type(leaf).__name__)

    @property
    def children(self) -> list[list[int]]:
        """Children of every node."""
        found: list[list[int]] = [[] for _ in range(self.parent.size)]
        for node, parent in enumerate(self.parent.tolist()):
            if parent >= 0:
                found[parent].append(node)
        return found

    @property
    def roots(self) -> list[int]:
        """Nodes without parent."""
        return np.flatnonzero(self.parent < 0).tolist()

    def path(self, node: int) -> list[int]:
        """Nodes from the root to ``node``, both included."""
        nodes = [node]
        while self.parent[nodes[-1]] >= 0:
            nodes.append(int(self.parent[nodes[-1]]))
        return nodes[::-1]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Every array by name, those of leaves under their node's number."""
        names = ("parent", "kind", "index", "value", "side")
        found: dict[str, NDArray[Any]] = {name: getattr(self, name) for name in names}
        for node in sorted(self.leaves):
            leaf = self.leaves[node]
            if leaf == "empty":
                found[f"{node}.empty"] = np.zeros(0)
            else:
                found.update({f"{node}.{name}": array for name, array in leaf.arrays().items()})
        return found
