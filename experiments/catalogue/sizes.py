"""How many numbers a method trains: for one matrix, or in a whole model."""

import itertools
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

import lora_jax as lj
from configs.settings import EncoderSettings
from experiments.planning.abstract_step import OUTPUTS, batch_of
from experiments.planning.model_sizes import ON_THE_HUB
from experiments.setup import classification
from experiments.setup.from_config import variants_of
from lora_jax.models import families
from lora_jax.models.parts.completion import completion_likelihood
from lora_jax.models.parts.config_checks import DecoderConfig
from lora_jax.models.published.load import (
    abstract_decoder,
    kind_of,
    read_decoder_config,
    read_encoder_config,
)
from lora_jax.models.published.location import locate
from lora_jax.suggest import nearest_if_close
from lora_jax.transform import target_patterns
from lora_jax.transform.placement import count_shared, group_of, place, trains
from lora_jax.uses import Uses
from lora_jax.variant import Variant

SHAPE = "768x768"
KERNEL = "kernel"
LINEARS = "layers/.*/kernel"
"""The linear layers of our models' blocks, for methods whose files suggest no targets."""


def shape_of(text: str) -> tuple[int, int]:
    """The shape that a flag names: `4096x11008`.

    Raises:
      ValueError: the text is no shape.
    """
    match = re.fullmatch(r"([1-9][0-9]{0,8})x([1-9][0-9]{0,8})", text)
    if match is None:
        raise ValueError(f"--shape={text}: expected INPUTSxOUTPUTS, such as --shape={SHAPE}")
    return int(match[1]), int(match[2])


def matrix(shape: tuple[int, int]) -> Uses:
    """The weights of a model that is one product with a matrix, named `KERNEL`."""
    params = {KERNEL: jax.ShapeDtypeStruct(shape, jnp.float32)}
    x = jax.ShapeDtypeStruct((1, shape[0]), jnp.float32)
    return lj.discover(lambda params, x: x @ params[KERNEL], params, x)


def model(name: str) -> Uses:
    """The weights of a model, from its sizes alone; an encoder is a classifier of two classes.

    Args:
      name: one of `ON_THE_HUB`, or what `locate` takes.

    Raises:
      ValueError, FileNotFoundError: there is no such model.
    """
    batch = batch_of(rows=1, tokens=8)  # no parameter depends on these
    inputs = batch["input_ids"], batch["attention_mask"], batch["token_type_ids"]
    return lj.discover(*_abstract(name), *inputs)


def _abstract(name: str) -> tuple[Any, Any]:
    """The forward pass of a model, and the shapes of its parameters."""
    if content := ON_THE_HUB.get(name):
        return _decoder(families.read(content))
    try:
        where = locate(name)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}{nearest_if_close(name, ON_THE_HUB)}") from error
    if kind_of(where) == "encoder":
        shape, settings = read_encoder_config(where), EncoderSettings(name=name)
        return lj.from_nnx(classification.abstract(shape, settings, OUTPUTS))
    return _decoder(read_decoder_config(where))


def _decoder(config: DecoderConfig) -> tuple[Any, Any]:
    # Layers in a scan are traced once.
    return completion_likelihood(abstract_decoder(config, unroll=1), longest=1)


def trained(name: str, targets: Sequence[Any], uses: Uses) -> int:
    """How many numbers a method trains with its default settings, before any rank is dropped.

    Args:
      name: as for `variants.make`.
      targets: patterns, or pairs of a pattern and settings.

    Raises:
      ValueError: it cannot adapt a target, or a pattern matches nothing.
    """
    rules = tuple(variants_of(targets, name, {}).items())
    assigned = target_patterns.assign(rules, uses)
    adapted = {path: each for path, each in assigned.items() if target_patterns.adapting(each)}
    placed = [place(uses[path], each, None) for path, each in adapted.items()]
    shapes: dict[Variant, list[tuple[int, int]]] = {}
    for each in placed:
        shapes.setdefault(group_of(each), []).extend(each.matrices)
    own = sum(each.count for each in placed) + sum(itertools.starmap(count_shared, shapes.items()))
    whole = [path for path in uses if path not in adapted and trains(uses[path], rules, assigned)]
    return own + sum(math.prod(uses[path].shape) for path in whole)
