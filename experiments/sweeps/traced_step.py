"""Trace training steps with given variants, without weights, to find trials with equal steps."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

import lora_jax as lj
from experiments.setup import from_config
from experiments.setup.experiment import predictor
from experiments.setup.load import gather_abstract
from experiments.setup.task_and_model import Materials
from lora_jax import data
from lora_jax.training.fingerprint import fingerprint
from lora_jax.training.step import Loss, Predict, TrainState, make_step

Targets = Mapping[Any, lj.Variant]
Batch = dict[str, jax.ShapeDtypeStruct]


@dataclasses.dataclass(frozen=True, eq=False)
class Outline:
    """All of a config except its variants, with shapes in place of weights and examples."""

    config: Mapping[str, Any]
    forward: Any
    evaluated: Any
    """The forward pass in evaluation; None if it is the same."""
    params: Any
    loss: Loss
    steps: int
    trained: tuple[Batch, ...]
    """The shapes of training batches, one for each padded length."""
    scored: tuple[Batch, ...]
    """The shapes of evaluation batches, one for each padded length."""

    @classmethod
    def of(cls, config: dict[str, Any]) -> "Outline":
        """The outline of a config, and of all configs with other settings of the variants only.

        This tokenises the texts, as every run does, with the same cache.

        Raises:
          ValueError, OSError, ImportError: the model or data cannot be loaded.
        """
        materials = gather_abstract(config)
        problem, size = materials.problem, config["train"]["batch_size"]
        forward, params = problem.model(jax.random.key(0))
        examples = len(materials.encoded["train"])
        return cls(
            config=config,
            forward=forward,
            evaluated=problem.evaluated,
            params=params,
            loss=problem.loss,
            steps=from_config.make_loop(config["train"], examples, materials.task.metric).steps,
            trained=_batches(materials, ["train"], size),
            scored=_batches(materials, sorted(materials.encoded.keys() - {"train"}), size),
        )

    def smallest_matrix(self, targets: Targets) -> tuple[int, int] | None:
        """The (in, out) of the smallest adapted matrix; None if these variants cannot work."""
        try:
            _, _, frozen = self._init(targets)
        except Exception:  # a user's code may raise anything; the trial's own run reports it
            return None
        shapes = [each.use.matrix for each in frozen.spec.adapted]
        return min(shapes, key=math.prod, default=(1, 1))

    def program(self, targets: Targets) -> str | None:
        """The fingerprint of the training steps and predictions with these variants.

        The factors, constants and shared arrays, and the optimiser's numbers, are inputs of the
        program. Everything is traced for each batch shape of a run, since a variant may depend on
        the shape. The result is None if a variant cannot be traced.
        """
        try:
            return self._program(targets)
        except Exception:  # a user's code may raise anything; the trial's own run reports it
            return None

    def _program(self, targets: Targets) -> str:
        config = self.config
        adapted, trainable, frozen = self._init(targets)
        predict = predictor(adapted, config["model"]["dropout"], self.evaluated)
        step = traced_step(adapted, predict, self.loss, config, self.steps)
        numbers, key = from_config.make_hyper(config["optimizer"], self.steps), jax.random.key(0)
        hyper = {name: jax.ShapeDtypeStruct((), jnp.float32) for name in numbers}
        arrays = frozen.base, frozen.constants, frozen.shared

        def trained(hyper: Any, trainable: Any, arrays: Any, batch: Any) -> Any:
            same = lj.Frozen(arrays[0], arrays[1], frozen.spec, arrays[2])
            tx = from_config.make_optimizer(
                hyper, config["optimizer"]["schedule"], self.steps, config["also_train"]
            )
            state = TrainState.create(adapted, tx, trainable, same, key)
            return step(hyper, state, same, batch)

        def scored(trainable: Any, arrays: Any, batch: Any) -> Any:
            same = lj.Frozen(arrays[0], arrays[1], frozen.spec, arrays[2])
            return predict(trainable, same, batch, None)

        with jax.numpy_dtype_promotion("standard"):  # Optax's Adam needs this
            steps = [fingerprint(trained, hyper, trainable, arrays, each) for each in self.trained]
            scores = [fingerprint(scored, trainable, arrays, each) for each in self.scored]
        return " ".join([*steps, *scores])

    def _init(self, targets: Targets) -> tuple[lj.Adapted, Any, lj.Frozen]:
        """The adapted model, and the shapes of its trainable and frozen arrays."""
        storage = from_config.make_storage(self.config["quantize"])
        adapted = lj.adapt(self.forward, None, targets, self.config["also_train"], storage)
        key, ids = jax.random.key(0), self.trained[0]["input_ids"]
        return adapted, *jax.eval_shape(adapted.init, key, self.params, ids, ids, ids)


def _batches(materials: Materials, parts: Sequence[str], size: int) -> tuple[Batch, ...]:
    """The shapes of a batch for each padded length of the parts; shuffling does not change them."""
    found: dict[int, Batch] = {}
    for encoded in map(materials.encoded.__getitem__, parts):
        for plan in data.eval_plan(encoded.lengths, size, materials.boundaries):
            if (length := plan.padded_length) not in found:
                batch = materials.problem.collate(encoded, plan.indices, length, size)
                found[length] = {
                    n: jax.ShapeDtypeStruct(x.shape, x.dtype) for n, x in batch.items()
                }
    return tuple(found[length] for length in sorted(found))


def traced_step(
    adapted: lj.Adapted,
    predict: Predict,
    loss: Loss,
    config: Mapping[str, Any],
    steps: int,
) -> Any:
    """A training step that takes the optimiser's numbers (`lora_jax.training.trial_program`)."""
    step = make_step(adapted, predict, loss, config["train"]["accumulate"])

    def traced(hyper: Any, state: Any, frozen: Any, batch: Any) -> Any:
        schedule = config["optimizer"]["schedule"]
        tx = from_config.make_optimizer(hyper, schedule, steps, config["also_train"])
        return step(tx, hyper["clip"], state, frozen, batch)

    return traced
