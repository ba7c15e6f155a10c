"""Lead from a method to the folders of its runs, by paths relative to the page."""

import os
import urllib.parse
from pathlib import Path

from experiments.analysis.choose_methods import Contest, Method
from lora_jax.table import Links


def links(contest: Contest, start: Path) -> Links:
    """For each method, its scored runs: the folder that holds them and no others, or each by seed.

    A packed run has no folder to lead to. Where all are packed, there are no links.

    Args:
      start: the folder of the page.
    """
    parents = {method.key: {run.folder.parent for run in method.runs} for method in contest.methods}
    found = [_of_method(method, parents, start) for method in contest.methods]
    return found if any(found) else ()


def _of_method(method: Method, parents: dict[str, set[Path]], start: Path) -> list[tuple[str, str]]:
    others = {each for key, own in parents.items() if key != method.key for each in own}
    if any(run.pack for run in method.runs):
        return []
    if len(parents[method.key]) == 1 and len(method.runs) > 1:
        (parent,) = parents[method.key]
        if parent not in others:
            return [(parent.name, address(parent, start))]
    return [(f"seed {run.record.seed}", address(run.folder, start)) for run in method.runs]


def address(folder: Path, start: Path) -> str:
    """A folder as seen from another one, as a relative address."""
    return urllib.parse.quote(Path(os.path.relpath(folder, start)).as_posix() + "/")
