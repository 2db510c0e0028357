"""Channel states against theory, hand-computed values and facts of the traces."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.special import j0

from wdmoe_opt.errors import InputError, UnknownNameError
from wdmoe_opt.instance import Instance
from wdmoe_opt.instances import channels as ch

SAMPLES = 40_000


def fading_power(fading: ch.Fading, states: int = SAMPLES, devices: int = 4, **more: Any) -> np.ndarray:
    return fading.power(states, devices, **{"block_time": 1e-3, "seed": 7, "stream": 0, **more})


def plug(state: ch.ChannelState, **more: Any) -> Instance:
    devices = state.devices
    ids = np.tile(np.arange(min(devices, 2)), (2, 3, 1))
    weights = np.tile(np.array([0.7, 0.3])[: ids.shape[2]], (2, 3, 1))
    return Instance.from_arrays(
        expert_ids=ids,
        gate_weights=weights,
        compute_time=np.full(devices, 1e-4),
        **state.arrays(),
        **more,
    )


# ---------------------------------------------------------------------- state and sequence


def test_state_names_bad_field_index_value_and_rule() -> None:
    with pytest.raises(InputError) as caught:
        ch.ChannelState(link_delay=[0.1, -0.2])  # type: ignore[arg-type]
    assert (caught.value.field, caught.value.index, caught.value.value) == ("link_delay", (1,), -0.2)
    assert caught.value.rule == "must be at least 0"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({}, "ChannelState"),
        ({"gain_down": [1.0]}, "gain_up"),
        ({"token_time_link": [1.0], "noise_density": 1.0}, "noise_density"),
        ({"token_time_link": [math.nan]}, "token_time_link"),
        ({"token_time_link": "slow"}, "token_time_link"),
        ({"token_time_link": [1.0], "link_delay": [0.1, 0.1]}, "link_delay"),
        ({"link_delay": 0.1}, "link_delay"),
        ({"link_delay": [[0.1]]}, "link_delay"),
        ({"link_delay": [0.1], "time": math.inf}, "time"),
    ],
)
def test_state_refuses_incoherent_fields(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InputError) as caught:
        ch.ChannelState(**fields)
    assert caught.value.field == field


def test_state_refuses_powers_of_other_devices() -> None:
    state = ch.cell_states(seed=1)[0]
    with pytest.raises(InputError) as caught:
        state.replace(power_up=np.ones(3))
    assert caught.value.field == "power_up"


def test_state_is_read_only_and_a_copy() -> None:
    given = np.array([0.1, 0.2])
    state = ch.ChannelState(link_delay=given)
    given[0] = 9.0
    assert state.link_delay is not None
    assert state.link_delay[0] == 0.1
    with pytest.raises(ValueError, match="read-only"):
        state.link_delay[0] = 1.0
    with pytest.raises(AttributeError):
        state.time = 3.0  # type: ignore[misc]


def test_sequence_is_a_sequence() -> None:
    sequence = ch.cell_states(6, seed=1, block_time=0.5)
    assert len(sequence) == 6
    assert [state.time for state in sequence] == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]
    assert sequence[-1].time == 2.5
    part = sequence[2:4]
    assert isinstance(part, ch.ChannelSequence)
    assert [state.time for state in part] == [1.0, 1.5]
    np.testing.assert_array_equal(part.stacked("gain_up"), sequence.stacked("gain_up")[2:4])
    assert part.provenance == sequence.provenance
    assert repr(part) == "<ChannelSequence: 2 states, 8 devices, varying gain_down, gain_up>"
    with pytest.raises(IndexError):
        sequence[6]
    with pytest.raises(UnknownNameError):
        sequence.stacked("link_delay")


@pytest.mark.parametrize(
    ("times", "varying", "field"),
    [
        ([], {"link_delay": np.ones((0, 2))}, "times"),
        ([0.0, 0.0], {"link_delay": np.ones((2, 2))}, "times"),
        ([0.0, math.nan], {"link_delay": np.ones((2, 2))}, "times"),
        ([0.0, 1.0], {"link_delay": np.ones(2)}, "link_delay"),
        ([0.0, 1.0], {"link_delay": np.ones((3, 2))}, "link_delay"),
        ([0.0, 1.0], {"link_delay": [[1.0], [math.nan]]}, "link_delay"),
        ([0.0, 1.0], {"link_dely": np.ones((2, 2))}, "ChannelSequence"),
    ],
)
def test_sequence_refuses_bad_input(times: list[float], varying: dict[str, Any], field: str) -> None:
    with pytest.raises(InputError) as caught:
        ch.ChannelSequence(times, varying)
    assert caught.value.field == field


def test_per_block_gives_each_block_its_own_gains() -> None:
    sequence = ch.cell_states(5, seed=1)
    state = sequence.per_block(2, start=3)
    assert state.time == sequence[3].time
    assert state.gain_down is not None
    np.testing.assert_array_equal(state.gain_down, sequence.stacked("gain_down")[3:])
    assert plug(state, bits_down=8.0, bits_up=8.0).blocks == 2
    for blocks, start in ((3, 3), (0, 0), (1, 5)):
        with pytest.raises(InputError):
            sequence.per_block(blocks, start)
    with pytest.raises(InputError, match="only gains"):
        ch.fiveg_states(2).per_block(2)


def test_combine_puts_delays_on_links() -> None:
    link = ch.wifi_states(bits_down=1e3)[:50]
    both = ch.combine(link, ch.fiveg_states(4))
    assert len(both) == 50
    assert both[7].time == link[7].time
    instance = plug(both[7])
    np.testing.assert_array_equal(instance.link_delay, ch.fiveg_states(4)[7].link_delay)
    assert both.provenance["delay"]["licence"] == "CC BY 4.0"
    with pytest.raises(InputError) as caught:
        ch.combine(link, ch.fiveg_states(3))
    assert (caught.value.field, caught.value.value) == ("delay", 3)


# ---------------------------------------------------------------------- fading
# Tolerances are about five standard errors of the estimate over the samples used.


@pytest.mark.parametrize("fading", [ch.Rayleigh(), ch.Rician(0.0), ch.Rician([0.5, 1.0, 4.0, 20.0])])
def test_block_fading_moments(fading: ch.Rayleigh | ch.Rician) -> None:
    power = fading_power(fading)
    k = np.broadcast_to(getattr(fading, "k_factor", 0.0), 4)
    variance = (2 * k + 1) / (k + 1) ** 2
    np.testing.assert_array_less(np.abs(power.mean(axis=0) - 1), 5 * np.sqrt(variance / SAMPLES))
    np.testing.assert_allclose(power.var(axis=0), variance, rtol=0.08)


def test_rayleigh_power_is_exponential() -> None:
    power = fading_power(ch.Rayleigh()).ravel()
    for level in (0.05, 0.5, 1.0, 3.0):
        expected = 1 - math.exp(-level)
        error = 5 * math.sqrt(expected * (1 - expected) / power.size)
        assert abs((power <= level).mean() - expected) < error


def test_rician_without_scatter_approaches_one_and_without_path_is_rayleigh() -> None:
    np.testing.assert_allclose(fading_power(ch.Rician(1e12), 100), 1.0, atol=1e-4)
    np.testing.assert_array_equal(fading_power(ch.Rician(0.0), 100), fading_power(ch.Rayleigh(), 100))


def test_draws_are_independent_in_time_between_devices_and_streams() -> None:
    power = fading_power(ch.Rayleigh())
    other = fading_power(ch.Rayleigh(), stream=1)
    pairs = [(power[1:, 0], power[:-1, 0]), (power[:, 0], power[:, 1]), (power[:, 0], other[:, 0])]
    for first, second in pairs:
        assert abs(np.corrcoef(first, second)[0, 1]) < 5 / math.sqrt(SAMPLES)


@pytest.mark.parametrize("doppler", [20.0, 100.0, 250.0, 600.0])
def test_autoregressive_lag_correlation_is_a_power_of_j0(doppler: float) -> None:
    fading = ch.Autoregressive(doppler)
    a = float(j0(2 * math.pi * doppler * 1e-3))
    np.testing.assert_allclose(fading.correlation(4, 1e-3), a, rtol=1e-14)
    power = fading_power(fading, devices=16)
    # Power of a circular Gaussian process: its correlation is the square of the amplitude's.
    effective = SAMPLES * 16 * (1 - a**2) / (1 + a**2)
    assert abs(power.mean() - 1) < 5 / math.sqrt(effective)
    for lag in (1, 2, 5):
        measured = np.mean((power[lag:] - 1) * (power[:-lag] - 1))
        assert measured == pytest.approx(a ** (2 * lag), abs=20 / math.sqrt(effective))


def test_autoregressive_amplitude_correlation_is_j0() -> None:
    # With a strong fixed path the power is 1 + 2 Re(h) / sqrt(K) to first order: linear in the amplitude.
    doppler, k = 250.0, 1e8
    scattered = (fading_power(ch.Autoregressive(doppler, k), devices=16) - 1) * math.sqrt(k)
    measured = np.mean(scattered[1:] * scattered[:-1]) / np.mean(scattered**2)
    assert measured == pytest.approx(j0(2 * math.pi * doppler * 1e-3), abs=5 / math.sqrt(SAMPLES * 16))


def test_autoregressive_limits() -> None:
    frozen = fading_power(ch.Autoregressive(0.0), 50)
    np.testing.assert_array_equal(frozen, np.broadcast_to(frozen[0], frozen.shape))
    np.testing.assert_array_equal(frozen[0], fading_power(ch.Rayleigh(), 1)[0])
    per_device = fading_power(ch.Autoregressive([0.0, 50.0, 0.0, 50.0]), 50)
    np.testing.assert_array_equal(np.ptp(per_device, axis=0) > 0, [False, True, False, True])


def test_doppler_of_a_walk_and_a_drive() -> None:
    np.testing.assert_allclose(ch.doppler_hz([0.0, 1.0, 30.0], 3.5), [0.0, 11.6747, 350.242], rtol=1e-5)


MODELS = [ch.Unfaded(), ch.Rayleigh(), ch.Rician(3.0), ch.Autoregressive(40.0), ch.Autoregressive(40.0, 3.0)]


@pytest.mark.parametrize("fading", MODELS, ids=lambda model: type(model).__name__)
def test_same_seed_same_states_and_a_longer_sequence_starts_alike(fading: ch.Fading) -> None:
    short, long = (fading_power(fading, states) for states in (10, 300))
    np.testing.assert_array_equal(short, long[:10])
    assert (short > 0).all()
    if not isinstance(fading, ch.Unfaded):
        assert not np.array_equal(short, fading_power(fading, 10, seed=8))


def test_first_draws_are_pinned() -> None:
    rayleigh = [[0.9810838630345526, 1.4947070420999182], [0.3569125220313518, 0.00527921513205696]]
    np.testing.assert_allclose(fading_power(ch.Rayleigh(), 2, 2), rayleigh, rtol=1e-12)
    moving = [[0.9810838630345526, 1.4947070420999182], [1.1651264678370492, 1.4227816499641603]]
    np.testing.assert_allclose(fading_power(ch.Autoregressive(40.0), 2, 2), moving, rtol=1e-12)


@pytest.mark.parametrize(
    ("fading", "field"),
    [
        (ch.Rician(-1.0), "k_factor"),
        (ch.Rician([1.0, 2.0]), "k_factor"),
        (ch.Rician(math.nan), "k_factor"),
        (ch.Autoregressive(-3.0), "doppler_hz"),
        (ch.Autoregressive([1.0]), "doppler_hz"),
        (ch.Autoregressive(1.0, -2.0), "k_factor"),
    ],
)
def test_fading_refuses_bad_parameters(fading: ch.Fading, field: str) -> None:
    with pytest.raises(InputError) as caught:
        ch.cell_states(2, seed=0, fading=fading)
    assert caught.value.field == field


# ---------------------------------------------------------------------- the cell of paper A


@pytest.mark.parametrize(
    ("distance", "down_ms", "up_ms"), [(50.0, 0.240, 0.324), (100.0, 0.264, 0.369), (300.0, 0.314, 0.475)]
)
def test_cell_gives_the_known_token_times(distance: float, down_ms: float, up_ms: float) -> None:
    state = ch.cell_states(seed=0, distances_m=[distance], fading=ch.Unfaded())[0]
    fields = {name: float(np.ravel(value)[0]) for name, value in state.arrays().items()}
    share, bits = 12.5e6, 16 * 4096
    for way, expected in (("down", down_ms), ("up", up_ms)):
        snr = fields[f"power_{way}"] * fields[f"gain_{way}"] / (fields["noise_density"] * share)
        assert bits / (share * math.log2(1 + snr)) * 1e3 == pytest.approx(expected, abs=5e-4)


def test_cell_defaults() -> None:
    sequence = ch.cell_states(3, seed=5)
    state = sequence[1]
    assert sequence.devices == 8
    assert state.total_bandwidth == 100e6
    assert state.noise_density == pytest.approx(3.9810717e-21)
    assert (float(state.power_down), float(state.power_up)) == (10.0, 0.2)  # type: ignore[arg-type]
    np.testing.assert_array_equal(state.gain_down, state.gain_up)
    assert min(ch.DEFAULT_DISTANCES_M) == 60.0
    assert max(ch.DEFAULT_DISTANCES_M) == 300.0


def test_cell_mean_gain_is_free_space() -> None:
    distances = np.array([60.0, 300.0])
    gain = ch.cell_states(SAMPLES, seed=2, distances_m=distances).stacked("gain_down")
    loss = 32.4 + 20 * np.log10(3.5) + 20 * np.log10(distances)
    np.testing.assert_allclose(gain.mean(axis=0) * 10 ** (loss / 10), 1.0, atol=5 / math.sqrt(SAMPLES))


def test_uplink_may_fade_on_its_own() -> None:
    both = ch.cell_states(100, seed=2)
    split = ch.cell_states(100, seed=2, reciprocal=False)
    np.testing.assert_array_equal(both.stacked("gain_down"), split.stacked("gain_down"))
    assert not np.array_equal(split.stacked("gain_down"), split.stacked("gain_up"))


@pytest.mark.parametrize(
    ("arguments", "field", "index"),
    [
        ({"distances_m": [50.0, -1.0]}, "distances_m", (1,)),
        ({"distances_m": [50.0, math.nan]}, "distances_m", (1,)),
        ({"distances_m": [0.5]}, "distances_m", (0,)),
        ({"distances_m": []}, "distances_m", None),
        ({"distances_m": 50.0}, "distances_m", None),
        ({"distances_m": [[50.0]]}, "distances_m", None),
        ({"carrier_ghz": 0.0}, "carrier_ghz", None),
        ({"total_bandwidth_mhz": -1.0}, "total_bandwidth_mhz", None),
        ({"noise_dbm_per_hz": math.nan}, "noise_dbm_per_hz", None),
        ({"power_down": 0.0}, "power_down", None),
        ({"power_up": [0.2, 0.2]}, "power_up", None),
        ({"block_time": 0.0}, "block_time", None),
        ({"fading": "rayleigh"}, "fading", None),
        ({"states": 0}, "states", None),
        ({"states": 2.0}, "states", None),
        ({"seed": -1}, "seed", None),
        ({"seed": None}, "seed", None),
    ],
)
def test_cell_refuses_bad_input(arguments: dict[str, Any], field: str, index: tuple[int, ...] | None) -> None:
    with pytest.raises(InputError) as caught:
        ch.cell_states(**{"states": 2, "seed": 0, **arguments})
    assert (caught.value.field, caught.value.index) == (field, index)
    assert caught.value.rule


# ---------------------------------------------------------------------- TR 38.901


def umi_los(d2d: float, f: float, h_ut: float, h_bs: float) -> float:
    d3d = math.sqrt(d2d**2 + (h_bs - h_ut) ** 2)
    d_bp = 4 * (h_bs - 1) * (h_ut - 1) * f * 1e9 / 3e8
    if d2d <= d_bp:
        return 32.4 + 21 * math.log10(d3d) + 20 * math.log10(f)
    return 32.4 + 40 * math.log10(d3d) + 20 * math.log10(f) - 9.5 * math.log10(d_bp**2 + (h_bs - h_ut) ** 2)


def uma_los(d2d: float, f: float, h_ut: float, h_bs: float) -> float:
    d3d = math.sqrt(d2d**2 + (h_bs - h_ut) ** 2)
    d_bp = 4 * (h_bs - 1) * (h_ut - 1) * f * 1e9 / 3e8
    if d2d <= d_bp:
        return 28.0 + 22 * math.log10(d3d) + 20 * math.log10(f)
    return 28.0 + 40 * math.log10(d3d) + 20 * math.log10(f) - 9 * math.log10(d_bp**2 + (h_bs - h_ut) ** 2)


def umi_nlos(d2d: float, f: float, h_ut: float, h_bs: float) -> float:
    d3d = math.sqrt(d2d**2 + (h_bs - h_ut) ** 2)
    own = 35.3 * math.log10(d3d) + 22.4 + 21.3 * math.log10(f) - 0.3 * (h_ut - 1.5)
    return max(umi_los(d2d, f, h_ut, h_bs), own)


def uma_nlos(d2d: float, f: float, h_ut: float, h_bs: float) -> float:
    d3d = math.sqrt(d2d**2 + (h_bs - h_ut) ** 2)
    own = 13.54 + 39.08 * math.log10(d3d) + 20 * math.log10(f) - 0.6 * (h_ut - 1.5)
    return max(uma_los(d2d, f, h_ut, h_bs), own)


FORMULAS = {
    ("umi", True): umi_los,
    ("umi", False): umi_nlos,
    ("uma", True): uma_los,
    ("uma", False): uma_nlos,
}
HEIGHTS = {"umi": 10.0, "uma": 25.0}


@pytest.mark.parametrize(("scenario", "sight"), FORMULAS)
@pytest.mark.parametrize("carrier", [0.5, 3.5, 28.0, 100.0])
def test_path_loss_follows_the_table(scenario: str, sight: bool, carrier: float) -> None:
    distances = [10.0, 35.0, 100.0, 209.0, 600.0, 1800.0, 5000.0]
    for h_ut in (1.5, 6.0, 22.5):
        expected = [FORMULAS[scenario, sight](d, carrier, h_ut, HEIGHTS[scenario]) for d in distances]
        loss = ch.path_loss_db(
            distances, scenario=scenario, line_of_sight=sight, carrier_ghz=carrier, h_ut=h_ut
        )
        np.testing.assert_allclose(loss, expected, rtol=1e-13)


@pytest.mark.parametrize(
    ("scenario", "sight", "expected"),
    [("umi", True, 85.314), ("umi", False, 104.644), ("uma", True, 83.138), ("uma", False, 103.038)],
)
def test_path_loss_at_100_m_and_3_5_ghz(scenario: str, sight: bool, expected: float) -> None:
    loss = ch.path_loss_db([100.0], scenario=scenario, line_of_sight=sight, carrier_ghz=3.5)
    assert loss[0] == pytest.approx(expected, abs=5e-4)


@pytest.mark.parametrize("scenario", ["umi", "uma"])
def test_breakpoint_is_where_the_slope_changes_and_the_loss_is_continuous(scenario: str) -> None:
    corner = ch.breakpoint_distance_m(scenario=scenario, carrier_ghz=3.5)
    assert corner == pytest.approx({"umi": 210.0, "uma": 560.0}[scenario])
    around = np.array([0.25, 1 - 1e-9, 1 + 1e-9, 4.0]) * corner
    loss = ch.path_loss_db(around, scenario=scenario, line_of_sight=True, carrier_ghz=3.5)
    assert abs(loss[2] - loss[1]) < 1e-6
    decades = math.log10(4)
    assert (loss[1] - loss[0]) / decades == pytest.approx({"umi": 21.0, "uma": 22.0}[scenario], rel=0.01)
    assert (loss[3] - loss[2]) / decades == pytest.approx(40.0, rel=0.01)


@pytest.mark.parametrize(("scenario", "sight"), FORMULAS)
def test_path_loss_grows_with_distance(scenario: str, sight: bool) -> None:
    distances = np.geomspace(10, 5000, 500)
    loss = ch.path_loss_db(distances, scenario=scenario, line_of_sight=sight, carrier_ghz=3.5)
    assert (np.diff(loss) > 0).all()
    clear = ch.path_loss_db(distances, scenario=scenario, line_of_sight=True, carrier_ghz=3.5)
    assert (loss >= clear).all()


def test_line_of_sight_probability() -> None:
    near = 18 / 100
    for scenario, decay in (("umi", 36.0), ("uma", 63.0)):
        chance = ch.line_of_sight_probability([10.0, 18.0, 100.0], scenario=scenario)
        np.testing.assert_allclose(chance, [1, 1, near + math.exp(-100 / decay) * (1 - near)], rtol=1e-13)
    high = ch.line_of_sight_probability([15.0, 100.0], scenario="uma", h_ut=22.5)
    bonus = 0.95**1.5 * 1.25 * math.exp(-100 / 150)
    np.testing.assert_allclose(
        high, [1.0, (near + math.exp(-100 / 63) * (1 - near)) * (1 + bonus)], rtol=1e-13
    )
    for h_ut in (1.5, 13.0, 22.5):
        chance = ch.line_of_sight_probability(np.linspace(10, 5000, 999), scenario="uma", h_ut=h_ut)
        assert (chance > 0).all()
        assert (chance <= 1).all()


def test_line_of_sight_and_shadowing_are_drawn_as_the_table_says() -> None:
    devices = 20_000
    sequence = ch.tr38901_states(
        seed=3, scenario="umi", distances_m=np.full(devices, 100.0), fading=ch.Unfaded()
    )
    sight = np.array(sequence.provenance["line_of_sight"])
    shadow = np.array(sequence.provenance["shadowing_db"])
    chance = ch.line_of_sight_probability([100.0], scenario="umi")[0]
    assert abs(sight.mean() - chance) < 5 * math.sqrt(chance * (1 - chance) / devices)
    for chosen, sigma in ((shadow[sight], 4.0), (shadow[~sight], 7.82)):
        assert abs(chosen.mean()) < 5 * sigma / math.sqrt(chosen.size)
        assert chosen.std() == pytest.approx(sigma, rel=5 / math.sqrt(2 * chosen.size))
        assert (np.abs(chosen) < sigma).mean() == pytest.approx(0.6827, abs=2.5 / math.sqrt(chosen.size))
    loss = ch.path_loss_db(np.full(devices, 100.0), scenario="umi", line_of_sight=sight, carrier_ghz=3.5)
    gain = sequence.stacked("gain_down")[0]
    np.testing.assert_allclose(-10 * np.log10(gain), loss + shadow, rtol=1e-12)


def test_tr38901_default_fading_is_rician_with_sight_and_rayleigh_without() -> None:
    sequence = ch.tr38901_states(
        SAMPLES,
        seed=4,
        scenario="uma",
        distances_m=[50.0, 50.0],
        line_of_sight=[True, False],
        shadowing=False,
    )
    gain = sequence.stacked("gain_down")
    k = 10**0.9
    expected = [(2 * k + 1) / (k + 1) ** 2, 1.0]
    np.testing.assert_allclose(gain.var(axis=0) / gain.mean(axis=0) ** 2, expected, rtol=0.08)
    assert sequence.provenance["shadowing_db"] == [0.0, 0.0]


def test_tr38901_longer_sequence_starts_alike() -> None:
    def draw(states: int) -> ch.ChannelSequence:
        return ch.tr38901_states(states, seed=6, scenario="umi", distances_m=[20.0, 80.0, 200.0])

    np.testing.assert_array_equal(draw(5).stacked("gain_up"), draw(50).stacked("gain_up")[:5])


@pytest.mark.parametrize(
    ("arguments", "field", "index"),
    [
        ({"scenario": "rural"}, "scenario", None),
        ({"scenario": 3}, "scenario", None),
        ({"distances_m": [100.0, -5.0]}, "distances_m", (1,)),
        ({"distances_m": [9.9]}, "distances_m", (0,)),
        ({"distances_m": [100.0, 5001.0]}, "distances_m", (1,)),
        ({"distances_m": [math.nan]}, "distances_m", (0,)),
        ({"carrier_ghz": 0.4}, "carrier_ghz", None),
        ({"carrier_ghz": 101.0}, "carrier_ghz", None),
        ({"carrier_ghz": math.nan}, "carrier_ghz", None),
        ({"h_ut": [1.5, 1.0]}, "h_ut", (1,)),
        ({"h_ut": [1.5, 1.5, 1.5]}, "h_ut", None),
        ({"h_ut": 23.0}, "h_ut", None),
        ({"h_bs": 1.0}, "h_bs", None),
        ({"line_of_sight": [1, 0]}, "line_of_sight", None),
        ({"line_of_sight": [True]}, "line_of_sight", None),
        ({"seed": 1.5}, "seed", None),
    ],
)
def test_tr38901_refuses_bad_input(
    arguments: dict[str, Any], field: str, index: tuple[int, ...] | None
) -> None:
    good = {"seed": 0, "scenario": "umi", "distances_m": [50.0, 100.0]}
    with pytest.raises(InputError) as caught:
        ch.tr38901_states(2, **{**good, **arguments})
    assert (caught.value.field, caught.value.index) == (field, index)


def test_unknown_scenario_lists_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match="uma, umi"):
        ch.path_loss_db([50.0], scenario="???", line_of_sight=True, carrier_ghz=3.5)


# ---------------------------------------------------------------------- every state is an instance's link


@pytest.mark.parametrize(
    "sequence",
    [
        ch.cell_states(2, seed=0),
        ch.cell_states(2, seed=0, power_up=np.linspace(0.1, 0.2, 8), reciprocal=False),
        ch.cell_states(2, seed=0, fading=ch.Autoregressive(ch.doppler_hz(1.0, 3.5))),
        ch.tr38901_states(2, seed=0, scenario="umi", distances_m=[10.0, 50.0, 250.0]),
        ch.tr38901_states(2, seed=0, scenario="uma", distances_m=[10.0, 5000.0], h_ut=[1.5, 15.0]),
    ],
    ids=["cell", "cell-split", "cell-moving", "umi", "uma"],
)
def test_radio_states_plug_into_an_instance(sequence: ch.ChannelSequence) -> None:
    for state in sequence:
        instance = plug(state, bits_down=65536.0, bits_up=65536.0, provenance=sequence.provenance)
        assert instance.devices == sequence.devices
        np.testing.assert_array_equal(instance.gain_down, state.gain_down)
