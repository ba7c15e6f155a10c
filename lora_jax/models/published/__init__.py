"""Published models: finding, reading and writing them, in every format that is supported.

`location` finds them, `load` makes our models of them, and `export` writes them. `weight_files`,
`torch_bin` and `gguf` read one format each.
"""
