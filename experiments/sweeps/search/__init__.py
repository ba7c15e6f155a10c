"""Search for the best settings in the ranges of a sweep.

`search` is what `experiments.sweep --search=...` does: it asks for trials, has them trained, reads
their scores, and keeps what was asked for. `space` has the combinations of values, and finds those
that cannot work.
"""
