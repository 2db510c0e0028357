"""The file of raw numbers: JSON, one line per text, curve and setting."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wdmoe_opt.archive import write_text
from wdmoe_opt.benchmarks.what_dropping_costs.plan import Curve, key
from wdmoe_opt.errors import InputError
from wdmoe_opt.validation import RealArray

NAME = "results.json"
#: Decimals of what is measured in each forward pass: the loss in nats, tokens held most likely, simulated
#: ms, kept gate weight, experts per token.
MEASURES = {"nats": 4, "hits": 0, "latency_ms": 4, "retention": 6, "experts": 4}


@dataclass
class Results:
    """Measurements of one model.

    Attributes
    ----------
    about : dict
        What identifies model, plan, and texts; ``bytes`` of each pass by text.
    units : dict
        Measurements by text and by `plan.key`.
    """

    about: dict[str, Any]
    units: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)

    def holds(self, text: str, curve: Curve, setting: float) -> bool:
        """Whether exactly this was measured."""
        unit = self.units.get(text, {}).get(key(curve, setting))
        return unit is not None and unit["what"] == json.loads(json.dumps(curve.described(setting)))

    def add(self, text: str, curve: Curve, setting: float, unit: Mapping[str, Any]) -> None:
        """Add a measurement, in place of one of the same name."""
        self.units.setdefault(text, {})[key(curve, setting)] = {"what": curve.described(setting), **unit}

    def get(self, texts: str | tuple[str, ...], curve: Curve, setting: float, measure: str) -> RealArray:
        """A measure of each pass, (passes,); of several texts one after another."""
        names = (texts,) if isinstance(texts, str) else texts
        rows = [self.units[text][key(curve, setting)][measure] for text in names]
        joined: NDArray[np.float64] = np.concatenate([np.asarray(row, dtype=np.float64) for row in rows])
        return joined

    def total(self, measure: str) -> float:
        """Sum of a number of each unit, such as ``seconds``."""
        return float(sum(unit[measure] for units in self.units.values() for unit in units.values()))

    def order(self, units: Iterable[tuple[str, Curve, float]]) -> None:
        """Put measurements into the order of a plan, and leave out what it does not name."""
        kept: dict[str, dict[str, dict[str, Any]]] = {}
        for text, curve, setting in units:
            kept.setdefault(text, {})[key(curve, setting)] = self.units[text][key(curve, setting)]
        self.units = kept

    def save(self, path: Path) -> None:
        """Write the file, in one step."""
        texts = [
            f" {json.dumps(text)}: {{\n"
            + ",\n".join(f"  {json.dumps(name)}: {_line(unit)}" for name, unit in units.items())
            + "\n }"
            for text, units in self.units.items()
        ]
        content = f'{{"about": {_line(self.about)},\n"units": {{\n' + ",\n".join(texts) + "\n}}\n"
        write_text(path, content)


def read(path: Path) -> Results:
    """Read the file.

    Raises
    ------
    InputError
        If it is missing or no such file.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return Results(found["about"], found["units"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError("results", f"is no file of this experiment ({error})", value=str(path)) from None


def _line(content: Any) -> str:
    return json.dumps(content, separators=(",", ":"))
