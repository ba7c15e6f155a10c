"""Make a config's training step from shapes and shardings, without its data and weights."""

import dataclasses
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

import lora_jax as lj
from configs.settings import ClassifierConfig, ModelSettings, RunConfig, TextConfig
from experiments.planning.model_sizes import ON_THE_HUB
from experiments.setup import classification, completion, from_config
from experiments.setup.experiment import predictor
from lora_jax.models.families.decoders import decoder_family_of
from lora_jax.models.published import encoders
from lora_jax.models.published.decoders import abstract_decoder, read_decoder_config
from lora_jax.models.published.location import locate
from lora_jax.models.published.sharding_rules import DECODER, ENCODER
from lora_jax.sharding.layout import Layout, lay_out, sharded_shape
from lora_jax.sharding.mesh import ROWS, Rules, part_count
from lora_jax.training.step import Loss, Step, TrainState, cross_entropy, make_train_step

PLACEHOLDER_STEPS = 1000
"""Placeholder for the steps of a run, known only once its data are read; no size depends on it."""
ModelT = TypeVar("ModelT", bound=ModelSettings)
OUTPUTS = 2
"""Placeholder for a classifier's outputs, whose number is known only once its task is read."""


@dataclasses.dataclass(frozen=True, eq=False)
class AbstractStep:
    """A training step, and its arguments as shapes with shardings."""

    config: RunConfig
    layout: Layout
    step: Step
    state: TrainState
    frozen: lj.Frozen
    batch: dict[str, jax.ShapeDtypeStruct]

    def lower(self, platform: str) -> jax.stages.Lowered:
        """Lower the step to a program for a platform."""
        traced: Any = self.step
        traced = traced.trace(self.state, self.frozen, self.batch)
        return traced.lower(lowering_platforms=(platform,))


def abstract_step(config: RunConfig, mesh: Mesh, rows: int | None = None) -> AbstractStep:
    """The training step of a config on a mesh, with the longest rows that the config allows.

    Args:
      rows: rows of each shard of a batch at a time, where `data` and `fsdp` cut a batch into
        shards. By default the number in the config, and at least one.

    Raises:
      ValueError, FileNotFoundError: one line on a config that cannot work.
    """
    accumulate, shards = config.train.accumulate, part_count(ROWS, mesh)
    rows = rows or max(1, config.train.batch_size // (accumulate * shards))
    forward, params, rules, tokens, loss = model_of(config, mesh)
    adapted = from_config.adapt_for(config, forward, PLACEHOLDER_STEPS)
    hyper = from_config.make_hyper(config.optimizer, PLACEHOLDER_STEPS)
    tx = from_config.make_optimizer(config, hyper, PLACEHOLDER_STEPS)

    ids = jax.ShapeDtypeStruct((rows * shards, tokens), jnp.int32)
    layout = lay_out(adapted, mesh, rules, params, ids, ids, ids)
    key = jax.random.key(0)
    trainable, frozen = layout.shapes(key, params, ids, ids, ids)
    state = jax.eval_shape(
        lambda new, old: TrainState.create(adapted, tx, new, old, key), trainable, frozen
    )
    shardings = layout.like(state)
    clip = config.optimizer.clip
    predict = predictor(adapted, config.model)
    step = make_train_step(adapted, tx, predict, loss, accumulate, clip, shardings)
    batch = batch_of(rows * shards * accumulate, tokens)
    return AbstractStep(
        config=config,
        layout=layout,
        step=step,
        state=jax.tree.map(sharded_shape, state, shardings),
        frozen=frozen,
        batch={name: sharded_shape(leaf, layout.rows) for name, leaf in batch.items()},
    )


_OF_ROWS = {"label": jnp.int32, "weight": jnp.float32}


def batch_of(rows: int, tokens: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes and dtypes of a batch."""
    tokenwise = dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), jnp.int32)
    batch = {n: jax.ShapeDtypeStruct((rows, tokens), dtype) for n, dtype in tokenwise.items()}
    return batch | {n: jax.ShapeDtypeStruct((rows,), dtype) for n, dtype in _OF_ROWS.items()}


def model_of(
    config: RunConfig,
    mesh: Mesh | None = None,
    predicted: int | None = None,
) -> tuple[Any, Any, Rules, int, Loss]:
    """The model of a config, from shapes alone.

    Args:
      predicted: the most tokens of a completion; by default the most tokens of a row.

    Returns:
      The forward pass, the shapes of the parameters, their sharding rules, the most tokens of a
      row, and the loss.
    """
    if isinstance(config, ClassifierConfig):
        shape = encoders.read_encoder_config(locate(config.model.name))
        abstract = classification.abstract(shape, _scanned(config.model), OUTPUTS)
        tokens = min(config.data.max_length, shape.max_tokens)
        return *lj.from_nnx(abstract), ENCODER, tokens, cross_entropy
    if not isinstance(config, TextConfig):
        raise TypeError(f"no kind of task: {type(config)}")
    content = ON_THE_HUB.get(config.model.name)
    if content is None:
        shape = read_decoder_config(locate(config.model.name))
    else:
        shape = decoder_family_of(content).config.from_json(content)
    decoder = abstract_decoder(shape, mesh=mesh, **completion.options(_scanned(config.model)))
    tokens = min(config.data.max_length, shape.max_tokens)
    smoothing, longest = config.train.label_smoothing, predicted or tokens
    likelihood = completion.completion_likelihood
    forward, params = likelihood(decoder, longest, config.model.chunk, smoothing)
    return forward, params, DECODER, tokens, completion.cross_entropy_per_token


def _scanned(model: ModelT) -> ModelT:
    """A config's model with scanned layers by default, as on the accelerators that are planned for.

    This process compiles for them on the CPU, whose default is another one.
    """
    return dataclasses.replace(model, unroll=model.unroll or 1)
