"""Adapters that no training here made, as runs: those of others, and those combined of runs.

`adapter_source` finds an adapter of others and puts it onto a run's model; `imported_run` makes the
config of a run that would train it, and says what was read. `combined_run` opens runs of one base,
and makes the run that they come to.
"""
