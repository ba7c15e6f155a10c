"""Make and check a whole experiment from a config: data, model, adapters and optimiser."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

import lora_jax as lj
from configs.settings import DecoderSettings, ModelSettings, RunConfig
from experiments.setup import from_config
from experiments.setup.from_data import Gathered, gathered
from experiments.setup.load import load
from experiments.setup.out_of_memory import advice, asked
from experiments.setup.sharded_batches import spread
from experiments.setup.task_and_model import TaskAndModel, Texts
from lora_jax import data
from lora_jax.adapters.base_digest import OtherBaseError
from lora_jax.adapters.finite import require_finite
from lora_jax.models.parts.kv_cache import CachedStep
from lora_jax.models.parts.separate_layers import separate, stacked
from lora_jax.records.environment import multiplies_bfloat16
from lora_jax.sharding import memory
from lora_jax.sharding.layout import Layout, lay_out
from lora_jax.training.loop_settings import Loop
from lora_jax.training.optimizers import Optimizer
from lora_jax.training.step import Batch, Predict, Step, TrainState, make_train_step
from lora_jax.transform.bfloat16_products import bfloat16_products


@dataclasses.dataclass(frozen=True, eq=False)
class Experiment:
    """Everything that a run needs, made and checked before anything trains."""

    config: RunConfig
    texts: Texts
    weights_digest: str
    reading_digest: str
    evaluated: Callable[..., Any] | None
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
            yield self.batch(self.texts.encoded["train"], batch)

    def planned(self, step: int = 0) -> Iterator[data.PlannedBatch]:
        """What is in the training batches from a step on, and how long they are."""
        others = [each.start(step) for each in self.beside]
        for batch, *same_step in zip(self.plan().start(step), *others, strict=True):
            yield batch._replace(padded_length=max(p.padded_length for p in (batch, *same_step)))

    def plan(self) -> data.BatchPlan:
        """The plan of which training examples are in the batch of each step."""
        lengths, seed = self.texts.encoded["train"].lengths, self.config.seed
        return data.BatchPlan(lengths, self.batch_size, self.texts.boundaries, seed)

    def first_epoch(self) -> list[data.PlannedBatch]:
        """The batches of the first epoch in the plan."""
        return list(itertools.islice(self.planned(), self.plan().steps_per_epoch))

    @property
    def predict(self) -> Predict:
        """The outputs of a batch, with dropout in training (see `predictor`)."""
        return predictor(self.adapted, self.config.model, self.evaluated)

    def outputs(self, call: Callable[[Batch], Array], encoded: data.Encoded) -> np.ndarray:
        """The outputs of a jitted `call` for every row, (rows, outputs), in the data's order."""
        plan = data.eval_plan(encoded.lengths, self.batch_size, self.texts.boundaries)
        found = [np.asarray(call(self.batch(encoded, batch))) for batch in plan]
        return data.in_order(plan, found)

    def batch(self, encoded: data.Encoded, batch: data.PlannedBatch) -> dict[str, Any]:
        """Make the arrays of a batch; on a mesh, each process makes the rows of its own devices."""
        rows = batch.indices, batch.padded_length, self.batch_size
        if self.layout is None:
            return self.texts.collate(encoded, *rows)
        return spread(self.layout.rows, self.texts.collate, encoded, *rows)

    def score(self, call: Callable[[Batch], Array]) -> dict[str, float]:
        """The metrics of a jitted `call` on the validation part and the task's extra parts."""
        return self.texts.score(self.predictions(call, *self.scored))

    def predictions(self, call: Callable[[Batch], Array], *parts: str) -> dict[str, np.ndarray]:
        """The outputs of a jitted `call` for the examples of each part."""
        return {
            name: self.texts.examples(name, self.outputs(call, self.texts.encoded[name]))
            for name in parts
        }

    @property
    def scored(self) -> tuple[str, ...]:
        """The parts of the data whose outputs are scored."""
        return "validation", *self.texts.task.extra

    def adapted_call(self, trainable: Any) -> Callable[[Batch], Array]:
        """The adapted model without dropout, as a function of a batch."""
        return lambda batch: self.jitted(trainable, self.separated, batch)

    def merged_call(self, trainable: Any) -> Callable[[Batch], Array]:
        """The base model with merged parameters, as a function of a batch."""
        params = self.adapted.merge(trainable, self.frozen)
        if self.layout is None:
            params = separate(params, *_loop(self.config.model))
        evaluated = self.evaluated or self.adapted.forward
        forward = jax.jit(
            lambda params, *inputs: evaluated(stacked(params), *inputs),
            out_shardings=self._everywhere,
        )
        return lambda batch: forward(params, *_inputs(batch))

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
        accumulate, clip = self.config.train.accumulate, self.config.optimizer.clip
        given = self.adapted, self.tx, self.predict, self.texts.loss
        ema = self.hyper.get("ema")
        return make_train_step(*given, accumulate, clip, self._state_shardings, ema)

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
        given = self.adapted, self.tx, trainable, frozen, self.rng
        return TrainState.create(*given, averaged="ema" in self.hyper)


def build(
    config: RunConfig,
    shared: TaskAndModel | None = None,
    mesh: Mesh | None = None,
    texts: Texts | None = None,
    folder: Path | None = None,
    gather: Callable[..., Gathered | None] = gathered,
) -> Experiment:
    """Make the experiment that a config describes.

    Args:
      shared: the loaded task and model of a config with the same data and model, if there is one.
      mesh: the devices that train together; by default one device trains alone.
      texts: the result of `load.read_texts` for this config, if there is one.
      folder: the run's, which may have what an earlier process gathered (`from_data`).
      gather: what finds, or makes, what initialisations from data need.

    Raises:
      ValueError, FileNotFoundError: one line on what is wrong, before anything trains.
    """
    loaded = shared or load(config, mesh, texts)
    texts = loaded.texts
    loop = from_config.make_loop(config.train, len(texts.encoded["train"]), texts.task.metric)
    hyper = from_config.make_hyper(config, loop.steps)
    tx = from_config.make_optimizer(config, hyper, loop.steps)
    key = jax.random.key(config.seed)
    forward, params = loaded.model(key)
    adapted = from_config.adapt(config, forward, from_config.make_run_targets(config, loop.steps))
    # An adapter that is still shrinking is larger than its final budget, so it cannot be the best.
    settled = max((each.settled for _, each in adapted.rules if each), default=0)
    check_ids(config, texts.boundaries[-1])
    example = np.zeros((config.train.batch_size, texts.boundaries[0]), np.int32)
    adapter_key = jax.random.fold_in(key, 1)
    inputs = params, example, example, example
    found = gather(config, loaded, adapted, adapter_key, inputs, mesh, folder)
    seen = found.seen if found else {}
    layout = None if mesh is None else lay_out(adapted, mesh, texts.rules, *inputs, seen=seen)
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
        evaluated=loaded.evaluated,
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


def check_ids(config: RunConfig, tokens: int) -> None:
    """Raise a ValueError if the ids, masks and types of a batch alone do not fit in memory.

    The system gives memory to an array of zeros only on use, and may then kill the process.
    """
    needed, room = 3 * 4 * config.train.batch_size * tokens, memory.host_memory()
    if room is not None and needed > room:
        raise ValueError(
            f"{asked(config)} does not fit into memory: its ids take {memory.size(needed)}, and "
            f"{memory.size(room)} are available; {advice(config, math.inf)}"
        )


def separated(model: ModelSettings, *frozen: lj.Frozen) -> list[lj.Frozen]:
    """Frozen halves on one device, in separate layers (see `separate_layers`)."""
    bases = separate([each.base for each in frozen], *_loop(model))
    return [dataclasses.replace(f, base=base) for f, base in zip(frozen, bases, strict=True)]


def _loop(model: ModelSettings) -> tuple[int | None, str]:
    """How a model loops over its layers: `unroll` and `remat`."""
    return model.unroll, model.remat if isinstance(model, DecoderSettings) else ""


def predictor(
    adapted: lj.Adapted, model: ModelSettings, evaluated: Callable[..., Any] | None = None
) -> Predict:
    """Make the function from a batch to an adapted model's outputs, with dropout if it gets `rng`.

    Args:
      model: says whether the model has dropout, besides that of adapters, and how products round.
      evaluated: the forward pass for calls without `rng`, if it is a different one.
    """
    scored = dataclasses.replace(adapted, forward=evaluated) if evaluated else adapted

    def predict(trainable: Any, frozen: lj.Frozen, batch: Batch, rng: Array | None) -> Array:
        frozen = stacked(frozen)
        if rng is None:
            return scored.apply(trainable, frozen, *_inputs(batch))
        keys: dict[str, Array] = {}
        model_key, keys["dropout_key"] = jax.random.split(rng)
        if model.dropout:
            keys["rng"] = model_key
        return adapted.apply(trainable, frozen, *_inputs(batch), **keys)

    if model.products != "bfloat16":
        return predict
    return bfloat16_products(predict, has_unit=multiplies_bfloat16())


def _inputs(batch: Batch) -> tuple[Any, Any, Any]:
    return batch["input_ids"], batch["attention_mask"], batch["token_type_ids"]
