"""Load a model of your own, which a function gives, and its examples: images or other arrays.

    def my_model(key, example, outputs):
        params = ...                                   # drawn from key, or read from a file
        return forward, params, read

`example` is a batch of one example, of zeros: `{"images": (1, 28, 28)}`. `read` takes such a batch
to the inputs of the model, in JAX; `forward(params, inputs)`, or of several inputs if `read`
returns a tuple, gives an array (B, outputs). A `forward` with a parameter `rng` gets a key for its
dropout in training.
"""

import hashlib
import importlib
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, PartitionSpec

from configs.settings import OwnConfig, OwnModelSettings, RunConfig
from experiments.setup import from_config
from experiments.setup.task_and_model import TaskAndModel
from lora_jax import data
from lora_jax.data.tokenised_task import LabelledArrays
from lora_jax.files.arrays import array_digest, is_key
from lora_jax.files.safetensors_bytes import SafetensorsBytes
from lora_jax.messages import first_line
from lora_jax.models.published.weight_files import SINGLE
from lora_jax.partition import flatten, select_paths
from lora_jax.sharding.mesh import Rules

WHOLE: Rules = ((".*", PartitionSpec()),)
"""On a mesh, every device has all weights."""


class OwnModel(NamedTuple):
    """What the user's function returns."""

    forward: Callable[..., Any]
    params: Any
    read: Callable[[Mapping[str, Any]], Any]


def read_texts(config: OwnConfig, task: data.Task | None = None) -> LabelledArrays:
    """Read the examples of a config (see `load.read_texts`)."""
    return LabelledArrays.of(task or from_config.make_array_task(config.data))


def load(config: OwnConfig, texts: LabelledArrays, mesh: Mesh | None) -> TaskAndModel:
    """Load a config's task and model (see `load.load`)."""
    example, outputs = texts.example(1), texts.task.num_outputs
    made = call(config.model, jax.random.key(0), example, outputs)
    leaves, tree = flatten(made.params)
    fresh = tuple(select_paths(config.model.fresh, leaves))
    if config.model.weights:
        leaves = _with_weights(config.model, leaves, fresh)
    leaves = {path: _of_dtype(leaf, config.model.dtype) for path, leaf in leaves.items()}
    forward = forward_of(made)
    _check_outputs(config.model.name, forward, tree.unflatten(leaves.values()), texts)

    def model(key: Array) -> tuple[Callable[..., Any], Any]:
        if not fresh:
            return forward, tree.unflatten(leaves.values())
        drawn, _ = flatten(call(config.model, key, example, outputs).params)
        own = {path: _of_dtype(drawn[path], config.model.dtype) for path in fresh}
        return forward, tree.unflatten((leaves | own).values())

    kept = {path: leaf for path, leaf in leaves.items() if path not in fresh}
    return TaskAndModel(texts, model, WHOLE, _digest(kept), fresh=fresh)


def load_abstract(config: OwnConfig) -> TaskAndModel:
    """As `load`: a function of the user's may not work on shapes alone."""
    return load(config, read_texts(config), None)


def abstract_model(config: OwnConfig, outputs: int) -> tuple[Any, tuple[Any, ...]]:
    """The forward pass and its arguments (see `load.abstract_model`)."""
    loaded = load_abstract(config)
    forward, params = loaded.model(jax.random.key(0))
    return forward, (params, loaded.texts.example(2))


def require_published(config: RunConfig, what: str) -> None:
    """Raise a ValueError if a config's model is the user's own, and so has neither texts nor names.

    Args:
      what: what does not work with such a model.
    """
    if isinstance(config, OwnConfig):
        raise ValueError(
            f"{what} is for models that read texts, and config.model.name {config.model.name} is "
            "your own function"
        )


def call(
    model: OwnModelSettings, key: Array, example: Mapping[str, np.ndarray], outputs: int
) -> OwnModel:
    """Call the user's function.

    Raises:
      ValueError: it cannot be imported, takes other arguments, or returns something else.
    """
    named, function = f"config.model.name {model.name}", _imported(model.name)
    arguments = (key, example, outputs), dict(model.arguments)
    try:
        inspect.signature(function).bind(*arguments[0], **arguments[1])
    except TypeError as error:
        more = "".join(f", {name}" for name in model.arguments)
        said = f"{named} must take (key, example, outputs{more}): {error}"
        raise ValueError(said) from None
    found = function(*arguments[0], **arguments[1])
    if not isinstance(found, tuple) or [callable(each) for each in found] != [True, False, True]:
        kinds = f"({', '.join(type(each).__name__ for each in found)})"
        kinds = kinds if isinstance(found, tuple) else type(found).__name__
        raise ValueError(f"{named} must return (forward, params, read), not {kinds}")
    return OwnModel(*found)


def forward_of(made: OwnModel) -> Callable[..., Any]:
    """The forward pass of a batch's arrays, which are read first."""
    takes_key = "rng" in inspect.signature(made.forward).parameters

    def forward(params: Any, arrays: Mapping[str, Any], rng: Array | None = None) -> Any:
        inputs = made.read(arrays)
        keys = {"rng": rng} if takes_key and rng is not None else {}
        return made.forward(params, *(inputs if isinstance(inputs, tuple) else (inputs,)), **keys)

    return forward


def _imported(name: str) -> Callable[..., Any]:
    module_name, _, attribute = name.rpartition(".")
    if not module_name or not all(part.isidentifier() for part in name.split(".")):
        raise ValueError(
            f"config.model.name '{name}' is not the dotted name of a function, such as "
            "my_module.my_model"
        )
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the file exists, and something that it imports does not
        raise ValueError(
            f"config.model.name {name}: there is no module '{error.name}'; is its folder in "
            "PYTHONPATH?"
        ) from None
    if not callable(function := getattr(module, attribute, None)):
        raise ValueError(f"config.model.name {name}: '{module_name}' has no function '{attribute}'")
    return function


def _of_dtype(leaf: Any, dtype: str) -> Any:
    array = jnp.asarray(leaf)
    return array.astype(dtype) if jnp.issubdtype(array.dtype, jnp.floating) else array


def _with_weights(
    model: OwnModelSettings, leaves: Mapping[str, Any], fresh: tuple[str, ...]
) -> dict[str, Any]:
    """The parameters of the function; those that are not `fresh` and no keys, from a file."""
    path = Path(model.weights)
    path = path / SINGLE if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"config.model.weights: {path}: no such file")
    file, found = SafetensorsBytes(path), dict(leaves)
    for name in [each for each in leaves if each not in fresh and not is_key(leaves[each])]:
        there = file.shape(name) if name in file.names() else None
        if there != (here := np.shape(leaves[name])):
            said = "lacks it" if there is None else f"has the shape {there} there"
            raise ValueError(
                f"config.model.weights {path}: '{name}', {here}, {said}; "
                f"--config.model.fresh=\"('{name}',)\" draws it instead"
            )
        found[name] = file.read(name)
    return found


def _check_outputs(
    name: str, forward: Callable[..., Any], params: Any, texts: LabelledArrays
) -> None:
    """Raise a ValueError if a model does not give its outputs for a batch of two examples."""
    batch, wanted = texts.example(2), (2, texts.task.num_outputs)
    shapes = ", ".join(f"{key} {x.shape} {x.dtype}" for key, x in batch.items())
    try:
        found = jax.eval_shape(forward, params, batch)
    except Exception as error:  # any error of the user's code
        raise ValueError(
            f"config.model.name {name} fails on a batch of {shapes}: {first_line(error)}"
        ) from error
    if getattr(found, "shape", None) != wanted:
        given = getattr(found, "shape", type(found).__name__)
        raise ValueError(
            f"config.model.name {name} gives {given} for a batch of {shapes}, expected {wanted}"
        )


def _digest(leaves: Mapping[str, Any]) -> str:
    """The digest of the parameters that are the same for all seeds."""
    total = hashlib.sha256()
    for path, leaf in leaves.items():
        total.update(f"{path} {leaf.shape} {leaf.dtype} {array_digest(leaf)}\n".encode())
    return total.hexdigest()
