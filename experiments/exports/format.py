"""What a format is: typed options, and how a finished run is written with them."""

import dataclasses
from pathlib import Path
from typing import Any

from experiments.runs.finished_run import FinishedRun


@dataclasses.dataclass(frozen=True)
class Format:
    """A format that runs are exported in. Its fields are the command's flags of these names.

    A field whose flag has another name says so in its metadata: {"flag": "for"}.
    """

    def write(self, run: FinishedRun, folder: Path) -> dict[str, Any]:
        """Write a run into an empty folder, and return what `export.json` is to say of it.

        An entry "said" is a list of lines for the user.

        Raises:
          ValueError: one line on what the format cannot hold, with the way out.
        """
        raise NotImplementedError
