"""Device profiles of Jetson boards, derived from measured rows, and profiles made by users.

``load_profile("agx-orin-maxn", precision="int4")`` gives a shipped one, ``DeviceProfile.from_file`` a user's.
``python -m wdmoe_opt.instances.devices.derive`` computes the shipped ones anew from the measured rows;
``python -m wdmoe_opt.instances.devices.backtest`` compares them with every row the fit did not use.
"""

from wdmoe_opt.instances.devices.profile import (
    DeviceProfile,
    Range,
    expert_weights,
    list_profiles,
    load_profile,
)

__all__ = ["DeviceProfile", "Range", "expert_weights", "list_profiles", "load_profile"]
