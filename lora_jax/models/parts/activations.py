"""How a decoder's activations are sharded over a mesh of devices, between and within blocks."""

import dataclasses

import jax.numpy as jnp
from jax import Array
from jax.lax import with_sharding_constraint
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lora_jax.sharding.mesh import ROWS, fitting


@dataclasses.dataclass(frozen=True)
class Activations:
    """The sharding of activations (B, T, features): rows over `data` and `fsdp`, rest by `tensor`.

    Without a mesh, nothing is changed. With a mesh, the sharding is stated because the compiler may
    not choose it: without these constraints, it also shards products by tokens and gathers whole
    weights for them. Axes that the mesh does not divide evenly stay whole.
    """

    mesh: Mesh | None = None

    def between(self, x: Array) -> Array:
        """The residual stream, sharded by tokens, so that norms and additions are sharded too.

        Sequence parallelism: Korthikanti et al. 2022, arXiv 2205.05198, section 4.2.2.
        """
        return self._lay(x, PartitionSpec(ROWS, "tensor"))

    def whole(self, x: Array) -> Array:
        """The input of a block's first products: each row has all its tokens and features."""
        return self._lay(x, PartitionSpec(ROWS))

    def look_up(self, table: Array, ids: Array) -> Array:
        """Look up rows of a table, (B, T, features); the table's rows are sharded by `tensor` only.

        Without this constraint, the compiler may gather the whole table (XLA does on a mesh of
        three axes).
        """
        return self.whole(jnp.take(self._lay(table, PartitionSpec("tensor")), ids, axis=0))

    def within(self, x: Array) -> Array:
        """The input of a block's last product, sharded by features: heads, or hidden units."""
        return self._lay(x, PartitionSpec(ROWS, None, "tensor"))

    def _lay(self, x: Array, spec: PartitionSpec) -> Array:
        if self.mesh is None:
            return x
        sharding = NamedSharding(self.mesh, fitting(spec, x.shape, self.mesh))
        return with_sharding_constraint(x, sharding)
