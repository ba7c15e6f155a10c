"""loralib: the adapter as a checkpoint that models of microsoft/LoRA's layers load."""

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

from experiments.exports.format import Format
from experiments.runs.finished_run import FinishedRun
from lora_jax.interchange.families import names_of
from lora_jax.interchange.save_loralib import Layer, save_loralib

WEIGHTS = "lora.safetensors"


@dataclasses.dataclass(frozen=True)
class Loralib(Format):
    """One file of safetensors, without the base."""

    holds: ClassVar[str] = "An adapter for models of microsoft/LoRA's layers (loralib)"

    def write(self, run: FinishedRun, folder: Path) -> dict[str, Any]:
        written = save_loralib(folder / WEIGHTS, run.trainable, run.frozen, names_of(run.shape))
        calls = {module: _call(layer) for module, layer in written.layers.items()}
        return {
            "r": written.rank,
            "lora_alpha": written.alpha,
            "layers": calls,
            "said": [
                "the layers of a model that loads it, whose modules export.json names:",
                *(
                    f"  {number} x {call}"
                    for call, number in sorted(Counter(calls.values()).items())
                ),
            ],
        }

    def loading(self, run: FinishedRun, place: str) -> str:
        return (
            "import safetensors.torch\n\n# A model whose layers export.json says.\n"
            f'state = safetensors.torch.load_file("{place}/{WEIGHTS}")\n'
            "model.load_state_dict(state, strict=False)"
        )


def _call(layer: Layer) -> str:
    given = ", ".join(f"{name}={value}" for name, value in layer.options.items())
    return f"loralib.{layer.kind}(..., {given})"
