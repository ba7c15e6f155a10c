"""Check all trials before any of them starts, without loading weights."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

import lora_jax as lj
from experiments.setup import from_config
from experiments.setup.load import load_task, outline
from experiments.setup.task_and_model import check_dtype
from experiments.setup.validate import validate
from experiments.setup.validate_texts import check_written
from experiments.sweeps.trials import Trial, refuse
from lora_jax import data
from lora_jax.files import tree_file
from lora_jax.files.canonical_json import canonical


@dataclasses.dataclass(frozen=True)
class Outlook:
    """The training steps of a trial, and the name of its main metric."""

    steps: int
    metric: str


def check(trials: Sequence[Trial]) -> list[Outlook]:
    """Check trials, and return the outlook of each.

    Trials with the same data or shapes share the reading and tracing.

    Raises:
      ValueError: some trials cannot work; the message has a line for each kind of mistake, with the
        trials that have it.
    """
    once = _Once()
    outlooks, wrong = [], []
    for trial in trials:
        try:
            outlooks.append(_check(trial.config, once))
        except (ValueError, OSError, ImportError) as error:
            wrong.append((trial.name, str(error)))
    refuse(wrong, len(trials))
    return outlooks


class _Once:
    """A cache of the results and errors of function calls, by function name and arguments."""

    def __init__(self) -> None:
        self._found: dict[str, Any] = {}

    def __call__(self, function: Callable[..., Any], *values: Any) -> Any:
        key = f"{function.__name__} {canonical(values)}"
        if key not in self._found:
            try:
                self._found[key] = function(*values)
            except (ValueError, OSError, ImportError) as error:
                self._found[key] = error
        if isinstance(found := self._found[key], Exception):
            raise found
        return found


def _check(config: dict[str, Any], once: _Once) -> Outlook:
    validate(config)
    check_dtype(config["model"])
    from_config.make_targets(config["variant"], config["targets"])
    from_config.make_storage(config["quantize"])
    task = once(load_task, config["data"])
    loop = from_config.make_loop(config["train"], len(task.train), task.metric)
    hyper = from_config.make_hyper(config["optimizer"], loop.steps)
    schedule = config["optimizer"]["schedule"]
    from_config.make_optimizer(hyper, schedule, loop.steps, config["also_train"])
    adapters = {name: config[name] for name in ("variant", "targets", "also_train", "quantize")}
    where = {"source": config["data"]["source"]}
    outputs = 0  # for a language model, whose only outputs are its vocabulary
    if isinstance(task, data.Task):
        outputs = task.num_outputs
    else:
        check_written(config["generate"], task)
    once(_trace, where, config["model"], adapters, outputs, loop.steps)
    if config["start_from"]:
        once(tree_file.load_tree, from_config.make_start(config["start_from"])[0])
    return Outlook(loop.steps, loop.metric)


def _trace(
    section: dict[str, Any],
    model: dict[str, Any],
    adapters: dict[str, Any],
    outputs: int,
    steps: int,
) -> None:
    """Adapt a model from shapes alone; patterns without a match and wrong ranks raise."""
    forward, params = outline(section, model, outputs)
    targets = from_config.make_run_targets(adapters, steps)
    storage = from_config.make_storage(adapters["quantize"])
    adapted = lj.adapt(forward, None, targets, adapters["also_train"], storage)
    example = np.zeros((2, 2), np.int32)
    jax.eval_shape(adapted.init, jax.random.key(0), params, example, example, example)
