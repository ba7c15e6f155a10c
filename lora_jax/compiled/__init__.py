"""Programs before and after compilation: what they cost, and whether they are right.

`audit` compares a compiled step with NumPy's evaluation of it (`by_numpy`). `compiler_faults` sets
the flag that avoids faults of released compilers. `jaxpr_costs` estimates what a traced program
computes, holds and moves.
"""
