"""Estimate the memory that a run's batches take while they are computed, from shapes alone.

The estimate takes operations in the order in which they were traced, and holds each value until its
last use. Compiled for CPUs, steps of BERT and Llamas took 0.7 to 1.3 times the estimate, except for
steps of a few MiB.
"""

import dataclasses
from functools import cached_property
from typing import Any

import jax

from configs.settings import TextConfig
from experiments.planning.abstract_step import AbstractStep, batch_of
from experiments.setup.task_and_model import Texts
from lora_jax.compiled.jaxpr_costs import working_bytes
from lora_jax.sharding import memory

LEAST = {"cpu": 0.5}
"""The share of an estimate that a step surely takes, by platform; `OF_OTHERS` for all others.

The compilers of other platforms recompute what does not fit, and report it if that is not enough.
"""
OF_OTHERS = 0.25


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
    def of(cls, step: AbstractStep, texts: Texts, trials: int = 1) -> "Batches":
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
