"""Analyse the records of many runs: which method is best, and how certain that is.

`recorded_runs` finds runs, `collect_runs` selects those that belong together, and `choose_methods`
groups them into methods. `pairwise` tests pairs of methods with `significance` and `bootstrap`.
`gains` compares each method with a reference, on each task and over tasks: `paired_scores` gives
the scores by seed, `scored_examples` what each example adds to them, and `power` says what such
tests can show. `rank_stability` says how often an order repeats, `task_evidence` what each task can
show at all, and `rate_choice` how settings were chosen. `published` reads the papers' own numbers.
Tables, figures and reports import these; nothing here draws or formats.
"""
