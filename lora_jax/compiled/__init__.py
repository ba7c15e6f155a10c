"""Programs before and after compilation: what they cost, and whether they are right.

`audit` compares a compiled step with NumPy's evaluation of it (`by_numpy`). `compiler_faults` sets
the flag that avoids faults of released compilers. `jaxpr_flops`, `jaxpr_memory` and `jaxpr_traffic`
estimate what a traced program computes, holds and moves.
"""
