"""A whole experiment from a config: data, model, adapters, optimiser, made and checked."""

import dataclasses
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import jax
import numpy as np
import optax
from jax import Array

import lora_jax as lj
from experiments import make
from experiments.validate import validate
from lora_jax import data, metrics, train
from lora_jax.models import pretrained
from lora_jax.partition import nearest

DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True, eq=False)
class Experiment:
    """Everything that a run needs, made and checked before anything trains."""

    config: dict[str, Any]
    task: data.Task
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
    tx: optax.GradientTransformation
    loop: train.Loop

    @property
    def batch_size(self) -> int:
        return self.config["train"]["batch_size"]

    def batches(self, step: int) -> Iterator[dict[str, np.ndarray]]:
        """The training batches from a step on."""
        split = self.encoded["train"]
        seed = self.config["seed"]
        plan = data.BatchPlan(split.lengths, self.batch_size, self.boundaries, seed)
        for batch in plan.start(step):
            yield data.collate(split, batch.indices, batch.padded_length, self.batch_size)

    def predict(
        self, trainable: Any, frozen: lj.Frozen, batch: train.Batch, rng: Array | None
    ) -> Array:
        """The logits of a batch; `rng` turns dropout on, the adapters' and the model's."""
        keys: dict[str, Array] = {}
        if rng is not None:
            model_key, adapter_key = jax.random.split(rng)
            keys["dropout_key"] = adapter_key
            if self.config["model"]["dropout"]:
                keys["rng"] = model_key
        return self.adapted.apply(trainable, frozen, *_inputs(batch), **keys)

    def outputs(self, call: Callable[[train.Batch], Array], encoded: data.Encoded) -> np.ndarray:
        """What a jitted `call` says of every example, (n, outputs), in the order of the data."""
        plan = data.eval_plan(encoded.lengths, self.batch_size, self.boundaries)
        found = []
        for batch in plan:
            arrays = data.collate(encoded, batch.indices, batch.padded_length, self.batch_size)
            found.append(np.asarray(call(arrays)))
        return data.in_order(plan, found)

    def score(self, call: Callable[[train.Batch], Array]) -> dict[str, float]:
        """The metrics of a jitted `call` on the validation part and the task's extra ones."""
        return metrics.score_parts(self.task, self.predictions(call, *self.task.extra))

    def predictions(
        self, call: Callable[[train.Batch], Array], *parts: str
    ) -> dict[str, np.ndarray]:
        """What a jitted `call` says of the validation part and of others."""
        return {name: self.outputs(call, self.encoded[name]) for name in ("validation", *parts)}

    def adapted_call(self, trainable: Any) -> Callable[[train.Batch], Array]:
        """The adapted model without dropout."""
        return lambda batch: self._adapted(trainable, self.frozen, batch)

    def merged_call(self, trainable: Any) -> Callable[[train.Batch], Array]:
        """The base model's own function of the merged parameters."""
        params = self.adapted.merge(trainable, self.frozen)
        forward = jax.jit(self.adapted.forward)
        return lambda batch: forward(params, *_inputs(batch))

    def evaluate(self, trainable: Any) -> dict[str, float]:
        return self.score(self.adapted_call(trainable))

    @cached_property
    def _adapted(self) -> Callable[[Any, lj.Frozen, train.Batch], Array]:
        return jax.jit(
            lambda trainable, frozen, batch: self.predict(trainable, frozen, batch, None)
        )

    def make_step(self) -> train.Step:
        loss = train.cross_entropy if self.task.label_names else train.squared_error
        accumulate, clip = self.config["train"]["accumulate"], self.config["optimizer"]["clip"]
        return train.make_train_step(self.adapted, self.tx, self.predict, loss, accumulate, clip)

    def start(self) -> train.TrainState:
        """The state before the first step; its arrays are its own."""
        rng = jax.random.fold_in(jax.random.key(self.config["seed"]), 2)
        own = jax.tree.map(lambda x: x.copy(), self.trainable)
        return train.TrainState.create(self.adapted, self.tx, own, self.frozen, rng)


def build(config: dict[str, Any]) -> Experiment:
    """Everything that a config describes.

    Raises:
      ValueError, FileNotFoundError: one line on what is wrong, before anything trains.
    """
    validate(config)
    targets = make.make_targets(config["variant"], config["targets"])
    storage = make.make_storage(config["quantize"])
    if (dtype := config["model"]["dtype"]) not in DTYPES:
        raise ValueError(f"unknown model.dtype '{dtype}'; nearest: {nearest(dtype, DTYPES)}")
    task = make.make_task(config["data"])
    folder = pretrained.locate(config["model"]["name"])
    tokenizer = data.load_tokenizer(folder)

    key = jax.random.key(config["seed"])
    model, _ = pretrained.load_classifier(
        folder,
        num_labels=task.num_outputs,
        pool=config["model"]["pool"],
        key=jax.random.fold_in(key, 0),
        dtype=dtype,
        head_dropout=config["model"]["head_dropout"],
    )
    limit = min(config["data"]["max_length"], model.config.max_tokens)
    parts = {"train": task.train, "validation": task.validation, **task.extra, **task.unlabelled}
    tokenised = {n: data.encode_cached(tokenizer, each, limit) for n, each in parts.items()}
    encoded = {name: each.encoded for name, each in tokenised.items()}
    if (largest := max(int(each.ids.max()) for each in encoded.values())) >= (
        rows := model.config.vocab_size
    ):
        raise ValueError(
            f"the tokenizer in {folder} gives id {largest}, the model's vocabulary has {rows}"
        )
    lengths = np.concatenate([each.lengths for each in encoded.values()])
    boundaries = data.bucket_boundaries(lengths, config["data"]["buckets"], limit=limit)

    loop = make.make_loop(config["train"], len(encoded["train"]), task.metric)
    tx = make.make_optimizer(config["optimizer"], loop.steps, config["also_train"])
    if config["variant"]["total_steps"] is None:
        targets = {p: make.for_steps(each, loop.steps) for p, each in targets.items()}
    # An adapter that is still to shrink is not what its method makes of the budget.
    settled = max((each.settled for each in targets.values()), default=0)
    loop = dataclasses.replace(loop, best_from=settled)
    forward, params = lj.from_nnx(model)
    adapted = lj.adapt(forward, None, targets, config["also_train"], storage)
    example = np.zeros((config["train"]["batch_size"], boundaries[0]), np.int32)
    adapter_key = jax.random.fold_in(key, 1)
    trainable, frozen = adapted.init(adapter_key, params, example, example, example)
    if config["start_from"]:
        trainable, frozen = lj.start_from(config["start_from"], trainable, frozen)
    return Experiment(
        config=config,
        task=task,
        tokenizer=tokenizer,
        encoded=encoded,
        examples_per_second=tokenised["train"].examples_per_second,
        boundaries=boundaries,
        weights_digest=pretrained.digest(folder),
        adapted=adapted,
        trainable=trainable,
        frozen=frozen,
        tx=tx,
        loop=loop,
    )


def _inputs(batch: train.Batch) -> tuple[Any, Any, Any]:
    return batch["input_ids"], batch["attention_mask"], batch["token_type_ids"]
