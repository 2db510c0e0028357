"""Every example in the formulations' docstrings runs, and every model has one."""

from __future__ import annotations

import doctest
from importlib import import_module

import pytest

MODELS = {
    "bandwidth": "cvxpy",
    "joint_latency": "cvxpy",
    "selection": "pyomo",
    "tangents": "pyomo",
    "minlp": "pyomo",
    "joint_wlr": "pyomo",
    "retention": "pyomo",
}


@pytest.mark.parametrize("name", MODELS)
def test_examples(name):
    pytest.importorskip(MODELS[name], reason=f"{MODELS[name]} is not installed")
    if MODELS[name] == "pyomo":
        pytest.importorskip("highspy", reason="highspy is not installed")
    module = import_module(f"wdmoe_opt.formulations.{name}")
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
