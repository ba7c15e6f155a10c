"""RoBERTa: BERT with positions that begin after the padding id, and a head outside the encoder.

Liu et al., 2019 (arXiv:1907.11692).
"""

import dataclasses

import jax.numpy as jnp
from jax import Array

from lora_jax.models.families import bert
from lora_jax.models.parts.config_checks import integer
from lora_jax.models.parts.modules import dropout


@dataclasses.dataclass(frozen=True)
class RobertaConfig(bert.BertConfig):
    """As `BertConfig`, with RoBERTa's defaults."""

    model_type: str = "roberta"
    vocab_size: int = integer(50265)
    pad_token_id: int = integer(1, least=0)

    @property
    def max_tokens(self) -> int:
        """The longest sequence; positions start after the padding id."""
        return self.max_position_embeddings - self.pad_token_id - 1


class Embeddings(bert.Embeddings):
    """As BERT's, with the positions of tokens alone, padding left out."""

    def positions(self, mask: Array) -> Array:
        return mask * jnp.cumsum(mask, axis=1) + self.config.pad_token_id


class RobertaClassifier(bert.BertClassifier):
    """RoBERTa with a classifier over the pooled sequence.

    `pool="cls"` applies dropout, a dense layer and tanh to the first token.
    """

    embeddings_type = Embeddings

    def pool_first(self, x: Array, rng: Array | None) -> Array:
        return super().pool_first(dropout(x, self.config.head_dropout, rng), rng)


_ENCODER = {ours: name for ours, name in bert.FAMILY.names.items() if ours != "pooler"}
FAMILY = dataclasses.replace(
    bert.FAMILY,
    config=RobertaConfig,
    model=RobertaClassifier,
    architecture="Roberta",
    prefix="roberta.",
    names=_ENCODER,
    head={"pooler": "classifier.dense", "classifier": "classifier.out_proj"},
)
