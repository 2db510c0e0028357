"""Replayed traces: facts of the data, conversion, and bad input."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wdmoe_opt.errors import InputError, UnknownNameError
from wdmoe_opt.instance import Instance
from wdmoe_opt.instances import channels as ch
from wdmoe_opt.instances.channels import import_traces, traces

BITS = 16.0 * 4096


def plug(arrays: dict[str, Any], devices: int) -> Instance:
    return Instance.from_arrays(loads=np.ones((1, devices)), compute_time=np.full(devices, 1e-4), **arrays)


# ---------------------------------------------------------------------- Wi-Fi


def test_wifi_mean_goodput() -> None:
    _, goodput = ch.wifi_goodput()
    np.testing.assert_allclose(np.nanmean(goodput, axis=0) / 1e6, [13.6, 27.3, 3.4, 19.2], atol=0.05)
    np.testing.assert_array_equal((~np.isnan(goodput)).sum(axis=0), [2680, 2868, 2433, 2751])
    peaks = np.nanmax(goodput, axis=0) / 1e6
    assert 33 < peaks.min() < peaks.max() < 74


def test_wifi_links_are_those_of_the_file() -> None:
    assert tuple(traces.load_arrays(traces.WIFI_FILE)["links"]) == ch.WIFI_LINKS


def test_wifi_states_are_the_seconds_measured_on_all_links() -> None:
    sequence = ch.wifi_states(bits_down=BITS)
    systime, goodput = ch.wifi_goodput()
    complete = ~np.isnan(goodput).any(axis=1)
    assert len(sequence) == complete.sum() == 1839
    assert sequence[0].time == 0.0
    np.testing.assert_array_equal(np.diff(sequence.times), np.diff(systime[complete]))


def test_wifi_token_time_by_hand() -> None:
    sequence = ch.wifi_states(bits_down=1000.0, bits_up=400.0, uplink_ratio=0.5)
    _, goodput = ch.wifi_goodput()
    rate = goodput[~np.isnan(goodput).any(axis=1)]
    state, link = np.argwhere(rate > 0)[0]
    expected = 1000.0 / rate[state, link] + 400.0 / (0.5 * rate[state, link])
    assert sequence.stacked("token_time_link")[state, link] == pytest.approx(expected, rel=1e-14)
    down_only = ch.wifi_states(bits_down=1000.0, bits_up=0.0).stacked("token_time_link")
    both_ways = ch.wifi_states(bits_down=1000.0).stacked("token_time_link")
    np.testing.assert_array_equal(2 * down_only, both_ways)


def test_wifi_zero_goodput_is_unreachable_in_that_second() -> None:
    _, goodput = ch.wifi_goodput()
    rate = goodput[~np.isnan(goodput).any(axis=1)]
    token_time = ch.wifi_states(bits_down=BITS).stacked("token_time_link")
    np.testing.assert_array_equal(np.isinf(token_time), rate == 0)
    assert np.isinf(token_time).any(axis=0).all()
    assert np.isfinite(token_time).all(axis=1).any()
    assert (token_time > 0).all()


def test_wifi_links_may_be_chosen_and_ordered() -> None:
    full = ch.wifi_states(bits_down=BITS).stacked("token_time_link")
    two = ch.wifi_states(bits_down=BITS, links=("ap4", "ap2")).stacked("token_time_link")
    np.testing.assert_array_equal(two, full[:, [3, 1]])


def test_wifi_states_plug_into_an_instance() -> None:
    sequence = ch.wifi_states(bits_down=BITS)
    for state in sequence[:20]:
        instance = plug(state.arrays(), 4)
        np.testing.assert_array_equal(instance.token_time_link, state.token_time_link)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"bits_down": -1.0}, "bits_down"),
        ({"bits_down": 0.0}, "bits_down"),
        ({"bits_down": math.nan}, "bits_down"),
        ({"bits_up": math.inf}, "bits_up"),
        ({"uplink_ratio": 0.0}, "uplink_ratio"),
        ({"links": ()}, "links"),
        ({"links": ("ap1", "ap1")}, "links"),
        ({"links": ("ap5",)}, "links"),
    ],
)
def test_wifi_refuses_bad_input(arguments: dict[str, Any], field: str) -> None:
    with pytest.raises(InputError) as caught:
        ch.wifi_states(**{"bits_down": BITS, **arguments})
    assert caught.value.field == field


# ---------------------------------------------------------------------- 5G


def test_fiveg_medians_and_outages() -> None:
    medians = {name: np.median(ch.fiveg_round_trips(name)[1]) * 1e3 for name in ch.FIVEG_TRACES}
    assert [round(medians[name], 6) for name in ch.STEADY_TRACES] == [18.0, 20.0, 16.0, 16.0, 24.0]
    assert medians["south_n8_v10_05"] == pytest.approx(2050.0)
    tails = [np.percentile(ch.fiveg_round_trips(name)[1], 99) for name in ch.STEADY_TRACES]
    assert 0.027 <= min(tails) < max(tails) < 0.37


def test_fiveg_traces_are_those_of_the_file() -> None:
    stored = {name.partition(".")[0] for name in traces.load_arrays(traces.FIVEG_FILE)}
    assert stored == set(ch.FIVEG_TRACES)


def test_fiveg_holds_the_last_message_sent() -> None:
    sequence = ch.fiveg_states(2, traces=("urban_n8_v0_run01", "south_n8_v0_01"), offsets=[3.0, 0.0])
    for index in (0, 1, 77, len(sequence) - 1):
        for device, (name, start) in enumerate((("urban_n8_v0_run01", 3.0), ("south_n8_v0_01", 0.0))):
            sent, trip = ch.fiveg_round_trips(name)
            last = max(i for i in range(sent.size) if sent[i] <= start + sequence.times[index])
            assert sequence.stacked("link_delay")[index, device] == trip[last]


def test_fiveg_devices_share_traces_at_different_offsets() -> None:
    sequence = ch.fiveg_states(8)
    assert sequence.provenance["traces"] == [*ch.STEADY_TRACES, *ch.STEADY_TRACES[:3]]
    assert sequence.provenance["offsets"] == [0.0] * 5 + [10.0] * 3
    delay = sequence.stacked("link_delay")
    np.testing.assert_array_equal(delay[200:, 0], delay[: len(sequence) - 200, 5])
    assert len(sequence) > 1000
    np.testing.assert_allclose(np.diff(sequence.times), 0.05, rtol=1e-9)


def test_fiveg_replay_ends_with_the_shortest_trace() -> None:
    sent, _ = ch.fiveg_round_trips("arterial_n78_v80_run01")
    sequence = ch.fiveg_states(5, step=1.0)
    assert sequence.times[-1] <= sent[-1] < sequence.times[-1] + 1.0
    assert len(ch.fiveg_states(1, offsets=69.581)) == 1


def test_fiveg_states_plug_into_an_instance() -> None:
    cell = ch.cell_states(seed=0)[0]
    delay = ch.fiveg_states(8)[100]
    assert set(delay.arrays()) == {"link_delay"}
    instance = plug({**cell.arrays(), **delay.arrays(), "bits_down": BITS, "bits_up": BITS}, 8)
    np.testing.assert_array_equal(instance.link_delay, delay.link_delay)


@pytest.mark.parametrize(
    ("arguments", "field", "index"),
    [
        ({"devices": 0}, "devices", None),
        ({"devices": 2.0}, "devices", None),
        ({"step": 0.0}, "step", None),
        ({"traces": ()}, "traces", None),
        ({"traces": ("urban",)}, "traces", None),
        ({"offsets": [0.0, -1.0]}, "offsets", (1,)),
        ({"offsets": [0.0, 200.0]}, "offsets", (1,)),
        ({"offsets": [0.0]}, "offsets", None),
        ({"devices": 40}, "offsets", (38,)),
    ],
)
def test_fiveg_refuses_bad_input(
    arguments: dict[str, Any], field: str, index: tuple[int, ...] | None
) -> None:
    with pytest.raises(InputError) as caught:
        ch.fiveg_states(**{"devices": 2, **arguments})
    assert (caught.value.field, caught.value.index) == (field, index)


def test_unknown_trace_names_near_ones() -> None:
    with pytest.raises(UnknownNameError, match="south_n8_v0_01"):
        ch.fiveg_round_trips("south_n8_v0_02")


# ---------------------------------------------------------------------- files


def test_traces_are_read_once_and_read_only() -> None:
    for file in (traces.WIFI_FILE, traces.FIVEG_FILE):
        arrays = traces.load_arrays(file)
        assert traces.load_arrays(file) is arrays
        assert not any(array.flags.writeable for array in arrays.values())
        with pytest.raises(TypeError):
            arrays["links"] = np.zeros(1)  # type: ignore[index]
    with pytest.raises(ValueError, match="read-only"):
        ch.wifi_goodput()[1][0] = 1.0


def test_import_loads_no_trace_and_no_scipy() -> None:
    code = (
        "import sys, wdmoe_opt; before = set(sys.modules); "
        "from wdmoe_opt.instances.channels import traces; "
        "assert traces.load_arrays.cache_info().misses == 0; "
        "assert not any(name.startswith('scipy') for name in set(sys.modules) - before)"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)


def test_provenance_is_json_and_the_data_carry_licence_and_provenance() -> None:
    for sequence in (ch.wifi_states(bits_down=BITS), ch.fiveg_states(3), ch.cell_states(2, seed=1)):
        json.dumps(dict(sequence.provenance), allow_nan=False)
    moving = ch.tr38901_states(
        seed=1, scenario="uma", distances_m=[20.0], fading=ch.Autoregressive(np.array([5.0]))
    )
    json.dumps(dict(moving.provenance), allow_nan=False)
    for folder in ("feup-wifi", "cicv5g"):
        assert "Attribution 4.0" in (traces.DATA_DIR / folder / "LICENSE.md").read_text()
        assert "## Changed for this package" in (traces.DATA_DIR / folder / "PROVENANCE.md").read_text()


def test_conversion_of_a_small_source(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "data"
    (source / "feup-wifi").mkdir(parents=True)
    (source / "cicv5g").mkdir()
    (source / "feup-wifi" / "final-exp-log.csv").write_text(
        "senderId,systime,isIperfOn,nBytesReceived\n"
        "ap2,100,1.0,7\nap1,100,1.0,0\nap1,101,0.0,9\nap2,101,1.0,8\nap1,99,0.0,5\n"
    )
    (source / "cicv5g" / "run.txt").write_text(
        "pub_time(ms) sub_time(ms) delay(ms) cellid(db)\n1000 1022 22 5C4\n1055 1071 16 5C4\n"
    )
    import_traces.main([str(source), str(target)])
    with np.load(target / traces.WIFI_FILE, allow_pickle=False) as wifi:
        assert wifi["links"].tolist() == ["ap1", "ap2"]
        assert wifi["systime"].tolist() == [100, 101]
        assert wifi["bytes_received"].tolist() == [[0, 7], [traces.MISSING, 8]]
    with np.load(target / traces.FIVEG_FILE, allow_pickle=False) as fiveg:
        assert fiveg["run.sent"].tolist() == [0, 55]
        assert fiveg["run.delay"].tolist() == [22, 16]
    first = (target / traces.WIFI_FILE).read_bytes()
    import_traces.main([str(source), str(target)])
    assert (target / traces.WIFI_FILE).read_bytes() == first
