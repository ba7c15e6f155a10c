"""Where an adapter of others lies: a folder, or a repository of the Hugging Face Hub."""

import dataclasses
import hashlib
import re
from pathlib import Path

from experiments.imports import hub
from lora_jax.interchange.peft_folder import CONFIG, TORCH_WEIGHTS, WEIGHTS, PeftFolder

_HUB_NAME = r"([\w-][\w.-]*/[\w-][\w.-]*)(?:@([\w-][\w./-]*))?"


@dataclasses.dataclass(frozen=True)
class AdapterSource:
    """An adapter on this machine."""

    given: str
    """As the user has named it."""
    path: Path
    """Its folder."""
    commit: str | None = None
    """That of the repository of the Hub which it was downloaded from."""

    def digests(self) -> dict[str, str]:
        """The sha256 of each file of the adapter, by its name, in hexadecimal."""
        weights = WEIGHTS if (self.path / WEIGHTS).is_file() else TORCH_WEIGHTS
        found = {}
        for name in (CONFIG, weights):
            with (self.path / name).open("rb") as file:
                found[name] = hashlib.file_digest(file, "sha256").hexdigest()
        return found


def find(given: str) -> AdapterSource:
    """The adapter of a folder, or else of `user/name` or `user/name@revision` on the Hub.

    Raises:
      FileNotFoundError, ValueError: one line on why there is none that can be read. Of the tensors,
        only names and shapes are read.
    """
    path, name = Path(given), re.fullmatch(_HUB_NAME, given)
    if given and path.is_dir():
        source = AdapterSource(given, path)
    elif given and path.exists():
        raise ValueError(f"--from={given} is a file: name the folder with {CONFIG} and {WEIGHTS}")
    elif name is not None:
        path = hub.download(name[1], name[2])
        source = AdapterSource(given, path, path.name)
    else:
        raise FileNotFoundError(f"--from={given}: no such folder")
    if not (source.path / CONFIG).is_file():
        raise FileNotFoundError(f"--from={given} has no {CONFIG}: {_found_in(source.path)}")
    PeftFolder(source.path)
    return source


def _found_in(folder: Path) -> str:
    """What a folder is instead of an adapter's, for messages."""
    if (folder / "record.json").is_file():
        return "it is a run's, which needs no import"
    inside = sorted(path.parent.name for path in folder.glob(f"*/{CONFIG}"))
    if inside:
        return f"the adapters in it: {', '.join(inside)}"
    return "it is not an adapter of Hugging Face PEFT"
