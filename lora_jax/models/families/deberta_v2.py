"""DeBERTa v2 and v3 encoders with a sequence classifier, in Flax NNX.

Attention is disentangled: the score of a query and a key adds two products with the embedding of
their distance, the query's (c2p) and the key's (p2c). The layers are stacked and scanned as in
bert.py. The parameters have the same paths, and these more:

    embeddings/projection/kernel            if the tables differ in width from the hidden states
    embeddings/relative/embedding           (2 * span, hidden), one for each (bucket of a) distance
    embeddings/relative_norm/{scale,bias}                       with norm_rel_ebd="layer_norm"
    layers/attention/{position_key,position_query}/{kernel,bias}    unless share_att_key: then `key`
                                            and `query` project the relative embeddings as well
    convolution/{kernel,bias}, convolution/norm/{scale,bias}    with conv_kernel_size, after layer 0

He et al., 2021 (arXiv:2006.03654); He, Gao and Chen, 2023 (arXiv:2111.09543).
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from lora_jax.models.families import bert
from lora_jax.models.parts.classifier import EncoderClassifier, Step
from lora_jax.models.parts.config_checks import (
    EncoderConfig,
    activation,
    check_choice,
    check_heads,
    epsilon,
    flag,
    integer,
    layer_count,
    positive,
    rate,
    setting,
    shown,
    words,
)
from lora_jax.models.parts.family import Family
from lora_jax.models.parts.modules import (
    ACTIVATIONS,
    Embedding,
    LayerNorm,
    Linear,
    Pool,
    dropout,
    like,
    split_keys,
)


def _words(name: str, value: Any) -> tuple[str, ...]:
    """The words of a list, or of one string with bars between them, in lower case."""
    parts = value.split("|") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple):
        raise ValueError(f"{name} must be words, got {shown(value)}")
    stripped = (str(part).strip().lower() for part in parts)
    return tuple(dict.fromkeys(word for word in stripped if word))


@dataclasses.dataclass(frozen=True)
class DebertaConfig(EncoderConfig):
    """Sizes and rates of an encoder, with the names and defaults of transformers.

    A value of 0 means: the hidden size for `embedding_size`, no convolution for `conv_kernel_size`,
    no token types for `type_vocab_size`. A value of -1 means: the number of positions for
    `max_relative_positions`, one relative embedding per distance for `position_buckets`.
    """

    model_type: str = "deberta-v2"
    vocab_size: int = integer(128100)
    hidden_size: int = integer(1536)
    embedding_size: int = integer(0, least=0)
    num_hidden_layers: int = layer_count(24)
    num_attention_heads: int = integer(24)
    intermediate_size: int = integer(6144)
    max_position_embeddings: int = integer(512)
    type_vocab_size: int = integer(0, least=0)
    pad_token_id: int = integer(0, least=0)
    hidden_act: str = activation("gelu")
    layer_norm_eps: float = epsilon(1e-7)
    initializer_range: float = positive(0.02)
    hidden_dropout_prob: float = rate(0.1)
    attention_probs_dropout_prob: float = rate(0.1)
    pooler_dropout: float = rate(0.0)
    pooler_hidden_act: str = activation("gelu")
    cls_dropout: float | None = rate(None, null=None)
    relative_attention: bool = flag(False)
    pos_att_type: tuple[str, ...] = words(("c2p", "p2c"), read=_words)
    share_att_key: bool = flag(False)
    max_relative_positions: int = integer(-1, least=-1)
    position_buckets: int = integer(-1, least=-1)
    norm_rel_ebd: str = setting(
        "none",
        functools.partial(check_choice, choices=("none", "layer_norm")),
        read=lambda name, value: "|".join(_words(name, value)),
    )
    position_biased_input: bool = flag(True)
    conv_kernel_size: int = integer(0, least=0)
    conv_act: str = activation("tanh")
    conv_groups: int = integer(1)

    def __post_init__(self):
        super().__post_init__()
        self.settle("embedding_size", self.embedding_size or self.hidden_size)
        check_heads(self.hidden_size, self.num_attention_heads)
        # Half of the buckets are for single distances; the other half must reach the farthest one.
        middle = self.position_buckets // 2
        if self.position_buckets > 0 and not 1 <= middle < self.relative_positions - 1:
            raise ValueError(
                f"position_buckets {self.position_buckets} must be at least 2 and leave room for "
                f"distances of up to {self.relative_positions}"
            )
        if self.conv_kernel_size and self.conv_kernel_size % 2 == 0:
            raise ValueError(f"conv_kernel_size must be odd, got {self.conv_kernel_size}")
        if self.hidden_size % self.conv_groups:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of "
                f"conv_groups {self.conv_groups}"
            )

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> Self:
        """As `ModelConfig.from_json`; widths of heads and pooler must follow from hidden_size."""
        own = super().from_json(config)
        for name, only in (
            ("attention_head_size", own.hidden_size // own.num_attention_heads),
            ("pooler_hidden_size", own.hidden_size),
        ):
            if config.get(name) not in (None, only):
                raise ValueError(f"{name} {shown(config[name])} is not supported, only {only}")
        return own

    def to_json(self) -> dict[str, Any]:
        return {**super().to_json(), "pos_att_type": list(self.pos_att_type)}

    @property
    def head_dropout(self) -> float:
        """The dropout rate before the classifier: its own if the config has one, else hidden's."""
        return self.hidden_dropout_prob if self.cls_dropout is None else self.cls_dropout

    def with_head_dropout(self, rate: float) -> Self:
        return dataclasses.replace(self, cls_dropout=rate)

    @property
    def max_tokens(self) -> int:
        """The longest sequence; unlimited without absolute positions, as relative ones saturate."""
        return self.max_position_embeddings if self.position_biased_input else 2**31 - 1

    @property
    def relative_positions(self) -> int:
        """The distance at which relative positions saturate, in tokens."""
        given = self.max_relative_positions
        return given if given > 0 else self.max_position_embeddings

    @property
    def span(self) -> int:
        """Half the number of relative embeddings: those for one direction."""
        return self.position_buckets if self.position_buckets > 0 else self.relative_positions


def relative_indices(tokens: int, span: int, buckets: int, positions: int) -> np.ndarray:
    """The row, of `2 * span` rows, of every distance from 1 - tokens to tokens - 1, int32.

    With `buckets`, distances up to half of the buckets have their own rows. From there to
    `positions`, distances share rows by their logarithm, more and more. The logarithm is computed
    in float32 as in transformers, because it is rounded up. Farther distances get the last row of
    their side.
    """
    distances = np.arange(1 - tokens, tokens, dtype=np.int32)
    if buckets > 0:
        distances = _log_buckets(distances, buckets // 2, positions)
    return np.clip(distances + span, 0, 2 * span - 1).astype(np.int32)


def _log_buckets(distances: np.ndarray, middle: int, positions: int) -> np.ndarray:
    far = np.maximum(np.abs(distances), middle).astype(np.float32)
    share = np.log(far / np.float32(middle)) / np.log(np.float32((positions - 1) / middle))
    buckets = middle + np.ceil(share * np.float32(middle - 1)).astype(np.int32)
    return np.where(np.abs(distances) <= middle, distances, np.sign(distances) * buckets)


def skew(x: Array) -> Array:
    """Align columns by distance with tokens: (..., T, 2 T - 1) to (..., T, T).

    Element [i, j] is x[i, j - i + T - 1]. This takes two reshapes and two slices: with one more
    column, each row starts one element later.
    """
    *batch, tokens, columns = x.shape
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, 1)]).reshape(*batch, -1)
    x = x[..., tokens - 1 : tokens - 1 + tokens * columns]
    return x.reshape(*batch, tokens, columns)[..., :tokens]


class Relative(NamedTuple):
    """The relative embeddings that a sequence needs, computed once for all layers.

    `embeddings` (rows, hidden); `order` (2 T - 1,), the row of each distance from 1 - T to T - 1.
    """

    embeddings: Array
    order: Array


class Attention(bert.Attention):
    """Disentangled self-attention with its residual and norm: (B, T, hidden) to (B, T, hidden)."""

    def __init__(self, config: DebertaConfig, dtype: DTypeLike, rngs: nnx.Rngs):
        super().__init__(config, dtype, rngs)
        width, std = config.hidden_size, config.initializer_range
        if config.relative_attention and not config.share_att_key:
            if "c2p" in config.pos_att_type:
                self.position_key = Linear(width, width, std, dtype, rngs)
            if "p2c" in config.pos_att_type:
                self.position_query = Linear(width, width, std, dtype, rngs)

    def __call__(
        self, x: Array, bias: Array, relative: Relative | None = None, *, rng: Array | None
    ) -> Array:
        c = self.config
        *rngs, position_rng = split_keys(rng, 3)
        query, key, value = (self.heads(f(x)) for f in (self.query, self.key, self.value))
        scores = query @ key.swapaxes(-2, -1)
        if relative is not None:
            embeddings = dropout(relative.embeddings, c.hidden_dropout_prob, position_rng)
            if "c2p" in c.pos_att_type:
                project = self.key if c.share_att_key else self.position_key
                away = relative.order[::-1]
                scores = scores + self._by_distance(query, project(embeddings), away)
            if "p2c" in c.pos_att_type:
                project = self.query if c.share_att_key else self.position_query
                by_key = self._by_distance(key, project(embeddings), relative.order)
                scores = scores + by_key.swapaxes(-2, -1)
        scores = scores * (query.shape[-1] * (1 + len(c.pos_att_type))) ** -0.5
        return self.finish(x, scores, value, bias, *rngs)

    def _by_distance(self, x: Array, positions: Array, order: Array) -> Array:
        """The product of each token's x with the projected embedding of its distance to each token.

        With one column per distance, in order, skewing aligns the columns with the tokens. This
        avoids gathering single elements, and scattering them in the backward pass, which is slow on
        a CPU.
        """
        rows = jnp.take(self.heads(positions), order, axis=-2)
        return skew(x @ rows.swapaxes(-2, -1)[None])


class Embeddings(nnx.Module):
    """The sum of word, position and token-type embeddings, normalised: (B, T) to (B, T, hidden).

    The config may leave out positions and token types.
    """

    def __init__(self, config: DebertaConfig, dtype: DTypeLike, rngs: nnx.Rngs):
        width, std = config.hidden_size, config.initializer_range
        table = functools.partial(Embedding, std=std, dtype=dtype, rngs=rngs)
        self.word = table(config.vocab_size, config.embedding_size)
        if config.position_biased_input:
            self.position = table(config.max_position_embeddings, config.embedding_size)
        if config.type_vocab_size:
            self.token_type = table(config.type_vocab_size, config.embedding_size)
        if config.embedding_size != width:
            self.projection = Linear(config.embedding_size, width, std, dtype, rngs, use_bias=False)
        self.norm = LayerNorm(width, config.layer_norm_eps, dtype)
        if config.relative_attention:
            self.relative = table(2 * config.span, width)
            if config.norm_rel_ebd == "layer_norm":
                self.relative_norm = LayerNorm(width, config.layer_norm_eps, dtype)
        self.config = config

    def __call__(self, ids: Array, types: Array, mask: Array, dtype: DTypeLike) -> Array:
        c = self.config
        x = self.word(ids, dtype)
        if c.position_biased_input:
            x = x + self.position(jnp.arange(ids.shape[1])[None], dtype)
        if c.type_vocab_size:
            x = x + self.token_type(types, dtype)
        if c.embedding_size != c.hidden_size:
            x = self.projection(x)
        return self.norm(x) * mask.astype(dtype)[:, :, None]

    def distances(self, tokens: int, dtype: DTypeLike) -> Relative | None:
        """The relative embeddings for sequences of `tokens` tokens; None if the model has none."""
        c = self.config
        if not (c.relative_attention and c.pos_att_type):
            return None
        rows = relative_indices(tokens, c.span, c.position_buckets, c.relative_positions)
        first, last = int(rows.min()), int(rows.max())
        embeddings = self.relative.embedding[first : last + 1].astype(dtype)
        if c.norm_rel_ebd == "layer_norm":
            embeddings = self.relative_norm(embeddings)
        return Relative(embeddings, jnp.asarray(rows - first))


class Convolution(nnx.Module):
    """A convolution over the embeddings, which v2's largest models add to the first layer's output.

    The kernel is (conv_kernel_size, hidden / conv_groups, hidden).
    """

    def __init__(self, config: DebertaConfig, dtype: DTypeLike, rngs: nnx.Rngs):
        width = config.hidden_size
        shape = (config.conv_kernel_size, width // config.conv_groups, width)
        std = config.initializer_range
        self.kernel = nnx.Param(std * jax.random.normal(rngs.params(), shape, dtype))
        self.bias = nnx.Param(jnp.zeros(width, dtype))
        self.norm = LayerNorm(width, config.layer_norm_eps, dtype)
        self.config = config

    def branch(self, embedded: Array, mask: Array, rng: Array | None) -> Array:
        """The term to add, computed from the embeddings: (B, T, hidden) to (B, T, hidden)."""
        c = self.config
        y = jax.lax.conv_general_dilated(
            embedded,
            self.kernel[...].astype(embedded.dtype),
            window_strides=(1,),
            padding="SAME",
            dimension_numbers=("NWC", "WIO", "NWC"),
            feature_group_count=c.conv_groups,
        )
        y = (y + like(self.bias[...], y)) * mask.astype(y.dtype)[:, :, None]
        return ACTIVATIONS[c.conv_act](dropout(y, c.hidden_dropout_prob, rng))


class DebertaClassifier(EncoderClassifier):
    """DeBERTa v2 or v3 with a classifier over the pooled sequence.

    `pool="cls"` applies dropout, a dense layer and the config's activation to the first token.
    """

    embeddings_type = Embeddings
    attention_type = Attention
    branches = True

    def __init__(
        self,
        config: DebertaConfig,
        num_labels: int,
        pool: Pool = "cls",
        *,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        super().__init__(config, num_labels, pool, param_dtype=param_dtype, rngs=rngs, **options)
        if config.conv_kernel_size:
            self.convolution = Convolution(config, param_dtype, rngs)

    def pool_first(self, x: Array, rng: Array | None) -> Array:
        x = self.pooler(dropout(x, self.config.pooler_dropout, rng))
        return ACTIVATIONS[self.config.pooler_hidden_act](x)

    def distances(self, tokens: int, dtype: DTypeLike) -> tuple[Relative | None]:
        return (self.embeddings.distances(tokens, dtype),)

    def after_first(self, x: Array, mask: Array, rng: Array | None) -> Step | None:
        """The convolution depends only on the embeddings: the loop only adds its result."""
        if not self.config.conv_kernel_size:
            return None
        branch, kept = self.convolution.branch(x, mask, rng), mask.astype(x.dtype)[:, :, None]
        return lambda x: self.convolution.norm(x + branch) * kept


FAMILY = Family(
    config=DebertaConfig,
    model=DebertaClassifier,
    architecture="DebertaV2",
    prefix="deberta.",
    names={
        "embeddings/word": "embeddings.word_embeddings",
        "embeddings/position": "embeddings.position_embeddings",
        "embeddings/token_type": "embeddings.token_type_embeddings",
        "embeddings/norm": "embeddings.LayerNorm",
        "embeddings/projection": "embeddings.embed_proj",
        "embeddings/relative": "encoder.rel_embeddings",
        "embeddings/relative_norm": "encoder.LayerNorm",
        "layers/attention/query": "encoder.layer.{}.attention.self.query_proj",
        "layers/attention/key": "encoder.layer.{}.attention.self.key_proj",
        "layers/attention/value": "encoder.layer.{}.attention.self.value_proj",
        "layers/attention/position_key": "encoder.layer.{}.attention.self.pos_key_proj",
        "layers/attention/position_query": "encoder.layer.{}.attention.self.pos_query_proj",
        "layers/attention/output": "encoder.layer.{}.attention.output.dense",
        "layers/attention/norm": "encoder.layer.{}.attention.output.LayerNorm",
        "layers/up": "encoder.layer.{}.intermediate.dense",
        "layers/down": "encoder.layer.{}.output.dense",
        "layers/norm": "encoder.layer.{}.output.LayerNorm",
        "convolution": "encoder.conv.conv",
        "convolution/norm": "encoder.conv.LayerNorm",
    },
    head={"pooler": "pooler.dense", "classifier": "classifier"},
)
