"""One file for each value of `--suite`; `AGAINST` says which values `--against` may have.

`run(plan)` measures, and yields what it has found, one `results.Measured` after the other.
"""
