"""Make a config's training step from shapes and shardings, without its data and weights.

`Batches` estimates the memory of a run's batches from the traced step. The estimate takes
operations in the order in which they were traced, and holds each value until its last use. Compiled
for CPUs, steps of BERT and Llamas took 0.7 to 1.3 times the estimate, except for steps of a few
MiB.
"""

import dataclasses
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

import lora_jax as lj
from configs.settings import ClassifierConfig, RunConfig, TextConfig
from experiments.planning.model_sizes import ENCODERS, ON_THE_HUB
from experiments.setup import classification, completion, from_config
from experiments.setup.forward_pass import predictor
from experiments.setup.own_model import require_published
from lora_jax.compiled.jaxpr_costs import working_bytes
from lora_jax.data.tokenised_task import TokenisedTask, token_cross_entropy
from lora_jax.models import families
from lora_jax.models.parts.family import DECODER, ENCODER
from lora_jax.models.published.load import (
    abstract_decoder,
    read_decoder_config,
    read_encoder_config,
)
from lora_jax.models.published.location import locate
from lora_jax.sharding import memory
from lora_jax.sharding.layout import Layout, lay_out, sharded_shape
from lora_jax.sharding.mesh import ROWS, Rules, part_count
from lora_jax.training.optimizers import Optimizer
from lora_jax.training.step import (
    Batch,
    Loss,
    Predict,
    TrainState,
    cross_entropy,
    make_train_step,
)
from lora_jax.transform.adapt import init_shapes

OUTPUTS = 2
"""Placeholder for a classifier's outputs, whose number is known only once its task is read."""

LEAST = {"cpu": 0.5}
"""The share of an estimate that a step surely takes, by platform; `OF_OTHERS` for all others.

The compilers of other platforms recompute what does not fit, and report it if that is not enough.
"""
OF_OTHERS = 0.25


@dataclasses.dataclass(frozen=True, eq=False)
class AbstractStep:
    """A training step, its model and optimiser, and its arguments as shapes.

    On a mesh, the shapes have shardings. Without one, they are those of a run on one device.
    """

    config: RunConfig
    adapted: lj.Adapted
    tx: Optimizer
    loss: Loss
    params: Any
    state: TrainState
    frozen: lj.Frozen
    batch: dict[str, jax.ShapeDtypeStruct]
    layout: Layout | None = None

    @classmethod
    def of(
        cls, config: RunConfig, mesh: Mesh | None = None, rows: int | None = None
    ) -> "AbstractStep":
        """The training step of a config, with the longest rows that the config allows.

        Args:
          rows: rows of each shard of a batch at a time, where `data` and `fsdp` cut a batch into
            shards. By default the number in the config, and at least one.

        Raises:
          ValueError, FileNotFoundError: one line on a config that cannot work.
        """
        require_published(config, "a plan")
        forward, params, rules, tokens, loss = model_of(config, mesh)
        # The steps of a run are known only once its data are read. Only schedules depend on them.
        steps = from_config.placeholder_steps(config)
        adapted = from_config.adapt(config, forward, from_config.make_targets(config, steps))
        # The warm-up may take more steps than that.
        own = dataclasses.replace(config.optimizer, warmup_steps=0)
        hyper = from_config.make_hyper(dataclasses.replace(config, optimizer=own), steps)
        tx = from_config.make_optimizer(config, hyper, steps)

        def create(trainable: Any, frozen: lj.Frozen) -> TrainState:
            averaged = bool(config.train.ema)
            return TrainState.create(adapted, tx, trainable, frozen, key, averaged)

        key, accumulate = jax.random.key(0), config.train.accumulate
        if mesh is None:
            ids = jax.ShapeDtypeStruct((2, 2), jnp.int32)
            trainable, frozen = init_shapes(adapted, key, params, ids, ids, ids)
            state = jax.eval_shape(create, trainable, frozen)
            batch = batch_of(config.train.batch_size, tokens)
            return cls(config, adapted, tx, loss, params, state, frozen, batch)
        shards = part_count(ROWS, mesh)
        rows = rows or max(1, config.train.batch_size // (accumulate * shards))
        ids = jax.ShapeDtypeStruct((rows * shards, tokens), jnp.int32)
        layout = lay_out(adapted, mesh, rules, params, ids, ids, ids)
        trainable, frozen = layout.shapes(key, params, ids, ids, ids)
        state = jax.eval_shape(create, trainable, frozen)
        state = jax.tree.map(sharded_shape, state, layout.like(state))
        batch = batch_of(rows * shards * accumulate, tokens)
        batch = {name: sharded_shape(leaf, layout.rows) for name, leaf in batch.items()}
        return cls(config, adapted, tx, loss, params, state, frozen, batch, layout)

    def of_completions(self, predicted: int) -> "AbstractStep":
        """The same for a language model with completions of at most `predicted` tokens."""
        forward = model_of(self.config, predicted=predicted)[0]
        return dataclasses.replace(self, adapted=dataclasses.replace(self.adapted, forward=forward))

    def traced(self, batch: Batch) -> Any:
        """The step as it is traced for a batch of this shape."""
        step: Any = make_train_step(
            self.adapted,
            self.tx,
            self.predict,
            self.loss,
            accumulate=self.config.train.accumulate,
            clip=self.config.optimizer.clip,
            shardings=self.layout and self.layout.like(self.state),
            ema=self.config.train.ema or None,
        )
        return step.trace(self.state, self.frozen, batch)

    @property
    def on_mesh(self) -> Layout:
        """The layout of a step that has a mesh."""
        assert self.layout is not None
        return self.layout

    @property
    def predict(self) -> Predict:
        return predictor(self.adapted, self.config.model)


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
    # Layers are scanned by default, as on the accelerators that are planned for. This process
    # compiles for them on the CPU, whose default is another one.
    scanned: Any = dataclasses.replace(config.model, unroll=config.model.unroll or 1)
    config = dataclasses.replace(config, model=scanned)
    if isinstance(config, ClassifierConfig):
        content = ENCODERS.get(config.model.name)
        if content is None:
            shape = read_encoder_config(locate(config.model.name))
        else:
            shape = families.read(content)
        abstract = classification.abstract(shape, config.model, OUTPUTS)
        tokens = min(config.data.max_length, shape.max_tokens)
        return *lj.from_nnx(abstract), ENCODER, tokens, cross_entropy
    if not isinstance(config, TextConfig):
        raise TypeError(f"no kind of task: {type(config)}")
    content = ON_THE_HUB.get(config.model.name)
    if content is None:
        shape = read_decoder_config(locate(config.model.name))
    else:
        shape = families.read(content)
    decoder = abstract_decoder(shape, mesh=mesh, **completion.options(config.model))
    tokens = min(config.data.max_length, shape.max_tokens)
    smoothing, longest = config.train.label_smoothing, predicted or tokens
    likelihood = completion.completion_likelihood
    forward, params = likelihood(decoder, longest, config.model.chunk, smoothing)
    return forward, params, DECODER, tokens, token_cross_entropy


# ---- memory --------------------------------------------------------------------------------------


def stays(step: AbstractStep) -> int:
    """Bytes of the arrays that stay in memory between steps."""
    return memory.tree_bytes((step.state, step.frozen))


def training(step: AbstractStep, rows: int, tokens: int) -> int:
    """Bytes that a step takes besides `stays`: gradients, the batch, and values made of it."""
    batch = batch_of(rows, tokens)
    return working_bytes(step.traced(batch).jaxpr.jaxpr) + memory.tree_bytes(batch)


def evaluation(step: AbstractStep, rows: int, tokens: int) -> int:
    """Bytes of a batch in evaluation, which takes it whole, even if training accumulates."""

    def call(trainable: Any, frozen: Any, batch: Any) -> Any:
        return step.predict(trainable, frozen, batch, None)

    batch = batch_of(rows, tokens)
    closed = jax.make_jaxpr(call)(step.state.trainable, step.frozen, batch)
    return working_bytes(closed.jaxpr) + memory.tree_bytes(batch)


@dataclasses.dataclass(frozen=True, eq=False)
class Batches:
    """The largest batches of a run, and the bytes they take, with gradients and temporaries."""

    step: AbstractStep
    rows: int
    parts: int
    """How many parts a batch is trained in; it is evaluated as a whole."""
    trained: int
    """Tokens of a row in training."""
    evaluated: int
    """Tokens of a row in evaluation, at least as many."""
    trials: int = 1
    """How many trials train at once."""

    @classmethod
    def of(cls, step: AbstractStep, texts: TokenisedTask, trials: int = 1) -> "Batches":
        """The largest batches of a run with these texts."""
        if isinstance(step.config, TextConfig):
            step = step.of_completions(int(texts.encoded["train"].labels.max()))
        rows, parts = step.config.train.batch_size, step.config.train.accumulate
        return cls(step, rows, parts, texts.longest, texts.boundaries[-1], trials)

    @cached_property
    def training(self) -> int:
        return self.trials * training(self.step, self.rows, self.trained)

    @cached_property
    def evaluation(self) -> int:
        return evaluation(self.step, self.rows, self.evaluated)

    @property
    def most(self) -> int:
        """Bytes of training or evaluation, whichever is more.

        Evaluation is traced only if it may be the larger.
        """
        may_be = self.parts > 1 or self.evaluated > self.trained
        return max(self.training, self.evaluation) if may_be else self.training

    def __str__(self) -> str:
        if self.most > self.training:
            return f"a batch of {self.rows} x {self.evaluated} tokens to evaluate"
        batches = "a batch" if self.trials == 1 else f"{self.trials} batches"
        in_parts = f" in {self.parts} parts" if self.parts > 1 else ""
        return f"{batches} of {self.rows} x {self.trained} tokens{in_parts}"


def least(count: int) -> int:
    """The bytes that a step surely takes on the current devices, from an estimate in bytes."""
    return int(count * LEAST.get(jax.default_backend(), OF_OTHERS))
