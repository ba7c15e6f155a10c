"""What a step of training is with some variants, traced without weights: which trials are alike."""

import dataclasses
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


@dataclasses.dataclass(frozen=True, eq=False)
class Outline:
    """All of a config but its variants, with shapes in the place of weights and examples."""

    config: Mapping[str, Any]
    forward: Any
    params: Any
    loss: train.Loss
    steps: int
    batch: dict[str, jax.ShapeDtypeStruct]

    @classmethod
    def of(cls, config: dict[str, Any]) -> "Outline":
        """The outline that all configs share that differ in the settings of variants alone."""
        task = load_task(config["data"])
        outputs = task.num_outputs if isinstance(task, data.Task) else 0
        forward, params, _, tokens, loss = model_of(config, outputs=outputs)
        if isinstance(task, data.Task) and not task.label_names:
            loss = train.squared_error
        steps = make.make_loop(config["train"], len(task.train), task.metric).steps
        batch = batch_of(config["train"]["batch_size"], tokens)
        return cls(config, forward, params, loss, steps, batch)

    def allows(self, targets: Targets) -> bool:
        """Whether the model can be adapted by these variants at all."""
        try:
            self._init(targets)
        except ValueError:
            return False
        return True

    def program(self, targets: Targets) -> str:
        """The fingerprint of a step of training, and of a prediction, with these variants.

        Their factors, constants and shared arrays, and the optimiser's numbers, are its inputs.

        Raises:
          ValueError: the model has no such weights, or a variant cannot work for one.
        """
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
            return fingerprint(whole, hyper, trainable, arrays, self.batch)

    def _init(self, targets: Targets) -> tuple[lj.Adapted, Any, lj.Frozen]:
        """The adapted model, and the shapes of its trainables and of what is frozen."""
        storage = make.make_storage(self.config["quantize"])
        adapted = lj.adapt(self.forward, None, targets, self.config["also_train"], storage)
        key, ids = jax.random.key(0), self.batch["input_ids"]
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
