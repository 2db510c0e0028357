"""Branch coverage of the four rooms from ``coverage json``: a table, and an error below a floor.

python .ci/rooms.py coverage.json
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path, PurePath

#: Lines and branches covered, in percent of all of them; 0 until a whole run has been measured.
FLOORS = {"wdmoe_opt": 88.0, "formulations": 88.0, "instances": 66.0, "benchmarks": 60.0}


def room(path: str) -> str:
    """Room of a file, in a checkout or in an installed package."""
    parts = PurePath(path.replace("\\", "/")).parts
    below = parts[parts.index("wdmoe_opt") + 1 :] if "wdmoe_opt" in parts else parts
    return next((name for name in FLOORS if name in below[:-1]), "wdmoe_opt")


def main(report: str) -> int:
    """Print the table; 1 if a room is below its floor."""
    counts: dict[str, Counter[str]] = {name: Counter() for name in FLOORS}
    for path, file in json.loads(Path(report).read_text(encoding="utf-8"))["files"].items():
        counts[room(path)].update({k: n for k, n in file["summary"].items() if isinstance(n, int)})
    print(f"{'room':14}{'lines':>8}{'covered':>9}{'branches':>10}{'covered':>9}{'both':>8}{'floor':>8}")
    low = []
    for name, c in counts.items():
        lines, branches = c["num_statements"], c["num_branches"]
        both = 100 * (c["covered_lines"] + c["covered_branches"]) / max(lines + branches, 1)
        shares = [100 * c["covered_lines"] / max(lines, 1), 100 * c["covered_branches"] / max(branches, 1)]
        print(
            f"{name:14}{lines:8}{shares[0]:8.1f}%{branches:10}{shares[1]:8.1f}%{both:7.1f}%{FLOORS[name]:7.1f}%"
        )
        low += [name] if both < FLOORS[name] else []
    if low:
        print(f"below the floor: {', '.join(low)}")
    return 1 if low else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
