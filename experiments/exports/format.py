"""What a format is: typed options, how a finished run is written with them, and what cards say."""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

from experiments.runs.finished_run import FinishedRun


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

    def write(self, run: FinishedRun, folder: Path) -> dict[str, Any]:
        """Write a run into an empty folder, and return what `export.json` is to say of it.

        An entry "said" is a list of lines for the user.

        Raises:
          ValueError: one line on what the format cannot hold, with the way out.
        """
        raise NotImplementedError

    def loading(self, run: FinishedRun, place: str) -> str:
        """Lines of Python that load the files, for the model card; empty if there are none.

        Args:
          place: the folder, or the name on the Hub.
        """
        return ""
