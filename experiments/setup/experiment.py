"""A whole experiment from a config: data, model, adapters, optimiser, made and checked."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import jax
import numpy as np
import optax
from jax import Array
from jax.sharding import Mesh

import lora_jax as lj
from experiments.setup import from_config
from experiments.setup.load import gather
from experiments.setup.out_of_memory import advice, asked
from experiments.setup.sharded_batches import spread
from experiments.setup.task_and_model import Materials, Texts
from experiments.setup.validate import validate
from experiments.setup.workload import Problem
from lora_jax import data
from lora_jax.adapters.base_digest import OtherBaseError
from lora_jax.sharding import memory
from lora_jax.sharding.layout import Layout, lay_out
from lora_jax.sharding.mesh import ROWS, parts
from lora_jax.training.loop import Loop
from lora_jax.training.step import Batch, Loss, Predict, Step, TrainState, make_train_step


@dataclasses.dataclass(frozen=True, eq=False)
class Experiment:
    """Everything that a run needs, made and checked before anything trains."""

    config: dict[str, Any]
    problem: Problem
    task: data.Task | data.TextTask
    tokenizer: data.Tokenizer
    encoded: dict[str, data.Encoded]
    """`train` and `validation`, and the task's other parts by their names."""
    examples_per_second: float
    """How fast the training texts were tokenised (when that was done, if they were cached)."""
    boundaries: tuple[int, ...]
    weights_digest: str
    adapted: lj.Adapted
    trainable: Any
    frozen: lj.Frozen
    hyper: dict[str, float]
    """The optimiser's numbers (`make.make_hyper`)."""
    tx: optax.GradientTransformation
    loop: Loop
    layout: Layout | None = None
    """Where everything lies, on a mesh of devices."""

    @property
    def batch_size(self) -> int:
        return self.config["train"]["batch_size"]

    def batches(self, step: int) -> Iterator[dict[str, np.ndarray]]:
        """The training batches from a step on."""
        for batch in self.plan().start(step):
            yield self._batch(self.encoded["train"], batch)

    def plan(self) -> data.BatchPlan:
        """Which training examples make up the batch of a step."""
        lengths, seed = self.encoded["train"].lengths, self.config["seed"]
        return data.BatchPlan(lengths, self.batch_size, self.boundaries, seed)

    def predict(self, trainable: Any, frozen: lj.Frozen, batch: Batch, rng: Array | None) -> Array:
        """The outputs of a batch; training has `rng`, for dropout of adapters and model."""
        dropout, evaluated = self.config["model"]["dropout"], self.problem.evaluated
        return predictor(self.adapted, dropout, evaluated)(trainable, frozen, batch, rng)

    def outputs(self, call: Callable[[Batch], Array], encoded: data.Encoded) -> np.ndarray:
        """What a jitted `call` says of every row, (rows, outputs), in the order of the data."""
        plan = data.eval_plan(encoded.lengths, self.batch_size, self.boundaries)
        found = [np.asarray(call(self._batch(encoded, batch))) for batch in plan]
        return data.in_order(plan, found)

    def _batch(self, encoded: data.Encoded, batch: data.Batch) -> dict[str, Any]:
        """The arrays of a batch; on a mesh, each process makes the rows of its own devices."""
        rows = batch.indices, batch.padded_length, self.batch_size
        if self.layout is None:
            return self.problem.collate(encoded, *rows)
        return spread(self.layout.rows, self.problem.collate, encoded, *rows)

    def score(self, call: Callable[[Batch], Array]) -> dict[str, float]:
        """The metrics of a jitted `call` on the validation part and the task's extra ones."""
        return self.problem.score(self.predictions(call, *self.task.extra))

    def predictions(self, call: Callable[[Batch], Array], *parts: str) -> dict[str, np.ndarray]:
        """What a jitted `call` says of the examples of the validation part and of others."""
        return {
            name: self.problem.examples(name, self.outputs(call, self.encoded[name]))
            for name in ("validation", *parts)
        }

    def adapted_call(self, trainable: Any) -> Callable[[Batch], Array]:
        """The adapted model without dropout."""
        return lambda batch: self._adapted(trainable, self.frozen, batch)

    def merged_call(self, trainable: Any) -> Callable[[Batch], Array]:
        """The base model's own function of the merged parameters."""
        params = self.adapted.merge(trainable, self.frozen)
        evaluated = self.problem.evaluated or self.adapted.forward
        forward = jax.jit(evaluated, out_shardings=self._everywhere)
        return lambda batch: forward(params, *_inputs(batch))

    def evaluate(self, trainable: Any) -> dict[str, float]:
        return self.score(self.adapted_call(trainable))

    @cached_property
    def _adapted(self) -> Callable[[Any, lj.Frozen, Batch], Array]:
        return jax.jit(
            lambda trainable, frozen, batch: self.predict(trainable, frozen, batch, None),
            out_shardings=self._everywhere,
        )

    @property
    def _everywhere(self) -> Any:
        """Where outputs go that every process reads."""
        return self.layout and self.layout.everywhere

    @property
    def loss(self) -> Loss:
        return self.problem.loss

    @property
    def rng(self) -> Array:
        """What dropout draws from."""
        return jax.random.fold_in(jax.random.key(self.config["seed"]), 2)

    def make_step(self) -> Step:
        accumulate, clip = self.config["train"]["accumulate"], self.config["optimizer"]["clip"]
        given = self.adapted, self.tx, self.predict, self.loss
        return make_train_step(*given, accumulate, clip, self._state_shardings)

    def start(self, keep: bool = True) -> TrainState:
        """The state before the first step; its arrays are its own.

        Args:
          keep: whether `trainable` is needed again; on a mesh it is given away otherwise.
        """
        if self.layout is None:
            own = jax.tree.map(lambda x: x.copy(), self.trainable)
            return self._start(own, self.frozen)
        donated, shardings = () if keep else (0,), self._state_shardings
        start = jax.jit(self._start, donate_argnums=donated, out_shardings=shardings)
        return start(self.trainable, self.frozen)

    @cached_property
    def _state_shardings(self) -> Any:
        """Where the training state lies, on a mesh."""
        if self.layout is None:
            return None
        return self.layout.like(jax.eval_shape(self._start, self.trainable, self.frozen))

    def _start(self, trainable: Any, frozen: lj.Frozen) -> TrainState:
        return TrainState.create(self.adapted, self.tx, trainable, frozen, self.rng)


def build(
    config: dict[str, Any],
    shared: Materials | None = None,
    mesh: Mesh | None = None,
    texts: Texts | None = None,
) -> Experiment:
    """Everything that a config describes.

    Args:
      shared: the materials of a config with the same data and model, where there are some.
      mesh: of devices to train on together; by default one trains alone.
      texts: what `gather.read` gave for this config, where it has been asked.

    Raises:
      ValueError, FileNotFoundError: one line on what is wrong, before anything trains.
    """
    validate(config)
    if mesh is not None:
        _check_rows(config["train"], mesh)
    from_config.make_targets(config["variant"], config["targets"])  # what is wrong with them, first
    storage = from_config.make_storage(config["quantize"])
    materials = shared or gather(config, mesh, texts)
    task, encoded = materials.task, materials.encoded

    loop = from_config.make_loop(config["train"], len(encoded["train"]), task.metric)
    hyper = from_config.make_hyper(config["optimizer"], loop.steps)
    schedule, also_train = config["optimizer"]["schedule"], config["also_train"]
    tx = from_config.make_optimizer(hyper, schedule, loop.steps, also_train)
    targets = from_config.make_run_targets(config, loop.steps)
    # An adapter that is still to shrink is not what its method makes of the budget.
    settled = max((each.settled for each in targets.values()), default=0)
    loop = dataclasses.replace(loop, best_from=settled)
    key = jax.random.key(config["seed"])
    forward, params = materials.problem.model(key)
    adapted = lj.adapt(forward, None, targets, also_train, storage)
    check_ids(config, materials.boundaries[-1])
    example = np.zeros((config["train"]["batch_size"], materials.boundaries[0]), np.int32)
    adapter_key = jax.random.fold_in(key, 1)
    inputs = params, example, example, example
    layout = None if mesh is None else lay_out(adapted, mesh, materials.problem.rules, *inputs)
    trainable, frozen = (layout or adapted).init(adapter_key, *inputs)
    if config["start_from"]:
        trainable, frozen = _begin(config["start_from"], trainable, frozen)
        if layout is not None:
            where = layout.trainable, layout.frozen
            trainable, frozen = jax.device_put((trainable, frozen), where)
    problem = materials.problem
    if shared is None:  # else weights that are trained, or stored in fewer bits, would stay as well
        problem = dataclasses.replace(problem, model=_taken)
    return Experiment(
        config=config,
        problem=problem,
        task=task,
        tokenizer=materials.tokenizer,
        encoded=encoded,
        examples_per_second=materials.examples_per_second,
        boundaries=materials.boundaries,
        weights_digest=materials.weights_digest,
        adapted=adapted,
        trainable=trainable,
        frozen=frozen,
        hyper=hyper,
        tx=tx,
        loop=loop,
        layout=layout,
    )


def _begin(start_from: str, trainable: Any, frozen: lj.Frozen) -> tuple[Any, lj.Frozen]:
    """What another run's adapter makes of a beginning.

    Raises:
      ValueError: one that does not fit, or of another base where the config does not allow that.
    """
    path, any_base = from_config.make_start(start_from)
    try:
        return lj.start_from(path, trainable, frozen, any_base=any_base)
    except OtherBaseError as error:
        way_out = f"--config.start_from={from_config.ANY_BASE}{path} begins from it all the same"
        raise ValueError(f"{error.problem}; {way_out}") from None


def _check_rows(section: dict[str, Any], mesh: Mesh) -> None:
    """ValueError where a batch cannot be spread over a mesh."""
    multiple = section["accumulate"] * parts(ROWS, mesh)
    if section["batch_size"] % multiple:
        sizes = ", ".join(f"{name} {size}" for name, size in mesh.shape.items())
        raise ValueError(
            f"config.train.batch_size {section['batch_size']} must be a multiple of {multiple}: "
            f"train.accumulate {section['accumulate']} on a mesh of {sizes} (--mesh=1,1,1 is one "
            "device)"
        )


def check_ids(config: dict[str, Any], tokens: int) -> None:
    """ValueError where a batch's ids, masks and types would not fit, let alone what is made of it.

    An array of zeros is there before its memory is, and the system may find that out by killing.
    """
    needed, room = 3 * 4 * config["train"]["batch_size"] * tokens, memory.host_memory()
    if room is not None and needed > room:
        raise ValueError(
            f"{asked(config)} does not fit into memory: its ids take {memory.size(needed)}, and "
            f"{memory.size(room)} are available; {advice(config, math.inf)}"
        )


def _taken(key: Array) -> Any:
    raise ValueError("an experiment has taken the parameters of its model")


def predictor(
    adapted: lj.Adapted, dropout: bool, evaluated: Callable[..., Any] | None = None
) -> Predict:
    """An adapted model as training calls it: with `rng` for dropout of adapters and of the model.

    Args:
      dropout: whether the model has its own.
      evaluated: the forward pass without `rng`, where it is another one.
    """
    scored = dataclasses.replace(adapted, forward=evaluated) if evaluated else adapted

    def predict(trainable: Any, frozen: lj.Frozen, batch: Batch, rng: Array | None) -> Array:
        if rng is None:
            return scored.apply(trainable, frozen, *_inputs(batch))
        keys: dict[str, Array] = {}
        model_key, keys["dropout_key"] = jax.random.split(rng)
        if dropout:
            keys["rng"] = model_key
        return adapted.apply(trainable, frozen, *_inputs(batch), **keys)

    return predict


def _inputs(batch: Batch) -> tuple[Any, Any, Any]:
    return batch["input_ids"], batch["attention_mask"], batch["token_type_ids"]
