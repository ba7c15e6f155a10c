"""Trials that train together: one by itself, or several in arrays of one structure."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import lora_jax as lj
from configs.settings import RunConfig
from experiments.runs.generated_texts import writes_samples
from experiments.setup import from_config
from experiments.setup.experiment import Experiment, predictor
from lora_jax.files.canonical_json import config_digest
from lora_jax.training import trial_program
from lora_jax.training.checkpoint import Checkpoints
from lora_jax.training.masking import narrow, union, widen
from lora_jax.training.saved_trials import ManyTrials, OneTrial, SavedTrials
from lora_jax.training.step import Batch, Loss, Predict, TrainState, make_step
from lora_jax.training.trial_program import Execution, Program, make_program
from lora_jax.transform.placement import Trainable


class Group(Protocol):
    """The trials of one program, each with a number from 0 on."""

    @property
    def experiments(self) -> Sequence[Experiment]: ...

    def start(self) -> list[TrainState]:
        """The trials' states before the first step, in arrays of their own."""
        ...

    def program(self, execution: Execution) -> Program:
        """The program that steps the trials (see `lora_jax.training.trial_program`)."""
        ...

    def call(self, number: int, trainable: Trainable) -> Callable[[Batch], Array]:
        """The adapted model of a trial without dropout, as a function of a batch."""
        ...

    def evaluate(self, number: int, trainable: Trainable) -> dict[str, float]:
        """The metrics of a trial's trainables."""
        ...

    def own(self, number: int, state: TrainState) -> TrainState:
        """A trial's state in the shapes that it has alone."""
        ...

    def saved(self, folder: Path) -> AbstractContextManager[SavedTrials]:
        """The checkpoints of the trials in a folder."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Alone:
    """One trial; the numbers of its optimiser are constants of its program."""

    experiment: Experiment

    @property
    def experiments(self) -> tuple[Experiment]:
        return (self.experiment,)

    def start(self) -> list[TrainState]:
        return [self.experiment.start(keep=writes_samples(self.experiment.config))]

    def program(self, execution: Execution) -> Program:
        return trial_program.alone(self.experiment.make_step(), self.experiment.frozen)

    def call(self, number: int, trainable: Trainable) -> Callable[[Batch], Array]:
        return self.experiment.adapted_call(trainable)

    def evaluate(self, number: int, trainable: Trainable) -> dict[str, float]:
        return self.experiment.evaluate(trainable)

    def own(self, number: int, state: TrainState) -> TrainState:
        return state

    @contextlib.contextmanager
    def saved(self, folder: Path) -> Iterator[OneTrial]:
        loop = self.experiment.loop
        with Checkpoints(folder / "checkpoints", best=(loop.metric, loop.mode)) as checkpoints:
            yield OneTrial(checkpoints, _identity(self.experiment))


@dataclasses.dataclass(frozen=True, eq=False)
class Together:
    """Several trials, in arrays of one structure; all use the first trial's model."""

    experiments: tuple[Experiment, ...]
    adapted: lj.Adapted
    """The first trial's model, adapted in the common structure."""
    frozen: tuple[lj.Frozen, ...]
    trainables: tuple[Trainable, ...]

    def start(self) -> list[TrainState]:
        return [
            TrainState.create(
                self.adapted, each.tx, jax.tree.map(jnp.copy, trainable), frozen, each.rng
            )
            for each, trainable, frozen in zip(
                self.experiments, self.trainables, self.frozen, strict=True
            )
        ]

    def program(self, execution: Execution) -> Program:
        first = self.experiments[0]
        step = traced_step(self.adapted, self._predict, first.loss, first.config, first.loop.steps)
        hyper = [
            {name: jnp.asarray(value, float) for name, value in each.hyper.items()}
            for each in self.experiments
        ]
        return make_program(execution, step, self.frozen, hyper)

    def call(self, number: int, trainable: Trainable) -> Callable[[Batch], Array]:
        """As in `Group`; `trainable` is in the program's structure."""
        return lambda batch: self._evaluate(trainable, self.frozen[number], batch)

    def evaluate(self, number: int, trainable: Trainable) -> dict[str, float]:
        return self.experiments[number].score(self.call(number, trainable))

    @functools.cached_property
    def _evaluate(self) -> Callable[..., Array]:
        predict = self._predict
        return jax.jit(lambda trainable, frozen, batch: predict(trainable, frozen, batch, None))

    @property
    def _predict(self) -> Predict:
        first = self.experiments[0]
        return predictor(self.adapted, first.config.model, first.workload.evaluated)

    def own(self, number: int, state: TrainState) -> TrainState:
        mine = self.experiments[number]
        trainable = narrow(state.trainable, mine.trainable)
        like = mine.adapted.init_state(mine.trainable, mine.frozen)
        variant_state = narrow(state.variant_state, like)
        return dataclasses.replace(state, trainable=trainable, variant_state=variant_state)

    @contextlib.contextmanager
    def saved(self, folder: Path) -> Iterator[ManyTrials]:
        digests = [config_digest(each.config.plain) for each in self.experiments]
        identity = {"trials": config_digest({"trials": digests}), **_identity(self.experiments[0])}
        keep_best = self.experiments[0].config.train.select == "best"
        with Checkpoints(folder / "checkpoints") as checkpoints:
            yield ManyTrials(checkpoints, identity, keep_best)


def _identity(experiment: Experiment) -> dict[str, str]:
    """Digests of what a trial depends on besides its state."""
    return {"weights": experiment.weights_digest, "data": experiment.task.digest()}


def together(experiments: Sequence[Experiment]) -> Together:
    """Put the trials of a group (`experiments.sweeps.grouping`) into one structure."""
    first = experiments[0]
    targets: Mapping[Any, lj.Variant] = {
        where: union([dict(each.adapted.rules)[where] for each in experiments])  # type: ignore
        for where, _ in first.adapted.rules
    }
    adapted = from_config.adapt(first.config, first.adapted.forward, targets)
    example = np.zeros((first.batch_size, first.boundaries[0]), np.int32)
    params = jax.eval_shape(first.adapted.disable, first.trainable, first.frozen)
    like = jax.eval_shape(adapted.init, jax.random.key(0), params, example, example, example)
    wide = [widen(each.trainable, each.frozen, like) for each in experiments]
    trainables, frozen = zip(*wide, strict=True)
    return Together(tuple(experiments), adapted, frozen, trainables)


def traced_step(
    adapted: lj.Adapted, predict: Predict, loss: Loss, config: RunConfig, steps: int
) -> Any:
    """A training step that takes the optimiser's numbers (`lora_jax.training.trial_program`)."""
    step = make_step(adapted, predict, loss, config.train.accumulate)

    def traced(hyper: Any, state: Any, frozen: Any, batch: Any) -> Any:
        tx = from_config.make_optimizer(config, hyper, steps)
        return step(tx, hyper["clip"], state, frozen, batch)

    return traced
