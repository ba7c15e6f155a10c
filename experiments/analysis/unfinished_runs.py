"""Find runs that began and left no record: killed, interrupted, still running, or unknown.

Every run writes its `config.json` first and its `record.json` last. A folder with only the first
belongs to a run that has not ended. In a sweep's folder, `outcomes/` says more about such a run,
and about trials that failed before they had a folder.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from configs.settings import RunConfig, Study
from experiments.analysis import recorded_runs
from experiments.setup.config import of_record
from experiments.sweeps.folder import SweepFolder
from lora_jax.files import json_text
from lora_jax.records import packed

SECTIONS = ("data", "model", "variant", "optimizer", "train", "quantize")
"""Sections of a run's config; a `config.json` without them is another file, such as a model's."""


@dataclasses.dataclass(frozen=True)
class Unfinished:
    """A run without a record: its folder, its config and its status.

    `status` is the sweep's status: `killed`, `failed`, `diverged`, `interrupted` or `running`. It
    is `unfinished` if no sweep has noted one.
    """

    folder: Path
    config: RunConfig | None
    status: str

    @property
    def study(self) -> Study:
        return self.config.study if self.config else Study()

    @property
    def number(self) -> tuple[int, int]:
        """The seed and the draw of the examples, as for a `recorded_runs.Run`."""
        assert self.config is not None
        return self.config.seed, self.config.data.draw if self.config.data.train else 0

    @property
    def held_out(self) -> bool:
        return self.config is not None and recorded_runs.held_out(self.config)


def find(results: Path) -> list[Unfinished]:
    """All runs below a folder without a record: those with a folder in order, then other trials.

    Raises:
      ValueError: a `config.json` or a sweep's list of trials cannot be read.
    """
    found = []
    for path in sorted(results.rglob("config.json")):
        if (path.parent / "record.json").exists() or packed.holder(path.parent):
            continue
        config = json_text.read(path)
        sections = [config.get(each) for each in SECTIONS] if isinstance(config, dict) else [None]
        if all(isinstance(each, dict) for each in sections):
            recorded_runs.require_settings(
                path,
                config,
                recorded_runs.NEEDED if recorded_runs.in_study(config) else recorded_runs.OF_ANY,
            )
            found.append(Unfinished(path.parent, of_record(config), _status(path.parent)))
    return [*found, *_without_folder(results)]


def _status(folder: Path) -> str:
    """The status of a run in its sweep; `unfinished` without a sweep or without a noted status."""
    sweep = SweepFolder(folder.parent.parent)
    if folder != sweep.run(folder.name) or not (sweep.path / "trials.json").exists():
        return "unfinished"
    attempt = sweep.attempt(folder.name)
    return "unfinished" if attempt is None or attempt.status == "completed" else attempt.status


def _without_folder(results: Path) -> Iterator[Unfinished]:
    """The trials of sweeps that began and have no folder of their own."""
    for path in sorted(results.rglob("outcomes")):
        sweep = SweepFolder(path.parent)
        if not (sweep.path / "trials.json").exists():
            continue
        for name in sorted(sweep.require(())):
            folder = sweep.run(name)
            if (folder / "record.json").exists() or (folder / "config.json").exists():
                continue
            attempt = sweep.attempt(name)
            if attempt is not None and attempt.status != "completed":
                yield Unfinished(folder, _config(sweep, name), attempt.status)


def _config(sweep: SweepFolder, name: str) -> RunConfig | None:
    """The config of a trial, built again; None if that fails or gives another config by now."""
    try:
        return sweep.trial(name).config
    except (ValueError, OSError):
        return None
