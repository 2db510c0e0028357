"""Where other systems call this package."""
