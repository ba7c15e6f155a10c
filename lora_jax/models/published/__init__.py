"""Published checkpoints: finding, reading and writing them, in every format that is supported.

`encoders` and `decoders` load whole models; each other file handles one format or table.
"""
