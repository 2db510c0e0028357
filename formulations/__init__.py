"""Formal models of the allocation problems, for CVXPY and Pyomo."""
