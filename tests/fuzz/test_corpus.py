"""The corpus of the fuzzer through its targets, and a few mutations of it, in every run of the tests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

HERE = Path(__file__).parent
if str(HERE) not in sys.path:
    sys.path.insert(0, str(HERE))

from profiles import examples  # noqa: E402
from targets import TARGETS  # noqa: E402

SEEDS = {name: sorted((HERE / "corpus" / name).iterdir()) for name in TARGETS}
FILES = [
    pytest.param(name, path, id=f"{name}/{path.name}") for name, paths in SEEDS.items() for path in paths
]


@pytest.mark.parametrize(("name", "path"), FILES)
def test_every_input_is_taken_or_refused(name: str, path: Path) -> None:
    """Inputs that once led elsewhere stay mended; seeds of `seeds.py` are taken."""
    taken = TARGETS[name](path.read_bytes())
    assert taken or path.name.startswith("found-")


@pytest.mark.parametrize("name", TARGETS)
@given(data=st.data())
@examples(40)
def test_mutations_are_taken_or_refused(name: str, data: st.DataObject) -> None:
    """Bytes put in, taken out and changed at a few places."""
    seed = data.draw(st.sampled_from(SEEDS[name])).read_bytes()
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(seed)))
        gone = data.draw(st.integers(0, 8))
        seed = seed[:start] + data.draw(st.binary(max_size=8)) + seed[start + gone :]
    TARGETS[name](seed)


def test_the_corpus_is_small() -> None:
    """At most 150 files and 300 KB."""
    sizes = [path.stat().st_size for paths in SEEDS.values() for path in paths]
    assert len(sizes) <= 150
    assert sum(sizes) <= 300_000
