"""The routers of Hugging Face mixture-of-experts models, and the gate weights they mix with.

Every supported router is a module that returns ``(logits, weights, expert ids)``: logits (rows, experts),
the other two (rows, top-k), and the model mixes its experts with exactly these weights. A top-k capture
takes them as they are. A full gate extends them to all experts, on the scale of the chosen ones, so that
the leading columns of a full gate are the model's own weights; the extension is recomputed from the logits
and compared with the router's weights at every call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from wdmoe_opt.errors import InputError, UnsupportedError, WdmoeError
from wdmoe_opt.instances.routing_file import id_dtype

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from numpy.typing import NDArray

Tensor = Any
FullGate = Callable[[Tensor, Any], Tensor]


class CaptureError(WdmoeError):
    """A model ran, but its routing cannot be captured as it should be."""


def softmax_gate(logits: Tensor, router: Any) -> Tensor:
    """Softmax over all experts, divided by the sum of its top-k if ``router.norm_topk_prob``.

    Parameters
    ----------
    logits : float32 tensor (rows, experts)
    router : module
        With ``top_k`` and, unless it never renormalises, ``norm_topk_prob``.

    Returns
    -------
    float32 tensor (rows, experts)
    """
    weights = logits.softmax(dim=-1)
    if getattr(router, "norm_topk_prob", False):
        weights = weights / weights.topk(router.top_k, dim=-1).values.sum(dim=-1, keepdim=True)
    return weights


def chosen_softmax_gate(logits: Tensor, router: Any) -> Tensor:
    """Softmax over the top-k logits, continued to all experts with the same denominator.

    Equals a softmax over all experts that is divided by the sum of its top-k. Parameters as `softmax_gate`.
    """
    scale = logits.topk(router.top_k, dim=-1).values.logsumexp(dim=-1, keepdim=True)
    return (logits - scale).exp()


def grouped_gate(logits: Tensor, router: Any) -> Tensor:
    """DeepSeek-V2: softmax over all experts, 0 outside the best groups, times the scaling factor.

    Parameters as `softmax_gate`; the router has ``topk_method``, ``num_group``, ``topk_group`` and
    ``routed_scaling_factor``.
    """
    weights = logits.softmax(dim=-1)
    if router.topk_method == "group_limited_greedy":
        groups = weights.unflatten(-1, (router.num_group, -1))
        best = groups.amax(dim=-1).topk(router.topk_group, dim=-1).indices
        kept = groups.new_zeros(groups.shape[:-1]).scatter(-1, best, 1.0)
        weights = (groups * kept.unsqueeze(-1)).flatten(-2)
    return weights * router.routed_scaling_factor


@dataclass(frozen=True)
class Gate:
    """How the models of one ``model_type`` route.

    Parameters
    ----------
    router : str
        Class name of the router module.
    meaning : str
        What the captured weights are, in words.
    full : callable, optional
        Gate of all experts from (logits, router), on the scale of the chosen ones; None where the model
        defines no weight beyond its top-k.
    """

    router: str
    meaning: str
    full: FullGate | None


_PLAIN = "softmax over all experts"
_OPTION = f"{_PLAIN}, divided by its sum over the top-k where the model's norm_topk_prob says so"
_CHOSEN = "softmax over the logits of the chosen experts"
_GROUPED = f"{_PLAIN}, limited to the best groups where the model says so, times routed_scaling_factor"
_MIXER = "SparseMixer: each of the two chosen against its near rivals; does not sum to 1"
_SIGMOID = "sigmoid scores of experts chosen by biased score, normalised and scaled as the model says"
_BIASED = "softmax of experts chosen by biased score, divided by its sum over the top-k"

#: Supported models by ``model_type``; the formulas are those of the router classes in transformers 5.
GATES: dict[str, Gate] = {
    "mixtral": Gate("MixtralTopKRouter", _CHOSEN, chosen_softmax_gate),
    "minimax": Gate("MiniMaxTopKRouter", _CHOSEN, chosen_softmax_gate),
    "gpt_oss": Gate("GptOssTopKRouter", _CHOSEN, chosen_softmax_gate),
    "granitemoe": Gate("GraniteMoeTopKRouter", _CHOSEN, chosen_softmax_gate),
    "granitemoeshared": Gate("GraniteMoeSharedTopKRouter", _CHOSEN, chosen_softmax_gate),
    "granitemoehybrid": Gate("GraniteMoeHybridTopKRouter", _CHOSEN, chosen_softmax_gate),
    "olmoe": Gate("OlmoeTopKRouter", _OPTION, softmax_gate),
    "flex_olmo": Gate("FlexOlmoTopKRouter", _OPTION, softmax_gate),
    "qwen2_moe": Gate("Qwen2MoeTopKRouter", _OPTION, softmax_gate),
    "qwen3_moe": Gate("Qwen3MoeTopKRouter", _OPTION, softmax_gate),
    "qwen3_next": Gate("Qwen3NextTopKRouter", _OPTION, softmax_gate),
    "jamba": Gate("JambaTopKRouter", _PLAIN, softmax_gate),
    "deepseek_v2": Gate("DeepseekV2TopkRouter", _GROUPED, grouped_gate),
    "phimoe": Gate("PhimoeTopKRouter", _MIXER, None),
    "deepseek_v3": Gate("DeepseekV3TopkRouter", _SIGMOID, None),
    "glm4_moe": Gate("Glm4MoeTopkRouter", _SIGMOID, None),
    "ernie4_5_moe": Gate("Ernie4_5_MoeTopKRouter", _BIASED, None),
}


def supported_models() -> tuple[str, ...]:
    """Names (``model_type``) of the models whose routing can be captured."""
    return tuple(sorted(GATES))


def gate_of(model_type: str, gate: str) -> Gate:
    """Entry of the registry for a model, if ``gate`` ("full" or "top-k") can be had from it.

    Raises
    ------
    UnsupportedError
        For an unknown model, or a full gate of a model that has none.
    InputError
        If ``gate`` is neither.
    """
    if gate not in ("full", "top-k"):
        raise InputError("gate", "must be 'full' or 'top-k'", value=gate)
    if model_type not in GATES:
        known = ", ".join(supported_models())
        raise UnsupportedError(f"model type {model_type!r} has no routers known here; supported: {known}")
    found = GATES[model_type]
    if gate == "full" and found.full is None:
        able = ", ".join(name for name in supported_models() if GATES[name].full)
        raise UnsupportedError(
            f"{model_type} gives no weight to experts beyond its top-k, use gate 'top-k'; full gate: {able}"
        )
    return found


def find_routers(model: Any, gate: Gate) -> dict[str, Any]:
    """Router modules of a loaded model by name, in block order.

    Raises
    ------
    CaptureError
        If there is none, or if blocks differ in experts or top-k.
    """
    found = {
        name: module for name, module in model.named_modules() if type(module).__name__ == gate.router
    }  # fmt: skip
    if not found:
        raise CaptureError(f"{type(model).__name__} has no {gate.router}: all its blocks are dense")
    sizes = {(router.num_experts, router.top_k) for router in found.values()}
    if len(sizes) > 1:
        raise CaptureError(
            f"blocks differ in (experts, top-k): {sorted(sizes)}; one routing file cannot hold them"
        )
    return found


class RouterTap:
    """Hooks on every router that keep the gate of real tokens, batch by batch; a context manager.

    Parameters
    ----------
    routers : dict
        Result of `find_routers`.
    gate : Gate
    full : bool
        Keep the gate of all experts, not only of the chosen.
    """

    def __init__(self, routers: dict[str, Any], gate: Gate, *, full: bool) -> None:
        first = next(iter(routers.values()))
        self.routers, self.gate, self.full = routers, gate, full
        self.experts, self.top_k = int(first.num_experts), int(first.top_k)
        self.columns = self.experts if full else self.top_k
        self._seen: dict[str, tuple[NDArray[Any], NDArray[np.float32]]] = {}
        self._rows: Tensor = None
        self._handles: list[Any] = []

    def __enter__(self) -> Self:
        for name, router in self.routers.items():
            self._handles.append(router.register_forward_hook(self._hook(name)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._handles:
            self._handles.pop().remove()

    def expect(self, mask: Tensor) -> None:
        """Announce the next batch: bool tensor (prompts, length), True at real tokens."""
        self._rows = mask.reshape(-1)
        self._seen = {}

    def take(self) -> tuple[NDArray[Any], NDArray[np.float32]]:
        """Expert ids and float32 gate weights of the batch's real tokens, (blocks, tokens, columns)."""
        for name in self.routers:
            if name not in self._seen:
                raise CaptureError(
                    f"router {name} was bypassed by a fused or quantised kernel; load the model without it"
                )
        ids, weights = zip(*(self._seen[name] for name in self.routers), strict=True)
        return np.stack(ids), np.stack(weights)

    def _hook(self, name: str) -> Callable[[Any, Any, Any], None]:
        def keep(router: Any, inputs: Any, output: Any) -> None:
            ids, weights = read_router(name, router, self.gate, output, self._rows, full=self.full)
            self._seen[name] = (
                ids.cpu().numpy().astype(id_dtype(self.experts)),
                weights.detach().cpu().numpy(),
            )

        return keep


def read_router(
    name: str, router: Any, gate: Gate, output: Any, rows: Tensor, *, full: bool
) -> tuple[Tensor, Tensor]:
    """What one call of a router says of some of its tokens.

    Parameters
    ----------
    name : str
        Of the router, for messages.
    router : module
    gate : Gate
    output : object
        What the router returned.
    rows : bool tensor (tokens,)
        Which tokens to read.
    full : bool
        All experts, not only the chosen.

    Returns
    -------
    ids : int64 tensor (read tokens, columns)
        Experts by falling weight, ties by expert.
    weights : float32 tensor (read tokens, columns)

    Raises
    ------
    CaptureError
        If the router did not return what is expected, or its gate is not finite.
    """
    logits, weights, ids = _checked(name, router, output, rows)
    if not weights.isfinite().all() or not logits.isfinite().all():
        raise CaptureError(f"router {name} gave a gate that is not finite; try another precision")
    if gate.full is not None:
        gates = gate.full(logits.float(), router)
        _check_against_model(name, gates, weights)
        if full:
            weights, ids = gates, None
    return _ranked(ids, weights)


def _checked(name: str, router: Any, output: Any, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, weights and ids of the tokens to read, if the router returned what is expected."""
    tokens, experts, top_k = rows.numel(), int(router.num_experts), int(router.top_k)
    shapes = ((tokens, experts), (tokens, top_k), (tokens, top_k))
    if not isinstance(output, tuple) or tuple(tuple(part.shape) for part in output) != shapes:
        raise CaptureError(
            f"router {name} does not return (logits, weights, ids) of {tokens} tokens: "
            "this version of transformers is not supported"
        )
    keep = rows.to(output[0].device)
    logits, weights, ids = (part[keep] for part in output)
    return logits, weights, ids


def _ranked(ids: Tensor | None, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Ids and float32 weights by falling weight, then by expert; ``ids`` None means 0, 1, 2, ..."""
    weights = weights.float()
    if ids is not None:
        ids, order = ids.sort(dim=-1)
        weights = weights.gather(-1, order)
    weights, order = weights.sort(dim=-1, descending=True, stable=True)
    return (order if ids is None else ids.gather(-1, order)), weights


def _check_against_model(name: str, gates: Tensor, weights: Tensor) -> None:
    """Refuse a full gate whose leading columns are not the weights the model mixes with."""
    from torch import finfo

    own = weights.float().sort(dim=-1, descending=True).values
    leading = gates.topk(own.shape[-1], dim=-1).values
    # The router may round its weights to the model's precision; nothing else may differ.
    room = (8 * finfo(weights.dtype).eps + 1e-5) * own[:, :1]
    if ((leading - own).abs() > room).any():
        raise CaptureError(
            f"router {name} mixes with other weights than its logits give; transformers has changed"
        )
