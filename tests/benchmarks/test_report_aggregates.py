"""Aggregations of the report against small frames worked out by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

pytest.importorskip("pandas")

from fake_results import frame

from wdmoe_opt.benchmarks.report import spread
from wdmoe_opt.benchmarks.report.expectations import expectations
from wdmoe_opt.benchmarks.report.frontiers import common_name, device_times, frontiers
from wdmoe_opt.benchmarks.report.gaps import gap_at_budget, gap_table, time_to_gap
from wdmoe_opt.benchmarks.report.profiles import profile
from wdmoe_opt.benchmarks.report.relative import BANDS, band, relative_latency
from wdmoe_opt.benchmarks.report.results import tidy
from wdmoe_opt.benchmarks.report.scaling import exponents, ratios_along
from wdmoe_opt.benchmarks.report.stages import CERTIFIED, left_on_the_table, paper_stages
from wdmoe_opt.benchmarks.report.success import success_table
from wdmoe_opt.benchmarks.report.times import time_table

BASE = {"solver": "topk-uniform", "kind": "baseline", "retention": 1.0}
PROOF = {"bound_kind": "certified", "claim_holds": "yes"}
LOST = {"state": "failed", "feasible": False, "value": np.nan, "latency_s": np.nan, "retention": np.nan,
        "warm_s": np.nan, "cold_s": np.nan}  # fmt: skip


def test_quantiles_keep_what_is_infinite() -> None:
    assert spread.quantile([1.0, 2.0, 4.0, math.inf], 0.5) == 3.0
    assert spread.quantile([1.0, math.inf], 0.5) == math.inf
    assert spread.quantile([3.0, math.nan], 0.9) == 3.0
    assert math.isnan(spread.median([]))


def test_means() -> None:
    assert spread.geometric_mean([1.0, 4.0, math.nan]) == pytest.approx(2.0)
    # (1 + 1) (7 + 1) = 4^2, less the shift.
    assert spread.shifted_geometric_mean([1.0, 7.0], 1.0) == pytest.approx(3.0)
    assert math.isnan(spread.geometric_mean([]))
    assert spread.power_of_ten(0.004) == 0.01
    assert spread.power_of_ten(math.nan) == 1.0


@pytest.mark.parametrize(
    ("retention", "name"),
    [(1.0, BANDS[0]), (0.99 - 1e-9, BANDS[0]), (0.9899, BANDS[1]), (0.95, BANDS[1]), (0.1, "< 0.8"),
     (math.nan, "")],
)  # fmt: skip
def test_bands(retention: float, name: str) -> None:
    assert band(retention) == name


def test_relative_latency_by_hand() -> None:
    rows = tidy(
        frame(
            {**BASE, "value": 2.0}, {"value": 1.0, "retention": 0.96, "min_retention": 0.95},
            {**BASE, "case": "b", "value": 4.0},
            {"case": "b", "value": 0.5, "retention": 0.955, "min_retention": 0.95},
            {"case": "b", "solver": "peer", "kind": "peer", "min_retention": 0.95, **LOST},
            {"case": "no base", "value": 1.0},
        )
    )  # fmt: skip
    table = relative_latency(rows, "joint", "certified")
    assert list(table["solver"]) == ["topk-uniform", "certified", "peer"]
    assert list(table["band"]) == ["≥ 0.99", "0.95 to 0.99", "0.95 to 0.99"]
    ours, lost = table.iloc[1], table.iloc[2]
    # 1/2 and 1/8.
    assert (ours["problems"], ours["mean"], ours["worst"]) == (2, pytest.approx(0.25), 0.5)
    assert (ours["q1"], ours["median"], ours["q3"]) == (0.21875, 0.3125, 0.40625)
    # A lost problem counts as plain top-k, which is eight times the certified answer.
    assert (lost["problems"], lost["pointless"], lost["mean"], lost["paired"]) == (
        1,
        1,
        1.0,
        pytest.approx(8.0),
    )


def test_a_point_below_its_floor_counts_where_it_is() -> None:
    below = {"solver": "wdmoe", "value": 1.0, "retention": 0.85, "min_retention": 0.95, "feasible": False}
    rows = tidy(frame({**BASE, "value": 2.0}, {**below, "violations": "min_retention[0] = 0.85, limit 0.95"}))
    line = relative_latency(rows, "joint", "").set_index("solver").loc["wdmoe"]
    assert (line["band"], line["mean"], line["below"], line["pointless"]) == ("0.8 to 0.9", 0.5, 1, 0)


def test_without_topk_uniform_nothing_is_relative() -> None:
    assert len(relative_latency(tidy(frame({})), "joint", "certified")) == 0


def test_bandwidth_rows_take_their_base_from_the_other_task() -> None:
    # Loads alone have no retention.
    rows = tidy(frame({**BASE, "value": 4.0}, {"task": "bandwidth", "value": 1.0, "retention": np.nan}))
    table = relative_latency(rows, "bandwidth", "certified")
    assert list(table["solver"]) == ["certified"]
    assert list(table["band"]) == ["as given"]
    assert list(table["mean"]) == [0.25]


def test_gaps_by_hand() -> None:
    rows = tidy(
        frame(
            {"value": 1.0, "lower_bound": 1.0, **PROOF}, {"solver": "greedy", "value": 1.25},
            {"case": "b", "value": 1.0, "lower_bound": 0.9995, **PROOF},
            {"case": "b", "solver": "greedy", **LOST},
            {"case": "unproved", "solver": "greedy", "value": 9.0},
        )
    )  # fmt: skip
    table = gap_table(rows, "joint").set_index("solver")
    assert table.loc["certified", "worst"] == pytest.approx(5e-4)
    assert table.loc["certified", "within_01"] == 1.0
    assert (table.loc["greedy", "problems"], table.loc["greedy", "unanswered"]) == (2, 1)
    assert table.loc["greedy", "median"] == math.inf
    assert table.loc["greedy", "within_1"] == 0.0


def _two_configurations() -> dict[str, dict[str, float | str]]:
    return {
        "fast": {"solver": "certified 1e-2", "method": "certified", "value": 1.1, "warm_s": 0.01},
        "slow": {"value": 1.0, "lower_bound": 1.0, "warm_s": 1.0, **PROOF},
    }


def test_gap_at_a_budget_takes_the_best_configuration_that_is_ready() -> None:
    found = _two_configurations()
    rows = tidy(frame(found["fast"], found["slow"]))
    table = gap_at_budget(rows, "joint", budgets=(1e-3, 0.01, 2.0))
    assert list(table["solver"].unique()) == ["certified"]
    assert list(table["median"]) == [math.inf, pytest.approx(0.1 / 1.1), 0.0]
    assert list(table["answered"]) == [0.0, 1.0, 1.0]


def test_time_to_a_gap_takes_the_fastest_configuration_that_reaches_it() -> None:
    found = _two_configurations()
    other = {"case": "b", "lower_bound": 0.5, **PROOF}
    table = time_to_gap(tidy(frame(found["fast"], found["slow"], other)), "joint", targets=(0.1, 0.01))
    assert list(table["reached"]) == [0.5, 0.5]
    assert list(table["median"]) == [math.inf, math.inf]
    table = time_to_gap(tidy(frame(found["fast"], found["slow"])), "joint", targets=(0.1, 0.01))
    assert list(table["median"]) == [0.01, 1.0]


def test_success_by_hand() -> None:
    claim = {"claims_optimal": True}
    rows = tidy(
        frame(
            {**claim, "claim_holds": "yes"}, {"case": "b", **claim, "claim_holds": "no"},
            {"case": "c", **claim, "claim_holds": "unchecked"}, {"case": "d", **LOST},
            {"solver": "off", "state": "unavailable"},
        )
    )  # fmt: skip
    (line,) = success_table(rows, "joint").to_dict("records")
    assert (line["answered"], line["claimed"], line["holds"]) == (0.75, 0.75, 0.25)
    assert (line["broken"], line["unchecked"]) == (1, 1)


def test_times_by_hand() -> None:
    rows = tidy(
        frame(
            {"warm_s": 1.0, "metric_s": 0.1, "cold_s": 5.0, "compile_s": 30.0},
            {"case": "b", "warm_s": 1.0, "metric_s": 0.1, "cold_s": 7.0},
            {"solver": "scip", "kind": "peer", "warm_s": 10.0, "time_limit_s": 60.0},
            {"solver": "scip", "kind": "peer", "case": "b", **LOST, "time_limit_s": 60.0},
        )
    )
    found = time_table(rows, "joint")
    assert (found.shift, found.reference) == (1.0, "certified")
    ours, scip = found.table.to_dict("records")
    assert (ours["mean"], ours["cold"], ours["compile"]) == (pytest.approx(1.0), 6.0, 30.0)
    assert ours["metric"] == pytest.approx(10.0)
    # The lost problem is charged its limit: (10 + 1) (60 + 1), and 10 and 60 times the reference.
    assert scip["mean"] == pytest.approx(math.sqrt(11 * 61) - 1)
    assert scip["ratio"] == pytest.approx(math.sqrt(600))
    assert (scip["problems"], scip["unanswered"], scip["shared"]) == (2, 1, 2)


def test_all_failed_has_no_times() -> None:
    rows = tidy(frame({**LOST, "time_limit_s": np.nan}))
    (line,) = time_table(rows, "joint").table.to_dict("records")
    assert math.isnan(line["mean"])
    assert line["unanswered"] == 1


def test_a_profile_by_hand() -> None:
    bound = {"lower_bound": 1.0, **PROOF}
    rows = tidy(
        frame(
            {"value": 1.0, "warm_s": 2.0, **bound}, {"solver": "greedy", "value": 1.005, "warm_s": 1.0},
            {"case": "b", "value": 1.0, "warm_s": 1.0, **bound},
            {"case": "b", "solver": "greedy", "value": 1.5, "warm_s": 0.1},
            {"case": "c", "value": 2.0, "warm_s": 1.0, **bound},
            {"case": "c", "solver": "greedy", **LOST},
        )
    )  # fmt: skip
    found = profile(rows, "joint", 0.01)
    assert (found.problems, found.solved) == (3, 2)
    assert list(found.ratios["certified"]) == [1.0, 2.0]
    assert list(found.ratios["greedy"]) == [1.0]
    assert found.share("certified", 1.5) == pytest.approx(1 / 3)
    assert found.share("certified", 2.0) == pytest.approx(2 / 3)


def test_problems_of_a_special_contestant_are_in_no_curve() -> None:
    bound = {"lower_bound": 1.0, **PROOF}
    special = {"case": "special", "solver": "certified at a floor", "method": "certified", **bound}
    rows = tidy(frame(bound, {"solver": "greedy"}, {"solver": "scip"}, special))
    assert profile(rows, "joint", 0.01).problems == 1
    assert set(time_to_gap(rows, "joint")["problems"]) == {1}
    assert set(gap_table(rows, "joint")["problems"]) == {1}


def test_the_reference_is_the_configuration_that_names_the_family() -> None:
    rows = tidy(
        frame(
            {"warm_s": 1.0}, {"solver": "certified 1e-2", "method": "certified", "warm_s": 0.1},
            {"solver": "greedy", "warm_s": 0.5},
        )
    )  # fmt: skip
    ratios = time_table(rows, "joint").table.set_index("solver")["ratio"]
    assert ratios.to_dict() == pytest.approx({"certified": 1.0, "certified 1e-2": 0.1, "greedy": 0.5})


def test_stages_are_on_the_same_cases() -> None:
    paper = {"suite": "paper"}
    rows = tidy(
        frame(
            {**paper, **BASE, "value": 4.0}, {**paper, "solver": "topk", "value": 3.0},
            {**paper, **BASE, "value": 6.0, "case": "b"}, {**paper, "solver": "topk", "case": "b", **LOST},
        )
    )  # fmt: skip
    assert list(paper_stages(rows)["cases"]) == [1, 1]


def test_ties_are_both_fastest() -> None:
    bound = {"lower_bound": 1.0, **PROOF}
    found = profile(tidy(frame(bound, {"solver": "greedy"})), "joint", 0.01)
    assert found.share("certified", 1.0) == found.share("greedy", 1.0) == 1.0


def test_exponents_of_a_power_law() -> None:
    rows = [
        {"axis": "tokens", "axis_value": n, "case": str(n), "warm_s": 3e-6 * n**1.5} for n in (8, 64, 512)
    ]
    few = {"axis": "devices", "axis_value": 2.0}
    (line,) = exponents(tidy(frame(*rows, few)), "joint").to_dict("records")
    assert line["exponent"] == pytest.approx(1.5)
    assert line["r2"] == pytest.approx(1.0)
    assert (line["sizes"], line["smallest"], line["largest"]) == (3, 8, 512)


def test_ratios_along_a_radio_axis() -> None:
    at = {"axis": "bandwidth_mhz", "axis_value": 20.0}
    table = ratios_along(tidy(frame({**BASE, **at, "value": 2.0}, {**at, "value": 1.0})), "joint")
    assert dict(zip(table["solver"], table["ratio"], strict=True)) == {"topk-uniform": 1.0, "certified": 0.5}


def test_frontiers_join_the_floors_of_an_instance() -> None:
    rows = []
    for floor, value in ((0.8, 1.0), (0.9, 1.5)):
        case = {"case": f"law#3 floor {floor:g}", "min_retention": floor}
        bound = {"lower_bound": value - 0.1, **PROOF}
        rows += [{**BASE, **case, "value": 2.0}, {**case, **bound, "value": value, "retention": floor}]
    (front,) = frontiers(tidy(frame(*rows)))
    assert front.case == "law#3"
    assert sorted(front.points["retention"]) == [0.8, 0.9, 1.0]
    assert list(front.bounds["bound"]) == pytest.approx([0.9, 1.4])


def test_names_of_instances() -> None:
    assert common_name(["a#0 at 0.8", "a#0 at 0.95"]) == "a#0"
    assert common_name(["gates of x, floor 0.8", "gates of x, floor 0.9"]) == "gates of x"
    assert common_name(["same"]) == "same"


def test_device_times_are_of_plain_topk_and_the_fastest() -> None:
    rows = tidy(
        frame(
            {**BASE, "value": 2.0, "device_time": json.dumps([2.0, 0.5])},
            {"value": 1.0, "device_time": json.dumps([1.0, 1.0])},
            {"solver": "greedy", "value": 1.2, "device_time": json.dumps([1.2, 1.0])},
            {"case": "b", "device_time": "no list"},
        )
    )
    (found,) = device_times(rows)
    assert found.best == "certified"
    assert (found.plain.tolist(), found.fast.tolist()) == ([2.0, 0.5], [1.0, 1.0])


def test_stages_of_the_paper_by_hand() -> None:
    paper = {"suite": "paper", "min_retention": 0.8}
    rows = tidy(
        frame(
            {**paper, **BASE, "value": 4.0},
            {**paper, "solver": "without selection", "method": "topk", "value": 3.0, "retention": 1.0},
            {**paper, "solver": "wdmoe", "value": 2.0, "retention": 0.96},
            {**paper, "value": 0.5, "retention": 0.8, "lower_bound": 0.4, **PROOF},
            {**paper, "solver": "at wdmoe's", "method": "certified", "value": 1.0, "retention": 0.961,
             "min_retention": 0.96, "lower_bound": 0.9, **PROOF},
        )
    )  # fmt: skip
    stages = paper_stages(rows).set_index("stage")["mean"]
    assert stages["bandwidth alone"] == 0.75
    assert stages["both: the paper's policy"] == 0.5
    assert stages[CERTIFIED] == 0.25
    assert "selection alone" not in stages
    (left,) = left_on_the_table(rows).to_dict("records")
    assert (left["saved"], left["most"]) == (pytest.approx(0.5), pytest.approx(0.55))


def test_promises_by_hand() -> None:
    given = {"task": "bandwidth", "value": 1.0}
    size = {"tokens": 512, "devices": 8}
    rows = tidy(
        frame(
            {**given, "solver": "exact", "method": "topk", "warm_s": 1e-5},
            {**given, "solver": "cvxpy-clarabel", "kind": "peer", "warm_s": 1e-2},
            {**given, "solver": "slsqp", "kind": "peer", "warm_s": 1e-3},
            {**size, "warm_s": 0.02, "metric_s": 1e-4, "lower_bound": 1.0, **PROOF},
            {**size, "solver": "greedy", "warm_s": 0.001, "metric_s": 1e-4},
            {**size, "solver": "scip", "kind": "peer", "value": 1.0, "warm_s": 40.0},
        )
    )
    found = [(item.measured, item.verdict) for item in expectations(rows)]
    assert [verdict for _, verdict in found] == ["kept", "missed", "kept", "missed", "kept"]
    assert [value for value, _ in found] == pytest.approx([1000.0, 100.0, 10.0, 200.0, 2000.0])
    empty = expectations(tidy(frame({}).iloc[:0]))
    assert {item.verdict for item in empty} == {"not measured"}
