"""Score the model of each task of a study before any training: what a method begins from.

A language model has a score by likelihood, and a sentence encoder one of similarity by cosine. A
new head that has not been trained says nothing.
"""

import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from configs.settings import ClassifierConfig, RunConfig, TextConfig, VariantSettings
from experiments.analysis import task_evidence
from experiments.analysis.task_evidence import Untrained
from experiments.runs import predictions
from experiments.runs.group import Group
from experiments.setup import from_config
from experiments.setup.experiment import build
from experiments.setup.forward_pass import model_inputs
from experiments.setup.task_and_model import boundaries, text_limit
from experiments.studies.registration import Registration
from lora_jax import data
from lora_jax.data.metrics import label_metrics
from lora_jax.models.parts.modules import masked_mean
from lora_jax.models.published.load import load_classifier
from lora_jax.models.published.location import locate, unchanged
from lora_jax.models.published.weight_files import weights_digest
from lora_jax.records import seal
from lora_jax.records.environment import environment

COSINE = "cosine of the mean last hidden states of the two texts, each encoded alone"
LIKELIHOOD = "likelihood of the answers, as runs are scored"
NO_SCORE = "a head that has not been trained gives no score"


def score(config: RunConfig) -> Untrained:
    """Score the model of a config on the task's validation part and its extra parts."""
    if isinstance(config, TextConfig):
        return _by_likelihood(config)
    if not isinstance(config, ClassifierConfig):
        return Untrained(from_config.make_any_task(config).metric, NO_SCORE)
    spec = None if config.data.source == "files" else data.SPECS.get(config.data.name)
    if spec and spec.label_names:  # which needs no data
        return Untrained(spec.metric, NO_SCORE)
    task = from_config.make_task(config.data)
    if task.label_names or task.train.second_texts is None or config.model.pool != "mean":
        return Untrained(task.metric, NO_SCORE)
    return _by_cosine(config, task)


def write(folder: Path, registered: Registration, configs: Mapping[str, RunConfig]) -> None:
    """Score the untrained models of a registered study, unless that is done; print the scores.

    Args:
      configs: by task; the draw of the examples only changes `data_digest`.
    """
    if not (folder / task_evidence.UNTRAINED_FILE).exists():
        scored = {task: score(config) for task, config in configs.items()}
        outputs = {f"{t}/{part}": p for t, own in scored.items() for part, p in own.parts.items()}
        predictions.write(folder, outputs, task_evidence.UNTRAINED_OUTPUTS)
        about = {
            "registration": registered.digest,
            "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            **environment(),
        }
        tasks = {}
        for task, each in scored.items():
            tasks[task] = {"metric": each.metric, "how": each.how, "scores": each.scores}
            tasks[task]["examples"] = {part: len(own.outputs) for part, own in each.parts.items()}
            if each.score is not None:
                digests = {"data_digest": each.data_digest, "weights_digest": each.weights_digest}
                tasks[task] |= digests
        seal.write(folder / task_evidence.UNTRAINED_FILE, about | {"tasks": tasks})
    for task, each in task_evidence.read_untrained(folder).items():
        said = "no score" if each.score is None else f"{each.metric} {each.score:.4f}"
        print(f"{task}, untrained: {said} ({each.how})")


def _by_likelihood(config: TextConfig) -> Untrained:
    """By the path of runs, whose first adapter is LoRA's: with it, a model is as without it."""
    lora = VariantSettings(name="lora", settings={"rank": 1})
    plain = dataclasses.replace(config, variant=lora, targets=("all-linear",), start_from=None)
    group = Group.of([experiment := build(plain)], alone=True)
    scores = group.evaluate(0, experiment.trainable)
    labels = experiment.texts.labels
    parts = {
        part: predictions.Predictions(each, labels(part))
        for part, each in group.outputs[experiment].items()
    }
    task = experiment.texts.task
    digests = task.digest(), experiment.weights_digest
    return Untrained(task.metric, LIKELIHOOD, scores, parts, *digests)


def _by_cosine(config: ClassifierConfig, task: data.Task) -> Untrained:
    where, dtype = locate(config.model.name), config.model.dtype
    with unchanged(where):
        given = {"dtype": dtype, "param_dtype": dtype, "unroll": config.model.unroll}
        key = jax.random.key(0)
        model, _ = load_classifier(where, num_labels=1, pool="mean", key=key, **given)
        tokenizer, digest = data.load_tokenizer(where), weights_digest(where)
    graph, weights = nnx.split(model)

    @jax.jit
    def pooled(weights: Any, batch: Mapping[str, Any]) -> jax.Array:
        states = nnx.merge(graph, weights).encode(*model_inputs(batch))
        return masked_mean(states, batch["attention_mask"])

    def directions(name: str, texts: Sequence[str]) -> np.ndarray:
        with text_limit(config.data, model.config.max_tokens, where) as limit:
            encoded = data.encode(tokenizer, data.Examples(name, texts, None), limit)
        lengths, size = boundaries({name: encoded}, config.data, limit), config.train.batch_size
        plan = data.eval_plan(encoded.lengths, size, lengths)
        batches = (data.collate(encoded, each.indices, each.padded_length, size) for each in plan)
        found = data.in_order(plan, [np.asarray(pooled(weights, each)) for each in batches])
        found = found.astype(np.float64)  # cosines near 1 may differ by a few float32 steps
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    parts = {}
    for name, part in {"validation": task.validation, **task.extra}.items():
        assert part.second_texts is not None
        first, second = directions(name, part.texts), directions(name, part.second_texts)
        parts[name] = predictions.Predictions((first * second).sum(1, keepdims=True), part.labels)
    scores = label_metrics.score_parts(task, {name: each.outputs for name, each in parts.items()})
    # A cosine is not of the labels' range, so only its correlations mean something.
    scores = {name: value for name, value in scores.items() if not name.startswith("eval_loss")}
    return Untrained(task.metric, COSINE, scores, parts, task.digest(), digest)
