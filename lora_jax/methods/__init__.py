"""What several methods share, for the one file that each method has in `variants/`.

Low-rank factors, how factors start, and a budget of ranks. A variant imports from here and from
`lora_jax.variant`; nothing here knows of models, training or files.
"""
