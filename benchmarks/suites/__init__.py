"""Benchmark suites as data: TOML files of cases and contestants, and the loader that checks them."""
