"""What a bank says of itself, as tables of text."""

import jax
import jax.numpy as jnp

from lora_jax.serving import pick, ways
from lora_jax.serving.fastest_way import Product, fastest, seconds
from lora_jax.serving.layout import Held
from lora_jax.serving.slots import ACTIVE, PLAIN_METHOD
from lora_jax.table import Table
from lora_jax.transform.placement import AdaptedSpec


def explain(spec: AdaptedSpec, held: Held) -> str:
    """How each adapted weight is computed."""
    rows = []
    for each in spec.placements:
        if not each.adapts:
            continue
        kinds = dict.fromkeys(str(use) for use in each.use.uses)
        merged = dict.fromkeys(use.merges for use in each.use.uses if use.merges)
        own = held.part("constants", each.use.path)
        methods = dict.fromkeys(
            method.variant.title or type(method.variant).__name__
            for number, method in enumerate(held.methods)
            if f"{number}/{ACTIVE}" in own
        )
        rows.append((each.use.path, *(", ".join(x) for x in (kinds, methods, merged))))
    return Table(("path", "used as", "methods", "merged for each row at"), rows).to_text()


def timings(spec: AdaptedSpec, held: Held, way: str, rows: int, tokens: int) -> str:
    """The milliseconds of each way to compute the products of plain LoRA."""
    lines = []
    for product, path in _products(spec, held, rows, tokens).items():
        times = seconds(product, jax.default_backend())
        taken = fastest(product) if way == pick.MEASURED else way
        each = [f"{1000 * times[name]:.3f}" if name in times else "" for name in ways.WAYS]
        lines.append((path, f"{product.inputs} x {product.outputs}", taken, *each))
    heads = "first path", "in x out", "way", *(f"{name} ms" for name in ways.WAYS)
    return Table(heads, lines).to_text()


def _products(spec: AdaptedSpec, held: Held, rows: int, tokens: int) -> dict[Product, str]:
    """The products of plain LoRA of a batch, each with the first weight that has it."""
    found: dict[Product, str] = {}
    number = held.methods.index(PLAIN_METHOD)
    for each in spec.adapted:
        own = held.part("trainable", each.use.path)
        kinds = {use.kind for use in each.use.uses if use.merges is None}
        for kind, (first, second) in (("product", "ab"), ("transposed product", "ba")):
            a, b = (own.get(f"{number}/{name}") for name in (first, second))
            if kind in kinds and a is not None and b is not None:
                slots, rank, inputs = a.shape[-3:]
                shape = rows, tokens, slots, rank, inputs, b.shape[-1]
                product = Product(*shape, dtype=jnp.dtype(each.use.dtype).name)
                found.setdefault(product, each.use.path)
    return found
