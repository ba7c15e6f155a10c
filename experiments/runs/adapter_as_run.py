"""The folder of an adapter that no training here made: what a finished run would have left."""

import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lora_jax as lj
from configs.settings import TextConfig
from experiments.command_names import shown
from experiments.runs import artifacts, generated_texts
from experiments.runs.run import summarise
from experiments.setup.experiment import Experiment
from lora_jax.records import run_record, seal
from lora_jax.training.outcome import Outcome, all_finite


def write(
    folder: Path, experiment: Experiment, origin: str, made_of: Mapping[str, Any], note: str
) -> run_record.Record:
    """Write an experiment's adapter and its origin, its predictions, and a record with its scores.

    Args:
      folder: a new, empty folder.
      experiment: with the adapter as its trainable and frozen parts.
      origin: the name of a JSON file that says where the adapter comes from.
      made_of: the content of that file.
      note: of the record, in words.
    """
    began = time.perf_counter()
    trainable = experiment.trainable
    run_record.claim(folder, experiment.config.plain)
    meta = {"config": experiment.config.plain}
    lj.save_adapter(folder, trainable, experiment.frozen, meta)
    seal.write(folder / origin, made_of)
    outputs = artifacts.save_predictions(experiment, folder, experiment.adapted_call(trainable))
    scores = experiment.texts.score({part: outputs[part] for part in experiment.scored})
    results = artifacts.NOTHING
    if isinstance(experiment.config, TextConfig):
        written, signatures = generated_texts.scores(experiment, trainable)
        results = artifacts.Results(written=written, signatures=signatures)
    outcome = Outcome(metrics_last=scores, metrics_best=scores, best_step=0)
    status = "completed" if all_finite(scores) else "diverged"
    seconds = time.perf_counter() - began
    record = artifacts.record(
        experiment, outcome, results, seconds=seconds, status=status, note=note
    )
    run_record.write(folder, record)
    return record


def say(record: run_record.Record, folder: Path) -> None:
    """Print the scores of an adapter, where it is, and the command of a run that starts from it.

    Raises:
      ValueError: scores are not finite.
    """
    for line in summarise(record):
        print(line)
    print(f"record and adapter: {folder}")
    if record.status != "completed":
        raise ValueError(f"scores are not finite, so the record says {record.status}: {folder}")
    given = {"config": folder / "config.json", "config.start_from": folder}
    given["workdir"] = folder.with_name(f"{folder.name}_trained")
    line = [f"--{name}={value}" for name, value in given.items()]
    print(f"to continue training: {shown('train')} {shlex.join(line)}")
