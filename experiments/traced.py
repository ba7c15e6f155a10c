"""What a step of training is with some variants, traced without weights: which trials are alike."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

import lora_jax as lj
from experiments import make
from experiments.build import predictor
from experiments.gather import load_task
from experiments.outline import batch_of, model_of
from lora_jax import data, train
from lora_jax.fingerprint import fingerprint

Targets = Mapping[Any, lj.Variant]
Batch = dict[str, jax.ShapeDtypeStruct]
SHORTEST = 8
"""Tokens of the shortest rows that batches are padded to."""


@dataclasses.dataclass(frozen=True, eq=False)
class Outline:
    """All of a config but its variants, with shapes in the place of weights and examples."""

    config: Mapping[str, Any]
    forward: Any
    params: Any
    loss: train.Loss
    steps: int
    batches: tuple[Batch, ...]

    @classmethod
    def of(cls, config: dict[str, Any]) -> "Outline":
        """The outline that all configs share that differ in the settings of variants alone."""
        task = load_task(config["data"])
        outputs = task.num_outputs if isinstance(task, data.Task) else 0
        forward, params, _, tokens, loss = model_of(config, outputs=outputs)
        if isinstance(task, data.Task) and not task.label_names:
            loss = train.squared_error
        steps = make.make_loop(config["train"], len(task.train), task.metric).steps
        rows, lengths = config["train"]["batch_size"], {min(SHORTEST, tokens), tokens}
        batches = tuple(batch_of(rows, length) for length in sorted(lengths))
        if loss is train.squared_error:
            score = jax.ShapeDtypeStruct((rows,), jnp.float32)
            batches = tuple({**batch, "label": score} for batch in batches)
        return cls(config, forward, params, loss, steps, batches)

    def smallest_matrix(self, targets: Targets) -> tuple[int, int] | None:
        """The (in, out) of the smallest adapted matrix; None where these variants cannot be."""
        try:
            _, _, frozen = self._init(targets)
        except Exception:  # whatever a user's code raises, the trial's own run will say it
            return None
        shapes = [each.use.matrix for each in frozen.spec.adapted]
        return min(shapes, key=math.prod, default=(1, 1))

    def program(self, targets: Targets) -> str | None:
        """The fingerprint of steps of training, and of predictions, with these variants.

        Their factors, constants and shared arrays, and the optimiser's numbers, are its inputs. Of
        batches of any length, the shortest and the longest that there may be are traced. None where
        a variant cannot be traced.
        """
        try:
            return " ".join(self._program(targets, batch) for batch in self.batches)
        except Exception:  # whatever a user's code raises, the trial's own run will say it
            return None

    def _program(self, targets: Targets, batch: Batch) -> str:
        config = self.config
        adapted, trainable, frozen = self._init(targets)
        predict = predictor(adapted, config["model"]["dropout"])
        step = traced_step(adapted, predict, self.loss, config, self.steps)
        numbers, key = make.make_hyper(config["optimizer"], self.steps), jax.random.key(0)
        hyper = {name: jax.ShapeDtypeStruct((), jnp.float32) for name in numbers}
        arrays = frozen.base, frozen.constants, frozen.shared

        def whole(hyper: Any, trainable: Any, arrays: Any, batch: Any) -> Any:
            same = lj.Frozen(arrays[0], arrays[1], frozen.spec, arrays[2])
            tx = make.make_optimizer(
                hyper, config["optimizer"]["schedule"], self.steps, config["also_train"]
            )
            state = train.TrainState.create(adapted, tx, trainable, same, key)
            return step(hyper, state, same, batch), predict(trainable, same, batch, None)

        with jax.numpy_dtype_promotion("standard"):  # which Optax's Adam needs
            return fingerprint(whole, hyper, trainable, arrays, batch)

    def _init(self, targets: Targets) -> tuple[lj.Adapted, Any, lj.Frozen]:
        """The adapted model, and the shapes of its trainables and of what is frozen."""
        storage = make.make_storage(self.config["quantize"])
        adapted = lj.adapt(self.forward, None, targets, self.config["also_train"], storage)
        key, ids = jax.random.key(0), self.batches[-1]["input_ids"]
        return adapted, *jax.eval_shape(adapted.init, key, self.params, ids, ids, ids)


def traced_step(
    adapted: lj.Adapted,
    predict: train.Predict,
    loss: train.Loss,
    config: Mapping[str, Any],
    steps: int,
) -> Any:
    """A step of training that takes the optimiser's numbers (see `lora_jax.program`)."""
    step = train.make_step(adapted, predict, loss, config["train"]["accumulate"])

    def traced(hyper: Any, state: Any, frozen: Any, batch: Any) -> Any:
        schedule = config["optimizer"]["schedule"]
        tx = make.make_optimizer(hyper, schedule, steps, config["also_train"])
        return step(tx, hyper["clip"], state, frozen, batch)

    return traced
