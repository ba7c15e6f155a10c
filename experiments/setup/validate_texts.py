"""Check the settings that only a language model's config has, before anything is loaded."""

from configs.settings import DecoderSettings, GenerateSettings, TextConfig
from lora_jax import data
from lora_jax.metrics import text_metrics
from lora_jax.models.parts.decoder import POLICIES
from lora_jax.suggest import nearest

FROM_OPTIONS = "accuracy_written"
"""The metric of how often a text names the right answer, as LLM-Adapters and DoRA count it."""
LAYERS = "layers"
"""The value of `model.remat` that recomputes each layer; other values name policies."""


def validate_texts(config: TextConfig) -> None:
    """Raise a `ValueError` that names the first invalid setting of a language model's config."""
    if config.generate.no_repeat_ngram and config.generate.beams == 1:
        raise ValueError("config.generate.no_repeat_ngram acts in a search of 2 beams or more")
    text_metrics.check_names(config.generate.metrics, FROM_OPTIONS)
    remat = config.model.remat
    if remat not in (known := ("", LAYERS, *POLICIES)):
        raise ValueError(f"unknown model.remat '{remat}'; nearest: {nearest(remat, known[1:])}")


def check_written(generate: GenerateSettings, task: data.TextTask) -> None:
    """Raise a ValueError if generated texts could not be scored as a config's `generate` says.

    The model generates only after training, so this is checked early.
    """
    if generate.scored == 0:
        return
    parts = task.extra if generate.part == "extra" else {"": task.validation}
    if not parts:
        raise ValueError(f"config.generate.part extra: task '{task.name}' has no further parts")
    for name in generate.metrics:
        try:
            if name != FROM_OPTIONS:
                text_metrics.score_texts([name], ["text"], [["text"]])
                continue
            for part in parts.values():
                text_metrics.extracted_answers([""] * len(part), part)
        except (ValueError, ModuleNotFoundError) as error:
            raise ValueError(f"config.generate.metrics '{name}': {error}") from None


def remat_of(model: DecoderSettings) -> bool | str:
    """The decoder's `remat` argument for a config's `model.remat`."""
    return True if model.remat == LAYERS else model.remat or False
