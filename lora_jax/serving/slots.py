"""The variant of a weight in a bank: each row of a batch picks its adapter by number."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from lora_jax.methods.products import add
from lora_jax.serving import grouped_matmul
from lora_jax.variant import Base, Factors, Variant

SLOT, ACTIVE = "slot", "active"
"""The constants with the number of the row's adapter, and with whether a slot has one here."""


@dataclasses.dataclass(frozen=True)
class PlainLora(Variant):
    """W' = W + A^T B: what every method with factors of a rank comes to (`Variant.as_lora`)."""

    title = "plain LoRA"

    def weight(self, base: Base, factors: Factors) -> Array:
        a, b = factors.trainable["a"], factors.trainable["b"]
        return base.dense().astype(a.dtype) + a.T @ b

    def count(self, shape: tuple[int, int]) -> int:
        return 0


PLAIN = PlainLora()


class Method(NamedTuple):
    """What adapters have in common that are computed together."""

    variant: Variant
    factors: tuple[tuple[str, int], ...] = ()
    """With a rank: the names of the factors, and the rows of each. Not all adapters of a method
    have the same (PiSSA's have a start that is subtracted)."""


PLAIN_METHOD = Method(PLAIN)


@dataclasses.dataclass(frozen=True)
class Slots(Variant):
    """W' = W'_g(slot), by the method g of the adapter in the slot that the row names.

    Factors are named `g/name`, where g is the number of a method, and have an axis of slots in
    front. A slot without an adapter here leaves W as it is.
    """

    methods: tuple[Variant, ...] = (PLAIN,)
    way: str = grouped_matmul.MEASURED
    """How plain LoRA of many rows is computed: one of `grouped_matmul.NAMES`."""

    def count(self, shape: tuple[int, int]) -> int:
        return 0

    def weight(self, base: Base, factors: Factors) -> Array:
        return self._chosen(base.dense(), factors, lambda method, own: method.weight(base, own))

    def dot(
        self, x: Array, base: Base, factors: Factors, *, dropout_key: Array | None = None
    ) -> Array:
        y = self._sum(base.dot(x), x, factors, "ab", base.accumulate)
        return self._chosen(y, factors, lambda method, own: method.dot(x, base, own), PLAIN)

    def dot_t(self, x: Array, base: Base, factors: Factors) -> Array:
        y = self._sum(base.dot_t(x), x, factors, "ba", base.accumulate)
        return self._chosen(y, factors, lambda method, own: method.dot_t(x, base, own), PLAIN)

    def take(self, rows: Array, base: Base, factors: Factors) -> Array:
        def taken(method: Variant, own: Factors) -> Array:
            if method != PLAIN:
                return method.take(rows, base, own)
            a, b = (own.trainable[name].astype(base.dtype) for name in "ab")
            hidden = jnp.take(a, rows, axis=1, mode="clip")
            return base.take(rows) + lax.dot_general(hidden, b, (((0,), (0,)), ((), ())))

        return self._chosen(base.take(rows), factors, taken)

    @property
    def adapts_bias(self) -> bool:
        return any(method.adapts_bias for method in self.methods)

    def bias(self, bias: Array, factors: Factors) -> Array:
        return self._chosen(bias, factors, lambda method, own: method.bias(bias, own))

    def _sum(self, y: Array, x: Array, factors: Factors, names: str, accumulate: Any) -> Array:
        """y with the product of plain LoRA, which is zero in slots of other methods."""
        number = self.methods.index(PLAIN)
        if f"{number}/{ACTIVE}" not in factors.constants:
            return y
        first, second = (factors.trainable[f"{number}/{name}"].astype(x.dtype) for name in names)
        flat = x.reshape(-1, x.shape[-1])
        update = grouped_matmul.dot(
            flat, factors.constants[SLOT], first, second, self.way, accumulate
        )
        return add(y, update.reshape(y.shape))

    def _chosen(
        self,
        y: Array,
        factors: Factors,
        compute: Callable[[Variant, Factors], Array],
        but: Variant | None = None,
    ) -> Array:
        """What the method of the row's adapter computes; y where there is none."""
        for method, active, own in self._methods(factors):
            if method != but:
                found = compute(method, own)
                y = jnp.where(active, found, y.astype(found.dtype))
        return y

    def _methods(self, factors: Factors) -> Iterator[tuple[Variant, Array, Factors]]:
        """Each method, whether it is the row's, and the factors in the row's slot."""
        slot = factors.constants[SLOT]
        for number, method in enumerate(self.methods):
            if f"{number}/{ACTIVE}" not in factors.constants:
                continue
            own = jax.tree.map(
                lambda leaf: lax.dynamic_index_in_dim(leaf, slot, keepdims=False),
                Factors(*(named(part, number) for part in factors)),
            )
            active = own.constants.pop(ACTIVE)
            yield method, active, own


def named(arrays: dict[str, Array], number: int) -> dict[str, Array]:
    """The arrays of a method, by their own names."""
    start = f"{number}/"
    return {n.removeprefix(start): x for n, x in arrays.items() if n.startswith(start)}
