"""What a variant is tested on: keys, matrices in several layouts and sizes, and a tiny decoder."""

import contextlib
import dataclasses
import functools
import math
import typing
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import Tracer
from jax.extend.random import define_prng_impl

from lora_jax.base import Seen
from lora_jax.contract.clause import by_numpy, quick_jit
from lora_jax.quantization.quantize import Storage
from lora_jax.transform.adapt import Adapted, adapt, seen_shapes
from lora_jax.transform.adapted_weight import with_shared
from lora_jax.transform.placement import Frozen, PyTree, Trainable, shared_factors
from lora_jax.variant import Base, Factors, Variant, wide

# -- keys ------------------------------------------------------------------------------------------


# Programs that draw from these keys compile in half of the time: most of an initialisation is JAX's
# own generator, which is good enough for cryptography. These keys hash a counter, and numbers look
# random after a few operations. A variant can use them as it uses JAX's own.


def hashed_key(seed: Any) -> Array:
    """A key, as `jax.random.key(seed)` gives one; the seed may be traced."""
    return jax.random.key(seed, impl=_HASHED)


def _hashed(x: Array) -> Array:
    """Wellons' `lowbias32`: each bit of a uint32 changes half of the bits of the result."""
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))


@functools.partial(jax.jit, static_argnums=(1, 2))
def _bits(key: Array, width: int, shape: Sequence[int]) -> Array:
    """Unsigned integers of `width` bits, hashed from the key and the place in the array."""
    places = lax.iota(np.uint32, math.prod(shape))
    bits = _hashed(_hashed(places ^ key[0]) ^ key[1])
    if width == 64:
        both = (each.astype(np.uint64) for each in (bits, _hashed(bits ^ np.uint32(1))))
        bits = (next(both) << np.uint64(32)) | next(both)
    return bits.astype(f"uint{width}").reshape(shape)


@jax.jit
def _pair(number: Array) -> Array:
    """The two words of a key, made from a number."""
    return _hashed(lax.full((2,), number.astype(np.uint32)) ^ np.array([1, 2], np.uint32))


@jax.jit
def _folded(key: Array, number: Array) -> Array:
    return _hashed(key ^ _pair(number))


_HASHED = define_prng_impl(
    key_shape=(2,),
    seed=_pair,
    split=lambda key, shape: _bits(key, 32, (*shape, 2)),
    random_bits=_bits,
    fold_in=_folded,
    name="hashed",
    tag="hashed",
)


# -- matrices, and the factors of a variant --------------------------------------------------------


def unit(variant: Variant) -> int:
    """The smallest u such that the variant works for all the toys' matrices, 2u to 4u wide."""
    reason = None
    for size in range(4, 513):
        try:
            for inputs, outputs in ((2, 3), (3, 2), (2, 2), (4, 2), (2, 6), (4, 3)):
                variant.validate((inputs * size, outputs * size))
        except ValueError as error:
            reason = error
        else:
            return size
    raise ValueError(f"{variant} works for none of the sizes that are tried: {reason}")


def shapes(variant: Variant) -> list[tuple[int, int]]:
    """Some (in, out) shapes: one that widens, one that narrows, and a square."""
    u = unit(variant)
    return [(2 * u, 3 * u), (4 * u, 2 * u), (2 * u, 2 * u)]


def bases(variant: Variant, dtype: Any = jnp.float64) -> dict[str, Base]:
    """One (in, out) matrix in every layout that a model may store it in, by its axes' roles."""
    u = unit(variant)
    matrix = np.asarray(normal((4 * u, 3 * u), 0, dtype, (4 * u) ** -0.5))
    layouts = {
        "io": matrix,
        "oi": matrix.T,
        "ioo": matrix.reshape(4 * u, 3, u),
        "iio": matrix.reshape(4, u, 3 * u),
        "oio": matrix.reshape(4 * u, 3, u).swapaxes(0, 1),
    }
    seen = seen_of(variant, matrix.shape, dtype)
    return {roles: Base(array(value), roles, seen=seen) for roles, value in layouts.items()}


def base(variant: Variant, dtype: Any = jnp.float64) -> Base:
    """One matrix in the plainest layout."""
    return bases(variant, dtype)["io"]


def seen_of(variant: Variant, shape: tuple[int, int], dtype: Any = jnp.float64) -> Seen | None:
    """Random numbers in the place of what the variant would see of an (in, out) matrix in data."""
    if variant.needs is None:
        return None
    shapes = variant.needs.shapes(shape, wide(dtype))
    return sized_as_seen(jax.tree.map(lambda leaf: normal(leaf.shape, 21, leaf.dtype), shapes))


def sized_as_seen(random: Seen) -> Seen:
    """Random numbers with the sizes of what is seen: rows of a length near one, positive values."""
    rows = ("left", "right", "directions")
    numbers = random._asdict().items()
    return random._replace(
        **{n: x / x.shape[-1] ** 0.5 if n in rows else abs(x) for n, x in numbers}
    )


def array(numbers: Any, dtype: Any = None) -> Array:
    """NumPy's numbers as an array; NumPy casts them, as `jnp.asarray` would compile the cast."""
    numbers = np.asarray(numbers, dtype)
    return jnp.asarray(numbers, numbers.dtype)


def normal(
    shape: tuple[int, ...], seed: Any, dtype: Any = jnp.float64, scale: float = 1.0
) -> Array:
    """Normal random numbers by NumPy (no compiling), the same in every dtype up to rounding."""
    return array(scale * np.random.default_rng(seed).standard_normal(shape), dtype)


def noisy(trainable: Any, seed: int = 1, scale: float = 0.3) -> Any:
    """Trainables away from their start, where a zero factor would hide mistakes."""

    def moved(number: int, x: Array) -> Array:
        noise = normal(x.shape, [seed, number], x.dtype, scale)
        # NumPy adds them where it can, so that nothing is compiled.
        return x + noise if isinstance(x, Tracer) else array(np.add(x, noise))

    leaves, treedef = jax.tree.flatten(trainable)
    return treedef.unflatten([moved(number, x) for number, x in enumerate(leaves)])


def stack(*trees: PyTree) -> PyTree:
    """Stack trees of numbers along a new leading axis; by NumPy, as above."""
    return jax.tree.map(lambda *leaves: array(np.stack(leaves)), *trees)


def init(variant: Variant, seed: Any, base: Base) -> Factors:
    """The variant's factors for one matrix, with the arrays that it would share with others."""
    key = hashed_key(seed)
    shared = variant.init_shared(key, [base.shape], wide(base.dtype))
    return with_shared(variant.init(key, base), shared_factors(variant, shared))


def factors_of(variant: Variant, base: Base, seed: Any = 2) -> Factors:
    """The variant's factors for a matrix, with random trainables."""
    factors = init(variant, seed, base)
    return Factors(noisy(factors.trainable), factors.constants)


_factors_by_numpy = by_numpy(factors_of, static_argnums=0)


def quick_factors_of(variant: Variant, base: Base) -> Factors:
    """The same without compiling them, in JAX's own arrays."""
    return jax.device_put(_factors_by_numpy(variant, base))


def altered(variant: Variant, **settings: Any) -> Variant | None:
    """The variant with other settings; None if it refuses them."""
    with contextlib.suppress(ValueError):
        return dataclasses.replace(variant, **settings)
    return None


def variations(variant: Variant) -> list[tuple[Variant, str]]:
    """The variant with one real number changed, for each that may be.

    Those are floats, and integers where the annotation says float.
    """
    hints, found = typing.get_type_hints(type(variant)), []
    for field in dataclasses.fields(variant):
        value, hint = getattr(variant, field.name), hints[field.name]
        real = isinstance(value, float) or float in (hint, *typing.get_args(hint))
        if not (field.init and real and isinstance(value, int | float)):
            continue
        others = (altered(variant, **{field.name: x}) for x in (value / 2, 0.25, value + 1))
        other = next((each for each in others if each not in (None, variant)), None)
        if other is not None:
            found.append((other, field.name))
    return found


# -- a decoder: adapted, trained, and merged -------------------------------------------------------


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
_key = quick_jit(hashed_key)


@functools.partial(by_numpy, static_argnums=0)
def _init(adapted: Adapted, seed: Array, params: PyTree, ids: Array) -> tuple[Trainable, Frozen]:
    return begin(adapted, hashed_key(seed), params, ids)


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
