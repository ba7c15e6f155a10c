"""What methods there are, and what each costs and can do, for the command `experiments.methods`.

`method` has all about one method. Its facts come from `abilities` (from tracing its code), `sizes`
(parameters), `source` (its docstring) and `step_costs` (benchmark results). `formats` writes the
tables.
"""
