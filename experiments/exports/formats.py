"""The formats that runs are exported in, what `--as` takes for each, and how the files are loaded.

A format is a class with typed options; `FORMATS` lists them.
"""

import contextlib
import dataclasses
import json
import re
import shlex
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from safetensors.numpy import save_file

from configs.settings import ClassifierConfig, OwnConfig, TextConfig
from experiments.exports.base_and_head import (
    UNKNOWN,
    Place,
    averages,
    by_kind,
    file_lines,
    loading,
    mean_head,
    published,
    quantised_lines,
    quantization_error,
    require_published_base,
    without_head,
)
from experiments.runs.finished_run import FinishedRun
from experiments.runs.head_file import HEAD_FILE, save_head
from lora_jax.data.tokenizing.tokenize import export_tokenizer, has_tokenizer
from lora_jax.files.arrays import is_key
from lora_jax.interchange.names import names_of
from lora_jax.interchange.peft_folder import CONFIG
from lora_jax.interchange.save_loralib import save_loralib
from lora_jax.interchange.save_peft import save_peft
from lora_jax.interchange.save_plain_lora import save_plain_lora, write_gguf_lora
from lora_jax.messages import nearest, require_known
from lora_jax.models import families
from lora_jax.models.published.export import export_model
from lora_jax.models.published.gguf import architecture
from lora_jax.models.published.weight_files import SINGLE, find_gguf
from lora_jax.partition import Parts
from lora_jax.table import Table
from lora_jax.transform.adapt import merged_parts


class Use(NamedTuple):
    """Lines of a program, or of a shell."""

    code: str
    language: str = "python"


@dataclasses.dataclass(frozen=True)
class Format:
    """A format that runs are exported in. Its fields are the command's flags of these names.

    A field whose flag has another name says so in its metadata: {"flag": "for"}.
    """

    holds: ClassVar[str] = "An adapter"
    """What the files are, as the first words of the model card."""
    library: ClassVar[str] = ""
    """`library_name` on the Hugging Face Hub; empty if none of its libraries loads the format."""
    relation: ClassVar[str] = "adapter"
    """`base_model_relation` on the Hub: what the files are to the base model."""

    def write(self, run: FinishedRun, folder: Path, here: bool = True) -> dict[str, Any]:
        """Write a run into an empty folder, and return what `export.json` is to say of it.

        An entry "said" is a list of lines for the user.

        Args:
          here: whether the files stay on this machine, and may name its folders.

        Raises:
          ValueError: one line on what the format cannot hold, with the way out.
        """
        raise NotImplementedError

    def use(self, run: FinishedRun, place: Place, content: Mapping[str, Any]) -> Use:
        """How the files are loaded, as a user can run it.

        Args:
          content: what `write` has returned.
        """
        raise NotImplementedError


DTYPES = ("float32", "bfloat16", "float16")
BASE_ERRORS = (
    "the run's base was quantised, and the dense weights keep its relative Frobenius errors:"
)
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
        if isinstance(run.config, OwnConfig):
            return _by_paths(merged_parts(run.trainable, run.frozen), folder, self.dtype)
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
        base, head = quantization_error(run), ""
        said = [BASE_ERRORS, *by_kind(base)] if base else []
        if rounding:
            name, worst = max(rounding.items(), key=lambda each: each[1])
            said.append(f"rounding: relative Frobenius errors of at most {worst:.2%} ({name})")
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
        if isinstance(run.config, OwnConfig):
            file = f"{place.files}/{SINGLE}"
            load = f"from safetensors.numpy import load_file\n\nweights = load_file({file!r})"
            return Use(f"{load}  # by the paths of {run.config.model.name}'s parameters")
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


def _by_paths(parts: Parts, folder: Path, dtype: str | None) -> dict[str, Any]:
    """Write the parameters of a user's own model, whose tensors are named by their paths."""
    arrays = {path: x for path, x in parts.shapes.items() if not is_key(x)}
    tensors = {p: np.asarray(parts.part(p, None), dtype or x.dtype) for p, x in arrays.items()}
    save_file({path: np.ascontiguousarray(x) for path, x in tensors.items()}, folder / SINGLE)
    (folder / SINGLE).chmod(folder.stat().st_mode & 0o666)  # else only the owner reads it
    return {"said": [f"config.model.weights takes the folder, for {len(tensors)} parameters"]}


def _bytes(size: str) -> int:
    found = re.fullmatch(r"([1-9][0-9]{0,5})(KB|MB|GB)", size.upper())
    if found is None:
        raise ValueError(f"--shard_size={size}: expected a size such as 5GB or 500MB")
    return int(found[1]) * _UNITS[found[2]]


@contextlib.contextmanager
def refusals_of(flag: str) -> Iterator[None]:
    """Begin what the library refuses with the flag that asked for it, and say which flags help."""
    try:
        yield
    except ValueError as error:
        said = str(error)
        cut = ", and --svd_rank=R cuts it to rank R and says the error" * ("svd_rank" in said)
        way_out = "" if "--as=" in said else f"; --as=merged writes the model instead{cut}"
        raise ValueError(f"{flag}: {said}{way_out}") from None


def require_for_servers(run: FinishedRun) -> None:
    """Raise a ValueError of one line unless a run trained a language model on a published base."""
    if not isinstance(run.config, TextConfig):
        raise ValueError(
            f"the run's model is a classifier ({run.shape.model_type}), and this is for language "
            "models; --as=merged, or --as=peft --for=peft"
        )
    require_published_base(run)


def svd_lines(errors: Mapping[str, float]) -> list[str]:
    """A table of the relative error that the SVD makes in each weight's update."""
    rows = [(name, f"{error:.2%}") for name, error in errors.items()]
    if not rows:
        return []
    return Table(("weight", "relative error of its update"), rows).to_text().splitlines()


PEFT, VLLM, SGLANG = LOADERS = ("peft", "vllm", "sglang")
_SERVERS = {
    VLLM: ("vllm serve", "--lora-modules"),
    SGLANG: ("python -m sglang.launch_server --model-path", "--lora-paths"),
}
"""What comes before the base model, and before the adapter."""


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
            named = f"{place.name.replace('=', '-')}={place.files}"
            if self.loader == VLLM and {*"=,"} & {*place.name, *place.files}:  # its separators
                named = json.dumps({"name": place.name, "path": place.files})
            given = ["--enable-lora", adapters, named]
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


GGUF_FILE = "adapter.gguf"


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
            write_gguf_lora(folder / GGUF_FILE, plain, run.shape)
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
        line = shlex.join(["llama-cli", "-m", base, "--lora", f"{place.files}/{GGUF_FILE}"])
        which = "" if folder else f"# {base} is the base model, converted for llama.cpp\n"
        return Use(f"{which}{line}", "bash")


LORALIB_FILE = "lora.safetensors"


@dataclasses.dataclass(frozen=True)
class Loralib(Format):
    """One file of safetensors, without the base."""

    holds: ClassVar[str] = "An adapter for models of microsoft/LoRA's layers (loralib)"

    def write(self, run: FinishedRun, folder: Path, here: bool = True) -> dict[str, Any]:
        require_published_base(run)
        names = names_of(run.shape)
        with refusals_of("--as=loralib"):
            written = save_loralib(folder / LORALIB_FILE, run.trainable, run.frozen, names)
        calls = {}
        for module, layer in written.layers.items():
            given = ", ".join(f"{name}={value}" for name, value in layer.options.items())
            calls[module] = f"loralib.{layer.kind}(..., {given})"
        counted = sorted(Counter(calls.values()).items())
        head = [mean_head(f"{LORALIB_FILE} holds")] if averages(run) else []
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
            f"state = safetensors.torch.load_file({f'{place.files}/{LORALIB_FILE}'!r})\n"
            "model.load_state_dict(state, strict=False)"
        )


FORMATS: Mapping[str, type[Format]] = {
    "gguf-lora": GgufLora,
    "loralib": Loralib,
    "merged": Merged,
    "peft": Peft,
}
"""What `--as` takes."""


def make(name: str, options: Mapping[str, Any]) -> Format:
    """The format of a name, with these options.

    Raises:
      ValueError: one line on an unknown name, an option of another format, or an invalid value.
    """
    if name not in FORMATS:
        near, known = nearest(name, FORMATS, 1), ", ".join(FORMATS)
        raise ValueError(f"--as={name}: unknown format; nearest: {near}; the formats: {known}")
    kind = FORMATS[name]
    fields = {each.metadata.get("flag", each.name): each.name for each in dataclasses.fields(kind)}
    for option in options:
        if option not in fields:
            own = ", ".join(f"--{each}" for each in fields) or "none"
            raise ValueError(f"--{option} is not a flag of --as={name}, whose flags are: {own}")
    return kind(**{fields[option]: value for option, value in options.items()})
