"""Published encoders: find them, load them into our classifiers, and export classifiers.

All three steps:

    folder = locate("minilm")                               # or a folder, or "org/name" on the Hub
    model, fresh = load_classifier(folder, num_labels=2, pool="mean", key=jax.random.key(0))
    export_classifier(nnx.state(model), model.config, "out")
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import Sharding
from jax.typing import DTypeLike

from lora_jax.models.families.encoders import FAMILIES, Classifier, Config, family_of
from lora_jax.models.parts.modules import Pool
from lora_jax.models.published.placed import Shardings, check_shardings, parameter, placed
from lora_jax.models.published.tensor_files import SHARD_BYTES, replaced, write_weights
from lora_jax.models.published.torch_names import (
    filled,
    prefix,
    torch_names,
    torch_places,
    torch_shape,
)
from lora_jax.models.published.weight_files import Weights, find_gguf, read_config, read_json
from lora_jax.models.published.written_config import write_config
from lora_jax.partition import flatten, parts_of
from lora_jax.sharding.memory import check_fits
from lora_jax.suggest import nearest


class Loaded(NamedTuple):
    """A model, and the paths of its fresh parameters: those that its checkpoint does not hold."""

    model: Classifier
    fresh: tuple[str, ...]

    def redrawn(self, key: Array) -> Classifier:
        """The model with fresh parameters drawn from another key, as `load_classifier` does."""

        def value(path: str, leaf: Any) -> Any:
            if path not in self.fresh:
                return leaf
            drawn = _draw(key, self.fresh, path, leaf, self.model.config.initializer_range)
            return _spread(drawn, leaf.sharding) if len(leaf.sharding.device_set) > 1 else drawn

        return filled(self.model, value)


def read_encoder_config(folder: str | Path) -> Config:
    """The checked config.json of a folder."""
    if (gguf := find_gguf(folder)) is not None:
        raise ValueError(
            f"{gguf}: GGUF files hold decoders; a classifier needs an encoder's folder"
        )
    return read_config(folder, family_of)


def load_classifier(
    folder: str | Path,
    *,
    num_labels: int,
    pool: Pool,
    key: Array,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike = jnp.float32,
    remat: bool = False,
    unroll: int | None = None,
    head_dropout: float | None = None,
    shardings: Shardings | None = None,
) -> Loaded:
    """Load a classifier with the encoder of a published checkpoint.

    The head (pooler and classifier) comes from the checkpoint if it has one of this shape for this
    `pool`; otherwise it is initialised from `key` and listed in `fresh`. `head_dropout` replaces
    the config's rate before the classifier. With `shardings`, one for each parameter by its path,
    fresh ones too, a process reads the parts that its devices hold, one at a time. Other arguments
    are those of the family's classifier.

    Everything is checked before weights are read or put on a device. Only non-finite values are
    found while tensors are read.

    Raises:
        FileNotFoundError: a missing file.
        ValueError: another architecture; a corrupt file, a missing tensor, a wrong shape (the
            message names the file and the tensor); `shardings` that do not fit; more weights than
            the available memory holds (`lora_jax.sharding.memory`); or a tensor with a non-finite
            value.
    """
    config = read_encoder_config(folder)
    if head_dropout is not None:
        config = config.with_head_dropout(head_dropout)
    weights = Weights(folder, prefix(config))

    classifier: Any = FAMILIES[config.model_type].classifier
    abstract = nnx.eval_shape(
        lambda: classifier(
            config,
            num_labels,
            pool,
            dtype=dtype,
            param_dtype=param_dtype,
            remat=remat,
            unroll=unroll,
            rngs=nnx.Rngs(0),
        )
    )
    leaves, _ = flatten(nnx.state(abstract))
    shapes = {path: leaf.shape for path, leaf in leaves.items()}

    if shardings is not None:
        check_shardings(shardings, shapes)

    # A classifier trained on the first token does not fit a mean, nor the reverse.
    same_pool = read_json(Path(folder) / "config.json").get("pool", "cls") == pool

    def stored(module: str) -> bool:
        paths = (f"{module}/kernel", f"{module}/bias")
        return (same_pool or module != "classifier") and all(
            _fits(weights, path, shapes[path], config) for path in paths
        )

    heads = ["classifier"] if pool == "mean" else ["pooler", "classifier"]
    fresh = [f"{head}/{leaf}" for head in heads if not stored(head) for leaf in ("kernel", "bias")]
    for path in (each for each in shapes if each not in fresh):
        for name in torch_names(path, config):
            weights.check(name, torch_shape(path, shapes[path]))
    _check_no_others(weights, [path for path in shapes if path not in fresh], config)

    check_fits(str(folder), leaves, shardings)

    def value(path: str, leaf: Any) -> Array:
        sharding = None if shardings is None else shardings[path]
        if path in fresh:
            drawn = _draw(key, fresh, path, leaf, config.initializer_range)
            return drawn if sharding is None else _spread(drawn, sharding)
        return parameter(weights, torch_places(path, config), path, leaf, sharding)

    return Loaded(filled(abstract, value), tuple(fresh))


def _check_no_others(weights: Weights, paths: Sequence[str], config: Config) -> None:
    """Raise a ValueError for a tensor in a layer that the model would not use.

    Without it, the model would compute wrongly: it belongs to a layer beyond the number in
    config.json, or to an adapter that is not merged.
    """
    known = [name for path in paths for name in torch_names(path, config)]
    bare = {name.removeprefix(prefix(config)) for name in known}
    for name in weights.names():
        own = name.removeprefix(prefix(config))
        if own.startswith("encoder.layer.") and own not in bare:
            raise ValueError(
                f"{weights.folder}: a {config.model_type} with the {config.num_hidden_layers} "
                f"layers of config.json does not use tensor {name!r}; nearest that it uses: "
                f"{nearest(name, known)}"
            )


def _spread(array: Array, sharding: Sharding) -> Array:
    """Place a small array, which every process has whole, by a sharding."""
    whole = np.asarray(array)
    return placed(whole.shape, whole.dtype, sharding, lambda index: whole[index])


def _draw(key: Array, fresh: Sequence[str], path: str, like: Any, deviation: float) -> Array:
    """A fresh parameter: zero for a bias, else drawn from a normal distribution."""
    if path.endswith("/bias"):
        return jnp.zeros(like.shape, like.dtype)
    own = jax.random.fold_in(key, fresh.index(path))
    return deviation * jax.random.normal(own, like.shape, like.dtype)


def _fits(weights: Weights, path: str, shape: tuple[int, ...], config: Config) -> bool:
    (name,) = torch_names(path, config)
    return name in weights and weights.shape(name) == torch_shape(path, shape)


def export_classifier(
    params: Any,
    config: Config,
    folder: str | Path,
    *,
    source: str | Path | None = None,
    labels: Sequence[str] = (),
    dtype: DTypeLike | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> dict[str, float]:
    """Write config.json and safetensors, which transformers and `load_classifier` read.

    With pool="cls", the result is a complete BertForSequenceClassification (or Roberta's,
    DebertaV2's). With pool="mean", transformers has no class for the head: its BertModel reads the
    encoder, and the files also hold the classifier's two tensors. For its logits, multiply the mean
    of the last hidden states of the unmasked tokens by `classifier.weight.T`, and add
    `classifier.bias`.

    Args:
      params: a classifier's, an nnx.State, nested dicts or `Parts`, with adapters already merged.
      folder: files of these names in it are replaced, once all is written; not the source.
      source: where the encoder was loaded from; further settings are taken from its config.json.
      labels: the names of the classes, one for each output.
      dtype, shard_bytes: as for `write_weights`, whose result is returned.
    """
    parts = parts_of(params)
    if "classifier/bias" not in parts.shapes:
        raise ValueError("the parameters have no classifier/bias: not those of a classifier")
    places = {path: torch_places(path, config) for path in parts.shapes}
    family = FAMILIES[config.model_type].architecture
    (outputs,) = parts.shapes["classifier/bias"].shape
    names = list(labels) or [f"LABEL_{i}" for i in range(outputs)]
    if len(names) != outputs or len({*names}) != outputs:
        raise ValueError(f"labels {names}: expected {outputs} different names")
    is_first = "pooler/bias" in parts.shapes
    kind = "ForSequenceClassification" if is_first else "Model"
    changes = {
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
        "problem_type": "regression" if outputs == 1 else "single_label_classification",
        "architectures": [f"{family}{kind}"],
        "pool": "cls" if is_first else "mean",
        "torch_dtype": str(jnp.dtype(dtype or parts.shapes["classifier/bias"].dtype)),
    }
    with replaced(folder, source) as temporary:
        write_config(temporary, config, source, changes)
        return write_weights(temporary, parts, places, dtype, shard_bytes)
