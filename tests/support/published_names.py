"""A model's parameters under the names of transformers, in its layout."""

from lora_jax.models import families
from lora_jax.models.parts.family import tensors_of
from lora_jax.models.published.export import tensor
from lora_jax.partition import parts_of


def torch_names(path, config):
    """The tensors of one parameter: one for each layer if it is stacked."""
    return [place.name for place in families.places(path, config)]


def to_torch_names(params, config):
    """The tensors, by name, of a model's parameters (an nnx.State or nested dicts)."""
    parts = parts_of(params)
    places = {path: families.places(path, config) for path in parts.shapes}
    return {name: tensor(parts, pieces) for name, pieces in tensors_of(places).items()}
