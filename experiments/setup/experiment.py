"""Make and check a whole experiment from a config: data, model, adapters and optimiser."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

import lora_jax as lj
from configs.settings import RunConfig
from experiments.setup import from_config
from experiments.setup.forward_pass import model_inputs, predictor, separated, unroll_and_remat
from experiments.setup.from_data import Gathered, gathered
from experiments.setup.load import load
from experiments.setup.out_of_memory import check_ids
from experiments.setup.task_and_model import TaskAndModel
from lora_jax import data
from lora_jax.adapters.adapter_file import require_finite
from lora_jax.adapters.base_digest import OtherBaseError
from lora_jax.data.tokenised_task import TokenisedTask
from lora_jax.models.parts.kv_cache import CachedStep
from lora_jax.models.parts.separate_layers import separate, stacked
from lora_jax.sharding.layout import Layout, lay_out
from lora_jax.training.loop_settings import Loop
from lora_jax.training.optimizers import Optimizer
from lora_jax.training.step import Batch, Predict, Step, TrainState, make_train_step


@dataclasses.dataclass(frozen=True, eq=False)
class Experiment:
    """Everything that a run needs, made and checked before anything trains."""

    config: RunConfig
    texts: TokenisedTask
    weights_digest: str
    reading_digest: str
    eval_forward: Callable[..., Any] | None
    step: CachedStep | None
    """These four as in `TaskAndModel`, of which nothing else stays in memory."""
    adapted: lj.Adapted
    trainable: Any
    frozen: lj.Frozen
    hyper: dict[str, float]
    """The optimiser's numbers (`from_config.make_hyper`)."""
    tx: Optimizer
    loop: Loop
    gathered: Gathered | None = None
    """What an initialisation from data has seen; None for others."""
    layout: Layout | None = None
    """The shardings of all arrays on a mesh of devices; None without a mesh."""
    beside: tuple[data.BatchPlan, ...] = ()
    """The plans of trials that step with this one: at each step, all batches have one length."""

    @property
    def batch_size(self) -> int:
        return self.config.train.batch_size

    def batches(self, step: int) -> Iterator[dict[str, np.ndarray]]:
        """The training batches, starting with that of a step."""
        for batch in self.planned(step):
            yield self.batch("train", batch)

    def planned(self, step: int = 0) -> Iterator[data.PlannedBatch]:
        """What is in the training batches from a step on, and how long they are."""
        others = [each.start(step) for each in self.beside]
        for batch, *same_step in zip(self.plan().start(step), *others, strict=True):
            yield batch._replace(padded_length=max(p.padded_length for p in (batch, *same_step)))

    def plan(self) -> data.BatchPlan:
        """The plan of which training examples are in the batch of each step."""
        return self.texts.plan(self.batch_size, self.config.seed)

    def first_epoch(self) -> list[data.PlannedBatch]:
        """The batches of the first epoch in the plan."""
        return list(itertools.islice(self.planned(), self.plan().steps_per_epoch))

    @property
    def predict(self) -> Predict:
        """The outputs of a batch, with dropout in training (see `predictor`)."""
        return predictor(self.adapted, self.config.model, self.eval_forward)

    def batch(self, part: str, planned: data.PlannedBatch) -> dict[str, Any]:
        """The arrays of a batch; on a mesh, each process makes the rows of its own devices."""
        return self.texts.batch(part, planned, self.batch_size, self.layout and self.layout.rows)

    def score(self, call: Callable[[Batch], Array]) -> dict[str, float]:
        """The metrics of a jitted `call` on the validation part and the task's extra parts."""
        return self.texts.score(self.predictions(call, *self.scored))

    def predictions(self, call: Callable[[Batch], Array], *parts: str) -> dict[str, np.ndarray]:
        """The outputs of a jitted `call` for the examples of each part."""
        return {part: self.outputs(call, part) for part in parts}

    def outputs(self, call: Callable[[Batch], Array], part: str) -> np.ndarray:
        """The outputs of a jitted `call` for each example of a part, (n, outputs), in order."""
        return self.texts.outputs(
            part, self.batch_size, lambda planned: call(self.batch(part, planned))
        )

    @property
    def scored(self) -> tuple[str, ...]:
        """The parts of the data whose outputs are scored."""
        return self.texts.scored

    def adapted_call(self, trainable: Any) -> Callable[[Batch], Array]:
        """The adapted model without dropout, as a function of a batch."""
        return lambda batch: self.jitted(trainable, self.separated, batch)

    def merged_call(self, trainable: Any) -> Callable[[Batch], Array]:
        """The base model with merged parameters, as a function of a batch."""
        params = self.adapted.merge(trainable, self.frozen)
        if self.layout is None:
            params = separate(params, *unroll_and_remat(self.config.model))
        eval_forward = self.eval_forward or self.adapted.forward
        forward = jax.jit(
            lambda params, *inputs: eval_forward(stacked(params), *inputs),
            out_shardings=self._everywhere,
        )
        return lambda batch: forward(params, *model_inputs(batch))

    @cached_property
    def separated(self) -> lj.Frozen:
        """`frozen` in separate layers, as compiled programs take it (see `separate_layers`)."""
        return self.frozen if self.layout else separated(self.config.model, self.frozen)[0]

    @cached_property
    def jitted(self) -> Callable[[Any, lj.Frozen, Batch], Array]:
        """The adapted model without dropout, as a jitted function of its arrays and a batch."""
        predict = self.predict
        return jax.jit(
            lambda trainable, frozen, batch: predict(trainable, frozen, batch, None),
            out_shardings=self._everywhere,
        )

    @property
    def _everywhere(self) -> Any:
        """The sharding of outputs that every process reads; None without a mesh."""
        return self.layout and self.layout.everywhere

    @property
    def rng(self) -> Array:
        """The random key for dropout."""
        return jax.random.fold_in(jax.random.key(self.config.seed), 2)

    def make_step(self) -> Step:
        return make_train_step(
            self.adapted,
            self.tx,
            self.predict,
            self.texts.loss,
            accumulate=self.config.train.accumulate,
            clip=self.config.optimizer.clip,
            shardings=self._state_shardings,
            ema=self.hyper.get("ema"),
        )

    def start(self, keep: bool = True) -> TrainState:
        """The training state before the first step, in arrays of its own.

        Args:
          keep: whether `trainable` is still needed; if not, it is donated on a mesh.
        """
        if self.layout is None:
            own = jax.tree.map(lambda x: x.copy(), self.trainable)
            return self._start(own, self.frozen)
        donated, shardings = () if keep else (0,), self._state_shardings
        start = jax.jit(self._start, donate_argnums=donated, out_shardings=shardings)
        return start(self.trainable, self.frozen)

    @cached_property
    def _state_shardings(self) -> Any:
        """The shardings of the training state; None without a mesh."""
        if self.layout is None:
            return None
        return self.layout.like(jax.eval_shape(self._start, self.trainable, self.frozen))

    def _start(self, trainable: Any, frozen: lj.Frozen) -> TrainState:
        averaged = "ema" in self.hyper
        return TrainState.create(self.adapted, self.tx, trainable, frozen, self.rng, averaged)


def build(
    config: RunConfig,
    shared: TaskAndModel | None = None,
    mesh: Mesh | None = None,
    folder: Path | None = None,
) -> Experiment:
    """Make the experiment that a config describes.

    Args:
      shared: the loaded task and model of a config with the same data and model, if there is one.
      mesh: the devices that train together; by default one device trains alone.
      folder: the run's, which may have what an earlier process gathered (`from_data`).

    Raises:
      ValueError, FileNotFoundError: one line on what is wrong, before anything trains.
    """
    loaded = shared or load(config, mesh)
    texts = loaded.texts
    loop = from_config.make_loop(config.train, len(texts.encoded["train"]), texts.task.metric)
    if not loop.steps and loaded.fresh and not config.start_from:
        drawn = ", ".join(loaded.fresh)
        raise ValueError(
            f"config.train.epochs 0 scores without training, and {drawn} would be random: "
            "config.model.name has no head for this task; train one, or give config.start_from"
        )
    hyper = from_config.make_hyper(config, loop.steps)
    tx = from_config.make_optimizer(config, hyper, loop.steps)
    key = jax.random.key(config.seed)
    forward, params = loaded.model(key)
    adapted = from_config.adapt(config, forward, from_config.make_targets(config, loop.steps))
    # An adapter that is still shrinking is larger than its final budget, so it cannot be the best.
    settled = max((each.settled for _, each in adapted.rules if each), default=0)
    check_ids(config, texts.boundaries[-1])
    adapter_key = jax.random.fold_in(key, 1)
    inputs = params, *model_inputs(texts.example(config.train.batch_size))
    found = gathered(config, loaded, adapted, adapter_key, inputs, mesh, folder)
    seen = found.seen if found else {}
    layout = None if mesh is None else lay_out(adapted, mesh, loaded.rules, *inputs, seen=seen)
    trainable, frozen = (layout or adapted).init(adapter_key, *inputs, seen=seen)
    if config.start_from:
        trainable, frozen = _begin(config.start_from, trainable, frozen)
        if layout is not None:
            where = layout.trainable, layout.frozen
            trainable, frozen = jax.device_put((trainable, frozen), where)
    return Experiment(
        config=config,
        texts=texts,
        weights_digest=loaded.weights_digest,
        reading_digest=loaded.reading_digest,
        eval_forward=loaded.eval_forward,
        step=loaded.step,
        adapted=adapted,
        trainable=trainable,
        frozen=frozen,
        hyper=hyper,
        tx=tx,
        loop=dataclasses.replace(loop, best_from=settled),
        gathered=found,
        layout=layout,
    )


def _begin(start_from: str, trainable: Any, frozen: lj.Frozen) -> tuple[Any, lj.Frozen]:
    """Start from another run's adapter: return the trainable and frozen parts with it loaded.

    Raises:
      ValueError: the adapter does not fit, has a number that is not finite, or has another base
        model and the config forbids that.
    """
    path, any_base = from_config.make_start(start_from)
    try:
        begun = lj.start_from(path, trainable, frozen, any_base=any_base)
    except OtherBaseError as error:
        way_out = f"--config.start_from={from_config.ANY_BASE}{path} begins from it anyway"
        raise ValueError(f"{error.problem}; {way_out}") from None
    require_finite(begun[0], f"config.start_from {path}")
    return begun
