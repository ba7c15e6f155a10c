"""Trace training steps with given variants, without weights, to find trials with equal steps."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

import lora_jax as lj
from configs.settings import RunConfig
from experiments.runs.group import traced_step
from experiments.setup import from_config
from experiments.setup.forward_pass import predictor
from experiments.setup.load import load_abstract
from experiments.setup.task_and_model import TaskAndModel
from lora_jax import data
from lora_jax.data.tokenised_task import TokenisedTask
from lora_jax.training.fingerprint import fingerprint
from lora_jax.training.step import TrainState
from lora_jax.transform.adapt import init_shapes

Targets = Mapping[Any, lj.Variant]
BatchShapes = dict[str, jax.ShapeDtypeStruct]


@dataclasses.dataclass(frozen=True, eq=False)
class AbstractRun:
    """All of a config except its variants, with shapes in place of weights and examples."""

    config: RunConfig
    loaded: TaskAndModel
    steps: int
    trained: tuple[BatchShapes, ...]
    """The shapes of training batches, one for each padded length."""
    scored: tuple[BatchShapes, ...]
    """The shapes of evaluation batches, one for each padded length."""

    @classmethod
    def of(cls, config: RunConfig) -> "AbstractRun":
        """The abstract run of a config, and of all that differ in settings of variants only.

        This tokenises the texts, as every run does, with the same cache.

        Raises:
          ValueError, OSError, ImportError: the model or data cannot be loaded.
        """
        loaded, size = load_abstract(config), config.train.batch_size
        texts, examples = loaded.texts, len(loaded.texts.encoded["train"])
        return cls(
            config=config,
            loaded=loaded,
            steps=from_config.make_loop(config.train, examples, texts.task.metric).steps,
            trained=_batches(texts, ["train"], size),
            scored=_batches(texts, sorted(texts.encoded.keys() - {"train"}), size),
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
        predict = predictor(adapted, config.model, self.loaded.eval_forward)
        step = traced_step(adapted, predict, self.loaded.texts.loss, config, self.steps)
        numbers, key = from_config.make_hyper(config, self.steps), jax.random.key(0)
        hyper = {name: jax.ShapeDtypeStruct((), jnp.float32) for name in numbers}

        def trained(hyper: Any, trainable: Any, frozen: lj.Frozen, batch: Any) -> Any:
            tx = from_config.make_optimizer(config, hyper, self.steps)
            averaged = "ema" in hyper
            state = TrainState.create(adapted, tx, trainable, frozen, key, averaged)
            return step(hyper, state, frozen, batch)

        def scored(trainable: Any, frozen: lj.Frozen, batch: Any) -> Any:
            return predict(trainable, frozen, batch, None)

        with jax.numpy_dtype_promotion("standard"):  # Optax's Adam needs this
            steps = [fingerprint(trained, hyper, trainable, frozen, each) for each in self.trained]
            scores = [fingerprint(scored, trainable, frozen, each) for each in self.scored]
        return " ".join([*steps, *scores])

    def _init(self, targets: Targets) -> tuple[lj.Adapted, Any, lj.Frozen]:
        """The adapted model, and the shapes of its trainable and frozen arrays."""
        key, ids = jax.random.key(0), self.trained[0]["input_ids"]
        forward, params = self.loaded.model(key)
        adapted = from_config.adapt(self.config, forward, targets)
        return adapted, *init_shapes(adapted, key, params, ids, ids, ids)


def _batches(texts: TokenisedTask, parts: Sequence[str], size: int) -> tuple[BatchShapes, ...]:
    """The shapes of a batch for each padded length of the parts; shuffling does not change them."""
    found: dict[int, BatchShapes] = {}
    for part in parts:
        for plan in data.eval_plan(texts.encoded[part].lengths, size, texts.boundaries):
            if (length := plan.padded_length) not in found:
                batch = texts.batch(part, plan, size)
                found[length] = {
                    n: jax.ShapeDtypeStruct(x.shape, x.dtype) for n, x in batch.items()
                }
    return tuple(found[length] for length in sorted(found))
