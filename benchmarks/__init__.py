"""Benchmarks: what the package costs in time, measured by commands anyone can run."""
