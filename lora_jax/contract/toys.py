"""A tiny decoder that a variant is tested on: adapted, trained, and merged."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from lora_jax.contract import keys
from lora_jax.contract.clause import by_numpy, quick_jit
from lora_jax.contract.toy_matrices import array, noisy, normal, sized_as_seen, unit
from lora_jax.quantization.quantize import Storage
from lora_jax.transform.adapt import Adapted, adapt, seen_shapes
from lora_jax.transform.placement import Frozen, PyTree, Trainable
from lora_jax.variant import Variant

BATCH, TOKENS, LAYERS = 4, 5, 2


def decoder(params: PyTree, ids: Array) -> Array:
    """Logits (batch, tokens, vocabulary) of a causal transformer: stacked layers, tied head."""
    return _around(lambda x, layers: lax.scan(_layer, x, layers)[0], params, ids)


def unrolled(params: PyTree, ids: Array) -> Array:
    """The same decoder, with its stacked layers indexed one by one."""

    def of_layers(x: Array, layers: PyTree) -> Array:
        for index in range(LAYERS):
            x, _ = _layer(x, jax.tree.map(lambda w, index=index: w[index], layers))
        return x

    return _around(of_layers, params, ids)


def shallow(params: PyTree, ids: Array) -> Array:
    """A lookup and two products, one of them by the transpose: few operations."""
    x = params["embed"][ids] @ params["mix"]["kernel"]
    return x @ params["embed"].T + params["head_bias"][None, None]


def thin(params: PyTree, ids: Array) -> Array:
    """A lookup, stacked weights with heads in a scan, and the tied head: few operations."""

    def layer(x: Array, heads: Array) -> tuple[Array, None]:
        several = jnp.tanh(jnp.einsum("btd,dchk->cbthk", x, heads))
        return x + several.mean(0).reshape(x.shape), None

    x, _ = lax.scan(layer, params["embed"][ids], params["layers"]["qkv"])
    return x @ params["embed"].T + params["head_bias"][None, None]


def _around(of_layers: Callable[[Array, PyTree], Array], params: PyTree, ids: Array) -> Array:
    x = of_layers(params["embed"][ids], params["layers"])
    x = jnp.tanh(_norm(x) @ params["mix"]["kernel"] + params["mix"]["bias"][None, None])
    return x @ params["embed"].T + params["head_bias"][None, None]


def _layer(x: Array, layer: Any) -> tuple[Array, None]:
    q, k, v = jnp.einsum("btd,dchk->cbthk", _norm(x), layer["qkv"])
    scores = jnp.einsum("bqhk,bthk->bhqt", q, k)
    seen = jnp.tril(jnp.ones(scores.shape[-2:], bool))[None, None]
    weights = jax.nn.softmax(jnp.where(seen, scores, -1e9))
    x = x + jnp.einsum("bhqt,bthk,hkd->bqd", weights, v, layer["out"])
    return x + jnp.tanh(_norm(x) @ layer["up"]) @ layer["down"], None


def _norm(x: Array) -> Array:
    """Normalise, to keep later functions off their flat ends, where gradients vanish."""
    return x * lax.rsqrt((x * x).mean(-1, keepdims=True) + 1)


def decoder_params(variant: Variant, dtype: Any = jnp.float64) -> PyTree:
    u = unit(variant)
    width, inner, vocabulary = 2 * u, 3 * u, 4 * u
    wanted = {
        "embed": (vocabulary, width),
        "layers": {
            "qkv": (LAYERS, width, 3, 2, u),
            "out": (LAYERS, 2, u, width),
            "up": (LAYERS, width, inner),
            "down": (LAYERS, inner, width),
        },
        "mix": {"kernel": (width, width), "bias": (width,)},
        "head_bias": (vocabulary,),
    }
    leaves, treedef = jax.tree.flatten(wanted, is_leaf=lambda each: isinstance(each, tuple))
    scale = width**-0.5
    return treedef.unflatten([normal(s, [3, i], dtype, scale) for i, s in enumerate(leaves)])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Toy:
    """The decoder with its matrices adapted, and an input.

    Its methods are traced, or compiled, once for all toys of a variant, which share its `Adapted`.
    """

    adapted: Adapted = dataclasses.field(metadata={"static": True})
    params: Any
    ids: Array
    trainable: Trainable
    """As `init` made them."""
    frozen: Frozen

    @property
    def moved(self) -> Trainable:
        """Random trainables."""
        return noisy(self.trainable)

    def apply(self, trainable: Trainable) -> Array:
        return self.adapted.apply(trainable, self.frozen, self.ids)

    output = by_numpy(apply)
    """`apply`, operation by operation."""

    def apply_and_gradient(self, trainable: Trainable) -> tuple[Array, Trainable]:
        """The output of `apply`, and the gradient of its score."""

        def of(trainable: Trainable) -> tuple[Array, Array]:
            output = self.apply(trainable)
            return score(output), output

        gradient, output = jax.grad(of, has_aux=True)(trainable)
        return output, gradient

    gradient = by_numpy(apply_and_gradient)
    compiled_gradient = quick_jit(apply_and_gradient)

    @by_numpy
    def merged(self, trainable: Trainable) -> tuple[PyTree, Array]:
        """What `merge` gives, and the decoder's output with it, by NumPy."""
        merged = self.adapted.merge(trainable, self.frozen)
        return merged, decoder(merged, self.ids)

    @by_numpy
    def merged_gradient(self, trainable: Trainable) -> tuple[PyTree, Array, Trainable]:
        """What `merged` gives, and the gradient of the output's score, by NumPy."""

        def of(trainable: Trainable) -> tuple[Array, tuple[PyTree, Array]]:
            merged = self.adapted.merge(trainable, self.frozen)
            output = decoder(merged, self.ids)
            return score(output), (merged, output)

        gradient, (merged, output) = jax.grad(of, has_aux=True)(trainable)
        return merged, output, gradient


ALL = ("embed", "mix/kernel", "layers/.*")
SOME = ("embed", "layers/qkv")
"""A tied embedding, and a stacked weight with heads: enough where all would compile for long."""


@functools.lru_cache(maxsize=8)  # clauses share them
def toy(
    variant: Variant,
    dtype: Any = jnp.float64,
    targets: tuple[str, ...] = ALL,
    seed: int = 4,
    quantize: Storage | None = None,
) -> Toy:
    """The decoder adapted by a variant (a method without factors trains what it `trains`)."""
    params, ids = decoder_params(variant, dtype), _ids(variant)
    storage = {} if quantize is None else dict.fromkeys(targets, quantize)
    adapted = adapt(decoder, variant, targets, ("head_bias",), storage)
    # Methods may do with their arrays what JAX's can and NumPy's cannot (`x.at`).
    begun = jax.device_put(_init(adapted, seed, params, ids))
    return Toy(adapted, params, ids, *begun)


def training_toy(variant: Variant) -> Toy:
    """A thin toy in which only adapters train, in arrays of its own, as training donates them.

    For a method without factors, `head_bias` trains, too.
    """
    each = toy(variant, targets=SOME)
    full, base = dict(each.trainable["params"]), dict(each.frozen.base)
    if variant.adapts:
        base["head_bias"] = full.pop("head_bias")
    adapted = dataclasses.replace(each.adapted, forward=thin, also_train=_also_trained(variant))
    trainable = {**each.trainable, "params": full}
    own = jax.tree.map(lambda leaf: array(np.array(leaf)), trainable)
    frozen = dataclasses.replace(each.frozen, base=base)
    return dataclasses.replace(each, adapted=adapted, trainable=own, frozen=frozen)


def small_training_toy(variant: Variant) -> Toy:
    """The same with one matrix in a small model, initialised without compiling, as users do."""
    params, ids = decoder_params(variant), _ids(variant)
    adapted = adapt(shallow, variant, "mix/kernel", _also_trained(variant))
    return Toy(adapted, params, ids, *begin(adapted, _key(6), params, ids))


def _also_trained(variant: Variant) -> tuple[str, ...]:
    return () if variant.adapts else ("head_bias",)


def _ids(variant: Variant) -> Array:
    ids = np.random.default_rng(5).integers(0, 4 * unit(variant), (BATCH, TOKENS))
    return array(ids, np.int32)


def score(output: Array) -> Array:
    """A smooth number that depends on every output."""
    return (output**2).mean()


output_of = by_numpy(decoder)
_key = quick_jit(keys.key)


@functools.partial(by_numpy, static_argnums=0)
def _init(adapted: Adapted, seed: Array, params: PyTree, ids: Array) -> tuple[Trainable, Frozen]:
    return begin(adapted, keys.key(seed), params, ids)


def begin(adapted: Adapted, key: Array, params: PyTree, ids: Array) -> tuple[Trainable, Frozen]:
    """What `init` gives, with random numbers in the place of what methods would see in data."""
    shapes = seen_shapes(adapted, params, ids)
    random = jax.tree.map(lambda leaf: jax.random.normal(key, leaf.shape, leaf.dtype), shapes)
    seen = {path: sized_as_seen(each) for path, each in random.items()}
    return adapted.init(key, params, ids, seen=seen)


def task_loss(logits: Array, ids: Array) -> Array:
    """The mean cross-entropy of each next token."""
    log_p = jax.nn.log_softmax(logits[:, :-1])
    return -jnp.take_along_axis(log_p, ids[:, 1:, None], axis=-1).mean()
