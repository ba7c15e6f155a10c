"""From a config to objects: the only place where a name in a config becomes a thing."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import jax
import numpy as np
import optax
from jax import Array

import lora_jax as lj
import variants
from experiments.validate import validate
from lora_jax import data, metrics, optim, train
from lora_jax.models import pretrained
from lora_jax.partition import nearest

DTYPES = ("float32", "bfloat16")
STORAGES = {"nf4": lj.NF4(), "nf4_double": lj.NF4(double_quant=True), "int8": lj.Int8()}
TASKS = {"rotten_tomatoes": data.rotten_tomatoes}


@dataclasses.dataclass(frozen=True, eq=False)
class Experiment:
    """Everything that a run needs, made and checked before anything trains."""

    config: dict[str, Any]
    task: data.Task
    tokenizer: data.Tokenizer
    encoded: dict[str, data.Encoded]
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
        """The metrics of a jitted `call` on the validation part."""
        split = self.encoded["validation"]
        score = metrics.classification if self.task.label_names else metrics.regression
        return score(self.outputs(call, split), split.labels)

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
        accumulate = self.config["train"]["accumulate"]
        return train.make_train_step(self.adapted, self.tx, self.predict, loss, accumulate)

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
    targets = make_targets(config["variant"], config["targets"])
    storage = make_storage(config["quantize"])
    if (dtype := config["model"]["dtype"]) not in DTYPES:
        raise ValueError(f"unknown model.dtype '{dtype}'; nearest: {nearest(dtype, DTYPES)}")
    task = make_task(config["data"])
    folder = pretrained.locate(config["model"]["name"])
    tokenizer = data.load_tokenizer(folder)

    key = jax.random.key(config["seed"])
    model, _ = pretrained.load_classifier(
        folder,
        num_labels=task.num_outputs,
        pool=config["model"]["pool"],
        key=jax.random.fold_in(key, 0),
        dtype=dtype,
    )
    limit = min(config["data"]["max_length"], model.config.max_tokens)
    encoded = {
        "train": data.encode(tokenizer, task.train, limit),
        "validation": data.encode(tokenizer, task.validation, limit),
    }
    if (largest := max(int(each.ids.max()) for each in encoded.values())) >= (
        rows := model.config.vocab_size
    ):
        raise ValueError(
            f"the tokenizer in {folder} gives id {largest}, the model's vocabulary has {rows}"
        )
    lengths = np.concatenate([each.lengths for each in encoded.values()])
    boundaries = data.bucket_boundaries(lengths, config["data"]["buckets"], limit=limit)

    loop = make_loop(config["train"], len(encoded["train"]), bool(task.label_names))
    if config["variant"]["total_steps"] is None:
        targets = {pattern: for_steps(each, loop.steps) for pattern, each in targets.items()}
    forward, params = lj.from_nnx(model)
    adapted = lj.adapt(forward, None, targets, config["also_train"], storage)
    example = np.zeros((config["train"]["batch_size"], boundaries[0]), np.int32)
    adapter_key = jax.random.fold_in(key, 1)
    trainable, frozen = adapted.init(adapter_key, params, example, example, example)
    return Experiment(
        config=config,
        task=task,
        tokenizer=tokenizer,
        encoded=encoded,
        boundaries=boundaries,
        weights_digest=pretrained.digest(folder),
        adapted=adapted,
        trainable=trainable,
        frozen=frozen,
        tx=make_optimizer(config["optimizer"], loop.steps),
        loop=loop,
    )


def _inputs(batch: train.Batch) -> tuple[Any, Any, Any]:
    return batch["input_ids"], batch["attention_mask"], batch["token_type_ids"]


def make_variant(section: dict[str, Any]) -> lj.Variant:
    """The variant that a config names, with the settings that it sets."""
    settings = {k: v for k, v in section.items() if k != "name" and v is not None}
    return variants.make(section["name"], **settings)


def make_targets(section: dict[str, Any], targets: Sequence[Any]) -> dict[str, lj.Variant]:
    """The variant of each pattern: the config's, or with settings of its own."""
    made = {}
    for each in targets:
        pattern, own = (each, {}) if isinstance(each, str) else each
        made[pattern] = make_variant({**section, **own})
    return made


def for_steps(variant: lj.Variant, steps: int) -> lj.Variant:
    """The variant, told how long training takes, where it asks."""
    if hasattr(variant, "total_steps"):
        return dataclasses.replace(variant, total_steps=steps)  # type: ignore[call-arg]
    return variant


def make_storage(section: dict[str, Any]) -> dict[str, Any]:
    """How the frozen weights that a config names are stored; nothing where densely."""
    name = section["storage"]
    if name == "none":
        return {}
    if name not in STORAGES:
        known = ["none", *STORAGES]
        raise ValueError(f"unknown quantize.storage '{name}'; nearest: {nearest(name, known)}")
    return dict.fromkeys(section["patterns"], STORAGES[name])


def make_task(section: dict[str, Any]) -> data.Task:
    """The task that a config names, cut to `train` examples where that is not 0."""
    name = section["name"]
    if name not in TASKS:
        raise ValueError(f"unknown data '{name}'; nearest: {nearest(name, TASKS)}")
    task = TASKS[name](validation=section["validation"])
    if section["train"]:
        _, few = data.stratified_split(task.train, section["train"], seed=0)
        task = dataclasses.replace(task, train=few)
    return task


def make_loop(section: dict[str, Any], examples: int, classes: bool) -> train.Loop:
    return train.Loop(
        steps=max(1, round(-(-examples // section["batch_size"]) * section["epochs"])),
        log_every=section["log_every"],
        evaluate_every=section["evaluate_every"],
        checkpoint_every=section["checkpoint_every"],
        metric="accuracy" if classes else "pearson",
    )


def make_optimizer(section: dict[str, Any], steps: int) -> optax.GradientTransformation:
    rate = optim.schedule(
        section["schedule"], section["learning_rate"], steps, section["warmup_ratio"]
    )
    names = ("weight_decay", "clip", "b1", "b2", "eps")
    return optim.adamw(rate, **{name: section[name] for name in names})
