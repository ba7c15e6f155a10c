"""The common part of all decoders: stacked, scanned pre-norm layers, an embedding and a head."""

import dataclasses
import functools
from typing import Any, ClassVar, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.lax import with_sharding_constraint
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from lora_jax.base import wide
from lora_jax.models.parts.causal_attention import (
    Implementation,
    Sight,
    attend,
    restarting,
    visible,
)
from lora_jax.models.parts.modules import (
    Embedding,
    Linear,
    dropout,
    over_layers,
    split_keys,
    stack_layers,
)
from lora_jax.models.parts.rope import Rotation
from lora_jax.sharding.mesh import ROWS, fitting

POLICIES = (
    "nothing_saveable",
    "everything_saveable",
    "dots_saveable",
    "dots_with_no_batch_dims_saveable",
)


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


class DecoderLayer(nnx.Module):
    """One layer, normalised before attention and feed-forward: (B, T, hidden) to (B, T, hidden).

    A family defines the parts below. A call runs `project`, `attend` and `finish`; generation uses
    these separately, to add the keys and values of earlier tokens.
    """

    activations: Activations
    attention_norm: Any
    attention: Any
    mlp_norm: Any
    attention_dropout: float
    residual_dropout: float

    def __call__(
        self, x: Array, rotation: Rotation | None, sight: Sight, rng: Array | None
    ) -> Array:
        attention_rng, residual_rng = split_keys(rng, 2)
        query, key, value = self.project(x, rotation)
        y = attend(query, key, value, sight, self.attention_dropout, attention_rng)
        return self.finish(x, y, residual_rng)

    def project(self, x: Array, rotation: Rotation | None) -> tuple[Array, Array, Array]:
        """Queries (B, T, heads, head_dim), and keys and values (B, T, groups, head_dim)."""
        return self.attention.project(self.activations.whole(self.attention_norm(x)), rotation)

    def finish(self, x: Array, attended: Array, rng: Array | None = None) -> Array:
        """The layer's output, from its input and the result of attention."""
        first_rng, second_rng = split_keys(rng, 2)
        lay = self.activations
        y = self.attention.output(lay.within(attended.reshape(*x.shape[:-1], -1)))
        x = lay.between(x + dropout(y, self.residual_dropout, first_rng))
        y = self.feed_forward(lay.whole(self.mlp_norm(x)))
        return lay.between(x + dropout(y, self.residual_dropout, second_rng))

    def feed_forward(self, x: Array) -> Array:
        """The part that treats each token by itself: (B, T, hidden) to (B, T, hidden)."""
        raise NotImplementedError


class Decoder(nnx.Module):
    """A causal language model; a call is `logits(hidden(input_ids))`.

    It computes in `dtype`, by default the dtype of its parameters; norms, rotations, softmax and
    logits are in float32 at least. `remat` recomputes each layer in the backward pass instead of
    keeping its activations; the name of a policy of `jax.checkpoint_policies` (see `POLICIES`)
    keeps some. `unroll` is that of `modules.over_layers`, `implementation` that of
    `causal_attention.attend`. Activations are sharded over `mesh` (see `Activations`). The
    model holds no random state: pass `rng` to a call for dropout.

    A family defines `layer_type`, `make_norm` and, if needed, `embed` and `rotation`.
    """

    layer_type: ClassVar[Any]

    def __init__(
        self,
        config: Any,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        remat: bool | str = False,
        unroll: int | None = None,
        implementation: Implementation | None = None,
        mesh: Mesh | None = None,
        rngs: nnx.Rngs,
    ):
        if not isinstance(remat, bool) and remat not in POLICIES:
            raise ValueError(
                f"remat must be True, False or one of {', '.join(POLICIES)}: {remat!r}"
            )
        if implementation not in (None, *get_args(Implementation)):
            known = ", ".join(get_args(Implementation))
            raise ValueError(
                f"implementation must be None or one of {known}, got {implementation!r}"
            )
        self.config, self.dtype, self.remat, self.unroll = config, dtype, remat, unroll
        self.implementation: Implementation | None = implementation
        sizes = (config.vocab_size, config.hidden_size, config.initializer_range)
        self.embedding = Embedding(*sizes, param_dtype, rngs)
        make = functools.partial(self.layer_type, config, param_dtype)
        self.layers = stack_layers(make, config.num_hidden_layers, rngs)
        self.layers.activations = Activations(mesh)
        self.norm = self.make_norm(config, param_dtype)
        if not config.tie_word_embeddings:
            width, words, std = config.hidden_size, config.vocab_size, config.initializer_range
            self.head = Linear(width, words, std, param_dtype, rngs, use_bias=False)

    def __call__(
        self,
        input_ids: Array,
        attention_mask: Array | None = None,
        *,
        positions: Array | None = None,
        segments: Array | None = None,
        rng: Array | None = None,
    ) -> Array:
        """Logits of the token after each token, (B, T, vocabulary); arguments as for `hidden`."""
        x = self.hidden(input_ids, attention_mask, positions=positions, segments=segments, rng=rng)
        return self.logits(x)

    def hidden(
        self,
        input_ids: Array,
        attention_mask: Array | None = None,
        *,
        positions: Array | None = None,
        segments: Array | None = None,
        branches: Array | None = None,
        rng: Array | None = None,
    ) -> Array:
        """The last hidden states (B, T, hidden), normalised, in `dtype`.

        Args:
            input_ids: (B, T) integers.
            attention_mask: (B, T), nonzero for a token. Padding on either side does not change the
                results of tokens; its own results are finite.
            positions: (B or 1, T) integers; by default tokens are counted from 0 without padding,
                and restart in every segment.
            segments: (B, T) integers, the number of each token's document in a row with several; a
                token sees only its own document.
            branches: (B, T) integers, for several texts with a shared beginning in one row. The
                shared beginning comes first and has number 0; each continuation has its own number,
                from 1 on. Each text gets the same states as in a row of its own. The row may be
                longer than the model's limit if none of its texts is. Padding at the end needs no
                `attention_mask`; `segments` cannot be given too.
            rng: dropout at the config's rates with this key; no dropout without one.
        """
        self._check(input_ids, attention_mask, positions, segments, branches)
        tokens, dtype = input_ids.shape[1], self.dtype or self.embedding.embedding.dtype
        if positions is None and branches is not None:
            counts = jnp.ones_like(branches) if attention_mask is None else attention_mask
            counts = counts.astype(bool).astype(jnp.int32)
            shared = (branches == 0).astype(jnp.int32).cumprod(axis=1)
            stem = (shared * counts).sum(axis=1, keepdims=True, dtype=jnp.int32)
            own = jnp.maximum(jnp.cumsum(counts, axis=1, dtype=jnp.int32) - 1, 0)
            positions = jnp.where(shared > 0, own, stem + restarting(branches, attention_mask))
            positions = jnp.minimum(positions, self.config.max_tokens - 1)  # for padding at the end
        elif positions is None and segments is not None:
            positions = restarting(segments, attention_mask)
        elif positions is None and attention_mask is not None:
            counted = jnp.cumsum(attention_mask.astype(bool), axis=1, dtype=jnp.int32)
            positions = jnp.maximum(counted - 1, 0)
        elif positions is None:
            positions = jnp.arange(tokens, dtype=jnp.int32)[None]

        embedding_rng, layers_rng = split_keys(rng, 2)
        x = self.layers.activations.between(self.embed(input_ids, positions, dtype, embedding_rng))
        rotation = self.rotation(positions, dtype)
        sights = self._sights(tokens, attention_mask, segments, branches, positions)
        graph, weights = nnx.split(self.layers)

        def layer(x: Array, each: tuple[Any, Array | None, Array | None]) -> tuple[Array, None]:
            weights, slides, rng = each
            return nnx.merge(graph, weights)(x, rotation, _choose(sights, slides), rng), None

        slides = jnp.asarray(self.config.slides) if len(sights) == 2 else None
        count = self.config.num_hidden_layers
        rngs = None if layers_rng is None else jax.random.split(layers_rng, count)
        x, _ = over_layers(layer, x, (weights, slides, rngs), count, self.unroll, self.remat)
        return self.layers.activations.whole(self.norm(x))

    def logits(self, hidden: Array) -> Array:
        """Apply the head: (..., hidden) to logits (..., vocabulary), float32 at least."""
        exact = wide(hidden.dtype)
        if not self.config.tie_word_embeddings:
            kernel = self.head.kernel[...].astype(hidden.dtype)
            return jnp.matmul(hidden, kernel, preferred_element_type=exact)
        table = self.embedding.embedding[...].astype(hidden.dtype)
        if hidden.ndim > 2:
            return jnp.matmul(hidden, table.T, preferred_element_type=exact)
        # For one token of each row, XLA on CPUs would copy the whole table in another order, which
        # takes five times as long. It would also move the transpose without a barrier.
        words = jnp.matmul(table, hidden.T, preferred_element_type=exact)
        return jax.lax.optimization_barrier(words).T

    def make_norm(self, config: Any, dtype: DTypeLike) -> nnx.Module:
        """The norm after the last layer."""
        raise NotImplementedError

    def embed(
        self, input_ids: Array, positions: Array, dtype: DTypeLike, rng: Array | None
    ) -> Array:
        """The input of the first layer, (B, T, hidden)."""
        return self.look_up(self.embedding, input_ids, dtype)

    def look_up(self, table: Embedding, ids: Array, dtype: DTypeLike) -> Array:
        """Look up rows of a table, (B, T, hidden)."""
        return self.layers.activations.look_up(table.embedding[...], ids).astype(dtype)

    def rotation(self, positions: Array, dtype: DTypeLike) -> Rotation | None:
        """The rotation of heads by their positions; None for a model without one."""
        return None

    def _sights(
        self,
        tokens: int,
        attention_mask: Array | None,
        segments: Array | None,
        branches: Array | None,
        positions: Array,
    ) -> list[Sight]:
        """What the layers see: one entry, or two if there are both full and sliding layers."""
        window, kinds = self.config.sliding_window, sorted(set(self.config.slides))
        windows = [window if slides else None for slides in kinds]
        masked = attention_mask is not None or segments is not None or branches is not None
        if not masked and len(kinds) == 1:
            return [Sight(None, windows[0], self.implementation)]
        masks = [
            visible(tokens, attention_mask, segments, each, branches, positions) for each in windows
        ]
        return [Sight(mask, None, self.implementation) for mask in masks]

    def _check(self, input_ids: Array, *others: Array | None) -> None:
        if input_ids.ndim != 2:
            raise ValueError(f"input_ids must be (batch, tokens), got {input_ids.shape}")
        names = ("attention_mask", "positions", "segments", "branches")
        if others[2] is not None and others[3] is not None:
            raise ValueError("segments and branches cannot be given together")
        for name, array in zip(names, others, strict=True):
            shapes = [input_ids.shape, (1, input_ids.shape[1])][: 2 if name == "positions" else 1]
            if array is not None and array.shape not in shapes:
                raise ValueError(
                    f"{name} must be {input_ids.shape} as input_ids are, got {array.shape}"
                )
        if others[3] is None and input_ids.shape[1] > self.config.max_tokens:
            raise ValueError(
                f"{input_ids.shape[1]} tokens; the model takes at most {self.config.max_tokens}"
            )


def _choose(sights: list[Sight], slides: Array | None) -> Sight:
    """What one layer sees; if layers differ, `slides` says whether this one is a sliding layer."""
    if slides is None:
        return sights[0]
    full, sliding = sights
    return full._replace(mask=jnp.where(slides, sliding.mask, full.mask))  # type: ignore
