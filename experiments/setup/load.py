"""Load the data and the model of a config: a classifier, a language model, or one of your own."""

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any

from jax.sharding import Mesh

from configs.settings import OwnConfig, RunConfig, TextConfig
from experiments.setup import classification, completion, own_model
from experiments.setup.task_and_model import TaskAndModel
from lora_jax import data
from lora_jax.data.tokenised_task import Completions, TokenisedTask
from lora_jax.sharding.mesh import AXES, ROWS, part_count


def read_texts(config: RunConfig, task: data.Task | data.TextTask | None = None) -> TokenisedTask:
    """Read the examples of a config as tokens of its model, without reading weights.

    Args:
      task: the result of `from_config.make_any_task` for this config, if there is one.

    Raises:
      ValueError, FileNotFoundError: one line on what is wrong.
    """
    return _kind(config).read_texts(config, task)


def with_room(texts: TokenisedTask, mine: RunConfig, configs: Sequence[RunConfig]) -> TokenisedTask:
    """The texts of one trial (`mine`), for a model that all of these trials share.

    Trials may draw other examples. Their model takes completions as long as the longest of all.
    """
    if not isinstance(texts, Completions):
        return texts
    sections, longest = [mine.data], texts.completion
    for config in configs:
        if config.data in sections:
            continue
        sections.append(config.data)
        with contextlib.suppress(ValueError, OSError):  # its trial says so itself
            other = read_texts(config)
            longest = max(longest, other.completion if isinstance(other, Completions) else 0)
    return dataclasses.replace(texts, completion=longest)


def load(
    config: RunConfig, mesh: Mesh | None = None, texts: TokenisedTask | None = None
) -> TaskAndModel:
    """Load the task and the model of a config, with weights on the devices of a mesh, if given.

    Args:
      texts: the result of `read_texts` for this config, if there is one.

    Raises:
      ValueError, FileNotFoundError: one line on what is wrong.
    """
    section = config.train
    rows = 1 if mesh is None else part_count(ROWS, mesh)
    multiple = section.accumulate * rows
    if mesh is not None and section.batch_size % multiple:
        shared = mesh.size // rows  # by so many devices: `tensor` has the same rows
        over = f"{rows} groups of {shared} devices" if shared > 1 else f"{rows} devices"
        sizes = " x ".join(f"{name} {mesh.shape[name]}" for name in (AXES if shared > 1 else ROWS))
        parts = f" and {section.accumulate} parts (train.accumulate)"
        raise ValueError(
            f"config.train.batch_size {section.batch_size} does not divide over {over} "
            f"({sizes}){parts if section.accumulate > 1 else ''}; "
            f"use a multiple of {multiple}, or --mesh=1,1,1 for one device"
        )
    return _kind(config).load(config, texts or read_texts(config), mesh)


def load_abstract(config: RunConfig) -> TaskAndModel:
    """Like `load`, but with shapes in place of the model's weights, which are not read."""
    return _kind(config).load_abstract(config)


def abstract_model(config: RunConfig, outputs: int) -> tuple[Any, tuple[Any, ...]]:
    """The forward pass of a config's model, and its arguments: shapes of parameters, and inputs.

    Weights are not read, but their shapes are checked, and the tokenizer is loaded.

    Args:
      outputs: the number of outputs of a classifier.

    Raises:
      ValueError, FileNotFoundError: no such model, or one of its files cannot work.
    """
    return _kind(config).abstract_model(config, outputs)


def _kind(config: RunConfig) -> Any:
    """The module with these functions for one kind of task."""
    if isinstance(config, OwnConfig):
        return own_model
    return completion if isinstance(config, TextConfig) else classification
