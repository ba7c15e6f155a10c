"""merged: a complete model that transformers loads, with the adapter in its weights."""

import dataclasses
import re
from pathlib import Path
from typing import Any

from experiments.exports.finished_run import FinishedRun
from experiments.exports.format import Format
from lora_jax.data.tokenizing.export_tokenizer import export_tokenizer
from lora_jax.models.published.any_family import changed_from, export_model
from lora_jax.suggest import require_known
from lora_jax.transform.merge_parts import base_parts, merged_parts

DTYPES = ("float32", "bfloat16", "float16")
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}
MEAN = (
    "transformers has no class for this head: AutoModel loads the encoder, and the weights also "
    "hold the head; logits = (mean of last_hidden_state over unmasked tokens) @ "
    "classifier.weight.T + classifier.bias"
)


@dataclasses.dataclass(frozen=True)
class Merged(Format):
    """Dense weights in safetensors, config.json and the tokenizer."""

    dtype: str | None = None
    """Of all weights; None is that of the run's parameters."""
    shard_size: str = "5GB"
    """The most bytes of a file of weights."""

    def __post_init__(self):
        if self.dtype is not None:
            require_known(self.dtype, DTYPES, f"--dtype={self.dtype}: unknown dtype")
        _bytes(self.shard_size)

    def write(self, run: FinishedRun, folder: Path) -> dict[str, Any]:
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
        quantised = [each.use.path for each in run.frozen.spec.placements if each.storage]
        base = changed_from(base_parts(run.frozen), quantised, run.shape, run.source)
        said = [_line("the base was trained quantised, which the weights keep", base)]
        said += [_line(f"rounding to {self.dtype or 'the dtype of the run'}", rounding)]
        head = MEAN if getattr(run.config.model, "pool", "") == "mean" else ""
        return {
            "quantization_error": base,
            "rounding_error": rounding,
            "head": head or None,
            "said": [line for line in (*said, head) if line],
        }


def _line(what: str, errors: dict[str, float]) -> str:
    """The largest of relative errors and its tensor; empty if there are none."""
    if not errors:
        return ""
    worst = max(errors, key=lambda name: errors[name])
    return (
        f"{what}: relative Frobenius error of {len(errors)} tensors at most {errors[worst]:.2%} "
        f"({worst}); export.json has each"
    )


def _bytes(size: str) -> int:
    found = re.fullmatch(r"([1-9][0-9]{0,5})(KB|MB|GB)", size.upper())
    if found is None:
        raise ValueError(f"--shard_size={size}: expected a size such as 5GB or 500MB")
    return int(found[1]) * _UNITS[found[2]]
