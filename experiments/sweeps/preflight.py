"""Check all trials before any of them starts, without weights."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax

from configs.settings import RunConfig, TextConfig
from experiments.setup import from_config
from experiments.setup.load import abstract_model, read_texts
from experiments.setup.validate import check_written
from experiments.sweeps.trials import Trial, refuse
from lora_jax import data
from lora_jax.files import tree_file
from lora_jax.training.loop_settings import Loop
from lora_jax.transform.adapt import init_shapes


def check_trials(trials: Sequence[Trial]) -> list[Loop]:
    """Check trials, and return the training loop of each.

    Trials with the same data or shapes share the reading and tracing.

    Raises:
      ValueError: some trials cannot work; the message has a line for each kind of mistake, with the
        trials that have it.
    """
    once = Once()
    loops, wrong = [], []
    for trial in trials:
        try:
            loops.append(check(trial.config, once))
        except (ValueError, OSError, ImportError) as error:
            wrong.append((trial.name, str(error)))
    refuse(wrong, len(trials))
    return loops


class Once:
    """A cache of the results and errors of function calls, by what the functions read."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], Any] = {}

    def __call__(self, read: Any, function: Callable[..., Any], *values: Any) -> Any:
        key = function.__name__, repr(read)
        if key not in self._found:
            try:
                self._found[key] = function(*values)
            except (ValueError, OSError, ImportError) as error:
                self._found[key] = error
        if isinstance(found := self._found[key], Exception):
            raise found
        return found


def loop_of(config: RunConfig, once: Once) -> Loop:
    """The training loop of a run, of which nothing else is checked."""
    task = once(config.data, from_config.make_any_task, config)
    return from_config.make_loop(config.train, len(task.train), task.metric)


def check(config: RunConfig, once: Once) -> Loop:
    """Check a run, and return its training loop.

    Raises:
      ValueError, OSError, ImportError: it cannot work.
    """
    task, loop = once(config.data, from_config.make_any_task, config), loop_of(config, once)
    from_config.make_hyper(config, loop.steps)
    outputs = 0  # for a language model, whose only outputs are its vocabulary
    if isinstance(task, data.Task):
        outputs = task.num_outputs
    elif isinstance(config, TextConfig):
        check_written(config.generate, task)
    adapters = config.model, config.variant, config.targets, config.also_train, config.quantize
    once((*adapters, outputs, loop.steps), _trace, config, outputs, loop.steps)
    if config.start_from:
        path, _ = from_config.make_start(config.start_from)
        once(path, tree_file.load_tree, path)
    new_tokens = config.generate.max_new_tokens if isinstance(config, TextConfig) else 0
    # The texts of one draw stand for those of others. Runs find the token ids in the cache.
    any_draw = dataclasses.replace(config.data, draw=0)
    once((any_draw, config.model.name, new_tokens), read_texts, config, task)
    return loop


def _trace(config: RunConfig, outputs: int, steps: int) -> None:
    """Adapt a model from shapes alone; patterns without a match and wrong ranks raise."""
    forward, arguments = abstract_model(config, outputs)
    adapted = from_config.adapt(config, forward, from_config.make_targets(config, steps))
    init_shapes(adapted, jax.random.key(0), *arguments)
