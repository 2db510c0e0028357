"""How long loading a family takes and how much memory: ``python -m wdmoe_opt.benchmarks.load_families``.

Every family is loaded in a process of its own, which prints the seconds from the start of loading to the
finished default instance, and the largest resident memory of the whole process, the imports included.
"""

from __future__ import annotations

import json
import subprocess
import sys
from time import perf_counter
from typing import Any

#: What the instance library promises for its largest family.
SECONDS_LIMIT, MEGABYTES_LIMIT = 1.0, 500.0


def measure(name: str) -> dict[str, Any]:
    """Load one family in this process; seconds and peak memory in MB (10^6 byte)."""
    from wdmoe_opt import load_instance

    began = perf_counter()
    instance = load_instance(name)
    seconds = perf_counter() - began
    return {"name": name, "seconds": seconds, "megabytes": peak_bytes() / 1e6, "blocks": instance.blocks}


def peak_bytes() -> float:
    """Largest resident memory of this process so far, in bytes (Linux and macOS)."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak if sys.platform == "darwin" else peak * 1024)


def measure_all() -> list[dict[str, Any]]:
    """Measure every family, each in a fresh process."""
    from wdmoe_opt import list_instances

    found = []
    for name in list_instances():
        command = [sys.executable, "-m", "wdmoe_opt.benchmarks.load_families", name]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found.append(json.loads(done.stdout))
    return found


def main(arguments: list[str]) -> int:
    """Command line of this module; 1 if a promise is broken."""
    if arguments:
        print(json.dumps(measure(arguments[0])))
        return 0
    rows = measure_all()
    for row in rows:
        print(f"{row['name']:30s} {row['seconds']:7.3f} s {row['megabytes']:7.0f} MB")
    kept = all(row["seconds"] < SECONDS_LIMIT and row["megabytes"] < MEGABYTES_LIMIT for row in rows)
    print(
        f"promise: under {SECONDS_LIMIT:g} s and {MEGABYTES_LIMIT:g} MB each: {'kept' if kept else 'BROKEN'}"
    )
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
