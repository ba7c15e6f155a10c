"""What a search has asked for, in the sweep's folder as search.json; scores are in the records."""

import dataclasses
from pathlib import Path
from typing import Any

from experiments.sweeps.sweep_flag import Overrides
from lora_jax.records import sealed_file

NAME = "search.json"
VERSION = 1


@dataclasses.dataclass(frozen=True)
class Ledger:
    """The settings of a search, and the overrides of the trials of each round."""

    folder: Path
    settings: dict[str, Any]

    def rounds(self) -> list[list[Overrides]]:
        """The trials that were asked for, round by round; none if the search has not begun.

        Raises:
          ValueError: the folder has a search with other settings, or its file was changed.
        """
        path = self.folder / NAME
        if not path.exists():
            return []
        found = sealed_file.read(path)
        if found.get("version") != VERSION or not isinstance(found.get("rounds"), list):
            raise ValueError(f"{path} is no file of a search of this version")
        for name, value in self.settings.items():
            if (there := found["settings"].get(name)) != value:
                raise ValueError(
                    f"{path} is of a search with --{name}={_text(there)}, not {_text(value)}; name "
                    "another --workdir"
                )
        return found["rounds"]

    def write(self, rounds: list[list[Overrides]], best: dict[str, Any] | None = None) -> None:
        """Write the trials of all rounds, and the best one so far.

        Args:
          best: the name, the score and the flags of the best trial.
        """
        values = {"version": VERSION, "settings": self.settings, "best": best, "rounds": rounds}
        sealed_file.write(self.folder / NAME, values)


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
