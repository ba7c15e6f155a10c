"""Adapters of others as runs: find one (`adapter_source`), read it, and say what run it is of.

`hub` downloads, `read_adapter` puts a file's adapter onto a run's model, `imported_run` makes the
config of a run that would train it, and `about` says what was read.
"""
