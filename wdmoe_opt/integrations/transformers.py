"""A Hugging Face mixture-of-experts model whose experts sit behind a wireless network (extra ``capture``).

At every block the router's output goes to the network's policy; what it selects is what the model mixes
with. Supported are the model types of `wdmoe_opt.instances.capture.supported_models`.
"""

from __future__ import annotations

from inspect import signature
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from wdmoe_opt.errors import InputError, UnsupportedError, WdmoeError
from wdmoe_opt.instance import Instance
from wdmoe_opt.instances.capture.routers import CaptureError, Gate, find_routers, gate_of, read_router
from wdmoe_opt.network import LoopReport, WirelessNetwork
from wdmoe_opt.problem import Problem
from wdmoe_opt.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from numpy.typing import ArrayLike, NDArray

    from wdmoe_opt.validation import IntArray

Tensor = Any


class WirelessExperts:
    """Runs a model's experts behind a wireless network while the ``with`` block lasts.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Of a supported type; calls and ``generate`` work as ever, with batches and padding.
    network : WirelessNetwork, Problem, Instance or Session
        The network, or what `WirelessNetwork` takes first. Its blocks are the model's mixture-of-experts
        blocks, its experts and top-k the model's; `model_instance` makes such an instance. More
        candidates than top-k re-route among the first of the full gate, where the model type has one.
    renormalise : bool
        Scale a token's kept weights back to the sum of its top-k weights. Tokens that keep exactly their
        top-k keep their weights bit for bit either way.
    **options
        Further arguments of `WirelessNetwork`: ``policy``, ``channel``, ``min_retention``, ...

    Raises
    ------
    InputError
        If model and network do not fit together, or an argument breaks a rule.
    UnsupportedError
        If the model's routers are not known, or give no weight beyond their top-k where it is needed.
    CaptureError
        If the model has no mixture-of-experts block.

    Notes
    -----
    Padding, where ``attention_mask`` is 0, is neither sent nor counted, and computed as the model does.
    A sequence that `generate` has ended but carries on in its batch counts as one token a step. A dropped
    expert gets weight 0; the machine at hand still computes it.
    """

    def __init__(
        self,
        model: Any,
        network: WirelessNetwork | Problem | Instance | Session,
        *,
        renormalise: bool = True,
        **options: Any,
    ) -> None:
        if not isinstance(renormalise, (bool, np.bool_)):
            raise InputError("renormalise", "must be True or False", value=renormalise)
        self.model, self.renormalise = model, bool(renormalise)
        self.gate, self.routers = _routers_of(model)
        template = _problem_of(network)
        _check_fit(self.routers, template)
        if isinstance(network, WirelessNetwork):
            if options:
                raise InputError(min(options), "is set where the WirelessNetwork is made")
            self.network = network
        else:
            self.network = WirelessNetwork(network, **options)
        self.full = self.network.columns > self.top_k
        gate_of(model.config.model_type, "full" if self.full else "top-k")
        self._body = model.base_model
        self._signature = signature(self._body.forward)
        self._handles: list[Any] = []
        self._rows: Tensor = None
        self._began = 0.0
        self._next = 0

    @property
    def top_k(self) -> int:
        """Experts per token of plain routing."""
        return int(next(iter(self.routers.values())).top_k)

    @property
    def report(self) -> LoopReport:
        """Account of what was sent so far."""
        return self.network.report

    def __enter__(self) -> Self:
        if self._handles:
            raise WdmoeError("this model is in the loop already")
        on_call = self._body.register_forward_pre_hook(self._on_pass, with_kwargs=True)
        self._handles += [on_call, self._body.register_forward_hook(self._on_end)]
        for block, (name, router) in enumerate(self.routers.items()):
            self._handles.append(router.register_forward_pre_hook(self._on_gate))
            self._handles.append(router.register_forward_hook(self._on_routing(block, name)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._handles:
            self._handles.pop().remove()

    # ------------------------------------------------------------------ hooks

    def _on_pass(self, body: Any, positional: Any, named: Any) -> None:
        """A forward pass begins: which of its tokens are real."""
        given = self._signature.bind_partial(*positional, **named).arguments
        self._rows, self._next = _real_tokens(given), 0
        tokens = int(self._rows.sum())
        if tokens:
            self.network.begin_pass(tokens)

    def _on_end(self, body: Any, inputs: Any, output: Any) -> None:
        self._rows = None
        if self._next != len(self.routers):
            missed = f"{len(self.routers) - self._next} of {len(self.routers)}"
            raise CaptureError(
                f"{missed} routers were bypassed by a fused or quantised kernel; load the model without it"
            )

    def _on_gate(self, router: Any, inputs: Any) -> None:
        _settle(router.weight)
        self._began = perf_counter()

    def _on_routing(self, block: int, name: str) -> Callable[[Any, Any, Any], Any]:
        def send(router: Any, inputs: Any, output: Any) -> Any:
            _settle(router.weight)
            gate_seconds, began = perf_counter() - self._began, perf_counter()
            if self._rows is None or block != self._next:
                why = "gradient checkpointing, or a call of one of the model's parts"
                raise WdmoeError(
                    f"router {name} ran outside a whole forward pass ({why}), which cannot be sent"
                )
            self._next += 1
            if not self._rows.any():
                return None
            ids, gates = read_router(name, router, self.gate, output, self._rows, full=self.full)
            ids, gates = ids[:, : self.network.columns], gates[:, : self.network.columns]
            delivery = self.network.send(block, ids.cpu().numpy(), gates.detach().cpu().numpy())
            mixed = self._mixed(output, ids, gates, delivery.keep)
            record = delivery.record
            record.gate_seconds = gate_seconds
            record.other_seconds = perf_counter() - began - record.solve_seconds
            return mixed

        return send

    def _mixed(self, output: Any, ids: Tensor, gates: Tensor, keep: NDArray[np.bool_]) -> Any:
        """The router's output with the weights of what was kept; None if nothing changed.

        Parameters
        ----------
        output : tuple of tensor
            The router's logits, weights and ids, the last two (rows, top-k).
        ids, gates : tensor (tokens, m)
            Of the real tokens, by falling weight.
        keep : bool array (tokens, m)
        """
        import torch

        logits, weights, slots = output
        rows = self._rows.to(slots.device)
        kept = torch.tensor(keep, device=ids.device)
        own = ((slots[rows].unsqueeze(-1) == ids.unsqueeze(-2)) & kept.unsqueeze(-2)).any(dim=-1)
        changed = ~(own.all(dim=-1) & (kept.sum(dim=-1) == self.top_k))
        if not changed.any():
            return None
        where = rows.nonzero().squeeze(-1)[changed]
        ids, gates, kept = ids[changed], gates[changed], kept[changed]
        width = max(self.top_k, int(kept.sum(dim=-1).max()))
        order = kept.int().argsort(dim=-1, descending=True, stable=True)[:, :width]
        mix = (gates * kept).gather(-1, order)
        if self.renormalise:
            mass, left = weights[where].float().sum(dim=-1, keepdim=True), mix.sum(dim=-1, keepdim=True)
            mix = mix * torch.where(left > 0, mass / left, 1.0)
        # Slots beyond a token's experts name any of them, with weight 0.
        more = width - slots.shape[-1]
        slots = torch.cat([slots, slots[:, :1].expand(-1, more)], dim=-1)
        weights = torch.nn.functional.pad(weights, (0, more))
        slots = slots.index_copy(0, where, ids.gather(-1, order).to(slots.dtype))
        return logits, weights.index_copy(0, where, mix.to(weights.dtype)), slots


def model_instance(
    model: Any,
    *,
    fleet: str | Sequence[str | Path] = "orin-mix-8",
    channel: str = "cell-100mhz",
    precision: str = "fp16",
    bits_per_value: float = 16.0,
    placement: str = "contiguous",
    expert_device: ArrayLike | None = None,
    width: int | None = None,
    expert_width: int | None = None,
) -> Instance:
    """An instance of a model's shape on a named fleet and channel, for `WirelessExperts`.

    Parameters
    ----------
    model : transformers.PreTrainedModel
    fleet : str or sequence of str or Path
        See `wdmoe_opt.instances.fleets`.
    channel : str
        See `wdmoe_opt.instances.channels.channel_names`; its first state.
    precision : str
        Of the device profiles.
    bits_per_value : float, bit
        Of the activations sent, in both directions.
    placement : {"contiguous", "one-per-device"}
    expert_device : int array (experts,), optional
        Host of every expert, instead of a rule.
    width, expert_width : int, optional
        Sizes that experts and payload are priced at; default the model's own. A small model can so stand
        for the sizes of a large one.

    Returns
    -------
    Instance
        With one token a block in place of routing: experts 0, 1, ... in that order.

    Raises
    ------
    InputError, UnknownNameError, UnsupportedError
        If the parts do not fit together, or do not exist.
    """
    from wdmoe_opt import units
    from wdmoe_opt.instances.capture.run import model_widths
    from wdmoe_opt.instances.channels import channel_states
    from wdmoe_opt.instances.fleets import fleet_profiles, fleet_times
    from wdmoe_opt.instances.placement import place

    _, routers = _routers_of(model)
    first = next(iter(routers.values()))
    experts, top_k = int(first.num_experts), int(first.top_k)
    sizes = model_widths(model.config.get_text_config())
    sizes |= {name: value for name, value in (("width", width), ("expert_width", expert_width)) if value}
    profiles = fleet_profiles(fleet, precision)
    bits = units.bits_per_token(bits_per_value, int(sizes["width"] or 0))
    hosts: IntArray | ArrayLike = (
        place(placement, experts, len(profiles), np.zeros((1, experts), dtype=np.int64))
        if expert_device is None
        else expert_device
    )
    state = channel_states(channel, len(profiles), bits=(bits, bits))[0]
    shape = (len(routers), 1, experts)
    return Instance.from_arrays(
        expert_ids=np.broadcast_to(np.arange(experts), shape),
        gate_weights=np.full(shape, 1.0 / experts),
        top_k=top_k,
        expert_device=hosts,
        bits_down=bits,
        bits_up=bits,
        name=type(model).__name__,
        provenance={"fleet": str(fleet), "channel": channel, **sizes},
        **fleet_times(profiles, int(sizes["width"] or 0), int(sizes["expert_width"] or 0)),
        **state.arrays(),
    )


def _routers_of(model: Any) -> tuple[Gate, dict[str, Any]]:
    """How a model routes, and its routers in block order."""
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if not isinstance(kind, str) or not hasattr(model, "base_model"):
        raise InputError("model", f"must be a transformers model, got {type(model).__name__}")
    gate = gate_of(kind, "top-k")
    return gate, find_routers(model, gate)


def _problem_of(network: Any) -> Problem | Instance:
    """What is known of the network's sizes."""
    if isinstance(network, (WirelessNetwork, Session)):
        return network.template
    if not isinstance(network, (Problem, Instance)):
        rule = f"must be a WirelessNetwork, Problem, Instance or Session, got {type(network).__name__}"
        raise InputError("network", rule)
    return network


def _check_fit(routers: dict[str, Any], known: Problem | Instance) -> None:
    """Refuse a network of another shape than the model."""
    inst = known.instance if isinstance(known, Problem) else known
    if inst.loads is not None:
        raise UnsupportedError("the instance has loads only: there are no experts to choose from")
    first = next(iter(routers.values()))
    for name, have, need in (
        ("blocks", inst.blocks, len(routers)),
        ("experts", inst.experts, int(first.num_experts)),
        ("top_k", inst.top_k, int(first.top_k)),
    ):
        if have != need:
            raise InputError(f"network.{name}", f"must be the model's {need}", value=have)


def _real_tokens(given: dict[str, Any]) -> Tensor:
    """Which tokens of a forward pass are no padding, bool tensor (batch x length,)."""
    import torch

    given = given | given.get("kwargs", {})
    tokens = given.get("input_ids")
    if tokens is None:
        tokens = given.get("inputs_embeds")
    if tokens is None:
        raise WdmoeError("the forward pass has neither input_ids nor inputs_embeds")
    batch, length = tokens.shape[:2]
    mask = given.get("attention_mask")
    if mask is None:
        return torch.ones(batch * length, dtype=torch.bool, device=tokens.device)
    if getattr(mask, "ndim", 0) != 2 or mask.shape[0] != batch or mask.shape[1] < length:
        shape = tuple(mask.shape) if hasattr(mask, "shape") else type(mask).__name__
        rule = f"must have shape (batch, length) = ({batch}, {length} or more), got {shape}"
        raise InputError("attention_mask", rule)
    return mask[:, -length:].bool().reshape(-1)


def _settle(tensor: Tensor) -> None:
    """Wait for an accelerator, so that its time is not counted as the next step's."""
    if tensor.device.type == "cuda":
        import torch

        torch.cuda.synchronize(tensor.device)
