"""The facts of one WDMoE situation: routing, fleet, channel and payload (problem section 1)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wdmoe_opt import units
from wdmoe_opt.errors import InputError, UnknownNameError
from wdmoe_opt.validation import (
    IntArray,
    Pickled,
    RealArray,
    float_array,
    freeze,
    int_array,
    per_device,
    real_array,
    real_scalar,
    refuse_where,
    require_shape,
    whole,
)


@dataclass(frozen=True, eq=False, kw_only=True)
class Instance(Pickled):
    """Routing, fleet, channel and payload of one batch, validated and read-only.

    Routing is either ``expert_ids`` with ``gate_weights`` and ``top_k``, or ``loads`` alone.
    The link is either the radio fields or ``token_time_link`` alone. All quantities are in SI units.

    Parameters
    ----------
    expert_ids : int array (blocks, tokens, m), optional
        Candidates of every token by falling gate weight; -1 (trailing only) means none.
    gate_weights : float array (blocks, tokens, m), optional
        Softmax gate outputs of the candidates, >= 0; need not sum to one.
    top_k : int, optional
        How many leading columns plain top-k routing uses, 1 <= top_k <= m; default m.
    loads : int array (blocks, devices), optional
        Tokens per device where routing is known only as counts: bandwidth problems only.
    expert_device : int array (experts,), optional
        Device that hosts each expert; default one expert per device. Not used with ``loads``.
    compute_time : float array (devices,) or (experts,), s per token
        Marginal feed-forward time. With as many experts as devices it is read per device.
    activation_time : float array (devices,) or (experts,), s, default 0
        Paid once per block by every active expert: launch plus streaming its weights.
    gain_down, gain_up : float array (devices,) or (blocks, devices), power ratio
        Channel gains; 0 means the device cannot be reached.
    power_down, power_up : float or float array (devices,), W
        Transmit power of the base station towards, and of, each device.
    noise_density : float, W/Hz
    total_bandwidth : float, Hz
    bits_down, bits_up : float, bit per token
        Payload of one token in each direction.
    link_delay : float or float array (devices,), s, default 0
        Round trip, once per loaded device and block.
    bandwidth_min, bandwidth_max : float or float array (devices,), Hz, optional
        Limits of each device's share.
    token_time_link : float array (devices,), s per token, optional
        Measured link without a bandwidth knob, instead of the radio fields; allocation "fixed" only.
        ``inf`` means the device cannot be reached.
    compute_power : float array (devices,), W, optional
        Electric power while computing, for the energy account; NaN where it is not known.
    name : str, optional
    provenance : mapping, optional
        Where the numbers come from, under which licence; travels with the data (JSON values only).

    Raises
    ------
    InputError
        Naming field, first bad index, value and rule.

    Notes
    -----
    Source: docs/mathematics.md, section 1; papers A and B, section II.
    """

    expert_ids: IntArray | None = None
    gate_weights: RealArray | None = None
    top_k: int | None = None
    loads: IntArray | None = None
    expert_device: IntArray | None = None
    compute_time: RealArray
    activation_time: RealArray = field(default_factory=lambda: np.zeros(()))
    gain_down: RealArray | None = None
    gain_up: RealArray | None = None
    power_down: RealArray | None = None
    power_up: RealArray | None = None
    noise_density: float | None = None
    total_bandwidth: float | None = None
    bits_down: float | None = None
    bits_up: float | None = None
    link_delay: RealArray = field(default_factory=lambda: np.zeros(()))
    bandwidth_min: RealArray | None = None
    bandwidth_max: RealArray | None = None
    token_time_link: RealArray | None = None
    compute_power: RealArray | None = None
    name: str = ""
    provenance: Mapping[str, Any] = field(default_factory=dict)

    #: Fields that hold numbers, in the order files list them.
    ARRAY_FIELDS: ClassVar[tuple[str, ...]] = (
        "expert_ids", "gate_weights", "top_k", "loads", "expert_device", "compute_time", "activation_time",
        "gain_down", "gain_up", "power_down", "power_up", "noise_density", "total_bandwidth",
        "bits_down", "bits_up", "link_delay", "bandwidth_min", "bandwidth_max", "token_time_link",
        "compute_power",
    )  # fmt: skip
    RADIO_FIELDS: ClassVar[tuple[str, ...]] = (
        "gain_down", "gain_up", "power_down", "power_up", "noise_density", "total_bandwidth",
        "bits_down", "bits_up",
    )  # fmt: skip

    def __post_init__(self) -> None:
        devices = self._check_link()
        self._check_routing(devices)
        self._check_fleet(devices)
        if not isinstance(self.name, str):
            raise InputError("name", "must be a string", value=self.name)
        if not isinstance(self.provenance, Mapping):
            raise InputError("provenance", "must be a mapping", value=self.provenance)
        self._put("provenance", MappingProxyType(dict(self.provenance)))

    # ------------------------------------------------------------------ validation

    def _put(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, freeze(value) if isinstance(value, np.ndarray) else value)

    def _check_link(self) -> int:
        given = [name for name in self.RADIO_FIELDS if getattr(self, name) is not None]
        if self.token_time_link is not None:
            return self._check_measured_link(given)
        for name in self.RADIO_FIELDS:
            if getattr(self, name) is None:
                raise InputError(name, "is missing (give all radio fields, or token_time_link alone)")
        self._put("noise_density", real_scalar("noise_density", self.noise_density, minimum=0, above=True))
        self._put(
            "total_bandwidth", real_scalar("total_bandwidth", self.total_bandwidth, minimum=0, above=True)
        )
        for name in ("bits_down", "bits_up"):
            self._put(name, real_scalar(name, getattr(self, name), minimum=0))
        if self.bits_down == 0 and self.bits_up == 0:
            raise InputError("bits_down", "bits_down and bits_up cannot both be 0", value=0.0)
        down = real_array("gain_down", self.gain_down, minimum=0)
        up = real_array("gain_up", self.gain_up, minimum=0)
        if down.ndim not in (1, 2) or down.shape[-1] == 0 or down.size == 0:
            raise InputError(
                "gain_down", f"must have shape (devices,) or (blocks, devices), got {down.shape}"
            )
        devices = int(down.shape[-1])
        if up.ndim not in (1, 2) or up.shape[-1] != devices or up.size == 0:
            raise InputError("gain_up", f"must have {devices} devices as gain_down has, got shape {up.shape}")
        self._put("gain_down", down)
        self._put("gain_up", up)
        for name in ("power_down", "power_up"):
            self._put(name, per_device(name, getattr(self, name), devices, minimum=0, above=True))
            # Kernels see P g / N0 only.
            with np.errstate(over="ignore"):
                snr = getattr(self, name) * getattr(self, name.replace("power", "gain")) / self.noise_density
            rule = "must keep power x gain / noise_density finite"
            refuse_where(name.replace("power", "gain"), ~np.isfinite(snr), snr, rule)
        self._check_limits(devices)
        return devices

    def _check_measured_link(self, given: list[str]) -> int:
        allowed = ("bits_down", "bits_up")
        for name in (*given, "bandwidth_min", "bandwidth_max"):
            if name not in allowed and getattr(self, name) is not None:
                raise InputError(name, "cannot stand beside token_time_link, which has no bandwidth knob")
        for name in allowed:
            if getattr(self, name) is not None:
                self._put(name, real_scalar(name, getattr(self, name), minimum=0))
        times = float_array("token_time_link", self.token_time_link)
        if times.ndim != 1 or times.size == 0:
            raise InputError("token_time_link", f"must have shape (devices,), got {times.shape}")
        refuse_where("token_time_link", ~(times >= 0), times, "must be at least 0 (inf: unreachable)")
        self._put("token_time_link", times)
        return times.size

    def _check_limits(self, devices: int) -> None:
        assert self.total_bandwidth is not None
        low = high = None
        if self.bandwidth_min is not None:
            low = per_device("bandwidth_min", self.bandwidth_min, devices, minimum=0)
            with np.errstate(over="ignore"):
                floor = float(low.sum())
            if floor > self.total_bandwidth * (1 + 1e-12):
                rule = f"must sum to at most total_bandwidth = {self.total_bandwidth!r}"
                raise InputError("bandwidth_min", rule, value=floor)
            self._put("bandwidth_min", low)
        if self.bandwidth_max is not None:
            high = per_device("bandwidth_max", self.bandwidth_max, devices, minimum=0, above=True)
            self._put("bandwidth_max", high)
        if low is not None and high is not None:
            refuse_where("bandwidth_min", low > high, low, "must not exceed bandwidth_max")

    def _check_routing(self, devices: int) -> None:
        if self.loads is not None:
            for name in ("expert_ids", "gate_weights", "top_k", "expert_device"):
                if getattr(self, name) is not None:
                    raise InputError(name, "cannot stand beside loads, which replace the routing")
            loads = int_array("loads", self.loads)
            if loads.ndim != 2 or loads.shape[1] != devices or loads.shape[0] == 0:
                raise InputError("loads", f"must have shape (blocks, {devices} devices), got {loads.shape}")
            refuse_where("loads", loads < 0, loads, "must be at least 0")
            self._put("loads", loads)
        else:
            self._check_tokens(devices)
        for name in ("gain_down", "gain_up"):
            gain = getattr(self, name)
            if gain is not None and gain.ndim == 2 and gain.shape[0] != self.blocks:
                raise InputError(name, f"must have {self.blocks} blocks as the routing has, got {gain.shape}")

    def _check_tokens(self, devices: int) -> None:
        for name in ("expert_ids", "gate_weights"):
            if getattr(self, name) is None:
                raise InputError(name, "is missing (give expert_ids and gate_weights, or loads)")
        ids = int_array("expert_ids", self.expert_ids)
        if ids.ndim != 3 or ids.size == 0:
            raise InputError("expert_ids", f"must have shape (blocks, tokens, m), none 0, got {ids.shape}")
        weights = real_array("gate_weights", self.gate_weights, minimum=0)
        require_shape("gate_weights", weights, ids.shape, "(blocks, tokens, m) as expert_ids")
        if self.expert_device is None:
            hosts = np.arange(devices, dtype=np.int64)
        else:
            hosts = int_array("expert_device", self.expert_device)
            if hosts.ndim != 1 or hosts.size == 0:
                raise InputError("expert_device", f"must have shape (experts,), got {hosts.shape}")
            bad = (hosts < 0) | (hosts >= devices)
            refuse_where("expert_device", bad, hosts, f"must name a device, 0 to {devices - 1}")
        bad = (ids < -1) | (ids >= hosts.size)
        refuse_where("expert_ids", bad, ids, f"must name an expert, 0 to {hosts.size - 1}, or be -1")
        _check_candidates(ids, weights)
        m = ids.shape[2]
        top_k = m if self.top_k is None else self.top_k
        if isinstance(top_k, np.ndarray) and top_k.ndim == 0:
            top_k = top_k.item()
        self._put("top_k", whole("top_k", top_k, 1, m, f"must be at least 1 and at most m = {m}"))
        # `not >`: also catches a sum that is zero; weights are finite and >= 0 by now.
        with np.errstate(over="ignore"):
            mass = weights[:, :, : self.top_k].sum(axis=2)
        refuse_where("gate_weights", ~(mass > 0), mass, "a token's top-k weights must not all be zero")
        refuse_where("gate_weights", ~np.isfinite(mass), mass, "a token's weights must have a finite sum")
        self._put("expert_ids", ids)
        self._put("gate_weights", weights)
        self._put("expert_device", hosts)

    def _check_fleet(self, devices: int) -> None:
        for name in ("compute_time", "activation_time"):
            times = real_array(name, getattr(self, name), minimum=0)
            if times.ndim == 0:
                times = np.full(devices, float(times))
            allowed = {(devices,)} if self.loads is not None else {(devices,), (self.experts,)}
            if times.shape not in allowed:
                rule = f"must have shape ({devices},) per device"
                if self.loads is None:
                    rule += f" or ({self.experts},) per expert"
                raise InputError(name, f"{rule}, got {times.shape}")
            self._put(name, times)
        self._put("link_delay", per_device("link_delay", self.link_delay, devices, minimum=0))
        if self.compute_power is not None:
            power = float_array("compute_power", self.compute_power)
            require_shape("compute_power", power, (devices,), "(devices,)")
            bad = (power < 0) | np.isinf(power)
            refuse_where("compute_power", bad, power, "must be finite and at least 0, or NaN for unknown")
            self._put("compute_power", power)

    # ------------------------------------------------------------------ sizes and views

    @property
    def blocks(self) -> int:
        """Number of MoE blocks."""
        routing = self.expert_ids if self.expert_ids is not None else self.loads
        assert routing is not None
        return int(routing.shape[0])

    @property
    def tokens(self) -> int:
        """Tokens per block; 0 where only loads are known."""
        return 0 if self.expert_ids is None else int(self.expert_ids.shape[1])

    @property
    def columns(self) -> int:
        """Candidates stored per token, m; 0 where only loads are known."""
        return 0 if self.expert_ids is None else int(self.expert_ids.shape[2])

    @property
    def devices(self) -> int:
        """Number of devices."""
        link = self.gain_down if self.gain_down is not None else self.token_time_link
        assert link is not None
        return int(link.shape[-1])

    @property
    def experts(self) -> int:
        """Number of experts per block; as many as devices where only loads are known."""
        return self.devices if self.expert_device is None else int(self.expert_device.size)

    def per_expert(self, times: RealArray) -> RealArray:
        """Spread a (devices,) or (experts,) array over experts."""
        if times.size == self.devices and self.expert_device is not None:
            return times[self.expert_device]
        return times

    @cached_property
    def reachable(self) -> NDArray[np.bool_]:
        """Whether a device can be reached in a block, bool (blocks, devices)."""
        if self.token_time_link is not None:
            row = np.isfinite(self.token_time_link)
        else:
            down, up = self.gain_down, self.gain_up
            assert down is not None
            assert up is not None
            row = ((down > 0) | (self.bits_down == 0)) & ((up > 0) | (self.bits_up == 0))
            if self.bandwidth_max is not None:
                row = row & (self.bandwidth_max > 0)
        full: NDArray[np.bool_] = freeze(np.broadcast_to(row, (self.blocks, self.devices)).copy())
        return full

    @cached_property
    def digest(self) -> str:
        """Hex digest of the numbers; name and provenance do not count."""
        digest = hashlib.blake2b(digest_size=16)
        for name, value in self.arrays(copy=False).items():
            array = np.asarray(value)
            digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    # ------------------------------------------------------------------ ways in and out

    @classmethod
    def from_arrays(cls, **arrays: Any) -> Self:
        """Build an instance from the keys of `arrays`; unknown keys are refused.

        Raises
        ------
        UnknownNameError
            If a key is not a field of an instance.
        InputError
            If a value breaks a rule.
        """
        known = (*cls.ARRAY_FIELDS, "name", "provenance")
        for key in arrays:
            if key not in known:
                raise UnknownNameError("Instance", key, known)
        if arrays.get("compute_time") is None:
            raise InputError("compute_time", "is missing")
        return cls(**{key: value for key, value in arrays.items() if value is not None})

    @classmethod
    def from_gates(cls, gates: ArrayLike, top_k: int, *, columns: int | None = None, **arrays: Any) -> Self:
        """Build an instance from full gate outputs.

        Parameters
        ----------
        gates : float array (blocks, tokens, experts)
            Gate weight of every expert.
        top_k : int
            How many experts plain routing uses.
        columns : int, optional
            Candidates to keep per token, top_k <= columns <= experts; default all.
        **arrays
            The other fields of `Instance`.
        """
        full = real_array("gates", gates, minimum=0)
        if full.ndim != 3 or full.size == 0:
            raise InputError("gates", f"must have shape (blocks, tokens, experts), got {full.shape}")
        experts = full.shape[2]
        rule = f"must be at least 1 and at most the {experts} experts"
        m = experts if columns is None else whole("columns", columns, 1, experts, rule)
        # Stable: among equal weights the lowest expert index comes first.
        order = np.argsort(-full, axis=2, kind="stable")[:, :, :m]
        weights = np.take_along_axis(full, order, axis=2)
        return cls.from_arrays(expert_ids=order, gate_weights=weights, top_k=top_k, **arrays)

    @classmethod
    def from_common_units(
        cls,
        *,
        path_loss_db: ArrayLike,
        power_down_dbm: ArrayLike,
        power_up_dbm: ArrayLike,
        noise_dbm_per_hz: float,
        total_bandwidth_mhz: float,
        bits_per_value: float,
        width: int,
        flop_per_token: ArrayLike | None = None,
        device_tflops: ArrayLike | None = None,
        link_delay_ms: ArrayLike = 0.0,
        activation_ms: ArrayLike = 0.0,
        **arrays: Any,
    ) -> Self:
        """Build an instance from dB, dBm, MHz, ms and TFLOP/s; the only constructor that speaks them.

        Parameters
        ----------
        path_loss_db : float array (devices,) or (blocks, devices), dB
            Fading included, the same in both directions; +inf means unreachable.
        power_down_dbm, power_up_dbm : float or float array (devices,), dBm
        noise_dbm_per_hz : float, dBm/Hz
        total_bandwidth_mhz : float, MHz
        bits_per_value : float
            Precision of the activations sent, for example 16.
        width : int
            Model width (values per token).
        flop_per_token : float or float array (experts,), FLOP
            Work of an expert on one token; see `units.expert_flop_per_token`.
        device_tflops : float or float array (devices,), TFLOP/s
            Effective compute rate. With both, they replace ``compute_time``.
        link_delay_ms, activation_ms : float or array, ms
        **arrays
            The other fields of `Instance`, in SI units.
        """
        for name in (*cls.RADIO_FIELDS, "link_delay", "activation_time"):
            if name in arrays:
                raise InputError(name, "cannot be given in SI units beside this constructor's own")
        for name, value in (("device_tflops", device_tflops), ("flop_per_token", flop_per_token)):
            if value is not None:
                real_array(name, value, minimum=0, above=name == "device_tflops")
        if (flop_per_token is None) != (device_tflops is None):
            raise InputError("device_tflops", "device_tflops and flop_per_token must be given together")
        loss = float_array("path_loss_db", path_loss_db)
        refuse_where("path_loss_db", np.isnan(loss) | np.isneginf(loss), loss, "must be a number or +inf")
        gain = units.path_loss_db_to_gain(loss)
        whole("width", width, 1, 2**31 - 1, "must be at least 1")
        bits = units.bits_per_token(real_scalar("bits_per_value", bits_per_value, minimum=0), width)
        if device_tflops is not None and flop_per_token is not None:
            arrays["compute_time"] = _compute_times(
                flop_per_token, device_tflops, loss.shape[-1] if loss.ndim else 1, arrays.get("expert_device")
            )
        return cls.from_arrays(
            gain_down=gain,
            gain_up=gain,
            power_down=units.dbm_to_watt(real_array("power_down_dbm", power_down_dbm)),
            power_up=units.dbm_to_watt(real_array("power_up_dbm", power_up_dbm)),
            noise_density=units.dbm_to_watt(real_scalar("noise_dbm_per_hz", noise_dbm_per_hz)),
            total_bandwidth=units.mhz_to_hz(real_scalar("total_bandwidth_mhz", total_bandwidth_mhz)),
            bits_down=bits,
            bits_up=bits,
            link_delay=real_array("link_delay_ms", link_delay_ms) * 1e-3,
            activation_time=real_array("activation_ms", activation_ms) * 1e-3,
            **arrays,
        )

    def arrays(self, *, copy: bool = True) -> dict[str, Any]:
        """Every number of the instance by key; fields that are not given are left out.

        Parameters
        ----------
        copy : bool
            If False, arrays are the instance's own, read-only.
        """
        found = {name: getattr(self, name) for name in self.ARRAY_FIELDS}
        return {
            name: value.copy() if copy and isinstance(value, np.ndarray) else value
            for name, value in found.items()
            if value is not None
        }

    def replace(self, **changes: Any) -> Self:
        """Return a variant with some fields changed; ``None`` removes a field."""
        fields: dict[str, Any] = {**self.arrays(copy=False), "name": self.name, "provenance": self.provenance}
        return type(self).from_arrays(**{**fields, **changes})

    def __reduce__(self) -> tuple[Any, ...]:
        # Through the front door: a pickled mapping proxy is impossible, a writable copy unwanted.
        return _rebuilt, (type(self), self.arrays(copy=False), self.name, dict(self.provenance))

    def save(self, path: str | Path) -> None:
        """Write the instance to ``path``; ``.npz`` or ``.json`` by its ending (see `files`)."""
        from wdmoe_opt.files import save_instance

        save_instance(self, path)

    @classmethod
    def load(cls, path: str | Path) -> Instance:
        """Read an instance written by `save`.

        Raises
        ------
        InstanceFileError
            If the file cannot be read, is cut short, or does not match its hash.
        """
        from wdmoe_opt.files import load_instance_file

        return load_instance_file(path)

    def __repr__(self) -> str:
        size = f"{self.blocks} blocks, {self.devices} devices"
        if self.loads is None:
            size = f"{self.blocks} blocks, {self.tokens} tokens, {self.experts} experts, top-{self.top_k}, "
            size += f"{self.devices} devices"
        return f"<Instance {self.name or 'unnamed'}: {size}>"


def _check_candidates(ids: IntArray, weights: RealArray) -> None:
    """Rules between the columns of one token."""
    absent = ids < 0
    late = absent[:, :, :-1] & ~absent[:, :, 1:]
    refuse_where(
        "expert_ids", np.pad(late, ((0, 0), (0, 0), (0, 1))), ids, "-1 may only trail a token's experts"
    )
    refuse_where("gate_weights", absent & (weights > 0), weights, "must be 0 where expert_ids is -1")
    rising = np.zeros(ids.shape, dtype=bool)
    rising[:, :, 1:] = weights[:, :, 1:] > weights[:, :, :-1]
    refuse_where("gate_weights", rising, weights, "must not rise along a token's candidates")
    order = np.sort(ids, axis=2)
    twice = (order[:, :, 1:] == order[:, :, :-1]) & (order[:, :, 1:] >= 0)
    if twice.any():
        block, token = (int(i) for i in np.argwhere(twice.any(axis=2))[0])
        seen = order[block, token, 1:][twice[block, token]][0].item()
        raise InputError(
            "expert_ids", "a token must not list an expert twice", index=(block, token), value=seen
        )


def _rebuilt(kind: type[Instance], arrays: dict[str, Any], name: str, provenance: dict[str, Any]) -> Instance:
    return kind.from_arrays(**arrays, name=name, provenance=provenance)


def _compute_times(flop: ArrayLike, tflops: ArrayLike, devices: int, hosts: Any) -> Any:
    """Seconds per token, per device if the work is the same for all experts, else per expert."""
    work, rate = np.asarray(flop, dtype=np.float64), np.asarray(tflops, dtype=np.float64)
    if work.ndim == 0:
        return units.compute_time_per_token(work, rate)
    if rate.ndim:
        require_shape("device_tflops", rate, (devices,), "(devices,) or a scalar")
    hosts = np.arange(devices) if hosts is None else int_array("expert_device", hosts)
    require_shape("flop_per_token", work, hosts.shape, "(experts,) or a scalar")
    bad = (hosts < 0) | (hosts >= devices)
    refuse_where("expert_device", bad, hosts, f"must name a device, 0 to {devices - 1}")
    times = units.compute_time_per_token(work, rate[hosts] if rate.ndim else rate)
    if times.size != devices:
        return times
    # As many numbers as devices are read per device, so they must be put in that order.
    by_device = np.zeros(devices)
    by_device[hosts] = times
    unlike = by_device[hosts] != times
    rule = "must be equal for experts of one device while there are as many experts as devices"
    refuse_where("flop_per_token", unlike, work, rule)
    return by_device
