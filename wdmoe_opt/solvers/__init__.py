"""Solvers, one file each; `registry` knows them by name and loads them on first use."""
