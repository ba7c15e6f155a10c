"""The parts that families of models share.

`family` says what a family states of itself, `config_checks` how its settings are read, and
`modules` has the layers of all models. `decoder` and `classifier` have what all decoders and all
encoders' classifiers have in common. Generation uses `decoder` and `kv_cache`, and scoring
`completion`. A part knows no family and no published file.
"""
