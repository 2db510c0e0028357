"""The instance library: captured routing, device and channel profiles, and how they compose."""
