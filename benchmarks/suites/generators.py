"""Problems that suites draw rather than load, by name; every one is synthetic and named so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wdmoe_opt.benchmarks.agreement import tiny_problem
from wdmoe_opt.instance import Instance
from wdmoe_opt.instances.channels import cell_states, channel_states
from wdmoe_opt.instances.channels.named import default_distances
from wdmoe_opt.library import load_instance
from wdmoe_opt.problem import Problem
from wdmoe_opt.validation import IntArray, whole

#: Payload of a token of width 4096 at 16 bit, bit in each direction.
PAYLOAD = 65_536.0


def synthetic(
    *,
    tokens: int = 512,
    devices: int = 8,
    blocks: int = 1,
    top_k: int = 2,
    concentration: float = 0.3,
    bandwidth_mhz: float = 100.0,
    seed: int = 0,
) -> Instance:
    """Dirichlet gates over one expert per device, on the cell of paper A.

    Parameters
    ----------
    tokens, devices, blocks, top_k : int
    concentration : float
        Of the Dirichlet distribution; small is skewed.
    bandwidth_mhz : float, MHz
    seed : int
        Of gates and fading.
    """
    rng = np.random.default_rng([20261101, seed])
    gates = rng.dirichlet(np.full(devices, concentration), size=(blocks, tokens))
    distances = np.linspace(60.0, 300.0, devices)
    cell = cell_states(1, seed=seed + 1, distances_m=distances, total_bandwidth_mhz=bandwidth_mhz)[0]
    return Instance.from_gates(
        gates,
        top_k,
        columns=top_k,
        compute_time=np.linspace(1e-5, 4e-5, devices),
        bits_down=PAYLOAD,
        bits_up=PAYLOAD,
        name=f"synthetic-{tokens}x{devices}x{blocks}",
        **cell.arrays(),
    )


def synthetic_reproducing_loads(
    *,
    part: str = "anatomy.0",
    seed: int = 0,
    channel: str = "cell-100mhz",
    evenness: float = 2.0,
    blocks: int | None = None,
) -> Instance:
    """Synthetic top-2 gates whose plain routing has exactly the captured loads of a Mixtral prompt.

    Captured are the loads of every expert in all 32 blocks; which two experts a token chose and with what
    weights is not known and is drawn here.

    Parameters
    ----------
    part : str
        Of the family mixtral-8x7b-mmlu-load: a subject, or "subject.prompt".
    seed : int
        Of the gates; also the channel's state.
    channel : str
    evenness : float
        The heavier of a token's two weights is max(u, 1 - u) with u ~ Beta(evenness, evenness).
    blocks : int, optional
        The first so many; default all.
    """
    chosen = {} if blocks is None else {"blocks": whole("blocks", blocks, 1, 32, "must be 1 to 32")}
    captured = load_instance("mixtral-8x7b-mmlu-load", part=part, placement="one-per-device", **chosen)
    assert captured.loads is not None
    rng = np.random.default_rng([20261102, seed])
    ids = np.stack([pairs_with_loads(row, rng) for row in captured.loads])
    first = rng.beta(evenness, evenness, size=ids.shape[:2])
    heavy = np.maximum(first, 1.0 - first)
    devices = captured.devices
    # The profile of a device is for one of its experts; each hosts one here.
    radio = channel_states(channel, devices, seed + 1, bits=(PAYLOAD, PAYLOAD))[seed]
    return Instance.from_arrays(
        expert_ids=ids,
        gate_weights=np.stack([heavy, 1.0 - heavy], axis=2),
        top_k=2,
        expert_device=np.arange(devices),
        compute_time=captured.compute_time,
        activation_time=captured.activation_time,
        bits_down=PAYLOAD,
        bits_up=PAYLOAD,
        name=f"synthetic-gates-of-{part}",
        **radio.arrays(),
    )


def pairs_with_loads(loads: IntArray, rng: np.random.Generator) -> IntArray:
    """Two different experts for every token, (tokens, 2), so that expert e is chosen ``loads[e]`` times.

    Parameters
    ----------
    loads : int array (experts,)
        Even sum, none above half of it.
    rng : numpy.random.Generator
    """
    tokens = int(loads.sum()) // 2
    # Sorted by expert, entries half a list apart never are the same expert.
    order = rng.permutation(loads.size)
    line = np.repeat(order, loads[order])
    pairs: IntArray = np.stack([line[:tokens], line[tokens:]], axis=1)
    _mix(pairs, rng)
    return pairs[rng.permutation(tokens)]


def _mix(pairs: IntArray, rng: np.random.Generator, rounds: int = 20) -> None:
    """Turn random pairs, exchange second experts where both stay pairs of different ones, and again."""
    for _ in range(rounds):
        turned = rng.random(len(pairs)) < 0.5
        pairs[turned] = pairs[turned, ::-1]
        order = rng.permutation(len(pairs))
        a, b = order[: len(pairs) // 2], order[len(pairs) // 2 : 2 * (len(pairs) // 2)]
        good = (pairs[a, 0] != pairs[b, 1]) & (pairs[b, 0] != pairs[a, 1])
        a, b = a[good], b[good]
        pairs[a, 1], pairs[b, 1] = pairs[b, 1].copy(), pairs[a, 1].copy()


def tiny(*, seed: int = 0, blocks: int | None = None) -> Problem:
    """A random problem that can be enumerated, with a request of its own; see `agreement.tiny_problem`."""
    return tiny_problem(seed, blocks=blocks)


def distances(
    *, family: str, distance_m: float, seed: int = 0, spread: float = 0.5, **selection: Any
) -> Instance:
    """A captured instance whose devices stand around one distance.

    Parameters
    ----------
    family : str
        Name as in `load_instance`.
    distance_m : float, m
        Mean distance; devices are evenly spaced from (1 - spread) to (1 + spread) times it.
    seed : int
        The channel's state.
    spread : float
    **selection
        As in `load_instance`.
    """
    devices = default_distances(8)
    around: NDArray[np.float64] = distance_m * np.linspace(1 - spread, 1 + spread, devices.size)
    return load_instance(family, cell={"distances_m": around.tolist()}, state=seed, **selection)


Generator = Callable[..., Instance | Problem]
#: A generator returns an instance, or a problem if the request is part of what it draws.
GENERATORS: dict[str, Generator] = {
    "synthetic": synthetic,
    "synthetic-reproducing-loads": synthetic_reproducing_loads,
    "tiny": tiny,
    "distances": distances,
}
