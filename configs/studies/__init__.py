"""Studies: which methods are trained on which tasks, and what is decided about them beforehand.

`experiments.tune --study=NAME` runs one, `experiments.studies.protocol` says what a `STUDY` has.
"""
