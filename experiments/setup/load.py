"""Load the data and model of a config, for a classifier or a language model."""

from typing import Any

from jax.sharding import Mesh

from experiments.setup import classification, completion, from_config
from experiments.setup.task_and_model import Materials, Texts
from lora_jax import data


def is_text_to_text(section: dict[str, Any]) -> bool:
    """Whether a config's `data` has prompts and completions."""
    return section["source"] in data.TEXT_SOURCES


def read(config: dict[str, Any]) -> Texts:
    """Read the examples of a config as tokens of its model, without reading weights.

    Raises:
      ValueError, FileNotFoundError: one line on what is wrong.
    """
    if is_text_to_text(config["data"]):
        return completion.read(config)
    return classification.read(config)


def gather(
    config: dict[str, Any], mesh: Mesh | None = None, texts: Texts | None = None
) -> Materials:
    """Load the materials of a config, with weights on the devices of the mesh, if there is one.

    Args:
      texts: the result of `read` for this config, if there is one.

    Raises:
      ValueError, FileNotFoundError: one line on what is wrong.
    """
    found: Any = read(config) if texts is None else texts
    if is_text_to_text(config["data"]):
        return completion.gather(config, found, mesh)
    return classification.gather(config, found, mesh)


def gather_abstract(config: dict[str, Any]) -> Materials:
    """Like `gather`, but with shapes in place of the model's weights, which are not read."""
    if is_text_to_text(config["data"]):
        return completion.gather_abstract(config)
    return classification.gather_abstract(config)


def load_task(section: dict[str, Any]) -> data.Task | data.TextTask:
    """The task of a config's `data`."""
    if is_text_to_text(section):
        return from_config.make_text_task(section)
    return from_config.make_task(section)


def outline(section: dict[str, Any], model: dict[str, Any], outputs: int) -> tuple[Any, Any]:
    """The forward pass of a config's `model` and the shapes of its parameters.

    Weights are not read, but their shapes are checked.

    Args:
      section: the config's `data`.
      model: the config's `model`.
      outputs: the number of outputs of a classifier.
    """
    if is_text_to_text(section):
        return completion.outline(model)
    return classification.outline(model, outputs)
