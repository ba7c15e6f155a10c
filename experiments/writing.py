"""What the language model of a run writes: samples for its record, and scores of its texts."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.build import Experiment
from lora_jax import data, text_metrics
from lora_jax.beam_search import beam_search
from lora_jax.generate import generate
from lora_jax.generate_text import generate_texts

FROM_OPTIONS = "accuracy_written"
"""How often the answer that a text names is the right one, as LLM-Adapters and DoRA count it."""


def write(experiment: Experiment, trainable: Any, prompts: Sequence[str]) -> list[str]:
    """What the model writes after each prompt, by the settings of the config's `generate`."""
    section, step = experiment.config["generate"], experiment.problem.step
    if step is None or experiment.tokenizer.eos_id is None:
        raise ValueError(f"task '{experiment.task.name}' is not text-to-text: nothing is written")
    beams = {
        "beams": section["beams"],
        "length_penalty": section["length_penalty"],
        "no_repeat_ngram_size": section["no_repeat_ngram"],
        "prompt_ngrams": section["prompt_ngrams"],
    }
    search = generate if section["beams"] == 1 else functools.partial(beam_search, **beams)
    return generate_texts(
        search,
        step,
        (experiment.adapted.merge(trainable, experiment.frozen),),
        experiment.tokenizer,
        [prompt.rstrip(" ") for prompt in prompts],  # as `encode_prompts` has them
        eos_ids=experiment.tokenizer.eos_id,
        batch_size=section["batch_size"],
        max_new_tokens=section["max_new_tokens"],
    )


def samples(experiment: Experiment, trainable: Any) -> list[dict[str, Any]]:
    """Some validation prompts, and what the model writes before and after training.

    The first ones, by a rule that knows nothing of the model: so many spread evenly.
    """
    some = _some(experiment, experiment.config["generate"]["samples"])
    if some is None:
        return []
    before, after = (
        write(experiment, each, some.prompts) for each in (experiment.trainable, trainable)
    )
    expected = _expected(some)
    return [
        {"prompt": prompt, "expected": list(wanted), "before": old, "after": new}
        for prompt, wanted, old, new in zip(some.prompts, expected, before, after, strict=True)
    ]


def scores(experiment: Experiment, trainable: Any) -> tuple[dict[str, float], dict[str, str]]:
    """The metrics of what the model writes to validation prompts, and how each was computed."""
    section = experiment.config["generate"]
    some = _some(experiment, section["scored"])
    if some is None:
        return {}, {}
    texts = write(experiment, trainable, some.prompts)
    wanted = [name for name in section["metrics"] if name != FROM_OPTIONS]
    scored = text_metrics.score_texts(wanted, texts, _expected(some)) if wanted else {}
    values = {name: each.value for name, each in scored.items()}
    if FROM_OPTIONS in section["metrics"]:
        named = text_metrics.extracted_answers(texts, some)
        values[FROM_OPTIONS] = float(np.mean(named == some.answers))
    return values, {name: each.signature for name, each in scored.items()}


def _some(experiment: Experiment, size: int) -> data.Prompts | None:
    """So many examples of the validation part, -1 for all; None for none."""
    task = experiment.task
    if not isinstance(task, data.TextTask) or size == 0:
        return None
    return task.validation if size < 0 else task.scored(size).validation


def _expected(part: data.Prompts) -> Sequence[Sequence[str]]:
    """The texts that each prompt may be answered by."""
    if part.references is not None:
        return part.references
    if part.options is not None and part.answers is not None:
        rows = zip(part.options, part.answers, strict=True)
        return [[options[int(answer)].strip()] for options, answer in rows]
    return [[each.strip()] for each in part.completions or ()]
