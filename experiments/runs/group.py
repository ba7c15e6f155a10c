"""Trials that train together: several in arrays of one structure, or a run by itself."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import lora_jax as lj
from configs.settings import RunConfig
from experiments.runs.generated_texts import writes_samples
from experiments.setup import from_config
from experiments.setup.experiment import Experiment
from experiments.setup.forward_pass import model_inputs, separated
from experiments.setup.out_of_memory import explained, of_evaluation
from lora_jax.files.json_text import config_digest
from lora_jax.records.metrics_log import Metrics
from lora_jax.training import trial_program
from lora_jax.training.checkpoint import Checkpoints
from lora_jax.training.loop import TrialRun
from lora_jax.training.masking import narrow, union, widen
from lora_jax.training.outcome import Outcome
from lora_jax.training.saved_trials import SavedTrials
from lora_jax.training.step import Batch, Loss, Predict, TrainState, make_step
from lora_jax.transform.adapt import init_shapes
from lora_jax.transform.placement import Trainable

Outputs = dict[str, np.ndarray]
"""A model's outputs for the examples of each part of the data that is scored."""


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """Trials that train together, in arrays of one structure. A run is a group of one."""

    experiments: tuple[Experiment, ...]
    common: Experiment
    """The first trial, whose model all use, with this model adapted in the common structure."""
    frozen: tuple[lj.Frozen, ...]
    trainables: tuple[Trainable, ...]
    alone: bool
    """Whether the numbers of the one trial's optimiser are constants of its program."""
    step: trial_program.TracedStep
    """The step of all trials. A group of some of them has the same function, compiled once."""
    outputs: dict[Experiment, Outputs] = dataclasses.field(default_factory=dict)
    """The outputs of each trial at its newest evaluation, which `evaluate` leaves here.

    Groups of some of these trials share it.
    """

    @classmethod
    def of(cls, experiments: Sequence[Experiment], alone: bool = False) -> "Group":
        """Put the trials of a group (`experiments.sweeps.grouping`) into one structure.

        Args:
          alone: whether this is a run by itself, of one trial, which keeps its own structure.
        """
        first, trainables = experiments[0], [each.trainable for each in experiments]
        common, frozen = first, [first.separated]
        if not alone:
            common, wide = _widened(experiments)
            trainables, halves = zip(*wide, strict=True)
            frozen = separated(first.config.model, *halves)
        step = traced_step(
            common.adapted, common.predict, common.texts.loss, common.config, common.loop.steps
        )
        arrays = tuple(frozen), tuple(trainables)
        return cls(tuple(experiments), common, *arrays, alone=alone, step=step)

    def take(self, numbers: Sequence[int]) -> "Group":
        """The group of the trials with these numbers, in the same structure."""
        return dataclasses.replace(
            self,
            experiments=tuple(self.experiments[number] for number in numbers),
            frozen=tuple(self.frozen[number] for number in numbers),
            trainables=tuple(self.trainables[number] for number in numbers),
        )

    def start(self) -> list[TrainState]:
        """The trials' states before the first step, in arrays of their own."""
        if self.alone:
            return [self.common.start(keep=writes_samples(self.common.config))]
        return [
            dataclasses.replace(
                each, adapted=self.common.adapted, trainable=trainable, frozen=frozen
            ).start()
            for each, trainable, frozen in zip(
                self.experiments, self.trainables, self.frozen, strict=True
            )
        ]

    def program(self, execution: trial_program.Execution) -> trial_program.Program:
        """The program that steps the trials (see `lora_jax.training.trial_program`)."""
        if self.alone:
            return trial_program.alone(self.common.make_step(), self.frozen[0])
        hyper = [
            {name: jnp.asarray(value, float) for name, value in each.hyper.items()}
            for each in self.experiments
        ]
        return trial_program.make_program(execution, self.step, self.frozen, hyper)

    def call(self, number: int, trainable: Trainable) -> Callable[[Batch], Array]:
        """The adapted model of a trial without dropout, as a function of a batch.

        Args:
          trainable: in the program's structure.
        """
        return lambda batch: self.common.jitted(trainable, self.frozen[number], batch)

    def evaluate(self, number: int, trainable: Trainable) -> dict[str, float]:
        """The metrics of a trial's trainables, in the program's structure."""
        mine = self.experiments[number]
        with explained(of_evaluation(mine.config)):
            outputs = mine.predictions(self.call(number, trainable), *mine.scored)
        self.outputs[mine] = outputs
        return mine.texts.score(outputs)

    def own(self, number: int, state: TrainState) -> TrainState:
        """A trial's state in the shapes that it has alone."""
        if self.alone:
            return state
        mine = self.experiments[number]
        trainable = narrow(state.trainable, mine.trainable)
        like = mine.adapted.init_state(mine.trainable, mine.frozen)
        variant_state = narrow(state.variant_state, like)
        return dataclasses.replace(state, trainable=trainable, variant_state=variant_state)

    @contextlib.contextmanager
    def saved(self, folder: Path) -> Iterator[SavedTrials]:
        """The checkpoints of the trials in a folder."""
        keep_best = self.experiments[0].config.train.select == "best"
        with Checkpoints(folder / "checkpoints") as checkpoints:
            yield SavedTrials(checkpoints, _identity(self.experiments), keep_best)


def _identity(experiments: Sequence[Experiment]) -> dict[str, str]:
    """Digests of what trials of one program depend on besides their states."""
    first, texts = experiments[0], dict.fromkeys(each.texts for each in experiments)
    data = [each.task.digest() for each in texts]
    configs = [config_digest(each.config.plain) for each in experiments]
    return {
        "trials": config_digest({"trials": configs}),
        "weights": first.weights_digest,
        "files of config and tokenizer": first.reading_digest,
        "data": data[0],
        "data of a trial": config_digest({"trials": sorted(set(data))}),
        # They decide which examples share a batch, and come from texts without labels, too.
        "lengths of texts": config_digest({"trials": sorted({each.boundaries for each in texts})}),
    }


def _widened(
    experiments: Sequence[Experiment],
) -> tuple[Experiment, list[tuple[Trainable, lj.Frozen]]]:
    """The first trial with factors large enough for all, and each trial's arrays in its shapes."""
    first = experiments[0]
    rules = tuple(
        (of_target[0][0], union([variant for _, variant in of_target]))
        for of_target in zip(*(each.adapted.rules for each in experiments), strict=True)
    )
    adapted = dataclasses.replace(first.adapted, rules=rules)
    inputs = model_inputs(first.texts.example(first.batch_size))
    params = jax.eval_shape(first.adapted.disable, first.trainable, first.frozen)
    like = init_shapes(adapted, jax.random.key(0), params, *inputs)
    wide = [widen(each.trainable, each.frozen, like) for each in experiments]
    return dataclasses.replace(first, adapted=adapted), wide


def with_batches_for(
    execution: trial_program.Execution, experiments: Sequence[Experiment]
) -> Sequence[Experiment]:
    """The trials with the batches that they take in a program.

    They are those that a trial takes alone. Only if all step at once and drew other examples, a
    step's batches are padded to the longest of them; each still has its own sentences.
    """
    if execution == "each" or len({each.config.data.draw for each in experiments}) == 1:
        return experiments
    plans = [each.plan() for each in experiments]
    return [
        dataclasses.replace(each, beside=(*plans[:number], *plans[number + 1 :]))
        for number, each in enumerate(experiments)
    ]


def trial_runs(
    experiments: Sequence[Experiment], metrics: Sequence[Metrics], outcomes: Sequence[Outcome]
) -> list[TrialRun]:
    """What the loop needs of the trials of a program, with the batches that they take in it."""
    each = zip(experiments, metrics, outcomes, strict=True)
    return [TrialRun(one.loop, one.batches, log, outcome) for one, log, outcome in each]


def traced_step(
    adapted: lj.Adapted, predict: Predict, loss: Loss, config: RunConfig, steps: int
) -> Any:
    """A training step that takes the optimiser's numbers (`lora_jax.training.trial_program`)."""
    step = make_step(adapted, predict, loss, config.train.accumulate)

    def traced(hyper: Any, state: Any, frozen: Any, batch: Any) -> Any:
        tx = from_config.make_optimizer(config, hyper, steps)
        return step(tx, hyper["clip"], state, frozen, batch, hyper.get("ema"))

    return traced
