"""Where an adapter of others lies: a folder or file, or a repository of the Hugging Face Hub."""

import dataclasses
import hashlib
import re
from pathlib import Path

from experiments.imports import hub
from experiments.runs.head_file import HEAD_FILE
from lora_jax.interchange.peft_folder import CONFIG, TORCH_WEIGHTS, WEIGHTS, PeftFolder
from lora_jax.suggest import nearest_path

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
        files = [self.path] if self.is_file else [self.path / CONFIG, self.path / weights]
        if (self.path / HEAD_FILE).is_file():
            files.append(self.path / HEAD_FILE)
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
            path = hub.download(name[1], name[2])
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
