"""wdmoe_opt.testing as a third party uses it: imports, a suite of its own, strategies that reach all."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from profiles import examples

import wdmoe_opt as wo
from wdmoe_opt import Problem
from wdmoe_opt.testing.strategies import array_sets, problems

THIRD_PARTY = '''
"""A third party's own solver under the shipped suite."""
import wdmoe_opt as wo
from wdmoe_opt.registry import find_solver
from wdmoe_opt.testing.suite import SolverSuite


def mine(problem, control):
    """Plain top-k under another name."""
    return find_solver("topk").run(problem, control, {})


wo.register_solver("mine", mine, summary="plain top-k", LIE allocations=("per-block",))


class TestMine(SolverSuite):
    names = ("mine",)
'''


@pytest.mark.parametrize(
    ("lie", "code", "words"),
    [
        ("", 0, " passed"),
        ("honours_floors=True, bound='certified',", 1, "mine: declares certified bounds and gives none"),
    ],
)
def test_a_third_party_subclasses_the_suite(tmp_path: Path, lie: str, code: int, words: str) -> None:
    """A file of a few lines is a test of a solver; a false declaration in it fails by name."""
    file = tmp_path / "test_mine.py"
    file.write_text(THIRD_PARTY.replace("LIE", lie), "utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False)
    assert done.returncode == code, done.stdout[-2000:]
    assert words in done.stdout


@pytest.mark.parametrize(("module", "needs"), [("suite", "pytest"), ("strategies", "hypothesis")])
def test_what_is_missing_is_said(module: str, needs: str) -> None:
    """Without the extra the import fails with the words to install it; everything else still imports."""
    code = (
        f"import sys; sys.modules[{needs!r}] = None\n"
        "import wdmoe_opt.testing.checks, wdmoe_opt.testing.liars, wdmoe_opt.testing.regressions\n"
        f"import wdmoe_opt.testing.{module}"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        check=False,
    )
    assert done.returncode == 1
    assert "install wdmoe_opt[test]" in done.stderr.splitlines()[-1]


#: What the strategy of problems must have drawn at least once in a few hundred tries.
SEEN = {
    "shared": lambda p: p.allocation == "shared",
    "per-block": lambda p: p.allocation == "per-block",
    "fixed, as given": lambda p: p.bandwidth is not None,
    "dispatch by device": lambda p: p.dispatch == "device",
    "loads only": lambda p: not p.selectable,
    "measured link": lambda p: p.instance.token_time_link is not None,
    "activation": lambda p: p.tables.activation.any(),
    "link delay": lambda p: p.tables.link_delay.any(),
    "unreachable device": lambda p: not p.instance.reachable.all(),
    "several experts on a device": lambda p: p.selectable and p.instance.experts > p.instance.devices,
    "limits on shares": lambda p: p.tables.low.any(),
    "gains per block": lambda p: p.instance.gain_down is not None and p.instance.gain_down.ndim == 2,
    "sparse gate": lambda p: p.selectable and (p.tables.ids < 0).any(),
    "full gate": lambda p: p.selectable and p.instance.columns == p.instance.experts > 1,
    "ties": lambda p: p.selectable and (p.tables.weights[..., :-1] == p.tables.weights[..., 1:]).any(),
    "zero weight": lambda p: p.selectable and ((p.tables.weights == 0) & (p.tables.ids >= 0)).any(),
    "near-zero weight": lambda p: (
        p.selectable and ((p.tables.weights > 0) & (p.tables.weights < 1e-20)).any()
    ),
    "floor on the mean": lambda p: p.selectable and p.min_retention.any(),
    "floor on tokens": lambda p: p.selectable and p.min_token_retention.any(),
    "cap on experts": lambda p: p.max_experts is not None,
    "re-routing": lambda p: p.selectable and p.candidate_columns > p.instance.top_k,
}


@pytest.mark.compiled
def test_problems_of_every_kind_are_drawn() -> None:
    """Two hundred examples of the strategy reach every option at least three times."""
    seen: Counter[str] = Counter()

    @settings(examples(200), phases=[Phase.generate])
    @given(problems())
    def draw(problem: Problem) -> None:
        seen.update(name for name, is_there in SEEN.items() if is_there(problem))

    draw()
    assert not [name for name in SEEN if seen[name] < 3], seen


@examples(30)
@given(array_sets(wide=True, blocks=1))
def test_extreme_gains_are_drawn_and_priced(arrays: dict) -> None:
    """Gains over 20 decades: plain top-k has a positive latency, as the metric and its second copy say."""
    problem = Problem(wo.Instance.from_arrays(**arrays))
    found = wo.solve(problem, "topk")
    assert found.latency > 0
    assert wo.certify(problem, found)
