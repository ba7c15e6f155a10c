"""The forward pass of an adapted model, as a function of batches."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax import Array

import lora_jax as lj
from configs.settings import DecoderSettings, ModelSettings
from lora_jax.models.parts.separate_layers import separate, stacked
from lora_jax.records.environment import multiplies_bfloat16
from lora_jax.training.step import Batch, Predict
from lora_jax.transform.bfloat16_products import bfloat16_products


def predictor(
    adapted: lj.Adapted, model: ModelSettings, eval_forward: Callable[..., Any] | None = None
) -> Predict:
    """Make the function from a batch to an adapted model's outputs, with dropout if it gets `rng`.

    Args:
      model: says whether the model has dropout, besides that of adapters, and how products round.
      eval_forward: the forward pass for calls without `rng`, if it is a different one.
    """
    scored = dataclasses.replace(adapted, forward=eval_forward) if eval_forward else adapted

    def predict(trainable: Any, frozen: lj.Frozen, batch: Batch, rng: Array | None) -> Array:
        frozen = stacked(frozen)
        if rng is None:
            return scored.apply(trainable, frozen, *model_inputs(batch))
        keys: dict[str, Array] = {}
        model_key, keys["dropout_key"] = jax.random.split(rng)
        if model.dropout:
            keys["rng"] = model_key
        return adapted.apply(trainable, frozen, *model_inputs(batch), **keys)

    if model.products != "bfloat16":
        return predict
    return bfloat16_products(predict, has_unit=multiplies_bfloat16())


def model_inputs(batch: Batch) -> tuple[Any, ...]:
    """What a model takes of a batch: ids, mask and token types, (B, T) each.

    A user's own model takes all other arrays of the batch by their names.
    """
    if "input_ids" in batch:
        return batch["input_ids"], batch["attention_mask"], batch["token_type_ids"]
    return ({name: each for name, each in batch.items() if name not in ("label", "weight")},)


def separated(model: ModelSettings, *frozen: lj.Frozen) -> list[lj.Frozen]:
    """Frozen halves on one device, in separate layers (see `separate_layers`)."""
    bases = separate([each.base for each in frozen], *unroll_and_remat(model))
    return [dataclasses.replace(f, base=base) for f, base in zip(frozen, bases, strict=True)]


def unroll_and_remat(model: ModelSettings) -> tuple[int | None, str]:
    """How a model loops over its layers: `unroll` and `remat`."""
    return model.unroll, model.remat if isinstance(model, DecoderSettings) else ""
