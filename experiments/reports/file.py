"""Write the file of a report; an existing file is replaced only if it is a report."""

from pathlib import Path

from experiments.reports.csv_lines import COLUMNS
from lora_jax.files.atomic import write_atomically

FORMATS = ("rich", "markdown", "latex", "html", "csv")
TITLE = "Comparison of methods"
GENERATOR = "experiments.report"
"""What the page says made it."""
_BEGINNINGS = {"rich": TITLE, "markdown": f"# {TITLE}", "latex": f"% {TITLE}"}
_ENDS = {"rich": "\n\n", "markdown": "\n\n", "latex": "\n"}
_SIGNS = _BEGINNINGS | {"html": f'content="{GENERATOR}"', "csv": ",".join(COLUMNS[:4])}
"""What a report in each format begins with; HTML has it near the beginning."""


def beginning(form: str, title: str) -> str:
    """The beginning of a report in a text format; `title` says what it is about, if anything."""
    return _BEGINNINGS[form] + f": {title}" * bool(title) + _ENDS[form]


def require_replaceable(path: Path, form: str) -> None:
    """Check that a report may be written to a path.

    Raises:
      ValueError: it is a folder, or a file that is neither empty nor a report in this format.
    """
    if path.is_dir():
        raise ValueError(f"--out {path} is a folder: name a file")
    if not path.exists():
        return
    with path.open("rb") as file:
        begins = file.read(4096)
    sign = _SIGNS[form].encode()
    of_form = sign in begins if form == "html" else begins.startswith(sign)
    if begins and not of_form:
        raise ValueError(
            f"--out {path} exists and is not a report with --format={form}: name another file, or "
            "remove this one"
        )


def write(path: Path, form: str, text: str) -> None:
    """Write a report atomically, and create its folder if needed.

    Raises:
      ValueError: as `require_replaceable`.
    """
    require_replaceable(path, form)
    write_atomically(path, text.encode())
