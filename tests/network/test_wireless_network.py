"""Blocks sent through a network, without a model: prices, clock, outages, policies."""

from __future__ import annotations

import numpy as np
import pytest

import wdmoe_opt as wo
from wdmoe_opt.instances.channels import ChannelSequence, ChannelState, channel_states, wifi_states
from wdmoe_opt.network import ChannelPlayback, Choice, DeviceHistory, HistoryPolicy, WirelessNetwork
from wdmoe_opt.solvers.testbed import Algorithm2

BLOCKS, TOKENS, EXPERTS, DEVICES = 3, 12, 6, 3
HOSTS = [0, 0, 1, 1, 2, 2]
NEVER = np.inf


def gates(seed=0, tokens=TOKENS, columns=2):
    rng = np.random.default_rng(seed)
    ids = rng.random((BLOCKS, tokens, EXPERTS)).argsort(axis=2)[:, :, :columns]
    return ids, -np.sort(-rng.dirichlet(np.ones(columns), (BLOCKS, tokens)), axis=2)


def fleet(measured=False, columns=2, **changes):
    ids, weights = gates(9, 1, columns)
    link = channel_states("cell-100mhz", DEVICES)[0].arrays() | {"bits_down": 65536.0, "bits_up": 65536.0}
    if measured:
        link = {"token_time_link": [1e-3, 2e-3, 4e-3]}
    fields = {
        "expert_ids": ids, "gate_weights": weights, "top_k": 2, "expert_device": HOSTS,
        "compute_time": [1e-4, 2e-4, 3e-4], "activation_time": [0.0, 1e-4, 0.0], **link,
    }  # fmt: skip
    return wo.Instance.from_arrays(**(fields | changes))


def run(network, passes=1, seed=0, tokens=TOKENS, columns=2):
    deliveries = []
    for number in range(passes):
        ids, weights = gates(seed + number, tokens, columns)
        network.begin_pass(tokens)
        deliveries += [network.send(block, ids[block], weights[block]) for block in range(BLOCKS)]
    return deliveries


@pytest.mark.parametrize(
    "policy", ["topk-uniform", "wdmoe", "greedy", "wdmoe-testbed", "session", "certified"]
)
@pytest.mark.parametrize("candidates", [2, 4])
def test_the_report_is_what_evaluate_says(policy, candidates):
    inst = fleet(columns=4)
    network = WirelessNetwork(inst, policy=policy, min_retention=0.8, candidates=candidates)
    assert network.columns == candidates
    deliveries = run(network, columns=candidates)
    ids, weights = gates(0, TOKENS, candidates)
    problem = wo.Problem(
        inst.replace(expert_ids=ids, gate_weights=weights),
        min_retention=0.8, candidates=candidates, allocation="per-block",
    )  # fmt: skip
    keep = np.stack([delivery.keep for delivery in deliveries])
    width = np.stack([np.ravel(delivery.evaluation.bandwidth) for delivery in deliveries])
    priced = wo.evaluate(problem, keep, width)
    np.testing.assert_allclose(network.report.column("latency"), priced.block_latency, rtol=1e-12)
    np.testing.assert_allclose(network.report.column("retention"), priced.block_retention, rtol=1e-12)
    assert network.report.latency == pytest.approx(priced.latency, rel=1e-12)
    assert network.report.pass_latency == pytest.approx([priced.latency], rel=1e-12)
    assert network.report.tokens == TOKENS
    assert network.channel.now == pytest.approx(priced.latency, rel=1e-12)
    if policy not in ("topk-uniform", "wdmoe", "wdmoe-testbed"):
        assert network.report.floors_missed == 0
        assert network.report.retention >= 0.8


def test_floors_and_bandwidth_may_differ_by_block():
    width = np.array([[6e7, 3e7, 1e7], [1e7, 6e7, 3e7], [3e7, 1e7, 6e7]])
    problem = wo.Problem(fleet(), min_retention=[0.6, 0.8, 1.0], allocation="fixed", bandwidth=width)
    for policy in ("greedy", "session"):
        deliveries = run(WirelessNetwork(problem, policy=policy))
        for block, delivery in enumerate(deliveries):
            np.testing.assert_array_equal(np.ravel(delivery.evaluation.bandwidth), width[block])
            assert delivery.record.retention >= [0.6, 0.8, 1.0][block] - 1e-9
            assert delivery.record.floors_kept


def test_the_default_is_as_good_as_certified():
    session, certified = (
        WirelessNetwork(
            fleet(), policy=policy, min_retention=0.8, policy_options={"rel_gap": 1e-3, "time_limit": 30.0}
        )
        for policy in ("session", "certified")
    )
    for network in (session, certified):
        run(network)
    np.testing.assert_allclose(
        session.report.column("latency"), certified.report.column("latency"), rtol=0.02
    )


def test_a_session_grows_and_a_given_one_says_that_it_is_too_small():
    network = WirelessNetwork(fleet(), min_retention=0.8)
    run(network, tokens=200)
    assert network.policy.session.max_tokens == 256
    given = wo.Session(wo.Problem(fleet(), allocation="per-block"), max_tokens=8)
    with pytest.raises(wo.InputError, match="max_tokens = 8: is too small for a pass of 12 tokens"):
        run(WirelessNetwork(given))
    assert run(WirelessNetwork(given), tokens=8)[0].keep.any(axis=1).all()


def sequence(*link_times, step=1.0):
    return ChannelSequence(np.arange(len(link_times)) * step, {"token_time_link": np.array(link_times)})


def seen(advance, passes, channel):
    """Index of the state that each block was sent in."""
    network = WirelessNetwork(fleet(measured=True), policy="topk-uniform", channel=channel, advance=advance)
    table = np.array([state.token_time_link[0] for state in channel])
    links = [delivery.evaluation.link_time[0, 0] for delivery in run(network, passes)]
    return [int(np.flatnonzero(table == link)[0]) for link in links], network


def test_states_follow_blocks_or_passes_and_start_again():
    channel = sequence(*([(k + 1) * 1e-3] * 3 for k in range(4)))
    assert seen("block", 2, channel)[0] == [0, 1, 2, 3, 0, 1]
    assert seen("pass", 5, channel)[0] == [i % 4 for i in range(5) for _ in range(BLOCKS)]


def test_states_follow_the_clock():
    channel = sequence([1e-3] * 3, [2e-3] * 3, [3e-3] * 3, step=0.02)
    states, network = seen("time", 4, channel)
    starts = network.report.column("time")
    assert states == [int(start % 0.06 // 0.02) for start in starts]
    assert set(states) == {0, 1, 2}


def test_an_iterable_is_played_once():
    states = [ChannelState(time=float(i), token_time_link=[1e-3 * (i + 1)] * 3) for i in range(4)]
    network = WirelessNetwork(
        fleet(measured=True), policy="topk-uniform", channel=iter(states), advance="block"
    )
    run(network)
    with pytest.raises(wo.WdmoeError, match="no state for another block"):
        run(network)
    timeless = (ChannelState(token_time_link=[1e-3] * 3) for _ in range(3))
    with pytest.raises(wo.InputError, match="times must rise"):
        run(WirelessNetwork(fleet(measured=True), policy="topk-uniform", channel=timeless))


def keep_all(call):
    return np.ones(call.expert_ids.shape, dtype=bool)


def test_a_device_out_of_reach_serves_its_part_later():
    channel = sequence([1e-3, NEVER, 1e-3], [9e-3, NEVER, 9e-3], [9e-3, 2e-3, 9e-3])
    network = WirelessNetwork(fleet(measured=True), policy=keep_all, channel=channel)
    ids = np.array([[0, 2], [0, 4], [2, 0]])
    network.begin_pass(3)
    delivery = network.send(0, ids, np.array([[0.6, 0.4]] * 3))
    here = [3 * 1e-3 + 3 * 1e-4, 2.0 + 2 * 2e-3 + 2 * 2e-4 + 1e-4, 1e-3 + 3e-4]
    np.testing.assert_allclose(delivery.device_time, here)
    assert delivery.record.outages == 2
    assert delivery.record.latency == pytest.approx(here[1])
    assert network.channel.now == pytest.approx(here[1])


def test_the_same_on_a_radio_link():
    radio = fleet()
    good = np.asarray(radio.gain_down)
    fixed = {
        name: getattr(radio, name) for name in ("power_down", "power_up", "noise_density", "total_bandwidth")
    }
    gains = np.array([good * [1, 0, 1], good])
    channel = ChannelSequence([0.0, 0.5], {"gain_down": gains, "gain_up": gains}, fixed)
    network = WirelessNetwork(radio, policy=keep_all, channel=channel)
    network.begin_pass(2)
    ids, weights = np.array([[0, 2], [2, 0]]), np.array([[0.6, 0.4]] * 2)
    delivery = network.send(0, ids, weights)
    still = WirelessNetwork(radio, policy=keep_all)
    still.begin_pass(2)
    in_reach = still.send(0, ids, weights)
    np.testing.assert_allclose(delivery.device_time[0], in_reach.device_time[0], rtol=1e-12)
    np.testing.assert_allclose(delivery.device_time[1], 0.5 + in_reach.device_time[1], rtol=1e-12)


def test_a_token_without_any_device_waits():
    channel = sequence([NEVER, NEVER, 1e-3], [1e-3] * 3)
    network = WirelessNetwork(fleet(measured=True), policy="greedy", channel=channel)
    network.begin_pass(1)
    record = network.send(0, [[0, 2]], [[0.6, 0.4]]).record
    assert (record.outages, record.time) == (1, 0.0)
    assert 1.0 < record.latency < 1.1


@pytest.mark.parametrize(("outage", "missed", "waits"), [("drop", 1, 0), ("wait", 0, 1)])
@pytest.mark.parametrize("policy", ["session", "greedy", "exact"])
def test_floors_that_cannot_be_kept(policy, outage, missed, waits):
    channel = sequence([1e-3, NEVER, 1e-3], [1e-3] * 3)
    network = WirelessNetwork(
        fleet(measured=True), policy=policy, channel=channel, outage=outage, min_retention=1.0
    )
    network.begin_pass(2)
    keep = network.send(0, [[0, 2], [0, 4]], [[0.6, 0.4]] * 2).keep
    assert keep.tolist() == [[True, not missed], [True, True]]
    assert (network.report.floors_missed, network.report.outages) == (missed, waits)


def test_an_endless_outage_is_an_error():
    dead = sequence([1e-3, NEVER, 1e-3], [2e-3, NEVER, 1e-3])
    network = WirelessNetwork(fleet(measured=True), policy=keep_all, channel=dead)
    with pytest.raises(wo.UnsupportedError, match="stays out of reach for 2 channel states"):
        run(network)
    still = ChannelState(token_time_link=[NEVER, NEVER, NEVER])
    with pytest.raises(wo.InputError, match="none of the token's experts"):
        run(WirelessNetwork(fleet(measured=True), policy=keep_all, channel=still))
    part = ChannelState(token_time_link=[1e-3, NEVER, 1e-3])
    network = WirelessNetwork(fleet(measured=True), policy=keep_all, channel=part)
    network.begin_pass(1)
    with pytest.raises(wo.WdmoeError, match="no other state"):
        network.send(0, [[0, 2]], [[0.6, 0.4]])


class TestHistory:
    """Algorithm 2 with learned latencies."""

    @staticmethod
    def play(policy, channel=None):
        network = WirelessNetwork(fleet(measured=True), policy=policy, channel=channel)
        return run(network, 6), network

    def test_it_decides_as_the_solver_does_with_the_same_estimates(self):
        algorithm = Algorithm2(threshold=0.45)
        policy = HistoryPolicy(DeviceHistory(DEVICES, rule="window"), algorithm)
        self.play(policy)
        estimates = policy.history.estimates
        ids, weights = gates(77)
        network = WirelessNetwork(fleet(measured=True), policy=policy)
        network.begin_pass(TOKENS)
        chosen = network.send(1, ids[1], weights[1]).keep
        problem = network.template.for_block(1, expert_ids=ids[1:2], gate_weights=weights[1:2])
        expected = wo.solve(problem, "wdmoe-testbed", threshold=0.45, estimates=estimates)
        np.testing.assert_array_equal(chosen, expected.keep[0])

    def test_it_learns_the_slow_device(self):
        policy = HistoryPolicy(algorithm=Algorithm2(threshold=0.5))
        self.play(policy)
        # Link, compute, and the activation spread over the tokens of a block.
        np.testing.assert_allclose(policy.history.estimates, [1.1e-3, 2.2e-3, 4.3e-3], rtol=0.02)

    def test_it_beats_plain_top_k_on_measured_wifi(self):
        channel = wifi_states(bits_down=16 * 4096, links=("ap2", "ap1", "ap4"))[:200]
        learned = HistoryPolicy(algorithm=Algorithm2(threshold=0.5, repeat=True))
        plain, history = (
            self.play(policy, channel)[1].report.latency for policy in ("topk-uniform", learned)
        )
        assert history < plain

    def test_it_takes_no_estimates(self):
        with pytest.raises(wo.InputError, match="come from the history"):
            HistoryPolicy(algorithm=Algorithm2(estimates=[1.0]))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (np.zeros((TOKENS, 2), dtype=bool), "policy: its choice breaks a rule: experts per token"),
        (np.ones((TOKENS, 3), dtype=bool), "keep: must have shape"),
        (np.full((TOKENS, 2), 0.5), "keep: must be boolean"),
        (Choice(np.ones((TOKENS, 2), dtype=bool), [1.0, 2.0]), "bandwidth: must have shape"),
        (Choice(np.ones((TOKENS, 2), dtype=bool), [1e9] * 3), "total_bandwidth"),
    ],
)
def test_broken_choices_are_refused(answer, words):
    with pytest.raises(wo.InputError, match=words):
        run(WirelessNetwork(fleet(), policy=lambda call: answer))


LOADS = {"loads": [[1, 2, 3]], "expert_ids": None, "gate_weights": None, "top_k": None, "expert_device": None}


@pytest.mark.parametrize(
    ("build", "error", "words"),
    [
        (
            lambda: WirelessNetwork("fleet"),
            wo.InputError,
            "problem: must be a Problem, an Instance or a Session",
        ),
        (lambda: WirelessNetwork(fleet(), policy="gready"), wo.UnknownNameError, "greedy"),
        (lambda: WirelessNetwork(fleet(), policy=3), wo.InputError, "policy: must be a name or a callable"),
        (
            lambda: WirelessNetwork(fleet(), policy="wdmoe", policy_options={"aplha": 1}),
            wo.UnknownNameError,
            "alpha",
        ),
        (lambda: WirelessNetwork(fleet(), policy_options={"gap": 1}), wo.UnknownNameError, "rel_gap"),
        (
            lambda: WirelessNetwork(fleet(), policy=keep_all, policy_options={"a": 1}),
            wo.InputError,
            "callable",
        ),
        (
            lambda: WirelessNetwork(fleet(measured=True), policy="slsqp"),
            wo.UnsupportedError,
            "cannot be used",
        ),
        (lambda: WirelessNetwork(wo.Problem(fleet())), wo.InputError, "allocation = 'shared'"),
        (
            lambda: WirelessNetwork(wo.Problem(fleet(), allocation="per-block"), min_retention=0.9),
            wo.InputError,
            "min_retention: can only be given with an Instance",
        ),
        (
            lambda: WirelessNetwork(fleet(), objective="retention", max_latency=1.0),
            wo.UnsupportedError,
            "max_latency",
        ),
        (lambda: WirelessNetwork(fleet(**LOADS)), wo.UnsupportedError, "loads only"),
        (lambda: WirelessNetwork(fleet(), outage="stop"), wo.UnknownNameError, "outage"),
        (
            lambda: WirelessNetwork(fleet(), channel=channel_states("cell-20mhz", 4, 2)),
            wo.InputError,
            "3 devices",
        ),
        (lambda: WirelessNetwork(fleet(), channel=sequence([1e-3] * 3)), wo.InputError, "link has gain_down"),
        (lambda: WirelessNetwork(fleet(), channel=[]), wo.InputError, "holds no state"),
        (lambda: WirelessNetwork(fleet(), channel=7), wo.InputError, "got int"),
        (lambda: WirelessNetwork(fleet(), channel=[7]), wo.InputError, "must hold ChannelStates, got int"),
        (lambda: ChannelPlayback(None, "tick"), wo.UnknownNameError, "advance"),
        (
            lambda: WirelessNetwork(fleet(), channel=channel_states("cell-100mhz-cicv5g", DEVICES, 9)),
            wo.UnsupportedError,
            "changes link_delay, which a Session cannot follow",
        ),
        (
            lambda: WirelessNetwork(wo.Session(wo.Problem(fleet(), allocation="per-block")), policy="greedy"),
            wo.InputError,
            "beside a Session",
        ),
    ],
)
def test_errors_before_anything_runs(build, error, words):
    with pytest.raises(error, match=words):
        build()


def test_a_channel_may_change_delays_for_solvers():
    channel = channel_states("cell-100mhz-cicv5g", DEVICES, 9)
    network = WirelessNetwork(fleet(), policy="greedy", channel=channel, advance="block", min_retention=0.9)
    delays = [delivery.evaluation.problem.instance.link_delay for delivery in run(network)]
    np.testing.assert_array_equal(delays, channel.stacked("link_delay")[:BLOCKS])


def test_the_report_in_words_and_rows():
    network = WirelessNetwork(fleet(), min_retention=0.9)
    assert str(network.report) == "nothing was sent yet"
    run(network, 2)
    words = str(network.report)
    assert "2 forward pass(es), 24 tokens, 6 blocks sent" in words
    assert "gate" not in words
    pd = pytest.importorskip("pandas")
    frame = network.report.to_frame()
    assert isinstance(frame, pd.DataFrame)
    assert frame.latency.sum() == pytest.approx(network.report.latency)
    assert frame.groupby("forward_pass").latency.sum().tolist() == pytest.approx(network.report.pass_latency)
