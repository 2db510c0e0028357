"""How much is tried: WDMOE_TEST_PROFILE is "repeatable" (default), "long", "coverage" or "mutants".

The last two are for kernels that run as plain Python (NUMBA_DISABLE_JIT=1): a few examples of each test, no
search for smaller ones; "coverage" runs only the first parameter sets of each test, for a few seconds each.
"""

from __future__ import annotations

import os
from typing import Any

from hypothesis import HealthCheck, Phase, settings

PROFILE = os.environ.get("WDMOE_TEST_PROFILE", "repeatable")
#: By how much a profile multiplies examples; those of the long one are drawn anew in every run.
FACTORS = {"repeatable": 1, "long": 20, "coverage": 0.05, "mutants": 0.2}
#: How many parameter sets of one test the coverage profile runs.
CASES = 1
#: After how many seconds of CPU it stops a test, and a fixture.
SECONDS = 3.0

for _name in FACTORS:
    # Kernels compile on first use, so no deadline; the same examples on every machine but in the long run.
    settings.register_profile(
        _name,
        deadline=None,
        derandomize=_name != "long",
        print_blob=True,
        phases=[Phase.explicit, Phase.generate] if FACTORS[_name] < 1 else list(Phase),
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )


def examples(count: int) -> Any:
    """Try so many examples, times the profile's factor."""
    return settings(max_examples=max(round(count * FACTORS[PROFILE]), 2))


def few(count: int) -> int:
    """So many seeds, or the profile's part of them."""
    return max(round(count * min(FACTORS[PROFILE], 1)), 1)


def enough(found: float, wanted: float) -> bool:
    """Whether one number is above another, such as cases found and wanted; not asked where few are tried."""
    return found > wanted or FACTORS[PROFILE] < 1
