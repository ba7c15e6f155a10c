"""The variant of a weight in a bank: each row of a batch picks its adapter by number."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_batching import custom_vmap

from lora_jax.methods.products import add, times
from lora_jax.serving import grouped_matmul
from lora_jax.variant import Base, Factors, Variant

SLOT, ACTIVE = "slot", "active"
"""The constants with the number of the row's adapter, and with whether a slot has one here."""
GAIN = "gain"
"""The constant by which outputs are multiplied; a weight has it if one of its adapters has."""


@dataclasses.dataclass(frozen=True)
class PlainLora(Variant):
    """W' = (W + A^T B) g: what methods with factors of a rank come to (`as_rescaled_lora`)."""

    title = "plain LoRA"

    def weight(self, base: Base, factors: Factors) -> Array:
        a, b = factors.trainable["a"], factors.trainable["b"]
        weight = base.dense().astype(a.dtype) + a.T @ b
        return times(weight, factors.constants[GAIN]) if GAIN in factors.constants else weight

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
        def dense(method: Variant, own: Factors, base: Base) -> Array:
            return method.weight(base, own)

        return self._chosen(base.dense(), factors, dense, base)

    def dot(
        self, x: Array, base: Base, factors: Factors, *, dropout_key: Array | None = None
    ) -> Array:
        def product(method: Variant, own: Factors, x: Array, base: Base) -> Array:
            return method.dot(x, base, own)

        y = self._sum(base.dot(x), x, factors, "ab", base.accumulate)
        return self._chosen(self._rescaled(y, factors), factors, product, x, base, but=PLAIN)

    def dot_t(self, x: Array, base: Base, factors: Factors) -> Array:
        def product(method: Variant, own: Factors, x: Array, base: Base) -> Array:
            return method.dot_t(x, base, own)

        z = self._rescaled(x, factors)
        y = self._sum(base.dot_t(z), z, factors, "ba", base.accumulate)
        return self._chosen(y, factors, product, x, base, but=PLAIN)

    def take(self, rows: Array, base: Base, factors: Factors) -> Array:
        def taken(method: Variant, own: Factors, rows: Array, base: Base) -> Array:
            if method != PLAIN:
                return method.take(rows, base, own)
            a, b = (own.trainable[name].astype(base.dtype) for name in "ab")
            hidden = jnp.take(a, rows, axis=1, mode="clip")
            y = base.take(rows) + lax.dot_general(hidden, b, (((0,), (0,)), ((), ())))
            return times(y, own.constants[GAIN]) if GAIN in own.constants else y

        return self._chosen(base.take(rows), factors, taken, rows, base)

    @property
    def adapts_bias(self) -> bool:
        return any(method.adapts_bias for method in self.methods)

    def bias(self, bias: Array, factors: Factors) -> Array:
        def changed(method: Variant, own: Factors, bias: Array) -> Array:
            return method.bias(bias, own)

        return self._chosen(bias, factors, changed, bias)

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

    def _rescaled(self, y: Array, factors: Factors) -> Array:
        """y, (..., out), times the gain of the row's adapter, which is one for most."""
        gains = factors.constants.get(f"{self.methods.index(PLAIN)}/{GAIN}")
        if gains is None:
            return y
        return times(y, lax.dynamic_index_in_dim(gains, factors.constants[SLOT], keepdims=False))

    def _chosen(
        self,
        y: Array,
        factors: Factors,
        compute: Callable[..., Array],
        *operands: Any,
        but: Variant | None = None,
    ) -> Array:
        """`compute(method, own factors, *operands)` for the row's adapter; y where it has none."""
        slot = factors.constants[SLOT]
        for number, method in enumerate(self.methods):
            if method != but and f"{number}/{ACTIVE}" in factors.constants:
                arrays = Factors(*(named(part, number) for part in factors))
                y = _where_active(functools.partial(compute, method))(y, slot, arrays, operands)
        return y


def _where_active(compute: Callable[..., Array]) -> Callable[..., Array]:
    """From y, a row's slot, arrays of all slots and operands to what is computed, or else y.

    It is computed with the slot's own arrays, if these are active there. A row alone, or a batch,
    whose slots have none computes nothing.
    """

    def of_row(y: Array, slot: Array, arrays: Factors, operands: tuple[Any, ...]) -> Array:
        own = jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, slot, keepdims=False), arrays)
        active = own.constants.pop(ACTIVE)
        found = compute(own, *operands)
        return jnp.where(active, found, y.astype(found.dtype))

    computed = grouped_matmul.at_precision(of_row, grouped_matmul.set_precision())

    def alone(y: Array, slot: Array, arrays: Factors, operands: tuple[Any, ...]) -> Array:
        active = lax.dynamic_index_in_dim(arrays.constants[ACTIVE], slot, keepdims=False)
        return _where_any(active, computed, y, slot, arrays, operands)

    mapped = custom_vmap(alone)

    @mapped.def_vmap
    def rule(size: int, batched: list[Any], *args: Any) -> tuple[Array, bool]:
        axes = tuple(jax.tree.map(lambda each: 0 if each else None, each) for each in batched)
        rows = jax.vmap(computed, (0, *axes[1:]), axis_size=size)
        y, slots, arrays, operands = args
        y = y if batched[0] else jnp.broadcast_to(y[None], (size, *y.shape))
        if not batched[1] or batched[2].constants[ACTIVE]:  # of a stack: a slot for each matrix
            return rows(y, slots, arrays, operands), True
        active = jnp.take(arrays.constants[ACTIVE], slots, mode="clip")
        return _where_any(active.any(), rows, y, slots, arrays, operands), True

    return mapped


def _where_any(some: Array, compute: Callable[..., Array], y: Array, *rest: Any) -> Array:
    """`compute(y, *rest)`, or y if there is nothing to compute."""
    dtype = jax.eval_shape(compute, y, *rest).dtype
    return lax.cond(some, compute, lambda y, *_: y.astype(dtype), y, *rest)


def named(arrays: dict[str, Array], number: int) -> dict[str, Array]:
    """The arrays of a method, by their own names."""
    start = f"{number}/"
    return {n.removeprefix(start): x for n, x in arrays.items() if n.startswith(start)}
