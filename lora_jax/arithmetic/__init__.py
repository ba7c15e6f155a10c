"""Arithmetic of adapters: sums, cuts to a rank, TIES, DARE, and how far two adapters are apart.

All of it is about the update of each weight, dW = W' - W, in float64. `combination` makes one
adapter of several, and `distance` measures them. `updates` gives dW and cuts it to a rank, and
`merging` makes one dW of several.
"""

from lora_jax.arithmetic import distance as distance
