"""Profile: time an expert on the machine at hand and fit the three numbers of a device profile.

`measure` needs only Python 3.8 and torch, so that the one file can be copied to a board and run there.
"""

from __future__ import annotations

from wdmoe_opt.instances.profiling.command import profile_command
from wdmoe_opt.instances.profiling.fit import ProfilingError, fit_profile, load_measurement, write_profile

__all__ = ["ProfilingError", "fit_profile", "load_measurement", "profile_command", "write_profile"]
