"""What a method can do, found by tracing its functions on the shapes of one matrix."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr

from lora_jax.contract import toys
from lora_jax.quantization.quantize import NF4, quantized
from lora_jax.transform import jaxprs
from lora_jax.variant import Base, Factors, Variant

YES, DENSE, NO = "yes", "dense", "no"
"""`dense`: by forming a matrix as large as the weight, which takes more time and memory."""
BY_DATA = "by data"
LARGE = 1024
"""About the sides of the matrix: the default sizes of methods are small beside it."""


@dataclasses.dataclass(frozen=True)
class Abilities:
    """One word each: `yes`, `dense` or `no`, unless the field says otherwise."""

    product: str
    """Whether its product x W' forms no dense matrix."""
    embedding: str
    """The same for lookups of rows."""
    tied_head: str
    """The same for products by the transpose."""
    merge: str
    """Whether W' is one matrix, which takes the place of W."""
    quantized: str
    """Whether W may be stored in NF4."""
    layer_ranks: str
    """Whether layers of one stack may differ in rank. Empty for a method without rank.

    `by data`, `in training`: the method divides ranks itself, then.
    """
    trials: str
    """Whether several trials step in one program."""
    resume: str
    """Whether all that training changes consists of plain arrays, which checkpoints hold."""
    starts_at_base: str
    data: str
    """What it must see before it starts: `gradient`, `inputs`, or nothing (empty)."""
    lora_rank: int | None
    """The rank of the plain LoRA that is equal (the mean, if data divide ranks); None: none is."""


def abilities(variant: Variant) -> Abilities:
    """What a variant with an adapter can do; nothing is compiled.

    Raises:
      ValueError: the variant works for none of the sizes that are tried.
    """
    unit = toys.unit(variant)
    size = unit * -(-LARGE // unit)
    numbers = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    need = variant.needs
    blind = need is not None and need.of == "inputs"  # which only a product of rows shows
    seen = None if need is None else need.shapes((size, size), jnp.float32)
    shape: Any = numbers((size, size))
    base = Base(shape, "io", seen=seen)
    stored = jax.eval_shape(functools.partial(quantized, NF4()), shape)
    factors = jax.eval_shape(functools.partial(toys.init, variant), 0, base)
    several = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((2, *leaf.shape), leaf.dtype), factors)
    x, rows = numbers((1, size)), jax.ShapeDtypeStruct((1,), jnp.int32)
    plain = jax.eval_shape(variant.as_lora, base, factors)
    dots = jax.vmap(variant.dot, in_axes=(None, None, 0))
    state = functools.partial(_carried, variant)
    return Abilities(
        product=_way(size**2, variant.dot, x, base, factors),
        embedding=NO if blind else _way(size**2, variant.take, rows, base, factors),
        tied_head=NO if blind else _way(size**2, variant.dot_t, x, base, factors),
        merge=_way(math.inf, variant.weight, base, factors),
        quantized=_way(math.inf, variant.dot, x, stored, factors),
        layer_ranks=_layer_ranks(variant),
        # Ranks that data decide are known too late for a common program.
        trials=NO if variant.allots else _way(math.inf, dots, x, base, several),
        resume=_word(_are_plain(jax.eval_shape(state, factors))),
        starts_at_base=_word(not variant.differs_at_init),
        data=need.of if need else "",
        lora_rank=plain and plain[0].shape[0],
    )


def _carried(variant: Variant, factors: Factors) -> Any:
    """What a training run keeps of one adapter: its factors, and the state of `update`."""
    return factors, variant.init_state({"": factors})


def _are_plain(tree: Any) -> bool:
    kinds = [leaf.dtype for leaf in jax.tree.leaves(tree)]
    return not any(jnp.issubdtype(kind, jax.dtypes.extended) for kind in kinds)


def _word(holds: bool) -> str:
    return YES if holds else NO


def _way(limit: float, function: Callable[..., Any], *args: Any) -> str:
    """`no` if the function fails; `dense` if it forms an array of `limit` numbers or more."""
    try:
        traced = jax.make_jaxpr(function)(*args)
    except Exception:  # of a user's code, which has no way then
        return NO
    return DENSE if max(_sizes(traced.jaxpr), default=0) >= limit else YES


def _sizes(jaxpr: Jaxpr) -> Iterator[int]:
    """How many numbers each array has that a jaxpr makes, inner ones included."""
    for eqn in jaxpr.eqns:
        yield from (math.prod(jaxprs.shape(var)) for var in eqn.outvars)
        for body, _ in jaxprs.bodies(eqn):
            yield from _sizes(body.jaxpr)


def _layer_ranks(variant: Variant) -> str:
    fields = {field.name for field in dataclasses.fields(variant)}
    if variant.allots:
        return BY_DATA
    if type(variant).prune is not Variant.prune:
        return "in training"
    if "rank" not in fields:
        return ""
    try:
        other = {"rank": 2 * getattr(variant, "rank")}  # noqa: B009
        variant.align((variant, dataclasses.replace(variant, **other)))
    except ValueError:
        return NO
    return YES
