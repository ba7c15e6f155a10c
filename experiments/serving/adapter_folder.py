"""The folder with the adapters that a server may load: the only part of the disk that it reads.

Adapters are named by clients, so a name is nothing but the name of an entry: no path leads out.
"""

import hashlib
import os
from pathlib import Path

from experiments.runs.finished_run import ADAPTER
from experiments.runs.head_file import HEAD_FILE
from lora_jax.interchange.peft_folder import CONFIG, WEIGHTS
from lora_jax.serving.adapter_store import UnknownAdapterError

RUN_CONFIG = "config.json"
LONGEST = 128
"""The most characters of an adapter's name."""


class AdapterFolder:
    """Adapters by the names of their folders: those of runs, of `save_adapter`, and of PEFT.

    Raises:
      FileNotFoundError: there is no such folder.
    """

    def __init__(self, root: Path):
        if not root.is_dir():
            raise FileNotFoundError(f"--adapters={root}: no such folder")
        self.root = root

    def names(self) -> list[str]:
        """The adapters that there are now, in order. What is no adapter is left out."""
        found = []
        for entry in sorted(self.root.iterdir()):
            try:
                self.files(entry.name)
            except (LookupError, OSError, ValueError):
                continue
            found.append(entry.name)
        return found

    def files(self, name: str) -> tuple[Path, ...]:
        """The files of an adapter: its config, if it has one, and its weights.

        Raises:
          UnknownAdapterError: no entry of the folder has this name.
          ValueError: the entry is no adapter, or a link leads out of the folder.
        """
        # Unlike a Path's, this is_dir is false for a name that the file system finds too long.
        if not is_name(name) or not os.path.isdir(self.root / name):
            raise UnknownAdapterError(name[:LONGEST], [] if not is_name(name) else self._entries())
        folder = self.root / name
        for files in ((CONFIG, WEIGHTS), (RUN_CONFIG, ADAPTER), (ADAPTER,)):
            paths = tuple(folder / file for file in files)
            if all(path.is_file() for path in paths):
                break
        else:
            raise ValueError(f"'{name}' has neither {CONFIG} and {WEIGHTS} nor {ADAPTER}")
        if files[0] == CONFIG and (folder / HEAD_FILE).exists():
            paths = (*paths, folder / HEAD_FILE)
        top = self.root.resolve()
        if not all(path.resolve().is_relative_to(top) for path in paths):
            raise ValueError(f"'{name}' has a link that leads out of the folder of adapters")
        return paths

    def digest(self, name: str) -> str:
        """What names one version of an adapter: a sha256 in hexadecimal.

        It is that of the lines of `sha256sum` for its files, in the order of `files`. Errors are
        those of `files`.
        """
        lines = []
        for path in self.files(name):
            with path.open("rb") as file:
                own = hashlib.file_digest(file, "sha256").hexdigest()
            lines.append(f"{own}  {path.name}\n")
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def _entries(self) -> list[str]:
        return sorted(each.name for each in self.root.iterdir() if each.is_dir())


def is_name(name: str) -> bool:
    """Whether a text can be the name of an adapter: that of an entry, which is not hidden."""
    plain = name.isprintable() and not {"/", "\\"} & {*name}
    return plain and not name.startswith(".") and 0 < len(name) <= LONGEST
