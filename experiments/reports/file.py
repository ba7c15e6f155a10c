"""The file of a report: replaced whole, and only where it was a report before."""

from pathlib import Path

from experiments.reports.csv_lines import HEADS as COLUMNS
from lora_jax.files.atomic import write_atomically

FORMATS = ("rich", "markdown", "latex", "html", "csv")
TITLE = "Comparison of methods"
HEADS = {
    "rich": f"{TITLE}\n\n",
    "markdown": f"# {TITLE}\n\n",
    "latex": f"% {TITLE}\n",
}
"""What reports begin with in the formats of text."""
_SIGNS = HEADS | {"html": f"<title>{TITLE}</title>", "csv": ",".join(COLUMNS[:4])}
"""What a report in each format has near its beginning, and hardly any other file."""


def check(path: Path, form: str) -> None:
    """Raise where a report is not to be written to a file.

    Raises:
      ValueError: a folder, or a file that is not empty and no earlier report in this format.
    """
    if path.is_dir():
        raise ValueError(f"--out {path} is a folder: name a file")
    if not path.exists():
        return
    with path.open("rb") as file:
        begins = file.read(4096)
    if begins and _SIGNS[form].strip().encode() not in begins:
        raise ValueError(
            f"--out {path} is there already and no report with --format={form}: name another file, "
            "or remove it"
        )


def write(path: Path, form: str, text: str) -> None:
    """Write a report atomically, in a folder that is made where it is not there.

    Raises:
      ValueError: as `check`.
    """
    check(path, form)
    write_atomically(path, text.encode())
