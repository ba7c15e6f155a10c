"""What a format is: typed options, how a finished run is written with them, and what cards say."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from experiments.exports.place import Place
from experiments.runs.finished_run import FinishedRun


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

    def use(self, run: FinishedRun, place: Place, content: Mapping[str, Any]) -> Use | None:
        """How the files are loaded, as a user can run it; None if there is nothing to say.

        Args:
          content: what `write` has returned.
        """
        return None
