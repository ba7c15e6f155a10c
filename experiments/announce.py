"""What a run will hold in memory, said in a line before it takes any."""

import dataclasses
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

import lora_jax as lj
from experiments import make
from experiments.outline import STEPS, model_of
from experiments.validate import validate
from lora_jax import memory, train


@dataclasses.dataclass(frozen=True)
class Held:
    """Bytes of a run's arrays, but for gradients and what a batch takes while it is worked on."""

    weights: int
    """As they are loaded, in the type of the config's `model`; and those in fewer bits beside."""
    trained: int
    """Of adapters twice, as training steps on a copy, with their constants; of weights that train
    in full once, as the copy takes the place of what was loaded."""
    optimizer: int
    merged: int = 0
    """The weights with the adapters in them, by which a language model writes in the end."""

    @property
    def total(self) -> int:
        return sum(dataclasses.astuple(self))


def held(config: dict[str, Any]) -> Held:
    """What a config's run holds, from shapes alone.

    Raises:
      ValueError, FileNotFoundError: one line on a config that cannot work.
    """
    validate(config)
    forward, params, *_ = model_of(config, None)
    targets = make.make_run_targets(config, STEPS)
    storage = make.make_storage(config["quantize"])
    adapted = lj.adapt(forward, None, targets, config["also_train"], storage)
    hyper = make.make_hyper({**config["optimizer"], "warmup_steps": 0}, STEPS)
    tx = make.make_optimizer(hyper, config["optimizer"]["schedule"], STEPS, config["also_train"])
    example, key = np.zeros((2, 2), np.int32), jax.random.key(0)
    trainable, frozen = jax.eval_shape(adapted.init, key, params, example, example, example)
    state = jax.eval_shape(
        lambda new, old: train.TrainState.create(adapted, tx, new, old, key), trainable, frozen
    )
    quantised = [each for each in frozen.base.values() if not hasattr(each, "dtype")]
    own = trainable, trainable["adapters"], frozen.constants, frozen.shared
    section = config.get("generate") or {"samples": 0, "scored": 0}
    return Held(
        weights=memory.tree_bytes((params, quantised)),
        trained=memory.tree_bytes(own),
        optimizer=memory.tree_bytes((state.opt_state, state.variant_state)),
        merged=memory.tree_bytes(params) if section["samples"] or section["scored"] else 0,
    )


def line(config: dict[str, Any], mesh: Mesh | None = None, trials: int = 1) -> str:
    """The line of a config's run.

    Args:
      mesh: whose devices share the arrays; whether each has room is seen when they are loaded.
      trials: how many like it train together, on one copy of the weights.

    Raises:
      ValueError, FileNotFoundError: as `held`; or it is more than the memory that there is.
    """
    one, room = held(config), memory.available()
    found = Held(one.weights, trials * one.trained, trials * one.optimizer, one.merged)
    said = (
        f"{memory.size(found.weights)} of weights, {memory.size(found.trained)} for what is trained"
    )
    said += f", {memory.size(found.optimizer)} of the optimiser"
    said += f", {memory.size(found.merged)} merged to write texts" if found.merged else ""
    said += f", {trials} trials" if trials > 1 else ""
    more = "gradients and batches come on top"
    if mesh is not None and mesh.size > 1:
        return f"memory: {said}, over {mesh.size} devices; {more}"
    if room is None:
        return f"memory: {said}; {more}"
    if found.total > room:
        raise ValueError(
            f"config.model '{config['model']['name']}' takes {said}: {memory.size(found.total)}, "
            f"and {memory.size(room)} of memory are available; take a smaller model, model.dtype "
            "bfloat16, a method that trains less, or "
            + ("more devices (--mesh)" if trials == 1 else "fewer trials in a job (--per_job)")
        )
    return f"memory: {said}; {more}; {memory.size(room)} are available"
