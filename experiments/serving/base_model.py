"""The base that all adapters are of: a language model, or an encoder with a head."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import lora_jax as lj
from lora_jax.data.tokenizing.chat_templates import ChatTemplate, load_chat_template
from lora_jax.data.tokenizing.tokenize import Tokenizer, load_tokenizer
from lora_jax.models.parts.completion import completion_likelihood
from lora_jax.models.parts.kv_cache import cached_step
from lora_jax.models.published.load import (
    kind_of,
    load_classifier,
    load_decoder,
    read_decoder_config,
    read_encoder_config,
)
from lora_jax.models.published.location import hub_name, locate
from lora_jax.models.published.weight_files import weights_digest


@dataclasses.dataclass(frozen=True, eq=False)
class BaseModel:
    """A loaded model.

    Args:
      digest: the sha256 of its weights.
      shape: its own config, such as a `LlamaConfig`.
      params: its parameters.
      serve: the function of them that a bank runs: a decoder's step, or a classifier.
      train: the function that runs train, on which the weights that a pattern names are found.
      most: the most tokens of a text.
      template: of conversations; None if the model has none.
      labels: the names of an encoder's classes; empty for a decoder.
      pool: what an encoder's head reads, `cls` or `mean`.
      fresh: the paths of drawn parameters: the files of an encoder do not hold them.
    """

    digest: str
    shape: Any
    tokenizer: Tokenizer
    params: Any
    serve: Callable[..., Any]
    train: Callable[..., Any]
    most: int
    template: ChatTemplate | None = None
    labels: tuple[str, ...] = ()
    pool: str = ""
    fresh: tuple[str, ...] = ()

    @property
    def inputs(self) -> tuple[np.ndarray, ...]:
        """An example of what `train` takes beside the parameters: tokens, mask and types."""
        return (np.zeros((1, min(8, self.most)), np.int32),) * 3


def model_id(given: str) -> str:
    """What clients call a model: its name, or the last part of the path of a folder or file."""
    if hub_name(given):
        return given
    path = Path(given)
    path = path if path.name.strip(".") else path.resolve()  # `.` and `..` are not names
    return path.name.removesuffix(".gguf")


def is_decoder(given: str) -> bool:
    """Whether a model, as `locate` takes it, is a language model.

    Raises:
      FileNotFoundError, ValueError: there is no such model.
    """
    return kind_of(locate(given)) == "decoder"


def most_tokens(given: str) -> int:
    """The most tokens that a model takes. Errors are those of `is_decoder`.

    A decoder with rotary positions computes longer texts, but it has not been trained on any.
    """
    if not is_decoder(given):
        return read_encoder_config(locate(given)).max_tokens
    shape = read_decoder_config(locate(given))
    return min(shape.max_tokens, getattr(shape, "max_position_embeddings", shape.max_tokens))


def load_language_model(given: str, dtype: str) -> BaseModel:
    """Load a decoder with its tokenizer, and its chat template if it has one.

    Raises:
      FileNotFoundError, ValueError: one line on what is missing or wrong.
    """
    where = locate(given)
    shape, tokenizer = read_decoder_config(where), load_tokenizer(where)
    try:
        template = load_chat_template(where)
    except FileNotFoundError:
        template = None
    decoder = load_decoder(where, param_dtype=dtype)
    train, params = completion_likelihood(decoder, 1)
    step, _ = cached_step(decoder)
    digest = weights_digest(where)
    return BaseModel(digest, shape, tokenizer, params, step, train, shape.max_tokens, template)


def load_encoder(given: str, dtype: str, labels: Sequence[str], pool: str) -> BaseModel:
    """Load an encoder with a head of one output for each label.

    Args:
      pool: what the head reads: `cls` or `mean`.

    Raises:
      FileNotFoundError, ValueError: one line on what is missing or wrong.
    """
    where, head = locate(given), {"num_labels": len(labels), "pool": pool}
    shape, tokenizer = read_encoder_config(where), load_tokenizer(where)
    options: Any = {"key": jax.random.key(0), "param_dtype": dtype}
    loaded = load_classifier(where, **head, **options)
    forward, params = lj.from_nnx(loaded.model)
    return BaseModel(
        weights_digest(where),
        shape,
        tokenizer,
        params,
        serve=forward,
        train=forward,
        most=shape.max_tokens,
        labels=tuple(labels),
        pool=pool,
        fresh=loaded.fresh,
    )
