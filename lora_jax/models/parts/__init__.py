"""The parts that families of models share.

`modules` has the layers of all models. `decoder` and `classifier` have what all decoders and all
encoders' classifiers have in common. Families import all of these; generation imports `decoder` and
`kv_cache`, and scoring `completion`. A part knows no family and no published file.
"""
