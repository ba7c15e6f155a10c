"""What the soak trains: a tiny encoder, tiny data, the commands, and a study of two methods."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flax import nnx
from ml_collections import ConfigDict

from configs import common, own_data
from lora_jax.models import families
from lora_jax.models.published.export import export_model
from lora_jax.models.published.location import locate

SIZES = {
    "model_type": "bert",
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 12,
}
WORDS = {"positive": ("good", "fine", "great"), "negative": ("bad", "poor", "weak")}
SUBJECTS = ("film", "plot", "story", "actor", "scene", "music", "start", "end")
SETTINGS = {
    "targets": ("query/kernel",),
    "data.max_length": 16,
    "data.buckets": 1,
    "variant.rank": 2,
    "train.batch_size": 16,
    "train.epochs": 2,
    "train.log_every": 1,
    "train.checkpoint_every": 2,
    "train.evaluate_every": 4,
}
"""Eight steps: each is logged, every second one is saved, every fourth is evaluated."""


def write_inputs(folder: Path) -> Path:
    """Write a model and two files of sentences into a new folder; the same bytes each time."""
    config = families.read(SIZES)
    classifier: Any = families.find("bert").model
    model = classifier(config, 2, "cls", rngs=nnx.Rngs(0))
    export_model(nnx.state(model), config, folder / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(locate("minilm") / name, folder / "model")
    for name, first, rows in (("train", 0, 64), ("validation", 64, 32)):
        lines = ["text\tlabel", *map(_sentence, range(first, first + rows))]
        (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def _sentence(number: int) -> str:
    label = ("positive", "negative")[number % 2]
    words = WORDS[label][number % 3], SUBJECTS[number % 8], SUBJECTS[number // 8 % 8]
    return f"{' '.join(words)} {number}\t{label}"


def config_flags(inputs: Path, variant: str = "lora") -> list[str]:
    """The flags of a run of eight steps."""
    files = f"train={inputs / 'train.tsv'},validation={inputs / 'validation.tsv'}"
    settings = {"model.name": inputs / "model", **SETTINGS}
    return [
        f"--config=configs/own_data.py:{files},variant={variant}",
        *(f"--config.{name}={value}" for name, value in settings.items()),
    ]


def train(inputs: Path, workdir: Path, variant: str = "lora") -> list[str]:
    """The command that trains one run."""
    return ["experiments.train", *config_flags(inputs, variant), f"--workdir={workdir}"]


def sweep(inputs: Path, workdir: Path) -> list[str]:
    """The command of a sweep of two learning rates and two seeds, in one process.

    Each trial steps by itself: the fastest way is found by timing, and two ways differ in their
    last bits.
    """
    own = ["--processes=1", "--execution=each", "--noaudit"]
    own += ["--sweep=config.optimizer.learning_rate=1e-3,3e-3", "--sweep=config.seed=0:2"]
    return ["experiments.sweep", *config_flags(inputs), *own, f"--workdir={workdir}"]


def search(inputs: Path, workdir: Path) -> list[str]:
    """The command that halves four learning rates, by their scores on 16 held-out sentences."""
    own = ["--execution=each", "--noaudit", "--search=halving", "--trials=4"]
    own += ["--halving_factor=2", "--sweep=config.optimizer.learning_rate=log:1e-4:1e-1"]
    own += ["--config.data.validation=16", f"--workdir={workdir}"]
    return ["experiments.sweep", *config_flags(inputs), *own]


def tune(inputs: Path, workdir: Path) -> list[str]:
    """The command of the study in this file."""
    own = [f"--study={__file__}", f"--argument=inputs={inputs}", "--execution=each", "--noaudit"]
    return ["experiments.tune", *own, f"--workdir={workdir}"]


def export(run: Path, out: Path, flags: Sequence[str] = ("--as=peft",)) -> list[str]:
    """The command that saves the adapter of a run for others."""
    return ["experiments.export", f"--run={run}", f"--out={out}", *flags]


STUDY = {
    "rows": ("lora", "head_only"),
    "columns": ("own",),
    "reference": "lora",
    "rates": {"per_decade": 2, "around": 1, "most_more": 0},
    "tuning": {"held_out": 16, "seeds": (100,)},
    "seeds": (0, 1),
    "margin": 1.0,
}


def get_config(arg: str | None = None) -> ConfigDict:
    """The config of a run of the study."""
    choice = common.parse_arg(arg, inputs="", row="lora", task="own")
    inputs = Path(choice["inputs"])
    files = f"train={inputs / 'train.tsv'},validation={inputs / 'validation.tsv'}"
    config = own_data.get_config(f"{files},variant={choice['row']},size=smoke")
    known = {name: value for name, value in SETTINGS.items() if name != "variant.rank"}
    config.update_from_flattened_dict({**known, "model.name": str(inputs / "model")})
    config.update({"suggested": {"rate": "tried"}, "optimizer": {"learning_rate": None}})
    config.update({"train": {"epochs": 1, "max_steps": 0, "evaluate_every": 0}})
    cell = {"table": "small_study", "column": choice["task"], "row": choice["row"]}
    config.update({"study": {**cell, "size": "smoke"}})
    return config
