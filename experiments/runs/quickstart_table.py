"""Show the quickstart's two runs: a table, and how each classifies three sentences."""

import dataclasses
import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from experiments.setup.experiment import Experiment
from lora_jax import data
from lora_jax.files.marked_documents import fill_blocks
from lora_jax.records import run_record
from lora_jax.table import Table

SENTENCES = (
    "a film of quiet power that stays with you long after the lights come up .",
    "the plot creaks , the jokes die on screen and nobody seems to care .",
    "not nearly as bad as its trailer suggests , and at times even moving .",
)
COLUMNS = ("model", "accuracy", "parameters", "trained in", "validated in")
HEAD, LORA, MERGED = "base, trained head only", "LoRA", "LoRA, merged"


class Trained(NamedTuple):
    """A completed run, and the trained parameters that it saved."""

    record: run_record.Record
    experiment: Experiment
    trainable: Any


def show(head: Trained, lora: Trained, console: Console) -> list[tuple[str, ...]]:
    """Print the accuracy of a head alone, LoRA and merged LoRA, and predictions for sentences.

    Return the rows of the table, with COLUMNS.
    """
    rows = [_row(HEAD, head), _row(LORA, lora), _row(MERGED, lora, merged=True)]
    console.print(Table(COLUMNS, rows).to_rich())
    for sentence, before, after in zip(SENTENCES, _classify(head), _classify(lora), strict=True):
        console.print(f"[italic]{sentence}[/italic]")
        console.print(f"    before (trained head only): {before}, after (LoRA): {after}")
    return rows


def fill(text: str, rows: Iterable[Sequence[str]]) -> str:
    """A document with the rows between `<!-- quickstart -->` and `<!-- /quickstart -->`."""
    made = Table(COLUMNS, list(rows)).to_markdown(escape=False)
    return fill_blocks(text, "quickstart", lambda _: made)


def _row(label: str, trained: Trained, merged: bool = False) -> tuple[str, ...]:
    record, experiment, trainable = trained
    call = (experiment.merged_call if merged else experiment.adapted_call)(trainable)
    experiment.score(call)  # compiles
    start = time.perf_counter()
    accuracy = experiment.score(call)["accuracy"]
    validated = time.perf_counter() - start
    took = "" if merged else f"{record.seconds:.0f} s"  # merging needs no training
    counted = record.parameters_adapters
    size = "" if counted is None else f"{counted:,}"
    return label, f"{accuracy:.1%}", size, took, f"{validated:.1f} s"


def _classify(trained: Trained) -> list[str]:
    """The predicted label of each sentence, with its probability."""
    _, experiment, trainable = trained
    texts, examples = experiment.texts, data.Examples("sentences", SENTENCES, None)
    encoded = {"sentences": data.encode(texts.tokenizer, examples, texts.boundaries[-1])}
    of_sentences = dataclasses.replace(
        experiment, texts=dataclasses.replace(texts, encoded=encoded)
    )
    logits = of_sentences.outputs(experiment.adapted_call(trainable), "sentences")
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    odds /= odds.sum(axis=1, keepdims=True)
    names = (isinstance(texts.task, data.Task) and texts.task.label_names) or ()
    return [f"{names[row.argmax()]} ({row.max():.0%})" for row in odds]
