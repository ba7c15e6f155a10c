"""A BERT of a few thousand weights beside its word embeddings, in a folder like a published one."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from configs import quickstart
from configs.settings import RunConfig
from experiments.setup.config import parse
from lora_jax import data
from lora_jax.models import families
from lora_jax.models.published.export import export_model
from lora_jax.models.published.load import read_encoder_config
from lora_jax.models.published.location import locate

SIZES = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


def write(folder: Path) -> Path:
    """The folder, with random weights and the tokenizer of all-MiniLM-L6-v2."""
    source = locate("minilm")
    folder.mkdir(parents=True)
    for path in source.iterdir():
        if path.suffix in (".json", ".txt") and path.is_file():
            shutil.copy(path, folder)
    content = json.loads((source / "config.json").read_text(encoding="utf-8")) | SIZES
    (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")
    config = read_encoder_config(folder)
    build = families.find(config.model_type).model
    model = nnx.eval_shape(lambda: build(config, 2, "mean", rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(1)

    def drawn(leaf):
        return (0.3 * rng.standard_normal(leaf.shape)).astype(leaf.dtype)

    export_model(jax.tree.map(drawn, nnx.state(model)), config, folder)
    return folder


def write_reviews(folder: Path, train: int, validation: int) -> dict[str, Any]:
    """A few sentences of the demonstration's data in the layout of SST-2; a config's `data`.

    All of them take the better part of a second to read, which most runs of tests need not do.
    """
    task = data.load_task("rotten_tomatoes", "demo", validation=validation)
    for name, part, count in (("train", task.train, train), ("dev", task.validation, validation)):
        spread = slice(None, count * (len(part) // count), len(part) // count)
        rows = zip(part.texts[spread], part.labels[spread], strict=True)  # they come by label
        lines = ["sentence\tlabel", *(f"{text}\t{label}" for text, label in rows)]
        path = folder / "SST-2" / f"{name}.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="")
    test = folder / "SST-2" / "test.tsv"
    test.write_text("index\tsentence\n0\tas you like it\n", encoding="utf-8")
    return {"name": "glue/sst2", "source": "tsv", "folder": str(folder), "validation": 0}


def smoke_configs(folder: Path) -> Callable[..., dict[str, Any]]:
    """Makes configs of the quickstart with that model and 64 sentences, of 8 steps by default."""
    model = write(folder / "bert")
    settings = {f"data.{k}": v for k, v in write_reviews(folder, 64, 16).items()}
    settings |= {"model.name": str(model), "train.batch_size": 8}
    settings |= {"data.train": 0, "data.max_length": 24, "data.buckets": 1}

    def smoke(arg: str = "", **changes: Any) -> dict[str, Any]:
        config = quickstart.get_config(f"{arg},size=smoke")
        config.update_from_flattened_dict(settings)
        for name, value in changes.items():
            config.update_from_flattened_dict({name.replace("__", "."): value})
        return config.to_dict()

    return smoke


def smoke_runs(folder: Path) -> Callable[..., RunConfig]:
    """Makes the same configs, as a run takes them."""
    smoke = smoke_configs(folder)
    return lambda arg="", **changes: parse(smoke(arg, **changes))


def flags(folder: Path) -> list[str]:
    """A command's, for 8 steps of rank 4 on that model and the demonstration's data."""
    settings: dict[str, Any] = {"model.name": write(folder / "bert"), "variant.rank": 4}
    settings |= {"data.train": 64, "data.validation": 40, "data.max_length": 16}
    settings |= {"data.buckets": 1, "train.batch_size": 8, "train.checkpoint_every": 1}
    start = "--config=configs/quickstart.py:size=smoke"
    return [start, *(f"--config.{name}={value}" for name, value in settings.items())]
