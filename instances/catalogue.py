"""Standard instances by name: captured routing x fleet x channel x payload x placement."""

from __future__ import annotations

from typing import Any

import numpy as np

from wdmoe_opt import units
from wdmoe_opt.errors import InputError
from wdmoe_opt.instance import Instance
from wdmoe_opt.instances import placement as place
from wdmoe_opt.instances.channels import cell_states
from wdmoe_opt.instances.families import FAMILIES, batch_tokens, find_family
from wdmoe_opt.instances.fleets import FLEETS, fleet_profiles, fleet_times
from wdmoe_opt.instances.routing_file import RoutingFile
from wdmoe_opt.validation import whole

DEFAULT_FLEET = "orin-mix-8"
#: Of the fading in the standard instances; chosen once, without looking at results.
CHANNEL_SEED = 1
BITS_PER_VALUE = 16


def instance_names() -> list[str]:
    """Names of the standard instances."""
    return list(FAMILIES)


def build_instance(
    name: str, *, tokens: int | str | None = None, start: int = 0, blocks: int | None = None
) -> Instance:
    """Compose a standard instance.

    Experts are placed contiguously on eight Jetson boards (`fleets.FLEETS`) in FP16, in the 100 MHz
    cell of paper A with one draw of Rayleigh fading; a token is 16 bit per value each way.

    Parameters
    ----------
    name : str
        See `instance_names`.
    tokens : int, "all" or None
        Batch size; default 512 prefill tokens, or 24 users.
    start : int
        First token of the window, or the decode step.
    blocks : int, optional
        Only the first so many blocks.

    Raises
    ------
    UnknownNameError
        If there is no such name.
    InputError
        If the batch does not fit.
    """
    family = find_family(name)
    routing = family.load()
    chosen = batch_tokens(family, tokens, start)
    count = routing.blocks
    if blocks is not None:
        count = whole("blocks", blocks, 1, routing.blocks, f"must be 1 to {routing.blocks}")
    width, expert_width = _expert_shape(routing)
    profiles = fleet_profiles(DEFAULT_FLEET)
    channel = cell_states(1, seed=CHANNEL_SEED)
    bits = units.bits_per_token(BITS_PER_VALUE, width)
    return Instance.from_arrays(
        expert_ids=routing.expert_ids[:count, chosen].astype(np.int64),
        gate_weights=routing.gate_weights[:count, chosen].astype(np.float64),
        top_k=routing.top_k,
        expert_device=place.contiguous(routing.experts, len(profiles)),
        bits_down=bits,
        bits_up=bits,
        name=name,
        provenance={
            "routing": {key: value for key, value in routing.manifest.items() if key != "sequences"},
            "batch": {"mode": family.mode, "tokens": int(chosen.size), "start": start, "blocks": count},
            "fleet": {"name": DEFAULT_FLEET, "boards": list(FLEETS[DEFAULT_FLEET]), "precision": "fp16"},
            "channel": dict(channel.provenance),
            "payload": {"bits_per_value": BITS_PER_VALUE},
            "placement": "contiguous",
        },
        **fleet_times(profiles, width, expert_width),
        **channel[0].arrays(),
    )


def _expert_shape(routing: RoutingFile) -> tuple[int, int]:
    """Model width and expert width from the manifest."""
    sizes: list[int] = []
    for key in ("width", "expert_width"):
        value: Any = routing.manifest.get(key)
        if not isinstance(value, int) or value < 1:
            raise InputError(f"manifest.{key}", "must be a whole number, at least 1", value=value)
        sizes.append(value)
    return sizes[0], sizes[1]
