"""Code that several methods in `variants/` share.

It has low-rank factors, their initialisations, products and preconditioners, rotations, and a
budget of ranks. A variant imports from here and from `lora_jax.variant`; nothing here knows of
models, training or files.
"""
