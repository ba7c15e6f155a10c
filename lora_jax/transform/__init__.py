"""Adapt some of the weights of any JAX function.

Start with `adapt`. `discover` says how a function uses its weights; `prune` and `summary` read what
training left. `jaxprs` walks over traced programs, and `views` follows axes through them. The other
files serve these; `placement` has the types (`Frozen`, `Trainable`) that everything else imports.
"""
