"""Runs that began and left no record: killed, interrupted, still running, or nobody knows.

Every run begins with its `config.json` and ends with its `record.json`. A folder with the first
alone is of a run that did not end; below a sweep's folder, `outcomes/` says more about it, and of
trials that failed before they had a folder.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from experiments.analysis import collect_runs
from experiments.sweeps.folder import SweepFolder
from experiments.sweeps.trials import Trial
from lora_jax.files import json_text

SECTIONS = ("data", "model", "variant", "optimizer", "train", "quantize")
"""What the config of a run has, and that of a model of somebody else's has not."""
OF_ANY = {each: kind for each, kind in collect_runs.NEEDED.items() if not each.startswith("study.")}
"""What is asked of the config of a run that belongs to no study."""


@dataclasses.dataclass(frozen=True)
class Unfinished:
    """A run without a record: its folder, its config, and what is known of how it stands.

    `status` is `unfinished` where nobody noted it, or a sweep's word for it: `killed`, `failed`,
    `interrupted`, `running`.
    """

    folder: Path
    config: Mapping[str, Any]
    status: str

    @property
    def study(self) -> Mapping[str, str]:
        return self.config.get("study") or {}

    @property
    def number(self) -> tuple[int, int]:
        """The seed, and the draw of the examples, as of a `collect.Run`."""
        return self.config["seed"], self.config["data"]["draw"]

    @property
    def held_out(self) -> bool:
        return collect_runs.held_out(self.config)


def find(results: Path) -> list[Unfinished]:
    """Every run below a folder that has no record, in the order of their paths.

    Raises:
      ValueError: a `config.json` or a sweep's list of trials that cannot be read.
    """
    found = []
    for path in sorted(results.rglob("config.json")):
        if (path.parent / "record.json").exists():
            continue
        config = json_text.read(path)
        sections = [config.get(each) for each in SECTIONS] if isinstance(config, dict) else [None]
        if all(isinstance(each, dict) for each in sections):
            collect_runs.check(path, config, collect_runs.NEEDED if config.get("study") else OF_ANY)
            found.append(Unfinished(path.parent, config, _status(path.parent)))
    return [*found, *_without_folder(results)]


def _status(folder: Path) -> str:
    """What the sweep that a run's folder belongs to has noted, if it belongs to one."""
    sweep = SweepFolder(folder.parent.parent)
    if folder != sweep.run(folder.name) or not (sweep.path / "trials.json").exists():
        return "unfinished"
    status = sweep.outcome(Trial(folder.name, (), {}, {})).status
    return "unfinished" if status in ("waiting", "completed") else status


def _without_folder(results: Path) -> Iterator[Unfinished]:
    """The trials of sweeps that ended before they had a folder of their own."""
    for path in sorted(results.rglob("outcomes")):
        sweep = SweepFolder(path.parent)
        if not (sweep.path / "trials.json").exists():
            continue
        for name in sorted(sweep.require(())):
            folder = sweep.run(name)
            if (folder / "record.json").exists() or (folder / "config.json").exists():
                continue
            status = sweep.outcome(Trial(name, (), {}, {})).status
            if status not in ("waiting", "completed"):
                yield Unfinished(folder, _config(sweep, name), status)


def _config(sweep: SweepFolder, name: str) -> Mapping[str, Any]:
    """The config of a trial, made anew; an empty one where its file makes another by now."""
    try:
        return sweep.trials([name])[0].config
    except (ValueError, OSError):
        return {}
