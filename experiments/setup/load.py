"""A config's data and model, be it a classifier's or a language model's."""

from typing import Any

from jax.sharding import Mesh

from experiments.setup import classification, completion, from_config
from experiments.setup.task_and_model import Materials, Texts
from lora_jax import data


def is_text_to_text(section: dict[str, Any]) -> bool:
    """Whether a config's `data` is of prompts and completions."""
    return section["source"] in data.TEXT_SOURCES


def read(config: dict[str, Any]) -> Texts:
    """The examples that a config names, as its model's tokens; no weight is read.

    Raises:
      ValueError, FileNotFoundError: one line on what is wrong.
    """
    if is_text_to_text(config["data"]):
        return completion.read(config)
    return classification.read(config)


def gather(
    config: dict[str, Any], mesh: Mesh | None = None, texts: Texts | None = None
) -> Materials:
    """The materials that a config names, weights on the devices of a mesh where there is one.

    Args:
      texts: what `read` gave for this config, where it has been asked.

    Raises:
      ValueError, FileNotFoundError: one line on what is wrong.
    """
    found: Any = read(config) if texts is None else texts
    if is_text_to_text(config["data"]):
        return completion.gather(config, found, mesh)
    return classification.gather(config, found, mesh)


def gather_abstract(config: dict[str, Any]) -> Materials:
    """The same with shapes in the place of the model's weights, which are not read."""
    if is_text_to_text(config["data"]):
        return completion.gather_abstract(config)
    return classification.gather_abstract(config)


def load_task(section: dict[str, Any]) -> data.Task | data.TextTask:
    """The task of a config's `data`."""
    if is_text_to_text(section):
        return from_config.make_text_task(section)
    return from_config.make_task(section)


def outline(section: dict[str, Any], model: dict[str, Any], outputs: int) -> tuple[Any, Any]:
    """The forward pass of a config's `model`, and the shapes of its parameters.

    No weight is read, but that they are there in their shapes is checked.

    Args:
      section: of `data`.
      outputs: of a classifier.
    """
    if is_text_to_text(section):
        return completion.outline(model)
    return classification.outline(model, outputs)
