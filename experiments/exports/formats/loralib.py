"""loralib: the adapter as a checkpoint that models of microsoft/LoRA's layers load."""

import dataclasses
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from experiments.exports.base_model import (
    quantised_lines,
    quantization_error,
    require_published_base,
)
from experiments.exports.classifier_head import averages, mean_head
from experiments.exports.format import Format, Use
from experiments.exports.place import Place
from experiments.exports.plain_lora import refusals_of
from experiments.runs.finished_run import FinishedRun
from lora_jax.interchange.names import names_of
from lora_jax.interchange.save_loralib import Layer, save_loralib

WEIGHTS = "lora.safetensors"


@dataclasses.dataclass(frozen=True)
class Loralib(Format):
    """One file of safetensors, without the base."""

    holds: ClassVar[str] = "An adapter for models of microsoft/LoRA's layers (loralib)"

    def write(self, run: FinishedRun, folder: Path, here: bool = True) -> dict[str, Any]:
        require_published_base(run)
        names = names_of(run.shape)
        with refusals_of("--as=loralib"):
            written = save_loralib(folder / WEIGHTS, run.trainable, run.frozen, names)
        calls = {module: _call(layer) for module, layer in written.layers.items()}
        counted = sorted(Counter(calls.values()).items())
        head = [mean_head(f"{WEIGHTS} holds")] if averages(run) else []
        errors = quantization_error(run)
        return {
            "r": written.rank,
            "lora_alpha": written.alpha,
            "layers": calls,
            "head": head[0] if head else None,
            "quantization_error": errors,
            "said": [
                "the layers of a model that loads it; export.json names their modules:",
                *(f"  {number} x {call}" for call, number in counted),
                *head,
                *quantised_lines(run, errors),
            ],
        }

    def use(self, run: FinishedRun, place: Place, content: Mapping[str, Any]) -> Use:
        return Use(
            "import safetensors.torch\n\n# model: built of the layers that export.json lists\n"
            f"state = safetensors.torch.load_file({f'{place.files}/{WEIGHTS}'!r})\n"
            "model.load_state_dict(state, strict=False)"
        )


def _call(layer: Layer) -> str:
    given = ", ".join(f"{name}={value}" for name, value in layer.options.items())
    return f"loralib.{layer.kind}(..., {given})"
