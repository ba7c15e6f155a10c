"""What registered studies found, as blocks of the project's documents."""

from pathlib import Path

from experiments.analysis import recorded_runs, select_runs
from experiments.marked_documents import fill_blocks
from experiments.reports import registered
from experiments.reports.verdict import sentence
from experiments.tables import text_formats
from experiments.tables.config_tables import RESULTS, ROOT


def fill(text: str, results: Path = ROOT / RESULTS) -> str:
    """A text whose blocks, such as that of `<!-- study: lora_scale/8 -->`, are made anew.

    Args:
      results: the folder that has the folders of studies; a block's name is one of these.

    Raises:
      ValueError: a marker without its partner, or a name that is no folder of one study.
    """
    return fill_blocks(text, "study", lambda name: block(results / name))


def block(folder: Path, size: str = "full") -> str:
    """The verdict of a registered study, its gains, and what must be known of them, as Markdown."""
    runs, _ = select_runs.select(recorded_runs.find(folder), None, size)
    found = registered.found(folder, runs)
    if len(found) != 1:
        raise ValueError(f"{folder} has {len(found)} registered studies, not one")
    (study,) = found
    sheets = [study.sheet] if study.sheet else []
    return text_formats.markdown(sheets, study.notes, [sentence(study)])
