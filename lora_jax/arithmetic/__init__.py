"""Arithmetic of adapters: sums, cuts to a rank, TIES, DARE, and how far two adapters are apart.

All of it is about the update of each weight, dW = W' - W, in float64. `combine` makes one adapter
of several, and `distance` measures them. `updates` gives dW; `merging` and `low_rank` compute with
it; `in_full` combines what is trained without an adapter; `one_base` and `plain_lora` make of the
result an adapter like any other.
"""

from lora_jax.arithmetic import distance as distance
