"""A training step of LoRA on Llama as one would write it by hand: JAX and Optax, nothing else.

Sharded as the project's rules say, layers scanned and recomputed, activations cut along tokens
between products, logits of a chunk at a time. What `experiments.planning.memory_fit` measures is
compared with it.
"""

import functools

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec as P

ROWS = ("data", "fsdp")
INWARD, OUTWARD = P(None, "fsdp", "tensor"), P(None, "tensor", "fsdp")


def shapes_of(config, rank):
    """`{name: (shape, spec, dtype)}` of weights and of factors."""
    width, inner, depth = (
        config[k] for k in ("hidden_size", "intermediate_size", "num_hidden_layers")
    )
    head = width // config["num_attention_heads"]
    groups = config["num_key_value_heads"] * head
    vocabulary = config["vocab_size"]
    linears = {
        "q": (width, width, INWARD),
        "k": (width, groups, INWARD),
        "v": (width, groups, INWARD),
        "o": (width, width, OUTWARD),
        "gate": (width, inner, INWARD),
        "up": (width, inner, INWARD),
        "down": (inner, width, OUTWARD),
    }
    weights = {n: ((depth, i, o), spec, jnp.bfloat16) for n, (i, o, spec) in linears.items()}
    weights |= {n: ((depth, width), P(), jnp.bfloat16) for n in ("norm1", "norm2")}
    rest = {
        "table": ((vocabulary, width), P("tensor", "fsdp"), jnp.bfloat16),
        "norm": ((width,), P(), jnp.bfloat16),
        "head": ((width, vocabulary), P("fsdp", "tensor"), jnp.bfloat16),
    }
    factors = {}
    for name, (i, o, spec) in linears.items():
        a, b = P(None, spec[1], None), P(None, None, spec[2])
        factors[name] = {
            "a": ((depth, i, rank), a, jnp.float32),
            "b": ((depth, rank, o), b, jnp.float32),
        }
    return {"layers": weights, **rest}, factors


def norm(x, scale):
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + 1e-5)
    return (y * scale.astype(jnp.float32)[None, None]).astype(x.dtype)


def turn(x):
    tokens, size = x.shape[1], x.shape[-1]
    turns = 10000.0 ** (-jnp.arange(0, size, 2, dtype=jnp.float32) / size)
    angles = jnp.arange(tokens, dtype=jnp.float32)[:, None] * turns[None]
    cos, sin = jnp.cos(angles)[None, :, None], jnp.sin(angles)[None, :, None]
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate((a * cos - b * sin, b * cos + a * sin), axis=-1).astype(x.dtype)


def step_of(config, mesh, tx, chunk, scale):
    """`(factors, moments, weights, ids) -> (factors, moments, loss)`, jitted."""
    head = config["hidden_size"] // config["num_attention_heads"]

    def lay(x, *spec):
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(*spec)))

    def product(x, w, f, name):
        a, b = f[name]["a"].astype(x.dtype), f[name]["b"].astype(x.dtype)
        return x @ w[name] + ((x @ a) * jnp.asarray(scale, x.dtype)) @ b

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def layer(x, each):
        w, f = each
        y = lay(norm(x, w["norm1"]), ROWS)
        batch, tokens, _ = y.shape
        q, k, v = (product(y, w, f, n).reshape(batch, tokens, -1, head) for n in ("q", "k", "v"))
        with jax.numpy_dtype_promotion("standard"):
            y = jax.nn.dot_product_attention(turn(q), turn(k), v, is_causal=True)
        y = lay(y.reshape(batch, tokens, -1), ROWS, None, "tensor")
        x = lay(x + product(y, w, f, "o"), ROWS, "tensor")
        y = lay(norm(x, w["norm2"]), ROWS)
        y = lay(
            jax.nn.silu(product(y, w, f, "gate")) * product(y, w, f, "up"), ROWS, None, "tensor"
        )
        return lay(x + product(y, w, f, "down"), ROWS, "tensor"), None

    def loss(factors, weights, ids):
        x = lay(jnp.take(weights["table"], ids, axis=0), ROWS, "tensor")
        x, _ = jax.lax.scan(layer, x, (weights["layers"], factors))
        x = lay(norm(x, weights["norm"]), ROWS)[:, :-1]
        targets = ids[:, 1:]
        extra = -targets.shape[1] % chunk
        x = jnp.pad(x, ((0, 0), (0, extra), (0, 0)))
        targets = jnp.pad(targets, ((0, 0), (0, extra)))

        @functools.partial(jax.checkpoint, prevent_cse=False)
        def of_chunk(each):
            x, target = each
            z = jnp.matmul(x, weights["head"], preferred_element_type=jnp.float32)
            chosen = jnp.take_along_axis(z, target[:, :, None], axis=-1)[:, :, 0]
            return jax.nn.logsumexp(z, axis=-1) - chosen

        def chunks(y):
            return jnp.moveaxis(y.reshape(y.shape[0], -1, chunk, *y.shape[2:]), 1, 0)

        losses = jax.lax.map(of_chunk, (chunks(x), chunks(targets)))
        losses = jnp.moveaxis(losses, 0, 1).reshape(ids.shape[0], -1)[:, : ids.shape[1] - 1]
        return losses.mean()

    def step(factors, moments, weights, ids):
        value, grads = jax.value_and_grad(loss)(factors, weights, ids)
        updates, moments = tx.update(grads, moments, factors)
        return optax.apply_updates(factors, updates), moments, value

    return step


def compiled(config, mesh, rank, rows, tokens, tx, chunk=128, options=None):
    """What `jax.jit` makes of the step on shapes: `.memory_analysis()` says what it needs."""
    weights, factors = shapes_of(config, rank)

    def struct(each):
        shape, spec, dtype = each
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    def is_shape(each):
        return isinstance(each, tuple)

    weights, factors = (jax.tree.map(struct, x, is_leaf=is_shape) for x in (weights, factors))
    moments = jax.eval_shape(tx.init, factors)
    known = dict(jax.tree_util.tree_leaves_with_path(factors))

    def moment(keys, leaf):
        found = known.get(keys[-2:])
        place = NamedSharding(mesh, P()) if found is None else found.sharding
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)

    moments = jax.tree_util.tree_map_with_path(moment, moments)
    ids = jax.ShapeDtypeStruct((rows, tokens), jnp.int32, sharding=NamedSharding(mesh, P(ROWS)))
    where = jax.tree.map(lambda leaf: leaf.sharding, (factors, moments))
    step = jax.jit(
        step_of(config, mesh, tx, chunk, 1.0), donate_argnums=(0, 1), out_shardings=(*where, None)
    )
    traced = step.trace(factors, moments, weights, ids)
    return traced.lower(lowering_platforms=("cpu",)).compile(options)
