"""Pictures of the report, one file each; every `draw` returns a figure or the reason why there is none."""
