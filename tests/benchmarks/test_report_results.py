"""Rows of results: what is read, refused, completed and derived."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

pd = pytest.importorskip("pandas")
pytest.importorskip("pyarrow")

from fake_results import frame  # noqa: E402

import wdmoe_opt as wo  # noqa: E402
from wdmoe_opt.benchmarks.report.results import main_rows, read_results, task_rows, tidy  # noqa: E402

CERTIFIED = {"bound_kind": "certified", "claim_holds": "yes"}


def test_a_folder_is_read_as_one_frame(tmp_path: Path) -> None:
    frame({"case": "a"}).to_parquet(tmp_path / "one.parquet")
    frame({"case": "b"}, {"case": "c"}).to_parquet(tmp_path / "two.parquet")
    assert list(read_results(tmp_path)["case"]) == ["a", "b", "c"]
    assert list(read_results(tmp_path / "one.parquet")["case"]) == ["a"]


def test_what_is_no_result_is_refused(tmp_path: Path) -> None:
    with pytest.raises(wo.InputError, match=r"must be a Parquet file or a folder"):
        read_results(tmp_path)
    (tmp_path / "bad.parquet").write_text("no")
    with pytest.raises(wo.InputError, match="cannot be read as Parquet"):
        read_results(tmp_path)
    frame({}).drop(columns="solver").to_parquet(tmp_path / "bad.parquet")
    with pytest.raises(wo.InputError, match="column 'solver' is missing"):
        read_results(tmp_path)
    frame({}, {"state": "fine"}).to_parquet(tmp_path / "bad.parquet")
    with pytest.raises(wo.InputError, match=r"state\[1\] = 'fine': must be one of ok, no-point"):
        read_results(tmp_path)


def test_only_five_columns_are_needed() -> None:
    rows = tidy(frame({})[["suite", "case", "task", "solver", "state"]])
    assert list(rows["answered"]) == [False]
    assert list(rows["family"]) == ["certified"]
    assert math.isnan(rows["bound"][0])


def test_no_rows_stay_no_rows() -> None:
    assert len(tidy(frame({}).iloc[:0])) == 0


def test_a_measurement_made_twice_counts_once_the_later() -> None:
    rows = tidy(frame({"value": 3.0, "started": "2001"}, {"value": 2.0, "started": "2000"}))
    assert list(rows["value"]) == [3.0]


def test_gaps_are_to_the_best_bound_of_the_same_problem() -> None:
    rows = tidy(
        frame(
            {"value": 1.0, "lower_bound": 0.8, **CERTIFIED},
            {"solver": "exact", "value": 1.0, "lower_bound": 0.9, **CERTIFIED},
            {"solver": "wrong", "lower_bound": 0.95, "bound_kind": "certified", "claim_holds": "no"},
            {"solver": "claims", "lower_bound": 0.99, "bound_kind": "claimed"},
            {"solver": "nan", "lower_bound": np.nan, **CERTIFIED},
            {"solver": "fails", "state": "failed", "feasible": False, "value": np.nan},
            {"solver": "other floor", "min_retention": 0.5, "value": 0.5},
            {"solver": "other seed", "seed": 1},
        )
    ).set_index("solver")
    assert list(rows["bound"][:6]) == [0.9] * 6
    assert rows.loc["certified", "bound_gap"] == pytest.approx(0.1)
    assert rows.loc["fails", "bound_gap"] == math.inf
    assert math.isnan(rows.loc["other floor", "bound_gap"])
    assert math.isnan(rows.loc["other seed", "bound_gap"])


def test_bounds_of_a_maximum_come_from_above() -> None:
    rows = tidy(
        frame(
            {"objective": "retention", "value": 0.8, "lower_bound": 0.9, **CERTIFIED},
            {"objective": "retention", "solver": "exact", "value": 0.8, "lower_bound": 1.0, **CERTIFIED},
        )
    )
    assert list(rows["bound"]) == [0.9, 0.9]
    assert rows["bound_gap"][0] == pytest.approx(0.125)


def test_the_best_value_stands_in_for_a_bound_in_the_bandwidth_task_only() -> None:
    rows = tidy(
        frame(
            {"task": "bandwidth", "value": 2.0},
            {"task": "bandwidth", "solver": "slsqp", "value": 2.5},
            {"task": "joint"},
        )
    )
    assert list(rows["bound"][:2]) == [2.0, 2.0]
    assert list(rows["bound_gap"][:2]) == pytest.approx([0.0, 0.2])
    assert not rows["certified_bound"].any()
    assert math.isnan(rows["bound"][2])


@pytest.mark.parametrize(
    ("violations", "priced"),
    [
        ("min_retention[0] = 0.8, limit 0.9", True),
        ("min_retention[0] = 0.8, limit 0.9; min_token_retention[0, 1] = 0, limit 0.3", True),
        ("min_retention[0] = 0.8, limit 0.9; bandwidth[0] = 2, limit 1", False),
        ("bandwidth[0] = 2, limit 1", False),
        ("", False),
    ],
)
def test_a_point_below_its_floor_is_priced_but_no_answer(violations: str, priced: bool) -> None:
    rows = tidy(frame({"feasible": False, "violations": violations}))
    assert not rows["answered"][0]
    assert bool(rows["priced"][0]) is priced


def test_configurations_of_a_method_are_a_family_per_task() -> None:
    rows = tidy(
        frame(
            {"solver": "certified 1e-2", "method": "certified"},
            {"solver": "certified", "method": "certified"},
            {"solver": "scip", "method": "minlp", "options": '{"backend": "scip"}'},
            {"solver": "minlp", "method": "minlp"},
            {"solver": "all experts", "method": "topk"},
            {"solver": "exact", "method": "topk", "task": "bandwidth"},
            {"solver": "unknown", "method": ""},
        )
    )
    assert list(rows["family"]) == [
        "certified", "certified", "scip", "minlp", "all experts", "exact", "unknown",
    ]  # fmt: skip


def test_a_solver_that_refuses_everything_takes_no_part() -> None:
    rows = tidy(
        frame(
            {"solver": "a", "state": "refused"},
            {"solver": "b", "state": "refused"},
            {"solver": "b", "case": "b"},
            {"solver": "c", "state": "unavailable"},
        )
    )
    assert list(task_rows(rows, "joint")["solver"]) == ["b", "b"]
    assert len(task_rows(rows, "bandwidth")) == 0


def test_the_longest_run_with_the_smallest_gap_speaks_for_a_solver() -> None:
    rows = tidy(
        frame(
            {"time_limit_s": 10.0, "rel_gap": 1e-6},
            {"time_limit_s": 60.0, "rel_gap": 1e-2},
            {"time_limit_s": 60.0, "rel_gap": 1e-3, "value": 5.0},
        )
    )
    assert list(main_rows(rows)["value"]) == [5.0]
