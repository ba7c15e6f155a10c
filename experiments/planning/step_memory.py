"""Estimate the memory that a run's batches take while they are computed, from shapes alone.

The estimate takes operations in the order in which they were traced, and holds each value until its
last use. Compiled for CPUs, steps of BERT and Llamas took 0.7 to 1.3 times the estimate, except for
steps of a few MiB.
"""

import dataclasses
from functools import cached_property
from typing import Any

import jax
import numpy as np
import optax

import lora_jax as lj
from configs.settings import RunConfig, TextConfig
from experiments.planning.abstract_step import PLACEHOLDER_STEPS, batch_of, model_of
from experiments.setup import from_config
from experiments.setup.experiment import predictor
from experiments.setup.task_and_model import Texts
from lora_jax.compiled.jaxpr_memory import working_bytes
from lora_jax.sharding import memory
from lora_jax.training.step import Batch, Loss, Predict, TrainState, make_train_step

LEAST = {"cpu": 0.5}
"""The share of an estimate that a step surely takes, by platform; `OF_OTHERS` for all others.

The compilers of other platforms recompute what does not fit, and report it if that is not enough.
"""
OF_OTHERS = 0.25


@dataclasses.dataclass(frozen=True, eq=False)
class Shapes:
    """The adapted model and optimiser of a run, and the shapes of its arrays."""

    config: RunConfig
    adapted: lj.Adapted
    tx: optax.GradientTransformation
    loss: Loss
    params: Any
    state: TrainState
    frozen: lj.Frozen

    @classmethod
    def of(cls, config: RunConfig) -> "Shapes":
        """The shapes of a config's run.

        Raises:
          ValueError, FileNotFoundError: one line on a config that cannot work.
        """
        forward, params, _, _, loss = model_of(config)
        adapted = from_config.adapt_for(config, forward, PLACEHOLDER_STEPS)
        # The warm-up may take more steps than that.
        own = dataclasses.replace(config.optimizer, warmup_steps=0)
        hyper = from_config.make_hyper(own, PLACEHOLDER_STEPS)
        tx = from_config.make_optimizer(config, hyper, PLACEHOLDER_STEPS)
        example, key = np.zeros((2, 2), np.int32), jax.random.key(0)
        trainable, frozen = jax.eval_shape(adapted.init, key, params, example, example, example)
        state = jax.eval_shape(
            lambda new, old: TrainState.create(adapted, tx, new, old, key), trainable, frozen
        )
        return cls(config, adapted, tx, loss, params, state, frozen)

    def of_completions(self, predicted: int) -> "Shapes":
        """The same for a language model with completions of at most `predicted` tokens."""
        forward = model_of(self.config, predicted=predicted)[0]
        return dataclasses.replace(self, adapted=dataclasses.replace(self.adapted, forward=forward))

    @property
    def stays(self) -> int:
        """Bytes of the arrays that stay in memory between steps."""
        return memory.tree_bytes((self.state, self.frozen))

    def training(self, rows: int, tokens: int) -> int:
        """Bytes that a step takes besides `stays`: gradients, the batch, and values made of it."""
        given = self.config.train.accumulate, self.config.optimizer.clip
        step: Any = make_train_step(self.adapted, self.tx, self._predict, self.loss, *given)
        batch = batch_of(rows, tokens)
        traced = step.trace(self.state, self.frozen, batch)
        return working_bytes(traced.jaxpr.jaxpr) + memory.tree_bytes(batch)

    def evaluation(self, rows: int, tokens: int) -> int:
        """Bytes of a batch in evaluation, which takes it whole, even if training accumulates."""

        def call(trainable: Any, frozen: lj.Frozen, batch: Batch) -> Any:
            return self._predict(trainable, frozen, batch, None)

        batch = batch_of(rows, tokens)
        closed = jax.make_jaxpr(call)(self.state.trainable, self.frozen, batch)
        return working_bytes(closed.jaxpr) + memory.tree_bytes(batch)

    @property
    def _predict(self) -> Predict:
        return predictor(self.adapted, self.config.model)


@dataclasses.dataclass(frozen=True, eq=False)
class Batches:
    """The largest batches of a run, and the bytes they take, with gradients and temporaries."""

    shapes: Shapes
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
    def of(cls, shapes: Shapes, texts: Texts, trials: int = 1) -> "Batches":
        """The largest batches of a run with these texts."""
        if isinstance(shapes.config, TextConfig):
            shapes = shapes.of_completions(int(texts.encoded["train"].labels.max()))
        rows, parts = shapes.config.train.batch_size, shapes.config.train.accumulate
        return cls(shapes, rows, parts, texts.longest, texts.boundaries[-1], trials)

    @cached_property
    def training(self) -> int:
        return self.trials * self.shapes.training(self.rows, self.trained)

    @cached_property
    def evaluation(self) -> int:
        return self.shapes.evaluation(self.rows, self.evaluated)

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
