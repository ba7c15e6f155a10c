"""Analyse the records of many runs: which method is best, and how certain that is.

`recorded_runs` finds records, `collect_runs` selects those of a table, and `choose_methods` groups
them into methods. `pairwise` tests pairs of methods with `significance` and `bootstrap`.
`published` reads the papers' own numbers. Tables, figures and reports import these; nothing here
draws or formats.
"""
