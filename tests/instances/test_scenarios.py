"""Scenarios: the grammar of names, files users write, named channels, and every message."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import wdmoe_opt as wo
from wdmoe_opt.instances import channels
from wdmoe_opt.instances.catalogue import build_instance, validate_file
from wdmoe_opt.instances.channels import CHANNELS, cell_states, channel_states, fiveg_states
from wdmoe_opt.instances.devices import load_profile
from wdmoe_opt.instances.fleets import FLEETS, fleet_profiles
from wdmoe_opt.instances.routing_file import SOURCE_KEYS, RoutingFile
from wdmoe_opt.instances.scenario import Scenario, parse_name, read_scenario

LAW = "deepseek-v2-lite-law"


# ---------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (LAW, {}),
        (f"{LAW}@64", {"tokens": 64}),
        (f"{LAW}@all", {"tokens": "all"}),
        (f"{LAW}@64+1000#0-4", {"tokens": 64, "start": 1000, "blocks": "0-4"}),
        (f"{LAW}@64+0", {"tokens": 64, "start": 0}),
        (f"{LAW}/orin-nano-8", {"fleet": "orin-nano-8"}),
        (
            f"{LAW}/orin-mix-64:low:int4/umi-100mhz:3:per-block@8",
            {
                "fleet": "orin-mix-64", "precision": "int4", "level": "low", "channel": "umi-100mhz",
                "state": 3, "per_block": True, "tokens": 8,
            },
        ),
        ("mixtral-8x7b-mmlu-load:anatomy.3", {"family": "mixtral-8x7b-mmlu-load", "part": "anatomy.3"}),
    ],
)  # fmt: skip
def test_names_are_read(name: str, expected: dict[str, Any]) -> None:
    assert parse_name(name) == Scenario(**{"family": LAW, "name": name} | expected)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "deepseek-v2-lite-lav",
            "instance = 'deepseek-v2-lite-lav': unknown name; choose from deepseek-v2-lite-law",
        ),
        (f"{LAW}/orin-mix-9", "fleet = 'orin-mix-9': unknown name; choose from orin-mix-8, "),
        (f"{LAW}/orin-mix-8/cell-10mhz", "channel = 'cell-10mhz': unknown name; choose from cell-"),
        (f"{LAW}/orin-mix-8:fp8", "precision or level = 'fp8': unknown name; choose from fp16"),
        (
            f"{LAW}/orin-mix-8/cell-20mhz:x",
            "channel = 'cell-20mhz:x': after ':' must stand a state number or 'per-block'",
        ),
        (f"{LAW}/a/b/c", f"name = '{LAW}/a/b/c': must be FAMILY[/FLEET[/CHANNEL]][@TOKENS][#BLOCKS]"),
        (f"{LAW}/", f"name = '{LAW}/': must be FAMILY[/FLEET[/CHANNEL]][@TOKENS][#BLOCKS]"),
        (f"{LAW}#", f"name = '{LAW}#': must be FAMILY[/FLEET[/CHANNEL]][@TOKENS][#BLOCKS]"),
        (
            f"{LAW}@many",
            f"name = '{LAW}@many': after '@' must stand TOKENS or TOKENS+START, TOKENS a number or 'all'",
        ),
    ],
)
def test_wrong_names_say_what_is_wrong(name: str, message: str) -> None:
    with pytest.raises(wo.InputError, match=re.escape(message)):
        parse_name(name)


def test_keywords_change_a_name_and_unknown_ones_are_refused() -> None:
    by_name = wo.load_instance(f"{LAW}/jetson-mix-8:int4/cell-20mhz:2@8+5#0,3")
    by_keywords = wo.load_instance(
        LAW,
        fleet="jetson-mix-8",
        precision="int4",
        channel="cell-20mhz",
        state=2,
        tokens=8,
        start=5,
        blocks=[0, 3],
    )
    for key, value in by_name.arrays().items():
        np.testing.assert_array_equal(by_keywords.arrays()[key], value)
    with pytest.raises(wo.UnknownNameError, match=r"selection = 'token': unknown name; choose from tokens"):
        wo.load_instance(LAW, token=3)


def test_the_default_numbers_stay() -> None:
    """First gains, times and hosts of the default scenario; users compare results by them."""
    instance = wo.load_instance(LAW)
    state = cell_states(1, seed=1)[0]
    assert instance.gain_down is not None
    np.testing.assert_array_equal(instance.gain_down, state.gain_down)
    assert instance.gain_down.sum() == pytest.approx(1.788771219916864e-08, rel=1e-12)
    assert (instance.total_bandwidth, instance.bits_down) == (100e6, 16 * 2048)
    assert instance.expert_device is not None
    np.testing.assert_array_equal(instance.expert_device, np.repeat(np.arange(8), 8))


def test_levels_order_the_times() -> None:
    low, centre, high = (
        wo.load_instance(f"{LAW}/jetson-mix-8:{level}@8#0") for level in ("low", "centre", "high")
    )
    for name in ("compute_time", "activation_time"):
        assert (getattr(low, name) <= getattr(centre, name)).all()
        assert (getattr(centre, name) <= getattr(high, name)).all()
    assert low.compute_time.sum() < high.compute_time.sum()


# ---------------------------------------------------------------------- fleets and channels


@pytest.mark.parametrize("fleet", FLEETS)
@pytest.mark.parametrize("precision", ["fp16", "int4"])
def test_every_fleet_exists(fleet: str, precision: str) -> None:
    profiles = fleet_profiles(fleet, precision)
    assert len(profiles) == int(fleet.rsplit("-", 1)[1])
    assert {profile.precision for profile in profiles} == {precision}


@pytest.mark.parametrize("channel", CHANNELS)
def test_every_channel_is_a_sequence_and_solves(channel: str) -> None:
    bits = (32768.0, 32768.0)
    longer, shorter = (channel_states(channel, 4, states, bits=bits) for states in (7, 3))
    assert (len(longer), longer.devices) == (7, 4)
    for key, value in shorter[2].arrays().items():
        np.testing.assert_array_equal(longer[2].arrays()[key], value)
    json.dumps(dict(longer.provenance), allow_nan=False)
    instance = wo.load_instance(f"gpt-oss-20b-decode/orin-mix-4/{channel}:2@8#0-1")
    allocation = "fixed" if channel == "feup-wifi" else "shared"
    assert wo.solve(instance, "topk", allocation=allocation).feasible


def test_the_bandwidth_of_a_cell_is_in_its_name() -> None:
    for name in CHANNELS:
        found = re.search(r"-([0-9]+)mhz", name)
        if found:
            assert channel_states(name, 8)[0].total_bandwidth == float(found[1]) * 1e6


def test_a_channel_for_64_devices_and_its_round_trips() -> None:
    sequence = channel_states("cell-100mhz-cicv5g", 64, 400)
    assert sequence.devices == 64
    delay = sequence.stacked("link_delay")
    assert np.unique(delay, axis=1).shape[1] > 55
    eight = channel_states("cell-100mhz-cicv5g", 8, 5).stacked("link_delay")
    np.testing.assert_array_equal(eight, fiveg_states(8).stacked("link_delay")[:5])


def test_gains_may_change_from_block_to_block() -> None:
    instance = wo.load_instance(f"{LAW}/orin-mix-8/cell-100mhz-moving:4:per-block@8#0-2")
    states = channel_states("cell-100mhz-moving", 8, 7)
    assert instance.gain_down is not None
    np.testing.assert_array_equal(instance.gain_down, states.stacked("gain_down")[4:7])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cell", 8), "channel = 'cell': unknown name; choose from cell-"),
        (("cell-100mhz", 0), "devices = 0: must be 1 to 10000"),
        (("cell-100mhz", 8, 0), "states = 0: must be 1 to"),
        (("cell-100mhz-cicv5g", 8, 9999), "states = 9999: must be 1 to"),
        (("feup-wifi", 8), "devices = 8: must be at most 4, the links of 'feup-wifi' (fleet 'orin-mix-4'"),
        (("feup-wifi", 4), "bits: is missing: a measured link is a time per token"),
    ],
)
def test_wrong_channels_say_what_is_wrong(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(wo.InputError, match=re.escape(message)):
        channel_states(*arguments)


def test_cell_parameters_change_the_drawn_channels_only() -> None:
    near = channel_states("cell-100mhz", 2, distances_m=[10.0, 20.0])[0]
    assert near.gain_down is not None
    assert near.gain_down.shape == (2,)
    with pytest.raises(
        wo.InputError, match=r"distances_m: must have 8 entries, one per device, got shape \(2,\)"
    ):
        channel_states("umi-100mhz", 8, distances_m=[10.0, 20.0])
    with pytest.raises(
        wo.UnknownNameError, match="channel = 'distance_m': unknown name; choose from distances_m"
    ):
        channel_states("cell-100mhz", 1, distance_m=[1.0])
    with pytest.raises(
        wo.InputError, match="carrier_ghz: cannot be set: the channel 'feup-wifi' is measured"
    ):
        channel_states("feup-wifi", 2, bits=(1.0, 1.0), carrier_ghz=2.4)
    assert channels.named.default_distances(3).tolist() == [60.0, 180.0, 300.0]


# ---------------------------------------------------------------------- files

FULL = """
name = "mine"

[routing]
family = "deepseek-v2-lite-law"
tokens = 8
start = 100
blocks = [0, 25]

[fleet]
boards = ["agx-thor", "own.json", "orin-nx"]
precision = "fp16"
level = "high"

[channel]
name = "cell-20mhz"
state = 3
seed = 7
distances_m = [50, 100, 150]
link_delay = 0.002

[payload]
bits_per_value = 8

[placement]
rule = "balanced"
"""


def write(folder: Path, text: str, name: str = "mine.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_full_file_is_built(tmp_path: Path) -> None:
    load_profile("agx-orin-maxn").save(tmp_path / "own.json")
    instance = wo.load_instance(write(tmp_path, FULL))
    assert (instance.name, instance.blocks, instance.tokens, instance.devices) == ("mine", 2, 8, 3)
    assert (instance.bits_down, instance.total_bandwidth) == (8 * 2048, 20e6)
    assert instance.link_delay.tolist() == [0.002] * 3
    assert instance.expert_device is not None
    assert np.bincount(instance.expert_device).max() <= 22
    state = cell_states(4, seed=7, distances_m=[50, 100, 150], total_bandwidth_mhz=20)[3]
    np.testing.assert_array_equal(instance.gain_down, state.gain_down)
    assert wo.load_instance(tmp_path / "mine.toml", tokens=4).tokens == 4
    assert validate_file(tmp_path / "mine.toml")["kind"] == "scenario"


def test_a_json_file_says_the_same(tmp_path: Path) -> None:
    import tomllib

    load_profile("agx-orin-maxn").save(tmp_path / "own.json")
    write(tmp_path, json.dumps(tomllib.loads(FULL)), "mine.json")
    first, second = wo.load_instance(write(tmp_path, FULL)), wo.load_instance(str(tmp_path / "mine.json"))
    for key, value in first.arrays().items():
        np.testing.assert_array_equal(second.arrays()[key], value)


def test_a_users_own_routing_and_numbers(tmp_path: Path) -> None:
    ids = np.array([[[2, 0], [1, 2], [0, 1]]])
    weights = np.array([[[0.6, 0.2], [0.5, 0.3], [0.9, 0.1]]])
    manifest = dict.fromkeys(SOURCE_KEYS) | {"model": "own"}
    RoutingFile(
        ids, weights, top_k=2, experts=3, sequence=np.zeros(3, int), position=np.arange(3), manifest=manifest
    ).save(tmp_path / "own.npz")
    text = """
    [routing]
    file = "own.npz"
    width = 64
    expert_width = 128
    [fleet]
    boards = ["agx-thor", "orin-nx"]
    [channel]
    gain_down = [1e-9, 1e-10]
    gain_up = [1e-9, 1e-10]
    power_down = 10.0
    power_up = [0.2, 0.1]
    noise_density = 4e-21
    total_bandwidth = 1e7
    bandwidth_max = 8e6
    [placement]
    expert_device = [1, 0, 1]
    """
    instance = wo.load_instance(write(tmp_path, text))
    assert (instance.name, instance.tokens) == ("mine", 3)
    assert instance.expert_device is not None
    assert instance.expert_device.tolist() == [1, 0, 1]
    assert instance.bandwidth_max is not None
    assert instance.bandwidth_max.tolist() == [8e6, 8e6]
    assert wo.solve(instance, "wdmoe").feasible
    without = write(tmp_path, text.replace("width = 64", ""), "without.toml")
    with pytest.raises(
        wo.InstanceFileError, match=r"without\.toml: width: is missing: neither the routing file"
    ):
        wo.load_instance(without)


ROUTING = '[routing]\nfamily = "deepseek-v2-lite-law"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "routing: needs either 'family' or 'file'"),
        ("[routing]\ntokens = 8", "routing: needs either 'family' or 'file'"),
        ('[routing]\nfamily = "x"\nfile = "y"', "routing: needs either 'family' or 'file'"),
        ("[rooting]", "scenario = 'rooting': unknown name; choose from routing"),
        (ROUTING + "token = 8", "routing = 'token': unknown name; choose from tokens"),
        (ROUTING + "tokens = 0", "tokens = 0: must be 1 to 8327 from token 0"),
        (ROUTING + "tokens = 2.5", "tokens = 2.5: must be a whole number"),
        (ROUTING + 'tokens = "most"', "tokens = 'most': must be a whole number or 'all'"),
        (ROUTING + "part = 3", "part = 3: must be a text"),
        ("fleet = 3\n" + ROUTING, "fleet = 3: must be a table"),
        (ROUTING + "[fleet]\nname = 3", "fleet.name = 3: must be a text"),
        (
            ROUTING + '[fleet]\nname = "orin-mix-8"\nboards = []',
            "fleet: must give 'name' or 'boards', not both",
        ),
        (ROUTING + "[fleet]\nboards = []", "fleet.boards = []: must be a list of profile names"),
        (ROUTING + "[fleet]\nboards = [1]", "fleet.boards[0] = 1: must be a text"),
        (
            ROUTING + '[fleet]\nboards = ["agx-orin"]',
            "name = 'agx-orin': unknown name; choose from agx-orin-",
        ),
        (ROUTING + '[fleet]\nlevel = "lowest"', "level = 'lowest': must be one of low, centre, high"),
        (ROUTING + '[fleet]\nprecision = "fp17"', "precision = 'fp17': unknown name; choose from fp16"),
        (ROUTING + '[channel]\nname = "cell"', "channel = 'cell': unknown name; choose from cell-"),
        (ROUTING + "[channel]\nstate = -1", "state = -1: must be 0 to 99999"),
        (ROUTING + "[channel]\nper_block = 1", "per_block = 1: must be true or false"),
        (
            ROUTING + "[channel]\ndistance_m = 1",
            "channel = 'distance_m': unknown name; choose from distances_m",
        ),
        (
            ROUTING + "[channel]\ngain_down = [1.0]\nseed = 3",
            "channel.seed = 3: cannot stand beside gain_down",
        ),
        (ROUTING + "[channel]\ngain_down = [1.0]", "gain_up: is missing"),
        (ROUTING + "[payload]\nbits_per_value = 0", "bits_per_value = 0.0: must be greater than 0"),
        (ROUTING + '[placement]\nrule = "even"', "placement = 'even': unknown name; choose from"),
        (
            ROUTING + '[placement]\nrule = "one-per-device"',
            "'one-per-device' needs 64 devices, the fleet has 8",
        ),
        (
            ROUTING + "[placement]\nexpert_device = [0]",
            "expert_device: must have shape (64,), (experts,); got (1,)",
        ),
        (
            ROUTING + f"[placement]\nexpert_device = {[0] * 63 + [8]}",
            "expert_device[63] = 8: must name a device, 0 to 7",
        ),
        (ROUTING + "name = ", "not valid TOML (Invalid value"),
        ("name = 3\n" + ROUTING, "name = 3: must be a text"),
    ],
)
def test_wrong_files_name_file_table_key_and_rule(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(wo.InstanceFileError, match=re.escape(message)) as caught:
        wo.load_instance(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_files_that_are_not_there_or_not_scenarios(tmp_path: Path) -> None:
    with pytest.raises(wo.InstanceFileError, match=r"none\.toml: cannot be read \(No such file"):
        wo.load_instance(tmp_path / "none.toml")
    with pytest.raises(wo.InstanceFileError, match=r"none\.npz: cannot be read"):
        wo.load_instance(write(tmp_path, '[routing]\nfile = "none.npz"'))
    with pytest.raises(wo.InstanceFileError, match=r"must end in \.toml or \.json"):
        read_scenario(tmp_path / "x.yaml")
    load_profile("orin-nx").save(tmp_path / "own.json")
    text = ROUTING + '[fleet]\nboards = ["own.json"]\nprecision = "int4"'
    with pytest.raises(wo.InstanceFileError, match="must be of precision 'int4', is 'fp16'"):
        wo.load_instance(write(tmp_path, text))
    build_instance(LAW, tokens=4).save(tmp_path / "saved.npz")
    with pytest.raises(wo.InputError, match=r"^tokens: can only be set for shipped instances and scenarios"):
        wo.load_instance(tmp_path / "saved.npz", tokens=2)


def test_the_last_state_a_scenario_may_look_at() -> None:
    """The cap is on the chosen state, and a name of that state still builds."""
    instance = wo.load_instance(f"{LAW}/orin-mix-4/cell-100mhz:99999@2#0")
    assert instance.provenance["channel"]["state"] == 99_999
    with pytest.raises(wo.InputError, match=r"^state = 100000: must be 0 to 99999$"):
        wo.load_instance(f"{LAW}/orin-mix-4/cell-100mhz:100000@2#0")
    with pytest.raises(wo.InputError, match=r"^state = -1: must be 0 to 99999$"):
        wo.load_instance(LAW, state=-1)


@pytest.mark.parametrize("ending", ["toml", "json"])
def test_a_byte_order_mark_does_not_matter(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"mine.{ending}"
    text = f'[routing]\nfamily = "{LAW}"' if ending == "toml" else json.dumps({"routing": {"family": LAW}})
    path.write_text(text, encoding="utf-8-sig")
    assert wo.load_instance(path, tokens=2, blocks=1).tokens == 2
