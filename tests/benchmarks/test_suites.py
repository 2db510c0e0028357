"""Suites: the shipped ones build, and every slip in one's own gives one clear line."""

from __future__ import annotations

import math

import numpy as np
import pytest

import wdmoe_opt as wo
from wdmoe_opt.benchmarks.peers import find_solver
from wdmoe_opt.benchmarks.runner.task import build_problem
from wdmoe_opt.benchmarks.suites.generators import pairs_with_loads, synthetic_reproducing_loads
from wdmoe_opt.benchmarks.suites.load import load_suite, suite_names

GOOD = """
name = "mine"
[[contestants]]
method = "topk"
[[cases]]
instance = "gpt-oss-20b-decode#3"
"""


def test_the_promised_suites_are_there():
    assert suite_names() == ["captured", "paper", "radio", "scaling", "smoke", "tiny"]


@pytest.mark.parametrize("name", ["captured", "paper", "radio", "scaling", "smoke", "tiny"])
def test_shipped_suites_name_solvers_and_problems_that_exist(name):
    suite = load_suite(name)
    assert suite.pairings
    for contestant in suite.contestants:
        find_solver(contestant.method)
        assert 0 < contestant.time_limit < contestant.kill_after
    seen = set()
    for case in suite.cases:
        assert any(c.takes(case) for c in suite.contestants), case.name
        if case.group in seen or case.parameters.get("tokens", 0) > 10_000:
            continue
        seen.add(case.group)
        problem = build_problem(case, 0)
        assert problem.instance.blocks >= 1
        if case.axis:
            assert not math.isnan(case.axis_value)


def test_scaling_spans_what_it_promises():
    cases = load_suite("scaling").cases
    spans = {
        axis: [c.axis_value for c in cases if c.axis == axis] for axis in ("tokens", "devices", "blocks")
    }
    assert (min(spans["tokens"]), max(spans["tokens"])) == (32, 1_000_000)
    assert (min(spans["devices"]), max(spans["devices"])) == (2, 256)
    assert (min(spans["blocks"]), max(spans["blocks"])) == (1, 61)


def test_one_case_for_every_combination(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        GOOD.replace(
            'instance = "gpt-oss-20b-decode#3"',
            """
            name = "block {block} at {floor}"
            instance = "gpt-oss-20b-decode#{block}"
            request = { min_retention = "{floor}" }
            selection = { state = "{seed}" }
            axis = "floor"
            axis_value = "{floor}"
            each = { block = [1, 2], floor = [0.8, 0.9] }
            """,
        )
    )
    suite = load_suite(path)
    assert [c.name for c in suite.cases] == [
        "block 1 at 0.8",
        "block 1 at 0.9",
        "block 2 at 0.8",
        "block 2 at 0.9",
    ]
    assert [c.axis_value for c in suite.cases] == [0.8, 0.9, 0.8, 0.9]
    first, second = (build_problem(suite.cases[1], seed) for seed in (0, 1))
    assert first.min_retention == 0.9
    assert not np.array_equal(first.instance.gain_down, second.instance.gain_down)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("name =", "nam ="), "suite = 'nam': unknown name; choose from name"),
        (('"mine"', '"Mine"'), "name = 'Mine': must be lower-case letters"),
        (('method = "topk"', ""), r"contestants\[0\].method: must be a text"),
        (
            ('method = "topk"', 'method = "topk"\nkind = "ore"'),
            r"contestants\[0\].kind = 'ore': unknown name",
        ),
        (('method = "topk"', 'method = "topk"\ntime_limit = 0'), r"contestants\[0\].time_limit"),
        (('method = "topk"', 'method = "topk"\ntime_limit = "1"'), r"contestants\[0\].time_limit"),
        (
            ('method = "topk"', 'method = "topk"\ngroups = ["x"]'),
            r"contestants\[0\].groups = 'x': unknown name",
        ),
        (('method = "topk"', 'method = "topk"\ntasks = ["all"]'), r"contestants\[0\].tasks = 'all'"),
        (
            ('method = "topk"', 'method = "topk"\noptions = 3'),
            r"contestants\[0\].options = 3: must be a table",
        ),
        (("[[cases]]", "[[case]]"), "suite = 'case': unknown name; choose from cases"),
        (('instance = "gpt-oss-20b-decode#3"', ""), r"cases\[0\]: needs either 'instance' or 'generator'"),
        (("instance =", "generator ="), r"cases\[0\].generator = 'gpt-oss-20b-decode#3': unknown name"),
        (("#3", "#{block}"), r"\{block\} is not listed in 'each'"),
        (
            ('#3"', '#3"\nrequest = { min_retensio = 1 }'),
            r"cases\[0\].request = 'min_retensio': unknown name",
        ),
        (('#3"', '#3"\nparameters = { tokens = 1 }'), r"cases\[0\].parameters: needs 'generator'"),
        (('#3"', '#3"\neach = { seed = [1] }'), r"cases\[0\].each.seed"),
        (
            ('#3"', '#3"\neach = { a = [1, 2] }'),
            "cases = 'gpt-oss-20b-decode#3': two of them have the same name",
        ),
        (('#3"', '#3"\naxis_value = "much"'), r"cases\[0\].axis_value"),
        (('name = "mine"', 'name = "mine"\nseeds = 0'), "seeds = 0: must be 1 to 10000"),
        (('name = "mine"', "name = mine"), "not valid TOML"),
    ],
)
def test_slips_are_named(tmp_path, change, message):
    path = tmp_path / "mine.toml"
    assert change[0] in GOOD
    path.write_text(GOOD.replace(*change))
    with pytest.raises(wo.InstanceFileError, match=message) as caught:
        load_suite(path)
    assert str(path) in str(caught.value)


def test_missing_files_and_names(tmp_path):
    with pytest.raises(wo.InstanceFileError, match="cannot be read"):
        load_suite(tmp_path / "none.toml")
    with pytest.raises(wo.UnknownNameError, match=r"suite = 'smok': unknown name; choose from smoke"):
        load_suite("smok")


@pytest.mark.parametrize("loads", [[4, 4, 0, 0], [3, 3, 2], [1, 1], [10, 6, 3, 1], [5, 5, 5, 5, 0, 2]])
def test_pairs_have_the_loads_and_no_expert_twice(loads):
    loads = np.array(loads)
    pairs = pairs_with_loads(loads, np.random.default_rng(3))
    assert (pairs[:, 0] != pairs[:, 1]).all()
    assert np.array_equal(np.bincount(pairs.ravel(), minlength=loads.size), loads)


def test_synthetic_gates_reproduce_the_captured_loads():
    instance = synthetic_reproducing_loads(part="anatomy.3")
    captured = wo.load_instance("mixtral-8x7b-mmlu-load:anatomy.3", placement="one-per-device")
    problem = wo.Problem(instance)
    plain = wo.solve(problem, "topk-uniform")
    assert np.array_equal(plain.evaluation.transfers, captured.loads)
    assert instance.name.startswith("synthetic")
    # Not one pairing of experts repeated: the draw mixes.
    assert len(np.unique(np.sort(instance.expert_ids[0], axis=1), axis=0)) > 20
