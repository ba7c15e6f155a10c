"""Base models in Flax NNX: a file for each family, the parts that they share, and published files.

Imports run `parts <- families <- published`. Users load models with `published.load`; a family is
added as one file of `families`.
"""
