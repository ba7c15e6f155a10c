"""Compiled programs: what they do, and whether they are right.

`hlo`, `loops`, `device_groups` and `collectives` read a program's text; `audit` compares a step
with NumPy's evaluation of it (`by_numpy`); `compiler_faults` sets the flag that avoids faults of
released compilers.
"""
