"""The shipped trace files: where they lie and how they are read."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from wdmoe_opt.validation import freeze

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

DATA_DIR = Path(__file__).parent.parent / "data" / "channel"
WIFI_FILE = Path("feup-wifi", "wifi.npz")
FIVEG_FILE = Path("cicv5g", "fiveg.npz")

#: Marks, in the Wi-Fi file, a second in which a link was not measured.
MISSING = -1


@cache
def load_arrays(file: Path) -> Mapping[str, NDArray[Any]]:
    """Read-only arrays of a trace file below the data folder; read once."""
    with np.load(DATA_DIR / file, allow_pickle=False) as archive:
        return MappingProxyType({name: freeze(archive[name]) for name in archive.files})
