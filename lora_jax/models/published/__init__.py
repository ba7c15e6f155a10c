"""Published checkpoints: finding, reading and writing them, in every format that is supported.

`encoders` and `decoders` load whole models; the other files know one format or table each.
"""
