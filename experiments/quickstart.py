"""The quickstart: a head alone, then LoRA, on real text, and what it made of three sentences.

python -m experiments.quickstart --workdir=runs/quickstart
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from rich.console import Console
from rich.table import Table

from configs import quickstart
from experiments import cli
from experiments.build import Experiment, build
from experiments.run import run
from lora_jax import data, records
from lora_jax.adapter_file import load_adapter

_WORKDIR = flags.DEFINE_string("workdir", "runs/quickstart", "Folder for the two runs.")
_MODEL = flags.DEFINE_string(
    "model", "minilm", "minilm, a local folder, or org/name of a BERT on the Hugging Face Hub."
)
_SIZE = flags.DEFINE_enum("size", "full", ["full", "smoke"], "smoke is a run of seconds.")

SENTENCES = (
    "a film of quiet power that stays with you long after the lights come up .",
    "the plot creaks , the jokes die on screen and nobody seems to care .",
    "not nearly as bad as its trailer suggests , and at times even moving .",
)


def compare() -> None:
    workdir = Path(_WORKDIR.value)
    _report({name: _train(name, workdir) for name in ("head_only", "lora")}, workdir)


def _train(name: str, workdir: Path) -> tuple[records.Record, Experiment, Any]:
    """One run, its experiment, and the trainables that it saved."""
    chosen = quickstart.get_config(f"variant={name},size={_SIZE.value}")
    chosen.update_from_flattened_dict({"model.name": _MODEL.value})
    config = chosen.to_dict()
    record = run(config, workdir / name, label=name)
    if record.status != "completed":
        raise ValueError(f"{name}: {record.status}, {record.note}")
    experiment = build(config)
    trainable, _, _ = load_adapter(workdir / name, experiment.trainable, experiment.frozen)
    return record, experiment, trainable


def _report(trained: dict[str, tuple[records.Record, Experiment, Any]], workdir: Path) -> None:
    table = Table("model", "accuracy", "trained parameters", "trained in", "validated in")

    def row(label: str, name: str, merged: bool = False) -> None:
        record, experiment, trainable = trained[name]
        call = (experiment.merged_call if merged else experiment.adapted_call)(trainable)
        experiment.score(call)  # compiles
        start = time.perf_counter()
        accuracy = experiment.score(call)["accuracy"]
        validated = f"{time.perf_counter() - start:.1f} s"
        counted, seconds = f"{record.parameters_trained:,}", f"{record.seconds:.0f} s"
        table.add_row(label, f"{accuracy:.1%}", counted, seconds, validated)

    row("base, trained head only", "head_only")
    row("LoRA", "lora")
    row("LoRA, merged", "lora", merged=True)
    console = Console()
    console.print(table)
    before, after = (_classify(experiment, own) for _, experiment, own in trained.values())
    for sentence, *labels in zip(SENTENCES, before, after, strict=True):
        console.print(f"[italic]{sentence}[/italic]")
        console.print(f"    before (trained head only): {labels[0]}, after (LoRA): {labels[1]}")
    console.print(f"record:  {workdir / 'lora' / 'record.json'}", soft_wrap=True)
    console.print(f"adapter: {workdir / 'lora' / 'adapter.safetensors'}", soft_wrap=True)


def _classify(experiment: Experiment, trainable: Any) -> list[str]:
    """The predicted label of each sentence, with its probability."""
    labels = np.arange(len(SENTENCES)) % 2  # not looked at
    examples = data.Examples("sentences", SENTENCES, labels)
    encoded = data.encode(experiment.tokenizer, examples, experiment.boundaries[-1])
    logits = experiment.outputs(experiment.adapted_call(trainable), encoded)
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    odds /= odds.sum(axis=1, keepdims=True)
    names = experiment.task.label_names or ()
    return [f"{names[row.argmax()]} ({row.max():.0%})" for row in odds]


if __name__ == "__main__":
    cli.main(compare)
