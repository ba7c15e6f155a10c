"""Lines on an imported adapter: what it is, what does not fit, how to continue its training."""

from collections.abc import Iterator
from typing import Any

from configs.settings import ClassifierConfig, RunConfig
from experiments.imports.imported_run import name_of, targets_of
from experiments.setup.task_and_model import TaskAndModel
from lora_jax.interchange.load_peft import Loaded
from lora_jax.models.published.location import hub_name, locate
from lora_jax.peft_format import quoted
from lora_jax.table import Table

CLASSIFIER, DECODER, ANY = "SEQ_CLS", "CAUSAL_LM", "FEATURE_EXTRACTION"
"""Values of PEFT's `task_type`."""


def table(found: Loaded) -> str:
    """The method and the rank of every weight, and what else is in the files."""
    rows = []
    for path, variant, layers in targets_of(found.frozen):
        rows.append((path, name_of(variant), str(getattr(variant, "rank", "")), _span(layers)))
    rows += [(path, "in full", "", "") for path in found.trainable["params"]]
    return Table(("weight", "method", "rank", "layers"), rows).to_text()


def base_model(config: RunConfig, found: Loaded) -> str:
    """What the files say of their base model, beside this run's."""
    said = found.config.get("base_model_name_or_path")
    return f"base model: {config.model.name}; the adapter names {quoted(said) if said else 'none'}"


def drawn(model: TaskAndModel, found: Loaded) -> list[str]:
    """The paths of parts of a head that neither the adapter nor the base has."""
    return [path for path in model.fresh if path not in found.trainable["params"]]


def new_head(given: str, config: RunConfig, drawn: list[str]) -> str:
    """A line on parts of a head that were drawn; empty if there are none."""
    if not drawn:
        return ""
    return (
        f"neither {given} nor {config.model.name} has {', '.join(drawn)}: they are drawn from "
        f"config.seed {config.seed}, and the scores mean nothing before they have trained"
    )


def doubts(config: RunConfig, found: Loaded) -> Iterator[str]:
    """What may be wrong with using the adapter in this run, a line each."""
    said, task = (found.config.get(name) for name in ("base_model_name_or_path", "task_type"))
    known = hub_name(config.model.name) or config.model.name
    if said and _tail(said) not in (_tail(known), _tail(locate(config.model.name))):
        yield (
            f"the adapter says that its base model is {quoted(said)}, and config.model.name is "
            f"{config.model.name}; only their shapes have been compared"
        )
    classifier = isinstance(config, ClassifierConfig)
    wanted = CLASSIFIER if classifier else DECODER
    if task and task not in (wanted, ANY):
        yield f"the adapter is of a {quoted(task)} model, and this config of a {wanted} model"
    if classifier and task == CLASSIFIER and found.trainable["params"] and _is_mean(config):
        yield (
            f"the head of a {CLASSIFIER} adapter reads the first token in PEFT, and here the mean "
            "of all; --config.model.pool=cls reads the first"
        )


def _span(layers: range | None) -> str:
    """The layers of a part, from the first to the last; empty for all."""
    if layers is None:
        return ""
    return f"{layers[0]}" if len(layers) == 1 else f"{layers[0]} to {layers[-1]}"


def _is_mean(config: ClassifierConfig) -> bool:
    return config.model.pool == "mean"


def _tail(name: Any) -> str:
    """The last part of a model's name: organisations and folders differ from place to place."""
    return str(name).rstrip("/").rpartition("/")[2].lower()
