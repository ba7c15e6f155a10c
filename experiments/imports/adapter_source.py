"""An adapter of others: where it lies, and how it is put onto the model of a run.

It is a folder or file of this machine, or in a repository of the Hugging Face Hub.
"""

import dataclasses
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import lora_jax as lj
import variants
from configs.settings import ClassifierConfig, RunConfig
from experiments.runs.head_file import HEAD_FILE, with_head
from experiments.setup import from_config
from experiments.setup.task_and_model import TaskAndModel
from lora_jax.interchange.load_loralib import LoralibFile
from lora_jax.interchange.load_peft import Loaded
from lora_jax.interchange.names import names_in
from lora_jax.interchange.peft_folder import CONFIG, MODEL, TORCH_WEIGHTS, WEIGHTS, PeftFolder
from lora_jax.messages import nearest_path
from lora_jax.models import families

LORALIB_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
_HUB_NAME = r"([\w-][\w.-]*/[\w-][\w.-]*)(?:@([\w-][\w./-]*))?"


@dataclasses.dataclass(frozen=True)
class AdapterSource:
    """An adapter on this machine."""

    given: str
    """As the user has named it."""
    path: Path
    """Its folder of PEFT, or its file of loralib."""
    commit: str | None = None
    """That of the repository of the Hub which it was downloaded from."""

    def digests(self) -> dict[str, str]:
        """The sha256 of each file of the adapter, by its name, in hexadecimal."""
        weights = WEIGHTS if (self.path / WEIGHTS).is_file() else TORCH_WEIGHTS
        own = (self.path / name for name in (CONFIG, weights, HEAD_FILE))
        files = [self.path] if self.is_file else [path for path in own if path.is_file()]
        found = {}
        for path in files:
            with path.open("rb") as file:
                found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
        return found

    @property
    def is_file(self) -> bool:
        """Whether it is a file of loralib."""
        return self.path.is_file()


def find(given: str) -> AdapterSource:
    """The adapter of a folder or file, or else of `user/name[@revision]` on the Hub.

    Raises:
      FileNotFoundError, ValueError: one line on why there is none that can be read. Of the tensors,
        only names and shapes are read.
    """
    path, name = Path(given), re.fullmatch(_HUB_NAME, given)
    if given and path.is_dir():
        source = AdapterSource(given, path)
    elif given and path.is_file():
        if path.name in (CONFIG, WEIGHTS, TORCH_WEIGHTS):
            raise ValueError(f"--from={given} is a file of PEFT: name its folder")
        if path.suffix not in LORALIB_SUFFIXES:
            raise ValueError(
                f"--from={given} is neither a folder of PEFT nor a checkpoint of microsoft/LoRA "
                f"({', '.join(LORALIB_SUFFIXES)})"
            )
        return AdapterSource(given, path)
    elif name is not None:
        near = nearest_path(path, _is_adapter) if path.parent.is_dir() else ""
        try:
            path = download(name[1], name[2])
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error}{near}") from error
        source = AdapterSource(given, path, path.name)
    else:
        near = nearest_path(path, _is_adapter) if given else ""
        raise FileNotFoundError(f"--from={given}: no such folder{near}")
    if not (source.path / CONFIG).is_file():
        raise FileNotFoundError(f"--from={given} has no {CONFIG}: {_found_in(source.path)}")
    PeftFolder(source.path)
    return source


def _is_adapter(path: Path) -> bool:
    return (path / CONFIG).is_file() or path.suffix in LORALIB_SUFFIXES


def _found_in(folder: Path) -> str:
    """What a folder is instead of an adapter's, for messages."""
    if (folder / "record.json").is_file():
        return "it is a run's, which needs no import"
    inside = sorted(path.parent.name for path in folder.glob(f"*/{CONFIG}"))
    if inside:
        return f"the adapters in it: {', '.join(inside)}"
    return "it is not an adapter of Hugging Face PEFT"


def download(name: str, revision: str | None = None) -> Path:
    """The folder of a repository's adapter in the Hub's cache; its name is that of the commit.

    Args:
      name: `user/name`.
      revision: a branch, a tag or a commit; the default branch by default.

    Raises:
      FileNotFoundError: one line on why it is not to be had.
    """
    import huggingface_hub  # slow to import, and folders do not need it

    given = f"--from={name}" + (f"@{revision}" if revision else "")
    try:
        where = huggingface_hub.snapshot_download(
            name, revision=revision, allow_patterns=[CONFIG, WEIGHTS, HEAD_FILE]
        )
        folder = Path(str(where))
        complete = (folder / WEIGHTS).is_file() or not (folder / CONFIG).is_file()
        files = [] if complete else huggingface_hub.HfApi().list_repo_files(name, revision=revision)
    except Exception as error:  # of the Hub, its HTTP client or the disk
        said = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise FileNotFoundError(
            f"{given}: no such folder, and the Hub does not have it for you ({said})"
        ) from error
    if TORCH_WEIGHTS in files:
        raise FileNotFoundError(
            f"{given}: it has {TORCH_WEIGHTS} alone, a pickle, which is not downloaded: convert it "
            f"by loading it with PEFT and save_pretrained, which writes {WEIGHTS}"
        )
    return folder


def read_adapter(
    source: AdapterSource,
    config: RunConfig,
    model: TaskAndModel,
    alpha: float | None = None,
    enable_lora: Sequence[bool] | None = None,
) -> Loaded:
    """The model of a run with the adapter of a source; weights are stored as the config says.

    Args:
      alpha, enable_lora: of a file of loralib, as for `lj.load_loralib`.

    Raises:
      ValueError: the adapter is malformed, of a method that is not here, or of another model.
    """
    forward, params = model.model(jax.random.key(config.seed))
    storage = from_config.make_storage(config.quantize)
    shape: Any = model.texts.shape
    example = np.zeros((config.train.batch_size, model.texts.boundaries[0]), np.int32)
    inputs = example, example, example
    onto = forward, params, *inputs
    if not source.is_file:
        tensors, head = PeftFolder(source.path).names(), source.path / HEAD_FILE
        if isinstance(config, ClassifierConfig):
            _require_pool(source, config.model.pool, tensors, shape)
        names = names_in(shape, tensors)
        found = lj.load_peft(source.path, variants.from_peft, names, *onto, quantize=storage)
        classifies = isinstance(config, ClassifierConfig)
        return with_head(found, head) if classifies and head.is_file() else found
    file = LoralibFile(source.path, alpha, enable_lora)
    stored = [name.removeprefix(file.before) for name in file.names()]
    return lj.load_loralib(
        source.path,
        variants.from_peft,
        names_in(shape, [f"{MODEL}{name}" for name in stored]),
        *onto,
        alpha=alpha,
        enable_lora=enable_lora,
        quantize=storage,
    )


def _require_pool(source: AdapterSource, pool: str, tensors: Sequence[str], shape: Any) -> None:
    """Raise a ValueError if the head of an adapter reads something else than that of the config."""
    (place,) = families.places("pooler/kernel", shape)
    module = place.name.removesuffix(".weight")
    if pool == "mean" and any(f".{module}." in f".{name}" for name in tensors):
        raise ValueError(
            f"--from={source.given}: its head reads the first token ('{module}'), and that of the "
            "config the mean of all: --config.model.pool=cls"
        )
    if pool == "cls" and (source.path / HEAD_FILE).is_file():  # which exports write for a mean
        raise ValueError(
            f"--from={source.given}: its head ({HEAD_FILE}) reads the mean of all tokens, and that "
            "of the config the first: --config.model.pool=mean"
        )
