"""Adapter files, and arithmetic of adapters.

`adapter_file` writes and reads adapters, and `base_digest` checks that they belong to a base.

`combination` makes one adapter of several: sums, cuts to a rank, TIES and DARE. `distance` says how
far adapters are apart. Both work on the update of each weight, dW = W' - W, in float64: `updates`
gives dW and cuts it to a rank, and `merging` makes one dW of several.
"""

from lora_jax.adapters import distance as distance
