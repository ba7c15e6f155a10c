"""What a search has asked for, in the sweep's folder as search.json; scores are in the records."""

import dataclasses
from pathlib import Path
from typing import Any

from experiments.sweeps.sweep_flag import Overrides
from lora_jax.records import seal

NAME = "search.json"
VERSION = 1


@dataclasses.dataclass(frozen=True)
class Ledger:
    """The settings of a search, the trials of each round, and what was left out."""

    folder: Path
    settings: dict[str, Any]

    def read(self) -> tuple[list[list[Overrides]], list[dict[str, Any]]]:
        """The trials that were asked for, round by round, and combinations that cannot work.

        Of the latter, each has its `values`, and `why`. Both are empty before the search begins.

        Raises:
          ValueError: the folder has a search with other settings, or its file was changed.
        """
        path = self.folder / NAME
        if not path.exists():
            return [], []
        found = seal.read(path)
        if found.get("version") != VERSION or not isinstance(found.get("rounds"), list):
            raise ValueError(f"{path} is no file of a search of this version")
        for name, value in self.settings.items():
            if (there := found["settings"].get(name)) != value:
                raise ValueError(
                    f"{path} is of a search with --{name}={_text(there)}, not {_text(value)}; name "
                    "another --workdir"
                )
        return found["rounds"], found.get("left_out", [])

    def write(
        self,
        rounds: list[list[Overrides]],
        left_out: list[dict[str, Any]],
        best: dict[str, Any] | None = None,
    ) -> None:
        """Write the trials of all rounds, what was left out, and the best trial so far.

        Args:
          best: the name, the score and the flags of the best trial.
        """
        values = {"version": VERSION, "settings": self.settings, "best": best, "rounds": rounds}
        seal.write(self.folder / NAME, {**values, "left_out": left_out})


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
