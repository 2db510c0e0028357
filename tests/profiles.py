"""How many examples Hypothesis tries: WDMOE_TEST_PROFILE is "repeatable" (default) or "long"."""

from __future__ import annotations

import os
from typing import Any

from hypothesis import HealthCheck, settings

PROFILE = os.environ.get("WDMOE_TEST_PROFILE", "repeatable")
#: By how much the long profile multiplies examples; they are drawn anew in every run.
FACTORS = {"repeatable": 1, "long": 20}

for _name in FACTORS:
    # Kernels compile on first use, so no deadline; the same examples on every machine but in the long run.
    settings.register_profile(
        _name,
        deadline=None,
        derandomize=_name == "repeatable",
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )


def examples(count: int) -> Any:
    """Try so many examples, or the long profile's multiple."""
    return settings(max_examples=count * FACTORS[PROFILE])
