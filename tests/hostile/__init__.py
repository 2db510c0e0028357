"""Hostile input: a table of it for every entry point, each refused in exactly one line, or taken and harmless."""
