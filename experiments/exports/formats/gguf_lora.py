"""gguf-lora: one file that llama.cpp loads beside the base model (`--lora`)."""

import dataclasses
import shlex
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from experiments.exports.base_model import quantised_lines, quantization_error
from experiments.exports.format import Format, Use
from experiments.exports.place import UNKNOWN, Place
from experiments.exports.plain_lora import refusals_of, require_for_servers, svd_lines
from experiments.runs.finished_run import FinishedRun
from lora_jax.interchange.names import names_of
from lora_jax.interchange.save_plain_lora import save_plain_lora, write_gguf_lora
from lora_jax.models.published.gguf import architecture

FILE = "adapter.gguf"


@dataclasses.dataclass(frozen=True)
class GgufLora(Format):
    """A plain LoRA of one rank in float32, in the layout that llama.cpp has for the model."""

    holds: ClassVar[str] = "An adapter for llama.cpp"

    svd_rank: int | None = None
    """Cut updates of a higher rank to this one by SVD."""

    def write(self, run: FinishedRun, folder: Path, here: bool = True) -> dict[str, Any]:
        names = names_of(run.shape)
        with refusals_of("--as=gguf-lora"), tempfile.TemporaryDirectory() as plain:
            require_for_servers(run)
            options: dict[str, Any] = {"svd_rank": self.svd_rank, "served": None}
            written = save_plain_lora(plain, run.trainable, run.frozen, names, **options)
            write_gguf_lora(folder / FILE, plain, run.shape)
        errors = quantization_error(run)
        return {
            "architecture": architecture(run.shape),
            "rank": written.rank,
            "svd_rank": self.svd_rank,
            "svd_error": dict(written.errors),
            "quantization_error": errors,
            "said": [*svd_lines(written.errors), *quantised_lines(run, errors)],
        }

    def use(self, run: FinishedRun, place: Place, content: Mapping[str, Any]) -> Use:
        folder, name = place.gguf(run) or ("", f"{UNKNOWN}.gguf")
        base = str(Path(folder) / name) if place.here else name
        line = shlex.join(["llama-cli", "-m", base, "--lora", f"{place.files}/{FILE}"])
        which = "" if folder else f"# {base} is the base model, converted for llama.cpp\n"
        return Use(f"{which}{line}", "bash")
