"""The families of encoders: the config and model classes for each model_type of a config.json."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from lora_jax.models.families.bert import BertClassifier
from lora_jax.models.families.bert_config import BertConfig
from lora_jax.models.families.deberta import DebertaClassifier
from lora_jax.models.families.deberta_config import DebertaConfig
from lora_jax.models.parts.config_checks import shown

Config = BertConfig | DebertaConfig
Classifier = BertClassifier | DebertaClassifier


class Family(NamedTuple):
    """The classes of a family, and the start of their names in transformers (before `Model`)."""

    config: type[BertConfig] | type[DebertaConfig]
    classifier: type[BertClassifier] | type[DebertaClassifier]
    architecture: str


FAMILIES = {
    "bert": Family(BertConfig, BertClassifier, "Bert"),
    "roberta": Family(BertConfig, BertClassifier, "Roberta"),
    "deberta-v2": Family(DebertaConfig, DebertaClassifier, "DebertaV2"),
}


def family_of(config: Mapping[str, Any]) -> Family:
    """The family of a config.json's content; ValueError for one that is not supported."""
    model_type = config.get("model_type")
    if isinstance(model_type, str) and model_type in FAMILIES:
        return FAMILIES[model_type]
    raise ValueError(
        f"model_type {shown(model_type)} is not supported; supported: {', '.join(FAMILIES)}"
    )
