"""Tell the parts of a study apart: its registrations, each in a folder of its own, by its name."""

import dataclasses
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.analysis.choose_methods import Contest
from experiments.analysis.labels import natural
from experiments.studies.adherence import Adherence


def names(kept: Sequence[Adherence]) -> dict[str, str]:
    """What a report calls each registration, by its digest, in natural order of the names.

    It is the name of the study. Where several are of one study, a folder follows: `lora_scale/16`.
    """
    count = Counter(each.registered.study for each in kept)
    found = {each.registered.digest: each.registered.study for each in kept}
    for study in (name for name, number in count.items() if number > 1):
        own = {each.registered.digest: each for each in kept if each.registered.study == study}
        folders = {digest: each.folder or Path() for digest, each in own.items()}
        above = os.path.commonpath(folders.values())
        found |= {d: f"{study}/{each.relative_to(above).as_posix()}" for d, each in folders.items()}
    order = natural(found.values())
    return dict(sorted(found.items(), key=lambda each: order.index(each[1])))


def named(made: Sequence[Contest], known: Mapping[str, str]) -> list[Contest]:
    """The contests, each with the name of its registration in place of its table, by these names.

    Args:
      known: the names by digest; a contest of no such registration keeps its table.
    """
    found = [
        dataclasses.replace(each, table=known.get(each.registration, each.table)) for each in made
    ]
    order = natural(each.table for each in found)
    return sorted(found, key=lambda each: order.index(each.table))
