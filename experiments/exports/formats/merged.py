"""merged: a complete model that transformers loads, with the adapter in its weights."""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from configs.settings import ClassifierConfig
from experiments.exports.base_model import by_kind, quantization_error
from experiments.exports.classifier_head import averages, mean_head
from experiments.exports.format import Format, Use
from experiments.exports.place import Place
from experiments.runs.finished_run import FinishedRun
from lora_jax.data.tokenizing.tokenize import export_tokenizer, has_tokenizer
from lora_jax.models import families
from lora_jax.models.published.export import export_model
from lora_jax.suggest import require_known
from lora_jax.transform.adapt import merged_parts

DTYPES = ("float32", "bfloat16", "float16")
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


@dataclasses.dataclass(frozen=True)
class Merged(Format):
    """Dense weights in safetensors, config.json and the tokenizer."""

    holds: ClassVar[str] = "A complete model, with the adapter merged into its weights"
    library: ClassVar[str] = "transformers"
    relation: ClassVar[str] = "finetune"

    dtype: str | None = None
    """Of all weights; None is that of the run's parameters."""
    shard_size: str = "5GB"
    """The most bytes of a file of weights."""

    def __post_init__(self):
        if self.dtype is not None:
            require_known(self.dtype, DTYPES, f"--dtype={self.dtype}: unknown dtype")
        _bytes(self.shard_size)

    def write(self, run: FinishedRun, folder: Path, here: bool = True) -> dict[str, Any]:
        rounding = export_model(
            merged_parts(run.trainable, run.frozen),
            run.shape,
            folder,
            source=run.source,
            labels=run.labels,
            dtype=self.dtype,
            shard_bytes=_bytes(self.shard_size),
        )
        export_tokenizer(run.source, folder)
        base = quantization_error(run)
        said = _lines(base) + _largest(rounding)
        head = ""
        if averages(run):
            (place,) = families.places("classifier/kernel", run.shape)
            head = mean_head("the weights also hold", place.name.removesuffix(".weight"))
        return {
            "quantization_error": base,
            "rounding_error": rounding,
            "head": head or None,
            "said": [*said, head] if head else said,
        }

    def use(self, run: FinishedRun, place: Place, content: Mapping[str, Any]) -> Use:
        kind, where = "AutoModelForCausalLM", json.dumps(place.files)
        if isinstance(run.config, ClassifierConfig):
            kind = "AutoModel" if averages(run) else "AutoModelForSequenceClassification"
        also, tokenizer = "", ""
        if has_tokenizer(run.source):
            also = ", AutoTokenizer"
            tokenizer = f"tokenizer = AutoTokenizer.from_pretrained({where})\n"
        return Use(
            f"from transformers import {kind}{also}\n\n"
            f"{tokenizer}model = {kind}.from_pretrained({where})"
        )


def _lines(errors: dict[str, float]) -> list[str]:
    """Lines on what the quantised base has changed, one for the weights of all layers."""
    if not errors:
        return []
    first = (
        "the run's base was quantised, and the dense weights keep its relative Frobenius errors:"
    )
    return [first, *by_kind(errors)]


def _largest(errors: dict[str, float]) -> list[str]:
    """A line on what rounding has changed, if it has."""
    if not errors:
        return []
    worst = max(errors, key=lambda name: errors[name])
    return [f"rounding: relative Frobenius errors of at most {errors[worst]:.2%} ({worst})"]


def _bytes(size: str) -> int:
    found = re.fullmatch(r"([1-9][0-9]{0,5})(KB|MB|GB)", size.upper())
    if found is None:
        raise ValueError(f"--shard_size={size}: expected a size such as 5GB or 500MB")
    return int(found[1]) * _UNITS[found[2]]
