"""Base models in Flax NNX: their parts, their families, and the reading of published checkpoints.

Imports run `parts <- families <- published`. Users load models with `published.encoders` and
`published.decoders`.
"""
