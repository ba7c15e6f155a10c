"""What a variant is tried on: matrices in several layouts, of sizes it accepts; a tiny decoder."""

import dataclasses
import typing
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from lora_jax.adapt import Adapted, adapt
from lora_jax.contract.clause import compiled
from lora_jax.frozen import Frozen, Trainable
from lora_jax.quantize import Storage
from lora_jax.variant import Base, Factors, Variant, wide
from lora_jax.weight import with_shared

BATCH, TOKENS, LAYERS = 4, 5, 2


# -- one matrix --------------------------------------------------------------------------------


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
    """Some (in, out) shapes, neither order of the two left out, nor a square."""
    u = unit(variant)
    return [(2 * u, 3 * u), (3 * u, 2 * u), (4 * u, 2 * u), (2 * u, 2 * u)]


def bases(variant: Variant, dtype: Any = jnp.float64) -> dict[str, Base]:
    """The same (in, out) size in every layout that a model may store it in, by its axes' roles."""
    u = unit(variant)
    layouts = {
        "io": (4 * u, 3 * u),
        "oi": (3 * u, 4 * u),
        "ioo": (4 * u, 3, u),
        "iio": (4, u, 3 * u),
        "oio": (3, 4 * u, u),
    }
    scale = (4 * u) ** -0.5
    return {r: Base(normal(shape, 0, dtype, scale), r) for r, shape in layouts.items()}


def base(variant: Variant, dtype: Any = jnp.float64) -> Base:
    """One matrix in the plainest layout."""
    return bases(variant, dtype)["io"]


def normal(
    shape: tuple[int, ...], seed: Any, dtype: Any = jnp.float64, scale: float = 1.0
) -> Array:
    """Normal numbers, the same in every dtype but for rounding (NumPy's: there is no compiling)."""
    return jnp.asarray(scale * np.random.default_rng(seed).standard_normal(shape), dtype)


def noisy(trainable: Any, seed: int = 1, scale: float = 0.3) -> Any:
    """Trainables away from their start, where a zero factor would hide mistakes."""
    leaves, treedef = jax.tree.flatten(trainable)
    return treedef.unflatten(
        [x + normal(x.shape, [seed, number], x.dtype, scale) for number, x in enumerate(leaves)]
    )


def init(variant: Variant, seed: int, base: Base) -> Factors:
    """The variant's factors for one matrix, and what it would share with others."""
    key = jax.random.key(seed)
    shared = variant.init_shared(key, [base.shape], wide(base.dtype))
    return with_shared(variant.init(key, base), shared)


def factors_of(variant: Variant, base: Base) -> Factors:
    """The variant's factors for a matrix, with random trainables."""
    factors = init(variant, 2, base)
    return Factors(noisy(factors.trainable), factors.constants)


def variations(variant: Variant) -> list[tuple[Variant, str]]:
    """The variant with one real number changed, for each that may be."""
    found = []
    for name, value in _real_numbers(variant).items():
        for changed in (value / 2, 0.25, value + 1):
            try:
                other = dataclasses.replace(variant, **{name: changed})
            except ValueError:
                continue
            if other != variant:
                found.append((other, name))
                break
    return found


def _real_numbers(variant: Variant) -> dict[str, float]:
    """Settings that are real numbers: floats, and integers where the annotation says float."""
    hints, found = typing.get_type_hints(type(variant)), {}
    for field in dataclasses.fields(variant):
        value, hint = getattr(variant, field.name), hints[field.name]
        real = isinstance(value, float) or float in (hint, *typing.get_args(hint))
        if field.init and real and isinstance(value, int | float):
            found[field.name] = value
    return found


# -- a model -----------------------------------------------------------------------------------


def decoder(params: Any, ids: Array, unrolled: bool = False) -> Array:
    """Logits (batch, tokens, vocabulary) of a causal transformer with stacked layers, tied."""
    x = params["embed"][ids]
    if unrolled:
        for index in range(LAYERS):
            x, _ = _layer(x, jax.tree.map(lambda w, index=index: w[index], params["layers"]))
    else:
        x, _ = lax.scan(_layer, x, params["layers"])
    x = jnp.tanh(_norm(x) @ params["mix"]["kernel"] + params["mix"]["bias"][None, None])
    return x @ params["embed"].T + params["head_bias"][None, None]


def unrolled(params: Any, ids: Array) -> Array:
    """The same decoder, its stacked layers indexed one by one."""
    return decoder(params, ids, unrolled=True)


def _layer(x: Array, layer: Any) -> tuple[Array, None]:
    q, k, v = jnp.einsum("btd,dchk->cbthk", _norm(x), layer["qkv"])
    scores = jnp.einsum("bqhk,bthk->bhqt", q, k)
    seen = jnp.tril(jnp.ones(scores.shape[-2:], bool))[None, None]
    weights = jax.nn.softmax(jnp.where(seen, scores, -1e9))
    x = x + jnp.einsum("bhqt,bthk,hkd->bqd", weights, v, layer["out"])
    return x + jnp.tanh(_norm(x) @ layer["up"]) @ layer["down"], None


def _norm(x: Array) -> Array:
    """Keeps functions behind it off their flat ends, where gradients vanish."""
    return x * lax.rsqrt((x * x).mean(-1, keepdims=True) + 1)


def decoder_params(variant: Variant, dtype: Any = jnp.float64) -> Any:
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


@dataclasses.dataclass(frozen=True)
class Toy:
    """The decoder with all of its matrices adapted, and an input."""

    adapted: Adapted
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

    def output(self, trainable: Trainable, ids: Array | None = None) -> Array:
        """`apply`, compiled."""
        return _apply(self.adapted, trainable, self.frozen, self.ids if ids is None else ids)

    def gradient(self, trainable: Trainable) -> tuple[Array, Trainable]:
        """The score of the output, and its gradient, compiled."""
        return _gradient(self.adapted, trainable, self.frozen, self.ids)


def toy(
    variant: Variant,
    dtype: Any = jnp.float64,
    also_train: tuple[str, ...] = ("head_bias",),
    seed: int = 4,
    quantize: Storage | None = None,
) -> Toy:
    """The decoder adapted by a variant (a method without factors trains what it `trains`)."""
    params, ids = decoder_params(variant, dtype), _ids(variant)
    targets = ("embed", "mix/kernel", "layers/.*")
    storage = {} if quantize is None else dict.fromkeys(targets, quantize)
    adapted = adapt(decoder, variant, targets, also_train, storage)
    return Toy(adapted, params, ids, *_init(adapted, jax.random.key(seed), params, ids))


def training_toy(variant: Variant, targets: tuple[str, ...]) -> Toy:
    """A toy in which adapters alone train, initialised without compiling, as users do.

    A method without factors has something to train all the same.
    """
    params, ids = decoder_params(variant), _ids(variant)
    adapted = adapt(decoder, variant, targets, () if variant.adapts else ("head_bias",))
    return Toy(adapted, params, ids, *adapted.init(jax.random.key(6), params, ids))


def _ids(variant: Variant) -> Array:
    ids = np.random.default_rng(5).integers(0, 4 * unit(variant), (BATCH, TOKENS))
    return jnp.asarray(ids, jnp.int32)


def score(output: Array) -> Array:
    """A smooth number that depends on every output."""
    return (output**2).mean()


def score_of(adapted: Adapted, trainable: Trainable, frozen: Frozen, ids: Array) -> Array:
    return score(adapted.apply(trainable, frozen, ids))


# Compiled once for all toys of a variant, which share its `Adapted`.
_init = compiled(Adapted.init, static_argnums=0)
_apply = compiled(Adapted.apply, static_argnums=0)
_gradient = compiled(jax.value_and_grad(score_of, argnums=1), static_argnums=0)


def task_loss(logits: Array, ids: Array) -> Array:
    """The mean cross-entropy of each next token."""
    log_p = jax.nn.log_softmax(logits[:, :-1])
    return -jnp.take_along_axis(log_p, ids[:, 1:, None], axis=-1).mean()
