"""The flags of a sweep whose trials are trained in a moment: a tiny encoder, eight sentences."""

import shutil
from pathlib import Path

import official
from flax import nnx

from lora_jax.models import families
from lora_jax.models.published.export import export_model
from lora_jax.models.published.location import locate

SIZES = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
SIZES |= {"intermediate_size": 12, "model_type": "bert"}


def flags(folder: Path, epochs: int) -> list[str]:
    """The config's flags, with the files that they name: a step each epoch, a checkpoint each."""
    official.write(folder / "glue", official.cola())
    config = families.read(SIZES)
    made = families.find("bert").model(config, 2, "mean", rngs=nnx.Rngs(0))
    export_model(nnx.state(made), config, folder / "bert")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(locate("minilm") / name, folder / "bert")
    argument = f"task=cola,size=smoke,source=tsv,folder={folder / 'glue'}"
    settings = {"model.name": folder / "bert", "data.train": 0, "data.buckets": 1}
    settings |= {"variant.rank": 2, "train.epochs": epochs, "train.log_every": 1}
    settings |= {"train.max_steps": 0}  # smoke runs have 4 steps otherwise
    settings |= {"train.checkpoint_every": 1, "targets": ("query/kernel",)}
    return [
        f"--config=configs/glue.py:{argument}",
        *(f"--config.{key}={value}" for key, value in settings.items()),
    ]
