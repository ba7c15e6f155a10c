"""A tiny model, tiny data, and the commands that a soak gives."""

import dataclasses
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from flax import nnx

from lora_jax.files import json_text
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
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
WORDS = {
    "positive": ("good", "fine", "great", "nice"),
    "negative": ("bad", "poor", "awful", "weak"),
    "": ("film", "plot", "story", "actor", "scene", "music", "start", "end"),
}
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
OF_THE_ADAPTER = ("--config.targets=", "--config.variant.")
"""The beginnings of flags of what an imported adapter says itself."""


@dataclasses.dataclass(frozen=True)
class Inputs:
    """A folder with a model and two files of sentences, `train.tsv` and `validation.tsv`."""

    folder: Path
    variant: str = "lora"
    """The method of the runs."""

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def train(self) -> Path:
        return self.folder / "train.tsv"

    @property
    def validation(self) -> Path:
        return self.folder / "validation.tsv"

    @property
    def config(self) -> list[str]:
        """The flags of a run of eight steps."""
        argument = f"train={self.train},validation={self.validation},variant={self.variant}"
        settings = {"model.name": self.model, **SETTINGS}
        return [
            f"--config=configs/own_data.py:{argument}",
            *(f"--config.{name}={value}" for name, value in settings.items()),
        ]


def make(folder: Path) -> Inputs:
    """Write the inputs into a folder; the same bytes each time."""
    made = Inputs(folder)
    config = families.read(SIZES)
    classifier: Any = families.find("bert").model
    model = classifier(config, 2, "cls", rngs=nnx.Rngs(0))
    export_model(nnx.state(model), config, made.model)
    for name in TOKENIZER:
        shutil.copy(locate("minilm") / name, made.model)
    drawn = random.Random(0)
    for path, rows in ((made.train, 64), (made.validation, 32)):
        path.write_text(_sentences(drawn, rows), encoding="utf-8")
    return made


def make_with_vocabulary(folder: Path) -> Inputs:
    """The same inputs, whose tokenizer is a `vocab.txt` of the same words."""
    made = make(folder)
    path = made.model / TOKENIZER[0]
    words = json_text.read_object(path)["model"]["vocab"]
    text = "\n".join(sorted(words, key=words.__getitem__)) + "\n"
    (made.model / "vocab.txt").write_text(text, encoding="utf-8")
    path.unlink()
    return made


def _sentences(drawn: random.Random, rows: int) -> str:
    lines = ["text\tlabel"]
    for number in range(rows):
        label = ("positive", "negative")[number % 2]
        words = [drawn.choice(WORDS[label] + WORDS[""]) for _ in range(6)]
        lines.append(f"{' '.join(words)}\t{label}")
    return "\n".join(lines) + "\n"


class Start(Protocol):
    """What a run starts from: the files in a folder, and the flags of a config that names them."""

    @property
    def folder(self) -> Path: ...

    @property
    def config(self) -> list[str]: ...


def train(inputs: Start, workdir: Path, *more: str) -> list[str]:
    """The command that trains one run."""
    return ["experiments.train", *inputs.config, f"--workdir={workdir}", *more]


def sweep(inputs: Inputs, workdir: Path, seeds: int = 2) -> list[str]:
    """The command of a sweep of two learning rates and some seeds, in one process.

    Each trial steps by itself (`--execution=each`): the fastest way is found by timing, and two
    ways differ in their last bits.
    """
    own = ["--processes=1", "--execution=each", "--noaudit"]
    own += ["--sweep=config.optimizer.learning_rate=1e-3,3e-3", f"--sweep=config.seed=0:{seeds}"]
    return ["experiments.sweep", *inputs.config, *own, f"--workdir={workdir}"]


def search(inputs: Inputs, workdir: Path) -> list[str]:
    """The command that halves four learning rates, by their scores on 16 held-out sentences."""
    own = ["--execution=each", "--noaudit", "--search=halving", "--trials=4"]
    own += ["--halving_factor=2", "--sweep=config.optimizer.learning_rate=log:1e-4:1e-1"]
    own += ["--config.data.validation=16"]
    return ["experiments.sweep", *inputs.config, *own, f"--workdir={workdir}"]


def export(run: Path, out: Path, form: Sequence[str] = ("--as=peft",)) -> list[str]:
    """The command that saves the adapter of a run for others."""
    return ["experiments.export", f"--run={run}", f"--out={out}", *form]


def combine(run: Path, out: Path) -> list[str]:
    """The command that makes the negative of a run's adapter."""
    return ["experiments.combine", f"--runs={run}", "--by=negate", f"--out={out}"]


def import_adapter(inputs: Inputs, source: Path, out: Path) -> list[str]:
    """The command that makes a run of an adapter that `export` has saved."""
    own = [each for each in inputs.config if not each.startswith(OF_THE_ADAPTER)]
    return ["experiments.import_adapter", *own, f"--from={source}", f"--out={out}"]


def tune(inputs: Inputs, workdir: Path) -> list[str]:
    """The command of a study of two methods (`small_study`)."""
    argument = f"train={inputs.train},validation={inputs.validation},model={inputs.model}"
    own = ["--execution=each", "--noaudit", f"--argument={argument}"]
    return [
        "experiments.tune",
        "--study=experiments.soaking.small_study",
        f"--workdir={workdir}",
        *own,
    ]
