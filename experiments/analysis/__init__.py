"""Analyse the records of many runs: which method is best, and how certain that is.

`collect_runs` finds records, and `choose_methods` groups them into methods. `pairwise` tests pairs
of methods with `significance` and `bootstrap`. `published` reads the papers' own numbers. Tables,
figures and reports import these; nothing here draws or formats.
"""
