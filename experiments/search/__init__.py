"""Search for the best settings in the ranges of a sweep.

`search` is what `experiments.sweep --search=...` does: it asks for trials (`ask`), has them
trained, and reads their scores (`objective`). `space` has the combinations of values and finds
those that cannot work. `ledger` keeps what was asked for.
"""
