"""peft: the adapter alone, as a folder of Hugging Face PEFT, or for a server (`--for`)."""

import dataclasses
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from configs.settings import TextConfig
from experiments.exports.base_model import (
    file_lines,
    loading,
    quantised_lines,
    quantization_error,
    require_published_base,
)
from experiments.exports.classifier_head import averages, mean_head, without_head
from experiments.exports.format import Format, Use
from experiments.exports.place import Place, published
from experiments.exports.plain_lora import refusals_of, require_for_servers, svd_lines
from experiments.runs.finished_run import FinishedRun
from experiments.runs.head_file import HEAD_FILE, save_head
from lora_jax.data.tokenizing.export_tokenizer import export_tokenizer
from lora_jax.interchange.names import names_of
from lora_jax.interchange.peft_folder import CONFIG
from lora_jax.interchange.save_peft import save_peft
from lora_jax.interchange.save_plain_lora import save_plain_lora
from lora_jax.models.published.weight_files import find_gguf
from lora_jax.suggest import require_known

PEFT, VLLM, SGLANG = LOADERS = ("peft", "vllm", "sglang")
_SERVERS = {
    VLLM: ("vllm serve", "--lora-modules"),
    SGLANG: ("python -m sglang.launch_server --model-path", "--lora-paths"),
}
"""What comes before the base model, and before the adapter."""


def _named(loader: str, place: Place) -> str:
    """The adapter's name and folder, as a server takes them."""
    if loader == VLLM and {*"=,"} & {*place.name, *place.files}:  # which separate otherwise
        return json.dumps({"name": place.name, "path": place.files})
    return f"{place.name.replace('=', '-')}={place.files}"


@dataclasses.dataclass(frozen=True)
class Peft(Format):
    """adapter_config.json, adapter_model.safetensors and the tokenizer."""

    library: ClassVar[str] = "peft"

    loader: str = dataclasses.field(default=PEFT, metadata={"flag": "for"})
    """Who loads it. Servers get plain LoRA, with every scale in B, and one rank."""
    svd_rank: int | None = None
    """For servers: cut updates of a higher rank to this one by SVD."""

    def __post_init__(self):
        require_known(self.loader, LOADERS, f"--for={self.loader}: unknown loader")
        if self.svd_rank is not None and self.loader == PEFT:
            raise ValueError("--svd_rank is for servers: --for=vllm or --for=sglang")

    def write(self, run: FinishedRun, folder: Path, here: bool = True) -> dict[str, Any]:
        served, flag = self.loader != PEFT, f"--for={self.loader}"
        with refusals_of(flag if served else "--as=peft"):
            base = published(run) if served else _base(run, here)  # a server is given its own
            content = self._served(run, folder, base) if served else _for_peft(run, folder, base)
        export_tokenizer(run.source, folder)
        errors = quantization_error(run)
        on_base = [] if served else _on_base(run, here)
        said = [*content.pop("said"), *quantised_lines(run, errors), *file_lines(run), *on_base]
        first = {"for": self.loader, "base_model_name_or_path": base}
        return first | content | {"quantization_error": errors, "said": said}

    def use(self, run: FinishedRun, place: Place, content: Mapping[str, Any]) -> Use:
        if self.loader != PEFT:
            start, adapters = _SERVERS[self.loader]
            given = ["--enable-lora", adapters, _named(self.loader, place)]
            given += ["--max-lora-rank", str(content["max_lora_rank"])]
            return Use(f"{start} {shlex.join([place.base(run), *given])}", "bash")
        task, kind = _class(run)
        data: Any = run.experiment.texts.task
        options = {"num_labels": data.num_outputs} if task == "SEQ_CLS" else {}
        return Use(
            f"from peft import PeftModel\n{loading(run, place, kind, **options)}\n"
            f"model = PeftModel.from_pretrained(base, {place.files!r})"
        )

    def _served(self, run: FinishedRun, folder: Path, base: str | None) -> dict[str, Any]:
        require_for_servers(run)
        names = names_of(run.shape)
        options: dict[str, Any] = {"svd_rank": self.svd_rank, "base_model": base}
        written = save_plain_lora(folder, run.trainable, run.frozen, names, **options)
        most = written.max_lora_rank if self.loader == VLLM else written.rank
        return {
            "rank": written.rank,
            "max_lora_rank": most,
            "svd_rank": self.svd_rank,
            "svd_error": dict(written.errors),
            "said": svd_lines(written.errors),
        }


def _for_peft(run: FinishedRun, folder: Path, base: str | None) -> dict[str, Any]:
    """Write for the class of transformers that has the run's head, or for the encoder alone."""
    require_published_base(run)
    trainable, frozen, names = run.trainable, run.frozen, names_of(run.shape)
    said, (task, _) = [], _class(run)
    if not isinstance(run.config, TextConfig):
        trainable, frozen, head = without_head(trainable, frozen)
        if averages(run):
            names, said = names_of(run.shape, head=False), [mean_head(f"{HEAD_FILE} holds")]
            save_head(head, folder / HEAD_FILE)
        else:  # the whole head: transformers draws what the base has none of
            trainable["params"] |= head
    save_peft(folder, trainable, frozen, names, base_model=base, task_type=task)
    return {"task_type": task, "head": said[0] if said else None, "said": said}


def _base(run: FinishedRun, here: bool) -> str | None:
    """What PEFT loads the base by; None if files leave and only this machine has the base.

    None, too, for a GGUF file of one's own, which transformers takes only with `gguf_file`.
    """
    loads = here and find_gguf(run.source) is None
    return published(run) or (str(run.source.absolute()) if loads else None)


def _on_base(run: FinishedRun, here: bool) -> list[str]:
    """What users must know of a base that has no published name."""
    if published(run):
        return []
    if here and find_gguf(run.source) is not None:
        return [
            f"{CONFIG} names no base, as AutoPeftModel alone loads none from a GGUF file: load it "
            "by the code, with gguf_file"
        ]
    if here:
        return [
            f"{CONFIG} names the base by its folder on the machine that made it, so that "
            "AutoPeftModel loads it there: change base_model_name_or_path before you share it"
        ]
    return [f"{CONFIG} names no base, which has no published name: load it as above"]


def _class(run: FinishedRun) -> tuple[str, str]:
    """PEFT's task type, and the class of transformers that has the run's head, or no head."""
    if isinstance(run.config, TextConfig):
        return "CAUSAL_LM", "AutoModelForCausalLM"
    if averages(run):
        return "FEATURE_EXTRACTION", "AutoModel"
    return "SEQ_CLS", "AutoModelForSequenceClassification"
