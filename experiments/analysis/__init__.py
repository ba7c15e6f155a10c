"""Analyse the records of many runs: which method is best, and how certain that is.

`recorded_runs` finds records, `collect_runs` selects those of a table, and `choose_methods` groups
them into methods. `pairwise` tests pairs of methods with `significance` and `bootstrap`. `draws`
says which runs are independent. `gains` compares each method with a reference, on each task and
over tasks: `paired_scores` gives the scores by seed, `scored_examples` what each example adds to
them, `crossed` the error over both, `mean_difference` and `random_effects` the means over tasks,
`equivalence` tests whether methods differ by less than a margin, and `power` says what such tests
can show. `rank_stability` says how often an order repeats, `pairing` and
`seed_noise` what noise seeds bring. `published` reads the papers' own numbers. Tables, figures and
reports import these; nothing here draws or formats.
"""
