"""What solvers, and code around them, can be tested with (extra ``test``).

=============  ======================================================================
suite          `SolverSuite`: subclass it with the names of your solvers, run pytest
checks         what no solution may break, outside pytest, too
problems       the catalogue of small problems that the suite solves
strategies     Hypothesis strategies for instances and problems
arrays         the seeded generator behind them (NumPy only)
oracles        slow prices and optima in plain Python
regressions    a failing problem cut down and kept as a file
liars          solvers that lie, to try a suite with
=============  ======================================================================
"""
