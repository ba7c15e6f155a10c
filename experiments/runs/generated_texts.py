"""Generate texts with the language model of a run: samples for its record, and scores."""

import dataclasses
import functools
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from configs.settings import GenerateSettings, RunConfig, TextConfig
from experiments.setup.completion import begin
from experiments.setup.experiment import Experiment
from experiments.setup.out_of_memory import explained, of_texts
from experiments.setup.validate import FROM_OPTIONS
from lora_jax import data
from lora_jax.data.metrics import text_metrics
from lora_jax.data.tokenised_task import Completions
from lora_jax.data.tokenizing.encode_prompts import encode_prompts
from lora_jax.generation.beam_search import beam_search
from lora_jax.generation.generate import generate
from lora_jax.generation.generate_text import generate_texts
from lora_jax.messages import agree, count

Stepper = tuple[Any, tuple[Any, ...]]
"""A model, one token at a time, and the weights that it takes."""


def write(experiment: Experiment, trainable: Any, prompts: Sequence[str]) -> list[str]:
    """Generate a text after each prompt, with the settings of the config's `generate`.

    Prompts are tokenised and cut as in training, and cut further to leave room for an answer.
    """
    # Merged weights are faster, but may not fit on a mesh.
    return write_with(
        experiment, stepper(experiment, trainable, experiment.layout is None), prompts
    )


def stepper(experiment: Experiment, trainable: Any, merged: bool) -> Stepper:
    """What generates with a run's adapter, which may be merged into the weights first."""
    step: Any = experiment.step
    weights: tuple[Any, ...] = (trainable, experiment.frozen)
    if merged:
        return step, (experiment.adapted.merge(*weights),)
    return dataclasses.replace(experiment.adapted, forward=step).apply, weights


def write_with(experiment: Experiment, model: Stepper, prompts: Sequence[str]) -> list[str]:
    """As `write`, with the result of `stepper`."""
    texts, (apply, weights) = experiment.texts, model
    tokenizer = texts.tokenizer
    if not isinstance(texts, Completions) or tokenizer.eos_id is None:
        raise ValueError(f"task '{texts.task.name}' is not text-to-text: nothing is written")
    section, limit = _settings(experiment), texts.prompt_limit
    beams = {
        "beams": section.beams,
        "length_penalty": section.length_penalty,
        "no_repeat_ngram_size": section.no_repeat_ngram,
        "prompt_ngrams": section.prompt_ngrams,
    }
    given = data.Prompts("prompts", prompts, None)
    search = generate if section.beams == 1 else functools.partial(beam_search, **beams)
    encoded = encode_prompts(tokenizer, given, limit, tokenizer.eos_id, begin(tokenizer))
    if cut := encoded.truncated:
        said = f"{cut} of {count(len(prompts), 'prompt')} {agree(cut, 'is', 'are')} cut"
        warnings.warn(f"{said} to {limit} tokens, at the beginning", stacklevel=2)
    with explained(of_texts(section)):
        return generate_texts(
            search,
            apply,
            weights,
            tokenizer,
            encoded,
            eos_ids=tokenizer.eos_id,
            limit=limit,
            batch_size=section.batch_size,
            max_new_tokens=section.max_new_tokens,
        )


def writes_samples(config: RunConfig) -> bool:
    """Whether generated texts from before and after training go into a run's record."""
    return isinstance(config, TextConfig) and config.generate.samples > 0


def _settings(experiment: Experiment) -> GenerateSettings:
    assert isinstance(experiment.config, TextConfig)
    return experiment.config.generate


def samples(experiment: Experiment, trainable: Any) -> list[dict[str, Any]]:
    """Some validation prompts, with the texts that the model generates before and after training.

    The prompts are spread evenly over the part; the model's answers do not affect the choice.
    """
    task = experiment.texts.task
    if not isinstance(task, data.TextTask) or not writes_samples(experiment.config):
        return []
    some = task.scored(_settings(experiment).samples).validation
    before, after = (
        write(experiment, each, some.prompts) for each in (experiment.trainable, trainable)
    )
    return [
        {"prompt": prompt, "expected": list(wanted), "before": old, "after": new}
        for prompt, wanted, old, new in zip(
            some.prompts, _expected(some), before, after, strict=True
        )
    ]


def scores(experiment: Experiment, trainable: Any) -> tuple[dict[str, float], dict[str, str]]:
    """The metrics of the generated texts, and how each was computed.

    The keys are metric names for the validation part, or `<name>_<part>` for the extra parts, with
    `accuracy_written_mean` as the mean over the extra parts. Both dicts are empty if the config
    asks for no scores.
    """
    task, section = experiment.texts.task, _settings(experiment)
    if not isinstance(task, data.TextTask) or section.scored == 0:
        return {}, {}
    some = task if section.scored < 0 else task.scored(section.scored)
    parts: dict[str, data.Prompts] = {"": some.validation}
    if section.part == "extra":
        parts = {f"_{name}": part for name, part in some.extra.items()}
    values: dict[str, float] = {}
    signatures: dict[str, str] = {}
    for end, part in parts.items():
        found, said = _scores(experiment, trainable, part)
        values |= {f"{name}{end}": value for name, value in found.items()}
        signatures |= said
    if section.part == "extra" and FROM_OPTIONS in section.metrics:
        means = [values[f"{FROM_OPTIONS}{end}"] for end in parts]
        values[f"{FROM_OPTIONS}_mean"] = float(np.mean(means))
    return values, signatures


def _scores(
    experiment: Experiment, trainable: Any, part: data.Prompts
) -> tuple[dict[str, float], dict[str, str]]:
    wanted = _settings(experiment).metrics
    texts = write(experiment, trainable, part.prompts)
    plain = [name for name in wanted if name != FROM_OPTIONS]
    scored = text_metrics.score_texts(plain, texts, _expected(part)) if plain else {}
    values = {name: each.value for name, each in scored.items()}
    if FROM_OPTIONS in wanted:
        named = text_metrics.extracted_answers(texts, part)
        values[FROM_OPTIONS] = float(np.mean(named == part.answers))
    return values, {name: each.signature for name, each in scored.items()}


def _expected(part: data.Prompts) -> Sequence[Sequence[str]]:
    """The accepted answers of each prompt."""
    if part.references is not None:
        return part.references
    if part.options is not None and part.answers is not None:
        rows = zip(part.options, part.answers, strict=True)
        return [[options[int(answer)].strip()] for options, answer in rows]
    return [[each.strip()] for each in part.completions or ()]
