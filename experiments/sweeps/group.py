"""Put the trials of a group into arrays of one structure, with one copy of the frozen base."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import lora_jax as lj
from experiments.setup import from_config
from experiments.setup.experiment import Experiment
from experiments.sweeps.grouping import union
from experiments.sweeps.traced_step import traced_step
from lora_jax.training.masking import narrow, widen
from lora_jax.training.step import Batch, TrainState
from lora_jax.training.trial_program import Execution, Program, make_program
from lora_jax.transform.placement import Trainable


@dataclasses.dataclass(frozen=True, eq=False)
class Together:
    """The trials of a group, in arrays of one structure; all use the first trial's model."""

    experiments: tuple[Experiment, ...]
    shared: Experiment
    """The first experiment, with the adapted model of the common structure."""
    frozen: tuple[lj.Frozen, ...]
    trainables: tuple[Trainable, ...]

    def start(self) -> list[TrainState]:
        """The trials' states before the first step, in arrays of their own."""
        return [
            TrainState.create(
                self.shared.adapted, each.tx, jax.tree.map(jnp.copy, trainable), frozen, each.rng
            )
            for each, trainable, frozen in zip(
                self.experiments, self.trainables, self.frozen, strict=True
            )
        ]

    def program(self, execution: Execution) -> Program:
        """The program of the trials (see `lora_jax.training.trial_program`)."""
        first = self.shared
        step = traced_step(first.adapted, first.predict, first.loss, first.config, first.loop.steps)
        hyper = [
            {name: jnp.asarray(value, float) for name, value in each.hyper.items()}
            for each in self.experiments
        ]
        return make_program(execution, step, self.frozen, hyper)

    def call(self, number: int, trainable: Any) -> Callable[[Batch], Array]:
        """The adapted model of a trial, as a function of a batch.

        Args:
          trainable: in the program's structure.
        """
        return lambda batch: self._evaluate(trainable, self.frozen[number], batch)

    def evaluate(self, number: int, trainable: Any) -> dict[str, float]:
        return self.experiments[number].score(self.call(number, trainable))

    @functools.cached_property
    def _evaluate(self) -> Callable[..., Array]:
        predict = self.shared.predict
        return jax.jit(lambda trainable, frozen, batch: predict(trainable, frozen, batch, None))

    def own(self, number: int, state: TrainState) -> TrainState:
        """A trial's state in the shapes that it would have alone."""
        mine = self.experiments[number]
        trainable = narrow(state.trainable, mine.trainable)
        like = mine.adapted.init_state(mine.trainable, mine.frozen)
        variant_state = narrow(state.variant_state, like)
        return dataclasses.replace(state, trainable=trainable, variant_state=variant_state)


def together(experiments: Sequence[Experiment]) -> Together:
    """Put the trials of a group (`experiments.sweeps.grouping`) into one structure."""
    first = experiments[0]
    targets = {
        where: union([dict(each.adapted.rules)[where] for each in experiments])  # type: ignore
        for where, _ in first.adapted.rules
    }
    adapted = from_config.adapt(first.config, first.adapted.forward, targets)
    example = np.zeros((first.batch_size, first.boundaries[0]), np.int32)
    params = jax.eval_shape(first.adapted.disable, first.trainable, first.frozen)
    like = jax.eval_shape(adapted.init, jax.random.key(0), params, example, example, example)
    wide = [widen(each.trainable, each.frozen, like) for each in experiments]
    trainables, frozen = zip(*wide, strict=True)
    shared = dataclasses.replace(first, adapted=adapted)
    return Together(tuple(experiments), shared, frozen, trainables)
