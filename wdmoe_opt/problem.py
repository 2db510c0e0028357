"""What is asked of an instance: objective, floors, candidates, allocation mode (problem section 2)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wdmoe_opt.errors import InputError, UnknownNameError
from wdmoe_opt.instance import Instance
from wdmoe_opt.validation import (
    Pickled,
    RealArray,
    freeze,
    real_array,
    real_scalar,
    refuse_where,
    require_shape,
    require_type,
    whole,
)

if TYPE_CHECKING:
    from wdmoe_opt.formulations.bandwidth import BandwidthModel
    from wdmoe_opt.formulations.joint_latency import JointLatencyModel
    from wdmoe_opt.formulations.pyomo_parts import TimedModel

Objective = Literal["latency", "wlr-token", "wlr-device", "wlr-block", "retention"]
Allocation = Literal["shared", "per-block", "fixed"]
Dispatch = Literal["expert", "device"]

#: Relative tolerance of every feasibility check: floors, caps, bandwidth budget and limits.
FEASIBILITY_TOLERANCE = 1e-9


class Tables(NamedTuple):
    """The problem in the one signature all kernels are compiled for; read-only."""

    ids: NDArray[np.int32]
    weights: RealArray
    mass: RealArray
    expert_device: NDArray[np.int32]
    compute: RealArray
    activation: RealArray
    link_delay: RealArray
    reachable: NDArray[np.bool_]
    bits_down: float
    c_down: RealArray
    bits_up: float
    c_up: RealArray
    low: RealArray
    high: RealArray
    total: float
    fixed_link_time: RealArray | None
    by_device: bool


@dataclass(frozen=True, eq=False)
class Problem(Pickled):
    """An instance and what is asked of it.

    Parameters
    ----------
    instance : Instance
    objective : {"latency", "wlr-token", "wlr-device", "wlr-block", "retention"}
        Minimise total latency, or maximise one reading of the weight-to-latency ratio, or maximise
        retention under ``max_latency``.
    min_retention : float or float array (blocks,), default 0
        Floor on the mean kept gate weight of every block, 0 to 1.
    min_token_retention : float or float array (blocks,), default 0
        Floor on the kept gate weight of every token, 0 to 1.
    max_experts : int, optional
        Cap on experts per token; default no cap beyond the candidates.
    candidates : "top-k" or int
        A token's selectable experts: its top-k (drop only), or its first m columns (re-routing).
    allocation : {"shared", "per-block", "fixed"}
        One bandwidth vector for all blocks, one per block, or ``bandwidth`` as given.
    bandwidth : float array (devices,) or (blocks, devices), Hz, optional
        With allocation "fixed"; default the uniform share.
    dispatch : {"expert", "device"}
        Send a token once per expert, or once per device that hosts any of its experts.
    max_latency : float, s, optional
        Cap on total latency; required with objective "retention".

    Raises
    ------
    InputError
        Naming field, index, value and rule; among others when a token has no reachable candidate.

    Notes
    -----
    Source: docs/mathematics.md, section 2.
    """

    instance: Instance
    objective: Objective = "latency"
    min_retention: float | ArrayLike = 0.0
    min_token_retention: float | ArrayLike = 0.0
    max_experts: int | None = None
    candidates: Literal["top-k"] | int = "top-k"
    allocation: Allocation = "shared"
    bandwidth: ArrayLike | None = None
    dispatch: Dispatch = "expert"
    max_latency: float | None = None

    def __post_init__(self) -> None:
        require_type("instance", self.instance, Instance)
        for name, kind in (("objective", Objective), ("allocation", Allocation), ("dispatch", Dispatch)):
            value = getattr(self, name)
            if not isinstance(value, str) or value not in get_args(kind):
                raise UnknownNameError(name, value, get_args(kind))
        for name in ("min_retention", "min_token_retention"):
            object.__setattr__(self, name, self._floor(name))
        self._check_selection_request()
        self._check_bandwidth()
        if self.max_latency is not None:
            value = real_scalar("max_latency", self.max_latency, minimum=0, above=True)
            object.__setattr__(self, "max_latency", value)
        elif self.objective == "retention":
            raise InputError("max_latency", "is required with objective 'retention'")
        if not self.selectable:
            self._check_loads()
        else:
            self._check_reachable()

    def _floor(self, name: str) -> RealArray:
        floor = real_array(name, getattr(self, name), minimum=0)
        refuse_where(name, floor > 1, floor, "must be at most 1")
        if floor.ndim == 0:
            floor = np.full(self.instance.blocks, float(floor))
        require_shape(name, floor, (self.instance.blocks,), "(blocks,) or a scalar")
        frozen: RealArray = freeze(floor)
        return frozen

    def _check_selection_request(self) -> None:
        inst = self.instance
        if not self.selectable:
            if self.objective != "latency":
                rule = "must be 'latency': the instance has loads only, no gate weights"
                raise InputError("objective", rule, value=self.objective)
            if not self._plain_candidates or self.max_experts is not None:
                raise InputError("candidates", "cannot be set: the instance has loads only, no selection")
            if self.dispatch != "expert":
                raise InputError("dispatch", "cannot be 'device': the instance has loads only")
            return
        if self.max_experts is not None:
            most = whole("max_experts", self.max_experts, 1, 2**31 - 1, f"must be 1 to {2**31 - 1}")
            object.__setattr__(self, "max_experts", most)
        asked: Any = self.candidates
        if not self._plain_candidates:
            if isinstance(asked, str):
                raise InputError("candidates", "must be 'top-k' or a whole number", value=asked)
            assert inst.top_k is not None
            rule = f"must be at least top_k = {inst.top_k} and at most m = {inst.columns}"
            object.__setattr__(self, "candidates", whole("candidates", asked, inst.top_k, inst.columns, rule))

    def _check_bandwidth(self) -> None:
        inst = self.instance
        if inst.token_time_link is not None and self.allocation != "fixed":
            rule = "must be 'fixed': the instance's measured link has no bandwidth knob"
            raise InputError("allocation", rule, value=self.allocation)
        if self.bandwidth is None:
            return
        if self.allocation != "fixed" or inst.token_time_link is not None:
            raise InputError("bandwidth", "can only be given with allocation 'fixed' on a radio link")
        given = self.checked_bandwidth(self.bandwidth)
        refuse_where("bandwidth", given < 0, given, "must be at least 0")
        with np.errstate(over="ignore"):
            most = float(given.sum(axis=-1).max())
        if most > (inst.total_bandwidth or 0.0) * (1 + FEASIBILITY_TOLERANCE):
            rule = f"must sum to at most total_bandwidth = {inst.total_bandwidth!r}"
            raise InputError("bandwidth", rule, value=most)
        object.__setattr__(self, "bandwidth", freeze(given))

    def _check_loads(self) -> None:
        loads = self.instance.loads
        assert loads is not None
        bad = (loads > 0) & ~self.instance.reachable
        refuse_where("loads", bad, loads, "must be 0 on a device that cannot be reached")

    def _check_reachable(self) -> None:
        none = ~self.allowed.any(axis=2)
        if none.any():
            block, token = (int(i) for i in np.argwhere(none)[0])
            assert self.instance.expert_ids is not None
            listed = self.instance.expert_ids[block, token, : self.candidate_columns].tolist()
            rule = "none of the token's experts is on a device that can be reached"
            raise InputError("expert_ids", rule, index=(block, token), value=listed)

    # ------------------------------------------------------------------ derived

    @property
    def selectable(self) -> bool:
        """Whether there are experts to select (False where only loads are known)."""
        return self.instance.loads is None

    @property
    def _plain_candidates(self) -> bool:
        return isinstance(self.candidates, str) and self.candidates == "top-k"

    @property
    def candidate_columns(self) -> int:
        """How many leading columns of ``expert_ids`` a selection may use."""
        return int(self.instance.top_k or 0) if self.candidates == "top-k" else int(self.candidates)

    @property
    def expert_cap(self) -> int:
        """``max_experts``, or more than any token has."""
        return 2**31 - 1 if self.max_experts is None else int(self.max_experts)

    @cached_property
    def allowed(self) -> NDArray[np.bool_]:
        """Candidates that exist and can be reached, bool (blocks, tokens, m)."""
        inst = self.instance
        assert inst.expert_ids is not None
        assert inst.expert_device is not None
        ids = inst.expert_ids
        mask: NDArray[np.bool_] = ids >= 0
        mask[:, :, self.candidate_columns :] = False
        if not inst.reachable.all():
            open_expert = inst.reachable[:, inst.expert_device]
            rows = np.arange(inst.blocks)[:, None, None]
            mask &= open_expert[rows, np.maximum(ids, 0)]
        frozen: NDArray[np.bool_] = freeze(mask)
        return frozen

    @cached_property
    def allowed_ids(self) -> NDArray[np.int32]:
        """`Tables.ids` with -1 wherever a candidate is not allowed, (blocks, tokens, m)."""
        ids: NDArray[np.int32] = freeze(np.where(self.allowed, self.tables.ids, np.int32(-1)))
        return ids

    @cached_property
    def top_k_keep(self) -> NDArray[np.bool_]:
        """Plain top-k routing as a selection: every reachable expert of the top-k, (blocks, tokens, m).

        A token whose top-k is wholly out of reach falls back to its heaviest reachable candidate.
        """
        keep = self.allowed.copy()
        keep[:, :, self.instance.top_k :] = False
        lost = ~keep.any(axis=2)
        if lost.any():
            blocks, tokens = np.nonzero(lost)
            keep[blocks, tokens, self.allowed[lost].argmax(axis=1)] = True
        frozen: NDArray[np.bool_] = freeze(keep)
        return frozen

    @cached_property
    def shares(self) -> RealArray:
        """What keeping a candidate adds to its token's retention, (blocks, tokens, m)."""
        t = self.tables
        share: RealArray = freeze(t.weights / t.mass[:, :, None])
        return share

    @cached_property
    def tables(self) -> Tables:
        """The arrays kernels take, made once."""
        inst = self.instance
        shape = (inst.blocks, inst.devices)
        if inst.loads is None:
            assert inst.expert_ids is not None
            assert inst.gate_weights is not None
            assert inst.expert_device is not None
            ids, weights, hosts = inst.expert_ids, inst.gate_weights, inst.expert_device
            mass = weights[:, :, : inst.top_k].sum(axis=2)
        else:
            ids = np.zeros((inst.blocks, 0, 0), dtype=np.int64)
            weights = np.zeros(ids.shape)
            hosts = np.arange(inst.devices)
            mass = np.zeros((inst.blocks, 0))
        fixed = None
        c_down = c_up = np.zeros(shape)
        if inst.token_time_link is not None:
            fixed = freeze(np.broadcast_to(inst.token_time_link, shape).copy())
        else:
            assert inst.noise_density is not None
            c_down = np.broadcast_to(inst.power_down * inst.gain_down / inst.noise_density, shape).copy()  # type: ignore[operator]
            c_up = np.broadcast_to(inst.power_up * inst.gain_up / inst.noise_density, shape).copy()  # type: ignore[operator]
        low = inst.bandwidth_min if inst.bandwidth_min is not None else np.zeros(inst.devices)
        high = inst.bandwidth_max if inst.bandwidth_max is not None else np.full(inst.devices, np.inf)
        return Tables(
            ids=freeze(ids.astype(np.int32)),
            weights=weights,
            mass=freeze(mass),
            expert_device=freeze(hosts.astype(np.int32)),
            compute=inst.per_expert(inst.compute_time),
            activation=inst.per_expert(inst.activation_time),
            link_delay=inst.link_delay,
            reachable=inst.reachable,
            bits_down=float(inst.bits_down or 0.0),
            c_down=freeze(c_down),
            bits_up=float(inst.bits_up or 0.0),
            c_up=freeze(c_up),
            low=freeze(low.copy()),
            high=freeze(high.copy()),
            total=float(inst.total_bandwidth or 0.0),
            fixed_link_time=fixed,
            by_device=self.dispatch == "device",
        )

    @cached_property
    def digest(self) -> str:
        """Hex digest of everything a bound depends on: the instance's arrays and the request."""
        digest = hashlib.blake2b(self.instance.digest.encode(), digest_size=16)
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, np.ndarray):
                digest.update(f"{f.name} {value.shape}".encode())
                digest.update(np.ascontiguousarray(value).data)
            elif f.name != "instance":
                digest.update(f"{f.name} {value!r}".encode())
        return digest.hexdigest()

    @cached_property
    def uniform_bandwidth(self) -> RealArray | None:
        """Equal shares within the devices' limits, Hz (devices,); None on a measured link."""
        if self.instance.token_time_link is not None:
            return None
        low, high, total = self.tables.low, self.tables.high, self.tables.total
        share: RealArray = freeze(_equal_shares(low, high, total))
        return share

    @property
    def fixed_bandwidth(self) -> RealArray | None:
        """The bandwidth of allocation "fixed": as given, else uniform."""
        return self.uniform_bandwidth if self.bandwidth is None else np.asarray(self.bandwidth)

    def checked_bandwidth(self, bandwidth: ArrayLike) -> RealArray:
        """Finite float array (devices,) or (blocks, devices) from a user's bandwidth, Hz.

        Raises
        ------
        InputError
            If it is not finite or has another shape.
        """
        inst = self.instance
        array = real_array("bandwidth", bandwidth)
        shapes: list[tuple[int, ...]] = [(inst.devices,)]
        if self.allocation != "shared":
            shapes.append((inst.blocks, inst.devices))
        if array.shape not in shapes:
            words = " or ".join(map(str, shapes))
            raise InputError("bandwidth", f"must have shape {words}; got {array.shape}")
        return array

    def checked_keep(self, keep: Any) -> NDArray[np.bool_]:
        """Boolean selection (blocks, tokens, m) from a user's, aligned with ``expert_ids``.

        Raises
        ------
        InputError
            If its shape differs or it holds anything but truth values (or 0 and 1).
        """
        inst = self.instance
        if not self.selectable:
            raise InputError("keep", "must be None: the instance has loads only, no selection")
        try:
            array = np.asarray(keep)
        except Exception as error:  # conversions are foreign code
            raise InputError("keep", f"must be a rectangular array ({error})") from None
        require_shape(
            "keep", array, (inst.blocks, inst.tokens, inst.columns), "(blocks, tokens, m) as expert_ids"
        )
        if array.dtype != np.bool_:
            if array.dtype.kind not in "iu":
                raise InputError("keep", f"must be boolean, got dtype {array.dtype}")
            refuse_where("keep", (array != 0) & (array != 1), array, "must be 0 or 1")
        return np.ascontiguousarray(array, dtype=np.bool_)

    def to_cvxpy(self) -> JointLatencyModel | BandwidthModel:
        """Return the convex model of this problem, to extend it or to use another solver (extra ``models``).

        Returns
        -------
        JointLatencyModel or BandwidthModel
            With ``problem`` (a `cvxpy.Problem`), ``variables``, ``extract()`` and ``update(problem)``.
            The first is the relaxation of fact 5; the second, where only loads are known, is exact.

        Raises
        ------
        UnsupportedError
            If the objective is not latency or the bandwidth is fixed: see `to_pyomo`.
        """
        from wdmoe_opt.formulations import cvxpy_model

        return cvxpy_model(self)

    def to_pyomo(self) -> TimedModel:
        """Return the exact integer model of this problem as a Pyomo model (extra ``models``).

        Returns
        -------
        SelectionModel, JointModel, RetentionModel or WlrModel
            With ``model`` (a `pyomo.environ.ConcreteModel`), ``variables``, ``extract()`` and
            ``update(problem)``.

        Raises
        ------
        UnsupportedError
            If only loads are known: see `to_cvxpy`.
        """
        from wdmoe_opt.formulations import pyomo_model

        return pyomo_model(self)

    def replace(self, **changes: Any) -> Self:
        """Return a variant with some request fields changed."""
        known = [f.name for f in fields(self)]
        for name in changes:
            if name not in known:
                raise UnknownNameError("Problem", name, known)
        if "instance" in changes:
            # One floor for all blocks stays one, whatever the number of blocks.
            for name in ("min_retention", "min_token_retention"):
                floor = np.unique(getattr(self, name))
                if floor.size == 1:
                    changes.setdefault(name, float(floor[0]))
        return replace(self, **changes)

    def block_request(self, block: int) -> dict[str, Any]:
        """What of the request is by block, for one of them: floors, and bandwidth where it is given."""
        part = slice(block, block + 1)
        found: dict[str, Any] = {
            name: np.asarray(getattr(self, name))[part] for name in ("min_retention", "min_token_retention")
        }
        if self.bandwidth is not None and np.ndim(self.bandwidth) == 2:
            found["bandwidth"] = np.asarray(self.bandwidth)[part]
        return found

    def for_block(self, block: int, **changes: Any) -> Self:
        """Return one block's problem; ``changes`` are fields of its instance, by default the block's own.

        Parameters
        ----------
        block : int
        **changes
            Fields of `Instance`, of one block: routing (1, tokens, m), gains (devices,).
        """
        own: dict[str, Any] = {}
        for name, value in self.instance.arrays(copy=False).items():
            if name in ("expert_ids", "gate_weights", "loads"):
                own[name] = value[block : block + 1]
            elif name in ("gain_down", "gain_up") and value.ndim == 2:
                own[name] = value[block]
        instance = self.instance.replace(**(own | changes))
        return self.replace(instance=instance, **self.block_request(block))

    def __repr__(self) -> str:
        asked = f"{self.objective}, {self.allocation} bandwidth, dispatch by {self.dispatch}"
        floor = np.unique(self.min_retention)
        if floor.max() > 0:
            asked += f", retention >= {floor[0]:g}" + ("" if floor.size == 1 else f" to {floor[-1]:g}")
        return f"<Problem {asked}: {self.instance!r}>"


def _equal_shares(low: RealArray, high: RealArray, total: float) -> RealArray:
    """Water-fill: one level for all, clipped to the limits, sums to the total (or all caps, or minimums)."""
    if high.sum() <= total:
        return high.copy()
    if low.sum() >= total:
        return low.copy()
    # Between neighbouring limits the sum is linear in the level.
    edges = np.unique(np.concatenate([low, high[np.isfinite(high)], [0.0, total]]))
    first, last = 0, edges.size - 1
    while last - first > 1:
        middle = (first + last) // 2
        if np.clip(edges[middle], low, high).sum() <= total:
            first = middle
        else:
            last = middle
    floor = np.clip(edges[first], low, high)
    moving = (low <= edges[first]) & (high > edges[first])
    level = edges[first] + (total - floor.sum()) / moving.sum()
    share: RealArray = np.clip(level, low, high)
    return share
