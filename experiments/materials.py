"""What all runs of one task with one model share: examples, tokens, and the model's weights."""

import dataclasses
from typing import Any

import jax
import numpy as np

from experiments import make
from lora_jax import data
from lora_jax.models import pretrained
from lora_jax.partition import nearest

DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True, eq=False)
class Materials:
    """Examples as tokens, and a model, as the sections `data` and `model` of a config say."""

    task: data.Task
    tokenizer: data.Tokenizer
    encoded: dict[str, data.Encoded]
    """`train` and `validation`, and the task's other parts by their names."""
    examples_per_second: float
    """How fast the training texts were tokenised (when that was done, if they were cached)."""
    boundaries: tuple[int, ...]
    loaded: pretrained.Loaded
    weights_digest: str


def gather(config: dict[str, Any]) -> Materials:
    """The materials that a config names.

    Raises:
      ValueError, FileNotFoundError: one line on what is wrong.
    """
    if (dtype := config["model"]["dtype"]) not in DTYPES:
        raise ValueError(f"unknown model.dtype '{dtype}'; nearest: {nearest(dtype, DTYPES)}")
    task = make.make_task(config["data"])
    folder = pretrained.locate(config["model"]["name"])
    tokenizer = data.load_tokenizer(folder)
    loaded = pretrained.load_classifier(
        folder,
        num_labels=task.num_outputs,
        pool=config["model"]["pool"],
        key=jax.random.key(0),
        dtype=dtype,
        head_dropout=config["model"]["head_dropout"],
    )
    shape = loaded.model.config
    limit = min(config["data"]["max_length"], shape.max_tokens)
    parts = {"train": task.train, "validation": task.validation, **task.extra, **task.unlabelled}
    tokenised = {n: data.encode_cached(tokenizer, each, limit) for n, each in parts.items()}
    encoded = {name: each.encoded for name, each in tokenised.items()}
    if (largest := max(int(each.ids.max()) for each in encoded.values())) >= shape.vocab_size:
        raise ValueError(
            f"the tokenizer in {folder} gives id {largest}, the model's vocabulary has "
            f"{shape.vocab_size}"
        )
    lengths = np.concatenate([each.lengths for each in encoded.values()])
    return Materials(
        task=task,
        tokenizer=tokenizer,
        encoded=encoded,
        examples_per_second=tokenised["train"].examples_per_second,
        boundaries=data.bucket_boundaries(lengths, config["data"]["buckets"], limit=limit),
        loaded=loaded,
        weights_digest=pretrained.digest(folder),
    )
