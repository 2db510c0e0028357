"""Compiled inner loops (Numba): the only place where speed shapes the code."""
