"""Sweeps of the quickstart's smallest runs, and what stands in for the training of their trials."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fake_records

from configs.settings import RunConfig
from experiments.runs.run_options import RunOptions
from experiments.sweeps import trials
from experiments.sweeps.folder import SweepFolder
from lora_jax.records.run_record import Record

FILE = str(Path(__file__).parents[2] / "configs" / "quickstart.py")
SMOKE = [f"--config={FILE}:size=smoke"]


def made(*specs: str, arguments: list[str] = SMOKE) -> list[trials.Trial]:
    """The trials of a sweep over `specs`, as in --sweep."""
    return trials.make(arguments, trials.overrides_of(FILE, specs, arguments=arguments))


def sweep(tmp_path: Path, *specs: str) -> tuple[SweepFolder, list[trials.Trial]]:
    """The folder of a sweep, and its trials, of which none has begun."""
    folder = SweepFolder(tmp_path / "sweep")
    found = made(*specs)
    folder.write_list(found)
    return folder, found


def trained(
    configs: Sequence[RunConfig], folders: Sequence[Path], names: Sequence[str], how: RunOptions
) -> list[Any]:
    """In place of training: what it leaves where seed 1 fails and seed 2 diverges."""
    return [trained_one(config, folder) for config, folder in zip(configs, folders, strict=True)]


def trained_one(config: RunConfig, folder: Path) -> Record | RuntimeError:
    """The record of one trial, which is written, or the error that ended it."""
    if config.seed == 1:
        return RuntimeError("the disk\nis full")
    status = "diverged" if config.seed == 2 else "completed"
    return fake_records.write(
        folder,
        "quickstart",
        "size=smoke",
        {"accuracy": 0.5},
        changes={"seed": config.seed},
        status=status,
        note="not finite at step 3" if status == "diverged" else "",
    )
