"""How a decoder's activations are cut over a mesh of devices, from block to block and within."""

import dataclasses

import jax.numpy as jnp
from jax import Array
from jax.lax import with_sharding_constraint
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lora_jax.sharding.mesh import ROWS, fitting


@dataclasses.dataclass(frozen=True)
class Activations:
    """Where activations (B, T, features) lie: rows over `data` and `fsdp`, the rest by `tensor`.

    Without a mesh, wherever they are. With one, what a compiler could also do, but may not: left
    alone, it cuts products by tokens too, and gathers whole weights for them. Axes that the mesh
    does not divide evenly stay whole.
    """

    mesh: Mesh | None = None

    def between(self, x: Array) -> Array:
        """The residual stream, cut along its tokens, so that norms and additions are as well.

        Sequence parallelism: Korthikanti et al. 2022, arXiv 2205.05198, section 4.2.2.
        """
        return self._lay(x, PartitionSpec(ROWS, "tensor"))

    def whole(self, x: Array) -> Array:
        """The input of a block's first products: a row's tokens and features all together."""
        return self._lay(x, PartitionSpec(ROWS))

    def look_up(self, table: Array, ids: Array) -> Array:
        """Rows of a table, (B, T, features), whose own are cut by `tensor` and no more.

        Left alone, a compiler may gather all of it (XLA does on a mesh of three axes).
        """
        return self.whole(jnp.take(self._lay(table, PartitionSpec("tensor")), ids, axis=0))

    def within(self, x: Array) -> Array:
        """The input of a block's last product, cut along its features: heads, or hidden units."""
        return self._lay(x, PartitionSpec(ROWS, None, "tensor"))

    def _lay(self, x: Array, spec: PartitionSpec) -> Array:
        if self.mesh is None:
            return x
        sharding = NamedSharding(self.mesh, fitting(spec, x.shape, self.mesh))
        return with_sharding_constraint(x, sharding)
