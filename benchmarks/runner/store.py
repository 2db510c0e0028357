"""A folder of results: every finished row at once a small file, all rows of all suites in one Parquet file.

::

    bench-results/
        results.parquet      everything up to the last merge
        parts/KEY.json       rows since then, one file each, named by the row's task_key
        lock                 held by the run that writes here

Files appear complete or not at all, and a row's name is its key: whenever a run dies, what it finished is
there, once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wdmoe_opt.archive import read_text, write_atomically, write_text
from wdmoe_opt.benchmarks.runner.claims import check_claims
from wdmoe_opt.benchmarks.runner.rows import COLUMNS, frame
from wdmoe_opt.errors import InputError, UnsupportedError, WdmoeError

if TYPE_CHECKING:
    import pandas as pd

#: Where `wdmoe-opt bench` keeps results unless told otherwise.
DEFAULT_FOLDER = Path("bench-results")
TABLE = "results.parquet"


class Store:
    """Rows in a folder.

    Parameters
    ----------
    folder : Path
        Made if it does not exist.

    Raises
    ------
    UnsupportedError
        If pandas or pyarrow is not installed.
    InputError
        If the folder cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        try:
            import pandas  # noqa: F401
            import pyarrow  # noqa: F401
        except ImportError as error:
            raise UnsupportedError(f"benchmarks need {error.name}; install wdmoe_opt[bench]") from None
        self.folder, self.parts, self.table = folder, folder / "parts", folder / TABLE
        try:
            self.parts.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                "out", f"cannot be used as a folder ({error.strerror})", value=str(folder)
            ) from None

    def add(self, row: Mapping[str, Any]) -> None:
        """Keep a row; from here on it survives anything."""
        write_text(self.parts / f"{row['task_key']}.json", json.dumps(dict(row)))

    def rows(self) -> dict[str, dict[str, Any]]:
        """Every row by its key, parts first, as they are newer."""
        found: dict[str, dict[str, Any]] = {}
        if self.table.exists():
            for row in self._table().to_dict("records"):
                found[row["task_key"]] = {str(name): value for name, value in row.items()}
        for path in sorted(self.parts.glob("*.json")):
            found[path.stem] = _part(path)
        return found

    def finished(self) -> set[str]:
        """Keys of the rows that need no other try; what was unavailable may be installed by now."""
        return {key for key, row in self.rows().items() if row.get("state", "unavailable") != "unavailable"}

    def merge(self) -> pd.DataFrame:
        """Put parts and table together, check the claims against each other, and return the table."""
        parts = list(self.parts.glob("*.json"))
        table = check_claims(frame(self.rows().values()))
        table = table.sort_values(["suite", "case", "seed", "solver"], kind="stable", ignore_index=True)
        write_atomically(self.table, lambda stream: table.to_parquet(stream, index=False, compression="zstd"))
        for path in parts:  # only now: a row is always in one of the two places
            path.unlink(missing_ok=True)
        return table

    def _table(self) -> pd.DataFrame:
        import pandas as pd

        try:
            table = pd.read_parquet(self.table)
        except (OSError, ValueError) as error:
            raise WdmoeError(f"{self.table}: cannot be read ({' '.join(str(error).split())[:200]})") from None
        missing = [column for column in COLUMNS if column not in table.columns]
        if missing:
            raise WdmoeError(
                f"{self.table}: lacks column {missing[0]!r}; is it a results file of this version?"
            )
        return table[list(COLUMNS)]

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs out of the folder; the lock ends with the process, however that ends.

        Raises
        ------
        InputError
            If another run has it.
        """
        with open(self.folder / "lock", "w", encoding="utf-8") as handle:
            try:
                _lock(handle.fileno())
            except OSError:
                raise InputError("out", "another run writes there", value=str(self.folder)) from None
            yield


def _lock(descriptor: int) -> None:
    try:
        import fcntl
    except ImportError:
        import msvcrt

        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined, unused-ignore]
    else:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


_KINDS: dict[str, Any] = {"str": str, "float64": float | int, "int64": int, "bool": bool}


def _part(path: Path) -> dict[str, Any]:
    """The row in a file of its own; unlike other JSON here it may hold NaN and infinities."""
    try:
        row: Any = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise WdmoeError(f"{path}: not valid JSON ({' '.join(str(error).split())[:200]})") from None
    fits = isinstance(row, dict) and row.get("task_key") == path.stem and not row.keys() - set(COLUMNS)
    if not fits or any(not isinstance(v, (_KINDS[COLUMNS[k]], type(None))) for k, v in row.items()):
        raise WdmoeError(
            f"{path}: is not the row that its name says; remove it to have the row measured again"
        )
    return dict(row)
