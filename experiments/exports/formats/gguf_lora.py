"""gguf-lora: one file that llama.cpp loads beside the base model (`--lora`)."""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any, ClassVar

from experiments.exports.base_model import quantised_lines, quantization_error
from experiments.exports.format import Format
from experiments.exports.plain_lora import refusals_of, require_for_servers, svd_lines
from experiments.runs.finished_run import FinishedRun
from lora_jax.interchange.families import names_of
from lora_jax.interchange.gguf_lora import write_gguf_lora
from lora_jax.interchange.save_plain_lora import save_plain_lora
from lora_jax.models.published.gguf_weights import architecture
from lora_jax.models.published.weight_files import find_gguf

FILE = "adapter.gguf"


@dataclasses.dataclass(frozen=True)
class GgufLora(Format):
    """A plain LoRA of one rank in float32, in the layout that llama.cpp has for the model."""

    holds: ClassVar[str] = "An adapter for llama.cpp"

    svd_rank: int | None = None
    """Cut updates of a higher rank to this one by SVD."""

    def write(self, run: FinishedRun, folder: Path) -> dict[str, Any]:
        names = names_of(run.shape)
        with refusals_of("--as=gguf-lora"), tempfile.TemporaryDirectory() as plain:
            require_for_servers(run)
            options: dict[str, Any] = {"svd_rank": self.svd_rank, "served": None}
            written = save_plain_lora(plain, run.trainable, run.frozen, names, **options)
            write_gguf_lora(folder / FILE, plain, run.shape)
        errors = quantization_error(run)
        found = find_gguf(run.source)
        base = (
            found.name if found else "BASE.gguf"
        )  # the card goes to others: no path of this machine
        which = "" if found else ", where BASE.gguf is the base model, converted for llama.cpp"
        return {
            "architecture": architecture(run.shape),
            "rank": written.rank,
            "svd_rank": self.svd_rank,
            "svd_error": dict(written.errors),
            "quantization_error": errors,
            "said": [
                *svd_lines(written.errors),
                f"load it: llama-cli -m {base} --lora {FILE}{which}",
                *quantised_lines(run, errors, peft=False),
            ],
        }
