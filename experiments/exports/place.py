"""Where those who load an export have its files and its base model: here, or on another machine."""

import dataclasses
import re
from pathlib import Path

from experiments.runs.finished_run import FinishedRun
from lora_jax.models.published.location import hub_name
from lora_jax.models.published.weight_files import find_gguf

UNKNOWN = "BASE"
"""Stands on cards for a base model without a published name."""
_CACHED = r".*/models--([\w.-]+?)--([\w.-]+)/snapshots/[0-9a-f]+"
"""A folder of the Hugging Face Hub's cache."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Where the files of an export are, as its user names it."""

    files: str
    """The folder, or the name on the Hub."""
    here: bool
    """Whether the user is on this machine, whose paths say nothing on a card."""

    @property
    def name(self) -> str:
        """What to call the adapter."""
        return Path(self.files).resolve().name

    def base(self, run: FinishedRun) -> str:
        """What others load the base by: its name on the Hub, or the path of its folder or file."""
        if self.here:
            return hub_name(run.config.model.name) or str(run.source.absolute())
        return published(run) or UNKNOWN

    def gguf(self, run: FinishedRun) -> tuple[str, str] | None:
        """The folder and the name of the base's GGUF file, if it is one."""
        if (file := find_gguf(run.source)) is None:
            return None
        return (str(file.parent.absolute()) if self.here else UNKNOWN), file.name


def published(run: FinishedRun) -> str | None:
    """The base's name on the Hub, also where the config names a folder of the Hub's cache."""
    name = run.config.model.name
    cached = re.fullmatch(_CACHED, str(Path(name).absolute()))
    return hub_name(name) or (f"{cached[1]}/{cached[2]}" if cached else None)


def on_card(path: str) -> str:
    """A path as cards have it: of an absolute one, which is this machine's, the last name alone."""
    return Path(path).name if Path(path).is_absolute() else path


def text_on_card(said: str) -> str:
    """A line that may name absolute paths, with the last name of each alone."""
    return re.sub(r"(?<!\S)/(?:[^\s,/]+/)*([^\s,/]+)", r"\1", said)
