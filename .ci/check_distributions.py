"""Check that the built wheel and sdist contain every room, and nothing is too large.

Usage: python .ci/check_distributions.py DIST_DIR
"""

from __future__ import annotations

import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOMS = {
    "wdmoe_opt": "wdmoe_opt",
    "formulations": "wdmoe_opt/formulations",
    "instances": "wdmoe_opt/instances",
    "benchmarks": "wdmoe_opt/benchmarks",
}
LIMIT = 25_000_000


def sources(room: str) -> list[Path]:
    """Every file of a room in the checkout, relative to it."""
    folder = ROOT / room
    files = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return [path.relative_to(folder) for path in files]


def missing_from_wheel(names: set[str]) -> list[str]:
    """Files a wheel lacks."""
    wanted = [f"{target}/{path.as_posix()}" for room, target in ROOMS.items() for path in sources(room)]
    return [name for name in wanted if name not in names]


def missing_from_sdist(names: set[str]) -> list[str]:
    """Files a source distribution lacks, tests, examples and top-level files included."""
    wanted = [f"{room}/{path.as_posix()}" for room in (*ROOMS, "tests", "examples") for path in sources(room)]
    wanted += ["pyproject.toml", "README.md", "LICENSE", "NOTICE", "CITATION.cff"]
    return [name for name in wanted if name not in names]


def main() -> None:
    """Check the one wheel and the one sdist of a folder."""
    folder = Path(sys.argv[1])
    (wheel,) = folder.glob("*.whl")
    (sdist,) = folder.glob("*.tar.gz")
    problems = []
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    problems += [f"wheel lacks {name}" for name in missing_from_wheel(names)]
    top = {name.split("/")[0] for name in names}
    problems += [
        f"wheel puts {name!r} into site-packages" for name in top if not name.startswith("wdmoe_opt")
    ]
    licences = [name for name in names if ".dist-info/licenses/" in name]
    problems += [] if len(licences) >= 4 else [f"wheel has only {len(licences)} licence files"]
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    problems += [f"sdist lacks {name}" for name in missing_from_sdist(names)]
    for path in (wheel, sdist):
        size = path.stat().st_size
        print(f"{path.name}: {size / 1e6:.1f} MB")
        problems += [f"{path.name} has {size} bytes, limit {LIMIT}"] if size > LIMIT else []
    if problems:
        sys.exit("\n".join(problems))


if __name__ == "__main__":
    main()
