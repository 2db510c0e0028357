"""Coverage-guided fuzzing of the loaders, needs atheris (extra ``fuzz``).

``python tests/fuzz/fuzz.py TARGET [SECONDS] [FOLDER]`` starts from the corpus of a target (``all``: of each
in turn, for so many seconds altogether) and ends with an error at the first input that is neither taken nor
refused; the input is left in FOLDER, by default ``fuzz-findings``, and belongs into the corpus once mended.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
# Numba fails to compile what atheris has instrumented; problems here are tiny enough for plain Python.
os.environ["NUMBA_DISABLE_JIT"] = "1"
#: Modules whose branches guide the fuzzer.
WATCHED = [
    *(f"wdmoe_opt.{name}" for name in ("archive", "files", "instance", "problem", "validation")),
    "wdmoe_opt.solution_file",
    "wdmoe_opt.certificates.certificate", "wdmoe_opt.certificates.tree", "wdmoe_opt.instances",
    "wdmoe_opt.benchmarks.suites", "zipfile", "tomllib", "json",
]  # fmt: skip
#: Longest input, in bytes, and runs at most.
LENGTH, RUNS = 16_384, 1_000_000


def _one(name: str, seconds: int, folder: Path) -> None:
    """Fuzz one target in this process; ends it."""
    import atheris

    sys.path.insert(0, str(HERE))
    with atheris.instrument_imports(include=WATCHED):
        from targets import TARGETS

    target, corpus = TARGETS[name], HERE / "corpus" / name
    for seed in sorted(corpus.iterdir()):
        target(seed.read_bytes())  # imports are done before the clock of a single input runs
    # New inputs are kept in the first folder, which is thrown away: the corpus grows by hand.
    folder.mkdir(parents=True, exist_ok=True)
    grown = folder / f"{name}-grown"
    grown.mkdir(exist_ok=True)
    options = [
        f"-max_total_time={seconds}", f"-runs={RUNS}", f"-max_len={LENGTH}", "-timeout=20",
        "-rss_limit_mb=4096", f"-artifact_prefix={folder}/{name}-", "-seed=1", "-print_final_stats=1",
    ]  # fmt: skip
    atheris.Setup([sys.argv[0], *options, str(grown), str(corpus)], lambda data: target(data) and None)
    atheris.Fuzz()


def main() -> None:
    """Command line."""
    name, seconds, folder, *_ = [*sys.argv[1:], *["all", "60", "fuzz-findings"][len(sys.argv) - 1 :]]
    if name != "all":
        _one(name, int(seconds), Path(folder))
        return
    names = sorted(path.name for path in (HERE / "corpus").iterdir())
    for each in names:
        print(f"== {each}", flush=True)
        part = str(max(1, int(seconds) // len(names)))
        subprocess.run([sys.executable, __file__, each, part, folder], check=True)


if __name__ == "__main__":
    main()
